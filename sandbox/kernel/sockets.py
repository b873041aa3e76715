"""Sockets without the ``_socket`` module, which is a shared object to load on a path that counts milliseconds."""

from __future__ import annotations

import posix
from _stat import S_ISSOCK

from remit.sandbox.kernel.call import NR, Buffer, address, call, failure
from remit.sandbox.kernel.netlink import DONE, ERROR, HEADER

AF_INET = 2
AF_INET6 = 10
STREAM = 1
DATAGRAM = 2
_AF_UNIX = 1
_AF_NETLINK = 16
_KERNEL = _AF_NETLINK.to_bytes(12, "little")
"""``struct sockaddr_nl`` of the kernel."""
_SOCK_RAW = 3
_NETLINK_SIZE = 1 << 14
_SOCK_SEQPACKET = 5
_SOCK_CLOEXEC = 0o2000000
_SOCK_NONBLOCK = 0o4000
_SOL_SOCKET = 1
_SO_TYPE, _SO_PEERCRED, _SO_DOMAIN = 3, 17, 39
_SCM_RIGHTS = 1
_IPPROTO_TCP, _TCP_NODELAY = 6, 1
_MSG_CMSG_CLOEXEC = 0x40000000
_MSG_CTRUNC = 0x8
_MSG_TRUNC = 0x20
_MSG_DONTWAIT = 0x40
_MSG_NOSIGNAL = 0x4000
_CONTROL_HEADER = 16
"""Before the descriptors, of 4 bytes each (``cmsg(3)``)."""


MOST_DESCRIPTORS = 253
"""In one message: SCM_MAX_FD of ``unix(7)``."""


def packet_pair() -> tuple[int, int]:
    """A connected pair of Unix sockets that keep message boundaries (``unix(7)`` SOCK_SEQPACKET), close-on-exec."""
    pair = Buffer(8)
    call(NR["socketpair"], _AF_UNIX, _SOCK_SEQPACKET | _SOCK_CLOEXEC, 0, pair.address)
    return int.from_bytes(pair.view[:4], "little"), int.from_bytes(pair.view[4:], "little")


def datagram() -> int:
    """An IPv4 datagram socket, for the ioctls of ``netdevice(7)``."""
    return call(NR["socket"], AF_INET, DATAGRAM | _SOCK_CLOEXEC, 0)


def internet(family: int, kind: int) -> int:
    """A non-blocking socket of AF_INET or AF_INET6, STREAM or DATAGRAM."""
    return call(NR["socket"], family, kind | _SOCK_CLOEXEC | _SOCK_NONBLOCK, 0)


def option(socket: int, level: int, name: int, value: int) -> None:
    """``setsockopt(2)`` of an int."""
    call(NR["setsockopt"], socket, level, name, value.to_bytes(4, "little"), 4)


def undelayed(socket: int) -> None:
    """TCP_NODELAY (``tcp(7)``), for it and for all that is accepted from it: they inherit it when they are made, which for
    what waits in the backlog is before anybody accepts."""
    option(socket, _IPPROTO_TCP, _TCP_NODELAY, 1)


def bind(socket: int, family: int, host: bytes, port: int) -> None:
    """``bind(2)`` to an address (4 or 16 bytes) and port."""
    name = family.to_bytes(2, "little") + port.to_bytes(2, "big")
    name += host + bytes(8) if family == AF_INET else bytes(4) + host + bytes(4)
    call(NR["bind"], socket, name, len(name))


def bind_path(socket: int, path: bytes) -> None:
    """``bind(2)`` to a name in the file system, of 108 bytes at most (``unix(7)``)."""
    name = _AF_UNIX.to_bytes(2, "little") + path
    call(NR["bind"], socket, name, len(name))


def packed(host: str) -> bytes:
    """An address in text as its 4 or 16 bytes. ValueError: it is none."""
    if ":" not in host:
        return bytes([int(part) for part in host.split(".")])
    from ipaddress import IPv6Address  # 4 ms, for those who name one

    return IPv6Address(host).packed


