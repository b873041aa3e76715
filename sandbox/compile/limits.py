"""Limits: by what means each one is held on this host.

``files``, ``file-size`` and ``cpu-time`` are limits of each process, by meaning. ``memory`` without a cgroup is sampled
by the supervisor over the whole session: RLIMIT_AS counts address space, which Node and Java reserve by the hundred GiB
and which fork multiplies. ``pids`` without a cgroup is RLIMIT_NPROC counted by the session's user namespace (since
Linux 5.14). ``cpu`` needs a cgroup. What leaves, the gateway counts.
"""

from __future__ import annotations

from remit.sandbox.kernel.facts import HostFacts

_PROCESS = {"cpu-time": "rlimit", "files": "rlimit", "file-size": "rlimit", "time": "timer"}


_GATEWAY = ("connections", "connection-time", "traffic")


def mechanism(what: str, facts: HostFacts, *, user_namespace: bool, network: bool) -> str:
    """A mechanism of ``plan.Limit``; ``none`` where nothing on this host holds it. ``network``: it has one of its own."""
    if what in _GATEWAY:
        return "gateway" if network else "none"
    if what in _PROCESS:
        return _PROCESS[what]
    if what == "tmp":
        return "tmpfs" if user_namespace else "none"
    if facts.cgroup and what in facts.cgroup_controllers:
        return "cgroup"
    if what == "pids" and user_namespace:
        return "nproc"
    if what == "memory":
        return "watch"
    return "none"


def fix(what: str) -> str:
    """What to do where ``mechanism`` says ``none``."""
    if what in _GATEWAY:
        return "the gateway holds it: keep the session's own network; or give the limit up with --degrade limits"
    if what == "tmp":
        return "a private /tmp needs namespaces; or give the limit up with --degrade limits"
    return "run in a user session of systemd, which delegates a cgroup; or give the limit up with --degrade limits"
