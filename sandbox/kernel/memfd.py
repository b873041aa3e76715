"""Files in memory that no name leads to, sealed: what is read is what was written, whoever else has the descriptor."""

from __future__ import annotations

import posix
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl


def sealed(data: bytes, name: str) -> int:
    """A descriptor of a new file (``memfd_create(2)``) that holds ``data``. Raises OSError."""
    opened = posix.memfd_create(name, posix.MFD_CLOEXEC | posix.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[posix.write(opened, view) :]
    fcntl(opened, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    return opened


def content(descriptor: int, limit: int) -> bytes:
    """What the file holds. Closes it. Raises OSError: EMSGSIZE for more than ``limit`` bytes."""
    try:
        size = posix.fstat(descriptor).st_size
        if size > limit:
            raise OSError(90, posix.strerror(90))
        data = b""
        while len(data) < size and (piece := posix.pread(descriptor, size - len(data), len(data))):
            data += piece
        return data
    finally:
        posix.close(descriptor)
