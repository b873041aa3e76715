"""HTTP/2 to hosts that are read: the same rules, the same secrets, the same refusals, and nothing that grows without bound."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.sandbox.egress import http2
from remit.sandbox.egress.loop import run
from remit.sandbox.egress.secrets import placeholder
from tests.unit.egress_world import PATIENCE, House, head_of, until
from tests.unit.test_egress_web import HOST, SECRET, Site, credential, rule

Headers = list[tuple[str, str]]


@dataclass
class Answer:
    """What came back on one stream."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    reset: int | None = None
    over: bool = False


class Client:
    """A client that says whatever it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        loose = H2Configuration(
            client_side=True,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            header_encoding="latin-1",
        )
        self.conn = H2Connection(loose)
        self.conn.initiate_connection()
        self.answers: dict[int, Answer] = {}
        self.ended: int | None = None
        """The error code that the connection was ended with."""

    @classmethod
    async def of(cls, here: House) -> Client:
        here.inside.set_alpn_protocols(["h2", "http/1.1"])
        reader, writer = await here.transparent(here.synthetic(HOST), 443, tls=here.inside, name=HOST)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        return cls(reader, writer)

    def ask(
        self,
        method: str = "GET",
        path: str = "/",
        *more: tuple[str, str],
        authority: str = HOST,
        scheme: str = "https",
        end: bool = True,
    ) -> int:
        pseudo = [(":method", method), (":authority", authority), (":scheme", scheme), (":path", path)]
        return self.say([*pseudo, *more], end=end)

    def say(self, headers: Headers, *, end: bool = True) -> int:
        number = self.conn.get_next_available_stream_id()
        self.answers[number] = Answer()
        self.conn.send_headers(number, headers, end_stream=end)
        return number

    async def flush(self) -> None:
        self.writer.write(self.conn.data_to_send())
        await self.writer.drain()

    async def send(self, number: int, data: bytes) -> None:
        """A whole body, as fast as the other side takes it."""
        while data:
            size = min(len(data), self.conn.local_flow_control_window(number), self.conn.max_outbound_frame_size)
            if size:
                self.conn.send_data(number, data[:size])
                data = data[size:]
                await self.flush()
            else:
                await self.hear()
        self.conn.end_stream(number)
        await self.flush()

    async def hear(self) -> bool:
        """Whatever comes next. False: nothing more."""
        data = await asyncio.wait_for(self.reader.read(65536), PATIENCE)
        if not data:
            return False
        for event in self.conn.receive_data(data):
            if isinstance(event, ResponseReceived):
                answer = self.answers[event.stream_id]
                answer.headers = {str(name): str(value) for name, value in event.headers}
                answer.status = int(answer.headers[":status"])
            elif isinstance(event, DataReceived):
                self.answers[event.stream_id].body += event.data
                self.conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                self.answers[event.stream_id].over = True
            elif isinstance(event, StreamReset):
                self.answers[event.stream_id].over = True
                self.answers[event.stream_id].reset = int(event.error_code or 0)
            elif isinstance(event, ConnectionTerminated):
                self.ended = int(event.error_code or 0)
            else:
                assert not isinstance(event, WindowUpdated) or event.delta > 0
        try:
            await self.flush()
        except ConnectionError:
            pass  # it has ended the connection, and said so
        return True

    async def hear_out(self, numbers: Iterable[int]) -> list[Answer]:
        """The whole answers of these streams, or what there was until the connection ended."""
        await self.flush()
        wanted = list(numbers)
        while not all([self.answers[number].over for number in wanted]):
            if not await self.hear():
                break
        return [self.answers[number] for number in wanted]


def meet(
    does: Callable[[Site, House, Client], Awaitable[None]],
    rules: tuple[Any, ...] = (rule(methods=("GET", "PUT"), paths=("/v1",)),),
    credentials: tuple[Any, ...] = (),
) -> None:
    async def main() -> None:
        site = Site()
        await site.open()
        async with site.house(rules, credentials) as here:
            client = await Client.of(here)
            try:
                await does(site, here, client)
            finally:
                client.writer.close()

    run(main())


async def settled(here: House) -> int:
    """How many bytes the session had passed when no more were, of some."""
    await until(lambda: here.gateway.gate.meter.bytes_passed > 0)
    passed = -1
    while here.gateway.gate.meter.bytes_passed != passed:
        passed = here.gateway.gate.meter.bytes_passed
        await asyncio.sleep(0.3)
    return passed


def test_a_rule_allows_what_it_says_and_the_denial_says_which_is_missing() -> None:
    async def does(site: Site, here: House, client: Client) -> None:
        allowed, path, method = await client.hear_out(
            [client.ask("GET", "/v1/x?q=1"), client.ask("GET", "/v2"), client.ask("DELETE", "/v1/x")]
        )
        assert (allowed.status, allowed.body) == (200, b"hello")
        assert "alt-svc" not in allowed.headers
        assert (path.status, method.status) == (403, 403)
        assert json.loads(method.body)["missing"] == {
            "key": "network.http",
            "value": f'host = "{HOST}", methods = ["DELETE"], paths = ["/v1/x"]',
        }
        # The connection goes on, and what was refused never left.
        (again,) = await client.hear_out([client.ask("GET", "/v1")])
        assert again.status == 200
        assert [head.split(b"\r\n")[0] for head in site.heads] == [b"GET /v1/x?q=1 HTTP/1.1", b"GET /v1 HTTP/1.1"]
        assert sorted(event[2] for event in here.events if event[3] == "denied") == [
            f"DELETE https://{HOST}/v1/x",
            f"GET https://{HOST}/v2",
        ]
        assert len([event for event in here.events if (event[1], event[3]) == ("request", "allowed")]) == 2

    meet(does)


def test_the_secret_reaches_its_host_and_nobody_else() -> None:
    holder = placeholder()

    async def does(site: Site, here: House, client: Client) -> None:
        told = ("x-api-key", holder)
        allowed, denied = await client.hear_out([client.ask("GET", "/v1", told), client.ask("GET", "/v2", told)])
        assert (allowed.status, denied.status) == (200, 403)
        assert f"x-api-key: {SECRET}".encode() in site.heads[0].lower()
        assert len(site.heads) == 1
        assert SECRET.encode() not in allowed.body + denied.body
        assert SECRET not in repr(here.events)

    meet(does, credentials=(credential("header", "x-api-key", holder),))


GOOD = [(":method", "GET"), (":authority", HOST), (":scheme", "https"), (":path", "/v1")]
EVIL: dict[str, Headers] = {
    "another authority": [(":method", "GET"), (":authority", "evil.example"), (":scheme", "https"), (":path", "/v1")],
    "a port that is not ours": [(":method", "GET"), (":authority", f"{HOST}:8443"), *GOOD[2:]],
    "user information": [(":method", "GET"), (":authority", f"x@{HOST}"), *GOOD[2:]],
    "Host is another": [*GOOD, ("host", "evil.example")],
    "no authority": [GOOD[0], *GOOD[2:]],
    "another scheme": [*GOOD[:2], (":scheme", "http"), GOOD[3]],
    "no path": GOOD[:3],
    "a pseudo-header twice": [*GOOD, (":path", "/v2")],
    "an unknown pseudo-header": [*GOOD, (":x", "1")],
    "a pseudo-header behind others": [("x", "1"), *GOOD],
    "CONNECT": [(":method", "CONNECT"), (":authority", HOST)],
    "extended CONNECT": [(":method", "CONNECT"), (":protocol", "websocket"), *GOOD[1:]],
    "a line end in a value": [*GOOD, ("x", "1\r\n\r\nGET /evil HTTP/1.1\r\nHost: " + HOST)],
    "a line feed in a value": [*GOOD, ("x", "1\ny: 2")],
    "a NUL in a value": [*GOOD, ("x", "\0")],
    "a line end in a name": [*GOOD, ("x\r\ny", "1")],
    "a colon in a name": [*GOOD, ("x:y", "1")],
    "a space in a name": [*GOOD, ("x ", "1")],
    "an upper-case name": [*GOOD, ("X", "1")],
    "a line end in the path": [*GOOD[:3], (":path", "/v1 HTTP/1.1\r\nHost: evil.example\r\n\r\n")],
    "a space in the path": [*GOOD[:3], (":path", "/v1 /evil")],
    "a line end in the method": [(":method", "GET /evil HTTP/1.1\r\n\r\nGET"), *GOOD[1:]],
    "dot segments": [*GOOD[:3], (":path", "/v1/../evil")],
    "an absolute path": [*GOOD[:3], (":path", f"https://{HOST}/v1")],
    "an authority in the path": [*GOOD[:3], (":path", "//evil.example/v1")],
    "transfer-encoding": [*GOOD, ("transfer-encoding", "chunked")],
    "connection": [*GOOD, ("connection", "close")],
    "upgrade": [*GOOD, ("upgrade", "h2c")],
    "te": [*GOOD, ("te", "chunked")],
    "a length with no body": [*GOOD, ("content-length", "5")],
    "two lengths": [*GOOD, ("content-length", "0"), ("content-length", "5")],
    "a negative length": [*GOOD, ("content-length", "-1")],
    "an overriding header": [*GOOD, ("x-http-method-override", "DELETE")],
    "TRACE": [(":method", "TRACE"), *GOOD[1:]],
}


@pytest.mark.parametrize("what", EVIL)
def test_nothing_is_smuggled_past_the_rules(what: str) -> None:
    async def does(site: Site, _here: House, client: Client) -> None:
        (answer,) = await client.hear_out([client.say(EVIL[what])])
        # Refused with an answer, the stream reset, or the connection ended: as h2 or we see it.
        assert answer.status in (0, 400, 403), answer
        assert answer.status or answer.reset is not None or client.ended
        assert site.heads == []

    meet(does)


@pytest.mark.parametrize("more", [[], [("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers"), ("host", HOST)]])
def test_the_control(more: Headers) -> None:
    """What the ones above were made from passes; cookies are put together, and ``te`` stays here."""

    async def does(site: Site, _here: House, client: Client) -> None:
        (answer,) = await client.hear_out([client.say([*GOOD, *more])])
        assert answer.status == 200
        lines = site.heads[0].lower().split(b"\r\n")
        assert not [line for line in lines if line.startswith(b"te:")]
        assert (b"cookie: a=1; b=2" in lines) == bool(more)
        assert lines.count(f"host: {HOST}".encode()) == 1

    meet(does)


@pytest.mark.parametrize("length", [True, False])
def test_bodies_go_whole_both_ways(length: bool) -> None:
    body = bytes(range(256)) * 8000  # many windows of flow control

    async def does(site: Site, _here: House, client: Client) -> None:
        async def large(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            got = b""
            if b"content-length" in head.lower():
                got = await reader.readexactly(len(body))
            else:
                while size := int(await reader.readline(), 16):
                    got += (await reader.readexactly(size + 2))[:-2]
                await reader.readline()
            site.bodies.append(got)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            writer.close()

        site.handle = large  # type: ignore[method-assign]
        await site.world.serve(GOOD_ADDRESS, 443, large, site.certificates.server(HOST))
        more = [("content-length", str(len(body)))] if length else []
        number = client.ask("PUT", "/v1", *more, end=False)
        await client.send(number, body)
        (answer,) = await client.hear_out([number])
        assert answer.status == 200
        assert answer.body == body
        assert site.bodies == [body]

    async def main() -> None:
        site = Site()
        async with site.house((rule(),)) as here:
            client = await Client.of(here)
            await does(site, here, client)
            client.writer.close()

    run(main())


GOOD_ADDRESS = "203.0.113.10"


def test_many_streams_share_connections_and_no_more_than_are_allowed_at_a_time() -> None:
    async def does(site: Site, here: House, client: Client) -> None:
        await client.flush()
        while client.conn.remote_settings.max_concurrent_streams > http2.STREAMS:
            await client.hear()
        assert client.conn.remote_settings.get(SettingCodes.ENABLE_CONNECT_PROTOCOL) == 0
        answers: list[Answer] = []
        for _ in range(4):
            answers += await client.hear_out([client.ask("GET", "/v1") for _ in range(http2.STREAMS)])
        assert [answer.status for answer in answers] == [200] * 4 * http2.STREAMS
        assert len(site.world.dialled) <= http2.STREAMS
        assert here.gateway.gate.open <= 1 + http2.STREAMS
        client.writer.close()
        await client.writer.wait_closed()
        while here.gateway.gate.open:
            await asyncio.sleep(0)

    meet(does)


def test_requests_that_are_given_up_at_once_end_the_connection() -> None:
    async def does(_site: Site, _here: House, client: Client) -> None:
        for _ in range(http2.GIVEN_UP + 20):
            number = client.ask("GET", "/v1")
            client.conn.reset_stream(number, ErrorCodes.CANCEL)
        await client.flush()
        while client.ended is None and await client.hear():
            pass
        assert client.ended == ErrorCodes.ENHANCE_YOUR_CALM

    meet(does)


@pytest.mark.parametrize("kind", ["ping", "settings", "priority", "empty data"])
def test_frames_that_say_nothing_end_the_connection(kind: str) -> None:
    async def does(_site: Site, _here: House, client: Client) -> None:
        number = client.ask("PUT", "/v1", end=False)
        await client.flush()
        try:
            for _ in range(http2.IDLE_FRAMES + 50):
                if kind == "ping":
                    client.conn.ping(bytes(8))
                elif kind == "settings":
                    client.conn.update_settings({SettingCodes.HEADER_TABLE_SIZE: 4096})
                elif kind == "priority":
                    client.conn.prioritize(number, weight=16)
                else:
                    client.conn.send_data(number, b"")
            await client.flush()
            while client.ended is None and await client.hear():
                pass
        except ConnectionError:
            return
        assert client.ended == ErrorCodes.ENHANCE_YOUR_CALM

    meet(does)


def test_a_header_list_without_end_ends_the_connection() -> None:
    async def does(site: Site, _here: House, client: Client) -> None:
        number = client.ask("GET", "/v1", *[(f"x-{n}", "y" * 1000) for n in range(100)])
        (answer,) = await client.hear_out([number])
        assert answer.status == 0
        assert client.ended
        assert site.heads == []

    meet(does)


def test_a_client_that_never_opens_its_window_costs_a_window() -> None:
    """The server has a gigabyte to say; what is taken of it is bounded."""
    sent = [0]

    async def main() -> None:
        site = Site()

        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
            try:
                while sent[0] < 1_000_000_000:
                    writer.write(bytes(65536))
                    await asyncio.wait_for(writer.drain(), 1)
                    sent[0] += 65536
            except (TimeoutError, ConnectionError):
                pass

        await site.world.serve(GOOD_ADDRESS, 443, endless, site.certificates.server(HOST))
        async with site.house((rule(),)) as here:
            client = await Client.of(here)
            client.ask("GET", "/")
            await client.flush()
            before = -1
            while sent[0] != before or not sent[0]:
                before = sent[0]
                await asyncio.sleep(0.3)
            assert sent[0] < 30_000_000
            client.writer.close()

    run(main())


def test_requests_that_are_taken_back_at_once_leave_nothing() -> None:
    """Beside whole ones, so that they are never too many: their windows are opened again, and the connection grows idle."""

    async def does(_site: Site, here: House, client: Client) -> None:
        for _ in range(12):
            given_up = client.ask("PUT", "/v1", end=False)
            client.conn.send_data(given_up, bytes(16000))  # a quarter of the connection's window
            client.conn.reset_stream(given_up, ErrorCodes.CANCEL)
            (whole,) = await client.hear_out([client.ask("GET", "/v1")])
            assert whole.status == 200
        assert client.ended is None
        here.gateway.gate.limits = replace(here.gateway.gate.limits, idle=0.1)
        # The reader waits by the old limit until something comes.
        await client.hear_out([client.ask("GET", "/v1")])
        while await client.hear():
            pass
        client.writer.close()
        while here.gateway.gate.open:
            await asyncio.sleep(0)

    meet(does)


def test_a_request_that_is_given_up_while_it_is_written_cuts_nobody_else() -> None:
    """What the client does not read fills every buffer, and a write waits in the middle of a record."""

    async def main() -> None:
        site = Site()

        async def large(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while head := await head_of(reader):
                size = 30_000_000 if b"/large" in head else 5
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)

        await site.world.serve(GOOD_ADDRESS, 443, large, site.certificates.server(HOST))
        async with site.house((rule(),)) as here:
            client = await Client.of(here)
            client.conn.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100_000_000})
            client.conn.increment_flow_control_window(100_000_000)
            taken_back = client.ask("GET", "/large")
            await client.flush()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            kept = client.ask("GET", "/small")
            assert 0 < await settled(here) < 30_000_000
            client.conn.reset_stream(taken_back, ErrorCodes.CANCEL)
            client.writer.write(client.conn.data_to_send())
            await asyncio.sleep(0.2)
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            client.answers[taken_back].over = True
            (answer,) = await client.hear_out([kept])
            assert (answer.status, answer.body) == (200, b"x" * 5)
            client.writer.close()

    run(main())


def test_continuations_without_end_end_the_connection() -> None:
    async def does(site: Site, _here: House, client: Client) -> None:
        await client.flush()
        begin = frame(1, 0, 1, b"\x82\x87\x84")  # HEADERS, and neither END_HEADERS nor END_STREAM
        client.writer.write(begin + frame(9, 0, 1, b"") * 200)
        try:
            while client.ended is None and await client.hear():
                pass
        except ConnectionError:
            return
        assert client.ended
        assert site.heads == []

    meet(does)


@pytest.mark.parametrize("size", [4, 6])
def test_a_body_of_another_length_than_was_said_ends_the_connection(size: int) -> None:
    async def does(site: Site, here: House, client: Client) -> None:
        number = client.ask("PUT", "/v1", ("content-length", "5"), end=False)
        client.conn.send_data(number, bytes(size), end_stream=True)
        (answer,) = await client.hear_out([number])
        assert answer.status == 0
        assert client.ended
        assert len(site.bodies) == 0
        assert [event[4] for event in here.events if event[3] == "denied"] == ["not HTTP/2 (InvalidBodyLengthError)"]

    meet(does)


def test_a_server_that_never_reads_costs_what_is_on_the_way() -> None:
    async def main() -> None:
        site, stuck = Site(), asyncio.Event()

        async def deaf(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await stuck.wait()

        await site.world.serve(GOOD_ADDRESS, 443, deaf, site.certificates.server(HOST))
        async with site.house((rule(),)) as here:
            client = await Client.of(here)
            number = client.ask("PUT", "/", end=False)
            sending = asyncio.create_task(client.send(number, bytes(20_000_000)))
            # The kernel's buffers fill by and by; without a bound, all of it would be here at once.
            assert not (await asyncio.wait({sending}, timeout=1.5))[0]
            assert await settled(here) < 30_000_000
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            stuck.set()
            client.writer.close()

    run(main())


def test_limits_of_the_session_hold_for_it() -> None:
    async def does(_site: Site, here: House, client: Client) -> None:
        gate = here.gateway.gate
        gate.limits = replace(gate.limits, connections=1)
        (full,) = await client.hear_out([client.ask("GET", "/v1")])
        assert (full.status, json.loads(full.body)["reason"]) == (403, "more than 1 connections at a time")
        gate.limits = replace(gate.limits, connections=100, time=3.0)
        other = await Client.of(here)
        assert (await other.hear_out([other.ask("GET", "/v1")]))[0].status == 200
        while await other.hear():  # it may last that long, whatever it does
            pass
        other.writer.close()

    meet(does)


def test_the_table_of_headers_is_as_large_as_we_say(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[H2Connection] = []

    def seen(config: H2Configuration) -> H2Connection:
        made.append(H2Connection(config))
        return made[-1]

    monkeypatch.setattr(http2, "H2Connection", seen)

    async def does(_site: Site, here: House, client: Client) -> None:
        client.conn.update_settings({SettingCodes.HEADER_TABLE_SIZE: 1 << 30})
        (answer,) = await client.hear_out([client.ask("GET", "/v1")])
        assert answer.status == 200
        (answer,) = await client.hear_out([client.ask("GET", "/v1")])
        assert answer.status == 200
        assert [one.encoder.header_table_size for one in made] == [http2.HEADER_TABLE]

    meet(does)


def frame(kind: int, flags: int, stream: int, data: bytes) -> bytes:
    return len(data).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + data


FRAMES = st.builds(
    frame,
    st.integers(0, 12),
    st.sampled_from([0, 1, 4, 5, 8, 0x20, 255]) | st.integers(0, 255),
    st.sampled_from([0, 1, 1, 2, 3, 0x80000001]),
    st.binary(max_size=60) | st.sampled_from([bytes(4), bytes(6), bytes(8), b"\x82\x87\x84\x41\x01a"]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(FRAMES | st.binary(max_size=100), min_size=1, max_size=6), st.booleans())
def test_what_is_no_http2_ends_the_connection_and_the_next_one_is_served(said: list[bytes], preface: bool) -> None:
    async def main() -> None:
        site = Site()
        await site.open()
        async with site.house((rule(),)) as here:
            client = await Client.of(here)
            if preface:
                await client.flush()
            client.writer.write(b"".join(said))
            try:
                # A frame may announce more than ever comes: who waits for it is the client's to end.
                await asyncio.wait_for(client.reader.read(), 0.05)
            except (TimeoutError, OSError):
                pass
            client.writer.close()
            other = await Client.of(here)
            (answer,) = await other.hear_out([other.ask("GET", "/")])
            assert answer.status == 200
            other.writer.close()
            while here.gateway.gate.open:
                await asyncio.sleep(0.001)

    run(main())
