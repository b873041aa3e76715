"""Who listens: what sock_diag says is what proc's tables say."""

from __future__ import annotations

import errno
import socket

import pytest

from remit.sandbox.kernel import network, sockets


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


def test_where_there_is_no_sock_diag(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: int, data: bytes) -> list[bytes]:
        raise FileNotFoundError(errno.ENOENT, "no such handler")

    monkeypatch.setattr(sockets, "dump", missing)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert network.listens(server.getsockname()[1])
    assert not network.listens(1)
