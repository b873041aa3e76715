"""Limits on a whole session by control group: root's v1 groups, or a delegated v2 subtree.

A group is made below the launcher's own, the session's first process is put into it before it runs anything, and a
janitor that outlives the launcher removes it. The janitor is a shell blocked in ``read`` on a pipe that only the
launcher holds open: whatever ends the launcher wakes it.
"""

from __future__ import annotations

import posix
from errno import EBUSY, EEXIST, ENOENT

from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.kernel import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from remit.sandbox.launch.wire import Operation

_V1 = {"memory": ("memory", "memory.limit_in_bytes"), "pids": ("pids", "pids.max"), "cpu": ("cpu", "cpu.cfs_quota_us")}
_V2 = {"memory": "memory.max", "pids": "pids.max", "cpu": "cpu.max"}
_PERIOD_US = 100_000
_NAME = "remit-"
_SWEEP = (
    'read -r _; n=0; while [ $n -lt 100 ]; do left=0; for d in "$@"; do [ -d "$d" ] || continue; '
    'rmdir "$d" 2>/dev/null || left=1; done; [ $left = 0 ] && exit 0; n=$((n+1)); sleep 0.05; done'
)
_JANITORS: list[int] = []
"""Of this process's groups: one that has swept is a zombie until it is reaped, and a template serves many sessions."""


class Groups:
    """The groups of one session: where they are, how memory events are read, and their end."""

    def __init__(self, paths: Mapping[str, str], *, unified: bool) -> None:
        self._paths = dict(paths)
        self._unified = unified
        self._janitor = -1

    def add(self, pid: int) -> None:
        """Put a process into every group. It must not have forked yet: children that exist do not follow."""
        for path in set(self._paths.values()):
            files.write(f"{path}/cgroup.procs", b"%d" % pid)

    def out_of_memory(self) -> bool:
        """Whether the kernel killed something in the session for its memory limit."""
        path = self._paths.get("memory")
        if path is None:
            return False
        events = files.read(f"{path}/memory.events" if self._unified else f"{path}/memory.oom_control")
        for line in events.splitlines():
            name, _, count = line.partition(b" ")
            if name == b"oom_kill" and int(count or 0):
                return True
        return False

    def watch(self) -> None:
        """Start the janitor."""
        read, write = posix.pipe2(posix.O_CLOEXEC)
        paths = sorted(set(self._paths.values()))
        actions = [
            (posix.POSIX_SPAWN_DUP2, read, 0),
            # Not the caller's: a reader of its output would wait for the janitor too.
            (posix.POSIX_SPAWN_OPEN, 1, "/dev/null", posix.O_WRONLY, 0),
            (posix.POSIX_SPAWN_OPEN, 2, "/dev/null", posix.O_WRONLY, 0),
        ]
        words = ["sh", "-c", _SWEEP, "sh", *paths]
        environment = {"PATH": "/usr/bin:/bin"}
        _reap()
        _JANITORS.append(posix.posix_spawn("/bin/sh", words, environment, file_actions=actions, setsid=True))
        posix.close(read)
        self._janitor = write

    def remove(self) -> None:
        """Remove the groups; every process in them has ended. The janitor gets what is not empty yet."""
        for path in set(self._paths.values()):
            try:
                posix.rmdir(path)
            except OSError as error:
                if error.errno not in (EBUSY, ENOENT):
                    raise
        if self._janitor >= 0:
            posix.close(self._janitor)
        _reap()


def make(limits: Iterable[Operation]) -> Groups | None:
    """Groups for the limits whose mechanism is ``cgroup``, or None where there are none. Raises LaunchError."""
    wanted = {what: value for _, what, value, mechanism in limits if mechanism == "cgroup"}
    if not wanted:
        return None
    name = f"{_NAME}{posix.getpid()}-{posix.urandom(4).hex()}"
    mounts = _mounts()
    paths: dict[str, str] = {}
    try:
        unified = "cgroup2" in mounts and _has(mounts["cgroup2"], wanted)
        for what, value in wanted.items():
            base = mounts["cgroup2"] if unified else mounts.get(_V1[what][0], "")
            if not base:
                raise LaunchError(
                    f"no control group for the limit {what}", hint="see 'remit doctor', or --degrade limits"
                )
            path = f"{base}/{name}"
            try:
                posix.mkdir(path, 0o755)
            except OSError as error:
                if error.errno != EEXIST or path not in paths.values():
                    raise
            paths[what] = path
            _set(path, what, value, unified=unified)
    except OSError as error:
        Groups(paths, unified=False).remove()
        raise LaunchError(
            f"control group for the session: {error.strerror}", hint="see 'remit doctor', or --degrade limits"
        ) from None
    groups = Groups(paths, unified=unified)
    groups.watch()
    return groups


def _reap() -> None:
    """Those janitors that are done. Nobody waits for one: a busy group keeps it for seconds."""
    for pid in [*_JANITORS]:
        try:
            done = posix.waitpid(pid, posix.WNOHANG)[0]
        except ChildProcessError:
            done = pid  # reaped by the kernel, where whoever started this process ignores SIGCHLD
        if done:
            _JANITORS.remove(pid)


def _set(path: str, what: str, value: int, *, unified: bool) -> None:
    if what == "cpu":
        quota = value * _PERIOD_US // 1000
        if unified:
            files.write(f"{path}/cpu.max", b"%d %d" % (quota, _PERIOD_US))
        else:
            files.write(f"{path}/cpu.cfs_period_us", b"%d" % _PERIOD_US)
            files.write(f"{path}/cpu.cfs_quota_us", b"%d" % quota)
        return
    files.write(f"{path}/{_V2[what] if unified else _V1[what][1]}", b"%d" % value)


def _has(base: str, wanted: Iterable[str]) -> bool:
    available = files.read(f"{base}/cgroup.subtree_control").split()
    return all(what.encode() in available for what in wanted)


def _mounts() -> dict[str, str]:
    """Controller (or ``cgroup2``) to this process's own group directory in it."""
    own: dict[str, str] = {}
    for line in files.read("/proc/self/cgroup").decode().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(",") if controllers else ("cgroup2",):
            own[controller] = path
    found: dict[str, str] = {}
    for line in files.read("/proc/self/mountinfo").decode(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        fields = before.split(" ")
        point, root = fields[4], fields[3]
        names = (
            ("cgroup2",) if kind == "cgroup2" else tuple(options.split(" ")[-1].split(",")) if kind == "cgroup" else ()
        )
        for name in names:
            if name in own and name not in found:
                path = own[name]
                inside = path[len(root) :] if root != "/" and path.startswith(root) else path
                found[name] = (point + "/" + inside.strip("/")).rstrip("/")
    return found
