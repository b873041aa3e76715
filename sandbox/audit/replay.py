"""What another authority would have decided of a session's recorded actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remit.sandbox.audit.decide import Decider
    from remit.sandbox.audit.log import Log
    from remit.sandbox.events.event import Event


def compare(found: Log, decider: Decider, profile: str, *, every: bool) -> dict[str, Any]:
    """The document of ``remit audit replay``: distinct actions, with the decision then and now."""
    grouped: dict[tuple[str, str, str, str], list[Event]] = {}
    for event in found.events:
        if not event.moot and event.verdict != "error":
            then = "allowed" if event.exercised else "denied"
            grouped.setdefault((event.axis, event.right, event.object, then), []).append(event)
    counts = {"actions": len(grouped), "same": 0, "would_allow": 0, "would_deny": 0}
    actions: list[dict[str, Any]] = []
    for (axis, right, name, then), events in grouped.items():
        decision = decider.event(events[0])
        now = "allowed" if decision.allowed else "denied"
        counts["same" if now == then else "would_allow" if decision.allowed else "would_deny"] += 1
        if every or now != then:
            actions.append(
                {
                    "axis": axis,
                    "right": right,
                    "object": name,
                    "then": then,
                    "now": now,
                    "kind": decision.kind,
                    "rule": decision.line,
                    "source": str(decision.source) if decision.source else None,
                    "count": len(events),
                    "events": [event.id for event in events],
                }
            )
    return {"session": found.identifier, "profile": profile, "counts": counts, "actions": actions}
