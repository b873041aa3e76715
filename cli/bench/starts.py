"""Cold start: from before ``posix_spawn`` until ``true`` has been waited for."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace

from remit.cli.bench import peers
from remit.cli.bench.measure import (
    BARE,
    RUN,
    BenchError,
    Command,
    Line,
    NotMeasured,
    Sample,
    cpu,
    interleave,
    milliseconds,
    row,
    run,
)
from remit.cli.bench.setting import PROFILE, Setting

GROUP = "start"
INTERPRETER = "python3 -I -S -c pass"
_UNCACHED = "remit run, plan not in the cache"
_SLOW = 50e6
"""Nanoseconds of a start from which a peer is started a fifth as often: some take half a second."""


def measure(setting: Setting, rounds: int) -> list[Line]:
    """The rows of the group. The plan is in the cache and the bundle made, but for the row that says otherwise."""
    workspace = setting.directory("start")
    found, missing = peers.find(setting)
    commands: dict[str, Command] = {
        BARE: setting.command(workspace, setting.true),
        INTERPRETER: setting.command(workspace, setting.python, "-I", "-S", "-c", "pass"),
        RUN: setting.command(workspace, setting.remit, "run", "-p", PROFILE, "--", "true"),
    }
    lines: list[Line] = [NotMeasured(GROUP, name, reason) for name, reason in missing.items()]
    slow: dict[str, Command] = {}
    for name, wrap in found.items():
        command = wrap(workspace, (setting.true,))
        try:
            run(command, setting.errors)
            (slow if run(command, setting.errors).wall > _SLOW else commands)[name] = command
        except BenchError as error:
            lines.append(NotMeasured(GROUP, name, str(error)))
    few = max(2, rounds // 5)
    measured = _rows(setting, commands, rounds)
    # Beside bare starts of their own: what goes on between two starts differs.
    if slow:
        measured += [line for line in _rows(setting, {BARE: commands[BARE], **slow}, few) if line.name != BARE]
    measured += [line for line in _uncached(setting, workspace, few) if line.name != BARE]
    return [*measured, *lines]


def _rows(setting: Setting, commands: dict[str, Command], rounds: int) -> list[Line]:
    variants = {name: _starter(command, setting.errors) for name, command in commands.items()}
    return _lines(setting, variants, rounds)


def _starter(command: Command, errors: str) -> Callable[[], Sample]:
    return lambda: run(command, errors)


def _lines(setting: Setting, variants: dict[str, Callable[[], Sample]], rounds: int) -> list[Line]:
    samples, failed = interleave(
        variants, rounds, must=(BARE,), tell=lambda turn: setting.tell(f"cold starts {turn}/{rounds}")
    )
    bare = statistics.median(milliseconds(samples[BARE]))
    lines: list[Line] = [
        row(GROUP, name, "", "ms", milliseconds(taken), bare, {"cpu_median": cpu(taken)})
        for name, taken in samples.items()
    ]
    return [*lines, *[NotMeasured(GROUP, name, reason) for name, reason in failed.items()]]


def _uncached(setting: Setting, workspace: str, rounds: int) -> list[Line]:
    """A start whose plan has to be compiled."""
    cache = f"{setting.base}/no-cache"
    command = replace(
        setting.command(workspace, setting.remit, "run", "-p", PROFILE, "--", "true"),
        environment={**setting.environment, "XDG_CACHE_HOME": cache},
    )

    def forgotten() -> Sample:
        shutil.rmtree(cache, ignore_errors=True)
        os.mkdir(cache, 0o700)
        return run(command, setting.errors)

    bare = setting.command(workspace, setting.true)
    return _lines(setting, {BARE: lambda: run(bare, setting.errors), _UNCACHED: forgotten}, rounds)
