"""What a session's way out costs, beside the same connections bare and through a relay that asks nothing."""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from remit.cli.bench import peers, traffic
from remit.cli.bench.client import Program
from remit.cli.bench.lone import ADDRESS, PLACE, RELAY, SRT
from remit.cli.bench.measure import RUN, Command, Line, NotMeasured, interleave, milliseconds, row, run
from remit.cli.bench.setting import PROFILE, Setting

GROUP = "network"
ADDED = "start, more with a way out than without"
_STARTS = 5
"""So many times the rounds: one start varies more than what is looked for."""
_CONNECTIONS, _ROUND_TRIPS = 200, 1000


def measure(setting: Setting, rounds: int, mebibytes: int) -> Iterable[Line]:
    """The rows of the group. ``mebibytes`` is what goes through a connection in one sample of throughput."""
    yield from _added(setting, _STARTS * rounds)
    yield from _traffic(setting, rounds, mebibytes)


def _added(setting: Setting, rounds: int) -> list[Line]:
    """Differences between two starts of ``true`` in the same round."""
    workspace = setting.directory("network-start")
    ways = {"without": (), "with": ("--connect", "api.example.com:443")}
    commands: dict[str, Command] = {
        name: setting.command(workspace, setting.remit, "run", "-p", PROFILE, *way, "--", "true")
        for name, way in ways.items()
    }
    samples, failed = interleave(
        {name: partial(run, command, setting.errors) for name, command in commands.items()},
        rounds,
        tell=lambda turn: setting.tell(f"starts with a way out {turn}/{rounds}"),
    )
    if failed:
        return [NotMeasured(GROUP, ADDED, reason) for reason in failed.values()]
    pairs = zip(milliseconds(samples["with"]), milliseconds(samples["without"]), strict=True)
    return [row(GROUP, ADDED, RUN, "ms", [more - less for more, less in pairs], None)]


def _traffic(setting: Setting, rounds: int, mebibytes: int) -> list[Line]:
    workspace = setting.directory("network")
    # Where a session sees it too.
    script = shutil.copy(Path(traffic.__file__), workspace)
    proxied, missing = peers.proxied(setting, workspace, ADDRESS)
    settings: dict[str, object] = {
        "python": [setting.python, "-I", "-S"],
        "own": [sys.executable, "-I", "-S"],
        "script": script,
        "workspace": workspace,
        "remit": [setting.remit, "run", "-p", PROFILE, "-w", workspace, "--connect", PLACE, "--"],
        "srt": proxied,
        "errors": f"{setting.errors}-network",
    }
    rows: tuple[tuple[str, str, str, int], ...] = (
        ("throughput of one connection", "MB/s", "throughput", mebibytes),
        ("connections a second, one after the other", "1/s", "connections", _CONNECTIONS),
        ("round trip of 64 bytes", "µs", "round_trip", _ROUND_TRIPS),
    )
    lines: list[Line] = [NotMeasured(GROUP, SRT, missing)] if missing else []
    with Program(setting, "lone", settings, workspace) as lone:
        lone.ask(do="open")
        for name, unit, what, number in rows:
            setting.tell(name)
            reply = lone.ask(do="sample", measure=what, number=number, rounds=rounds)
            samples: dict[str, list[float]] = reply["samples"]
            relayed = statistics.median(samples[RELAY])
            lines += [row(GROUP, name, variant, unit, values, relayed) for variant, values in samples.items()]
            lines += [NotMeasured(GROUP, f"{variant}: {name}", why) for variant, why in reply["failed"].items()]
    return lines
