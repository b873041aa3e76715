"""Ways by which other sandboxes' networks were left (CVE-2025-66479, CVE-2026-24052 and their kin), each in two arms: what
was granted works, and the trick does not. The witness is the tests' own internet: who was resolved, who was dialled."""

# ruff: noqa: RUF001 - characters that look like others are what is tested here
from __future__ import annotations

import asyncio
import ssl
import struct

import pytest

from remit.sandbox.egress.addresses import canonical
from remit.sandbox.egress.loop import run
from tests.unit.egress_world import (
    PATIENCE,
    Certificates,
    House,
    World,
    echo,
    everything,
    head_of,
    house,
    refused,
    saying,
    until,
)

GOOD, EVIL = "203.0.113.10", "203.0.113.66"
ECHO, TLS, HTTP = 2222, 443, 80


async def world_of_two() -> World:
    """api.example.com and evil.example, each with an echo, a TLS and a plain HTTP server."""
    world = World()
    world.names = {"api.example.com": [GOOD], "evil.example": [EVIL]}
    certificates = Certificates()
    for address, name in ((GOOD, "api.example.com"), (EVIL, "evil.example")):
        await world.serve(address, ECHO, echo)
        await world.serve(address, TLS, saying(name.encode()), certificates.server(name))
        await world.serve(address, HTTP, saying(name.encode()))
    return world


async def socks(here: House, host: bytes, port: int, kind: int = 3) -> int:
    """The reply code of a SOCKS request, -1 for a closed connection."""
    reader, writer = await here.proxy()
    writer.write(b"\x05\x01\x00")
    assert await reader.readexactly(2) == b"\x05\x00"
    address = bytes((len(host),)) + host if kind == 3 else host
    writer.write(bytes((5, 1, 0, kind)) + address + port.to_bytes(2, "big"))
    try:
        return (await reader.readexactly(10))[1]
    except asyncio.IncompleteReadError:
        return -1
    finally:
        writer.close()


async def connect(here: House, target: str, host: str | None = None) -> int:
    """The status of a CONNECT."""
    reader, writer = await here.proxy()
    writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {host or target}\r\n\r\n".encode())
    try:
        return int((await reader.readuntil(b"\r\n")).split()[1])
    finally:
        writer.close()


def nobody_else(world: World) -> None:
    """Only the granted name was ever resolved or dialled."""
    assert set(world.asked) <= {"api.example.com"}
    assert {address for address, _ in world.dialled} <= {GOOD}


def test_an_empty_list_allows_nothing() -> None:
    async def main() -> None:
        world = await world_of_two()
        async with house(world, []) as here:
            assert await connect(here, f"api.example.com:{ECHO}") == 403
            assert await socks(here, b"api.example.com", ECHO) == 2
            reader, writer = await here.transparent(GOOD, ECHO)
            assert await refused(reader)
            writer.close()
            assert (world.asked, world.dialled) == ([], [])

    run(main())


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example\0.api.example.com",
        b"evil.example\0api.example.com",
        b"api.example.com\0",
        b"api.example.com.evil.example",
        b"evilapi.example.com",
        b"api.example.com@evil.example",
        b"evil.example#api.example.com",
        b"evil.example/api.example.com",
        b"evil.example api.example.com",
        b"evil.example%00.api.example.com",
        b"evil.example:80:api.example.com",
        "api.exаmple.com".encode(),  # a Cyrillic a
        b"xn--api-.example.com",
        b"",
        b".",
        b"..",
        b"api..example.com",
        b"*.example.com",
        b"*",
        b"api.example.com..",
        b"a" * 255,
        b"[::1]",
        b"[api.example.com]",
    ],
)
def test_names_that_only_look_like_the_granted_one(host: bytes) -> None:
    async def main() -> None:
        world = await world_of_two()
        async with house(world, [f"api.example.com:{ECHO}/tcp"]) as here:
            assert await socks(here, b"api.example.com", ECHO) == 0
            assert await socks(here, host, ECHO) in (1, 2)
            nobody_else(world)

    run(main())


@pytest.mark.parametrize("host", ["API.EXAMPLE.COM", "Api.Example.Com.", "api.example.com."])
def test_spellings_of_the_granted_name_are_it(host: str) -> None:
    async def main() -> None:
        world = await world_of_two()
        async with house(world, [f"api.example.com:{ECHO}/tcp"]) as here:
            assert await socks(here, host.encode(), ECHO) == 0
            assert await connect(here, f"{host}:{ECHO}") == 200
            assert world.asked == ["api.example.com"]

    run(main())


