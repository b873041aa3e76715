"""One running call, for blocking callers: its streams as files, and waiting for it."""

from __future__ import annotations

import fcntl
import io
import select
import termios
from types import TracebackType
from typing import IO, Any

from remit.sandbox.authority.errors import RemitError
from remit.sandbox.session.door import Door
from remit.sandbox.session.handle import Exchange, Handle, Timeout, window
from remit.sandbox.session.result import CAPTURE_LIMIT, CompletedCall, SessionClosed
from remit.sandbox.session.streams import encoded


class Popen(Handle):
    """A running call, with the names of ``subprocess.Popen``."""

    stdin: IO[Any] | None = None
    stdout: IO[Any] | None = None
    stderr: IO[Any] | None = None

    def open_streams(self) -> None:
        """Make files of the pipes: ``stdin``, ``stdout``, ``stderr``."""
        for index, name in enumerate(("stdin", "stdout", "stderr")):
            descriptor = self._streams.take(index)
            if descriptor >= 0:
                raw = io.FileIO(descriptor, "w" if index == 0 else "r")
                buffered = io.BufferedWriter(raw) if index == 0 else io.BufferedReader(raw)
                setattr(self, name, io.TextIOWrapper(buffered, *self._decode) if self._decode else buffered)

    def __enter__(self) -> Popen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self.kill()
            # As subprocess does: or a command that reads to the end, or writes much, would be waited for in vain.
            self._close_streams()
            if not self._background and self._conversation.answer is None:
                if kind is None:
                    self._await_end(Timeout(None))
                else:
                    self._end()
        except RemitError:
            if kind is None:
                raise
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the call: what still runs of it is ended."""
        self._close_streams()
        self._conversation.close()

    def _close_streams(self) -> None:
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                try:
                    file.close()
                except OSError:
                    pass  # a broken pipe on the last flush
        self._streams.close()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the command to end. Raises TimeoutExpired (it goes on running), GrantExpired, GrantRevoked."""
        within = Timeout(timeout)
        if not self._await_end(within):
            raise within.expired(self.args)
        self._conversation.raise_ended()
        status = self.returncode
        assert status is not None
        return status

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Send ``input``, read both streams to their ends, wait.

        Raises TimeoutExpired: it goes on running, and another ``communicate`` goes on with it; nothing is lost.
        """
        result = self.complete(encoded(input, self._decode), Timeout(timeout), CAPTURE_LIMIT, kill=False)
        return result.stdout, result.stderr

    def result(self) -> CompletedCall[Any]:
        """Everything about a call, once it has ended (streams that were pipes are the caller's to read)."""
        self._await_end(Timeout(None))
        return self._conversation.completed(None, None)

    def resize(self, rows: int, columns: int) -> None:
        """The terminal's window has this size now."""
        self.wait_started()
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, window(rows, columns))

    def wait_started(self) -> None:
        """With ``pty``: until there is a terminal, or the call has ended."""
        watch = select.poll()
        while self.terminal < 0 and not self._conversation.settled():
            watch.register(self._conversation.connection.fileno(), select.POLLIN)
            watch.poll()
            self._conversation.hear()

    # --- inside --------------------------------------------------------------------------------------------------------

    def _await_end(self, within: Timeout) -> bool:
        if self._conversation.settled():
            return True
        watch = select.poll()
        watch.register(self._conversation.connection.fileno(), select.POLLIN)
        while not self._conversation.settled():
            if not watch.poll(within.milliseconds()) and within.given is not None:
                return False
            self._conversation.hear()
        return True

    def complete(self, given: bytes | None, within: Timeout, limit: int, *, kill: bool = True) -> CompletedCall[Any]:
        """Feed it ``given``, read both streams to their ends, keeping ``limit`` bytes of each, and wait for it.

        Raises TimeoutExpired: with ``kill``, everything that it started was ended before.
        """
        exchange = self._exchanging(self._pipes(), given, limit)
        watch = select.poll()
        exchange.begin(watch)
        while not exchange.over:
            if exchange.fed:
                self._close_stdin()
            exchange.step(watch, watch.poll(within.milliseconds()))
            # By the clock: a command that never stops talking is ready each time.
            if within.over() and not exchange.over:
                self._expire(exchange, within, kill=kill)
        return exchange.result()

    def _expire(self, exchange: Exchange, within: Timeout, *, kill: bool) -> None:
        expired = exchange.expired(within)
        if kill:
            try:
                self._end()
            except SessionClosed as closed:
                raise closed from expired
        raise expired

    def _end(self) -> None:
        """End the call and wait until it has ended, or else the session. Raises SessionClosed then."""
        self.kill()
        if self._await_end(Timeout(Door.SOON)) or self._conversation.withdraw():
            return
        if not self._await_end(Timeout(Door.PATIENCE)):
            raise self._conversation.give_up()

    def _pipes(self) -> list[int]:
        """Our ends of the three pipes, -1 for none; what was written to ``stdin`` is on its way."""
        files = (self.stdin, self.stdout, self.stderr)
        if self.stdin is not None and not self.stdin.closed:
            try:
                self.stdin.flush()
            except BrokenPipeError:
                pass  # who does not read says so in its own way
        return [
            ours if file is None else -1 if file.closed else file.fileno()
            for ours, file in zip(self._streams.ours, files, strict=True)
        ]

    def _kept(self) -> list[int]:
        files = (self.stdin, self.stdout, self.stderr)
        return [*super()._kept(), *(file.fileno() for file in files if file is not None and not file.closed)]

    def _close_stdin(self) -> None:
        if self.stdin is not None:
            try:
                self.stdin.close()
            except OSError:
                pass
        self._streams.close_one(0)
