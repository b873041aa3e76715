"""One running call: its streams, its socket to the thread that started it, and waiting for it."""

from __future__ import annotations

import fcntl
import io
import marshal
import os
import select
import socket
import stat
import subprocess
import termios
import time
from types import TracebackType
from typing import IO, Any

from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.session.core import Core, Ticket
from remit.sandbox.session.door import Door
from remit.sandbox.session.link import descriptors
from remit.sandbox.session.result import CAPTURE_LIMIT, Capture, CompletedCall, TimeoutExpired

PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
_REPLY = 1 << 17
_CHUNK = 1 << 16
_STDIN_COPY = 64 << 20
Stream = int | IO[Any] | None


class Streams:
    """The three standard descriptors of a call: theirs to send, ours to keep."""

    def __init__(self, stdin: Stream, stdout: Stream, stderr: Stream, *, pty: bool) -> None:
        self.theirs: list[int] = []
        self.ours = [-1, -1, -1]
        self._opened: list[int] = []
        if pty:
            return
        try:
            self.theirs.append(self._input(stdin))
            self.theirs.append(self._output(1, stdout))
            self.theirs.append(self.theirs[1] if stderr == STDOUT else self._output(2, stderr))
        except BaseException:
            self.close()
            self.close_theirs()
            raise

    def _input(self, wanted: Stream) -> int:
        if wanted == PIPE:
            read, self.ours[0] = os.pipe2(os.O_CLOEXEC)
            return self._own(read)
        if wanted is None or wanted == DEVNULL:
            return self._own(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        descriptor = wanted if isinstance(wanted, int) else wanted.fileno()
        copied = copy_of_regular(descriptor)
        return descriptor if copied < 0 else self._own(copied)

    def _output(self, which: int, wanted: Stream) -> int:
        if wanted == PIPE:
            self.ours[which], write = os.pipe2(os.O_CLOEXEC)
            return self._own(write)
        if wanted == DEVNULL:
            return self._own(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))
        if wanted is None:
            return which
        return wanted if isinstance(wanted, int) else wanted.fileno()

    def _own(self, descriptor: int) -> int:
        self._opened.append(descriptor)
        return descriptor

    def close_theirs(self) -> None:
        for descriptor in self._opened:
            os.close(descriptor)
        self._opened.clear()

    def close(self) -> None:
        for index, descriptor in enumerate(self.ours):
            if descriptor >= 0:
                os.close(descriptor)
                self.ours[index] = -1


