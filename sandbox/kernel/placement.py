"""Keeping a mediated caller and its mediator on one CPU while a descriptor is handed over (``sched_setaffinity(2)``).

Notifications wake the other side on the waker's CPU where the kernel is asked to (``SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP``),
but the two wake-ups of ADDFD do not: the scheduler sends each to a CPU that idles, and on a virtual machine waking that CPU
takes longer than all the rest (90 µs instead of 25 for one open).
"""

from __future__ import annotations

from remit.sandbox.kernel.call import NR, Buffer, has_libc, libc_call, long, prepared, quick

_GET, _SET = NR.get("sched_getaffinity", -1), NR.get("sched_setaffinity", -1)
_SIZE = 1024
"""Bytes: more CPUs than any kernel is built for (``NR_CPUS`` is at most 8192)."""


class Placement:
    """Where this thread and a caller run, for one caller at a time. Made and used by one thread."""

    __slots__ = ("_all", "_mask", "_size", "_where", "usable")

    def __init__(self) -> None:
        self._mask = Buffer(_SIZE)
        self._where = long(self._mask.address)
        self._size = 0
        self._all = b""
        self.usable = False
        """There are several CPUs to choose from, and the kernel tells and sets them."""
        try:
            self._size = prepared(_GET, 0, _SIZE, self._where)
        except OSError:
            return
        self._all = bytes(self._mask.view[: self._size])
        self.usable = int.from_bytes(self._all, "little").bit_count() > 1 and has_libc("sched_getcpu")

    def together(self, pid: int) -> bool:
        """Let the thread ``pid``, which waits in the kernel, wake up on this CPU, and this thread on it too. False: nothing was
        changed, because the caller may not be everywhere this thread may: its CPUs were chosen, and stay.

        ``apart`` has to follow before the caller runs: what it would start meanwhile would keep to one CPU for good.
        """
        try:
            size = prepared(_GET, pid, _SIZE, self._where)
            if self._mask.view[:size] != self._all:
                return False
            here = (1 << libc_call("sched_getcpu")).to_bytes(self._size, "little")
            quick(_SET, 0, self._size, here)
        except (OSError, OverflowError):
            return False
        try:
            quick(_SET, pid, self._size, here)
        except OSError:
            self._anywhere(0)
            return False
        return True

    def apart(self, pid: int) -> None:
        """Undo ``together``."""
        self._anywhere(pid)
        self._anywhere(0)

    def _anywhere(self, pid: int) -> None:
        try:
            quick(_SET, pid, self._size, self._all)
        except OSError:
            pass  # it was killed
