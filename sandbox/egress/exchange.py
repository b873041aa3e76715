"""HTTP/1.1 that is read: each request checked, its secrets put in, sent on; each answer passed back.

Both sides are parsed and written again by h11, so that the server sees one spelling of every message, whatever the
program sent: what two parsers would cut in two places never leaves. HTTP/2 (``http2``) is told to it in HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

import h11

from remit.sandbox.authority.parse import ParseError
from remit.sandbox.authority.web import parse_http_path
from remit.sandbox.egress.connect import Refused, Unreachable
from remit.sandbox.egress.decide import Destination
from remit.sandbox.egress.denial import Denial
from remit.sandbox.egress.gate import Event, Gate, denied, refusal
from remit.sandbox.egress.request import BadRequest, Request, check
from remit.sandbox.egress.secrets import put_in
from remit.sandbox.egress.stream import Plain, Stream, Tls, linger
from remit.sandbox.events.action import NO_HTTP_RULE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remit.sandbox.egress.policy import Source

HEAD = 1 << 16
"""Bytes that a request's or an answer's head may have."""

_SHOWN = 2048
"""Characters of a request's line that the record keeps."""

_DROPPED = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"upgrade", b"alt-svc", b"trailer"}
)
_PASSED_ON = (100, 103)

HttpEvent: TypeAlias = (
    h11.Request | h11.Response | h11.InformationalResponse | h11.Data | h11.EndOfMessage | h11.ConnectionClosed
)


class Gone(Exception):
    """The program inside closed its side or broke the protocol: nobody is left to tell anything."""


class _Failed(Exception):
    """The server broke off. ``answered``: a part of its answer has been passed on, so nothing else can be."""

    def __init__(self, message: str, *, answered: bool) -> None:
        super().__init__(message)
        self.answered = answered


@dataclass(slots=True)
class Server:
    """A connection to a server, kept while the next request goes there too."""

    wanted: Destination
    stream: Stream
    sock: socket.socket
    conn: h11.Connection
    rule: str
    began: float
    sent: int = 0
    received: int = 0


class Upgraded(NamedTuple):
    """What both sides had said behind the upgrade."""

    inside: bytes
    outside: bytes


