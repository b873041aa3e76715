"""Who listens in this network namespace (``/proc/net/tcp``, ``proc_net_tcp(5)``)."""

from __future__ import annotations

import posix

_LISTEN = b"0A"
_MAXIMUM = 1 << 20


def listens(port: int) -> bool:
    """Whether a TCP socket of this network namespace listens on ``port``, on any address. True where nobody can tell."""
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
