"""Many connections that misbehave, from both ends. Run as a program of its own: standard library only.

``chaos.py server ADDRESS PORT`` echoes, resets, reads slowly or not at all. ``chaos.py client HOST PORT COUNT`` keeps COUNT
connections going, some of them by the session's proxy: for the seconds that a line on its standard input says, or until
nothing answers any more. Both answer each line with one of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import sys

PROXY = ("127.0.0.1", 880)
DEAD = 3
"""Failures in a row, of one connection's place, after which nothing is expected to answer again."""


class Server:
    """What is connected now, and how often that happened."""

    def __init__(self) -> None:
        self.live = self.accepted = 0
        self.chance = random.Random(1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: mostly an echo."""
        self.live += 1
        self.accepted += 1
        how = self.chance.random()
        try:
            if how < 0.1:
                await asyncio.sleep(self.chance.random())  # and never reads
                return
            while data := await reader.read(1 << 16 if how < 0.8 else 500):
                if how < 0.2 and self.chance.random() < 0.2:
                    writer.transport.abort()
                    return
                if how >= 0.9:
                    await asyncio.sleep(0.01)
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            pass
        finally:
            writer.close()
            self.live -= 1

    def state(self) -> dict[str, int]:
        """For the test."""
        return {"live": self.live, "accepted": self.accepted, "descriptors": len(os.listdir("/proc/self/fd"))}


class Client:
    """The connections of a program inside."""

    def __init__(self, place: tuple[str, int], name: str, count: int) -> None:
        self.place, self.name, self.count = place, name, count
        self.opened = self.whole = self.failed = self.live = 0
        self.chance = random.Random(2)
        self.end = 0.0

    async def storm(self, seconds: float) -> None:
        """All places at once, until the time is over or everything is dead."""
        self.end = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*[self.keep() for _ in range(self.count)])

    async def keep(self) -> None:
        """One connection after the other."""
        failures = 0
        loop = asyncio.get_running_loop()
        while loop.time() < self.end and failures < DEAD:
            try:
                async with asyncio.timeout(30):
                    reader, writer = await self.connect()
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                failures += 1
                self.failed += 1
                await asyncio.sleep(0.01)
                continue
            failures = 0
            self.opened += 1
            self.live += 1
            try:
                async with asyncio.timeout(2 + self.count / 200):
                    await self.misbehave(reader, writer)
            except (OSError, TimeoutError):
                pass
            finally:
                if self.chance.random() < 0.4:
                    writer.transport.abort()
                writer.close()
                self.live -= 1

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Straight, or by the proxy."""
        if self.chance.random() < 0.75:
            return await asyncio.open_connection(*self.place)
        reader, writer = await asyncio.open_connection(*PROXY)
        try:
            writer.write(f"CONNECT {self.name}:{self.place[1]} HTTP/1.1\r\nHost: {self.name}\r\n\r\n".encode())
            if b" 200 " not in await reader.readuntil(b"\r\n\r\n"):
                raise ConnectionError("refused")
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def misbehave(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Write, read slowly or not, end in one of several ways."""
        sent = b"".join([b"chaos", *[self.chance.randbytes(self.chance.randrange(20_000)) for _ in range(3)]])
        writer.write(sent)
        how = self.chance.random()
        if how < 0.2:
            await asyncio.sleep(self.chance.random() / 2)
        elif how < 0.5:
            for _ in range(10):
                await reader.read(self.chance.choice((1, 100, 5000)))
        else:
            await writer.drain()
            writer.write_eof()
            got = await reader.read(-1)
            # What comes back is what was sent, or the beginning of it where the server gave up.
            if not sent.startswith(got):
                raise SystemExit("other bytes came back")
            self.whole += got == sent

    def state(self) -> dict[str, int]:
        """For the test."""
        counts = {"opened": self.opened, "whole": self.whole, "failed": self.failed, "live": self.live}
        return {**counts, "descriptors": len(os.listdir("/proc/self/fd"))}


async def lines() -> asyncio.StreamReader:
    """Standard input."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def main() -> None:
    """See the module."""
    kind, host, port, *count = sys.argv[1:]
    commands = await lines()
    if kind == "server":
        server = Server()
        async with await asyncio.start_server(server.serve, host, int(port), backlog=1024):
            print("up", flush=True)
            while await commands.readline():
                print(json.dumps(server.state()), flush=True)
        return
    address = socket.getaddrinfo(host, int(port), socket.AF_INET)[0][4][0]
    client = Client((str(address), int(port)), host, int(count[0]))
    print("up", flush=True)
    while line := await commands.readline():
        await client.storm(float(line))
        print(json.dumps(client.state()), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
