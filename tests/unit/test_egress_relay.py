"""The relay: bytes, half-close, back-pressure, resets, limits; and a thousand connections that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import time
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.sandbox.egress import wire
from remit.sandbox.egress.loop import Loop, run
from remit.sandbox.egress.relay import CHUNK, Engine, Meter, Relay, reset
from tests.unit.egress_world import PATIENCE, House, World, echo, everything, house, refused, until

GOOD = "203.0.113.10"
PORT = 2222


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets of the loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    one = socket.create_connection(listener.getsockname())
    other, _ = listener.accept()
    listener.close()
    for sock in (one, other):
        sock.setblocking(False)
    return one, other


class Joined:
    """``client`` - (inside, outside) - ``server`` with a relay in between."""

    def __init__(self, limit: int = 0, first: bytes = b"", first_out: bytes = b"") -> None:
        self.loop = cast("Loop", asyncio.get_running_loop())
        self.client, inside = tcp_pair()
        outside, self.server = tcp_pair()
        for sock in (inside, outside):
            # Little room, so that the relay often has a rest to keep while the other direction uses the shared buffer.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.engine = Engine(self.loop)
        self.over = asyncio.Event()
        self.meter = Meter(limit)
        self.relay = Relay(self.engine, inside, outside, self.meter, lambda _: self.over.set(), first, first_out)

    async def __aenter__(self) -> Joined:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.engine.close()
        self.client.close()
        self.server.close()
        async with asyncio.timeout(PATIENCE):
            await self.over.wait()
        assert not self.engine.relays

    async def get(self, sock: socket.socket, count: int) -> bytes:
        data = b""
        async with asyncio.timeout(PATIENCE):
            while len(data) < count:
                more = await self.loop.sock_recv(sock, 1 << 16)
                if not more:
                    break
                data += more
        return data


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 200_000)), max_size=8),
    st.binary(max_size=50),
    st.binary(max_size=50),
)
def test_what_goes_in_comes_out(pieces: list[tuple[bool, int]], first: bytes, first_out: bytes) -> None:
    async def main() -> None:
        async with Joined(first=first, first_out=first_out) as joined:
            out = b"".join(os.urandom(size) for to_server, size in pieces if to_server)
            back = b"".join(os.urandom(size) for to_server, size in pieces if not to_server)

            async def say(sock: socket.socket, data: bytes) -> None:
                await joined.loop.sock_sendall(sock, data)
                sock.shutdown(socket.SHUT_WR)

            got_out, got_back, _, _ = await asyncio.gather(
                joined.get(joined.server, 1 << 30),
                joined.get(joined.client, 1 << 30),
                say(joined.client, out),
                say(joined.server, back),
            )
            assert got_out == first + out
            assert got_back == first_out + back
            await joined.over.wait()
            assert joined.relay.ending == ""
            assert joined.relay.outward.count == len(first + out)
            assert joined.meter.bytes_passed == len(first + out + first_out + back)

    run(main())


def test_half_closed_the_other_direction_goes_on() -> None:
    async def main() -> None:
        async with Joined() as joined:
            joined.client.shutdown(socket.SHUT_WR)
            assert await joined.get(joined.server, 1) == b""
            for _ in range(3):
                await joined.loop.sock_sendall(joined.server, b"still here")
                assert await joined.get(joined.client, 10) == b"still here"
            joined.server.shutdown(socket.SHUT_WR)
            assert await joined.get(joined.client, 1) == b""
            await joined.over.wait()
            assert joined.relay.ending == ""

    run(main())


def test_a_peer_that_never_reads_costs_a_chunk() -> None:
    async def main() -> None:
        async with Joined() as joined:
            sent, stopped = 0, -1
            while joined.relay.inward.count != stopped:
                stopped = joined.relay.inward.count
                # Without progress for a while: every buffer on the way is full.
                with contextlib.suppress(TimeoutError):
                    while True:
                        async with asyncio.timeout(0.5):
                            await joined.loop.sock_sendall(joined.server, bytes(1 << 16))
                        sent += 1 << 16
                        assert sent < 1 << 28
            assert len(joined.relay.inward.rest) <= CHUNK
            assert len(joined.relay.outward.rest) == 0
            # And the other direction does not mind.
            await joined.loop.sock_sendall(joined.client, b"hello")
            assert await joined.get(joined.server, 5) == b"hello"
            assert joined.relay.inward.count == stopped
            got = await joined.get(joined.client, sent)
            assert len(got) >= sent

    run(main())


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_is_a_reset_on_the_other_side(who: str) -> None:
    async def main() -> None:
        async with Joined() as joined:
            one, other = (joined.client, joined.server) if who == "client" else (joined.server, joined.client)
            await joined.loop.sock_sendall(one, b"x")
            assert await joined.get(other, 1) == b"x"
            reset(one)
            with pytest.raises(ConnectionResetError):
                await joined.get(other, 1)
            await joined.over.wait()
            assert joined.relay.ending

    run(main())


def test_limits() -> None:
    async def main() -> None:
        async with Joined(limit=1000) as joined:
            await joined.loop.sock_sendall(joined.client, bytes(1000))
            assert len(await joined.get(joined.server, 1000)) == 1000
            await joined.loop.sock_sendall(joined.client, b"x")
            with pytest.raises(ConnectionResetError):
                await joined.get(joined.server, 1)
            assert joined.relay.ending == "bytes"
        async with Joined(limit=10, first=bytes(11)) as joined:
            await joined.over.wait()
        for idle, total, why in ((1000, 0, "idle"), (0, 1000, "time")):
            async with Joined() as joined:
                joined.engine.sweep(idle, total)
                assert not joined.over.is_set()
                joined.relay.active -= 2000
                joined.relay.began -= 2000
                joined.engine.sweep(idle, total)
                assert joined.relay.ending == why

    run(main())


def test_more_connections_than_allowed() -> None:
    async def main() -> None:
        world = World()
        world.names = {"api.example.com": [GOOD]}
        await world.serve(GOOD, PORT, echo)
        async with house(world, [f"api.example.com:{PORT}/tcp"], limits={"connections": 3}) as here:
            place = here.synthetic("api.example.com")
            held = [await here.transparent(place, PORT) for _ in range(3)]
            for reader, writer in held:
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
            try:
                reader, writer = await here.transparent(place, PORT)
            except ConnectionResetError:
                pass  # it may come as early as that
            else:
                assert await refused(reader)
                writer.close()
            held[0][1].close()
            await until(lambda: here.gateway.gate.open == 2)
            reader, writer = await here.transparent(place, PORT)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            for _, one in [*held[1:], (reader, writer)]:
                one.close()

    run(main())


def test_silence_before_a_word_ends() -> None:
    async def main() -> None:
        world = World()
        world.names = {"api.example.com": [GOOD]}
        await world.serve(GOOD, 443, echo)
        async with house(world, ["api.example.com:443/tcp"], limits={"first": 100}) as here:
            for reader, writer in (
                await here.transparent(here.synthetic("api.example.com"), 443),
                await here.proxy(),
            ):
                assert await everything(reader) == b""
                writer.close()
            await until(lambda: here.gateway.gate.open == 0)

    run(main())


def test_noise_does_not_end_the_gateway() -> None:
    async def main() -> None:
        world = World()
        world.names = {"api.example.com": [GOOD]}
        await world.serve(GOOD, PORT, echo)
        chance = random.Random(4)
        async with house(world, [f"api.example.com:{PORT}/tcp"], limits={"first": 500}) as here:
            starts = [
                b"",
                b"\x05",
                b"\x05\x01\x00\x05\x01\x00",
                b"CONNECT ",
                b"GET http://",
                b"\x16\x03\x01",
                b"\0\x20",
            ]

            async def one(index: int) -> None:
                role = ("proxy", "dns-tcp", "tcp")[index % 3]
                if role == "tcp":
                    reader, writer = await here.transparent(here.synthetic("api.example.com"), PORT)
                else:
                    reader, writer = await asyncio.open_connection("127.0.0.1", here.ports[f":{role}"])
                try:
                    writer.write(chance.choice(starts) + chance.randbytes(chance.randrange(400)))
                    if chance.random() < 0.5:
                        writer.write_eof()
                        async with asyncio.timeout(5):
                            await reader.read(100)
                except (OSError, TimeoutError):
                    pass
                writer.close()

            for batch in range(6):
                await asyncio.gather(*[one(batch * 60 + index) for index in range(60)])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for _ in range(200):
                    sock.sendto(chance.randbytes(chance.randrange(1, 300)), ("127.0.0.1", here.ports[":dns-udp"]))
            reader, writer = await here.transparent(here.synthetic("api.example.com"), PORT)
            writer.write(b"alive")
            assert await reader.readexactly(5) == b"alive"
            writer.close()
            await until(lambda: here.gateway.gate.open == 0)
            assert here.messages == []

    run(main())


def test_the_record_can_be_slow() -> None:
    """A launcher that does not read holds back what is allowed, and lets denials be counted; nothing grows."""

    async def main() -> None:
        world = World()
        world.names = {"api.example.com": [GOOD]}
        await world.serve(GOOD, PORT, echo)
        async with house(world, [f"api.example.com:{PORT}/tcp"]) as here:
            here._reader.cancel()  # pyright: ignore[reportPrivateUsage]
            place, evil = here.synthetic("api.example.com"), here.synthetic("evil.example")

            async def denied() -> None:
                try:
                    reader, writer = await here.transparent(evil, PORT)
                except ConnectionResetError:
                    return  # before connect(2) had returned
                assert await refused(reader)
                writer.close()

            while not here.gateway.ledger.lost:
                await asyncio.gather(*[denied() for _ in range(100)])
            queued = len(here.gateway.control._queue)  # pyright: ignore[reportPrivateUsage]
            assert queued <= 1024
            reader, writer = await here.transparent(place, PORT)
            writer.write(b"x")
            waits = asyncio.create_task(reader.readexactly(1))
            await asyncio.gather(*[denied() for _ in range(20)])
            assert not waits.done()
            here._reader = asyncio.create_task(here._read())  # pyright: ignore[reportPrivateUsage]
            async with asyncio.timeout(PATIENCE):
                assert await waits == b"x"
            writer.close()

    run(main())


def test_published_ports() -> None:
    async def main() -> None:
        world = World()
        async with house(world, []) as here:
            await world.serve("127.0.0.1", 3000, echo)
            port = world.places["127.0.0.1", 3000]
            published = socket.create_server(("127.0.0.1", 0))
            place = published.getsockname()
            doors = [socket.socket() for _ in range(2)]
            roles = ((wire.PUBLISHED, port), *[(wire.PUBLISH, 0)] * 2)
            here.send((wire.LISTEN, "", (), roles, ()), [published, *doors])
            for _ in range(5):  # more than there are doors: each is used again
                reader, writer = await asyncio.open_connection(*place)
                writer.write(b"hello")
                writer.write_eof()
                assert await everything(reader) == b"hello"
                writer.close()
            held = [await asyncio.open_connection(*place) for _ in range(2)]
            for reader, writer in held:
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
            reader, writer = await asyncio.open_connection(*place)
            assert await refused(reader)
            writer.close()
            held[0][1].transport.abort()  # a reset: the door comes back all the same
            live = here.gateway._live[""]  # pyright: ignore[reportPrivateUsage]
            await until(lambda: len(live.doors) == 1)
            reader, writer = await asyncio.open_connection(*place)
            writer.write(b"y")
            assert await reader.readexactly(1) == b"y"
            writer.close()
            held[1][1].close()
            await until(lambda: len(live.doors) == 2)
            verdicts = {verdict for _, verdict in here.verdicts("publish")}
            assert verdicts == {"allowed", "ended", "failed"}

    run(main())


def test_datagrams() -> None:
    async def main() -> None:
        world = World()
        world.names = {"dns.example.com": [GOOD]}
        loop = asyncio.get_running_loop()

        class Server(asyncio.DatagramProtocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = cast("asyncio.DatagramTransport", transport)  # what asyncio makes is no subclass of it

            def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
                self.transport.sendto(b"re: " + data, addr)

        transport, _ = await loop.create_datagram_endpoint(Server, local_addr=("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        # On one host without a namespace the two destinations are two addresses of the loopback, granted as such or not.
        async with house(world, [f"127.0.0.1/32:{port}/udp"]) as here:
            inside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            inside.setsockopt(socket.IPPROTO_IP, 8, 1)
            inside.bind(("0.0.0.0", 0))
            gate_port = inside.getsockname()[1]
            here.send((wire.LISTEN, "", (), ((wire.UDP, port),), ()), [inside])
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.bind(("127.0.0.1", 0))
            client.setblocking(False)
            for text in (b"one", b"two"):
                client.sendto(text, ("127.0.0.1", gate_port))
                async with asyncio.timeout(PATIENCE):
                    data, origin = await loop.sock_recvfrom(client, 100)
                assert (data, origin[0]) == (b"re: " + text, "127.0.0.1")
            for _ in range(3):
                client.sendto(b"three", ("127.0.0.2", gate_port))
            await until(lambda: (f"127.0.0.2:{port}/udp", "denied") in here.verdicts())
            assert here.verdicts().count((f"127.0.0.2:{port}/udp", "denied")) == 1
            with pytest.raises(BlockingIOError):
                client.recv(100)
            client.close()
        transport.close()

    run(main())


@pytest.mark.slow
def test_connections_that_misbehave(capsys: pytest.CaptureFixture[str]) -> None:
    """Random resets, slow readers, peers that never read: nothing is left over, and memory stays where it was.

    The gateway's own view; ``tests/kernel/test_run_network_chaos.py`` is a whole session's, and says how to have more.
    """
    seconds = float(os.environ.get("REMIT_CHAOS_SECONDS", "3"))
    connections = int(os.environ.get("REMIT_CHAOS_CONNECTIONS", "300"))

    async def storm(here: House, place: str, seconds: float) -> int:
        chance = random.Random(7)
        until_when = time.monotonic() + seconds
        total = 0

        async def one() -> None:
            nonlocal total
            while time.monotonic() < until_when:
                try:
                    reader, writer = await here.transparent(place, PORT)
                except OSError:
                    continue
                total += 1
                try:
                    for _ in range(chance.randrange(1, 6)):
                        writer.write(bytes(chance.randrange(1, 40_000)))
                        if chance.random() < 0.6:
                            await reader.read(chance.choice([1, 100, 65536]))
                    how = chance.random()
                    if how < 0.4:
                        writer.transport.abort()
                    elif how < 0.6:
                        writer.write_eof()
                        await asyncio.wait_for(everything(reader), 5)
                    elif how < 0.8:
                        await asyncio.sleep(chance.random() / 2)
                except (OSError, TimeoutError):
                    pass
                finally:
                    writer.close()

        await asyncio.gather(*[one() for _ in range(connections)])
        return total

    def resident() -> float:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)

    async def main() -> None:
        world = World()
        world.names = {"api.example.com": [GOOD]}
        await world.serve(GOOD, PORT, echo)
        before_all = len(os.listdir("/proc/self/fd"))
        async with house(world, [f"api.example.com:{PORT}/tcp"]) as here:
            place = here.synthetic("api.example.com")
            await storm(here, place, 0.5)
            await until(lambda: here.gateway.gate.open == 0)
            before = resident()
            total = await storm(here, place, seconds)
            await until(lambda: here.gateway.gate.open == 0 and not here.gateway.gate.engine.relays)
            after = resident()
            live = here.gateway._live[""]  # pyright: ignore[reportPrivateUsage]
            assert not live.tasks
            assert not live.source.relays
            assert after - before < 64
            with capsys.disabled():
                print(
                    f"\n{total} connections, {connections} at a time; resident {before:.0f} MiB before, {after:.0f} MiB after"
                )
        # The servers close theirs when they have heard of it.
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before_all)

    # Other tests' leftovers would count as what lives long, and garbage is looked for the later the more of that there is.
    gc.collect()
    gc.freeze()
    try:
        run(main())
    finally:
        gc.unfreeze()
