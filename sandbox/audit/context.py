"""What is needed to explain a denial later: the authority that it happened under, as plain values. Cheap to make and keep."""

from __future__ import annotations

import os
from dataclasses import dataclass
from errno import errorcode
from typing import TYPE_CHECKING

from remit.sandbox.audit import outside
from remit.sandbox.events.action import ATTEMPTED, DENIED, LOOKED_UP, LOOKUP, MOOT, axis
from remit.sandbox.events.event import Event, Rule
from remit.sandbox.kernel.call import NR

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from remit.sandbox.audit.decide import Decider
    from remit.sandbox.audit.why import Explanation
    from remit.sandbox.authority.model import Authority

_NAMES = {number: name for name, number in NR.items()} | {LOOKED_UP: LOOKUP}


def event_of(action: tuple[Any, ...], call: str, grant: str) -> Event:
    """What a mediator noted (``events.action.FIELDS``) as an event that is in no record: without id and time."""
    mono, pid, start, exe, nr, thing, right, verdict, certainty, layer, errno, rule = action
    name, syscall = os.fsdecode(thing), _NAMES.get(nr, str(nr))
    if verdict == DENIED and certainty == ATTEMPTED and not outside.would_work(right, name):
        verdict, layer = MOOT, ""
    if right == "call" and not name:
        name = syscall
    where, error = axis(right, name), errorcode.get(errno, "")
    program = os.fsdecode(exe)
    return Event(
        *("", call, grant, 0.0, mono, pid, start, program, syscall, where, right, name, verdict, certainty, layer),
        rule=Rule(rule),
        errno=error,
        source="mediator",
    )


@dataclass(frozen=True, slots=True)
class Context:
    """``canonical``: what the authority's names led to. ``visible``: what the session around it shows. ``layers``: those in
    force."""

    authority: Authority
    canonical: Mapping[str, str]
    visible: tuple[str, ...]
    layers: frozenset[str]

    def explain(self, event: Event) -> Explanation:
        """Why, and what would have allowed it. Looks at what is on the host now: only that can be granted."""
        from remit.sandbox.audit import why

        return why.explain((event,), self.decider(), self.layers, os.path.lexists)

    def decider(self) -> Decider:
        """Decisions under that authority."""
        from remit.sandbox.audit.decide import Decider

        return Decider(self.authority, self.canonical, self.visible)
