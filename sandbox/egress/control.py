"""The gateway's end of the control socket: packets in with their descriptors, packets out without blocking."""

from __future__ import annotations

import array
import asyncio
import marshal
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from remit.sandbox.egress.wire import EVENTS, MESSAGE_SIZE, MOST_DESCRIPTORS

GATHER = 0.005
"""Seconds for which an event that may wait does, for others to be told with it."""
_GATHERED_AT_MOST = 64

if TYPE_CHECKING:
    from collections.abc import Callable


class Control:
    """``received`` gets each message and its descriptors, to keep; ``ended`` is called when the launcher is gone, ``written``
    for each event that has left."""

    def __init__(
        self,
        sock: socket.socket,
        received: Callable[[tuple[Any, ...], list[int]], None],
        ended: Callable[[], None],
        written: Callable[[], None],
    ) -> None:
        self._sock, self._received, self._ended, self._written = sock, received, ended, written
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, int]] = deque()
        self._gathered: list[tuple[Any, ...]] = []
        self._timed = self._waits = False
        self._empty: asyncio.Future[None] | None = None
        self._space = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
        sock.setblocking(False)
        self._loop.add_reader(sock, self._readable)

    def send(self, message: tuple[Any, ...]) -> None:
        """Send a message, now or when there is room."""
        self._put(marshal.dumps(message), 0)

    def tell(self, event: tuple[Any, ...], *, waits: bool = False) -> None:
        """Send an event, with those that waited for one. ``waits``: so may this one, for ``GATHER`` seconds at most."""
        self._gathered.append(tuple(event))  # marshal takes no named ones
        if not waits or len(self._gathered) >= _GATHERED_AT_MOST:
            self._tell_gathered()
        elif not self._timed:
            self._timed = True
            self._loop.call_later(GATHER, self._time)

    def _time(self) -> None:
        self._timed = False
        self._tell_gathered()

    def _tell_gathered(self) -> None:
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return
        data = marshal.dumps((EVENTS, gathered))
        if len(data) <= MESSAGE_SIZE:
            self._put(data, len(gathered))
        else:
            for event in gathered:
                self._put(marshal.dumps((EVENTS, [event])), 1)

    def _put(self, data: bytes, events: int) -> None:
        waiting = bool(self._queue)
        self._queue.append((data, events))
        if not waiting:
            self._writable()

    async def flushed(self) -> None:
        """Wait until everything has left, or nobody is there to read it."""
        self._tell_gathered()
        if self._queue:
            self._empty = self._loop.create_future()
            await self._empty

    def close(self) -> None:
        """No more callbacks; the socket is closed."""
        self._queue.clear()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if self._empty is not None and not self._empty.done():
            self._empty.set_result(None)
        self._sock.close()

    def _readable(self) -> None:
        try:
            data, control, flags, _ = self._sock.recvmsg(MESSAGE_SIZE, self._space, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, control, flags = b"", [], 0
        numbers = array.array("i")
        for level, kind, body in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers.frombytes(body[: len(body) - len(body) % numbers.itemsize])
        if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            # The end; or a message without all that belongs to it, which must not be half obeyed.
            for number in numbers:
                os.close(number)
            self._loop.remove_reader(self._sock)
            self._ended()
            return
        message: Any = marshal.loads(data)
        self._received(message, numbers.tolist())

    def _writable(self) -> None:
        while self._queue:
            data, events = self._queue[0]
            try:
                self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                if not self._waits:
                    self._waits = True
                    self._loop.add_writer(self._sock, self._writable)
                return
            except OSError:
                self._queue.clear()
                self._ended()
                break
            self._queue.popleft()
            for _ in range(events):
                self._written()
        if self._waits:
            self._loop.remove_writer(self._sock)
            self._waits = False
        if self._empty is not None and not self._empty.done():
            self._empty.set_result(None)
