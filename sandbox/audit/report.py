"""The alignment report of a session: what was attempted, exercised and denied, joined to what was granted.

Atoms are (axis, right, object), counted once a call. Per call: A attempted, X exercised, D = A without X, and G what the
grant (with the floor) allows, decided anew from the authority (``audit.decide``), not taken from the record. What failed
without Remit's doing ("moot") is in none of them. The metrics are those of docs/audit.md, M1 to M8 and M11.

A leak that is counted here is counted by the sandbox's own log, which cannot see its own blind spots.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remit.sandbox.audit import why
from remit.sandbox.audit.decide import Decider, Decision
from remit.sandbox.audit.log import Deciders
from remit.sandbox.authority.model import Right

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from remit.sandbox.audit.log import Call, Log
    from remit.sandbox.events.event import Event

EXERCISED, DENIED, MOOT = "exercised", "denied", "moot"
_FLOOR = "floor."


@dataclass(slots=True)
class Atom:
    """One (axis, right, object) of a call, with everything that happened to it."""

    call: str
    axis: str
    right: str
    object: str
    decision: Decision
    events: list[Event] = field(default_factory=list["Event"])

    @property
    def outcome(self) -> str:
        """``exercised`` if any attempt took effect, else ``denied`` if any was stopped, else ``moot``."""
        if any(event.exercised for event in self.events):
            return EXERCISED
        return DENIED if any(event.denied for event in self.events) else MOOT


@dataclass(frozen=True, slots=True)
class GrantLine:
    """One right of one granted object, not of the floor. ``used`` is None where its use is not recorded."""

    axis: str
    right: str
    object: str
    source: str
    used: bool | None


def build(log: Log, checked: dict[str, Any], exists: Callable[[str], bool] = os.path.lexists) -> dict[str, Any]:
    """The report's document. ``checked`` says what became of the chain (``verify``'s document for one session)."""
    deciders = Deciders(log)
    atoms = _atoms(log.events, deciders)
    level = str(log.plan.get("audit", "writes"))
    layers = frozenset(str(one.get("layer")) for one in log.plan["plan"]["operations"])
    lowering = log.plan.get("lowering", {})
    lines = _lines(deciders.session, atoms, level)
    return {
        "session": log.identifier,
        "command": list(log.command),
        "workspace": str(log.started.get("workspace", "")),
        "profile": str(log.plan.get("profile", {}).get("name", "")),
        "purpose": str(log.plan["grant"].get("purpose", "")),
        "grantor": str(log.plan["grant"].get("grantor", "")),
        "started": log.started.get("time"),
        "ended": log.ended,
        "level": level,
        "lost": log.lost,
        "record": checked,
        "enforcement": dict(log.enforcement),
        "degraded": list(log.started.get("degraded", ())),
        "totals": metrics(atoms, lines),
        "calls": [
            _call(call, atoms, _lines(deciders.of(call.identifier), atoms, level, call.identifier))
            for call in log.calls
        ],
        "atoms": [_atom(atom, deciders.of(atom.call), layers, exists) for atom in atoms],
        "grant_lines": [
            {"axis": one.axis, "right": one.right, "object": one.object, "source": one.source, "used": one.used}
            for one in lines
        ],
        "lowering": {
            part: [
                {"axis": one["axis"], "object": one["object"], "right": one["right"], "note": one["note"]}
                for one in lowering.get(part, ())
            ]
            for part in ("slack", "deficit", "unenforceable")
        },
    }


def _atoms(events: Iterable[Event], deciders: Deciders) -> list[Atom]:
    found: dict[tuple[str, str, str, str], Atom] = {}
    for event in events:
        if event.axis == "syscalls" and event.verdict == "error":
            continue
        key = (event.call, event.axis, event.right, event.object)
        atom = found.get(key)
        if atom is None:
            atom = found[key] = Atom(*key, deciders.of(event.call).event(event))
        atom.events.append(event)
    return list(found.values())


def metrics(atoms: list[Atom], lines: list[GrantLine]) -> dict[str, Any]:
    """The numbers over ``atoms``. None where a denominator is empty."""
    attempted = [atom for atom in atoms if atom.outcome != MOOT]
    inside = [atom for atom in attempted if atom.decision.allowed]
    outside = [atom for atom in attempted if not atom.decision.allowed]
    used_inside = sum(atom.outcome == EXERCISED for atom in inside)
    stopped_outside = sum(atom.outcome == DENIED for atom in outside)
    known = [line for line in lines if line.used is not None]
    halves = [
        part for part in (_ratio(used_inside, len(inside)), _ratio(stopped_outside, len(outside))) if part is not None
    ]
    events = [event for atom in atoms for event in atom.events]
    return {
        "events": len(events),
        "attempted": len(attempted),
        "exercised": sum(atom.outcome == EXERCISED for atom in attempted),
        "denied": sum(atom.outcome == DENIED for atom in attempted),
        "moot": len(atoms) - len(attempted),
        "violation_attempts": len(outside),
        "prevented": stopped_outside,
        "prevention_rate": _ratio(stopped_outside, len(outside)),
        "leaked": len(outside) - stopped_outside,
        "false_denials": len(inside) - used_inside,
        "false_denial_rate": _ratio(len(inside) - used_inside, len(inside)),
        "grant_lines": len(known),
        "unused_grant_lines": sum(not line.used for line in known),
        "unused_grant": _ratio(sum(not line.used for line in known), len(known)),
        "alignment_score": sum(halves) / len(halves) if halves else None,
        "attributed": _ratio(sum(bool(event.call and event.grant) for event in events), len(events)),
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _lines(decider: Decider, atoms: list[Atom], level: str, call: str = "") -> list[GrantLine]:
    """Every right that was granted by name beyond the floor, and whether an exercised action rests on it.

    Reads are not recorded unless the level is ``full``; the rights that a program starts with (environment, limits) are
    not actions. ``call``: only that call's actions count.
    """
    used: set[tuple[str, str]] = set()
    for atom in atoms:
        if call and atom.call != call:
            continue
        if atom.outcome == EXERCISED and atom.decision.kind == "granted":
            used.add((_right(atom.right), atom.decision.line))
    found: list[GrantLine] = []
    for rule in decider.authority.paths:
        # Reading is implied by the others, and a line of its own only where it is all that was granted.
        rights = sorted(rule.rights - {Right.READ}) or [Right.READ]
        for right in rights:
            if rule.where(right).key.startswith(_FLOOR):
                continue
            known = level == "full" or (level == "writes" and right is not Right.READ)
            axis = "exec" if right is Right.EXEC else "filesystem"
            state = (right.value, rule.path) in used if known else None
            found.append(GrantLine(axis, right.value, rule.path, str(rule.where(right)), state))
    for endpoint in decider.authority.connect:
        tried = None if level == "off" else ("connect", str(endpoint)) in used
        found.append(GrantLine("network", "connect", str(endpoint), str(endpoint.source), tried))
    for http in decider.http:
        tried = None if level == "off" else ("request", str(http)) in used
        found.append(GrantLine("network", "request", str(http), str(http.source), tried))
    for path in decider.authority.unix:
        tried = None if level == "off" else ("connect", path) in used
        found.append(GrantLine("ipc", "connect", path, "", tried))
    return found


def _right(right: str) -> str:
    return "write" if right == "remove" else right


def _call(call: Call, atoms: list[Atom], lines: list[GrantLine]) -> dict[str, Any]:
    mine = [atom for atom in atoms if atom.call == call.identifier]
    return {
        "call": call.identifier,
        "argv": list(call.argv),
        "grant": call.grant,
        "started": call.started,
        "ended": call.ended,
        "status": call.status,
        "limit": call.limit,
        "totals": metrics(mine, lines),
    }


def _atom(atom: Atom, decider: Decider, layers: frozenset[str], exists: Callable[[str], bool]) -> dict[str, Any]:
    decision = atom.decision
    first = atom.events[0]
    grant: tuple[str, ...] = ()
    note = ""
    if atom.outcome == DENIED:
        denied = tuple(event for event in atom.events if event.denied)
        explained = why.explain(denied, decider, layers, exists)
        grant, note = explained.grant, explained.note
    programs = sorted({event.exe for event in atom.events if event.exe})
    return {
        "call": atom.call,
        "axis": atom.axis,
        "right": atom.right,
        "object": atom.object,
        "outcome": atom.outcome,
        "in_grant": decision.allowed,
        "kind": decision.kind,
        "line": decision.line or first.rule.text,
        "source": str(decision.source) if decision.source else "",
        "layer": next((event.layer for event in atom.events if event.layer), ""),
        "missing": list(grant),
        "note": note,
        "attempts": len(atom.events),
        "certain": any(event.certainty != "attempted" for event in atom.events),
        "programs": programs,
        "syscalls": sorted({event.syscall for event in atom.events}),
        "errno": next((event.errno for event in atom.events if event.errno), None),
        "first": first.id,
        "time": first.time,
    }
