"""What the processes of this PID namespace use, from its /proc."""

from __future__ import annotations

import posix

from remit.sandbox.kernel import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_PAGE = posix.sysconf("SC_PAGE_SIZE")


def memory_exceeds(limit: int, processes: Iterable[int] | None = None) -> bool:
    """Whether the memory of ``processes``, shared pages divided (PSS), is more than ``limit`` bytes.

    Without ``processes``: of every process but this one.

    Resident sizes are cheap to read and never smaller than the truth in sum: the exact figure is asked for only when
    they pass the limit.
    """
    if processes is None:
        names = [name for name in posix.listdir("/proc") if name.isdecimal() and int(name) != posix.getpid()]
    else:
        names = [str(pid) for pid in processes]
    if sum([_resident(name) for name in names]) <= limit:
        return False
    return sum([_proportional(name) for name in names]) > limit


def _read(path: str) -> bytes:
    try:
        opened = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return b""  # it ended meanwhile
    try:
        return posix.read(opened, 4096)
    except OSError:
        return b""
    finally:
        posix.close(opened)


def _resident(process: str) -> int:
    fields = _read(f"/proc/{process}/statm").split()
    return int(fields[1]) * _PAGE if len(fields) > 1 else 0


def _proportional(process: str) -> int:
    for line in _read(f"/proc/{process}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) << 10
    return 0


def ignored_signals() -> int:
    """The signals that this process ignores, as a mask (``proc_pid_status(5)``)."""
    for line in files.read("/proc/self/status").splitlines():
        if line.startswith(b"SigIgn:"):
            return int(line.split()[1], 16)
    return ~0 & (1 << 64) - 1