def copy_of_regular(descriptor: int) -> int:
    """What is left to read of a regular file, in memory and sealed; -1 for anything else.

    A regular file's descriptor is a door: ``/proc/self/fd/0`` opens it again, for writing too.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return -1
    copy = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    left = _STDIN_COPY
    while left > 0 and (data := os.read(descriptor, min(_CHUNK, left))):
        os.write(copy, data)
        left -= len(data)
    if left <= 0 and os.read(descriptor, 1):
        os.close(copy)
        raise LaunchError(
            f"stdin is a file of more than {_STDIN_COPY >> 20} MiB", hint="pass it through a pipe (stdin=PIPE)"
        )
    os.lseek(copy, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
    return copy


class Popen:
    """A running call, with the names of ``subprocess.Popen``."""

    def __init__(
        self,
        core: Core,
        door: Door,
        ticket: Ticket,
        reply: socket.socket,
        streams: Streams,
        *,
        background: bool,
        decode: tuple[str, str] | None,
    ) -> None:
        self._core = core
        self._door = door
        self._ticket = ticket
        self._reply = reply
        self._streams = streams
        self._background = background
        self._decode = decode
        self._answer: tuple[Any, ...] | None = None
        self._frozen = ""
        self._files = [-1, -1, -1]
        self.args = ticket.args
        self.call = ticket.call
        """The call's id in the session."""
        self.grant = ticket.grant
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        self.terminal = -1
        """With ``pty``: the master side's descriptor, once the command has started (``wait_started``)."""
        self.returncode: int | None = None

    def open_streams(self) -> None:
        """Make files of the pipes: ``stdin``, ``stdout``, ``stderr``."""
        for index, name in enumerate(("stdin", "stdout", "stderr")):
            descriptor = self._streams.ours[index]
            if descriptor >= 0:
                raw = io.FileIO(descriptor, "w" if index == 0 else "r")
                buffered = io.BufferedWriter(raw) if index == 0 else io.BufferedReader(raw)
                setattr(self, name, io.TextIOWrapper(buffered, *self._decode) if self._decode else buffered)
                self._streams.ours[index] = -1
                self._files[index] = descriptor

    def __enter__(self) -> Popen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is not None and self._answer is None:
                self.kill()
            if not self._background and self._answer is None:
                self._wait_answer(None)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the call: what still runs of it is ended."""
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                try:
                    file.close()
                except OSError:
                    pass  # a broken pipe on the last flush
        if self.terminal >= 0:
            os.close(self.terminal)
            self.terminal = -1
        self._streams.close()
        self._reply.close()

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self._answer is None and self._reply.fileno() >= 0 and _readable(self._reply, 0):
            self._listen()
        return self._status()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the command to end. Raises TimeoutExpired (it goes on running), GrantExpired, GrantRevoked."""
        if not self._wait_answer(timeout):
            assert timeout is not None
            raise TimeoutExpired(self.args, timeout)
        self._raise_frozen()
        status = self._status()
        if self._answer is not None and self._answer[0] == "exited":
            self._core.raise_ended(self._ticket, self._answer[2])
        if status is None:
            raise self._core.failure(
                self._ticket, self._answer if self._answer and self._answer[0] == "failed" else None
            )
        return status

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Send ``input``, read both streams to their ends, wait. Raises TimeoutExpired (it goes on running)."""
        result = self.complete(encoded(input, None), timeout, CAPTURE_LIMIT, kill=False)
        return result.stdout, result.stderr

    def result(self) -> CompletedCall[Any]:
        """Everything about a call that has ended (streams that were pipes are the caller's to read)."""
        self._wait_answer(None)
        self._raise_frozen()
        return self._completed(None, None)

    def send_signal(self, signal: int) -> None:
        """A signal for the command."""
        self._say(b"s" + int(signal).to_bytes(4, "little"))

    def terminate(self) -> None:
        """SIGTERM for the command."""
        self.send_signal(15)

    def kill(self) -> None:
        """End the command and, unless it is a background call, everything that it started."""
        self._say(b"k")

    def resize(self, rows: int, columns: int) -> None:
        """The terminal's window has this size now."""
        self.wait_started()
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, window(rows, columns))

    def wait_started(self) -> None:
        """With ``pty``: until there is a terminal, or the call has failed."""
        while self.terminal < 0 and self._answer is None:
            self._listen()

    # --- inside --------------------------------------------------------------------------------------------------------

    def _say(self, message: bytes) -> None:
        if self._answer is None or self._background:
            try:
                self._reply.send(message, socket.MSG_NOSIGNAL)
            except OSError:
                pass  # it has ended

    def _listen(self) -> None:
        """One message about the call. Raises what made it impossible."""
        try:
            data, ancillary, _, _ = self._reply.recvmsg(_REPLY, 64, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            data, ancillary = b"", []
        core = self._core
        if not data:
            self._door.drain(core)
            self._answer = ("lost",)
            raise core.failure(self._ticket, None)
        message: tuple[Any, ...] = marshal.loads(data)
        if message[0] == "terminal":
            self.terminal = descriptors(ancillary)[0]
        elif message[0] == "frozen":
            self._frozen = message[1]
        elif message[0] == "failed":
            self._answer = message
            raise core.failure(self._ticket, message)
        else:
            self._answer = message

    def _raise_frozen(self) -> None:
        if self._frozen and self._answer is None:
            self._core.raise_ended(self._ticket, self._frozen, "the call is stopped where it stood (kill() ends it)")

    def _wait_answer(self, timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._answer is None and not self._frozen:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if left is not None and not _readable(self._reply, left):
                return False
            self._listen()
        return True

    def _status(self) -> int | None:
        if self._answer is not None and self._answer[0] == "exited":
            self.returncode = os.waitstatus_to_exitcode(self._answer[1])
        return self.returncode

    def _completed(self, stdout: Any, stderr: Any, lost: tuple[int, int] = (0, 0)) -> CompletedCall[Any]:
        assert self._answer is not None
        result = self._core.completed(self._ticket, self._answer, stdout, stderr, lost)
        self.returncode = result.returncode
        return result

    def complete(
        self, given: bytes | None, timeout: float | None, limit: int, *, kill: bool = True
    ) -> CompletedCall[Any]:
        """Feed it ``given``, read both streams to their ends, keeping ``limit`` bytes of each, and wait for it.

        Raises TimeoutExpired: with ``kill``, everything that it started was ended before.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pipes = [ours if ours >= 0 else file for ours, file in zip(self._streams.ours, self._files, strict=True)]
        captures: dict[int, Capture] = {}
        watch = select.poll()
        if self._answer is None:
            watch.register(self._reply.fileno(), select.POLLIN)
        for descriptor in pipes[1:]:
            if descriptor >= 0:
                captures[descriptor] = Capture(limit)
                watch.register(descriptor, select.POLLIN)
        writer = pipes[0]
        pending = memoryview(given or b"")
        if writer >= 0:
            if pending:
                os.set_blocking(writer, False)
                watch.register(writer, select.POLLOUT)
            else:
                self._close_stdin()
        streaming = len(captures)
        while self._answer is None or streaming:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = watch.poll(None if left is None else left * 1000)
            if not ready and left is not None and not left:
                self._expire(timeout, [captures.get(descriptor) for descriptor in pipes[1:]], kill=kill)
            for descriptor, events in ready:
                if descriptor in captures:
                    data = os.read(descriptor, _CHUNK)
                    if data:
                        captures[descriptor].add(data)
                    else:
                        watch.unregister(descriptor)
                        streaming -= 1
                elif descriptor == writer:
                    pending = _fed(descriptor, pending, gone=bool(events & (select.POLLERR | select.POLLHUP)))
                    if not pending:
                        watch.unregister(descriptor)
                        self._close_stdin()
                else:
                    self._listen()
                    self._raise_frozen()
                    if self._answer is not None:
                        watch.unregister(descriptor)
        kept = [captures.get(descriptor) for descriptor in pipes[1:]]
        lost = [capture.lost if capture is not None else 0 for capture in kept]
        return self._completed(self._text(kept[0]), self._text(kept[1]), (lost[0], lost[1]))

    def _expire(self, timeout: float | None, captures: list[Capture | None], *, kill: bool) -> None:
        assert timeout is not None
        if kill:
            self.kill()
            self._wait_answer(None)
        raise TimeoutExpired(self.args, timeout, self._text(captures[0]), self._text(captures[1]))

    def _close_stdin(self) -> None:
        if self.stdin is not None:
            try:
                self.stdin.close()
            except OSError:
                pass
        elif self._streams.ours[0] >= 0:
            os.close(self._streams.ours[0])
            self._streams.ours[0] = -1

    def _text(self, capture: Capture | None) -> Any:
        if capture is None:
            return None
        data = capture.value()
        if self._decode is None:
            return data
        return data.decode(*self._decode).replace("\r\n", "\n").replace("\r", "\n")


def _fed(descriptor: int, pending: memoryview, *, gone: bool) -> memoryview:
    """What is left to write after writing some. Nothing where the reader has gone."""
    if gone:
        return pending[:0]
    try:
        return pending[os.write(descriptor, pending[:_CHUNK]) :]
    except BrokenPipeError:
        return pending[:0]
    except BlockingIOError:
        return pending


def decoder(text: bool | None, encoding: str | None, errors: str | None) -> tuple[str, str] | None:
    """(encoding, errors) where a result is text (``subprocess``'s rule), else None."""
    return (encoding or "utf-8", errors or "strict") if text or encoding or errors else None


def encoded(given: Any, encoding: str | None) -> bytes | None:
    """Input as bytes."""
    return given.encode(encoding or "utf-8") if isinstance(given, str) else given


def _readable(connection: socket.socket, timeout: float) -> bool:
    watch = select.poll()
    watch.register(connection.fileno(), select.POLLIN)
    return bool(watch.poll(timeout * 1000))


def window(rows: int, columns: int) -> bytes:
    """``struct winsize`` (``tty_ioctl(4)``)."""
    return rows.to_bytes(2, "little") + columns.to_bytes(2, "little") + bytes(4)
