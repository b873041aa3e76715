"""Whether a Unix socket that a path leads to was made inside: asked of the kernel (``sock_diag(7)``), not remembered.

A socket lies in the file system and belongs to a network namespace. The session has one of its own, and so has a call with
fewer sockets than its session: a socket file that no socket of the caller's namespace is bound to was made outside of it.
"""

from __future__ import annotations

import posix

from remit.sandbox.kernel.netlink import DUMP, REQUEST, message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from remit.sandbox.kernel.network import Listeners

_BY_FAMILY = 20
_AF_UNIX = 1
_SHOW_VFS = 2
_ATTRIBUTE_VFS = 1
_HEADER, _UNIX_MESSAGE = 16, 16


def made_inside(status: posix.stat_result, network: Listeners) -> bool:
    """Whether a socket of that network namespace is bound to the file. False too where the kernel cannot say."""
    request = bytes((_AF_UNIX, 0, 0, 0)) + b"\xff\xff\xff\xff" + bytes(4) + _SHOW_VFS.to_bytes(4, "little") + bytes(8)
    try:
        parts = network.dump(message(_BY_FAMILY, REQUEST | DUMP, 1, request))
    except OSError:
        return False
    device = posix_device(status.st_dev)
    for part in parts:
        at = _HEADER + _UNIX_MESSAGE
        while at + 4 <= len(part):
            length, kind = int.from_bytes(part[at : at + 2], "little"), int.from_bytes(part[at + 2 : at + 4], "little")
            if kind == _ATTRIBUTE_VFS and length >= 12:
                inode, its = (int.from_bytes(part[at + offset : at + offset + 4], "little") for offset in (4, 8))
                # A file system without a device of its own may show another number to stat(2) than it has itself.
                if inode == status.st_ino & 0xFFFFFFFF and (its == device or not (its >> 20 or device >> 20)):
                    return True
            at += (max(length, 4) + 3) & ~3
    return False


def posix_device(number: int) -> int:
    """``st_dev`` as the kernel itself writes it: 12 bits of major, 20 of minor."""
    return posix.major(number) << 20 | posix.minor(number)
