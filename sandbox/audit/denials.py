"""What was denied in a session, or in one call of it: explained, and as a model or a program reads it.

Where nothing was denied and the command failed all the same, that is said too: it was not Remit, and no grant would help.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from remit.sandbox.audit import log, message, why
from remit.sandbox.audit.joined import joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from remit.sandbox.audit.decide import Decider
    from remit.sandbox.audit.log import Log
    from remit.sandbox.audit.why import Explanation
    from remit.sandbox.events.event import Event

_Read = TypeVar("_Read")
SCHEMA = "remit.denials/1"
FORMS = ("text", "json")
_TOLD = 8
"""Distinct denials that the text has; JSON has all."""
_FAILURES = 2
_OWN_ERRORS = ("EACCES", "EPERM", "EROFS")
"""What a failure that looks like a denial, and is none, says."""
_PAUSE, _PATIENCE = 0.005, 10.0


@dataclass(frozen=True, slots=True)
class Denials:
    """``denials``: the distinct ones, explained. ``failures``: what looked like one and was not Remit's doing."""

    session: str
    call: str
    level: str
    denials: tuple[Explanation, ...]
    failures: tuple[Event, ...]

    def document(self, status: int) -> dict[str, object]:
        """For programs, of a command that ended with ``status``; see ``denials.schema.json``."""
        return {
            "schema": SCHEMA,
            "session": self.session,
            "call": self.call,
            "level": self.level,
            "denials": [message.document(one) for one in self.denials],
            "not_remit": self.not_remit() if status and not self.denials else [],
        }

    def not_remit(self) -> list[str]:
        """What to tell whoever sees a failure, where nothing was denied: three lines at most."""
        own = dict.fromkeys(message.not_remit(event) for event in self.failures)
        return [*list(own)[:_FAILURES], nothing_denied(self.level)]

    def text(self, status: int) -> list[str]:
        """For models: three lines for each denial; for a command that failed without one, that it was not Remit."""
        if not self.denials:
            return self.not_remit() if status else []
        lines = [line for one in self.denials[:_TOLD] for line in message.text(one).split("\n")]
        if len(self.denials) > _TOLD:
            lines.append(f"{len(self.denials) - _TOLD} more denials: remit why {self.session} has all")
        return lines


def of(found: Log, call: str = "") -> Denials:
    """Of a record; of one call where it is named. Raises RecordError where the record holds no authority."""
    events = [event for event in found.events if not call or event.call == call]
    failures = tuple(event for event in events if event.moot and event.errno in _OWN_ERRORS)
    return Denials(
        found.identifier,
        call or "1",
        str(found.plan.get("audit", "writes")),
        tuple(explanations(found, events)),
        failures,
    )


def of_call(state: str, session: str, call: str) -> Denials:
    """Of a call that has just returned. Its record is another process's to write: this waits for its end."""
    found = _when(
        log.directory_of(state, session),
        lambda: log.read(state, session),
        lambda found: any(one.identifier == call and one.ended is not None for one in found.calls),
    )
    return of(found, call)


def of_network(directory: str, begin: int, call: str, decider: Callable[[str], Decider]) -> list[Event]:
    """What the network refused to a call that has just returned: its denials that only the record has, because the gateway
    is nobody's mediator.

    ``begin``: how long the record in ``directory`` was before the call. Waits as ``of_call``. Raises RecordError.
    """
    events, _ = _when(directory, lambda: log.since(directory, begin, call), lambda found: found[1])
    answered = {event.id for event in events if event.denied and event.source == "mediator"}
    mine = [event for event in joined(events, decider) if event.call == call]
    return [event for event in mine if event.denied and event.id not in answered]


def _when(directory: str, read: Callable[[], _Read], ended: Callable[[_Read], bool]) -> _Read:
    """What is read of a record once it has ``ended``, or nobody writes it any more; who writes it and is stuck is not waited
    for for ever."""
    end = time.monotonic() + _PATIENCE
    while True:
        written = log.running(directory)  # before it is read: the last line may come between
        found = read()
        if ended(found) or not written or time.monotonic() > end:
            return found
        time.sleep(_PAUSE)


def explanations(found: Log, events: Iterable[Event]) -> list[Explanation]:
    """Each distinct denial among ``events``, explained under the grant that it happened under. Raises RecordError."""
    try:
        layers = frozenset(str(one.get("layer")) for one in found.plan["plan"]["operations"])
    except (AttributeError, KeyError, TypeError) as error:
        raise log.RecordError(f"not a plan: {error!r}", where=f"{found.directory}/plan.json") from None
    deciders = log.Deciders(found)
    return [why.explain(equal, deciders.of(equal[0].call), layers, os.path.lexists) for equal in why.grouped(events)]


def nothing_denied(level: str) -> str:
    """That nothing was denied, as far as the record can know it."""
    if level == "off":
        return 'This session recorded its start and end only ([audit] level = "off"): what was denied is not known.'
    if level == "full":
        return "Not Remit: nothing was denied. What failed, failed by itself."
    return "Not Remit: nothing was denied of what is recorded, which reads are not (remit why PATH: is it granted?)."
