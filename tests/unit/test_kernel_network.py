"""Who listens: what sock_diag says is what proc's tables say."""

from __future__ import annotations

import errno
import socket

import pytest

from remit.sandbox.kernel import netlink, network, sockets


@pytest.mark.parametrize(
    ("host", "only"), [("127.0.0.1", 0), ("127.0.0.2", 0), ("0.0.0.0", 0), ("::1", 1), ("::", 1), ("::", 0)]
)
def test_who_listens(host: str, only: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as server:
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        server.bind((host, 0))
        port: int = server.getsockname()[1]
        assert not network.listens(port)
        server.listen()
        assert network.listens(port)
        assert network._in_tables(port)  # pyright: ignore[reportPrivateUsage]
    assert not network.listens(port)
    assert not network._in_tables(port)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize(
    ("bound", "asked", "heard"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("0.0.0.0", "127.0.0.2", True),
        ("::1", "::1", True),
        ("::1", "127.0.0.1", False),
        ("::", "127.0.0.1", True),
        ("127.0.0.1", "::1", False),
    ],
)
def test_who_hears(kind: socket.SocketKind, bound: str, asked: str, heard: bool) -> None:
    """What a socket that connects there would find."""
    host = socket.inet_pton(socket.AF_INET6 if ":" in asked else socket.AF_INET, asked)
    listeners = network.Listeners()
    with socket.socket(socket.AF_INET6 if ":" in bound else socket.AF_INET, kind) as server:
        if ":" in bound:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((bound, 0))
        port: int = server.getsockname()[1]
        if kind == socket.SOCK_STREAM:
            assert not listeners.hear(host, port)
            server.listen()
        assert listeners.hear(host, port) is heard
    assert not listeners.hear(host, port)
    listeners.close()


def test_who_hears_where_nobody_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> tuple[int, int]:
        raise FileNotFoundError(errno.ENOENT, "no such handler")

    own, other = network.Listeners(), network.Listeners(sockets.netlink_socket(netlink.SOCK_DIAG))
    monkeypatch.setattr(sockets, "netlink_kind", missing)
    assert not own.hear(b"\x7f\0\0\1", 1)  # as the tables of this namespace say
    assert other.hear(b"\x7f\0\0\1", 1)
    own.close()
    other.close()
    monkeypatch.undo()
    assert not own.hear(b"\x7f\0\0\1", 1)
    assert other.hear(b"\x7f\0\0\1", 1)  # its namespace is not this one: it is not asked instead
    own.close()


def test_where_there_is_no_sock_diag(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: int, data: bytes) -> list[bytes]:
        raise FileNotFoundError(errno.ENOENT, "no such handler")

    monkeypatch.setattr(sockets, "dump", missing)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert network.listens(server.getsockname()[1])
    assert not network.listens(1)
