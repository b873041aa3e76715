"""``remit.AsyncSession``: a session for asyncio and trio (through anyio), over the same core as ``Session``.

What computes or reads the disk (opening, compiling a grant that is new, ending) is done by a worker thread; what waits for
a call waits in the event loop, with one descriptor: an epoll(7) of everything that the call is about. That costs less than
a task for each stream, and no two waiters can be in each other's way.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import termios
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, overload

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
from anyio.streams.text import TextReceiveStream, TextSendStream

from remit.sandbox.authority.errors import RemitError
from remit.sandbox.authority.grant import Grant as Held
from remit.sandbox.session.asked import Grant, StrPath
from remit.sandbox.session.base import Base, Opened, a_grant, begin, reply_pair
from remit.sandbox.session.door import Door
from remit.sandbox.session.handle import Handle, Timeout, size, window
from remit.sandbox.session.opening import Wanted
from remit.sandbox.session.result import CAPTURE_LIMIT, CompletedCall, SessionClosed
from remit.sandbox.session.shared import Armed
from remit.sandbox.session.streams import CHUNK, DEVNULL, PIPE, Decode, Stream, Streams, decoder, encoded

_THREADS = 4
"""Worker threads of one session: not those that the program's own work may have used up."""
Made = TypeVar("Made")