@pytest.mark.parametrize(
    ("granted", "asked", "works"),
    [
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "::ffff:10.1.2.3", True),
        ("10.1.2.3", "10.1.2.4", False),
        ("10.1.2.3", "::10.1.2.3", False),
        ("10.1.2.3", "64:ff9b::10.1.2.3", False),
        ("10.1.2.3", "2002:a01:203::1", False),
        ("10.1.2.3", "012.1.2.3", False),
        ("10.1.2.3", "0x0a.1.2.3", False),
        ("10.1.2.3", "167838211", False),
        ("10.1.2.3", "10.1.515", False),
        ("2001:db8::1", "2001:db8::1", True),
        ("2001:db8::1", "2001:db8:0:0:0:0:0:1", True),
        ("2001:db8::1", "2001:db8::2", False),
        ("2001:db8::1", "fe80::1%lo", False),
    ],
)
def test_addresses_and_their_odd_spellings(granted: str, asked: str, works: bool) -> None:
    async def main() -> None:
        world = World()
        await world.serve(granted, ECHO, echo)
        cidr = f"[{granted}/128]" if ":" in granted else f"{granted}/32"
        async with house(world, [f"{cidr}:{ECHO}/tcp"]) as here:
            shown = f"[{asked}]" if ":" in asked else asked
            status = await connect(here, f"{shown}:{ECHO}")
            assert (status == 200) == works
            assert {address for address, _ in world.dialled} <= {granted}

    run(main())


def test_straight_to_an_address_of_a_granted_name() -> None:
    """An allowed name is not an allowed address: what is not resolved here could be anybody's."""

    async def main() -> None:
        world = await world_of_two()
        async with house(world, [f"api.example.com:{ECHO}/tcp"]) as here:
            reader, writer = await here.transparent(here.synthetic("api.example.com"), ECHO)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            writer.close()
            for host in (GOOD, EVIL, "198.18.250.9"):
                reader, writer = await here.transparent(host, ECHO)
                assert await refused(reader)
                writer.close()
            assert await connect(here, f"{GOOD}:{ECHO}") == 403
            assert await socks(here, bytes([203, 0, 113, 10]), ECHO, kind=1) == 2
            nobody_else(world)

    run(main())


def test_a_socks_client_that_resolved_the_name_itself() -> None:
    async def main() -> None:
        world = await world_of_two()
        async with house(world, [f"api.example.com:{ECHO}/tcp"]) as here:
            packed = bytes(int(part) for part in here.synthetic("api.example.com").split("."))
            assert await socks(here, packed, ECHO, kind=1) == 0
            evil = bytes(int(part) for part in here.synthetic("evil.example").split("."))
            assert await socks(here, evil, ECHO, kind=1) == 2
            nobody_else(world)

    run(main())


@pytest.mark.parametrize("port", [1, 22, 25, 80, 443, 2221])
def test_odd_ports(port: int) -> None:
    async def main() -> None:
        world = await world_of_two()
        async with house(world, [f"api.example.com:{ECHO}/tcp"]) as here:
            assert await connect(here, f"api.example.com:{ECHO}") == 200
            assert await connect(here, f"api.example.com:{port}") == 403
            nobody_else(world)

    run(main())


@pytest.mark.parametrize(
    "target", ["api.example.com", "api.example.com:", "api.example.com:0", "api.example.com:65536", ":443"]
)
def test_connect_needs_a_port(target: str) -> None:
    async def main() -> None:
        world = await world_of_two()
        async with house(world, ["api.example.com:*/tcp"]) as here:
            assert await connect(here, target) == 400
            assert world.asked == []

    run(main())


def test_connect_with_another_host() -> None:
    async def main() -> None:
        world = await world_of_two()
        async with house(world, [f"api.example.com:{ECHO}/tcp"]) as here:
            assert await connect(here, f"api.example.com:{ECHO}", f"api.example.com:{ECHO}") == 200
            assert await connect(here, f"api.example.com:{ECHO}", "evil.example") == 403

    run(main())


