"""One TCP connection from inside, whose destination is known: decide, connect, look at what is said, relay.

What is looked at, for a destination that is granted by *name* (an address that is granted as such is nobody's name):

- port 443: the first bytes must be a TLS hello whose SNI is that name, or SSH's banner (some hosts serve SSH there; it
  authenticates the host's key and carries no other name);
- port 80: HTTP/1.1, and every request's Host is that name;
- any other port: whatever it is may pass, but what *looks* like TLS or HTTP must not say another name;
- a host with HTTP rules or a credential: HTTP that is read, under the session's own TLS (HTTP/2 or 1.1) or plain (1.1).

Looking happens before a byte from inside is passed on, and never waits where the server speaks first (SSH, SMTP).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h11

from remit.sandbox.egress.connect import Begun, Reached, Refused, Unreachable
from remit.sandbox.egress.decide import Decision, Destination, Reason, decide
from remit.sandbox.egress.denial import Denial
from remit.sandbox.egress.exchange import HEAD, Exchange, Server
from remit.sandbox.egress.gate import Event, Gate, denied, refusal
from remit.sandbox.egress.relay import Relay
from remit.sandbox.egress.sni import LONGEST, HelloError, looks_like_tls, read_hello
from remit.sandbox.egress.stream import Plain, Tls, linger

if TYPE_CHECKING:
    from remit.sandbox.egress.policy import Source

_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ", b"OPTIONS ", b"CONNECT ", b"TRACE ", b"PRI ")
_SSH = b"SSH-"


class _Mismatch(Exception):
    """What a connection says is not what it was granted for."""


def looks_like_http(first: bytes) -> bool | None:
    """Whether a connection that begins with ``first`` is HTTP; None where that cannot be told yet.

    A request line, not only a word: ``GET key`` is Redis.
    """
    for method in _METHODS:
        if first.startswith(method):
            rest = first[len(method) :]
            if not rest:
                return None
            return rest[:1] in (b"/", b"*") or rest[:4].lower() == b"http"[: len(rest[:4])]
        if method.startswith(first):
            return None
    return False


@dataclass(slots=True)
class Tunnel:
    """A connection from inside to ``wanted``. ``established`` is said to the program when it stands (a proxy's answer)."""

    gate: Gate
    source: Source
    inside: Plain
    wanted: Destination
    via: str
    established: bytes = b""
    refuse: Callable[[Denial], bytes] = lambda _: b""
    """What the program is told of a refusal, before the end."""

    _begun: Begun | None = None

    def begin(self) -> Coroutine[Any, Any, None] | None:
        """The same as ``run``; None where there is nothing to wait for: to a granted address that is there at once, the
        relay goes on by itself already, and has had no task."""
        wanted = self.wanted
        if wanted.name or self.established:
            return self.run()
        decision = decide(self.source.rules, wanted)
        if not decision.allowed:
            return self.run()
        try:
            self._begun = self.gate.connector.begin(wanted, decision)
        except OSError:
            return self.run()
        reached = self._begun.reached
        if reached is None or not self.gate.ledger.at_once(self._allowed(decision, wanted.address)):
            return self.run()
        self._relay(reached, b"")
        return None

    async def run(self) -> None:
        """To the end, or to where the relay goes on by itself. Closes ``inside`` in every other case."""
        try:
            await self._run()
        except Refused as error:
            await self._deny(refusal(error.decision, error.wanted))
        except Unreachable as error:
            await self._deny(Denial(502, f"{self.wanted}/tcp", str(error)), "failed")
        except _Mismatch as error:
            await self._deny(Denial(403, f"{self.wanted}/tcp", str(error)), tell=False)
        except (OSError, TimeoutError):
            self.inside.reset()
        except BaseException:
            self.inside.close()
            raise

    async def _run(self) -> None:
        if self.source.web.reads(self.wanted.name):
            decision = decide(self.source.rules, self.wanted)
            if not decision.allowed:
                raise Refused(decision, self.wanted)
            await self._read()
            return
        reached = await self.gate.connector.connect(self.source.rules, self.wanted, self._begun)
        try:
            await self.gate.ledger.allowed(self._allowed(reached.decision, reached.wanted.address))
            if self.established:
                await self.inside.write(self.established)
            said = b""
            if self.wanted.name and not reached.decision.by_address:
                if self.wanted.port == 443:
                    await self._tls_or_ssh()
                elif self.wanted.port == 80 or await self._look(reached):
                    await self._http(reached)
                    return
        except BaseException as error:
            reached.sock.close()
            if not isinstance(error, asyncio.CancelledError):
                self._ended(reached, str(error))
            raise
        self._relay(reached, said)

    def _allowed(self, decision: Decision, reason: str) -> Event:
        return Event(self.source.call, "connect", f"{self.wanted}/tcp", "allowed", reason, _where(decision), self.via)

    def _ended(self, reached: Reached, why: str, sent: int = 0, received: int = 0, began: float | None = None) -> None:
        milliseconds = int((time.monotonic() - began) * 1000) if began is not None else 0
        self.gate.ledger.note(
            Event(
                self.source.call,
                "connect",
                f"{self.wanted}/tcp",
                "ended",
                why,
                _where(reached.decision),
                self.via,
                sent,
                received,
                milliseconds,
            )
        )

    def _relay(self, reached: Reached, said: bytes) -> None:
        began = time.monotonic()
        gate = self.gate

        def done(relay: Relay) -> None:
            gate.open -= 1
            self.source.relays.discard(relay)
            self._ended(reached, relay.ending, relay.outward.count, relay.inward.count, began)

        gate.open += 1
        relay = Relay(gate.engine, self.inside.sock, reached.sock, gate.meter, done, self.inside.first, said)
        if not relay.closed:
            self.source.relays.add(relay)

    # --- looking ------------------------------------------------------------------------------------------------------

    async def _more(self, limit: int = LONGEST) -> None:
        """More from inside, or a refusal: nothing can be decided on what was said."""
        async with asyncio.timeout(self.gate.limits.first):
            if not await self.inside.more(limit):
                raise _Mismatch("the connection ended, or went on too long, before it said what it is")

    async def _tls_or_ssh(self) -> None:
        if not self.inside.first:
            await self._more()
        while not self.inside.first.startswith(_SSH):
            if _SSH.startswith(self.inside.first):
                await self._more()
            elif looks_like_tls(self.inside.first):
                await self._hello(required=True)
                return
            else:
                raise _Mismatch("not TLS, on port 443 of a granted name (a granted address takes anything)")

    async def _hello(self, *, required: bool) -> None:
        """Read a hello whole, and hold it against the name."""
        while True:
            try:
                hello = read_hello(self.inside.first)
            except HelloError as error:
                raise _Mismatch(f"TLS: {error}") from None
            if hello is not None:
                break
            await self._more()
        if not hello.name and required:
            raise _Mismatch("TLS without a server name")
        if hello.name and hello.name != self.wanted.name:
            raise _Mismatch(f"TLS for {hello.name}, and {self.wanted.name} was granted")

    async def _look(self, reached: Reached) -> bool:
        """On another port: whether it is HTTP. Raises for a wrong name; waits only for whoever speaks first."""
        if not self.inside.first and not self.inside.ready() and await self._server_speaks_first(reached):
            return False
        if not self.inside.first:
            async with asyncio.timeout(self.gate.limits.idle):
                if not await self.inside.more(LONGEST):
                    return False  # it ended without a word: so does the relay
        if looks_like_tls(self.inside.first):
            await self._hello(required=False)
            return False
        while (http := looks_like_http(self.inside.first)) is None:
            await self._more()
        if self.inside.first.startswith(b"PRI "):
            raise _Mismatch("HTTP/2 without TLS cannot be read (a granted address takes anything)")
        return http

    async def _server_speaks_first(self, reached: Reached) -> bool:
        loop = asyncio.get_running_loop()
        spoke: asyncio.Future[bool] = loop.create_future()

        def ready(server: bool) -> None:
            if not spoke.done():
                spoke.set_result(server)

        inside, outside = self.inside.sock.fileno(), reached.sock.fileno()
        loop.add_reader(inside, ready, False)
        loop.add_reader(outside, ready, True)
        try:
            async with asyncio.timeout(self.gate.limits.idle):
                return await spoke
        finally:
            loop.remove_reader(inside)
            loop.remove_reader(outside)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """A host whose requests are read. Nobody is connected to before one is allowed."""
        if self.established:
            await self.inside.write(self.established)
            self.established = b""
        if not self.inside.first:
            await self._more()
        if not looks_like_tls(self.inside.first):
            await self._exchange(secure=False)
            return
        await self._hello(required=True)
        authority = self.gate.authority
        if authority is None:
            raise _Mismatch("this session has no certificates of its own to read TLS with")
        stream = Tls(self.inside, authority.context(self.wanted.name))
        async with asyncio.timeout(self.gate.limits.first):
            await stream.handshake()
        if stream.protocol == "h2":
            from remit.sandbox.egress.http2 import Front  # 15 ms: for whoever speaks it

            await Front(self.gate, self.source, stream, self.wanted, self.via).run()
            return
        await Exchange(self.gate, self.source, stream, self.wanted, secure=True, via=self.via).run()

    async def _http(self, reached: Reached) -> None:
        """Plain HTTP to a granted name, over the connection that is there."""
        conn = h11.Connection(h11.CLIENT, max_incomplete_event_size=4 * HEAD)
        rule = _where(reached.decision)
        server = Server(self.wanted, Plain(reached.sock), reached.sock, conn, rule, time.monotonic())
        await self._exchange(secure=False, server=server)

    async def _exchange(self, *, secure: bool, server: Server | None = None) -> None:
        await Exchange(
            self.gate, self.source, self.inside, self.wanted, secure=secure, via=self.via, reached=server
        ).run()

    async def _deny(self, denial: Denial, verdict: str = "denied", *, tell: bool = True) -> None:
        self.gate.ledger.note(denied(self.source.call, "connect", self.via, denial)._replace(verdict=verdict))
        said = self.refuse(denial) if tell and self.established else b""
        try:
            if said:
                await self.inside.write(said)
                await linger(self.inside)
                return
        except OSError:
            pass
        self.inside.reset()


def _where(decision: Decision) -> str:
    return str(decision.rule.source) if decision.rule is not None else ""


def no_destination(source: Source, via: str, text: str, reason: str) -> Event:
    """The event of a connection whose destination is none."""
    return denied(source.call, "connect", via, Denial(403, text, reason or Reason.NO_RULE))
