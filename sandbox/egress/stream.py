"""A socket as coroutines, plain or under TLS, for connections that are read and not only relayed.

TLS runs on memory buffers and not on asyncio's transports, because a connection is looked at before it becomes TLS: what
was read in order to decide is given back with ``first``, which ``start_tls`` has no place for.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Protocol

from remit.sandbox.egress.relay import reset

READ = 1 << 16
"""Bytes read at a time."""


class Stream(Protocol):
    """What ``Plain`` and ``Tls`` have in common."""

    async def read(self) -> bytes:
        """Some bytes, none at the end. Raises ``OSError``."""
        ...

    async def write(self, data: bytes) -> None:
        """Send all of ``data``. Raises ``OSError``."""
        ...

    async def end(self) -> None:
        """Say that nothing more will be written. Raises ``OSError``."""
        ...

    def pending(self) -> bool:
        """Whether something that has come was not read yet (what the socket still holds is not looked at)."""
        ...

    def close(self) -> None:
        """Close the socket below."""
        ...


class Plain:
    """A connected non-blocking socket, owned from here on; ``first`` is what was read from it already."""

    def __init__(self, sock: socket.socket, first: bytes = b"") -> None:
        self.sock = sock
        self.first = first
        self._loop = asyncio.get_running_loop()

    async def read(self) -> bytes:
        """See ``Stream``."""
        if self.first:
            taken, self.first = self.first, b""
            return taken
        return await self._loop.sock_recv(self.sock, READ)

    async def more(self, limit: int) -> bool:
        """Read some more into ``first``, which keeps it for whoever reads next; false at the end, or at ``limit`` bytes."""
        if len(self.first) >= limit:
            return False
        data = await self._loop.sock_recv(self.sock, min(READ, limit - len(self.first)))
        self.first += data
        return bool(data)

    def ready(self) -> bool:
        """Read into ``first`` what is there already; whether there is anything in it."""
        try:
            self.first += self.sock.recv(READ)
        except (BlockingIOError, InterruptedError):
            pass
        return bool(self.first)

    async def write(self, data: bytes) -> None:
        """See ``Stream``."""
        await self._loop.sock_sendall(self.sock, data)

    async def end(self) -> None:
        """See ``Stream``."""
        self.sock.shutdown(socket.SHUT_WR)

    def pending(self) -> bool:
        """See ``Stream``."""
        return bool(self.first)

    def close(self) -> None:
        """See ``Stream``."""
        self.sock.close()

    def reset(self) -> None:
        """Close with an error for the peer."""
        reset(self.sock)


class Tls:
    """TLS over a plain stream. Call ``handshake`` first."""

    def __init__(self, below: Plain, context: ssl.SSLContext, *, server_name: str | None = None) -> None:
        """``server_name``: be the client of that server; else be a server."""
        self._below = below
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=server_name is None, server_hostname=server_name)
        # One task reads and another writes; both may have something to send (TLS answers messages by itself).
        self._sending = asyncio.Lock()

    async def handshake(self) -> None:
        """Agree on keys. Raises ``OSError`` (``ssl.SSLError`` among them)."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError:
                await self._flush()  # the alert that says why
                raise
        await self._flush()

    @property
    def protocol(self) -> str:
        """What ALPN chose; empty where nothing was."""
        return self._tls.selected_alpn_protocol() or ""

    async def read(self) -> bytes:
        """See ``Stream``. An end without TLS's own goodbye is an end too: HTTP knows by itself what is cut short."""
        while True:
            try:
                return self._tls.read(READ)
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    async def write(self, data: bytes) -> None:
        """See ``Stream``."""
        self._tls.write(data)
        await self._flush()

    async def end(self) -> None:
        """See ``Stream``."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # the peer has not said goodbye yet; ours is in the buffer
        await self._flush()
        await self._below.end()

    def pending(self) -> bool:
        """See ``Stream``."""
        return bool(self._tls.pending() or self._in.pending or self._below.pending())

    def close(self) -> None:
        """See ``Stream``."""
        self._below.close()

    async def _flush(self) -> None:
        async with self._sending:
            data = self._out.read()
            if data:
                await self._below.write(data)

    async def _fill(self) -> None:
        data = await self._below.read()
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()


async def linger(stream: Stream, seconds: float = 2.0, limit: int = 1 << 20) -> None:
    """End ``stream`` so that what was written arrives: closing while the peer still sends would destroy it (RST)."""
    try:
        async with asyncio.timeout(seconds):
            await stream.end()
            while limit > 0:
                data = await stream.read()
                if not data:
                    break
                limit -= len(data)
    except (OSError, TimeoutError):
        pass
    finally:
        stream.close()
