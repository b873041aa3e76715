"""Sockets without the ``_socket`` module, which is a shared object to load on a path that counts milliseconds."""

from __future__ import annotations

from remit.sandbox.kernel.call import NR, Buffer, address, call

_AF_UNIX = 1
_AF_INET = 2
_SOCK_DGRAM = 2
_SOCK_SEQPACKET = 5
_SOCK_CLOEXEC = 0o2000000
_SOL_SOCKET = 1
_SCM_RIGHTS = 1
_MSG_CMSG_CLOEXEC = 0x40000000
_CONTROL_HEADER = 16
_CONTROL_SIZE = 24
"""One descriptor: a header of 16 bytes (``cmsg(3)``), 4 bytes, padding."""


def packet_pair() -> tuple[int, int]:
    """A connected pair of Unix sockets that keep message boundaries (``unix(7)`` SOCK_SEQPACKET), close-on-exec."""
    pair = Buffer(8)
    call(NR["socketpair"], _AF_UNIX, _SOCK_SEQPACKET | _SOCK_CLOEXEC, 0, pair.address)
    return int.from_bytes(pair.view[:4], "little"), int.from_bytes(pair.view[4:], "little")


def datagram() -> int:
    """An IPv4 datagram socket, for the ioctls of ``netdevice(7)``."""
    return call(NR["socket"], _AF_INET, _SOCK_DGRAM | _SOCK_CLOEXEC, 0)


def send_descriptor(socket: int, data: bytes, descriptor: int) -> None:
    """One message with a copy of a descriptor (``unix(7)`` SCM_RIGHTS)."""
    control = _words(_CONTROL_HEADER + 4) + _SOL_SOCKET.to_bytes(4, "little") + _SCM_RIGHTS.to_bytes(4, "little")
    control += descriptor.to_bytes(4, "little") + bytes(4)
    vector = _words(address(data), len(data))
    header = _words(0, 0, address(vector), 1, address(control), _CONTROL_SIZE, 0)
    call(NR["sendmsg"], socket, header, 0)


def receive(socket: int, size: int) -> tuple[bytes, int]:
    """One message of at most ``size`` bytes, and the descriptor that came with it or -1. Empty: the other end is closed."""
    data, control = Buffer(size), Buffer(_CONTROL_SIZE)
    vector = _words(data.address, size)
    header = Buffer(56)
    header.view[:] = _words(0, 0, address(vector), 1, control.address, _CONTROL_SIZE, 0)
    got = call(NR["recvmsg"], socket, header.address, _MSG_CMSG_CLOEXEC)
    came = int.from_bytes(header.view[40:48], "little") >= _CONTROL_HEADER + 4
    descriptor = int.from_bytes(control.view[_CONTROL_HEADER : _CONTROL_HEADER + 4], "little") if came else -1
    return bytes(data.view[:got]), descriptor


def _words(*values: int) -> bytes:
    return b"".join([value.to_bytes(8, "little") for value in values])
