"""Bring up the loopback interface of a new network namespace (``netdevice(7)``)."""

from __future__ import annotations

import _socket
from fcntl import ioctl

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_REQUEST_SIZE = 40


def up() -> None:
    """Set ``lo`` up, with 127.0.0.1 and ::1. Needs CAP_NET_ADMIN in the namespace. Raises OSError."""
    control = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        ioctl(
            control.fileno(),
            _SIOCSIFFLAGS,
            b"lo".ljust(16, b"\0") + _IFF_UP.to_bytes(2, "little") + bytes(_REQUEST_SIZE - 18),
        )
    finally:
        control.close()
