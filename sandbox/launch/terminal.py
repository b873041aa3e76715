"""The launcher's side of the session's terminal: raw mode, relaying, window size, stopping and going on."""

from __future__ import annotations

import posix
from errno import EAGAIN, EIO
from fcntl import F_GETFL, F_SETFL, fcntl, ioctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from remit.sandbox.launch.request import Terminal

_TIOCGWINSZ = 0x5413
_TIOCSWINSZ = 0x5414
_CHUNK = 65536
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
    """Carries bytes between the caller's terminal and the session's. Puts the caller's in raw mode while it runs."""

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
        flags = fcntl(master, F_GETFL)
        fcntl(master, F_SETFL, flags | posix.O_NONBLOCK)
        self.resume()

    def resume(self) -> None:
        """Raw mode: keys reach the session's terminal as they are, and its line discipline makes the signals of them."""
        import termios

        if self.source < 0 or self._saved is None:
            return
        raw = list(self._saved)
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
        """Give the caller's terminal back as it was."""
        import termios

        if self.source >= 0 and self._saved is not None:
            try:
                termios.tcsetattr(self.source, termios.TCSADRAIN, self._saved)  # type: ignore[arg-type]
            except termios.error as error:
                if error.args[0] != EIO:  # it hung up: there is nobody to give it back to
                    raise

    def resize(self) -> None:
        """The caller's window size becomes the session's; the kernel tells its foreground group (SIGWINCH)."""
        ioctl(self.master, _TIOCSWINSZ, ioctl(self.source if self.source >= 0 else self._sink, _TIOCGWINSZ, bytes(8)))

    def keys(self) -> bool:
        """From the caller to the session. False at end of file (the terminal hung up)."""
        try:
            data = posix.read(self.source, _CHUNK)
        except OSError as error:
            if error.errno == EIO:
                return False
            raise
        if not data:
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
