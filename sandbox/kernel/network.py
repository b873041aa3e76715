"""What a network namespace has, as the kernel tells it: by ``sock_diag(7)``, or where it is not there by ``proc(5)``'s tables.

The tables are the last resort: reading one to its end walks every bucket of the kernel's hash of connections, which takes
milliseconds on a machine with much memory, however few connections there are.
"""

from __future__ import annotations

import posix
from errno import EBADF, ENOENT

from remit.sandbox.kernel import sockets
from remit.sandbox.kernel.call import failure
from remit.sandbox.kernel.netlink import ACK, DUMP, ERROR, REQUEST, SOCK_DIAG, message

_LISTEN = b"0A"
"""TCP_LISTEN of ``net/tcp_states.h``, as ``/proc/net/tcp`` spells it."""
_MAXIMUM = 1 << 20
_BY_FAMILY, _TCP, _UDP, _LISTENING = 20, 6, 17, 1 << 10
_KEPT_AT_MOST = 64
_NO_COOKIE = b"\xff" * 8
_LOOPBACK = ((sockets.AF_INET, b"\x7f\0\0\1"), (sockets.AF_INET6, bytes(15) + b"\1"))


class Listeners:
    """Whether somebody of a network namespace hears what is sent to an address there, asked over one netlink socket that stays
    open: to open it took longer than to ask. One thread's.

    ``descriptor``: a socket of ``sockets.netlink_socket(SOCK_DIAG)`` that was made in that namespace; without one, this thread's.
    """

    __slots__ = ("_connected", "_descriptor", "_known", "_own", "_requests")

    def __init__(self, descriptor: int = -1) -> None:
        self._descriptor = descriptor
        self._own = descriptor < 0
        self._connected = False
        self._known = False
        self._requests: dict[tuple[bytes, int, int], bytes] = {}

    def hear(self, host: bytes, port: int) -> bool:
        """Whether a TCP socket listens there, or a UDP socket is bound there, to ``host`` (4 or 16 bytes) or to any address.
        True where nobody can tell."""
        try:
            if self._own and self._descriptor < 0:
                self._descriptor = sockets.netlink_socket(SOCK_DIAG)
            if not self._connected:
                sockets.netlink_connect(self._descriptor)
                self._connected = True
            return self._one(host, port, _TCP) or self._one(host, port, _UDP)
        except OSError:
            return not self._own or listens(port)

    def dump(self, request: bytes) -> list[bytes]:
        """What ``sock_diag(7)`` answers there. Raises OSError."""
        if not self._own and self._descriptor < 0:
            raise failure(EBADF, "sock_diag")
        return sockets.dump(SOCK_DIAG, request, self._descriptor)

    def close(self) -> None:
        """Of another namespace: nobody can tell any more."""
        if self._descriptor >= 0:
            posix.close(self._descriptor)
            self._descriptor = -1

    def _one(self, host: bytes, port: int, protocol: int) -> bool:
        about = host, port, protocol
        request = self._requests.get(about)
        if request is None:
            if len(self._requests) >= _KEPT_AT_MOST:
                self._requests.clear()
            # A program that waits for a server asks for the same one again and again: to spell it takes a third of asking.
            request = self._requests[about] = message(_BY_FAMILY, REQUEST, 1, _wanted(host, port, protocol))
        kind, error = sockets.netlink_kind(self._descriptor, request)
        if kind != ERROR:
            self._known = True
            return True
        if error != ENOENT:
            raise failure(error, "sock_diag")
        if protocol == _TCP and not self._known:
            # No socket, or no sock_diag: a dump without any is empty.
            sockets.dump(SOCK_DIAG, message(_BY_FAMILY, REQUEST | DUMP, 1, _wanted(b"", 1, _TCP)))
            self._known = True
        return False


def listens(port: int) -> bool:
    """Whether a TCP socket of this network namespace listens on ``port``, on any address. True where nobody can tell."""
    try:
        # One look-up for the usual answer; only "no" has to look at every listener.
        return any([_asked(port, *one) for one in _LOOPBACK]) or any([_asked(port, family) for family, _ in _LOOPBACK])
    except OSError:
        return _in_tables(port)


def _asked(port: int, family: int, address: bytes = b"") -> bool:
    """Whether a socket listens there; without an address, on any of the family."""
    request = message(_BY_FAMILY, REQUEST | (ACK if address else DUMP), 1, _wanted(address, port, _TCP, family))
    try:
        return bool(sockets.dump(SOCK_DIAG, request))
    except FileNotFoundError:
        if not address:
            raise  # no socket, or no sock_diag: a dump without any is empty
        return False


def _wanted(host: bytes, port: int, protocol: int, family: int = 0) -> bytes:
    """``struct inet_diag_req_v2``: the socket that would be sent to, or without a host those that listen on the port."""
    family = family or (sockets.AF_INET6 if len(host) == 16 else sockets.AF_INET)
    states = (0xFFFFFFFF if host else _LISTENING).to_bytes(4, "little")
    number, host = port.to_bytes(2, "big"), host + bytes(16 - len(host))
    # Of UDP, the kernel takes the two ends the other way round (``udp_dump_one``).
    place = number * 2 + host * 2 if protocol == _UDP else number + bytes(2) + host + bytes(16)
    return bytes((family, protocol, 0, 0)) + states + place + bytes(4) + _NO_COOKIE


def _in_tables(port: int) -> bool:
    wanted = b":%04X" % port
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            opened = posix.open(name, posix.O_RDONLY | posix.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError:
            return True
        try:
            while data := posix.read(opened, _MAXIMUM):
                for line in data.split(b"\n"):
                    fields = line.split(None, 4)
                    if len(fields) > 3 and fields[3] == _LISTEN and fields[1].endswith(wanted):
                        return True
        finally:
            posix.close(opened)
    return False