class AsyncSession(Base):
    """As ``Session``: the same methods with the same parameters, awaited.

    ``async with`` opens the session and ends it; so does ``await`` open it, for whoever calls ``close``. It belongs to one
    event loop, and any number of its tasks.

    Cancelling a task that is in ``run``, or inside ``async with await session.popen(...)``, ends that call and everything
    that it started; the session goes on.

    Raises:
        remit.Error: when it is opened: a bad option or profile, ``Unenforceable``, a start that failed.
    """

    def _open(self, wanted: Wanted) -> None:
        self._wanted = wanted

    async def __aenter__(self) -> AsyncSession:
        if self._opened is None:
            self._limiter = anyio.CapacityLimiter(_THREADS)
            self._begin(await self._elsewhere(partial(begin, self._wanted), Opened.stop))
        return self

    def __await__(self) -> Generator[Any, Any, AsyncSession]:
        return self.__aenter__().__await__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _begin(self, opened: Opened) -> None:
        super()._begin(opened)
        self._arming = anyio.Lock()

    async def close(self) -> None:
        """End the session and everything in it. A narrowed session: take its grant back. Twice is once."""
        if self._opened is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._opened.stop, limiter=self._limiter)

    async def narrow(self, grant: Grant, *, principal: str = "", task: str = "", purpose: str = "") -> AsyncSession:
        """A session in this one, begun already, whose ceiling is ``grant``. See ``Session.narrow``."""
        opened = await self._elsewhere(partial(self._narrowed, grant, principal, task, purpose), Opened.stop)
        made = object.__new__(type(self))
        made._limiter = self._limiter
        made._begin(opened)
        return made

    async def revoke(self, grant: Held | CompletedCall[Any] | Handle | str | None = None) -> list[str]:
        """Take a grant back, and end what runs under it. See ``Session.revoke``."""
        identifier = self._taken_back(grant)
        ended: list[str] = []
        with anyio.CancelScope(shield=True):
            work = partial(self._door.revoke, self._core, identifier)
            ended += await anyio.to_thread.run_sync(work, limiter=self._limiter)
        return ended

    @overload
    async def run(
        self,
        args: Sequence[StrPath] | str,
        *,
        grant: Grant | None = ...,
        stdin: Stream = ...,
        input: bytes | None = ...,
        stdout: Stream = ...,
        stderr: Stream = ...,
        text: Literal[False] | None = ...,
        cwd: StrPath | None = ...,
        env: Mapping[str, str] | None = ...,
        timeout: float | None = ...,
        check: bool = ...,
        shell: bool = ...,
        encoding: None = ...,
        errors: None = ...,
        max_output: int = ...,
    ) -> CompletedCall[bytes]: ...
    @overload
    async def run(
        self,
        args: Sequence[StrPath] | str,
        *,
        grant: Grant | None = ...,
        stdin: Stream = ...,
        input: str | None = ...,
        stdout: Stream = ...,
        stderr: Stream = ...,
        text: Literal[True],
        cwd: StrPath | None = ...,
        env: Mapping[str, str] | None = ...,
        timeout: float | None = ...,
        check: bool = ...,
        shell: bool = ...,
        encoding: str | None = ...,
        errors: str | None = ...,
        max_output: int = ...,
    ) -> CompletedCall[str]: ...
    @overload
    async def run(
        self,
        args: Sequence[StrPath] | str,
        *,
        grant: Grant | None = ...,
        stdin: Stream = ...,
        input: str | None = ...,
        stdout: Stream = ...,
        stderr: Stream = ...,
        text: bool | None = ...,
        cwd: StrPath | None = ...,
        env: Mapping[str, str] | None = ...,
        timeout: float | None = ...,
        check: bool = ...,
        shell: bool = ...,
        encoding: str,
        errors: str | None = ...,
        max_output: int = ...,
    ) -> CompletedCall[str]: ...
    async def run(
        self,
        args: Sequence[StrPath] | str,
        *,
        grant: Grant | None = None,
        stdin: Stream = None,
        input: bytes | str | None = None,
        stdout: Stream = PIPE,
        stderr: Stream = PIPE,
        text: bool | None = None,
        cwd: StrPath | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        check: bool = False,
        shell: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        max_output: int = CAPTURE_LIMIT,
    ) -> CompletedCall[Any]:
        """One call, to its end. See ``Session.run``; where the task is cancelled, so is the call."""
        within, max_output = Timeout(timeout), size(max_output)
        decode = decoder(text, encoding, errors)
        given = encoded(input, decode)
        call = await self._start(
            args,
            grant,
            (PIPE if input is not None else stdin, stdout, stderr),
            decode,
            cwd=cwd,
            env=env,
            shell=shell,
            within=within,
        )
        async with call:
            result = await call.complete(given, within, max_output)
        if check:
            result.check_returncode()
        return result

    async def popen(
        self,
        args: Sequence[StrPath] | str,
        *,
        grant: Grant | None = None,
        stdin: Stream = None,
        stdout: Stream = PIPE,
        stderr: Stream = PIPE,
        text: bool | None = None,
        cwd: StrPath | None = None,
        env: Mapping[str, str] | None = None,
        shell: bool = False,
        pty: bool = False,
        background: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
    ) -> AsyncPopen:
        """A call that runs while the caller goes on. See ``Session.popen``.

        The streams are anyio's: byte streams, or with ``text`` text streams. With ``pty``, ``stdin`` and ``stdout`` are the
        terminal's two directions, and the call has started.
        """
        call = await self._start(
            args,
            grant,
            (stdin, stdout, stderr),
            decoder(text, encoding, errors),
            cwd=cwd,
            env=env,
            shell=shell,
            within=Timeout(None),
            pty=pty,
            background=background,
        )
        try:
            if pty:
                await call.wait_started()
            call.open_streams()
        except BaseException:
            await call.close()
            raise
        return call

    async def _start(
        self,
        args: Sequence[StrPath] | str,
        grant: Grant | None,
        wanted: tuple[Stream, Stream, Stream],
        decode: Decode,
        *,
        cwd: StrPath | None,
        env: Mapping[str, str] | None,
        shell: bool,
        within: Timeout,
        pty: bool = False,
        background: bool = False,
    ) -> AsyncPopen:
        armed = await self._armed_soon(grant)
        try:
            streams = await self._streams(wanted, pty=pty)
            try:
                ticket = self._ticket(armed, args, grant, cwd=cwd, env=env, shell=shell, pty=pty, background=background)
                ours, theirs = reply_pair()
                with theirs:
                    try:
                        while (pause := self._send(ticket, theirs, streams, socket.MSG_DONTWAIT)) is not None:
                            if within.over():
                                raise within.expired(ticket.args)
                            room = ticket.requests.fileno()
                            with anyio.move_on_after(within.left()):
                                await (anyio.sleep(pause) if pause else _ready(room, select.EPOLLOUT))
                    except BaseException:
                        ours.close()
                        raise
            except BaseException:
                streams.close()
                raise
            finally:
                streams.close_theirs()
        except BaseException:
            self._core.shared.release(armed)
            raise
        return self._handle(AsyncPopen, ticket, ours, streams, background=background, decode=decode)

    async def _armed_soon(self, grant: Grant | None) -> Armed:
        core = self._core
        core.check(core.chain, core.grant)
        armed = core.ready(a_grant(grant))
        if armed is None:
            # Fifty tasks with the same new grant: one compiles it.
            async with self._arming:
                armed = core.ready(grant)
                if armed is None:
                    armed = await self._elsewhere(partial(self._armed, grant), core.shared.release)
        return armed

    async def _streams(self, wanted: tuple[Stream, Stream, Stream], *, pty: bool) -> Streams:
        make = partial(Streams, *wanted, pty=pty)
        if pty or wanted[0] in (None, PIPE, DEVNULL):
            return make()
        # A regular file is copied.
        return await self._elsewhere(make, _close_all)

    async def _elsewhere(self, work: Callable[[], Made], discard: Callable[[Made], object]) -> Made:
        """What ``work`` makes, in a worker thread. Where nobody waits for it any more, the thread discards it.

        asyncio's own cancellation (``task.cancel``, ``wait_for``) ends the waiting at once, whatever shields it.
        """
        errand = _Errand(work, discard)
        try:
            await anyio.to_thread.run_sync(errand.run, limiter=self._limiter)
        except BaseException:
            errand.give_up()
            raise
        return errand.made[0]


