"""What calls did, as the mediator notes it: gathered, so that a message to the template carries dozens of actions."""

from __future__ import annotations

import _thread

from remit.sandbox.events.action import DENIED
from remit.sandbox.mediate.observe import GATHERED_AT_MOST, GATHERED_SIZE, size_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from remit.sandbox.launch.jail import Jail

_EVENTS = 1024
"""Denials of one call that are kept for its reply."""


class Notes:
    """For every thread of a session's first process."""

    def __init__(self, tell: Callable[..., None]) -> None:
        """``tell``: sends a message to the template."""
        self._tell = tell
        self._noted: list[tuple[Any, ...]] = []
        self._size = 0
        self._lock = _thread.allocate_lock()

    @property
    def waiting(self) -> bool:
        """There is something that was not told yet."""
        return bool(self._noted)

    def note(self, jail: Jail, *action: Any) -> None:
        """Actions go to the template by the dozen, when nothing happens for a moment, and before their call's end."""
        if action[7] == DENIED and len(jail.events) < _EVENTS:
            jail.events.append(action)
        running = jail.running
        with self._lock:
            self._noted.append((running.call, running.chain[-1], action) if running is not None else ("", "", action))
            self._size += size_of(action)
            if len(self._noted) >= GATHERED_AT_MOST or self._size > GATHERED_SIZE:
                self._send()

    def send(self) -> None:
        """Tell what is waiting. Whoever calls this may be the second to want it."""
        with self._lock:
            self._send()

    def end(self, *of: Any) -> None:
        """What was noted and the end of a call, in one."""
        with self._lock:
            self._tell("finished", self._take(), *of)

    def _send(self) -> None:
        noted = self._take()
        if noted:
            self._tell("actions", noted)

    def _take(self) -> list[tuple[Any, ...]]:
        noted, self._noted, self._size = self._noted, [], 0
        return noted
