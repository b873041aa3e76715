"""FUSE (``fuse(4)``, ``include/uapi/linux/fuse.h``), as much as a file system of names that are not there needs.

A user namespace may mount one where ``/dev/fuse`` opens (Linux 4.18). Whoever asks in it for a name waits until the device's
holder answers, who is told which thread asked.
"""

from __future__ import annotations

from _struct import Struct
from errno import ENOENT, ENOSYS

DEVICE = "/dev/fuse"
BUFFER = 1 << 14
"""Bytes of a request that are read; the kernel refuses a reader with less than 8192 (FUSE_MIN_READ_BUFFER)."""
LOOKUP, GETATTR, INIT, OPENDIR, READDIR, ACCESS, READDIRPLUS = 1, 3, 26, 27, 28, 34, 44
ROOT = 1
"""The number of the directory at the top (FUSE_ROOT_ID)."""
_NO_ANSWER = frozenset([2, 36, 42])  # FORGET, INTERRUPT, BATCH_FORGET
_MAJOR, _MINOR = 7, 31
_LARGEST_WRITE = 4096
_DIRECTORY = 0o40555

_request = Struct("=IIQQIIII").unpack_from
_answer = Struct("=IiQ").pack
_greeting = Struct("=IIIIHHII36x").pack
_attributes = Struct("=QQQQQQIIIIIIIIII").pack
_name = Struct("=QQQQII").pack
_HEAD = 40


def options(device: int, uid: int, gid: int) -> tuple[tuple[bytes, bytes], ...]:
    """Of the mount, for one user and group: nobody else may look in."""
    return (
        (b"fd", b"%d" % device),
        (b"rootmode", b"%o" % _DIRECTORY),
        (b"user_id", b"%d" % uid),
        (b"group_id", b"%d" % gid),
    )


def asked(data: bytes) -> tuple[int, int, int, int, bytes]:
    """(operation, its number, the node that it is about, thread that asks, name) of a request; the name is LOOKUP's. The
    thread is in the PID namespace of whoever mounted it, 0 where it is in none below that."""
    _, operation, number, node, _, _, pid, _ = _request(data)
    return operation, number, node, pid, data[_HEAD:].rstrip(b"\0") if operation == LOOKUP else b""


def nothing(number: int) -> bytes:
    """What to write: it is not there."""
    return _answer(16, -ENOENT, number)


def found(number: int, node: int, uid: int, gid: int) -> bytes:
    """To LOOKUP: a directory. Neither it nor what is known of it may be remembered."""
    return _with(number, _name(node, 0, 0, 0, 0, 0) + _directory(node, uid, gid))


def answered(operation: int, number: int, uid: int, gid: int) -> bytes:
    """Of the directory at the top, which is this user's, and empty to whoever lists it; and of everything else that a kernel
    asks. Empty: nothing is expected."""
    if operation in _NO_ANSWER:
        return b""
    if operation == INIT:
        return _with(number, _greeting(_MAJOR, _MINOR, 0, 0, 0, 0, _LARGEST_WRITE, 1))
    if operation == GETATTR:
        return _with(number, bytes(16) + _directory(ROOT, uid, gid))
    # Whatever else is asked for is not implemented: the kernel does without.
    return _answer(16, 0 if operation in (READDIR, READDIRPLUS, ACCESS) else -ENOSYS, number)


def _with(number: int, content: bytes) -> bytes:
    return _answer(16 + len(content), 0, number) + content


def _directory(node: int, uid: int, gid: int) -> bytes:
    return _attributes(node, 0, 0, 0, 0, 0, 0, 0, 0, _DIRECTORY, 2, uid, gid, 0, 0, 0)
