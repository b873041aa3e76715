"""What a running call's handles have in common: everything but waiting. Nothing here blocks.

``Conversation`` knows what a message about the call means, ``Exchange`` what to do with a stream that is ready, ``Handle``
is what both kinds of ``Popen`` offer. ``Popen`` waits in the kernel, ``AsyncPopen`` in an event loop.
"""

from __future__ import annotations

import operator
import os
import select
import socket
import threading
import time
from signal import NSIG
from typing import Any, Protocol

from remit.sandbox.session.core import Core, Ticket
from remit.sandbox.session.door import Door
from remit.sandbox.session.link import descriptors, message, receive
from remit.sandbox.session.result import Capture, CompletedCall, SessionClosed, TimeoutExpired
from remit.sandbox.session.streams import CHUNK, Decode, Streams
from remit.sandbox.session.text import decoded

_REPLY = 1 << 17
_COUNTABLE = ((1 << 31) - 1) // 1000 - 1
"""Seconds that poll(2) can wait at the most: 24 days."""
_FINAL = ("exited", "failed", "lost", "unreadable")
_NEVER_STARTED = ("exited", 9, "killed", 0.0, 0, 0, (), True)
# As plain numbers: an enumeration's "or" takes as long as the call.
_NEVER_WAIT = int(socket.MSG_NOSIGNAL) | int(socket.MSG_DONTWAIT)
_ONLY_LOOK = int(socket.MSG_PEEK) | int(socket.MSG_DONTWAIT)


class Watch(Protocol):
    """``select.poll`` or ``select.epoll``: their masks are the same."""

    def register(self, fd: int, eventmask: int, /) -> None: ...
    def unregister(self, fd: int, /) -> None: ...


class Conversation:
    """A call's socket: what was heard through it, and what that means."""

    def __init__(self, core: Core, door: Door, ticket: Ticket, connection: socket.socket) -> None:
        self.core = core
        self.ticket = ticket
        self.connection = connection
        self.answer: tuple[Any, ...] | None = None
        """The final message."""
        self.frozen = ""
        """Why the call stands still, where it does."""
        self.terminal = -1
        self._door = door
        self._hearing = threading.Lock()
        self._held = True
        self._abandoned = False

    def say(self, message: bytes) -> None:
        """A message to the thread that runs the call."""
        try:
            self.connection.send(message, _NEVER_WAIT)
        except OSError:
            pass  # it has ended

    def hear(self) -> None:
        """One message, if there is one. Raises what made the call impossible.

        The final one is looked at and left where it is: so it stays readable for everybody else who waits for it.
        """
        with self._hearing:
            if self.answer is not None:
                return
            self.check_ours()
            try:
                data = self._look()
            except BlockingIOError:
                return  # another one has heard it
            heard = message(data)
            if heard[0] not in _FINAL:
                _, ancillary, _, _ = self.connection.recvmsg(_REPLY, 64, socket.MSG_CMSG_CLOEXEC)
                if heard[0] == "terminal":
                    self.terminal = descriptors(ancillary)[0]
                elif heard[0] == "frozen":
                    self.frozen = heard[1]
                return
            self.answer = heard
        self._release()
        if heard[0] == "lost":
            self._door.drain(self.core, self.ticket.armed.identifier)
        if heard[0] != "exited":
            raise self._failure()

    def _look(self) -> bytes:
        # A signal for a command that had just ended may be unread.
        return receive(self.connection, _REPLY, flags=_ONLY_LOOK)[0]

    def settled(self) -> bool:
        """Whether the call has ended. Raises where it could not run, or stands frozen."""
        if self.answer is None:
            if self.frozen:
                self.core.raise_ended(self.ticket, self.frozen, "the call is stopped where it stood (kill() ends it)")
            if self.connection.fileno() < 0:
                self.check_ours()
                raise ValueError("the call was let go of")
            return False
        if self.answer[0] != "exited":
            raise self._failure()
        return True

    def raise_ended(self) -> None:
        """Raises GrantExpired, GrantRevoked where that ended the call."""
        if self.answer is not None and self.answer[0] == "exited":
            self.core.raise_ended(self.ticket, self.answer[2])

    def completed(self, stdout: Any, stderr: Any, lost: tuple[int, int] = (0, 0)) -> CompletedCall[Any]:
        """The result of a call that has ended. Raises where its grant's end ended it."""
        assert self.answer is not None
        return self.core.completed(self.ticket, self.answer, stdout, stderr, lost)

    def withdraw(self) -> bool:
        """Of a call that was told to end, and has not: whether that is because it waits for others to end. Then it never starts,
        and has ended as one that was killed. Blocks, for a bounded time. Raises SessionClosed: nobody answers."""
        if self._door.taken(self.core, self.ticket.call):
            return False
        with self._hearing:
            self.answer = self.answer or _NEVER_STARTED
            try:
                self.connection.shutdown(socket.SHUT_RDWR)  # whoever waits for it looks again
            except OSError:
                pass  # it was let go of
        self._release()
        return True

    def give_up(self) -> SessionClosed:
        """Nobody answers who would end the call: end its session. Blocks, for a bounded time. What to raise."""
        return self._door.give_up(self.core)

    def close(self) -> None:
        """The thread that runs the call sees that, and ends what is left of it."""
        self._hang_up()
        self._let_go()
        self._release()

    def abandon(self) -> None:
        """In a forked child: it is the parent's, which a copy here would keep from ending it."""
        self._abandoned = True
        self._held = False
        self._hearing = threading.Lock()
        self._door.abandon()
        self.core.shared.abandon()
        self._let_go()

    def __del__(self) -> None:
        """Whoever has dropped the handle wants nothing more of the call."""
        if self._held:
            self._held = False
            self.core.shared.dropped.append(self.ticket.armed)
        self._hang_up()  # closing it is its own end's, with a warning to whoever asked for such
        if self.terminal >= 0:
            os.close(self.terminal)

    def _hang_up(self) -> None:
        """Whoever else has a copy of the connection, such as a child that another thread has just forked."""
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was closed, or is at the other end

    def _let_go(self) -> None:
        if self.terminal >= 0:
            os.close(self.terminal)
            self.terminal = -1
        self.connection.close()

    def check_ours(self) -> None:
        """Raises SessionClosed in a forked child."""
        if self._abandoned:
            self.core.check((), self.core.grant)

    def _failure(self) -> Exception:
        return self.core.failure(self.ticket, self.answer or ("lost",))

    def _release(self) -> None:
        if self._held:
            self._held = False
            self.core.shared.release(self.ticket.armed)


