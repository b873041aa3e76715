"""What a process does to itself and to others: watched, and but for limits no more than that."""

from __future__ import annotations

from errno import EPERM

from remit.sandbox.kernel.call import AT_FDCWD, NR
from remit.sandbox.mediate.calls import PROCEED, Handlers, exists
from remit.sandbox.mediate.resolve import own_numbers, signed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class Processes(Handlers):
    """The kernel decides on all of it, but for ``prlimit64``."""

    names: ClassVar[tuple[str, ...]] = (
        "umask",
        "kill",
        "ptrace",
        "prlimit64",
    )

    def umask(self, value: int, *_: int) -> int:
        """``umask(2)``."""
        self._calls.umasks.changed(self._view.pid, value)
        self._calls.source.masks = True
        return PROCEED

    def kill(self, pid: int, number: int, *_: int) -> int:
        """``kill(2)``: the PID namespace and Landlock's scope decide. Signal 0 only asks whether somebody is there."""
        target = signed(pid)
        if target > 0 and number:
            self._calls.elsewhere(_process(target), "signal")
        return PROCEED

    def ptrace(self, request: int, pid: int, *_: int) -> int:
        """``ptrace(2)``, PTRACE_ATTACH and PTRACE_SEIZE: as ``kill``."""
        self._calls.elsewhere(_process(signed(pid)), "trace")
        return PROCEED

    def prlimit64(self, pid: int, *_: int) -> int:
        """``prlimit(2)``, changing limits of the process with a number: of the caller's own it goes on.

        Any other number may be a thread's of this process by the time that the kernel looks it up: a caller can make it wait
        there (the kernel reads the new limit first), while a child of that number ends and numbers come round. Its own is its
        own for as long as it is in the call.
        """
        try:
            if signed(pid) in own_numbers(self._view.pid):
                return PROCEED
        except OSError:
            pass  # not the kernel's to say: it would allow it
        raise self._calls.denied("call", b"", f"system call {NR['prlimit64']} is refused", EPERM)


def _process(pid: int) -> bytes:
    """A process as an object; ``own`` where the session has one of that number."""
    name = b"/proc/%d" % pid
    return b"own " + name if exists(AT_FDCWD, name) else name
