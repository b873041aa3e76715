"""The gateway at its sockets: granted and not granted, transparent and by proxy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remit.sandbox.egress.connect import hosts_file, system_resolver
from remit.sandbox.egress.loop import run
from tests.unit.egress_world import Certificates, World, echo, everything, house, refused, saying, until


def test_a_granted_name_passes_and_another_does_not() -> None:
    async def main() -> None:
        world = World()
        world.names = {"api.example.com": ["203.0.113.10"], "evil.example": ["203.0.113.66"]}
        await world.serve("203.0.113.10", 2222, echo)
        await world.serve("203.0.113.66", 2222, echo)
        async with house(world, ["api.example.com:2222/tcp"]) as here:
            reader, writer = await here.transparent(here.synthetic("api.example.com"), 2222)
            writer.write(b"hello")
            writer.write_eof()
            assert await everything(reader) == b"hello"
            writer.close()

            reader, writer = await here.transparent(here.synthetic("evil.example"), 2222)
            assert await refused(reader)
            writer.close()
            await until(lambda: ("evil.example:2222/tcp", "denied") in here.verdicts())
            assert world.asked == ["api.example.com"]
            assert here.verdicts() == [
                ("api.example.com:2222/tcp", "allowed"),
                ("api.example.com:2222/tcp", "ended"),
                ("evil.example:2222/tcp", "denied"),
            ]

    run(main())


def test_proxy_connect_and_plain() -> None:
    async def main() -> None:
        world = World()
        certificates = Certificates()
        world.names = {"api.example.com": ["203.0.113.10"]}
        await world.serve("203.0.113.10", 443, saying(b"over TLS"), certificates.server("api.example.com"))
        await world.serve("203.0.113.10", 80, saying(b"plain"))
        async with house(world, ["api.example.com:443/tcp", "api.example.com:80/tcp"]) as here:
            reader, writer = await here.proxy()
            writer.write(b"CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await writer.start_tls(certificates.client(), server_hostname="api.example.com")
            writer.write(b"GET / HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n\r\n")
            assert b"over TLS" in await reader.readuntil(b"TLS")
            writer.close()

            reader, writer = await here.proxy()
            writer.write(b"GET http://api.example.com/x HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n\r\n")
            assert b"plain" in await everything(reader)
            writer.close()

            reader, writer = await here.proxy()
            writer.write(b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n")
            head, _, body = (await everything(reader)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 403")
            told = json.loads(body)
            assert told["missing"] == {"key": "network.connect", "value": '["evil.example:443"]'}
            assert "--connect evil.example:443" in told["next_steps"][0]
            writer.close()

    run(main())


@pytest.mark.parametrize("host", [b"api.example.com", b"\x01"])
def test_socks(host: bytes) -> None:
    async def main() -> None:
        world = World()
        world.names = {"api.example.com": ["203.0.113.10"]}
        await world.serve("203.0.113.10", 2222, echo)
        async with house(world, ["api.example.com:2222/tcp"]) as here:
            reader, writer = await here.proxy()
            writer.write(b"\x05\x01\x00")
            assert await reader.readexactly(2) == b"\x05\x00"
            writer.write(b"\x05\x01\x00\x03" + bytes((len(host),)) + host + (2222).to_bytes(2, "big"))
            code = (await reader.readexactly(10))[1]
            if host == b"api.example.com":
                assert code == 0
                writer.write(b"ping")
                assert await reader.readexactly(4) == b"ping"
            else:
                assert code == 2
            writer.close()

    run(main())


def test_the_next_address_is_tried_where_one_does_not_answer() -> None:
    async def main() -> None:
        world = World()
        world.names = {"api.example.com": ["2001:db8::1", "203.0.113.9", "203.0.113.10", "203.0.113.10"]}
        await world.serve("203.0.113.10", 2222, echo)
        async with house(world, ["api.example.com:2222/tcp"]) as here:
            reader, writer = await here.transparent(here.synthetic("api.example.com"), 2222)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            writer.close()
            assert {address for address, _ in world.dialled} == {"2001:db8::1", "203.0.113.9", "203.0.113.10"}
            world.places.clear()
            reader, writer = await here.transparent(here.synthetic("api.example.com"), 2222)
            assert await refused(reader)
            writer.close()
            await until(lambda: ("api.example.com:2222/tcp", "failed") in here.verdicts())

    run(main())


def test_a_name_that_is_granted_and_does_not_exist_has_failed() -> None:
    async def main() -> None:
        world = World()
        async with house(world, ["api.example.com:2222/tcp"]) as here:
            reader, writer = await here.proxy()
            writer.write(b"CONNECT api.example.com:2222 HTTP/1.1\r\nHost: api.example.com:2222\r\n\r\n")
            assert (await everything(reader)).startswith(b"HTTP/1.1 502")
            writer.close()
            await until(lambda: here.verdicts() == [("api.example.com:2222/tcp", "failed")])

    run(main())


def test_the_hosts_resolver_is_asked_for_that_name_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search list would make a granted name into another: the dot behind it says that it is whole."""
    asked: list[str] = []

    def getaddrinfo(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(2, 1, 6, "", ("203.0.113.10", 0)), (10, 1, 6, "", ("2001:db8::1", 0, 0, 0))]

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    for name in ("api.remit-tests.example", "remit-tests-single"):
        assert run(system_resolver(name)) == ["203.0.113.10", "2001:db8::1"]
    assert asked == ["api.remit-tests.example.", "remit-tests-single"]


def test_the_hosts_file(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(
        "# a comment\n\n10.0.0.5 DB.example.com db # more\n::1 localhost\n10.0.0.6\tdb.example.com.\nbroken\n"
    )
    assert hosts_file("db.example.com", str(file)) == ["10.0.0.5", "10.0.0.6"]
    assert hosts_file("db", str(file)) == ["10.0.0.5"]
    assert hosts_file("more", str(file)) == []
    assert hosts_file("db", str(tmp_path / "none")) == []