class Exchange:
    """Feeding a call, keeping what it says, hearing how it ended: by whatever says that a descriptor is ready."""

    def __init__(
        self, conversation: Conversation, pipes: list[int], given: bytes | None, limit: int, decode: Decode
    ) -> None:
        self._conversation = conversation
        self._writer = pipes[0]
        self._readers = pipes[1:]
        self._pending = memoryview(given or b"")
        self._captures = {descriptor: Capture(limit) for descriptor in self._readers if descriptor >= 0}
        self._open = {*self._captures}
        self._decode = decode
        if self._writer >= 0 and self._pending:
            os.set_blocking(self._writer, False)

    def begin(self, watch: Watch) -> None:
        """Say what to wait for. Raises what made the call impossible."""
        if not self._conversation.settled():
            watch.register(self._conversation.connection.fileno(), select.POLLIN)
        for descriptor in self._open:
            watch.register(descriptor, select.POLLIN)
        if self._writer >= 0 and self._pending:
            watch.register(self._writer, select.POLLOUT)

    @property
    def fed(self) -> bool:
        """Nothing is left to write: the call's stdin is to be closed."""
        return not self._pending

    @property
    def over(self) -> bool:
        """The call has ended, and so have its streams. Raises what ended it otherwise."""
        return self._conversation.settled() and not self._open

    def step(self, watch: Watch, ready: list[tuple[int, int]]) -> None:
        """Do what can be done now. Raises what made the call impossible."""
        for descriptor, events in ready:
            if descriptor in self._open:
                try:
                    data = os.read(descriptor, CHUNK)
                except BlockingIOError:
                    continue  # somebody else has read it
                if data:
                    self._captures[descriptor].add(data)
                else:
                    watch.unregister(descriptor)
                    self._open.discard(descriptor)
            elif descriptor == self._writer:
                self._pending = _fed(descriptor, self._pending, gone=bool(events & (select.POLLERR | select.POLLHUP)))
                if not self._pending:
                    watch.unregister(descriptor)
                    self._writer = -1
            else:
                self._conversation.hear()
                if self._conversation.answer is not None:
                    watch.unregister(descriptor)

    def result(self) -> CompletedCall[Any]:
        """What came of it. Raises UnicodeDecodeError: text was asked for, and that is none."""
        # First: of a call that was ended, that is what there is to say.
        self._conversation.raise_ended()
        answer = self._conversation.answer
        whole = answer is not None and not answer[2]
        (stdout, lost), (stderr, more) = [
            self._value(which, self._decode, whole=whole) for which in range(len(self._readers))
        ]
        return self._conversation.completed(stdout, stderr, (lost, more))

    def expired(self, timeout: Timeout) -> TimeoutExpired:
        """The error of one that took too long, with what there is so far, text or not."""
        decode = (self._decode[0], "replace") if self._decode and self._decode[1] == "strict" else self._decode
        said = [self._value(which, decode, whole=False)[0] for which in range(len(self._readers))]
        return timeout.expired(self._conversation.ticket.args, *said)

    def _value(self, which: int, decode: Decode, *, whole: bool) -> tuple[Any, int]:
        """A stream as far as it was kept, and how many bytes are missing in the middle."""
        capture = self._captures.get(self._readers[which])
        if capture is None:
            return None, 0
        head, tail = capture.halves()
        if decode is None:
            return head + tail, capture.lost
        text, cut = decoded(head, tail, capture.lost, *decode, whole=whole)
        return text, capture.lost + cut


