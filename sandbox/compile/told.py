"""What a plan says of each granted and each denied object: who holds it, and what of it cannot be had."""

from __future__ import annotations

from collections.abc import Mapping

from remit.sandbox.authority.model import Authority, Right
from remit.sandbox.compile import landlock
from remit.sandbox.compile.lowering import Layers
from remit.sandbox.compile.objects import Objects
from remit.sandbox.compile.paths import below, touch
from remit.sandbox.compile.plan import Line
from remit.sandbox.resolve.binding import Kind


def granted(objects: Objects, layers: Layers, left: Mapping[str, frozenset[Right]]) -> None:
    """Every granted object and who holds it. ``left``: what is left of each grant, by canonical path."""
    held = tuple(name for name, on in (("namespaces", layers.namespaces), ("landlock", layers.landlock)) if on)
    for rule in objects.authority.paths:
        named = objects.name(rule.path)
        if named.canonical not in left:
            continue
        note = "" if named.canonical == rule.path else f"is {named.canonical}"
        if below(named.canonical, "/proc"):
            note = "the session's own /proc"
        writes = ("mediation",) if layers.mediation else ()
        for right in sorted((rule.rights | {Right.READ}) & left[named.canonical]):
            by = (*held, *(writes if right is Right.WRITE else ()))
            objects.says.granted.append(Line("filesystem", rule.path, right.value, note, by, str(rule.where(right))))
        if rule not in objects.floor.paths and named.kind is Kind.OTHER:
            objects.says.note(f"{rule.path}: neither file, directory, device nor socket")
    for group in sorted(objects.authority.syscalls):
        objects.says.granted.append(Line("syscalls", group, "use", "", ("seccomp",)))
    for name in sorted(objects.authority.devices):
        objects.says.granted.append(Line("devices", name, "use", "", held))
    for name, setting in sorted(objects.authority.environment, key=lambda pair: pair[0]):
        objects.says.granted.append(
            Line("environment", name, "pass" if setting is None else "set", "", ("environment",))
        )
    for what, value in sorted(objects.authority.limits):
        objects.says.granted.append(Line("limits", what, str(value), "", ("limits",)))


def sockets(objects: Objects, layers: Layers, explicit: Authority) -> None:
    """Every granted Unix socket; one that cannot be had is a deficit, or a reason to refuse where it was asked for."""
    asked = frozenset(explicit.unix)
    by = ["namespaces"] if layers.namespaces else []
    if layers.landlock and landlock.abi(objects.facts.landlock_abi).fs & landlock.RESOLVE_UNIX:
        by.append("landlock")
    for path in sorted(objects.authority.unix):
        named = objects.name(path)
        if named.kind is Kind.SOCKET:
            note = "" if named.canonical == path else f"is {named.canonical}"
            objects.says.granted.append(Line("ipc", path, "connect", note, tuple(by)))
            continue
        why = "no such socket now" if named.kind is Kind.ABSENT else "not a socket"
        if path in asked:
            objects.says.reasons.append((f"unix {path}: {why}", "start its server first, and name the socket itself"))
        else:
            objects.says.deficit.append(Line("ipc", path, "connect", why))


def denied(objects: Objects, layers: Layers) -> None:
    """Every deny and protect, who holds it, and what of it nobody holds."""
    visible = objects.visible()
    for patterns, what in ((objects.authority.deny, "deny"), (objects.authority.protect, "protect")):
        for pattern in patterns:
            named = objects.name(pattern.anchor if pattern.any_depth else str(pattern))
            inside = any(
                touch(named.canonical, path) if pattern.any_depth else below(named.canonical, path) for path in visible
            )
            by: list[str] = []
            if not inside:
                by = [n for n, on in (("namespaces", layers.namespaces), ("landlock", layers.landlock)) if on]
            else:
                if layers.namespaces and named.kind is not Kind.ABSENT and not pattern.any_depth:
                    by.append("namespaces")
                if layers.mediation:
                    by.append("mediation")
            note = "not granted anyway" if not inside else ""
            if inside and named.kind is Kind.ABSENT and what == "deny":
                note = "absent now; one that is made from outside later can be read"
            objects.says.denied.append(Line("filesystem", str(pattern), what, note, tuple(by), str(pattern.source)))
            if inside and not layers.mediation:
                line = Line("filesystem", str(pattern), what, "names made later are not held without mediation")
                objects.says.wider("mediation" if layers.landlock else "landlock", line, "keep the mediator")
