"""HTTP/2 from inside: each stream is a request like any other, told in HTTP/1.1 to an ``Exchange`` of its own.

So there is one place where requests are checked, decided, given their secrets and recorded, and HTTP/2 (RFC 9113) is only
another way to say them. h2 holds the frames, the header block and the pseudo-headers to the standard; what it gives is written
by h11, which takes no byte in a name, value, method or target that a reader of HTTP/1.1 could take for another. The
servers are spoken to in HTTP/1.1, as for everybody: no trailers, so no gRPC.

Bounded: streams at a time, bytes of a header list, what is kept of a body that nobody takes (the windows of flow control are
opened again when it has been passed on), requests that are given up at once, and frames that say nothing.
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
from remit.sandbox.egress.stream import Plain, Stream

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

_CONNECTIONS = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
Headers = list[tuple[bytes, bytes]]


class _Bad(Exception):
    """A request that is well-formed HTTP/2 and is not passed on."""


@dataclass(slots=True, eq=False)
class _Lane:
    """An ``Exchange`` and our end of its connection, used for one stream after the other."""

    stream: Plain
    conn: h11.Connection
    task: asyncio.Task[None]


@dataclass(slots=True, eq=False)
class _Request:
    """One stream. ``pieces``: its body, None at the end; at most a flow-control window of it."""

    number: int
    pieces: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue["bytes | None"])
    window: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    unacknowledged: int = 0
    told: bool = False
    """All of its body has come."""


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
        self._idle: list[_Lane] = []
        self._lanes: set[_Lane] = set()
        self._sending = asyncio.Lock()
        self._given_up = self._silent = 0

    async def run(self) -> None:
        """Until either side ends. Closes everything."""
        try:
            self._conn.initiate_connection()
            await self._flush()
            while await self._read():
                pass
        except (OSError, TimeoutError):
            pass
        finally:
            tasks = [one.task for one in self._requests.values() if one.task is not None]
            for task in tasks:
                task.cancel()
            for lane in list(self._lanes):
                self._leave(lane)
            await asyncio.gather(*tasks, return_exceptions=True)
            self.client.close()

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
        except ProtocolError:
            await self._flush()  # why, for the other side
            return False
        going_on = True
        for event in events:
            going_on = self._happened(event) and going_on
        if not going_on:
            self._conn.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
        await self._flush()
        return going_on

    def _happened(self, event: Event) -> bool:
        """False: enough of this connection."""
        self._silent += 1
        if isinstance(event, RequestReceived):
            self._silent = 0
            request = self._requests[event.stream_id] = _Request(event.stream_id)
            request.task = asyncio.create_task(
                self._serve(request, list(event.headers), event.stream_ended is not None)
            )
        elif isinstance(event, DataReceived):
            if event.data:
                self._silent = 0
            taker = self._requests.get(event.stream_id)
            if taker is None:
                self._took(event.stream_id, event.flow_controlled_length)
            else:
                taker.unacknowledged += event.flow_controlled_length - len(event.data)  # padding
                taker.pieces.put_nowait(event.data)
        elif isinstance(event, StreamEnded):
            if (ended := self._requests.get(event.stream_id)) is not None:
                ended.told = True
                ended.pieces.put_nowait(None)
        elif isinstance(event, StreamReset):
            self._given_up += 1
            reset = self._requests.get(event.stream_id)
            if reset is not None and reset.task is not None:
                reset.task.cancel()
        elif isinstance(event, WindowUpdated):
            for one in self._requests.values():
                if event.stream_id in (0, one.number):
                    one.window.set()
        elif isinstance(event, ConnectionTerminated):
            return False
        return self._silent <= IDLE_FRAMES and self._given_up <= GIVEN_UP

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
            del self._requests[request.number]
            self._took(request.number, request.unacknowledged)
            while not request.pieces.empty():
                self._took(request.number, len(request.pieces.get_nowait() or b""))
            if lane is not None:
                self._put_back(lane, whole=whole)
        try:
            await self._flush()
        except (OSError, TimeoutError):
            pass  # whoever reads finds it out

    async def _body(self, request: _Request, lane: _Lane) -> None:
        """The body, to the exchange; what has been passed on makes room for more."""
        try:
            while (piece := await request.pieces.get()) is not None:
                await self._tell(lane, lane.conn.send(h11.Data(data=piece)))
                self._took(request.number, len(piece) + request.unacknowledged)
                request.unacknowledged = 0
                await self._flush()
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
        """An exchange that waits for a request, or a new one. Raises _Bad where there are too many connections."""
        while self._idle:
            lane = self._idle.pop()
            if not lane.task.done():
                return lane
            self._leave(lane)
        limit = self.gate.limits.connections
        if self.gate.open >= limit:
            raise _Bad(f"more than {limit} connections at a time")
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        exchange = Exchange(self.gate, self.source, Plain(theirs), self.wanted, secure=True, via=self.via)
        lane = _Lane(Plain(ours), h11.Connection(h11.CLIENT, 4 * HEAD), asyncio.create_task(exchange.run()))
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
            lane.stream.close()  # the exchange sees that, and ends

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

    async def _flush(self) -> None:
        async with self._sending, asyncio.timeout(self.gate.limits.idle):
            data = self._conn.data_to_send()
            if data:
                await self.client.write(data)


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
