"""Bring up the loopback interface of a new network namespace (``netdevice(7)``)."""

from __future__ import annotations

import posix
from fcntl import ioctl

from remit.sandbox.kernel import sockets

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_REQUEST_SIZE = 40


def up() -> None:
    """Set ``lo`` up, with 127.0.0.1 and ::1. Needs CAP_NET_ADMIN in the namespace. Raises OSError."""
    control = sockets.datagram()
    try:
        ioctl(
            control,
            _SIOCSIFFLAGS,
            b"lo".ljust(16, b"\0") + _IFF_UP.to_bytes(2, "little") + bytes(_REQUEST_SIZE - 18),
        )
    finally:
        posix.close(control)
