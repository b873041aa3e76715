"""What the network is measured with: a server, a relay without any policy, and a client that is told when to measure.

``python traffic.py server ADDRESS``, ``relay ADDRESS PORT`` and ``client ADDRESS PORT``, or ``proxied`` for a client that asks
the proxy in ``HTTPS_PROXY``. Each ends when its standard input does. The first two say on which port they listen; the client
answers each line (one of ``MEASURES`` and a number) with a number. The standard library only: the client runs inside
sessions, which see no other package, and as a copy of this file.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from urllib.parse import unquote

Place = tuple[str, int]

_BLOCK = 1 << 18
_WORD = 16
"""Octets of what a client says first: ``D`` and how many octets it wants, or ``E`` for an echo."""
_MESSAGE = 64


def listening(address: str) -> socket.socket:
    """A listening socket of IPv4, on any port."""
    sock = socket.socket()
    sock.bind((address, 0))
    sock.listen(512)
    return sock


def serve(listener: socket.socket) -> None:
    """For ever: one connection after the other, as they are measured, so that no thread's start is in the figures."""
    block = bytes(_BLOCK)
    while True:
        sock, _ = listener.accept()
        with contextlib.suppress(OSError), sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            word = sock.recv(_WORD, socket.MSG_WAITALL)
            if word[:1] == b"D":
                left = int(word[1:])
                while left > 0:
                    left -= sock.send(block[: min(left, _BLOCK)])
                sock.recv(1)  # the client ends first: a proxy may drop what a server said before its end
                continue
            while data := sock.recv(65536):
                sock.sendall(data)


class Relay(asyncio.BufferedProtocol):
    """One side of a relay that asks nothing: the reference. It reads on only while the other side takes what is read."""

    def __init__(self, place: Place, peer: Relay | None = None) -> None:
        self._place, self._peer = place, peer
        self._buffer = bytearray(_BLOCK)
        self._view = memoryview(self._buffer)
        self._waiting: list[bytes] = []
        self._connecting: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(1 << 20)
        if self._peer is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        _, peer = await asyncio.get_running_loop().create_connection(lambda: Relay(self._place, self), *self._place)
        self._peer = peer
        peer.transport.writelines(self._waiting)
        if self.transport.is_closing():
            peer.transport.close()
        else:
            self.transport.resume_reading()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._view[:nbytes])
        if self._peer is None:
            self._waiting.append(data)
            self.transport.pause_reading()
        else:
            self._peer.transport.write(data)

    def pause_writing(self) -> None:
        if self._peer is not None:
            self._peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._peer is not None:
            self._peer.transport.resume_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._peer is not None:
            self._peer.transport.close()


def relay(listener: socket.socket, place: Place) -> None:
    """For ever: what arrives goes to ``place``, and back."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Relay(place), sock=listener, backlog=512)
        await server.serve_forever()

    asyncio.run(main())


def throughput(place: Place, mebibytes: int) -> float:
    """MB/s that arrive through one connection."""
    total = mebibytes << 20
    buffer = bytearray(_BLOCK)
    got = 0
    began = time.perf_counter()
    with _connected(place, b"D%015d" % total) as sock:
        while got < total:
            got += _some(sock.recv_into(buffer))
    return got / (time.perf_counter() - began) / 1e6


def connections(place: Place, count: int) -> float:
    """Connections a second, one after the other: a word there, an octet back."""
    began = time.perf_counter()
    for _ in range(count):
        with _connected(place, b"D%015d" % 1) as sock:
            _some(len(sock.recv(1)))
    return count / (time.perf_counter() - began)


def round_trip(place: Place, count: int) -> float:
    """Microseconds until a message of 64 octets is back: the median of ``count``, through one connection."""
    taken: list[float] = []
    message = b"x" * _MESSAGE
    with _connected(place, b"E%015d" % 0) as sock:
        for _ in range(count):
            began = time.perf_counter()
            sock.sendall(message)
            got = 0
            while got < _MESSAGE:
                got += _some(len(sock.recv(_MESSAGE - got)))
            taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


MEASURES: dict[str, Callable[[Place, int], float]] = {
    "throughput": throughput,
    "connections": connections,
    "round_trip": round_trip,
}


def _connected(place: Place, word: bytes) -> socket.socket:
    sock = socket.create_connection(_proxy or place)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if _proxy is not None:
        host = f"{place[0]}:{place[1]}"
        sock.sendall(f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{_authorization}\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            _some(len(piece := sock.recv(1)))
            answer += piece
        if b" 200 " not in answer.partition(b"\r\n")[0]:
            raise ConnectionError(f"the proxy refuses: {answer!r}")
    sock.sendall(word)
    return sock


_proxy: Place | None = None
_authorization = ""


def _ask_proxy(url: str) -> None:
    """``http://USER:PASSWORD@HOST:PORT`` is asked for every connection from now on."""
    global _proxy, _authorization
    credentials, at, place = url.removeprefix("http://").rstrip("/").rpartition("@")
    host, _, port = place.rpartition(":")
    _proxy = host, int(port)
    if at:
        _authorization = f"Proxy-Authorization: Basic {base64.b64encode(unquote(credentials).encode()).decode()}\r\n"


def _some(count: int) -> int:
    if not count:
        raise ConnectionError("the connection ended early")
    return count


def _client(place: Place) -> None:
    for line in sys.stdin:
        measure, number = line.split()
        print(MEASURES[measure](place, int(number)), flush=True)


def _leave() -> None:
    sys.stdin.read()
    os._exit(0)


def main(role: str, address: str, port: str = "0") -> None:
    """Be one of these."""
    place = (address, int(port))
    if role == "proxied":
        _ask_proxy(os.environ["HTTPS_PROXY"])
    if role in ("client", "proxied"):
        _client(place)
        return
    listener = listening(address)
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=_leave, daemon=True).start()
    if role == "relay":
        relay(listener, place)
    else:
        serve(listener)


if __name__ == "__main__":
    main(*sys.argv[1:])
