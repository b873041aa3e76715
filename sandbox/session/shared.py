"""What a session and the narrower ones made from it have in common: the authorities that calls are kept armed for, the uses
of grants, what was revoked, and whether it has ended. Used from any thread."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from remit.sandbox.compile.call import CallPlan
from remit.sandbox.session.asked import Identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from remit.sandbox.launch.wire import CallWire

POLICIES = 32
"""Authorities for which calls are kept armed at a time; the least recently used one is given up."""


def boot() -> float:
    """Seconds by CLOCK_BOOTTIME, which nobody sets, and which counts suspended time (``clock_gettime(2)``)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class Armed:
    """An authority for which the session's first process keeps threads armed, and our end of their socket."""

    identifier: int
    plan: CallPlan
    requests: Any
    held: int = 0
    """Calls that were sent there, or are about to be, and have not answered: it is not given up under them."""


@dataclass(slots=True)
class Uses:
    """What is counted for one asked-for grant: since when it runs, and how often it was used."""

    first: float
    boot: float
    used: int = 0


@dataclass(slots=True)
class Shared:
    """What a session and the narrower ones made from it have in common."""

    session: str
    placeholders: dict[str, str] = field(default_factory=dict[str, str])
    """By variable: what stands inside for a secret that stays outside."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    policies: OrderedDict[str, Armed] = field(default_factory=OrderedDict[str, Armed])
    given_up: list[Armed] = field(default_factory=list[Armed])
    """Nobody asks for them any more; the session's first process is still to be told."""
    dropped: deque[Armed] = field(default_factory=deque["Armed"])
    """Of handles that were dropped: to be released by whoever has the lock next. Dropping takes none, as it happens on any
    thread, in the middle of anything."""
    numbers: count[int] = field(default_factory=lambda: count(1))
    prefix: str = field(default_factory=lambda: secrets.token_hex(3))
    refused: dict[int, tuple[str, str, str, int]] = field(default_factory=dict[int, tuple[str, str, str, int]])
    full: tuple[str, str, str, int] | None = None
    """Something large was not received, and whoever sent it has not heard yet."""
    uses: WeakKeyDictionary[Identity, Uses] = field(default_factory=WeakKeyDictionary["Identity", "Uses"])
    revoked: set[str] = field(default_factory=set[str])
    clock: float = field(default_factory=lambda: time.time() - boot())
    """What the wall clock was ahead of CLOCK_BOOTTIME: the times of the session's grants are by the clock that it began under."""
    closed: str = ""

    def abandon(self) -> None:
        """In a forked child: it is the parent's. Twice is once."""
        # Whoever held it when the process was forked is not in this one.
        self.lock = threading.Lock()
        self.closed = "it belongs to the process that this one was forked from"
        for armed in (*self.policies.values(), *self.given_up):
            armed.requests.close()

    def armed(
        self, key: str, plan: CallPlan, pair: Callable[[], tuple[Any, Any]]
    ) -> tuple[Armed, tuple[int, CallWire, Any] | None]:
        """Where to send a request under ``plan``, which ``key`` stands for; a definition to send first, if it is new. What is
        given up for it is left in ``given_up``. It is held for the request until ``release``."""
        with self.lock:
            known = self._hold(key)
            if known is not None:
                return known, None
            ours, theirs = pair()
            identifier = next(self.numbers)
            made = Armed(identifier, plan, ours, held=1)
            refused = self.policies.pop(key, None)
            self.policies[key] = made
            self._let_go()
            # A request that waits under an authority which is given up would be lost, and look like a dead session.
            idle = [one for one, armed in self.policies.items() if not armed.held]
            self.given_up += [self.policies.pop(one) for one in idle[: max(0, len(self.policies) - POLICIES)]]
            if refused is not None:
                self.given_up.append(refused)
            return made, (identifier, plan.wire(), theirs)

    def ready(self, key: str) -> Armed | None:
        """Where to send a request, if that is known already, and held for it."""
        with self.lock:
            return self._hold(key)

    def release(self, armed: Armed) -> None:
        """A call has answered, or will not be sent: once for each time that ``armed`` or ``ready`` gave it."""
        with self.lock:
            armed.held -= 1
            self._let_go()

    def _hold(self, key: str) -> Armed | None:
        known = self.policies.get(key)
        if known is None or known.identifier in self.refused:
            return None
        self.policies.move_to_end(key)
        known.held += 1
        return known

    def _let_go(self) -> None:
        """Of what handles held that were dropped. The lock is the caller's."""
        while self.dropped:
            self.dropped.popleft().held -= 1
