"""The network axis: a namespace of its own with nothing in it but a loopback interface.

Connecting out of it and publishing a port need a gateway; until there is one, such a grant is a deficit in a profile
and a refusal on the command line. Landlock's TCP rights know ports and no addresses: with the session's own loopback
allowed they cannot deny anything that the namespace does not, so the namespace is the one layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from remit.sandbox.authority.model import Authority
from remit.sandbox.compile.plan import Line


@dataclass(frozen=True, slots=True)
class Report:
    reasons: tuple[tuple[str, str], ...] = ()
    deficit: tuple[Line, ...] = ()
    slack: tuple[Line, ...] = ()
    notes: tuple[str, ...] = ()


def landlock_holds_tcp(authority: Authority, *, own_namespace: bool) -> bool:
    """Whether denying all TCP by Landlock is what the authority says."""
    if own_namespace:
        return not authority.loopback
    return not authority.connect and not authority.listen


def lower(authority: Authority, explicit: Authority, *, own_namespace: bool) -> Report:
    """What becomes of connect, listen, unix and loopback. ``explicit``: the part that the command line asked for."""
    wanted = (
        ("connect", tuple(map(str, authority.connect)), frozenset(map(str, explicit.connect)), "network"),
        ("listen", tuple(map(str, authority.listen)), frozenset(map(str, explicit.listen)), "network"),
        ("unix", authority.unix, frozenset(explicit.unix), "ipc"),
    )
    reasons: list[tuple[str, str]] = []
    deficit: list[Line] = []
    for right, objects, asked, axis in wanted:
        if not own_namespace and right != "unix":
            continue
        for thing in sorted(objects):
            if thing in asked:
                reasons.append(
                    (
                        f"{right} {thing}: network grants are not available in this version yet",
                        f"leave --{right} out: a session has its own loopback only",
                    )
                )
            else:
                deficit.append(Line(axis, thing, right, "not available in this version yet"))
    slack: list[Line] = []
    notes: list[str] = []
    if not own_namespace:
        slack.append(Line("network", "the host's network", "use", "no network namespace: UDP and the host's loopback"))
    elif authority.loopback:
        notes.append("network: one layer (the session's own loopback is allowed)")
    else:
        notes.append("network: no loopback either")
    return Report(tuple(reasons), tuple(deficit), tuple(slack), tuple(notes))
