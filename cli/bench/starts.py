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
UNCACHED = "remit run, plan not in the cache"
NETWORK = "remit run, with a way out"
"""What a network adds to a start. Its gateway starts with the first packet, and ``true`` sends none."""
_SLOW, _SELDOM = 50e6, 5
"""Nanoseconds of a start from which there is one in so many rounds only: some peers take half a second."""


def measure(setting: Setting, rounds: int) -> list[Line]:
    """The rows of the group. The plan is in the cache and the bundle made, but for the row that says otherwise."""
    workspace = setting.directory("start")
    found, missing = peers.find(setting)
    commands: dict[str, Command] = {
        BARE: setting.command(workspace, setting.true),
        INTERPRETER: setting.command(workspace, setting.python, "-I", "-S", "-c", "pass"),
        RUN: setting.command(workspace, setting.remit, "run", "-p", PROFILE, "--", "true"),
        NETWORK: setting.command(
            workspace, setting.remit, "run", "-p", PROFILE, "--connect", "api.example.com:443", "--", "true"
        ),
    }
    commands |= {name: wrap(workspace, (setting.true,)) for name, wrap in found.items()}
    variants = {name: _starter(command, setting.errors) for name, command in commands.items()}
    variants[UNCACHED] = _uncached(setting, commands[RUN])
    seldom = max(1, min(_SELDOM, rounds // 2))
    first, failed = interleave(variants, 1, must=(BARE,))
    samples, later = interleave(
        {name: variants[name] for name in first},
        rounds,
        must=(BARE,),
        every={name: seldom for name, taken in first.items() if taken[0].wall > _SLOW and name not in (RUN, NETWORK)},
        tell=lambda turn: setting.tell(f"cold starts {turn}/{rounds}"),
    )
    bare = statistics.median(milliseconds(samples[BARE]))
    return [
        *[
            row(GROUP, name, "", "ms", milliseconds(taken), bare, {"cpu_median": cpu(taken)})
            for name, taken in samples.items()
        ],
        *[NotMeasured(GROUP, name, reason) for name, reason in {**missing, **failed, **later}.items()],
    ]


def _starter(command: Command, errors: str) -> Callable[[], Sample]:
    return lambda: run(command, errors)


def _uncached(setting: Setting, command: Command) -> Callable[[], Sample]:
    """A start whose plan has to be compiled."""
    cache = f"{setting.base}/no-cache"
    empty = replace(command, environment={**setting.environment, "XDG_CACHE_HOME": cache})

    def start() -> Sample:
        shutil.rmtree(cache, ignore_errors=True)
        os.mkdir(cache, 0o700)
        return run(empty, setting.errors)

    return start
