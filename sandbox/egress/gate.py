"""What every connection of a gateway shares: the relay engine, the connector, the names, the limits, the record."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from remit.sandbox.egress.connect import Connector
from remit.sandbox.egress.decide import Decision, Destination, Reason, destination, smallest_grant
from remit.sandbox.egress.denial import Denial, not_granted
from remit.sandbox.egress.names import Names
from remit.sandbox.egress.relay import Engine, Meter

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from remit.sandbox.egress.ca import Authority


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a whole session. 0 is none, but for ``connections``: descriptors are finite."""

    connections: int = 4096
    bytes: int = 0
    time: float = 0.0
    """Seconds that one connection may last."""
    idle: float = 900.0
    """Seconds without a byte. Longer than what keeps a database's pool or a shell alive (RFC 5382: two hours for a NAT;
    but a gateway's descriptors are fewer than a NAT's ports)."""
    first: float = 30.0
    """Seconds for what a client has to say before anything else happens."""


class Event(NamedTuple):
    """One entry for the record; the fields of ``wire.EVENT``."""

    call: str
    right: str
    object: str
    verdict: str
    reason: str = ""
    rule: str = ""
    via: str = ""
    sent: int = 0
    received: int = 0
    duration: int = 0
    grant: str = ""


class Ledger:
    """Where events go. ``allowed`` waits where the record is behind: what is not written down does not happen."""

    def __init__(self, write: Callable[[Event], None], most: int = 1024) -> None:
        self._write = write
        self._free = most
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.lost = 0

    async def allowed(self, event: Event) -> None:
        """Record what is about to be done."""
        if not self.at_once(event):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn  # ``written`` has taken the place for us
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.written()
                raise
            self._write(event)

    def at_once(self, event: Event) -> bool:
        """Record what is about to be done, if the record is not behind."""
        if self._free <= 0:
            return False
        self._free -= 1
        self._write(event)
        return True

    def note(self, event: Event) -> None:
        """Record what happened. Where the record is behind, it is counted and not kept: a confined program that
        provokes denials must not fill memory."""
        if self._free <= 0:
            self.lost += 1
            return
        self._free -= 1
        self._write(event)

    def written(self) -> None:
        """One event has left."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


@dataclass(slots=True)
class Gate:
    """The shared parts. ``verify`` is for connections to real servers, ``authority`` for those that are read."""

    engine: Engine
    connector: Connector
    ledger: Ledger
    names: Names
    limits: Limits
    verify: Callable[[], ssl.SSLContext]
    authority: Authority | None = None
    meter: Meter = field(default_factory=Meter)
    open: int = 0

    def meant(self, host: str, port: int, protocol: str = "tcp") -> Destination:
        """What a program meant by ``host``: a synthetic address is the name that it stands for.

        Raises:
            ParseError: neither a name nor an address.
        """
        wanted = destination(host, port, protocol)
        if wanted.address and self.names.synthetic(wanted.address):
            name = self.names.name(wanted.address)
            if name is not None:
                return Destination(name, "", port, protocol)
        return wanted


def refusal(decision: Decision, wanted: Destination) -> Denial:
    """What a program is told about a decision against it."""
    grant = smallest_grant(wanted, decision.reason)
    reason = decision.reason + (f" ({decision.detail})" if decision.detail else "")
    denial = not_granted(f"{wanted}/{wanted.protocol}", reason, grant)
    if decision.reason is Reason.CEILING:
        return Denial(403, denial.object, reason)
    return denial


def denied(call: str, right: str, via: str, denial: Denial, rule: str = "") -> Event:
    """The event of a denial. ``rule``: where the nearest one stands."""
    grant = (denial.missing[2] or denial.missing[1]).removeprefix("--connect ")
    return Event(call, right, denial.object, "denied", denial.reason, rule, via, grant=grant)
