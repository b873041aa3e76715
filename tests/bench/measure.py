"""Start processes, time them, and interleave those that are compared.

Processes start with ``posix_spawn`` and are waited for with ``wait4``: subprocess polls when it is given a timeout, with
pauses that grow to 50 ms, and what it measures is then a multiple of its own pause.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

FILTER_DESCRIPTOR = 9


class BenchError(Exception):
    """Something that was to be measured did not run, or not as it should."""


def nothing() -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class Command:
    """What is timed. ``argv[0]`` is an absolute path.

    ``prepare`` runs before each start and is not timed. ``seccomp`` is a file whose descriptor is passed as 9.
    ``output`` is where standard output goes, ``""`` for nowhere.
    """

    argv: tuple[str, ...]
    directory: str
    environment: Mapping[str, str]
    prepare: Callable[[], None] = nothing
    seccomp: int | None = None
    output: str = ""
    settle: bool = False


@dataclass(frozen=True)
class Sample:
    """One run: nanoseconds from before the start until it was waited for, and of CPU time as ``wait4`` tells it."""

    wall: int
    cpu: int


@dataclass(frozen=True)
class Row:
    """A line of the result. ``ratio`` is of medians, to the bare one of the same group and name."""

    group: str
    name: str
    variant: str
    unit: str
    n: int
    median: float
    p99: float
    minimum: float
    ratio: float
    extra: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class NotMeasured:
    """A line that has no numbers, and why."""

    group: str
    name: str
    reason: str


def run(command: Command, errors: str) -> Sample:
    """Run it once. Standard error goes to the file ``errors``. BenchError where the status is not zero."""
    command.prepare()
    if command.settle:
        os.sync()  # else the writes of the run before are paid for in this one
    os.chdir(command.directory)
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, command.output or "/dev/null", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    ]
    if command.seccomp is not None:
        os.lseek(command.seccomp, 0, os.SEEK_SET)
        actions.append((os.POSIX_SPAWN_DUP2, command.seccomp, FILTER_DESCRIPTOR))
    started = time.perf_counter_ns()
    pid = os.posix_spawn(command.argv[0], command.argv, command.environment, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter_ns() - started
    if status != 0:
        with open(errors, errors="replace") as file:
            said = file.read()[-600:].strip()
        raise BenchError(f"{' '.join(command.argv)[:200]}: wait status {status}: {said}")
    return Sample(wall, round((usage.ru_utime + usage.ru_stime) * 1e9))


def interleave(
    commands: Mapping[str, Command],
    rounds: int,
    errors: str,
    after: Callable[[str], None] | None = None,
) -> dict[str, list[Sample]]:
    """Run each command once in each of ``rounds``, in an order that rotates, after one round that does not count.

    ``after`` is told the name of what has just run (its output can be read then), in rounds that count.
    """
    names = list(commands)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for name in names:
        run(commands[name], errors)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(run(commands[name], errors))
            if after is not None:
                after(name)
    return samples


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
    bare: float,
    extra: Mapping[str, float] | None = None,
) -> Row:
    """A line from measured ``values``; ``bare`` is the median that its ratio is to."""
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
        ratio=median / bare,
        extra=extra or {},
    )


def milliseconds(samples: Sequence[Sample]) -> list[float]:
    """Their wall times."""
    return [sample.wall / 1e6 for sample in samples]


def cpu(samples: Sequence[Sample]) -> float:
    """The median of their CPU times in milliseconds, of all children that were waited for."""
    return statistics.median([sample.cpu / 1e6 for sample in samples])
