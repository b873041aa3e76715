"""On which CPU a mediated caller and its mediator wake up (``seccomp_unotify(2)``, ``sched_setaffinity(2)``).

Both belong on one CPU until the call is over: waking one that idles takes longer than all the rest of a call (90 µs for an
open instead of 30, on a virtual machine). ``SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`` does that for a notification and for its
answer, but not for the two wake-ups of ADDFD, which the scheduler sends to a CPU that idles.

Where something else runs, the same wake-up is wrong for an answer: the caller stays where the mediator is, also where another
waits for that CPU and one idles, and it goes on so until the next tick (``make -j2`` on two CPUs took a fifth longer).
"""

from __future__ import annotations

import posix

from remit.sandbox.kernel.call import NR, Buffer, has_libc, libc_call, long, prepared, quick

_GET, _SET = NR.get("sched_getaffinity", -1), NR.get("sched_setaffinity", -1)
_SIZE = 1024
"""Bytes: more CPUs than any kernel is built for (``NR_CPUS`` is at most 8192)."""


class Placement:
    """Where this thread and a caller run, for one caller at a time. Made and used by one thread."""

    __slots__ = ("_all", "_load", "_mask", "_size", "_where", "usable")

    def __init__(self) -> None:
        self._mask = Buffer(_SIZE)
        self._where = long(self._mask.address)
        self._size = 0
        self._all = b""
        self._load = -1
        self.usable = False
        """There are several CPUs to choose from, and the kernel tells what runs on them."""
        try:
            self._size = prepared(_GET, 0, _SIZE, self._where)
            self._all = bytes(self._mask.view[: self._size])
            if int.from_bytes(self._all, "little").bit_count() > 1 and has_libc("sched_getcpu"):
                self._load = posix.open("/proc/loadavg", posix.O_RDONLY | posix.O_CLOEXEC)
                self.usable = True
        except OSError:
            pass

    @property
    def chosen(self) -> tuple[int, int, bytes]:
        """What the fast path needs for the same: a descriptor of ``/proc/loadavg`` (-1: leave it), how many CPUs there are for
        this thread, and their mask."""
        if not self.usable:
            return -1, 1, b""
        return self._load, int.from_bytes(self._all, "little").bit_count(), self._all

    def alone(self) -> bool:
        """Whether nothing but this thread is running, or wants to, on the whole machine (``proc_loadavg(5)``)."""
        return b" 1/" in posix.pread(self._load, 64, 0)

    def together(self, pid: int) -> bool:
        """Let the thread ``pid``, which waits in the kernel, wake up on this CPU, and this thread on it too. False: nothing was
        changed, because the caller may not be everywhere this thread may: its CPUs were chosen, and stay.

        ``apart`` has to follow before the caller runs: what it would start meanwhile would keep to one CPU for good.
        """
        try:
            size = prepared(_GET, pid, _SIZE, self._where)
            if self._mask.view[:size].tobytes() != self._all:
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
