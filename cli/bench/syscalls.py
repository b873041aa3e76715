"""What a system call costs inside: ``syscalls.c``, built here, in an empty directory of the workspace."""

from __future__ import annotations

import os
import shutil
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
_NAMES = {
    "open-new": "open, O_CREAT, new name",
    "open-existing-write": "open, existing, for writing",
    "rename": "rename",
    "mkdir": "mkdir",
    "rmdir": "rmdir",
    "create-then-unlink": "unlink",
    "chmod": "chmod",
    "open-dev-null": "open /dev/null for writing",
    "connect": "connect to a closed port of the own loopback",
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
    compiler = setting.program("gcc") or setting.program("cc")
    if compiler is None:
        return [NotMeasured(GROUP, "system calls", "no C compiler")]
    built = subprocess.run(
        [compiler, "-O2", "-w", str(_SOURCE), "-o", program],
        env=setting.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if built.returncode != 0:
        return [NotMeasured(GROUP, "system calls", f"no program: {built.stderr.decode(errors='replace')[-300:]}")]
    lines: list[Line] = []
    medians: dict[tuple[str, str], list[float]] = {}
    minima: dict[tuple[str, str], list[float]] = {}

    def collect(variant: str) -> None:
        for line in Path(output).read_text().splitlines():
            call, median, minimum = line.split()
            each = 1000 * _BATCH.get(call, 1)
            medians.setdefault((call, variant), []).append(int(median) / each)
            minima.setdefault((call, variant), []).append(int(minimum) / each)

    inside = (program, str(COUNT), empty)
    with ExitStack() as stack:
        variants: dict[str, Callable[[], Sample]] = {
            BARE: _runner(setting.command(workspace, *inside), empty, output, setting.errors),
            RUN: _runner(
                setting.command(workspace, *setting.confined(workspace, *inside)), empty, output, setting.errors
            ),
        }
        try:
            variants[CALL] = _caller(setting, workspace, inside, empty, output, stack)
        except BenchError as error:
            lines.append(NotMeasured(GROUP, CALL, str(error)))
        found, missing = peers.find(setting)
        for name in _PEERS:
            if name in found:
                variants[name] = _runner(found[name](workspace, inside), empty, output, setting.errors)
            else:
                lines.append(NotMeasured(GROUP, name, missing[name]))
        measured, failed = interleave(
            variants,
            rounds,
            must=(BARE,),
            after=collect,
            tell=lambda turn: setting.tell(f"system calls {turn}/{rounds}"),
        )
    for call, name in _NAMES.items():
        bare = statistics.median(medians[call, BARE])
        for variant in measured:
            made = row(GROUP, name, variant, "µs", medians[call, variant], bare, {"calls_a_run": COUNT})
            lines.append(replace(made, minimum=min(minima[call, variant])))
    return [*lines, *[NotMeasured(GROUP, name, reason) for name, reason in failed.items()]]


def _clean(empty: str) -> None:
    shutil.rmtree(empty, ignore_errors=True)
    os.mkdir(empty)


def _runner(command: Command, empty: str, output: str, errors: str) -> Callable[[], Sample]:
    def act() -> Sample:
        _clean(empty)
        return run(replace(command, output=output), errors)

    return act


def _caller(
    setting: Setting, workspace: str, inside: tuple[str, ...], empty: str, output: str, stack: ExitStack
) -> Callable[[], Sample]:
    client = stack.enter_context(Client(setting, workspace))
    client.ask(do="open", sessions=1)
    call = client.called(inside, output)

    def act() -> Sample:
        _clean(empty)
        return call()

    return act