def end_writing(socket: int) -> None:
    """``shutdown(2)`` SHUT_WR: the other end reads to the end and may still answer."""
    call(NR["shutdown"], socket, 1)


def listen(socket: int, backlog: int) -> None:
    """``listen(2)``; the kernel takes ``net.core.somaxconn`` where that is less."""
    call(NR["listen"], socket, backlog)


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


def say(socket: int, data: bytes) -> None:
    """``send`` without descriptors, at half its price: ``write(2)``, for a process that ignores SIGPIPE, as an interpreter does.

    ``data`` is not empty. Raises OSError, as ``send``.
    """
    posix.write(socket, data)


class Receiver:
    """Buffers for messages of at most ``size`` bytes with at most ``most`` descriptors, used again for each. One thread's."""

    __slots__ = ("_control", "_data", "_header", "_space", "cut")

    def __init__(self, size: int, most: int = 1) -> None:
        self._data = Buffer(size)
        self._space = (_CONTROL_HEADER + 4 * most + 7) & ~7
        self._control = Buffer(self._space)
        self._header = Buffer(56 + 16)
        self.cut = False
        """The last message was longer than the buffer: what came of it is its beginning."""

    def receive(self, socket: int, *, wait: bool = True) -> tuple[bytes, list[int]]:
        """One message, and the descriptors that came with it: all of them, or none where this process's table is full.
        Empty: the other end is closed.

        Raises OSError; without ``wait``, EAGAIN where there is nothing.
        """
        header, data, control = self._header, self._data, self._control
        flags = _MSG_CMSG_CLOEXEC | (0 if wait else _MSG_DONTWAIT)
        try:
            got = self._once(socket, flags)
        except ConnectionResetError:
            # Said once, and before all that is there to read: the other end closed with something of ours unread.
            got = self._once(socket, flags)
        came: list[int] = []
        if int.from_bytes(header.view[40:48], "little") >= _CONTROL_HEADER + 4:
            end = int.from_bytes(control.view[:8], "little")
            came = [int.from_bytes(control.view[at : at + 4], "little") for at in range(_CONTROL_HEADER, end, 4)]
        told = int.from_bytes(header.view[48:52], "little")
        self.cut = bool(told & _MSG_TRUNC)
        if told & _MSG_CTRUNC:
            # This table was full. Some of them are as good as none: nobody can tell which is which.
            for descriptor in came:
                posix.close(descriptor)
            came = []
        return bytes(data.view[:got]), came

    def _once(self, socket: int, flags: int) -> int:
        header = self._header
        header.view[56:] = _words(self._data.address, self._data.size)
        header.view[:56] = _words(0, 0, header.address + 56, 1, self._control.address, self._space, 0)
        return call(NR["recvmsg"], socket, header.address, flags)


def receive(socket: int, size: int, most: int = 1) -> tuple[bytes, list[int]]:
    """``Receiver.receive`` for once."""
    return Receiver(size, most).receive(socket)


def accept(listener: int) -> int:
    """``accept4(2)``: a connection, close-on-exec."""
    return call(NR["accept4"], listener, None, None, _SOCK_CLOEXEC)


def peer(socket: int) -> tuple[int, int, int]:
    """(pid, uid, gid) of whoever connected a Unix socket, as the kernel recorded them then (SO_PEERCRED, ``unix(7)``)."""
    pid, uid, gid = _asked(socket, _SO_PEERCRED, 3)
    return pid, uid, gid


def leads_elsewhere(descriptor: int) -> bool:
    """Whether it is a socket that whoever holds it can turn to another peer, in the network it was made in: all but Unix
    streams and packets. A connected one too: ``connect(2)`` with AF_UNSPEC takes it back, and the next one goes anywhere.

    Raises OSError: no descriptor.
    """
    if not S_ISSOCK(posix.fstat(descriptor).st_mode):
        return False
    return _asked(descriptor, _SO_DOMAIN) != [_AF_UNIX] or _asked(descriptor, _SO_TYPE) == [DATAGRAM]


