"""What a network namespace has, as the kernel tells it: by ``sock_diag(7)``, or where it is not there by ``proc(5)``'s tables.

The tables are the last resort: reading one to its end walks every bucket of the kernel's hash of connections, which takes
milliseconds on a machine with much memory, however few connections there are.
"""

from __future__ import annotations

import posix

from remit.sandbox.kernel import sockets
from remit.sandbox.kernel.netlink import ACK, DUMP, REQUEST, SOCK_DIAG, message

_LISTEN = b"0A"
"""TCP_LISTEN of ``net/tcp_states.h``, as ``/proc/net/tcp`` spells it."""
_MAXIMUM = 1 << 20
_BY_FAMILY, _TCP, _LISTENING = 20, 6, 1 << 10
_NO_COOKIE = b"\xff" * 8
_LOOPBACK = ((sockets.AF_INET, b"\x7f\0\0\1"), (sockets.AF_INET6, bytes(15) + b"\1"))


def listens(port: int) -> bool:
    """Whether a TCP socket of this network namespace listens on ``port``, on any address. True where nobody can tell."""
    try:
        # One look-up for the usual answer; only "no" has to look at every listener.
        return any([_asked(port, *one) for one in _LOOPBACK]) or any([_asked(port, family) for family, _ in _LOOPBACK])
    except OSError:
        return _in_tables(port)


def _asked(port: int, family: int, address: bytes = b"") -> bool:
    """Whether a socket listens there (``struct inet_diag_req_v2``); without an address, on any of the family."""
    states = (_LISTENING if not address else 0xFFFFFFFF).to_bytes(4, "little")
    place = port.to_bytes(2, "big") + bytes(2) + address + bytes(36 - len(address)) + _NO_COOKIE
    request = message(_BY_FAMILY, REQUEST | (ACK if address else DUMP), 1, bytes((family, _TCP, 0, 0)) + states + place)
    try:
        return bool(sockets.dump(SOCK_DIAG, request))
    except FileNotFoundError:
        if not address:
            raise  # no socket, or no sock_diag: a dump without any is empty
        return False


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
