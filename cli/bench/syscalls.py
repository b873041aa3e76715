"""What a system call costs inside: ``syscalls.c``, built here, in an empty directory of the workspace."""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from remit.cli.bench import peers
from remit.cli.bench.client import Client
from remit.cli.bench.measure import (
    BARE,
    BWRAP,
    CALL,
    RUN,
    BenchError,
    Command,
    Line,
    NotMeasured,
    Sample,
    interleave,
    row,
    run,
)
from remit.cli.bench.setting import Setting

GROUP = "syscall"
COUNT = 1000
_BATCH = {"getppid": 100}
_SOURCE = Path(__file__).with_name("syscalls.c")
_PEERS = (BWRAP, "sandlock (Python)")
"""The others leave system calls to the kernel as bubblewrap does; sandlock answers some in a program."""
NAMES = {
    "open-new": "open, O_CREAT, new name",
    "open-existing-write": "open, existing, for writing",
    "rename": "rename",
    "mkdir": "mkdir",
    "rmdir": "rmdir",
    "create-then-unlink": "unlink",
    "chmod": "chmod",
    "open-dev-null": "open /dev/null for writing",
    "connect": "connect to a closed port of the own loopback",
    "connect-own": "connect to an own listener",
    "spawn": "posix_spawn of true, and wait",
    "open-existing-read": "open for reading",
    "stat": "stat",
    "access": "access",
    "getppid": "getppid",
}


def measure(setting: Setting, rounds: int) -> list[Line]:
    """The rows of the group, in microseconds: each value is the median of COUNT calls in one run of the program."""
    workspace = setting.directory("syscalls")
    program, empty, output = f"{workspace}/syscalls", f"{workspace}/empty", f"{setting.base}/syscalls.out"
    try:
        build(setting, program)
    except BenchError as error:
        return [NotMeasured(GROUP, "system calls", str(error))]
    lines: list[Line] = []
    taken = Taken(output)
    inside = (program, str(COUNT), empty)
    with ExitStack() as stack:
        variants: dict[str, Callable[[], Sample]] = {
            BARE: runner(setting, setting.command(workspace, *inside), empty, output),
            RUN: runner(setting, setting.command(workspace, *setting.confined(workspace, *inside)), empty, output),
        }
        try:
            variants[CALL] = _caller(setting, workspace, inside, empty, output, stack)
        except BenchError as error:
            lines.append(NotMeasured(GROUP, CALL, str(error)))
        found, missing = peers.find(setting)
        for name in _PEERS:
            if name in found:
                variants[name] = runner(setting, found[name](workspace, inside), empty, output)
            else:
                lines.append(NotMeasured(GROUP, name, missing[name]))
        measured, failed = interleave(
            variants,
            rounds,
            must=(BARE,),
            after=taken.collect,
            tell=lambda turn: setting.tell(f"system calls {turn}/{rounds}"),
        )
    for call, name in NAMES.items():
        bare = statistics.median(taken.medians[call, BARE])
        for variant in measured:
            made = row(GROUP, name, variant, "µs", taken.medians[call, variant], bare, {"calls_a_run": COUNT})
            lines.append(replace(made, minimum=min(taken.minima[call, variant])))
    return [*lines, *[NotMeasured(GROUP, name, reason) for name, reason in failed.items()]]


def build(setting: Setting, program: str) -> None:
    """Compile ``syscalls.c`` to ``program``. BenchError where that cannot be."""
    compiler = setting.program("gcc") or setting.program("cc")
    if compiler is None:
        raise BenchError("no C compiler")
    built = subprocess.run(
        [compiler, "-O2", "-w", str(_SOURCE), "-o", program],
        env=setting.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if built.returncode != 0:
        raise BenchError(f"no program: {built.stderr.decode(errors='replace')[-300:]}")


class Taken:
    """What runs of the program wrote to ``output``, in microseconds, by (call, variant)."""

    def __init__(self, output: str) -> None:
        self._output = output
        self.medians: dict[tuple[str, str], list[float]] = {}
        self.minima: dict[tuple[str, str], list[float]] = {}

    def collect(self, variant: str) -> None:
        """Read what a run of ``variant`` has just written."""
        for line in Path(self._output).read_text().splitlines():
            call, median, minimum = line.split()
            each = 1000 * _BATCH.get(call, 1)
            self.medians.setdefault((call, variant), []).append(int(median) / each)
            self.minima.setdefault((call, variant), []).append(int(minimum) / each)


def _clean(setting: Setting, empty: str) -> None:
    setting.aside(empty)
    os.mkdir(empty)


def runner(setting: Setting, command: Command, empty: str, output: str) -> Callable[[], Sample]:
    """What runs the program ``command`` in a directory that is empty again, with its output in a file."""

    def act() -> Sample:
        _clean(setting, empty)
        return run(replace(command, output=output), setting.errors)

    return act


def _caller(
    setting: Setting, workspace: str, inside: tuple[str, ...], empty: str, output: str, stack: ExitStack
) -> Callable[[], Sample]:
    client = stack.enter_context(Client(setting, workspace))
    client.ask(do="open", sessions=1)
    call = client.called(inside, output)

    def act() -> Sample:
        _clean(setting, empty)
        return call()

    return act