class Handle:
    """A running call, for whoever waits for it."""

    def __init__(self, conversation: Conversation, streams: Streams, *, background: bool, decode: Decode) -> None:
        self._conversation = conversation
        self._streams = streams
        self._background = background
        self._decode = decode
        self._exchange: Exchange | None = None
        self.args = conversation.ticket.args
        self.call = conversation.ticket.call
        """The call's id in the session."""
        self.grant = conversation.ticket.grant

    @property
    def terminal(self) -> int:
        """With ``pty``: the master side's descriptor, once the command has started; else -1."""
        return self._conversation.terminal

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None as long as it is not known to have ended."""
        answer = self._conversation.answer
        return os.waitstatus_to_exitcode(answer[1]) if answer is not None and answer[0] == "exited" else None

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self._conversation.answer is None:
            self._conversation.check_ours()
            if self._conversation.connection.fileno() >= 0:
                self._conversation.hear()
        return self.returncode

    def abandon(self) -> None:
        """In a forked child: the call is the parent's, and so are its streams. What stands in their buffers here goes nowhere."""
        self._conversation.abandon()
        nowhere = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for descriptor in self._kept():
            os.dup2(nowhere, descriptor, inheritable=False)
        os.close(nowhere)

    def _kept(self) -> list[int]:
        """The descriptors of its streams that are open."""
        return [descriptor for descriptor in self._streams.ours if descriptor >= 0]

    def send_signal(self, signal: int) -> None:
        """A signal for the command. Raises ValueError: there is no such signal."""
        number = operator.index(signal)
        if not 0 <= number < NSIG:
            raise ValueError(f"there is no signal {signal!r}")
        self._say(b"s" + number.to_bytes(4, "little"))

    def terminate(self) -> None:
        """SIGTERM for the command."""
        self.send_signal(15)

    def kill(self) -> None:
        """End the command and, unless it is a background call, everything that it started. Does not wait."""
        self._say(b"k")

    def _say(self, message: bytes) -> None:
        if self._conversation.answer is None or self._background:
            self._conversation.say(message)

    def _exchanging(self, pipes: list[int], given: bytes | None, limit: int) -> Exchange:
        """The exchange that is under way, or a new one: a second ``communicate`` goes on where the first one stopped."""
        if self._exchange is None:
            self._exchange = Exchange(self._conversation, pipes, given, limit, self._decode)
        return self._exchange


def _fed(descriptor: int, pending: memoryview, *, gone: bool) -> memoryview:
    """What is left to write after writing some. Nothing where the reader has gone."""
    if gone:
        return pending[:0]
    try:
        return pending[os.write(descriptor, pending[:CHUNK]) :]
    except BrokenPipeError:
        return pending[:0]
    except BlockingIOError:
        return pending


class Timeout:
    """A timeout that has begun. Less than nothing has passed already, as ``subprocess`` has it; more than poll(2) can count is no
    timeout, as None is none.

    Raises TypeError; ValueError: NaN, which no time is ever later than.
    """

    __slots__ = ("_end", "given")

    def __init__(self, given: Any) -> None:
        if given is not None and (isinstance(given, bool) or not hasattr(given, "__float__")):
            raise TypeError(f"timeout is a number of seconds, not {given!r}")
        if given != given:
            raise ValueError("timeout is not a number of seconds but NaN")
        self.given: float | None = None if given is None or given > _COUNTABLE else given
        """Seconds, as the caller gave them."""
        self._end: float | None = None if self.given is None else time.monotonic() + self.given

    def left(self) -> float | None:
        """Seconds, 0 where it is over; None: there is none."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def over(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def milliseconds(self) -> float | None:
        """What is left of it, for poll(2)."""
        left = self.left()
        return None if left is None else left * 1000

    def expired(self, args: Any, stdout: Any = None, stderr: Any = None) -> TimeoutExpired:
        """The error of a call that took longer."""
        assert self.given is not None
        return TimeoutExpired(args, self.given, stdout, stderr)


def size(most: Any) -> int:
    """How many bytes of a stream to keep. Raises TypeError, ValueError."""
    if isinstance(most, bool) or not isinstance(most, int):
        raise TypeError(f"max_output is a number of bytes, not {most!r}")
    if most < 0:
        raise ValueError(f"max_output {most} is less than nothing")
    return most


def window(rows: int, columns: int) -> bytes:
    """``struct winsize`` (``tty_ioctl(4)``)."""
    return rows.to_bytes(2, "little") + columns.to_bytes(2, "little") + bytes(4)
