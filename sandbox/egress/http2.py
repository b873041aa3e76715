"""HTTP/2 from inside: each stream is a request like any other, told in HTTP/1.1 to an ``Exchange`` of its own.

So there is one place where requests are checked, decided, given their secrets and recorded, and HTTP/2 (RFC 9113) is only
another way to say them. h2 holds the frames, the header block and the pseudo-headers to the standard; what it gives is written
by h11, which takes no byte in a name, value, method or target that a reader of HTTP/1.1 could take for another. The
servers are spoken to in HTTP/1.1, as for everybody: no trailers, so no gRPC.

Bounded: streams at a time, bytes of a header list and of the table that it is compressed with, what is kept of a body that
nobody takes (the windows of flow control are opened again when it has been passed on), requests that are given up at once,
and frames that say nothing.

One task reads, one writes, and each request has one: only the writer touches the connection's TLS, so that a request that is
given up in the middle of a write cuts nobody's record in two.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h11
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from remit.sandbox.egress.denial import Denial
from remit.sandbox.egress.exchange import HEAD, Exchange
from remit.sandbox.egress.gate import Gate, denied
from remit.sandbox.egress.stream import Plain, Stream, linger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remit.sandbox.egress.decide import Destination
    from remit.sandbox.egress.policy import Source

STREAMS = 32
"""Streams at a time: each has a connection to the server."""
GIVEN_UP = 64
"""Requests that a client may give up, more than it has waited for ("rapid reset", CVE-2023-44487)."""
IDLE_FRAMES = 1000
"""Frames in a row that carry neither a request nor a byte of a body (CVE-2019-9512, -9515, -9518)."""

HEADER_TABLE = 4096
"""Bytes of the table that our answers' headers are compressed with (RFC 7541, 4.2), however large the client's may be."""

_CONNECTIONS = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
Headers = list[tuple[bytes, bytes]]


class _Bad(Exception):
    """A request that is well-formed HTTP/2 and is not passed on."""


class _Full(Exception):
    """There are as many connections as there may be."""


@dataclass(slots=True, eq=False)
class _Lane:
    """An ``Exchange`` and our end of its connection, used for one stream after the other."""

    stream: Plain
    conn: h11.Connection
    task: asyncio.Task[None]


@dataclass(slots=True, eq=False)
class _Request:
    """One stream. ``body``: what has come of it and was not passed on, at most a window of flow control; ``owed``: as much of
    the windows is still to be opened again."""

    number: int
    body: bytearray = field(default_factory=bytearray)
    owed: int = 0
    told: bool = False
    """All of its body has come."""
    more: asyncio.Event = field(default_factory=asyncio.Event)
    window: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Front:
    """The streams of one connection from inside, which speaks TLS with us, to ``wanted``."""

    def __init__(self, gate: Gate, source: Source, client: Stream, wanted: Destination, via: str) -> None:
        self.gate, self.source, self.client, self.wanted, self.via = gate, source, client, wanted, via
        self._conn = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._conn.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: HEAD,
                SettingCodes.ENABLE_CONNECT_PROTOCOL: 0,
            },
        )
        self._requests: dict[int, _Request] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: list[_Lane] = []
        self._lanes: set[_Lane] = set()
        self._unsaid, self._said = asyncio.Event(), asyncio.Event()
        self._given_up = self._silent = 0

    async def run(self) -> None:
        """Until either side ends. Closes everything."""
        ends = {asyncio.create_task(self._listen()), asyncio.create_task(self._speak())}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left = [*ends, *self._tasks]
            for task in left:
                task.cancel()
            for lane in list(self._lanes):
                self._leave(lane)
                left.append(lane.task)
            await asyncio.gather(*left, return_exceptions=True)
            self.client.close()

    async def _listen(self) -> None:
        """The reader: frames, and what they mean."""
        self._conn.initiate_connection()
        await self._flush()
        while await self._read():
            pass
        await self._flush()
        await linger(self.client)  # so that the reason arrives

    async def _speak(self) -> None:
        """The writer: it ends with the connection."""
        while True:
            await self._unsaid.wait()
            self._unsaid.clear()
            data = self._conn.data_to_send()
            if data:
                async with asyncio.timeout(self.gate.limits.idle):
                    await self.client.write(data)
            if not self._unsaid.is_set():
                self._said.set()

    async def _flush(self) -> None:
        """Wait until what there is to say has been written. Waiting is all that ends with whoever waits."""
        self._said.clear()
        self._unsaid.set()
        await self._said.wait()

    async def _read(self) -> bool:
        """Some frames; whether more may come."""
        try:
            async with asyncio.timeout(self.gate.limits.idle):
                data = await self.client.read()
        except TimeoutError:
            return bool(self._requests)  # it waits for answers
        if not data:
            return False
        try:
            events = self._conn.receive_data(data)
        except ProtocolError as error:
            self._note(f"not HTTP/2 ({type(error).__name__})")
            return False
        if self._conn.encoder.header_table_size > HEADER_TABLE:
            self._conn.encoder.header_table_size = HEADER_TABLE
        for event in events:
            if not self._happened(event):
                return False
        if self._silent > IDLE_FRAMES or self._given_up > GIVEN_UP:
            self._note("more requests given up, or frames that say nothing, than may be")
            self._conn.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            return False
        await self._flush()
        return True

    def _note(self, why: str) -> None:
        self.gate.ledger.note(denied(self.source.call, "connect", self.via, Denial(400, f"{self.wanted}/tcp", why)))

    def _happened(self, event: Event) -> bool:
        """False: the client will say nothing more."""
        self._silent += 1
        if isinstance(event, RequestReceived):
            self._silent = 0
            request = self._requests[event.stream_id] = _Request(event.stream_id)
            request.task = asyncio.create_task(
                self._serve(request, list(event.headers), event.stream_ended is not None)
            )
            self._tasks.add(request.task)
            request.task.add_done_callback(self._tasks.discard)
        elif isinstance(event, DataReceived):
            if event.data:
                self._silent = 0
            taker = self._requests.get(event.stream_id)
            if taker is None:
                self._took(event.stream_id, event.flow_controlled_length)
            else:
                self._took(event.stream_id, event.flow_controlled_length - len(event.data))  # padding
                taker.owed += len(event.data)
                taker.body += event.data
                taker.more.set()
        elif isinstance(event, StreamEnded):
            if (ended := self._requests.get(event.stream_id)) is not None:
                ended.told = True
                ended.more.set()
        elif isinstance(event, StreamReset):
            self._given_up += 1
            reset = self._requests.get(event.stream_id)
            if reset is not None and reset.task is not None:
                # Here, and not when the task ends: one that has not begun never does.
                self._forget(reset)
                reset.task.cancel()
        elif isinstance(event, WindowUpdated):
            for one in self._requests.values():
                if event.stream_id in (0, one.number):
                    one.window.set()
        return not isinstance(event, ConnectionTerminated)

    def _forget(self, request: _Request) -> None:
        """Nothing more comes for it, and nothing of what came is kept."""
        if self._requests.pop(request.number, None) is not None:
            self._took(request.number, request.owed)
            request.owed = 0

    # --- one request --------------------------------------------------------------------------------------------------

    async def _serve(self, request: _Request, headers: Headers, ended: bool) -> None:
        lane: _Lane | None = None
        whole = False
        try:
            try:
                head = _head(headers, ended=ended)
                lane = self._take()
                said = lane.conn.send(head)
            except (_Bad, h11.LocalProtocolError) as error:
                await self._refuse(request, Denial(400, f"{self.wanted}/tcp", f"not HTTP: {error}"))
                return
            except _Full:
                most = self.gate.limits.connections
                await self._refuse(request, Denial(403, "connection", f"more than {most} connections at a time"))
                return
            await self._tell(lane, said)
            body = asyncio.create_task(self._body(request, lane))
            try:
                await self._answer(request, lane)
            finally:
                body.cancel()
                await asyncio.gather(body, return_exceptions=True)
            whole = True
            self._given_up = max(0, self._given_up - 1)
        except (OSError, TimeoutError, ProtocolError, h11.ProtocolError):
            self._reset(request, ErrorCodes.INTERNAL_ERROR)
        finally:
            self._forget(request)
            self._unsaid.set()
            if lane is not None:
                self._put_back(lane, whole=whole)

    async def _body(self, request: _Request, lane: _Lane) -> None:
        """The body, to the exchange; what has been passed on makes room for more."""
        try:
            while request.body or not request.told:
                if not request.body:
                    request.more.clear()
                    await request.more.wait()
                    continue
                piece = bytes(request.body)
                request.body.clear()
                await self._tell(lane, lane.conn.send(h11.Data(data=piece)))
                self._took(request.number, len(piece))
                request.owed -= len(piece)
                self._unsaid.set()
            # Trailers stay here, as those of HTTP/1.1 do.
            await self._tell(lane, lane.conn.send(h11.EndOfMessage()))
        except (OSError, TimeoutError, ProtocolError, h11.LocalProtocolError):
            try:
                lane.stream.sock.shutdown(
                    socket.SHUT_RDWR
                )  # what has been answered can still be read; more does not come
            except OSError:
                pass

    async def _answer(self, request: _Request, lane: _Lane) -> None:
        """The exchange's answer, to the program."""
        number = request.number
        while True:
            event = lane.conn.next_event()
            if event is h11.NEED_DATA:
                lane.conn.receive_data(await lane.stream.read())
            elif isinstance(event, h11.InformationalResponse | h11.Response):
                # ``_CONNECTIONS`` is what HTTP/2 has no place for.
                passed = [(name, value) for name, value in event.headers if name not in _CONNECTIONS]
                self._conn.send_headers(number, [(b":status", b"%d" % event.status_code), *passed])
                await self._flush()
            elif isinstance(event, h11.Data):
                await self._send(request, bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self._end(request)
                await self._flush()
                return
            else:
                raise OSError("the exchange ended")

    async def _send(self, request: _Request, data: bytes) -> None:
        while data:
            size = min(
                len(data), self._conn.local_flow_control_window(request.number), self._conn.max_outbound_frame_size
            )
            if size > 0:
                self._conn.send_data(request.number, data[:size])
                data = data[size:]
                await self._flush()
                continue
            request.window.clear()
            async with asyncio.timeout(self.gate.limits.idle):
                await request.window.wait()

    async def _refuse(self, request: _Request, denial: Denial) -> None:
        self.gate.ledger.note(denied(self.source.call, "connect", self.via, denial))
        headers = [(name.lower(), value) for name, value in denial.headers() if name.lower() not in _CONNECTIONS]
        self._conn.send_headers(request.number, [(b":status", b"%d" % denial.status), *headers])
        await self._send(request, denial.body())
        self._end(request)
        await self._flush()

    def _end(self, request: _Request) -> None:
        """The answer is whole. The rest of a body that was answered early is not for anybody (RFC 9113, 8.1)."""
        self._conn.end_stream(request.number)
        if not request.told:
            self._conn.reset_stream(request.number, ErrorCodes.NO_ERROR)

    def _reset(self, request: _Request, why: ErrorCodes) -> None:
        try:
            self._conn.reset_stream(request.number, why)
        except ProtocolError:
            pass  # it is closed

    # --- lanes --------------------------------------------------------------------------------------------------------

    def _take(self) -> _Lane:
        """An exchange that waits for a request, or a new one. Raises _Full."""
        while self._idle:
            lane = self._idle.pop()
            if not lane.task.done():
                return lane
            self._leave(lane)
        if self.gate.open >= self.gate.limits.connections:
            raise _Full
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        exchange = Exchange(self.gate, self.source, Plain(theirs), self.wanted, secure=True, via=self.via)
        lane = _Lane(Plain(ours), h11.Connection(h11.CLIENT, 4 * HEAD), asyncio.create_task(exchange.run()))
        lane.task.add_done_callback(lambda _: theirs.close())  # an exchange that never began closes nothing
        self.gate.open += 1
        self._lanes.add(lane)
        return lane

    def _put_back(self, lane: _Lane, *, whole: bool) -> None:
        if whole and lane.conn.our_state is h11.DONE and lane.conn.their_state is h11.DONE:
            lane.conn.start_next_cycle()
            self._idle.append(lane)
        else:
            self._leave(lane)

    def _leave(self, lane: _Lane) -> None:
        if lane in self._lanes:
            self._lanes.discard(lane)
            self.gate.open -= 1
            lane.task.cancel()
            lane.stream.close()

    async def _tell(self, lane: _Lane, data: bytes | None) -> None:
        if data:
            async with asyncio.timeout(self.gate.limits.idle):
                await lane.stream.write(data)

    # --- the connection -----------------------------------------------------------------------------------------------

    def _took(self, number: int, count: int) -> None:
        """So much of what came has been passed on: as much may come."""
        if count:
            try:
                self._conn.acknowledge_received_data(count, number)
            except ProtocolError:
                pass  # the connection is over


def _head(headers: Iterable[tuple[bytes, bytes]], *, ended: bool) -> h11.Request:
    """A request as HTTP/1.1 has it (RFC 9113, 8.3). Raises _Bad, h11.LocalProtocolError."""
    pseudo: dict[bytes, bytes] = {}
    kept: Headers = []
    cookies: list[bytes] = []
    for name, value in headers:
        if name.startswith(b":"):
            pseudo[name] = value
        elif name == b"cookie":
            cookies.append(value)  # may come in pieces (RFC 9113, 8.2.3)
        elif name != b"host":  # h2 has compared it with :authority
            kept.append((name, value))
    if pseudo.keys() != {b":method", b":scheme", b":path", b":authority"}:
        raise _Bad("not the pseudo-headers of a request")
    if pseudo[b":scheme"] != b"https":
        raise _Bad("a scheme that is not the connection's")
    lengths = [value for name, value in kept if name == b"content-length"]
    if ended and lengths not in ([], [b"0"]):
        raise _Bad("a length, and no body")
    if cookies:
        kept.append((b"cookie", b"; ".join(cookies)))
    if not ended and not lengths:
        kept.append((b"transfer-encoding", b"chunked"))
    return h11.Request(
        method=pseudo[b":method"], target=pseudo[b":path"], headers=[(b"host", pseudo[b":authority"]), *kept]
    )
