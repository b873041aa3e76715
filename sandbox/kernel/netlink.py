"""Netlink (``netlink(7)``) without a library: messages, attributes, one exchange. pyroute2 costs 150 ms to import."""

from __future__ import annotations

import posix

from remit.sandbox.kernel.call import NR, Buffer, call, failure

ROUTE, NETFILTER = 0, 12
"""Protocols: ``NETLINK_ROUTE``, ``NETLINK_NETFILTER``."""

REQUEST, ACK, EXCL, CREATE, APPEND = 0x1, 0x4, 0x200, 0x400, 0x800
NESTED = 0x8000

_AF_NETLINK = 16
_SOCK_RAW = 3
_SOCK_CLOEXEC = 0o2000000
_HEADER = 16
_ERROR = 2
_REPLY_SIZE = 1 << 14


def attribute(kind: int, data: bytes) -> bytes:
    """One ``struct nlattr``, padded to four bytes."""
    length = 4 + len(data)
    return length.to_bytes(2, "little") + kind.to_bytes(2, "little") + data + bytes(-length % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(parts))


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One ``struct nlmsghdr`` with its body."""
    length = _HEADER + len(body)
    head = length.to_bytes(4, "little") + kind.to_bytes(2, "little") + flags.to_bytes(2, "little")
    return head + sequence.to_bytes(4, "little") + bytes(4) + body + bytes(-length % 4)


def exchange(protocol: int, data: bytes, acknowledged: int) -> None:
    """Send ``data`` and wait until ``acknowledged`` messages that asked for it (``ACK``) have been answered.

    Raises OSError with the kernel's first complaint; its file name is the message's sequence number.
    """
    opened = call(NR["socket"], _AF_NETLINK, _SOCK_RAW | _SOCK_CLOEXEC, protocol)
    try:
        # To the kernel: struct sockaddr_nl of zeros but the family.
        call(NR["sendto"], opened, data, len(data), 0, _AF_NETLINK.to_bytes(12, "little"), 12)
        reply = Buffer(_REPLY_SIZE)
        while acknowledged > 0:
            got = call(NR["recvfrom"], opened, reply.address, _REPLY_SIZE, 0, None, None)
            acknowledged -= _acknowledged(bytes(reply.view[:got]))
    finally:
        posix.close(opened)


def _acknowledged(data: bytes) -> int:
    count = 0
    while len(data) >= _HEADER + 4:
        length = int.from_bytes(data[:4], "little")
        if int.from_bytes(data[4:6], "little") == _ERROR:
            errno = -int.from_bytes(data[_HEADER : _HEADER + 4], "little", signed=True)
            if errno:
                raise failure(errno, f"netlink message {int.from_bytes(data[8:12], 'little')}")
            count += 1
        data = data[(length + 3) & ~3 :]
    return count
