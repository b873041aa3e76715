"""Why an action was denied: what decided, where that stands, and the smallest grant that would have allowed it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

from remit.sandbox.audit.decide import AUTO_EXEC, Decider, endpoint, group_of, is_name, target
from remit.sandbox.authority import pattern
from remit.sandbox.authority.model import AutoExec
from remit.sandbox.compile import catalogue
from remit.sandbox.events.action import BY_AUTHORITY, HELD, OPTIONS, UNGRANTED
from remit.sandbox.events.event import Event, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_KERNEL_LAYERS = ("namespaces", "landlock")
_KEYS = {
    "--read": ("filesystem", "read"),
    "--write": ("filesystem", "write"),
    "--exec": ("filesystem", "exec"),
    "--connect": ("network", "connect"),
    "--unix": ("ipc", "unix"),
    "--allow-syscalls": ("syscalls", "allow"),
}
MAKE = "only what is there at start can be granted"
NO_LOOPBACK = "not grantable: a session has a loopback of its own, and what listens on the host's is not there"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one denial, or several that are equal, happened.

    ``kind``: ``deny``, ``protect``, ``auto-exec``, ``ungranted``, ``call``, ``refused``, ``held`` or ``error``. ``source``
    is the line of the authority that took the object away. ``grant`` are the words to add to the command line; none, and
    ``note`` says why. ``events`` are the equal ones, in order.
    """

    event: Event
    kind: str
    layers: tuple[str, ...]
    source: str = ""
    grant: tuple[str, ...] = ()
    note: str = ""
    events: tuple[Event, ...] = field(default=())
    entry: str = ""
    """What a profile's ``[network] http`` would have to hold."""

    @property
    def toml(self) -> str:
        """The grant as lines of a profile; empty where there is none."""
        return f"[network]\nhttp = [{{ {self.entry} }}]" if self.entry else toml(self.grant)


def toml(grant: tuple[str, ...]) -> str:
    """Words of the command line as lines of a profile."""
    if len(grant) != 2 or grant[0] not in _KEYS:
        return ""
    table, key = _KEYS[grant[0]]
    return f"[{table}]\n{key} = [{json.dumps(grant[1], ensure_ascii=False)}]"


def grouped(events: Iterable[Event]) -> list[tuple[Event, ...]]:
    """Denials that are equal but for when and by whom, in order of the first."""
    found: dict[tuple[object, ...], list[Event]] = {}
    for event in events:
        if event.denied:
            key = (event.syscall, event.object, event.right, event.verdict, event.errno, event.rule.text)
            found.setdefault(key, []).append(event)
    return [tuple(equal) for equal in found.values()]


def explain(
    events: tuple[Event, ...], decider: Decider, layers: frozenset[str], exists: Callable[[str], bool]
) -> Explanation:
    """Why equal denials happened. ``layers`` are those of the plan. ``exists`` tells what is on the host now: only that can
    be granted."""
    event = events[0]
    rule = event.rule.text
    if event.verdict == "error":
        note = "the mediator failed, and what fails is refused: a bug in Remit"
        return Explanation(event, "error", ("mediation",), note=note, events=events)
    if rule == HELD:
        note = "the disk is full, or the record's directory cannot be written: nothing that would be recorded is done"
        return Explanation(event, "held", ("audit",), note=note, events=events)
    if event.right == "setuid":
        return Explanation(event, "refused", ("seccomp",), note="not grantable", events=events)
    if event.right == "call":
        group = group_of(event.syscall) if rule.endswith(" is refused") else ""
        if group:
            return Explanation(event, "call", ("seccomp",), grant=("--allow-syscalls", group), events=events)
        return Explanation(event, "call", ("seccomp",), note="not grantable", events=events)
    if event.source == "gateway":
        return _connection(
            Explanation(event, "ungranted" if rule in BY_AUTHORITY else "refused", ("gateway",), events=events)
        )
    if rule == UNGRANTED:
        found = Explanation(
            event, "ungranted", tuple(layer for layer in _KERNEL_LAYERS if layer in layers), events=events
        )
        return _ungranted(found, decider, exists)
    if rule.startswith(AUTO_EXEC):
        grant, note = auto_executed(event.object, exists)
        return Explanation(event, "auto-exec", ("mediation",), grant=grant, note=note, events=events)
    for kind, patterns in (("deny", decider.given.deny), ("protect", decider.given.protect)):
        for one in patterns:
            if str(one) == rule:
                source = str(one.source)
                return Explanation(event, kind, ("mediation",), source, note=_edit(kind, source), events=events)
    return Explanation(event, "refused", ("mediation",), note="not grantable", events=events)