@pytest.mark.parametrize(
    ("behind", "grant", "works"),
    [
        ("203.0.113.10", "", True),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "0.0.0.0/0:2222", False),
        ("127.0.0.1", "127.0.0.1:2222", True),
        ("10.0.0.8", "", False),
        ("10.0.0.8", "10.0.0.0/8:2222", True),
        ("10.0.0.8", "10.0.0.0/8:2223", False),
        ("10.0.0.8", "0.0.0.0/0:2222", True),
        ("169.254.169.254", "", False),
        ("169.254.169.254", "0.0.0.0/0:2222", False),
        ("169.254.169.254", "169.254.0.0/16:2222", False),
        ("169.254.169.254", "169.254.169.254:2222", True),
        ("192.168.1.1", "", False),
        ("172.16.0.1", "", False),
        ("100.64.0.1", "", False),
        ("0.0.0.0", "", False),
        ("224.0.0.1", "", False),
        ("198.18.0.1", "", False),
        ("::1", "", False),
        ("fe80::1", "", False),
        ("fd00::1", "", False),
        ("fd00::1", "[fd00::/8]:2222", True),
        ("::ffff:10.0.0.8", "", False),
        ("::ffff:203.0.113.10", "", True),
        ("64:ff9b::10.0.0.8", "", False),
        ("64:ff9b::203.0.113.10", "", True),
        ("2002:a00:8::1", "", False),
        ("::10.0.0.8", "", False),
    ],
)
def test_a_granted_name_that_points_elsewhere(behind: str, grant: str, works: bool) -> None:
    """SSRF and rebinding: whoever owns the name says where it points."""

    async def main() -> None:
        world = World()
        world.names = {"api.example.com": [behind]}
        await world.serve(str(canonical(behind)), ECHO, echo)
        rules = [f"api.example.com:{ECHO}/tcp"] + ([f"{grant}/tcp"] if grant else [])
        async with house(world, rules) as here:
            assert (await connect(here, f"api.example.com:{ECHO}") == 200) == works
            assert bool(world.dialled) == works

    run(main())


def test_rebinding_between_check_and_connection() -> None:
    """What was checked is what is connected: the resolver is asked once, and changes its mind after."""

    async def main() -> None:
        world = await world_of_two()
        answers = iter([[GOOD], ["127.0.0.1"], ["127.0.0.1"]])

        async def changing(name: str) -> list[str]:
            world.asked.append(name)
            return next(answers)

        world.resolve = changing  # type: ignore[method-assign]
        async with house(world, [f"api.example.com:{ECHO}/tcp"]) as here:
            assert await connect(here, f"api.example.com:{ECHO}") == 200
            here.gateway.gate.connector._known.clear()  # pyright: ignore[reportPrivateUsage]
            assert await connect(here, f"api.example.com:{ECHO}") == 403
            assert world.dialled == [(GOOD, ECHO)]

    run(main())


def test_of_several_addresses_only_the_good_ones_are_tried() -> None:
    async def main() -> None:
        world = await world_of_two()
        world.names["api.example.com"] = ["127.0.0.1", "10.0.0.1", GOOD, "::1"]
        async with house(world, [f"api.example.com:{ECHO}/tcp"]) as here:
            assert await connect(here, f"api.example.com:{ECHO}") == 200
            assert world.dialled == [(GOOD, ECHO)]

    run(main())


def test_the_hosts_loopback() -> None:
    async def main() -> None:
        world = World()
        await world.serve("127.0.0.1", ECHO, echo)
        async with house(world, ["0.0.0.0/0:*/tcp", "[::/0]:*/tcp"]) as here:
            for host in ("127.0.0.1", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "127.1.1.1"):
                assert await connect(here, f"{host}:{ECHO}") == 403
            assert await connect(here, "localhost:2222") == 403
            assert world.dialled == []
        world = World()
        await world.serve("127.0.0.1", ECHO, echo)
        async with house(world, [f"127.0.0.1/32:{ECHO}/tcp"]) as here:
            assert await connect(here, f"127.0.0.1:{ECHO}") == 200

    run(main())


# --- TLS --------------------------------------------------------------------------------------------------------------


