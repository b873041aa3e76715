"""Netlink (``netlink(7)``) without a library: messages and attributes, as bytes. pyroute2 costs 150 ms to import."""

from __future__ import annotations

ROUTE, SOCK_DIAG, NETFILTER = 0, 4, 12
"""Protocols: ``NETLINK_ROUTE``, ``NETLINK_SOCK_DIAG``, ``NETLINK_NETFILTER``."""

REQUEST, ACK, EXCL, DUMP, CREATE, APPEND = 0x1, 0x4, 0x200, 0x300, 0x400, 0x800
NESTED = 0x8000

HEADER = 16
ERROR, DONE = 2, 3


def attribute(kind: int, data: bytes) -> bytes:
    """One ``struct nlattr``, padded to four bytes."""
    length = 4 + len(data)
    return length.to_bytes(2, "little") + kind.to_bytes(2, "little") + data + bytes(-length % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(parts))


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One ``struct nlmsghdr`` with its body."""
    length = HEADER + len(body)
    head = length.to_bytes(4, "little") + kind.to_bytes(2, "little") + flags.to_bytes(2, "little")
    return head + sequence.to_bytes(4, "little") + bytes(4) + body + bytes(-length % 4)
