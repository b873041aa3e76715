"""An open that has to wait: for a FIFO's other end, or until a lease on the file is let go (``fcntl(2)``, F_SETLEASE)."""

from __future__ import annotations

import posix
from errno import EACCES, EAGAIN, ENXIO
from fcntl import F_SETFL, fcntl
from time import sleep

from remit.sandbox.mediate.resolve import status_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from remit.sandbox.kernel.notify import Listener

_ERESTARTSYS = 512
_OF_NAMES = posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW
"""What concerns the name, which has been dealt with: the file itself is opened."""


def wait(listener: Listener, identifier: int, pid: int, entry: int, flags: int, length: int) -> None:
    """Wait in the caller's place, on a thread of its own, as long as the caller waits. It gets what is opened then; or, where
    ``length`` is not negative, the file is truncated to that.

    A caller that a signal handler interrupts gets ERESTARTSYS, which the kernel turns into EINTR or a restart as
    ``sigaction(2)`` was told: a supervised call does not notice signals by itself.
    """
    pause = 0.001
    try:
        while listener.valid(identifier):
            try:
                opened = posix.open(
                    b"/proc/self/fd/%d" % entry, (flags & ~_OF_NAMES) | posix.O_NONBLOCK | posix.O_CLOEXEC
                )
            except OSError as error:
                if error.errno not in (ENXIO, EAGAIN):
                    listener.reply(identifier, error=error.errno or EACCES)
                    return
            else:
                try:
                    if length >= 0:
                        posix.ftruncate(opened, length)
                        listener.reply(identifier)
                    else:
                        fcntl(opened, F_SETFL, flags & ~posix.O_NONBLOCK)
                        listener.give(identifier, opened, cloexec=bool(flags & posix.O_CLOEXEC))
                except OSError as error:
                    listener.reply(identifier, error=error.errno or EACCES)
                posix.close(opened)
                return
            if _interrupted(pid):
                listener.reply(identifier, error=_ERESTARTSYS)
                return
            sleep(pause)
            pause = min(pause * 1.5, 0.02)
    except OSError:
        return
    finally:
        posix.close(entry)


def _interrupted(pid: int) -> bool:
    status = status_of(pid)

    def mask(name: bytes) -> int:
        at = status.index(name) + len(name)
        return int(status[at : status.index(b"\n", at)], 16)

    pending = mask(b"\nSigPnd:") | mask(b"\nShdPnd:")
    return bool(pending & ~mask(b"\nSigBlk:") & mask(b"\nSigCgt:"))
