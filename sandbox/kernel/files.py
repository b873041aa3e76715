"""File calls that the ``posix`` module lacks."""

from __future__ import annotations

import posix
from _struct import Struct
from errno import ENOSYS

from remit.sandbox.kernel.call import AT_EMPTY_PATH, AT_FDCWD, NR, quick

O_PATH = 0o10000000
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RESOLVE_CACHED = 0x20
_OPENAT2 = NR.get("openat2", -1)
_FCHMODAT2 = NR.get("fchmodat2", -1)
_how = Struct("=QQQ").pack
_PIECE = 1 << 14
_READER_MS = 1000


def openat2(directory: int, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """``openat2(2)`` (Linux 5.6). Returns a descriptor; raises OSError."""
    return quick(_OPENAT2, directory, path, _how(flags, mode, resolve), 24)


def renameat2(old_directory: int, old: bytes, new_directory: int, new: bytes, flags: int) -> None:
    """``renameat2(2)``."""
    quick(NR["renameat2"], old_directory, old, new_directory, new, flags)


def linkat(old_directory: int, old: bytes, new_directory: int, new: bytes, flags: int) -> None:
    """``linkat(2)``."""
    quick(NR["linkat"], old_directory, old, new_directory, new, flags)


def mknodat(directory: int, path: bytes, mode: int, device: int) -> None:
    """``mknodat(2)``."""
    quick(NR["mknodat"], directory, path, mode, device)


def change_mode(descriptor: int, mode: int) -> None:
    """``chmod(2)`` of what a descriptor, which O_PATH will do for, refers to: ``fchmodat2`` (Linux 6.6), or by its magic link."""
    try:
        quick(_FCHMODAT2, descriptor, b"", mode, AT_EMPTY_PATH)
    except OSError as error:
        if error.errno != ENOSYS:
            raise
        quick(NR["fchmodat"], AT_FDCWD, b"/proc/self/fd/%d" % descriptor, mode)


def fchownat(directory: int, path: bytes, uid: int, gid: int, flags: int) -> None:
    """``fchownat(2)``; -1 leaves a number as it is."""
    quick(NR["fchownat"], directory, path, uid, gid, flags)


def say(descriptor: int, data: bytes) -> None:
    """Write all of it where somebody may read: a descriptor that does not block is waited for, a second without progress at
    most. Raises OSError (EAGAIN where that is not enough)."""
    while data:
        try:
            data = data[posix.write(descriptor, data) :]
        except BlockingIOError:
            import select  # for whoever needs it

            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            if not poll.poll(_READER_MS):
                raise


def write(path: str, data: bytes) -> None:
    """Write to an existing file in one call, as the files of /proc and of control groups want it. Raises OSError."""
    opened = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        posix.write(opened, data)
    finally:
        posix.close(opened)


def read(path: str, size: int = 1 << 20) -> bytes:
    """Up to ``size`` bytes of a file, to its end where it is shorter. Raises OSError."""
    opened = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        # Piece by piece: a buffer of a megabyte costs three system calls of its own, and most files are small.
        data = b""
        while len(data) < size and (piece := posix.read(opened, min(_PIECE, size - len(data)))):
            data += piece
        return data
    finally:
        posix.close(opened)
