"""FUSE (``fuse(4)``, ``include/uapi/linux/fuse.h``), as much as a file system with nothing in it needs.

A user namespace may mount one where ``/dev/fuse`` opens (Linux 4.18). A look-up in it waits until whoever holds the device
answers, and says who asked.
"""

from __future__ import annotations

from _struct import Struct
from errno import ENOENT, ENOSYS

DEVICE = "/dev/fuse"
BUFFER = 1 << 14
"""Bytes of a request that are read; the kernel refuses a reader with less than 8192 (FUSE_MIN_READ_BUFFER)."""
LOOKUP, GETATTR, INIT, READDIR, READDIRPLUS = 1, 3, 26, 28, 44
_NO_ANSWER = frozenset([2, 36, 42])  # FORGET, INTERRUPT, BATCH_FORGET
_MAJOR, _MINOR = 7, 31
_LARGEST_WRITE = 4096
_DIRECTORY = 0o40555

_request = Struct("=IIQQIIII").unpack_from
_answer = Struct("=IiQ").pack
_greeting = Struct("=IIIIHHII36x").pack
_attributes = Struct("=QIIQQQQQQIIIIIIIIII").pack
_HEAD = 40


def options(device: int, uid: int, gid: int) -> tuple[tuple[bytes, bytes], ...]:
    """Of the mount, for one user and group: nobody else may look in."""
    return (
        (b"fd", b"%d" % device),
        (b"rootmode", b"%o" % _DIRECTORY),
        (b"user_id", b"%d" % uid),
        (b"group_id", b"%d" % gid),
    )


def asked(data: bytes) -> tuple[int, int, int, bytes]:
    """(operation, its number, thread that asks, name) of a request; the name is LOOKUP's. The thread is in the PID namespace of
    whoever mounted it, 0 where it is in none below that."""
    _, operation, number, _, _, _, pid, _ = _request(data)
    return operation, number, pid, data[_HEAD:].rstrip(b"\0") if operation == LOOKUP else b""


def answered(operation: int, number: int, uid: int, gid: int) -> bytes:
    """What to write: an empty directory of this user's. Empty: nothing is expected."""
    if operation in _NO_ANSWER:
        return b""
    if operation == INIT:
        content = _greeting(_MAJOR, _MINOR, 0, 0, 0, 0, _LARGEST_WRITE, 1)
    elif operation == GETATTR:
        content = _attributes(0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, _DIRECTORY, 2, uid, gid, 0, 0, 0)
    else:
        # Whatever else is asked for is not there: the kernel does without.
        errno = {LOOKUP: ENOENT, READDIR: 0, READDIRPLUS: 0}.get(operation, ENOSYS)
        return _answer(16, -errno, number)
    return _answer(16 + len(content), 0, number) + content