def _close_all(streams: Streams) -> None:
    streams.close()
    streams.close_theirs()


class _Errand(Generic[Made]):
    """Something that a thread makes for somebody who may have gone by then."""

    def __init__(self, work: Callable[[], Made], discard: Callable[[Made], object]) -> None:
        self._work = work
        self._discard = discard
        self._lock = threading.Lock()
        self._gone = False
        self.made: list[Made] = []

    def run(self) -> None:
        """In the thread."""
        made = self._work()
        with self._lock:
            if not self._gone:
                self.made.append(made)
                return
        self._discard(made)

    def give_up(self) -> None:
        """Nobody waits for it."""
        with self._lock:
            self._gone = True
        for made in self.made:
            threading.Thread(target=self._discard, args=(made,)).start()


async def _ready(descriptor: int, events: int) -> None:
    """Wait for a descriptor, whoever else does: an event loop allows one waiter for each descriptor, and this one's is new."""
    with select.epoll() as watch:
        watch.register(descriptor, events)
        await anyio.wait_readable(watch.fileno())


class PipeReceiver(anyio.abc.ByteReceiveStream):
    """What a call writes."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)  # nobody waits for it, or it would not be dropped

    async def receive(self, max_bytes: int = CHUNK) -> bytes:
        """The next bytes. Raises anyio.EndOfStream, anyio.ClosedResourceError."""
        while True:
            if self.descriptor < 0:
                raise anyio.ClosedResourceError
            await anyio.wait_readable(self.descriptor)
            try:
                data = os.read(self.descriptor, max_bytes)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                data = b""  # how a terminal ends
            if not data:
                raise anyio.EndOfStream
            return data

    async def aclose(self) -> None:
        """Read no more."""
        self.close()

    def close(self) -> None:
        self.descriptor = _closed(self.descriptor)


class PipeSender(anyio.abc.ByteSendStream):
    """What a call reads."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)  # nobody waits for it, or it would not be dropped

    async def send(self, item: bytes) -> None:
        """Write all of it. Raises anyio.BrokenResourceError: nobody reads; anyio.ClosedResourceError."""
        await anyio.lowlevel.checkpoint()
        left = memoryview(item)
        while left:
            if self.descriptor < 0:
                raise anyio.ClosedResourceError
            try:
                left = left[os.write(self.descriptor, left[:CHUNK]) :]
            except BlockingIOError:
                await anyio.wait_writable(self.descriptor)
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO):
                    raise
                raise anyio.BrokenResourceError from error

    async def aclose(self) -> None:
        """The call sees the end of its input."""
        self.close()

    def close(self) -> None:
        self.descriptor = _closed(self.descriptor)


def _closed(descriptor: int) -> int:
    if descriptor >= 0:
        anyio.notify_closing(descriptor)
        os.close(descriptor)
    return -1


