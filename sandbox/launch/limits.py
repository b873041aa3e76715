"""Limits that hold for each process by itself (``setrlimit(2)``), set from outside while its first exec waits."""

from __future__ import annotations

from remit.sandbox.kernel import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from remit.sandbox.launch.wire import Operation

_RLIMITS = {"cpu-time": 0, "file-size": 1, "pids": 6, "files": 7}


def prepared(limits: Iterable[Operation]) -> tuple[tuple[int, bytes], ...]:
    """(resource, ``struct rlimit``), for ``process.set_limit``. A limit of Remit's never raises the one that the caller has."""
    found: list[tuple[int, bytes]] = []
    for _, what, value, mechanism in limits:
        if mechanism not in ("rlimit", "nproc"):
            continue
        amount = int(value)
        if what == "cpu-time":
            amount = max(1, -(-amount // 1000))  # the resource counts seconds
        # One second between the CPU limits: SIGXCPU tells what ended the command, SIGKILL ends what ignores it.
        hard = amount + 1 if what == "cpu-time" else amount
        inherited = process.hard_limit(_RLIMITS[str(what)])
        found.append((_RLIMITS[str(what)], process.limit(min(amount, inherited), min(hard, inherited))))
    return tuple(found)


def apply(pid: int, limits: Iterable[tuple[int, bytes]]) -> None:
    """Set them for ``pid`` (0: this process)."""
    for resource, limit in limits:
        process.set_limit(pid, resource, limit)
