"""Bytes of every kind at every door of a gateway: it answers or hangs up, keeps nothing, and serves the next one."""

from __future__ import annotations

import asyncio
import struct
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.sandbox.egress.loop import run
from tests.unit.egress_world import PATIENCE, House, World, echo, head_of, house, saying, until

GOOD, NAME = "203.0.113.10", "api.example.com"
RULES = [f"{NAME}:{port}/tcp" for port in (80, 443, 8080)]
DOORS = ("proxy", "80", "443", "8080", "dns-tcp")

HOSTS = [NAME, "evil.example", NAME.upper(), f"{NAME}\0", "127.0.0.1", "[::1]", "", "*", "a" * 300]
LINES = st.builds(
    "{} {} HTTP/{}\r\n".format,
    st.sampled_from(["GET", "POST", "CONNECT", "PRI", "get", "G\0T", ""]),
    st.sampled_from(["/", "*", f"http://{NAME}/", f"{NAME}:443", f"{NAME}:8080", "http://", "//", "/%", ":1", ""]),
    st.sampled_from(["1.1", "1.0", "2.0", "", "1.1 "]),
)
FIELDS = st.builds(
    "{}{}{}\r\n".format,
    st.sampled_from(["Host", "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "X\0", "", " Host"]),
    st.sampled_from([": ", ":", " : ", ""]),
    st.sampled_from([*HOSTS, "0", "5", "-1", "9" * 30, "chunked", "gzip, chunked", "close", "h2c", "\x7f"]),
)


def http(line: str, fields: list[str], end: str, body: bytes) -> bytes:
    return (line + "".join(fields) + end).encode("latin-1") + body


def socks(methods: bytes, command: int, kind: int, host: bytes, port: bytes) -> bytes:
    size = bytes((len(host),)) if kind == 3 else b""
    return b"\x05" + bytes((len(methods),)) + methods + bytes((5, command, 0, kind)) + size + host + port


def record(kind: int, version: int, length: int, body: bytes) -> bytes:
    return bytes((kind, 3, version)) + struct.pack(">H", length) + body


def counted(length: int | None, body: bytes) -> bytes:
    return struct.pack(">H", len(body) if length is None else length) + body


HTTP = st.builds(
    http,
    LINES,
    st.lists(FIELDS, max_size=5),
    st.sampled_from(["\r\n", "\n", ""]),
    st.binary(max_size=40) | st.sampled_from([b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffff\r\n", b"0\r\n"]),
)
SOCKS = st.builds(
    socks,
    st.binary(max_size=4),
    st.sampled_from([1, 1, 2, 3, 9]),
    st.sampled_from([1, 3, 3, 4, 7]),
    st.sampled_from([host.encode()[:255] for host in HOSTS]) | st.binary(max_size=20),
    st.binary(max_size=2),
)
TLS = st.builds(
    record, st.sampled_from([22, 22, 21, 23]), st.integers(0, 5), st.integers(0, 65535), st.binary(max_size=200)
)
QUERY = st.builds(counted, st.none() | st.integers(0, 65535), st.binary(max_size=80))
NOISE = st.binary(max_size=200) | HTTP | SOCKS | TLS | QUERY
VISITS = st.lists(st.tuples(st.sampled_from(DOORS), st.lists(NOISE, max_size=3), st.booleans()), min_size=1, max_size=8)


async def ready() -> World:
    world = World()
    world.names = {NAME: [GOOD]}
    await world.serve(GOOD, 80, saying(b"plain"))
    await world.serve(GOOD, 443, echo)
    await world.serve(GOOD, 8080, echo)
    return world


async def at(here: House, door: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if door.isdigit():
        return await here.transparent(here.synthetic(NAME), int(door))
    return await asyncio.open_connection("127.0.0.1", here.ports[f":{door}"])


async def visit(here: House, door: str, pieces: list[bytes], ends: bool) -> None:
    reader, writer = await at(here, door)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if ends:
            writer.write_eof()
            async with asyncio.timeout(PATIENCE):
                while await reader.read(65536):
                    pass
    except ConnectionError:
        pass
    finally:
        writer.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(VISITS)
def test_noise_at_every_door(visits: list[tuple[str, list[bytes], bool]]) -> None:
    """HTTP, CONNECT, SOCKS5, DNS and TLS, well-formed in part: whoever ends is ended, and nobody else was spoken with."""

    async def main() -> None:
        world = await ready()
        async with house(world, RULES, limits={"first": 2000}) as here:
            await asyncio.gather(*[visit(here, *one) for one in visits])
            await until(lambda: here.gateway.gate.open == 0)
            reader, writer = await here.proxy()
            writer.write(f"GET http://{NAME}/ HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            assert (await head_of(reader)).startswith(b"HTTP/1.1 200")
            writer.close()
            assert set(world.asked) <= {NAME}
            assert {address for address, _ in world.dialled} <= {GOOD}
            assert here.messages == []

    run(main())


@pytest.mark.parametrize(
    ("door", "start"),
    [
        ("proxy", b"CONNECT "),
        ("proxy", f"CONNECT {NAME}:443 HTTP/1.1\r\nX: ".encode()),
        ("proxy", b"GET http://"),
        ("proxy", f"GET http://{NAME}/ HTTP/1.1\r\nHost: {NAME}\r\nX: ".encode()),
        ("80", b"GET /"),
        ("80", f"POST / HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n1;".encode()),
        ("443", b"\x16\x03\x01\xff\xff"),
        ("443", b"\x16\x03\x01\x40\x00\x01\xff\xff\xff"),
        ("8080", b"GET /"),
        ("dns-tcp", b"\xff\xff"),
    ],
)
def test_a_word_without_an_end(door: str, start: bytes) -> None:
    """Whoever reads until something is whole stops somewhere, and long before memory does."""

    async def main() -> None:
        world = await ready()
        async with house(world, RULES) as here:
            tracemalloc.start()
            try:
                reader, writer = await at(here, door)
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
                writer.write(start)
                ended = asyncio.create_task(reader.read(-1))
                try:
                    async with asyncio.timeout(PATIENCE):
                        for _ in range(256):  # 16 MiB
                            writer.write(b"1" * 65536)
                            await writer.drain()
                            if ended.done():
                                break
                        await ended
                except ConnectionError:
                    pass
                assert tracemalloc.get_traced_memory()[1] - before < 4 << 20
            finally:
                tracemalloc.stop()
            writer.close()
            ended.cancel()
            await until(lambda: here.gateway.gate.open == 0)

    run(main())
