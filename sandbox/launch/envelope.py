"""Messages that are too large for a packet: in a file in memory, whose descriptor comes with a short one."""

from __future__ import annotations

import posix
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl

LIMIT = 1 << 13
"""Bytes that go as they are. Whoever receives keeps a buffer of that size."""
LARGEST = 1 << 24
MARK = b"large"
"""The message whose content is in the file that is the last descriptor that comes with it."""


def enclosed(data: bytes) -> tuple[bytes, list[int]]:
    """(what to send, descriptors to send with it, last, and to close). Raises OSError."""
    if len(data) <= LIMIT:
        return data, []
    copy = posix.memfd_create("message", posix.MFD_CLOEXEC | posix.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[posix.write(copy, view) :]
    # What is read is what was sent, whoever else has the file.
    fcntl(copy, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    return MARK, [copy]


def content(descriptor: int) -> bytes:
    """What the file holds. Closes it. Raises OSError."""
    try:
        size = posix.fstat(descriptor).st_size
        if size > LARGEST:
            raise OSError(90, posix.strerror(90))
        data = b""
        while len(data) < size and (piece := posix.pread(descriptor, size - len(data), len(data))):
            data += piece
        return data
    finally:
        posix.close(descriptor)
