"""The launcher's side of the session's terminal: raw mode, relaying, window size, stopping and going on."""

from __future__ import annotations

import posix
import select
from errno import EAGAIN, EIO
from fcntl import F_GETFL, F_SETFL, fcntl, ioctl

from remit.sandbox.launch.signals import SIGSTOP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from remit.sandbox.launch.request import Terminal

_TIOCGWINSZ = 0x5413
_TIOCSWINSZ = 0x5414
_CHUNK = 65536
_WRITTEN_AT_A_STOP = 64
"""Reads: a terminal holds 4 KiB or little more."""
_LOOK_MS = 200
"""Between two looks whether this process has come to the foreground: a shell that brings it there need not say so."""
_IFLAG, _OFLAG, _CFLAG, _LFLAG, _CC = 0, 1, 2, 3, 6


def wanted() -> Terminal | None:
    """The terminal to copy, if any standard descriptor is one."""
    replaces = (posix.isatty(0), posix.isatty(1), posix.isatty(2))
    if not any(replaces):
        return None
    import termios  # only where there is a terminal

    from remit.sandbox.launch.request import Terminal as Copy

    descriptor = replaces.index(True)
    attributes: list[object] = list(termios.tcgetattr(descriptor))
    return Copy(attributes, ioctl(descriptor, _TIOCGWINSZ, bytes(8)), replaces)


class Relay:
    """Carries bytes between the caller's terminal and the session's. Puts the caller's in raw mode while it runs, and reads it,
    in the foreground: in the background both would stop this process (``setpgid(2)``, SIGTTOU and SIGTTIN)."""

    def __init__(self, terminal: Terminal, master: int) -> None:
        self.master = master
        self.source = 0 if terminal.replaces[0] else -1
        self._sink = (
            terminal.replaces.index(True)
            if not (terminal.replaces[1] or terminal.replaces[2])
            else (1 if terminal.replaces[1] else 2)
        )
        self._saved = terminal.attributes
        self._pending = b""
        self._raw = self._hung = False
        self._early = False
        """It began in the background: what the caller's terminal was like then was for a shell that reads a line there."""
        flags = fcntl(master, F_GETFL)
        fcntl(master, F_SETFL, flags | posix.O_NONBLOCK)
        self._early = not self._in_foreground()
        self.resume()

    def watch(self, poll: select.poll) -> float | None:
        """Let ``poll`` wait for what is to be carried: to be called before each wait. How many milliseconds that may last."""
        poll.register(self.master, select.POLLIN | (select.POLLOUT if self.blocked else 0))
        if self.source < 0 or self._hung:
            return None
        if not self._raw:
            self.resume()
        if self._raw:
            poll.register(self.source, select.POLLIN)
            return None
        self._ignore(poll)
        return _LOOK_MS

    def leave(self, poll: select.poll) -> None:
        """Carry no more keys, and give the caller's terminal back."""
        self._ignore(poll)
        self.suspend()

    def _ignore(self, poll: select.poll) -> None:
        if self.source >= 0:
            try:
                poll.unregister(self.source)
            except KeyError:
                pass

    def _in_foreground(self) -> bool:
        try:
            return posix.tcgetpgrp(self.source) == posix.getpgrp()
        except OSError:
            return True  # it controls nobody's jobs here

    def resume(self) -> None:
        """Raw mode: keys reach the session's terminal as they are, and its line discipline makes the signals of them. In the
        background, nothing: it is for who is in the foreground to say what the terminal is like."""
        if self.source < 0 or self._saved is None:
            return
        self._raw = self._in_foreground()
        if self._raw:
            _unless_hung_up(self._make_raw)

    def _make_raw(self) -> None:
        import termios

        if self._early:
            self._early = False
            self._saved = list(termios.tcgetattr(self.source))
            termios.tcsetattr(self.master, termios.TCSANOW, self._saved)  # type: ignore[arg-type]  # what tcgetattr gave
        raw = list(self._saved or ())
        raw[_IFLAG] &= ~(  # type: ignore[operator]  # termios has no types for its list
            termios.BRKINT
            | termios.ICRNL
            | termios.INLCR
            | termios.IGNCR
            | termios.INPCK
            | termios.ISTRIP
            | termios.IXON
        )
        raw[_OFLAG] &= ~termios.OPOST  # type: ignore[operator]
        raw[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN | termios.ISIG)  # type: ignore[operator]
        characters = list(raw[_CC])  # type: ignore[call-overload]
        characters[termios.VMIN], characters[termios.VTIME] = 1, 0
        raw[_CC] = characters
        termios.tcsetattr(self.source, termios.TCSADRAIN, raw)  # type: ignore[arg-type]

    def suspend(self) -> None:
        """Give the caller's terminal back as it was, if it is this process's to give."""
        was, self._raw = self._raw, False
        if was and self._in_foreground():
            _unless_hung_up(self._give_back)

    def _give_back(self) -> None:
        import termios

        termios.tcsetattr(self.source, termios.TCSADRAIN, self._saved or [])  # type: ignore[arg-type]

    def resize(self) -> None:
        """The caller's window size becomes the session's; the kernel tells its foreground group (SIGWINCH)."""
        ioctl(self.master, _TIOCSWINSZ, ioctl(self.source if self.source >= 0 else self._sink, _TIOCGWINSZ, bytes(8)))

    def keys(self) -> bool:
        """From the caller to the session. False at end of file (the terminal hung up)."""
        try:
            data = posix.read(self.source, _CHUNK)
        except OSError as error:
            if error.errno != EIO:
                raise
            data = b""
        if not data:
            self._hung = True
            return False
        self._pending += data
        self.flush()
        return True

    @property
    def blocked(self) -> bool:
        """Keys wait for the session to read."""
        return bool(self._pending)

    def flush(self) -> None:
        """Write what waits, as far as the session's terminal takes it."""
        try:
            self._pending = self._pending[posix.write(self.master, self._pending) :]
        except OSError as error:
            if error.errno == EIO:
                self._pending = b""
            elif error.errno != EAGAIN:
                raise

    def output(self) -> bool:
        """From the session to the caller. False when its last process has closed the terminal."""
        try:
            data = posix.read(self.master, _CHUNK)
        except OSError as error:
            if error.errno == EAGAIN:
                return True
            if error.errno == EIO:
                return False
            raise
        try:
            while data:
                data = data[posix.write(self._sink, data) :]
        except OSError as error:
            if error.errno != EIO:  # it hung up: what is left to say, nobody hears
                raise
        return True

    def drain(self, most: int | None = None) -> None:
        """What is written by now, from the session to the caller: all of it, or ``most`` reads' worth where somebody may go on
        writing."""
        watch = select.poll()
        watch.register(self.master, select.POLLIN)  # which waits for what is on its way through the kernel, too
        while most != 0 and watch.poll(0) and self.output():
            most = None if most is None else most - 1


def stop(relay: Relay | None) -> None:
    """The command stopped: stop too, as the caller's shell expects, and come back when that says so. The terminal is the shell's
    meanwhile."""
    if relay is not None:
        # What it wrote before it stopped is read before the shell says that it did.
        relay.drain(_WRITTEN_AT_A_STOP)
        relay.suspend()
    posix.kill(posix.getpid(), SIGSTOP)
    if relay is not None:
        relay.resume()
        relay.resize()


def _unless_hung_up(change: Callable[[], None]) -> None:
    """Change a terminal that may have gone, and with it whoever would see the change."""
    import termios

    try:
        change()
    except termios.error as error:
        if error.args[0] != EIO:
            raise
