"""The processes of one call, as the session's namespace numbers them: to look at, and to stop where they stand."""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from remit.sandbox.launch.cell import Cell

_SIGSTOP = 19


def processes(cell: Cell) -> list[int]:
    """All of a cell's but its PID 1."""
    found: list[int] = []
    for name in posix.listdir("/proc"):
        if name.isdecimal():
            try:
                number = posix.stat(f"/proc/{name}/ns/pid").st_ino
            except OSError:
                continue
            if number == cell.number and int(name) != cell.init:
                found.append(int(name))
    return found


def freeze(cell: Cell) -> None:
    """SIGSTOP for every process of the call, again until no new one appears: a fork may be under way."""
    seen: set[int] = set()
    while new := [pid for pid in processes(cell) if pid not in seen]:
        for pid in new:
            try:
                posix.kill(pid, _SIGSTOP)
            except OSError:
                pass
        seen.update(new)
