"""Reading another process's memory (``process_vm_readv(2)``), page by page, for the mediator."""

from __future__ import annotations

from errno import EFAULT, ENAMETOOLONG

from remit.sandbox.kernel.call import NR, Buffer, call, failure

_PAGE = 4096
_buffer = Buffer(_PAGE)
_local = Buffer(16)
_remote = Buffer(16)
_READV = NR.get("process_vm_readv", -1)
_bytes_at = _buffer.view


def _read_into(pid: int, where: int, size: int) -> int:
    _local.view[:] = _buffer.address.to_bytes(8, "little") + size.to_bytes(8, "little")
    _remote.view[:] = where.to_bytes(8, "little") + size.to_bytes(8, "little")
    return call(_READV, pid, _local.address, 1, _remote.address, 1, 0)


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
    while True:
        size = min(_PAGE - (where & (_PAGE - 1)), limit - len(result))
        got = _read_into(pid, where, size)
        piece = bytes(_bytes_at[:got])
        end = piece.find(0)
        if end >= 0:
            return result + piece[:end]
        if got < size:
            raise failure(EFAULT, "process_vm_readv")
        result += piece
        where += got
        if len(result) >= limit:
            raise failure(ENAMETOOLONG, "path")