def _connection(found: Explanation) -> Explanation:
    """What would have let a connection out, as the gateway said, which knows what the name led to; or as it was asked for."""
    event = found.event
    if event.missing.startswith("host = "):
        return replace(found, entry=event.missing, note="an HTTP rule of the profile decides, and no option grants one")
    if event.missing:
        return replace(found, grant=("--connect", event.missing))
    if found.kind != "ungranted":
        return replace(found, note="not grantable")
    host, port, protocol = target(event.object)
    if not port:
        return replace(found, note=f"a name is granted with a port: --connect {event.object}:PORT")
    if not is_name(host) and ip_address(host).is_loopback:
        return replace(found, note=NO_LOOPBACK)
    return replace(found, grant=("--connect", endpoint(host, port, protocol)))


def missing(axis: str, right: str, name: str, decider: Decider, exists: Callable[[str], bool]) -> Explanation:
    """What would allow an action that nothing grants."""
    made = Event("", "", "", 0, 0, 0, 0, "", "", axis, right, name, "denied", "", "", _NOWHERE, "", "")
    return _ungranted(Explanation(made, "ungranted", _KERNEL_LAYERS), decider, exists)


def auto_executed(path: str, exists: Callable[[str], bool]) -> tuple[tuple[str, ...], str]:
    """The grant that opens a file of the catalogue, if one does, and what there is to say."""
    note = "protected as auto-executed: a program outside would run it"
    if not catalogue.opens(path):
        return (), note
    if exists(path):
        return ("--write", path), note
    return (), f"{note}; {_make_first('--write', path)}"


def _make_first(option: str, path: str) -> str:
    return f"{MAKE}: make it, then {option} {shlex.quote(path)}"


def _edit(kind: str, source: str) -> str:
    if source.startswith("command line"):
        return f"{kind} wins over every grant: leave that option out"
    return f"{kind} wins over every grant: only editing the line that says so opens it"


def _ungranted(found: Explanation, decider: Decider, exists: Callable[[str], bool]) -> Explanation:
    event = found.event
    path = event.object
    if event.right in ("signal", "trace"):
        return replace(found, note="not grantable: a session sees its own processes only")
    option = OPTIONS.get(event.right)
    if event.axis == "ipc" and event.right == "connect" and path[:1] == "/":
        option = "--unix"
    if event.axis == "network":
        return _connection(found)
    if option is None:
        return replace(found, note="not grantable")
    try:
        components = pattern.parts(path)
    except ValueError:
        return replace(found, note="not grantable by that name")
    taken = [("deny", decider.authority.deny)]
    if event.right in ("write", "remove"):
        taken.append(("protect", decider.authority.protect))
    for kind, patterns in taken:
        for one in patterns:
            if pattern.covers(pattern.shape(one), components):
                return replace(found, source=str(one.source), note=_edit(kind, str(one.source)))
    if components[:1] == ("proc",):
        note = "not grantable: a session has its own /proc, and what it holds of the host is read-only"
        return replace(found, note=note)
    protects = decider.authority.auto_exec is AutoExec.PROTECT
    catalogued = event.right in ("write", "remove") and protects and bool(decider.catalogued(path))
    if catalogued and not catalogue.opens(path):
        return replace(found, note="a grant would not do: protected as auto-executed")
    if exists(path):
        return replace(found, grant=(option, path))
    parent = path.rpartition("/")[0]
    # A grant of a whole project does not open what is protected in it.
    if option != "--unix" and parent and exists(parent) and (not catalogued or catalogue.opens(parent)):
        return replace(found, grant=(option, parent), note=f"{MAKE}, and this is not: its directory")
    return replace(found, note=_make_first(option, path))


_NOWHERE = Rule(UNGRANTED)
