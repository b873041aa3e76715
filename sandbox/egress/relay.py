"""Two connected sockets, joined: bytes, half-close, back-pressure and resets pass from one to the other.

Written on the event loop's readiness callbacks, not on asyncio's transports. A transport has a write buffer without end
that has to be watched, and cannot be told to stop reading from the first moment (``pause_reading`` in
``connection_made`` does not hold before Python 3.12). Here one direction has at most one chunk that the other side has
not taken, and while it has one, nothing more is read: memory is bounded by construction, a peer that never reads costs
one chunk, and one buffer serves every connection, because a chunk is sent before the next callback runs.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.sandbox.egress.loop import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from remit.sandbox.egress.loop import Loop

CHUNK = 1 << 18
"""Bytes taken at a time: where throughput stops growing (measured: 64 KiB gives 40% of it)."""

_NOTHING, _SOURCE, _TARGET = 0, 1, 2

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close(2) sends RST


def reset(sock: socket.socket) -> None:
    """Close ``sock`` so that its peer sees an error, never an orderly end: what it got is not all there was."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass
    sock.close()


@dataclass(slots=True)
class Meter:
    """What one owner (a call, a session) may pass, and has. Limits of 0 are none."""

    bytes_limit: int = 0
    bytes_passed: int = 0

    def passed(self, count: int) -> bool:
        """Count bytes; false when that was one too many."""
        self.bytes_passed += count
        return not self.bytes_limit or self.bytes_passed <= self.bytes_limit


class Engine:
    """Every relay of a process: the shared buffer, and a clock that is coarse, because it is read for each chunk."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.selector = loop.watcher
        self.buffer = bytearray(CHUNK)
        self.view = memoryview(self.buffer)
        self.relays: set[Relay] = set()
        self.now = loop.time()

    def sweep(self, idle: float, total: float) -> None:
        """End relays that passed nothing for ``idle`` seconds, or are older than ``total``. 0 is no limit."""
        self.now = self.loop.time()
        for relay in list(self.relays):
            if idle and self.now - relay.active > idle:
                relay.abort("idle")
            elif total and self.now - relay.began > total:
                relay.abort("time")

    def close(self) -> None:
        """Reset every connection."""
        for relay in list(self.relays):
            relay.abort("gateway ended")


class _Way:
    """One direction: waits for its source, or for its target, or (ended) for nothing.

    ``rest`` is what ``target`` has not taken; while there is any, ``source`` is not read."""

    __slots__ = (
        "_buffer",
        "_from",
        "_receive",
        "_send",
        "_to",
        "_view",
        "_waits",
        "count",
        "ended",
        "relay",
        "rest",
        "source",
        "target",
    )

    def __init__(self, relay: Relay, source: socket.socket, target: socket.socket) -> None:
        self.relay, self.source, self.target = relay, source, target
        self.rest: bytes | memoryview = b""
        self.ended = False
        self.count = 0
        engine = relay.engine
        self._buffer, self._view = engine.buffer, engine.view
        self._receive, self._send = source.recv_into, target.send
        self._from, self._to = source.fileno(), target.fileno()
        self._waits = _NOTHING

    def start(self, first: bytes) -> None:
        if first:
            if not self._passed(len(first)):
                return
            self.rest = first
            self._wait(_TARGET)
        else:
            self._wait(_SOURCE)

    def stop(self) -> None:
        """No more callbacks. Both sockets are still open: the loop knows them by their numbers."""
        self._wait(_NOTHING)

    def _wait(self, what: int) -> None:
        selector = self.relay.engine.selector
        if self._waits == _SOURCE:
            selector.unwatch(self._from, READ)
        elif self._waits == _TARGET:
            selector.unwatch(self._to, WRITE)
        self._waits = what
        if what == _SOURCE:
            selector.watch(self._from, READ, self._readable)
        elif what == _TARGET:
            selector.watch(self._to, WRITE, self._writable)

    def _passed(self, count: int) -> bool:
        self.count += count
        relay = self.relay
        relay.active = relay.engine.now
        if relay.meter.passed(count):
            return True
        relay.abort("bytes")
        return False

    def _readable(self) -> None:
        """Waiting for the source."""
        if self._pass() and self.rest:
            self._wait(_TARGET)

    def _writable(self) -> None:
        """Waiting for the target. While it is the slower one, this stays so: changing what is waited for at each chunk
        costs a tenth of the throughput."""
        if self.rest:
            try:
                sent = self._send(self.rest)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self.relay.abort(_text(error))
                return
            self.relay.active = self.relay.engine.now
            # A view: cutting bytes off the front would copy the rest each time, and a slow reader takes little at a time.
            self.rest = memoryview(self.rest)[sent:] if sent < len(self.rest) else b""
        elif not self._pass() and not self.relay.closed and not self.ended:
            self._wait(_SOURCE)

    def _pass(self) -> bool:
        """Take a chunk and send what the target takes of it; false where there was none."""
        try:
            count = self._receive(self._buffer)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self.relay.abort(_text(error))
            return False
        if not count:
            self._end()
            return False
        if not self._passed(count):
            return False
        try:
            sent = self._send(self._view[:count])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self.relay.abort(_text(error))
            return False
        if sent < count:
            self.rest = bytes(self._view[sent:count])
        return True

    def _end(self) -> None:
        """The source has no more: say so to the target, keep the other direction."""
        self.ended = True
        if self.relay.over():
            return
        self.stop()
        try:
            self.target.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.relay.abort(_text(error))


class Relay:
    """Joins ``inside`` and ``outside`` (connected, non-blocking; owned from here on) until both have ended.

    ``first`` are bytes that inside has said already; ``first_out`` what outside has. ``done`` is called once, with the
    relay, when both sockets are closed; ``ending`` is then "" for an orderly end. ``copied``: they are not the only descriptors
    of what they are.
    """

    __slots__ = (
        "__weakref__",
        "_copied",
        "_done",
        "active",
        "began",
        "closed",
        "ending",
        "engine",
        "inside",
        "inward",
        "meter",
        "outside",
        "outward",
    )

    def __init__(
        self,
        engine: Engine,
        inside: socket.socket,
        outside: socket.socket,
        meter: Meter,
        done: Callable[[Relay], None],
        first: bytes = b"",
        first_out: bytes = b"",
        *,
        copied: bool = False,
    ) -> None:
        self._copied = copied
        self.engine, self.inside, self.outside, self.meter, self._done = engine, inside, outside, meter, done
        self.began = self.active = engine.now
        self.ending = ""
        self.closed = False
        self.outward = _Way(self, inside, outside)
        self.inward = _Way(self, outside, inside)
        engine.relays.add(self)
        self.inward.start(first_out)
        if not self.closed:  # what was said already can be too much
            self.outward.start(first)

    def over(self) -> bool:
        """Called by a direction that has passed everything: whether both have, and both sockets are closed."""
        if self.outward.ended and self.inward.ended:
            self._close()
        return self.closed

    def abort(self, why: str) -> None:
        """End both sides with a reset."""
        if not self.closed:
            self.ending = why
            self._close()

    def _close(self) -> None:
        self.closed = True
        self.engine.relays.discard(self)
        for sock in (self.inside, self.outside):
            self.engine.selector.forget(sock.fileno(), copied=self._copied)
            if self.ending:
                reset(sock)
            else:
                sock.close()
        self._done(self)


def _text(error: OSError) -> str:
    return error.strerror or type(error).__name__
