"""Whether a denied action would have found something outside: what would have failed there too is no denial.

Where mounts and namespaces deny, the program hears ENOENT, ESRCH or ECONNREFUSED, and so it does where there is nothing
to deny. Only the writer of the record, which stands outside, can tell the two apart. It looks when it writes, a moment
after the attempt: good enough to tell a search path from a secret, and nothing is decided by it.
"""

from __future__ import annotations

import posix
from errno import ENOENT, ENOTDIR, ESRCH

from remit.sandbox.kernel import network

_LOOPBACK = ("127.", "[0:0:0:0:0:0:0:1]:", "0.0.0.0:", "[0:0:0:0:0:0:0:0]:", "[0:0:0:0:0:ffff:7f")


def would_work(right: str, name: str) -> bool:
    """``right`` on the object ``name``, as an event has them, finds something to act on."""
    if right in ("read", "exec", "remove") or (right == "connect" and name[:1] == "/"):
        return _there(name)
    if right in ("write", "setuid"):
        return _there(name) or _there(name.rpartition("/")[0] or "/")
    if right in ("signal", "trace"):
        return _there(name)
    if right == "connect" and name.startswith(_LOOPBACK):
        return network.listens(int(name.rpartition(":")[2]))
    return True


def _there(path: str) -> bool:
    try:
        posix.lstat(path)
    except OSError as error:
        # What may not even be looked at is there for all that anybody knows.
        return error.errno not in (ENOENT, ENOTDIR, ESRCH)
    except ValueError:
        return False
    return True
