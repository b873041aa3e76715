"""Sockets without the ``_socket`` module, which is a shared object to load on a path that counts milliseconds."""

from __future__ import annotations

import posix

from remit.sandbox.kernel.call import NR, Buffer, address, call

_AF_UNIX = 1
_AF_INET = 2
_SOCK_DGRAM = 2
_SOCK_SEQPACKET = 5
_SOCK_CLOEXEC = 0o2000000
_SOL_SOCKET = 1
_SO_PEERCRED = 17
_SCM_RIGHTS = 1
_MSG_CMSG_CLOEXEC = 0x40000000
_MSG_CTRUNC = 0x8
_MSG_DONTWAIT = 0x40
_MSG_NOSIGNAL = 0x4000
_CONTROL_HEADER = 16
"""Before the descriptors, of 4 bytes each (``cmsg(3)``)."""


def packet_pair() -> tuple[int, int]:
    """A connected pair of Unix sockets that keep message boundaries (``unix(7)`` SOCK_SEQPACKET), close-on-exec."""
    pair = Buffer(8)
    call(NR["socketpair"], _AF_UNIX, _SOCK_SEQPACKET | _SOCK_CLOEXEC, 0, pair.address)
    return int.from_bytes(pair.view[:4], "little"), int.from_bytes(pair.view[4:], "little")


def datagram() -> int:
    """An IPv4 datagram socket, for the ioctls of ``netdevice(7)``."""
    return call(NR["socket"], _AF_INET, _SOCK_DGRAM | _SOCK_CLOEXEC, 0)


def send(socket: int, data: bytes, descriptors: tuple[int, ...] = (), *, wait: bool = True) -> None:
    """One message with copies of descriptors (``unix(7)`` SCM_RIGHTS). Raises OSError (EPIPE: nobody is there any more).

    Without ``wait``, EAGAIN where the other end's queue is full.
    """
    vector = _words(address(data), len(data))
    control = b""
    if descriptors:
        size = _CONTROL_HEADER + 4 * len(descriptors)
        control = _words(size) + _SOL_SOCKET.to_bytes(4, "little") + _SCM_RIGHTS.to_bytes(4, "little")
        control += b"".join([descriptor.to_bytes(4, "little") for descriptor in descriptors])
        control += bytes(-size % 8)
    header = _words(0, 0, address(vector), 1, address(control) if control else 0, len(control), 0)
    call(NR["sendmsg"], socket, header, _MSG_NOSIGNAL | (0 if wait else _MSG_DONTWAIT))


class Receiver:
    """Buffers for messages of at most ``size`` bytes with at most ``most`` descriptors, used again for each. One thread's."""

    __slots__ = ("_control", "_data", "_header", "_space")

    def __init__(self, size: int, most: int = 1) -> None:
        self._data = Buffer(size)
        self._space = (_CONTROL_HEADER + 4 * most + 7) & ~7
        self._control = Buffer(self._space)
        self._header = Buffer(56 + 16)

    def receive(self, socket: int, *, wait: bool = True) -> tuple[bytes, list[int]]:
        """One message, and the descriptors that came with it: all of them, or none where this process's table is full.
        Empty: the other end is closed.

        Raises OSError; without ``wait``, EAGAIN where there is nothing.
        """
        header, data, control = self._header, self._data, self._control
        header.view[56:] = _words(data.address, data.size)
        header.view[:56] = _words(0, 0, header.address + 56, 1, control.address, self._space, 0)
        got = call(NR["recvmsg"], socket, header.address, _MSG_CMSG_CLOEXEC | (0 if wait else _MSG_DONTWAIT))
        came: list[int] = []
        if int.from_bytes(header.view[40:48], "little") >= _CONTROL_HEADER + 4:
            end = int.from_bytes(control.view[:8], "little")
            came = [int.from_bytes(control.view[at : at + 4], "little") for at in range(_CONTROL_HEADER, end, 4)]
        if int.from_bytes(header.view[48:52], "little") & _MSG_CTRUNC:
            # This table was full. Some of them are as good as none: nobody can tell which is which.
            for descriptor in came:
                posix.close(descriptor)
            came = []
        return bytes(data.view[:got]), came


def receive(socket: int, size: int, most: int = 1) -> tuple[bytes, list[int]]:
    """``Receiver.receive`` for once."""
    return Receiver(size, most).receive(socket)


def accept(listener: int) -> int:
    """``accept4(2)``: a connection, close-on-exec."""
    return call(NR["accept4"], listener, None, None, _SOCK_CLOEXEC)


def peer(socket: int) -> tuple[int, int, int]:
    """(pid, uid, gid) of whoever connected a Unix socket, as the kernel recorded them then (SO_PEERCRED, ``unix(7)``)."""
    value, size = Buffer(12), Buffer(4)
    size.view[:] = (12).to_bytes(4, "little")
    call(NR["getsockopt"], socket, _SOL_SOCKET, _SO_PEERCRED, value.address, size.address)
    pid, uid, gid = (int.from_bytes(value.view[at : at + 4], "little") for at in (0, 4, 8))
    return pid, uid, gid


def shut_down(socket: int) -> None:
    """``shutdown(2)`` in both directions: every holder of either end sees the end, queued messages first."""
    call(NR["shutdown"], socket, 2)


def _words(*values: int) -> bytes:
    return b"".join([value.to_bytes(8, "little") for value in values])
