"""Start processes, time them, and interleave those that are compared.

Processes start with ``posix_spawn`` and are waited for with ``wait4``: subprocess polls when it is given a timeout, with
pauses that grow to 50 ms, and what it measures is then a multiple of its own pause.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from remit.sandbox.authority.errors import RemitError

FILTER_DESCRIPTOR = 9
BARE = "bare"
BWRAP = "bubblewrap + seccomp"
RUN = "remit run"
CALL = "remit, call in a session"

T = TypeVar("T")


class BenchError(RemitError):
    """Something that was to be measured did not run, or not as it should."""

    phase = "bench"


@dataclass(frozen=True)
class Command:
    """What is timed. ``argv[0]`` is an absolute path.

    ``seccomp`` is the path of a filter whose descriptor is passed as 9, ``""`` for none. ``output`` is where standard
    output goes, ``""`` for nowhere.
    """

    argv: tuple[str, ...]
    directory: str
    environment: Mapping[str, str]
    seccomp: str = ""
    output: str = ""


@dataclass(frozen=True)
class Sample:
    """One run: nanoseconds from before the start until it was waited for, and of CPU time as ``wait4`` tells it."""

    wall: int
    cpu: int


@dataclass(frozen=True)
class Row:
    """A line of the result. ``ratio`` is of medians, to what the group compares with (mostly the bare one); else None."""

    group: str
    name: str
    variant: str
    unit: str
    n: int
    median: float
    p99: float
    minimum: float
    ratio: float | None
    extra: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class NotMeasured:
    """A line that has no numbers, and why."""

    group: str
    name: str
    reason: str


Line = Row | NotMeasured


def spawn(command: Command, errors: str) -> int:
    """Start it: its process id. Standard error goes to the file ``errors``. BenchError where it does not start."""
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, command.output or "/dev/null", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    ]
    if command.seccomp:
        actions.append((os.POSIX_SPAWN_OPEN, FILTER_DESCRIPTOR, command.seccomp, os.O_RDONLY, 0))
    os.chdir(command.directory)
    try:
        return os.posix_spawn(command.argv[0], command.argv, command.environment, file_actions=actions)
    except OSError as error:
        raise BenchError(f"{command.argv[0]}: {error.strerror}") from None


def run(command: Command, errors: str) -> Sample:
    """Run it once. BenchError where the status is not zero."""
    os.chdir(command.directory)
    started = time.perf_counter_ns()
    _, status, usage = os.wait4(spawn(command, errors), 0)
    wall = time.perf_counter_ns() - started
    if status != 0:
        raise BenchError(f"{os.path.basename(command.argv[0])}: {_ended(status)}: {tail(errors)}")
    return Sample(wall, round((usage.ru_utime + usage.ru_stime) * 1e9))


def _ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else f"signal {-code}"


def tail(errors: str) -> str:
    """The last that was written to the file ``errors``, as one line."""
    try:
        with open(errors, errors="replace") as file:
            return " ".join(file.read()[-600:].split())
    except OSError:
        return ""


def interleave(
    variants: Mapping[str, Callable[[], T]],
    rounds: int,
    *,
    must: Iterable[str] = (),
    every: Mapping[str, int] | None = None,
    after: Callable[[str], None] | None = None,
    tell: Callable[[int], None] | None = None,
) -> tuple[dict[str, list[T]], dict[str, str]]:
    """Run each variant once in each of ``rounds``, in an order drawn for each, after one round that does not count.

    Drawn and not rotated: a variant leaves work behind (a namespace to be taken down, a cache full of its own), which would
    then always be the same other one's to wait for. The order is the same in every run.

    ``every`` lets a variant take part in every so many rounds only. ``after`` is told the name of what has just run (its
    output can be read then), in rounds that count; ``tell`` each round's number before it. Returns the samples, and why
    others have none: a variant that fails once takes no further part. BenchError where it is one of ``must``.
    """
    samples: dict[str, list[T]] = {name: [] for name in variants}
    failed: dict[str, str] = {}
    order = random.Random(0)
    for turn in range(-1, rounds):
        if tell is not None:
            tell(turn + 1)
        names = [name for name in samples if turn <= 0 or turn % (every or {}).get(name, 1) == 0]
        order.shuffle(names)
        for name in names:
            try:
                sample = variants[name]()
                if turn >= 0:
                    samples[name].append(sample)
                    if after is not None:
                        after(name)
            except BenchError as error:
                if name in must:
                    raise
                failed[name] = str(error)
                del samples[name]
    return samples, failed


def percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank: a value that was measured, the largest one where there are too few."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def row(
    group: str,
    name: str,
    variant: str,
    unit: str,
    values: Sequence[float],
    bare: float | None,
    extra: Mapping[str, float] | None = None,
) -> Row:
    """A line from measured ``values``; ``bare`` is the median that its ratio is to, None for no ratio."""
    median = statistics.median(values)
    return Row(
        group=group,
        name=name,
        variant=variant,
        unit=unit,
        n=len(values),
        median=median,
        p99=percentile(values, 99),
        minimum=min(values),
        ratio=None if bare is None else median / bare,
        extra=extra or {},
    )


def milliseconds(samples: Sequence[Sample]) -> list[float]:
    """Their wall times."""
    return [sample.wall / 1e6 for sample in samples]


def cpu(samples: Sequence[Sample]) -> float:
    """The median of their CPU times in milliseconds, of all children that were waited for."""
    return statistics.median([sample.cpu / 1e6 for sample in samples])
