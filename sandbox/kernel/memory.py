"""Reading another process's memory (``process_vm_readv(2)``), page by page, for the mediator."""

from __future__ import annotations

import posix
from _struct import Struct
from errno import EFAULT, ENAMETOOLONG

from remit.sandbox.kernel import files
from remit.sandbox.kernel.call import NR, Buffer, address, failure, libc_call, long, prepared

_PAGE = 4096
# Fields 48 and 51 of stat, counted from the one after the name, which is field 3.
_ARG_START = 48 - 3
_ENV_END = 51 - 3
_buffer = Buffer(_PAGE)
_vectors = Buffer(32)
_MOST = 256
"""Bytes read first of a string: most paths are shorter, and what is read is copied twice."""
_READV = NR.get("process_vm_readv", -1)
_bytes_at = _buffer.view
# One ``iovec`` for each side. What never changes from call to call is converted once.
_fill = Struct("=4Q").pack_into
_LOCAL, _REMOTE, _NONE = long(_vectors.address), long(_vectors.address + 16), long(0)


def _read_into(pid: int, where: int, size: int) -> int:
    _fill(_vectors.view, 0, _buffer.address, size, where, size)
    return prepared(_READV, pid, _LOCAL, 1, _REMOTE, 1, _NONE)


def read(pid: int, where: int, size: int) -> bytes:
    """``size`` bytes (at most 4096) at address ``where`` of ``pid``. Raises OSError (EFAULT on a short read, EPERM, ESRCH)."""
    if _read_into(pid, where, size) < size:
        raise failure(EFAULT, "process_vm_readv")
    return bytes(_bytes_at[:size])


def read_string(pid: int, where: int, limit: int = _PAGE) -> bytes:
    """The NUL-terminated string at ``where``, without its NUL; ENAMETOOLONG where it takes more than ``limit`` bytes.

    Reads stop at page ends: the string's last page may be the last one that is mapped.
    """
    result = b""
    most = _MOST
    while True:
        size = min(_PAGE - (where & (_PAGE - 1)), limit - len(result), most)
        got = _read_into(pid, where, size)
        piece = bytes(_bytes_at[:got])
        end = piece.find(0)
        if end >= 0:
            return result + piece[:end]
        if got < size:
            raise failure(EFAULT, "process_vm_readv")
        result += piece
        where += got
        most = _PAGE
        if len(result) >= limit:
            raise failure(ENAMETOOLONG, "path")


def wipe(where: int, size: int) -> None:
    """Zero ``size`` bytes of this process at address ``where`` (``memset(3)``)."""
    libc_call("memset", where, 0, size)


def forget_caller(strings: tuple[int, int]) -> None:
    """Zero this process's copy of its arguments and environment, at the addresses ``strings`` (start, end) and in ``posix``.

    A forked child keeps both for as long as it lives, on its stack and in ``posix.environ``, whatever it passes on.
    """
    start, end = strings
    wipe(start, end - start)
    for value in posix.environ.values():
        if len(value) > 1:  # CPython has one object for every single byte, which everything else uses too
            wipe(address(value), len(value))
    posix.environ.clear()


def own_strings() -> tuple[int, int]:
    """Where this process's arguments and environment lie: from ``arg_start`` to ``env_end`` (``proc_pid_stat(5)``)."""
    fields = files.read("/proc/self/stat").rpartition(b")")[2].split()
    return int(fields[_ARG_START]), int(fields[_ENV_END])