class AsyncPopen(Handle):
    """A running call. What waits is awaited: ``wait``, ``communicate``, ``result``, ``close``; what only says something to
    the call is not, as everywhere: ``kill``, ``terminate``, ``send_signal``, ``poll``."""

    stdin: PipeSender | TextSendStream | None = None
    stdout: PipeReceiver | TextReceiveStream | None = None
    stderr: PipeReceiver | TextReceiveStream | None = None
    _ends: tuple[PipeSender | None, PipeReceiver | None, PipeReceiver | None] = (None, None, None)

    def open_streams(self) -> None:
        """Make streams of the pipes, or of the terminal."""
        if self.terminal >= 0:
            ours = [os.dup(self.terminal), os.dup(self.terminal), -1]
        else:
            ours = [self._streams.take(index) for index in range(3)]
        sender = PipeSender(ours[0]) if ours[0] >= 0 else None
        receivers = [PipeReceiver(descriptor) if descriptor >= 0 else None for descriptor in ours[1:]]
        self._ends = (sender, receivers[0], receivers[1])
        if self._decode is None:
            self.stdin, self.stdout, self.stderr = self._ends
            return
        encoding, errors = self._decode
        self.stdin = TextSendStream(sender, encoding, errors) if sender else None
        self.stdout, self.stderr = (
            TextReceiveStream(receiver, encoding, errors) if receiver else None for receiver in receivers
        )

    async def __aenter__(self) -> AsyncPopen:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                await self._end()
            elif not self._background and self._conversation.answer is None:
                # As subprocess does: or a command that reads to the end, or writes much, would be waited for in vain.
                self._close_streams()
                await self._await_end()
        except anyio.get_cancelled_exc_class():
            await self._end()
            raise
        finally:
            # Even where asyncio cancels a second time: then the call is ended by what it sees, and nobody waits for it.
            self._let_go()

    async def close(self) -> None:
        """Let go of the call: what still runs of it is ended."""
        self._let_go()

    def _let_go(self) -> None:
        self._close_streams()
        self._conversation.close()

    def _close_streams(self) -> None:
        for end in self._ends:
            if end is not None:
                end.close()
        self._streams.close()

    async def wait(self, timeout: float | None = None) -> int:
        """Wait for the command to end. Raises TimeoutExpired (it goes on running), GrantExpired, GrantRevoked."""
        within = Timeout(timeout)
        with anyio.move_on_after(within.left()):
            await self._await_end()
        self._conversation.raise_ended()
        status = self.returncode
        if status is None:
            raise within.expired(self.args)
        return status

    async def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Send ``input``, read both streams to their ends, wait.

        Raises TimeoutExpired: it goes on running, and another ``communicate`` goes on with it; nothing is lost.
        """
        result = await self.complete(encoded(input, self._decode), Timeout(timeout), CAPTURE_LIMIT, kill=False)
        return result.stdout, result.stderr

    async def result(self) -> CompletedCall[Any]:
        """Everything about a call, once it has ended (streams that were pipes are the caller's to read)."""
        await self._await_end()
        return self._conversation.completed(None, None)

    async def resize(self, rows: int, columns: int) -> None:
        """The terminal's window has this size now."""
        await self.wait_started()
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, window(rows, columns))

    async def wait_started(self) -> None:
        """With ``pty``: until there is a terminal, or the call has ended."""
        while self.terminal < 0 and not self._conversation.settled():
            await _ready(self._conversation.connection.fileno(), select.EPOLLIN)
            self._conversation.hear()

    # --- inside --------------------------------------------------------------------------------------------------------

    async def _await_end(self) -> None:
        while not self._conversation.settled():
            await _ready(self._conversation.connection.fileno(), select.EPOLLIN)
            self._conversation.hear()

    async def _end(self) -> SessionClosed | None:
        """End it and, unless it is a background call, wait until it has ended, whoever is cancelled.

        Where nothing comes of that, the session is ended: that is what to raise.
        """
        self.kill()
        if self._background or self._conversation.answer is not None:
            return None
        if await self._has_ended(Door.SOON):
            return None
        try:
            if await self._shielded(self._conversation.withdraw):
                return None
        except SessionClosed as lost:
            return lost
        if await self._has_ended(Door.PATIENCE):
            return None
        return await self._shielded(self._conversation.give_up)

    async def _has_ended(self, seconds: float) -> bool:
        """Whether it ends within that time, whoever is cancelled."""
        with anyio.move_on_after(seconds, shield=True) as patience:
            try:
                await self._await_end()
            except RemitError:
                pass  # what ended the wait is being told already
        return not patience.cancelled_caught

    async def _shielded(self, work: Callable[[], Made]) -> Made:
        """What blocks for a bounded time, on a thread of its own, whoever is cancelled."""
        made: list[Made] = []
        with anyio.CancelScope(shield=True):
            made.append(await anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1)))
        return made[0]

    async def complete(
        self, given: bytes | None, within: Timeout, limit: int, *, kill: bool = True
    ) -> CompletedCall[Any]:
        """Feed it ``given``, read both streams to their ends, keeping ``limit`` bytes of each, and wait for it.

        Raises TimeoutExpired: with ``kill``, everything that it started was ended before.
        """
        exchange = self._exchanging(self._pipes(), given, limit)
        with select.epoll() as watch:
            exchange.begin(watch)
            with anyio.move_on_after(within.left()):
                while not exchange.over:
                    if exchange.fed:
                        self._close_stdin()
                    await anyio.wait_readable(watch.fileno())
                    exchange.step(watch, watch.poll(0))
                return exchange.result()
        expired = exchange.expired(within)
        if kill and (lost := await self._end()):
            raise lost from expired
        raise expired

    def _pipes(self) -> list[int]:
        return [
            ours if end is None else end.descriptor for ours, end in zip(self._streams.ours, self._ends, strict=True)
        ]

    def _kept(self) -> list[int]:
        return [*super()._kept(), *(end.descriptor for end in self._ends if end is not None and end.descriptor >= 0)]

    def _close_stdin(self) -> None:
        if self._ends[0] is not None:
            self._ends[0].close()
        self._streams.close_one(0)
