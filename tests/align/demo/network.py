"""A network with nothing in it but loopback, so that no part of a run can reach anything else."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def isolate() -> bool:
    """Move this process, which must have one thread, into a new network namespace with loopback up.

    An ordinary user gets a user namespace around it in which it stays the same user; the capabilities that come with
    that end at the next exec. False where the host permits neither: then nothing was changed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        if libc.unshare(_CLONE_NEWNET):
            return False
    else:
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
            return False
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        flags = struct.unpack("16sH", fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH", b"lo", 0)))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH", b"lo", flags | _IFF_UP))
    return True