async def tls_status(here: House, host: str, port: int, sni: str | None) -> bool:
    """Whether a transparent TLS connection to ``host`` with this SNI is let through."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await here.transparent(here.synthetic(host), port)
    below, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(below, out, server_hostname=sni).do_handshake()
    hello = out.read()
    for at in range(0, len(hello), 100):  # in pieces: the check must see the whole
        writer.write(hello[at : at + 100])
        await writer.drain()
    try:
        return not await refused(reader)
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("port", "sni", "works"),
    [
        (443, "api.example.com", True),
        (443, "API.Example.com", True),
        (443, "evil.example", False),
        (443, None, False),
        (443, "api.example.com.evil.example", False),
        (8443, "api.example.com", True),
        (8443, "evil.example", False),
        (8443, None, True),  # it says no other name
    ],
)
def test_sni(port: int, sni: str | None, works: bool) -> None:
    async def main() -> None:
        world = World()
        world.names = {"api.example.com": [GOOD]}
        server = Certificates().server("api.example.com")
        await world.serve(GOOD, port, saying(b"x"), server)
        async with house(world, [f"api.example.com:{port}/tcp"]) as here:
            assert await tls_status(here, "api.example.com", port, sni) == works

    run(main())


def test_sni_that_is_not_the_connect_target() -> None:
    async def main() -> None:
        world = await world_of_two()
        certificates = Certificates()
        async with house(world, ["api.example.com:443/tcp", "evil.example:444/tcp"]) as here:
            context = certificates.client()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            for name, works in (("api.example.com", True), ("evil.example", False)):
                reader, writer = await here.proxy()
                writer.write(b"CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n\r\n")
                assert (await head_of(reader)).startswith(b"HTTP/1.1 200")
                try:
                    await writer.start_tls(context, server_hostname=name)
                    assert works
                except OSError:
                    assert not works
                writer.close()

    run(main())


@pytest.mark.parametrize(
    ("first", "works"),
    [
        (b"SSH-2.0-OpenSSH_9.0\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n", False),
        (b"\x16\x03\x01\x00\x05hello", False),
        (b"\x80\x2e\x01\x03\x01", False),
        (b"SSX", False),
        (b"\0" * 64, False),
    ],
)
def test_what_else_is_said_on_port_443(first: bytes, works: bool) -> None:
    async def main() -> None:
        world = World()
        world.names = {"api.example.com": [GOOD]}
        await world.serve(GOOD, TLS, echo)
        async with house(world, ["api.example.com:443/tcp"]) as here:
            reader, writer = await here.transparent(here.synthetic("api.example.com"), TLS)
            writer.write(first)
            assert await refused(reader) != works
            writer.close()
        world = World()
        await world.serve(GOOD, TLS, echo)
        async with house(world, [f"{GOOD}/32:443/tcp"]) as here:  # granted as an address: nobody's name
            reader, writer = await here.transparent(GOOD, TLS)
            writer.write(first)
            assert await reader.readexactly(len(first)) == first
            writer.close()

    run(main())


def test_a_server_that_speaks_first() -> None:
    async def main() -> None:
        async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 ready\r\n")
            writer.write(await reader.readline())

        world = World()
        world.names = {"mail.example.com": [GOOD]}
        await world.serve(GOOD, 25, banner)
        async with house(world, ["mail.example.com:25/tcp"]) as here:
            reader, writer = await here.transparent(here.synthetic("mail.example.com"), 25)
            assert await reader.readline() == b"220 ready\r\n"
            writer.write(b"QUIT\r\n")
            assert await reader.readline() == b"QUIT\r\n"
            writer.close()

    run(main())


# --- HTTP -------------------------------------------------------------------------------------------------------------


def request(host: str, more: str = "", method: str = "GET", target: str = "/") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()


OK, NO = b"HTTP/1.1 200", b"HTTP/1.1 40"


@pytest.mark.parametrize(
    ("said", "answers"),
    [
        (request("api.example.com"), [OK]),
        (request("api.example.com") * 3, [OK, OK, OK]),
        (request("API.example.com.:80"), [OK]),
        (
            request(
                "api.example.com", "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAM\r\n"
            ),
            [OK],
        ),
        (request("evil.example"), [NO]),
        (request("api.example.com") + request("evil.example"), [OK, NO]),
        (request("api.example.com:81"), [NO]),
        (request("api.example.com", "Host: evil.example\r\n"), [NO]),
        (request("evil.example", "Host: api.example.com\r\n"), [NO]),
        (request("evil.example@api.example.com"), [NO]),
        (request("api.example.com evil.example"), [NO]),
        (b"GET / HTTP/1.1\r\n\r\n", [NO]),
        (b"GET / HTTP/1.0\r\n\r\n", [NO]),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n", [NO]),
        (b"GET / HTTP/1.1\nHost: api.example.com\n\n", [OK]),
        (b"GET / HTTP/2.0\r\nHost: api.example.com\r\n\r\n", [NO]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [NO]),
        (b"CONNECT evil.example:80 HTTP/1.1\r\nHost: evil.example:80\r\n\r\n", [NO]),
        (b"\x16\x03\x01\x00\x05hello", [NO]),
        (
            request("api.example.com", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "POST") + b"0\r\n\r\n",
            [NO],
        ),
        (request("api.example.com", "Content-Length: 4\r\nContent-Length: 5\r\n", "POST") + b"abcde", [NO]),
        (request("api.example.com", "Content-Length: +4\r\n", "POST") + b"abcd", [NO]),
        (request("api.example.com", "Transfer-Encoding: chunked, identity\r\n", "POST") + b"0\r\n\r\n", [NO]),
        (request("api.example.com", "Transfer-Encoding: xchunked\r\n", "POST") + b"0\r\n\r\n", [NO]),
        (request("api.example.com", "Transfer-Encoding : chunked\r\n", "POST") + b"0\r\n\r\n", [NO]),
        (request("api.example.com", "Connection: close, host\r\n"), [NO]),
        (request("api.example.com", "Content-Length: 4\r\n", "POST") + b"abcd" + request("api.example.com"), [OK, OK]),
    ],
)
def test_plain_http_by_name(said: bytes, answers: list[bytes]) -> None:
    """Fronting and smuggling: every request on the connection says the granted name, in one framing."""

    async def main() -> None:
        heads: list[bytes] = []

        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while head := await head_of(reader):
                heads.append(head.lower())
                length = 4 if b"content-length: 4" in head.lower() else 0
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        world = World()
        world.names = {"api.example.com": [GOOD]}
        await world.serve(GOOD, HTTP, server)
        async with house(world, ["api.example.com:80/tcp"]) as here:
            reader, writer = await here.transparent(here.synthetic("api.example.com"), HTTP)
            writer.write(said)
            for expected in answers:
                head = await head_of(reader)
                assert head.startswith(expected)
            writer.close()
        assert len(heads) == answers.count(OK)
        for head in heads:
            assert b"\r\nhost: api.example.com\r\n" in head
            assert b"upgrade" not in head
            assert b"http2-settings" not in head

    run(main())


@pytest.mark.parametrize(
    ("target", "host", "works"),
    [
        ("http://api.example.com/", "api.example.com", True),
        ("http://api.example.com", "api.example.com", True),
        ("http://api.example.com:80/x?y", "api.example.com:80", True),
        ("http://api.example.com/", "evil.example", False),
        ("http://evil.example/", "api.example.com", False),
        ("http://evil.example/", "evil.example", False),
        ("http://api.example.com@evil.example/", "evil.example", False),
        ("http://evil.example#@api.example.com/", "api.example.com", False),
        ("http://evil.example\\@api.example.com/", "api.example.com", False),
        ("http://evil.example?api.example.com/", "api.example.com", False),
        ("https://api.example.com/", "api.example.com", False),
        ("ftp://api.example.com/", "api.example.com", False),
        ("//api.example.com/", "api.example.com", False),
        ("/", "api.example.com", False),
        ("http:///", "api.example.com", False),
    ],
)
def test_absolute_form(target: str, host: str, works: bool) -> None:
    async def main() -> None:
        world = await world_of_two()
        async with house(world, ["api.example.com:80/tcp"]) as here:
            reader, writer = await here.proxy()
            writer.write(request(host, target=target))
            assert (await head_of(reader)).startswith(OK if works else NO)
            writer.close()
            nobody_else(world)

    run(main())


def test_http_on_another_port_must_say_the_name_too() -> None:
    async def main() -> None:
        world = World()
        world.names = {"api.example.com": [GOOD]}
        await world.serve(GOOD, 8080, saying(b"hello"))
        async with house(world, ["api.example.com:8080/tcp"]) as here:
            for host, expected in (("api.example.com:8080", OK), ("evil.example", NO)):
                reader, writer = await here.transparent(here.synthetic("api.example.com"), 8080)
                writer.write(request(host))
                assert (await head_of(reader)).startswith(expected)
                writer.close()
            reader, writer = await here.transparent(here.synthetic("api.example.com"), 8080)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert await refused(reader)
            writer.close()

    run(main())


def test_redirects_are_new_destinations() -> None:
    async def main() -> None:
        async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head_of(reader)
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n")

        world = await world_of_two()
        world.places.pop((GOOD, HTTP))
        await world.serve(GOOD, HTTP, redirect)
        async with house(world, ["api.example.com:80/tcp"]) as here:
            reader, writer = await here.proxy()
            writer.write(request("api.example.com", target="http://api.example.com/"))
            assert b"302 Found" in await head_of(reader)
            writer.write(request("evil.example", target="http://evil.example/"))
            assert (await head_of(reader)).startswith(NO)
            writer.close()
            nobody_else(world)

    run(main())


# --- DNS --------------------------------------------------------------------------------------------------------------


def query(name: bytes, kind: int = 1, identity: int = 7) -> bytes:
    labels = b"".join(bytes((len(label),)) + label for label in name.split(b".") if label)
    return struct.pack("!6H", identity, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


@pytest.mark.parametrize("tcp", [False, True])
def test_dns_asks_nobody(tcp: bool) -> None:
    """Tunnelling: no query for any name reaches a resolver, granted or not; only a connection to a granted one does."""

    async def main() -> None:
        world = await world_of_two()
        async with house(world, [f"api.example.com:{ECHO}/tcp", "*.wild.example:443/tcp"]) as here:

            async def ask(data: bytes) -> bytes:
                if tcp:
                    reader, writer = await asyncio.open_connection("127.0.0.1", here.ports[":dns-tcp"])
                    writer.write(len(data).to_bytes(2, "big") + data)
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    answer = await reader.readexactly(length)
                    writer.close()
                    return answer
                loop = asyncio.get_running_loop()
                got: asyncio.Future[bytes] = loop.create_future()

                class Client(asyncio.DatagramProtocol):
                    def datagram_received(self, data: bytes, addr: object) -> None:
                        got.set_result(data)

                place = ("127.0.0.1", here.ports[":dns-udp"])
                transport, _ = await loop.create_datagram_endpoint(Client, remote_addr=place)
                transport.sendto(data)
                async with asyncio.timeout(PATIENCE):
                    answer = await got
                transport.close()
                return answer

            for name, code, answers in (
                (b"api.example.com", 0, 1),
                (b"API.example.COM", 0, 1),
                (b"secret-data.wild.example", 0, 1),
                (b"wild.example", 3, 0),
                (b"evil.example", 3, 0),
                (b"c2VjcmV0.evil.example", 3, 0),
                (b"x.api.example.com", 3, 0),
            ):
                reply = await ask(query(name))
                assert (reply[3] & 15, int.from_bytes(reply[6:8], "big")) == (code, answers)
            assert world.asked == []
            await until(lambda: ("evil.example", "denied") in here.verdicts("resolve"))

    run(main())


# --- calls ------------------------------------------------------------------------------------------------------------


def test_a_calls_grant_holds_for_the_call_and_never_above_the_session() -> None:
    async def main() -> None:
        world = await world_of_two()
        async with house(world, [f"api.example.com:{ECHO}/tcp", f"evil.example:{ECHO}/tcp"]) as here:
            here.listen("narrow", [f"api.example.com:{ECHO}/tcp"])
            here.listen("wide", [f"api.example.com:{ECHO}/tcp", f"other.example:{ECHO}/tcp", f"{GOOD}/32:{ECHO}/tcp"])
            await asyncio.sleep(0)

            async def reaches(call: str, host: str) -> bool:
                reader, writer = await here.transparent(host, ECHO, call)
                writer.write(b"x")
                try:
                    return not await refused(reader)
                finally:
                    writer.close()

            await until(lambda: len(here.gateway._live) == 3)  # pyright: ignore[reportPrivateUsage]
            api, evil = here.synthetic("api.example.com"), here.synthetic("evil.example")
            assert [await reaches(call, api) for call in ("", "narrow", "wide")] == [True, True, True]
            assert [await reaches(call, evil) for call in ("", "narrow", "wide")] == [True, False, False]
            assert not await reaches("wide", here.synthetic("other.example"))
            assert not await reaches("wide", GOOD)
            calls = {(event[0], event[2], event[3]) for event in here.events if event[3] == "denied"}
            assert ("narrow", f"evil.example:{ECHO}/tcp", "denied") in calls
            assert ("wide", f"other.example:{ECHO}/tcp", "denied") in calls

            reader, writer = await here.transparent(api, ECHO, "narrow")
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            here.send(("close", "narrow"))
            assert await everything(reader) == b""
            writer.close()
            with pytest.raises(ConnectionError):
                await here.transparent(api, ECHO, "narrow")

    run(main())


def test_a_dead_gateway_is_no_network() -> None:
    async def main() -> None:
        world = await world_of_two()
        async with house(world, [f"api.example.com:{ECHO}/tcp"]) as here:
            reader, writer = await here.transparent(here.synthetic("api.example.com"), ECHO)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            place = here.synthetic("api.example.com")
        assert await everything(reader) == b""
        writer.close()
        with pytest.raises(ConnectionError):
            await here.transparent(place, ECHO)

    run(main())
