"""Messages that are too large for a packet: in a file in memory, whose descriptor comes with a short one."""

from __future__ import annotations

from remit.sandbox.kernel import memfd

LIMIT = 1 << 13
"""Bytes that go as they are. Whoever receives keeps a buffer of that size."""
LARGEST = 1 << 24
MARK = b"large"
"""The message whose content is in the file that is the last descriptor that comes with it."""


def enclosed(data: bytes) -> tuple[bytes, list[int]]:
    """(what to send, descriptors to send with it, last, and to close). Raises OSError."""
    return (data, []) if len(data) <= LIMIT else (MARK, [memfd.sealed(data, "message")])


def content(descriptor: int) -> bytes:
    """What the file holds. Closes it. Raises OSError."""
    return memfd.content(descriptor, LARGEST)
