"""The command's standard descriptors: a terminal of its own, and a stdin that gives nothing away."""

from __future__ import annotations

import marshal
import posix
from _stat import S_ISDIR, S_ISREG
from fcntl import F_ADD_SEALS, F_GETFL, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl, ioctl

from remit.sandbox.kernel import files, mount, sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from remit.sandbox.launch.request import Terminal

_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
_TIOCGPTN = 0x80045430
_TIOCSCTTY = 0x540E
_TIOCSWINSZ = 0x5414
_SAFE = files.RESOLVE_NO_SYMLINKS | files.RESOLVE_NO_MAGICLINKS


def open_call_terminal(reply: int, size: bytes) -> tuple[int, bytes]:
    """A new pseudo-terminal of the cell's, whose master goes to the client; its slave's descriptor and path.

    ``size`` is a ``struct winsize`` (``tty_ioctl(4)``).
    """
    master = posix.open("/dev/ptmx", posix.O_RDWR | posix.O_NOCTTY | posix.O_CLOEXEC)
    ioctl(master, _TIOCSPTLCK, bytes(4))
    slave = ioctl(master, _TIOCGPTPEER, posix.O_RDWR | posix.O_NOCTTY | posix.O_CLOEXEC)
    ioctl(slave, _TIOCSWINSZ, size)
    number = int.from_bytes(ioctl(master, _TIOCGPTN, bytes(4)), "little")
    sockets.send(reply, marshal.dumps(("terminal",)), (master,))
    posix.close(master)
    return slave, b"/dev/pts/%d" % number


def open_terminal(control: int, terminal: Terminal, descriptors: list[int]) -> int:
    """Open a pseudo-terminal in the session's own devpts, make it this session's, send its master to the launcher.

    Returns the slave's descriptor, which also replaces the standard descriptors that were terminals outside: a terminal
    of the caller's would let the command push input into it (TIOCSTI) and read its other processes' output.
    """
    master = posix.open("/dev/ptmx", posix.O_RDWR | posix.O_NOCTTY | posix.O_CLOEXEC)
    ioctl(master, _TIOCSPTLCK, bytes(4))
    slave = ioctl(master, _TIOCGPTPEER, posix.O_RDWR | posix.O_NOCTTY | posix.O_CLOEXEC)
    if terminal.attributes is not None:
        import termios  # only where there is a terminal

        termios.tcsetattr(slave, termios.TCSANOW, terminal.attributes)  # type: ignore[arg-type]  # what tcgetattr gave
    ioctl(slave, _TIOCSWINSZ, terminal.size)
    ioctl(slave, _TIOCSCTTY, 0)
    for number, replaced in enumerate(terminal.replaces):
        if replaced:
            descriptors[number] = slave
    sockets.send(control, b"terminal", (master,))
    posix.close(master)
    return slave


def is_place(descriptor: int) -> str:
    """What it is, where nothing can be read from it or written to it, but something be reached through it; else empty.

    Raises OSError: no descriptor.
    """
    if S_ISDIR(posix.fstat(descriptor).st_mode):
        return "directory"
    return "place only (O_PATH)" if fcntl(descriptor, F_GETFL) & files.O_PATH else ""


def harmless_stdin() -> int:
    """A descriptor for the command's stdin that opens no way back.

    A directory would be a way out of the new root: it becomes /dev/null, as does what only stands for a file (O_PATH).
    """
    try:
        if not is_place(0):
            return _harmless_file(0)
    except OSError:
        pass  # closed
    return posix.open("/dev/null", posix.O_RDONLY | posix.O_CLOEXEC)


def harmless_output(number: int) -> int:
    """The same for an output, which is what it is: only a file that cannot be written through it is no output."""
    try:
        if not fcntl(number, F_GETFL) & (posix.O_WRONLY | posix.O_RDWR | files.O_PATH):
            return _harmless_file(number)
    except OSError:
        pass  # closed: it will be, or becomes, something of the session's
    return number


def _harmless_file(number: int) -> int:
    """A descriptor of the same regular file; ``number`` for anything else.

    A regular file given to be read is still a door: ``/proc/self/fd/0`` can be opened again for writing, and fchmod(2) works
    on a descriptor that only reads. So it is opened anew on a detached read-only clone of its mount, at the same offset.
    A file that has no name any more is copied. Raises OSError.
    """
    status = posix.fstat(number)
    if not S_ISREG(status.st_mode):
        return number
    offset = posix.lseek(number, 0, 1)
    name = posix.readlink(f"/proc/self/fd/{number}").encode(errors="surrogateescape")
    try:
        opened = files.openat2(-100, name, files.O_PATH | posix.O_CLOEXEC, 0, _SAFE)
        again = posix.fstat(opened)
    except OSError:
        return _sealed_copy(number)
    if (again.st_dev, again.st_ino) != (status.st_dev, status.st_ino):
        posix.close(opened)
        return _sealed_copy(number)
    tree = mount.clone_tree(opened, recursive=False)
    mount.set_attributes(tree, mount.ATTR_RDONLY | mount.ATTR_NOSUID, recursive=False)
    reader = posix.open(f"/proc/self/fd/{tree}", posix.O_RDONLY | posix.O_CLOEXEC)
    posix.close(opened)
    posix.close(tree)
    posix.lseek(reader, offset, 0)
    return reader


def _sealed_copy(number: int) -> int:
    """A file without a name (a shell's here-document): what is left to read of it, in memory, sealed against writing."""
    copy = posix.memfd_create("stdin", posix.MFD_CLOEXEC | posix.MFD_ALLOW_SEALING)
    while posix.sendfile(copy, number, None, 1 << 20):  # pyright: ignore[reportArgumentType]  # None: from its own offset
        pass
    posix.lseek(copy, 0, 0)
    fcntl(copy, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    return copy
