"""Published ports: connections from the host, relayed to a server inside.

A socket connects in the namespace that it was made in. So the session brings sockets that it made, unconnected; one is
connected for each connection and disconnected after it (``connect(2)`` with AF_UNSPEC), and serves the next.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING

from remit.sandbox.egress.gate import Event, Gate
from remit.sandbox.egress.relay import Relay, reset
from remit.sandbox.kernel.call import NR, call

if TYPE_CHECKING:
    from remit.sandbox.egress.policy import Source

_UNSPECIFIED = bytes(16)  # a sockaddr of family AF_UNSPEC
_NO_LINGER = bytes(8)
_TIMEOUT = 10.0


class Doors:
    """The unconnected sockets of a session."""

    def __init__(self) -> None:
        self._free: deque[socket.socket] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._free)

    def add(self, sock: socket.socket) -> None:
        """One more."""
        self._free.append(sock)

    def take(self) -> socket.socket | None:
        """One that is not connected, or None."""
        return self._free.popleft() if self._free else None

    def back(self, sock: socket.socket) -> None:
        """Disconnect one, for the next."""
        if self._closed:
            sock.close()
            return
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            call(NR["connect"], sock.fileno(), _UNSPECIFIED, len(_UNSPECIFIED))
        except OSError:
            sock.close()
            return
        self._free.append(sock)

    def close(self) -> None:
        """Close those that are free; the others when they come back."""
        self._closed = True
        while self._free:
            self._free.popleft().close()


async def serve(gate: Gate, source: Source, doors: Doors, outside: socket.socket, port: int) -> None:
    """Relay one connection from the host to ``port`` inside."""
    door = doors.take()
    text = f"127.0.0.1:{port}/tcp"
    if door is None:
        gate.ledger.note(
            Event(source.call, "publish", text, "failed", "too many published connections", "", "published")
        )
        reset(outside)
        return
    try:
        await gate.ledger.allowed(Event(source.call, "publish", text, "allowed", "", "", "published"))
        host = "127.0.0.1" if door.family == socket.AF_INET else "::1"
        async with asyncio.timeout(_TIMEOUT):
            await asyncio.get_running_loop().sock_connect(door, (host, port))
        # The relay closes what it is given: a second descriptor, the socket itself comes back.
        inside = door.dup()
        inside.setblocking(False)
    except (OSError, TimeoutError) as error:
        doors.back(door)
        reset(outside)
        gate.ledger.note(Event(source.call, "publish", text, "failed", str(error), "", "published"))
        return
    except BaseException:
        doors.back(door)
        outside.close()
        raise

    def done(relay: Relay) -> None:
        gate.open -= 1
        source.relays.discard(relay)
        doors.back(door)
        sent, received = relay.inward.count, relay.outward.count
        gate.ledger.note(Event(source.call, "publish", text, "ended", relay.ending, "", "published", sent, received))

    gate.open += 1
    relay = Relay(gate.engine, outside, inside, gate.meter, done, copied=True)
    if not relay.closed:
        source.relays.add(relay)