def _asked(socket: int, option: int, words: int = 1) -> list[int]:
    """``getsockopt(2)`` of SOL_SOCKET, as that many ints."""
    value, size = Buffer(4 * words), Buffer(4)
    size.view[:] = (4 * words).to_bytes(4, "little")
    call(NR["getsockopt"], socket, _SOL_SOCKET, option, value.address, size.address)
    return [int.from_bytes(value.view[at : at + 4], "little") for at in range(0, 4 * words, 4)]


def shut_down(socket: int) -> None:
    """``shutdown(2)`` in both directions: every holder of either end sees the end, queued messages first."""
    call(NR["shutdown"], socket, 2)


def netlink(protocol: int, data: bytes, acknowledged: int) -> None:
    """Send ``data`` and wait until ``acknowledged`` messages that asked for it (``netlink.ACK``) have been answered.

    Raises OSError with the kernel's first complaint; its file name is the message's sequence number.
    """
    opened = netlink_socket(protocol)
    try:
        # To the kernel: struct sockaddr_nl of zeros but the family.
        call(NR["sendto"], opened, data, len(data), 0, _KERNEL, len(_KERNEL))
        reply = Buffer(_NETLINK_SIZE)
        while acknowledged > 0:
            got = call(NR["recvfrom"], opened, reply.address, _NETLINK_SIZE, 0, None, None)
            acknowledged -= _acknowledged(bytes(reply.view[:got]))
    finally:
        posix.close(opened)


def netlink_socket(protocol: int) -> int:
    """A netlink socket, close-on-exec. It asks about the network namespace that this thread is in now."""
    return call(NR["socket"], _AF_NETLINK, _SOCK_RAW | _SOCK_CLOEXEC, protocol)


def netlink_connect(opened: int) -> None:
    """Let it be read and written like a file, which takes half the time of naming the kernel with each message."""
    call(NR["connect"], opened, _KERNEL, len(_KERNEL))


def netlink_kind(opened: int, data: bytes) -> tuple[int, int]:
    """Send a request that has one message as its answer: the kind of that, and the errno of an ERROR. Raises OSError.

    ``opened`` is connected."""
    posix.write(opened, data)
    reply = posix.read(opened, HEADER + 4)
    return int.from_bytes(reply[4:6], "little"), -int.from_bytes(reply[HEADER:], "little", signed=True)


def dump(protocol: int, data: bytes, descriptor: int = -1) -> list[bytes]:
    """Send one request and return the messages of the answer, to its end or acknowledgement. Raises OSError.

    ``descriptor``: a socket of the protocol, perhaps of another namespace; without one, a new one of this thread's.
    """
    opened = posix.dup(descriptor) if descriptor >= 0 else netlink_socket(protocol)
    found: list[bytes] = []
    try:
        call(NR["sendto"], opened, data, len(data), 0, _KERNEL, len(_KERNEL))
        reply = Buffer(_NETLINK_SIZE)
        while True:
            got = call(NR["recvfrom"], opened, reply.address, _NETLINK_SIZE, 0, None, None)
            answer = bytes(reply.view[:got])
            while len(answer) >= HEADER:
                length, kind = int.from_bytes(answer[:4], "little"), int.from_bytes(answer[4:6], "little")
                error = -int.from_bytes(answer[HEADER : HEADER + 4], "little", signed=True) if kind == ERROR else 0
                if error:
                    raise failure(error, "netlink dump")
                if kind in (DONE, ERROR):
                    return found
                found.append(answer[:length])
                answer = answer[(max(length, HEADER) + 3) & ~3 :]
    finally:
        posix.close(opened)


def _acknowledged(data: bytes) -> int:
    count = 0
    while len(data) >= HEADER + 4:
        length = int.from_bytes(data[:4], "little")
        if int.from_bytes(data[4:6], "little") == ERROR:
            errno = -int.from_bytes(data[HEADER : HEADER + 4], "little", signed=True)
            if errno:
                raise failure(errno, f"netlink message {int.from_bytes(data[8:12], 'little')}")
            count += 1
        data = data[(length + 3) & ~3 :]
    return count


def _words(*values: int) -> bytes:
    return b"".join([value.to_bytes(8, "little") for value in values])