class Exchange:
    """The requests of one connection from inside. ``fixed``: where it goes; None for a proxy's, where each request says.

    ``secure``: the program speaks TLS with us, and we do with the server. ``reached``: a connection that is there already.
    """

    def __init__(
        self,
        gate: Gate,
        source: Source,
        client: Stream,
        fixed: Destination | None,
        *,
        secure: bool,
        via: str,
        reached: Server | None = None,
    ) -> None:
        self.gate, self.source, self.client, self.fixed = gate, source, client, fixed
        self.secure, self.via, self.server = secure, via, reached
        self.conn = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD)

    async def run(self) -> None:
        """Until either side ends. Closes both."""
        try:
            while await self._one():
                self.conn.start_next_cycle()
        except (Gone, OSError, TimeoutError, h11.ProtocolError):
            pass
        finally:
            self._leave()
            self.client.close()

    async def _one(self) -> bool:
        """One request and its answer; whether another may follow."""
        try:
            async with asyncio.timeout(self.gate.limits.idle):
                event = await self._next(self.conn, self.client)
        except h11.RemoteProtocolError as error:
            return await self._refuse(Denial(400, self._about(), f"not HTTP: {error}"))
        if not isinstance(event, h11.Request):
            return False
        try:
            request = check(
                event.method, event.target, list(event.headers), event.http_version, self.fixed, self.source.web
            )
        except BadRequest as error:
            return await self._refuse(Denial(error.status, self._about(), str(error)))
        problem = self._problem(request)
        if problem is not None:
            rules = self.source.web.rules_of(request.wanted.name)
            return await self._refuse(problem, right="request", rule=str(rules[0].source) if rules else "")
        try:
            server = await self._reach(request.wanted)
        except Refused as error:
            return await self._refuse(refusal(error.decision, error.wanted))
        except Unreachable as error:
            return await self._refuse(Denial(502, f"{request.wanted}/tcp", str(error)), verdict="failed")
        except (OSError, TimeoutError) as error:
            text = error.reason if isinstance(error, ssl.SSLError) else type(error).__name__
            return await self._refuse(Denial(502, f"{request.wanted}/tcp", f"TLS failed: {text}"), verdict="failed")
        try:
            return await self._pass(request, server)
        except _Failed as error:
            self._leave()
            if error.answered:
                raise Gone from None
            return await self._refuse(Denial(502, f"{request.wanted}/tcp", str(error)), verdict="failed")

    def _about(self) -> str:
        return f"{self.fixed}/tcp" if self.fixed is not None else "proxy"

    def _problem(self, request: Request) -> Denial | None:
        """What the session's HTTP rules have against a request."""
        web, host = self.source.web, request.wanted.name
        if not host or not web.reads(host):
            return None
        shown = self._shown(request)
        if web.allows(host, request.method, request.path) is None:
            value = f'host = "{host}", methods = ["{request.method}"], paths = ["{_writable(request.path)}"]'
            return Denial(403, shown, NO_HTTP_RULE, ("network.http", value, ""))
        if web.exchanges_of(host) and not self.secure:
            return Denial(403, shown, "a host with a credential is reached by TLS only")
        return None

    def _shown(self, request: Request) -> str:
        """A request as the record has it: no query, which is where keys are."""
        host = _host(request.wanted, secure=self.secure).decode()
        path = request.target.partition(b"?")[0].decode("latin-1")
        return f"{request.method} {'https' if self.secure else 'http'}://{host}{path}"[:_SHOWN]

    async def _reach(self, wanted: Destination) -> Server:
        """A connection to ``wanted``, the last one where that still stands."""
        kept = self.server
        if kept is not None:
            if (
                kept.wanted == wanted
                and kept.conn.our_state is h11.IDLE
                and not kept.stream.pending()
                and not _stale(kept.sock)
            ):
                return kept
            self._leave()
        reached = await self.gate.connector.connect(self.source.rules, wanted)
        plain = Plain(reached.sock)
        stream: Stream = plain
        try:
            rule = str(reached.decision.rule.source) if reached.decision.rule is not None else ""
            event = Event(
                self.source.call, "connect", f"{wanted}/tcp", "allowed", reached.wanted.address, rule, self.via
            )
            await self.gate.ledger.allowed(event)
            if self.secure:
                tls = Tls(plain, self.gate.verify(), server_name=wanted.name)
                async with asyncio.timeout(self.gate.limits.first):
                    await tls.handshake()
                stream = tls
        except BaseException:
            plain.close()
            raise
        conn = h11.Connection(h11.CLIENT, max_incomplete_event_size=4 * HEAD)
        self.server = Server(wanted, stream, reached.sock, conn, rule, time.monotonic())
        return self.server

    def _leave(self) -> None:
        """Close the connection to the server, and say what went over it."""
        server, self.server = self.server, None
        if server is None:
            return
        server.stream.close()
        milliseconds = int((time.monotonic() - server.began) * 1000)
        self.gate.ledger.note(
            Event(
                self.source.call,
                "connect",
                f"{server.wanted}/tcp",
                "ended",
                "",
                server.rule,
                self.via,
                server.sent,
                server.received,
                milliseconds,
            )
        )

    async def _pass(self, request: Request, server: Server) -> bool:
        """Send the request on and its answer back; whether both connections can go on."""
        web, host = self.source.web, request.wanted.name
        headers = [(name, value) for name, value in request.headers if name != b"host"]
        target, headers = put_in(web.exchanges_of(host) if self.secure else (), request.target, headers)
        headers.insert(0, (b"host", _host(request.wanted, secure=self.secure)))
        if web.reads(host):
            rule = web.allows(host, request.method, request.path)
            stands = str(rule.source) if not isinstance(rule, bool) and rule is not None else server.rule
            event = Event(self.source.call, "request", self._shown(request), "allowed", "", stands, self.via)
            await self.gate.ledger.allowed(event)
        body: asyncio.Task[None] | None = None
        answer: asyncio.Task[Upgraded | None] | None = None
        try:
            try:
                head = h11.Request(method=request.method, target=target, headers=headers)
                await self._send(server, server.conn.send(head))
            except h11.LocalProtocolError:
                # The secret has been put in: what is wrong with a header may be quoted with its value.
                raise _Failed("the request cannot be passed on", answered=False) from None
            except OSError:
                raise _Failed("the server closed the connection", answered=False) from None
            body = asyncio.create_task(self._body(server))
            answer = asyncio.create_task(self._answer(server, request))
            await asyncio.wait({body, answer}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and body.exception() is not None:
                raise Gone
            upgraded = await answer  # if it comes before the body's end, the rest of the body is not for anybody
            if upgraded is not None:
                await body
                await self._both_ways(server, upgraded)
                return False
        finally:
            for task in (body, answer):
                if task is not None and not task.done():
                    task.cancel()
            await asyncio.gather(*[task for task in (body, answer) if task is not None], return_exceptions=True)
        if (
            server.conn.our_state is h11.DONE
            and server.conn.their_state is h11.DONE
            and not server.conn.trailing_data[0]
        ):
            # What came behind the answer was nobody's: kept, it would be the answer to the next request.
            server.conn.start_next_cycle()
        else:
            self._leave()
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.DONE:
            return True
        await linger(self.client)
        return False

    async def _body(self, server: Server) -> None:
        """The request's body, to the server. What it does not take any more (it has answered early) is not sent."""
        while True:
            try:
                event = await self._next(self.conn, self.client)
            except (h11.RemoteProtocolError, OSError):
                raise Gone from None
            if isinstance(event, h11.Data):
                piece: h11.Data | h11.EndOfMessage = h11.Data(data=bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                piece = h11.EndOfMessage()  # trailers stay here: servers merge them into the head, each in its own way
            else:
                raise Gone
            try:
                await self._send(server, server.conn.send(piece))
            except OSError:  # TimeoutError is one
                return  # whether that is a failure, the answer tells
            if isinstance(event, h11.EndOfMessage):
                return

    async def _answer(self, server: Server, request: Request) -> Upgraded | None:
        """The server's answer, to the program."""
        answered = False
        sent = server.sent
        while True:
            try:
                async with asyncio.timeout(self.gate.limits.idle):
                    event = await self._next(server.conn, server.stream, server)
            except TimeoutError:
                if server.sent == sent:
                    raise _Failed("no answer", answered=answered) from None
                sent = server.sent  # it is still being told something
                continue
            except h11.RemoteProtocolError:
                # The parser quotes what it could not read, and a server may have echoed a secret there.
                raise _Failed("the server's answer is not HTTP", answered=answered) from None
            except OSError as error:
                raise _Failed(f"no answer: {type(error).__name__}", answered=answered) from None
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101 and request.websocket:
                    headers = list(event.headers)
                    await self._tell(
                        _bytes(self.conn.send(h11.InformationalResponse(status_code=101, headers=headers)))
                    )
                    return Upgraded(self.conn.trailing_data[0], server.conn.trailing_data[0])
                if event.status_code == 101:
                    raise _Failed("an upgrade that nobody asked for", answered=answered)
                if event.status_code in _PASSED_ON:
                    early = h11.InformationalResponse(status_code=event.status_code, headers=_passed(event.headers))
                    await self._tell(_bytes(self.conn.send(early)))
            elif isinstance(event, h11.Response):
                answered = True
                whole = h11.Response(status_code=event.status_code, reason=event.reason, headers=_passed(event.headers))
                await self._tell(_bytes(self.conn.send(whole)))
            elif isinstance(event, h11.Data):
                await self._tell(_bytes(self.conn.send(h11.Data(data=bytes(event.data)))))
            elif isinstance(event, h11.EndOfMessage):
                rest = _bytes(self.conn.send(h11.EndOfMessage()))
                if rest:
                    await self._tell(rest)
                return None
            else:
                raise _Failed("the server closed the connection", answered=answered)

    async def _both_ways(self, server: Server, upgraded: Upgraded) -> None:
        """After an upgrade: bytes, in both directions, until one ends."""
        await self._send(server, upgraded.inside)
        await self._tell(upgraded.outside)

        async def pump(one: Stream, other: Stream, *, out: bool) -> None:
            while True:
                async with asyncio.timeout(self.gate.limits.idle):
                    data = await one.read()
                if not data:
                    return
                self._count(server, len(data), out=out)
                await other.write(data)

        ways = {
            asyncio.create_task(pump(self.client, server.stream, out=True)),
            asyncio.create_task(pump(server.stream, self.client, out=False)),
        }
        _, left = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        await asyncio.gather(*ways, return_exceptions=True)

    async def _next(self, conn: h11.Connection, stream: Stream, server: Server | None = None) -> HttpEvent:
        """The next event, reading as much as it takes."""
        while True:
            event = conn.next_event()
            if event is h11.NEED_DATA:
                data = await stream.read()
                if server is not None:
                    self._count(server, len(data), out=False)
                conn.receive_data(data)
            elif event is h11.PAUSED:
                raise Gone
            else:
                return cast("HttpEvent", event)

    async def _send(self, server: Server, data: bytes | None) -> None:
        if data:
            self._count(server, len(data), out=True)
            async with asyncio.timeout(self.gate.limits.idle):
                await server.stream.write(data)

    async def _tell(self, data: bytes) -> None:
        async with asyncio.timeout(self.gate.limits.idle):
            await self.client.write(data)

    def _count(self, server: Server, count: int, *, out: bool) -> None:
        if out:
            server.sent += count
        else:
            server.received += count
        if not self.gate.meter.passed(count):
            raise Gone

    async def _refuse(self, denial: Denial, verdict: str = "denied", *, right: str = "connect", rule: str = "") -> bool:
        """Answer with ``denial``, record it, end the connection."""
        event = denied(self.source.call, right, self.via, denial, rule)
        self.gate.ledger.note(event._replace(verdict=verdict))
        try:
            head = h11.Response(status_code=denial.status, headers=denial.headers())
            data = _bytes(self.conn.send(head))
            try:
                data += _bytes(self.conn.send(h11.Data(data=denial.body())))
                data += _bytes(self.conn.send(h11.EndOfMessage()))
            except h11.LocalProtocolError:
                pass  # an answer to HEAD has no body
        except h11.LocalProtocolError:
            data = denial.message()
        await self._tell(data)
        await linger(self.client)
        return False


def _bytes(data: bytes | None) -> bytes:
    return data or b""


def _writable(path: str) -> str:
    """``path``, or the part of it from the left that a rule can be about."""
    while path:
        try:
            return parse_http_path(path)
        except ParseError:
            path = path.rpartition("/")[0]
    return "/"


def _host(wanted: Destination, *, secure: bool) -> bytes:
    host = wanted.name or wanted.address
    host = f"[{host}]" if ":" in host else host
    return (host if wanted.port == (443 if secure else 80) else f"{host}:{wanted.port}").encode()


def _passed(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """An answer's headers without what belongs to the server's connection. ``Alt-Svc`` points at where nobody may go."""
    named = b",".join([value for name, value in headers if name == b"connection"])
    dropped = _DROPPED | {token.strip().lower() for token in named.split(b",")}
    return [(name, value) for name, value in headers if name not in dropped]


def _stale(sock: socket.socket) -> bool:
    """Whether a kept connection has something to say: its end, or what nobody asked for."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True
    return True
