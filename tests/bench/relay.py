"""The gateway's relay beside a relay without any policy, in one interleaved run: throughput, connections, round trips.

``python -m tests.bench.relay [ROUNDS]``. The other relay is the fastest that asyncio's own means gave: a BufferedProtocol
with 256 KiB and nothing else. Both run as a process of their own, before the same server; the client is a third. A bare
connection stands beside them. Ratios are of medians; there is nothing that fails.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import marshal
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Generator

MEGABYTES = 256
CONNECTIONS = 200
ROUND_TRIPS = 1500


class Policyless(asyncio.BufferedProtocol):
    """One side of a relay that asks nothing."""

    def __init__(self, place: tuple[str, int], peer: Policyless | None = None) -> None:
        self.place, self.peer = place, peer
        self.buffer = bytearray(1 << 18)
        self.view = memoryview(self.buffer)
        self.waiting: list[bytes] = []
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(1 << 20)
        if self.peer is None:
            asyncio.get_running_loop().create_task(self.connect())

    async def connect(self) -> None:
        _, peer = await asyncio.get_running_loop().create_connection(lambda: Policyless(self.place, self), *self.place)
        self.peer = peer
        peer.transport.writelines(self.waiting)
        self.transport.resume_reading()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self.view[:nbytes])
        if self.peer is None:
            self.waiting.append(data)
            self.transport.pause_reading()
        else:
            self.peer.transport.write(data)

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.resume_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self.peer is not None:
            self.peer.transport.close()


def policyless(listener: socket.socket, place: tuple[str, int]) -> None:
    """Serve for ever."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Policyless(place), sock=listener, backlog=512)
        await server.serve_forever()

    asyncio.run(main())


def gateway(listener: socket.socket, place: tuple[str, int]) -> None:
    """Serve as the gateway does: every connection decided on, by name, recorded, relayed."""
    from remit.sandbox.egress import wire
    from remit.sandbox.egress.connect import Connector
    from remit.sandbox.egress.serve import Gateway

    async def resolve(name: str) -> list[str]:
        return ["203.0.113.10"]

    async def main() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        threading.Thread(target=drain, args=(ours,), daemon=True).start()
        gate: list[Gateway] = []

        def original(sock: socket.socket) -> tuple[str, int]:
            return str(gate[0].gate.names.addresses("bench.example.com")[0]), 2222

        connector = Connector(resolve, route=lambda address, port: place)
        gate.append(Gateway(theirs, connector=connector, original=original))
        rules = (("bench.example.com:2222/tcp", "bench"),)
        ours.send(marshal.dumps((wire.CONFIG, "bench", {"rules": rules})))
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener.fileno()]).tobytes())]
        ours.sendmsg([marshal.dumps((wire.LISTEN, "", (), ((wire.TCP, 0),), ()))], control)
        await gate[0].run()

    def drain(ours: socket.socket) -> None:
        while ours.recv(1 << 17):
            pass

    asyncio.run(main())


def server(listener: socket.socket) -> None:
    """``D`` and a number: that many bytes. Anything else: an echo."""

    def one(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            word = b""
            while len(word) < 16:
                more = sock.recv(16 - len(word))
                if not more:
                    return
                word += more
            if word[:1] == b"D":
                left, block = int(word[1:]), bytes(1 << 18)
                while left > 0:
                    left -= sock.send(block[: min(left, len(block))])
                return
            while data := sock.recv(65536):
                sock.sendall(data)

    while True:
        sock, _ = listener.accept()
        threading.Thread(target=one, args=(sock,), daemon=True).start()


@contextlib.contextmanager
def process(run: Callable[[], None]) -> Generator[int]:
    """``run`` in a child of this process, killed at the end."""
    pid = os.fork()
    if not pid:
        try:
            run()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def listening() -> socket.socket:
    """A listening socket on the loopback."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(1024)
    return sock


def throughput(place: tuple[str, int]) -> float:
    """Megabytes a second."""
    total = MEGABYTES << 20
    buffer = bytearray(1 << 18)
    began = time.perf_counter()
    with socket.create_connection(place) as sock:
        sock.sendall(b"D%015d" % total)
        got = 0
        while got < total:
            count = sock.recv_into(buffer)
            if not count:
                raise OSError("the relay closed early")
            got += count
    return got / (time.perf_counter() - began) / 1e6


def connections(place: tuple[str, int]) -> float:
    """Connections a second, one after the other, a byte each."""
    began = time.perf_counter()
    for _ in range(CONNECTIONS):
        with socket.create_connection(place) as sock:
            sock.sendall(b"D%015d" % 1)
            if not sock.recv(10):
                raise OSError("the relay closed early")
    return CONNECTIONS / (time.perf_counter() - began)


def round_trips(place: tuple[str, int]) -> float:
    """Median round trips of 64 bytes, a second."""
    times: list[float] = []
    with socket.create_connection(place) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"E" + b"0" * 15)
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter()
            sock.sendall(b"x" * 64)
            got = 0
            while got < 64:
                got += len(sock.recv(64 - got))
            times.append(time.perf_counter() - began)
    return 1 / statistics.median(times)


def rss(pid: int) -> float:
    """Mebibytes resident."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)


def main(rounds: int) -> None:
    """Measure and print."""
    measures = {"MB/s": throughput, "connections/s": connections, "round trips/s": round_trips}
    results: dict[tuple[str, str], list[float]] = {}
    outside, plain, gated = listening(), listening(), listening()
    place = outside.getsockname()
    with (
        process(lambda: server(outside)),
        process(lambda: policyless(plain, place)) as policyless_pid,
        process(lambda: gateway(gated, place)) as gateway_pid,
    ):
        variants = {"bare": place, "policy-free": plain.getsockname(), "gateway": gated.getsockname()}
        for where in variants.values():
            round_trips(where)
        for _ in range(rounds):
            for measure, run in measures.items():
                for variant, where in variants.items():
                    results.setdefault((measure, variant), []).append(run(where))
        print(f"{rounds} rounds, {MEGABYTES} MB, {CONNECTIONS} connections, {ROUND_TRIPS} round trips of 64 bytes")
        for measure in measures:
            medians = {variant: statistics.median(results[measure, variant]) for variant in variants}
            ratio = medians["gateway"] / medians["policy-free"]
            shown = "  ".join(f"{variant} {value:9.0f}" for variant, value in medians.items())
            print(f"{measure:14} {shown}  gateway / policy-free {ratio:.2f}")
        print(f"resident: policy-free {rss(policyless_pid):.1f} MiB, gateway {rss(gateway_pid):.1f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
