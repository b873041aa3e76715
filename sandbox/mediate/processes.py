"""What a process does to itself and to others: only watched."""

from __future__ import annotations

from remit.sandbox.kernel.call import AT_FDCWD
from remit.sandbox.mediate.calls import PROCEED, Handlers, exists
from remit.sandbox.mediate.resolve import signed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class Processes(Handlers):
    """The kernel decides on all of it."""

    names: ClassVar[tuple[str, ...]] = (
        "umask",
        "kill",
        "ptrace",
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


def _process(pid: int) -> bytes:
    """A process as an object; ``own`` where the session has one of that number."""
    name = b"/proc/%d" % pid
    return b"own " + name if exists(AT_FDCWD, name) else name
