"""What the record costs: the same under ``[audit] level`` ``off``, ``writes`` and ``full``; and how much it takes, and loses."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from remit.cli.bench import syscalls
from remit.cli.bench.client import Client
from remit.cli.bench.measure import (
    BARE,
    BenchError,
    Line,
    NotMeasured,
    Row,
    Sample,
    interleave,
    milliseconds,
    row,
    run,
)
from remit.cli.bench.setting import PROFILE, Setting
from remit.cli.bench.worker import FIRST, QUIET, SECOND, SUBPROCESS
from remit.cli.bench.workloads import WORKLOADS, Unavailable, Workload, settled
from remit.sandbox.audit import log

GROUP = "audit"
OFF, WRITES, FULL = "remit run, level off", "remit run, level writes", "remit run, level full"
LEVELS = {OFF: "off", WRITES: "writes", FULL: "full"}
TRUE = "call of true in a session"
CALLED = {SUBPROCESS: SUBPROCESS, FIRST: "call, not audited", SECOND: "call, audited"}
WORK = ("gcc -O1, one C file", "pytest, 100 tests in 10 files")
CALLS = ("open-new", "open-existing-write", "open-existing-read", "connect", "connect-own", "spawn")
MADE, READ = "events recorded, files made and removed", "events recorded, files opened for reading"
PROGRAMS = 4
"""So many act at once: beside a single one, the mediator rests while that one runs."""
_TRUE = ", true"
_ACT = """
import os, sys, time
kind, seconds, programs = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
os.chdir(sys.argv[4])
begun = time.monotonic()
for number in range(programs):
    if os.fork() == 0:
        count, name = 0, f"made{number}"
        while time.monotonic() < begun + seconds:
            if kind == "made":
                os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600))
                os.unlink(name)
                count += 2
            else:
                os.close(os.open("kept", os.O_RDONLY))
                count += 1
        os.write(1, b"%d " % count)
        os._exit(0)
failed = sum([os.wait()[1] != 0 for _ in range(programs)])
os.write(1, b"%f" % (time.monotonic() - begun))
sys.exit(failed)
"""
"""Writes how many actions each program did, and in how many seconds all."""


def measure(setting: Setting, rounds: int, fewer: int, seconds: float) -> list[Line]:
    """The rows of the group: ``fewer`` runs of what measures system calls, records filled for ``seconds``."""
    profiles = {variant: _profile(setting, level) for variant, level in LEVELS.items()}
    parts: dict[str, Callable[[], list[Line]]] = {
        TRUE: partial(_calls, setting, profiles, 5 * rounds),
        "system calls": partial(_syscalls, setting, profiles, fewer),
        MADE: partial(_events, setting, MADE, "made", WRITES, profiles, fewer, seconds),
        READ: partial(_events, setting, READ, "read", FULL, profiles, fewer, seconds),
        **{name: partial(_work, setting, profiles, name, max(fewer, rounds // 4)) for name in WORK},
    }
    lines: list[Line] = []
    for name, part in parts.items():
        setting.tell(f"audit: {name}")
        try:
            lines += part()
        except (Unavailable, BenchError) as error:
            lines.append(NotMeasured(GROUP, name, str(error)))
    return lines


def _profile(setting: Setting, level: str) -> str:
    """A profile that is the benchmark's own, but for the level. Its path."""
    path = f"{setting.base}/audit-{level}.toml"
    text = f'format = 1\nname = "bench-{level}"\nextends = ["{PROFILE}"]\n[audit]\nlevel = "{level}"\n'
    Path(path).write_text(text, encoding="utf-8")
    return path


def _calls(setting: Setting, profiles: Mapping[str, str], rounds: int) -> list[Line]:
    """Calls of ``true`` in two sessions of one program, one of them audited, beside ``subprocess.run`` of the same."""
    with Client(setting, setting.directory("audit-calls")) as client:
        for variant in (OFF, WRITES):
            client.ask(do="open", sessions=1, profile=profiles[variant])
        reply = client.ask(do="sample", kinds=[(QUIET, way) for way in CALLED], rounds=rounds)
    taken: dict[str, list[float]] = {way: [ns / 1e6 for ns in many] for _, way, many in reply["ns"]}
    if SUBPROCESS not in taken:
        raise BenchError(f"{SUBPROCESS}: {reply['failed']}")
    bare = statistics.median(taken[SUBPROCESS])
    lines: list[Line] = [row(GROUP, TRUE, CALLED[way], "ms", values, bare) for way, values in taken.items()]
    return [*lines, *[NotMeasured(GROUP, f"{TRUE}: {CALLED[way]}", why) for _, way, why in reply["failed"]]]


def _syscalls(setting: Setting, profiles: Mapping[str, str], rounds: int) -> list[Line]:
    workspace = setting.directory("audit-syscalls")
    program, empty, output = f"{workspace}/syscalls", f"{workspace}/empty", f"{setting.base}/audit.out"
    syscalls.build(setting, program)
    inside = (program, str(syscalls.COUNT), empty, *CALLS)
    commands = {BARE: inside, **_confined(setting, workspace, profiles, inside)}
    taken = syscalls.Taken(output)
    measured, failed = interleave(
        {
            name: syscalls.runner(setting, setting.command(workspace, *argv), empty, output)
            for name, argv in commands.items()
        },
        rounds,
        must=(BARE, OFF),
        after=taken.collect,
        tell=lambda turn: setting.tell(f"audit: system calls {turn}/{rounds}"),
    )
    lines: list[Line] = []
    for call in CALLS:
        values = {variant: taken.medians[call, variant] for variant in measured}
        for made in _compared(syscalls.NAMES[call], "µs", values):
            lines.append(replace(made, minimum=min(taken.minima[call, made.variant])))
    return [*lines, *_failed("system calls", failed)]


def _work(setting: Setting, profiles: Mapping[str, str], name: str, rounds: int) -> list[Line]:
    """A workload bare and under each level, and ``true`` in the same rounds: what the start takes is subtracted."""
    workspace = setting.directory(f"audit-work{WORK.index(name)}")
    work = WORKLOADS[name](setting, workspace)
    runs: dict[str, Callable[[], Sample]] = {}
    for suffix, argv in (("", work.argv), (_TRUE, (setting.true,))):
        for variant, command in {BARE: argv, **_confined(setting, workspace, profiles, argv)}.items():
            runs[variant + suffix] = settled(work, partial(run, setting.command(workspace, *command), setting.errors))
    samples, failed = interleave(
        runs,
        rounds,
        must=(BARE, OFF, BARE + _TRUE, OFF + _TRUE),
        after=partial(_check, work),
        tell=lambda turn: setting.tell(f"audit: {name} {turn}/{rounds}"),
    )
    taken = {variant: milliseconds(values) for variant, values in samples.items()}
    medians = {variant: statistics.median(values) for variant, values in taken.items()}
    setting.aside(workspace)
    lines: list[Line] = []
    for made in _compared(name, "ms", {variant: taken[variant] for variant in (BARE, *LEVELS) if variant in taken}):
        if made.variant == BARE or made.variant + _TRUE not in medians:
            lines.append(made)
            continue
        start, off = [medians[variant + _TRUE] - medians[BARE + _TRUE] for variant in (made.variant, OFF)]
        net = {"start": start, "net_median": made.median - start}
        net["net_ratio"] = net["net_median"] / (medians[OFF] - off)
        lines.append(replace(made, extra={**made.extra, **net}))
    return [*lines, *_failed(name, failed)]


def _check(work: Workload, variant: str) -> None:
    if not variant.endswith(_TRUE) and not os.path.exists(work.makes):
        raise BenchError(f"{variant} did not make {os.path.basename(work.makes)}")


def _events(
    setting: Setting,
    name: str,
    kind: str,
    variant: str,
    profiles: Mapping[str, str],
    rounds: int,
    seconds: float,
) -> list[Line]:
    """How many events a second reach the record while programs act as fast as they can, and how many do not."""
    workspace = setting.directory(f"audit-{kind}")
    Path(workspace, "kept").touch()
    act = ("python3", "-I", "-S", "-c", _ACT, kind, str(seconds), str(PROGRAMS), workspace)
    output = f"{setting.base}/audit.out"
    command = setting.command(workspace, *setting.confined(workspace, *act, profile=profiles[variant]))
    rates: list[float] = []
    done = recorded = lost = 0
    for turn in range(-1, rounds):
        setting.tell(f"audit: {name} {turn + 1}/{rounds}")
        before = _sessions(setting)
        run(replace(command, output=output), setting.errors)
        (session,) = _sessions(setting) - before
        *counts, took = Path(output).read_text(encoding="ascii").split()
        if turn < 0:
            continue
        events, gaps = _recorded(f"{_state(setting)}/sessions/{session}/events.jsonl", workspace)
        rates.append(events / float(took))
        done, recorded, lost = done + sum(map(int, counts)), recorded + events, lost + gaps
    extra = {
        "window_s": seconds,
        "programs": PROGRAMS,
        "recorded": recorded,
        "lost": lost,
        "missing": done - recorded - lost,
    }
    return [row(GROUP, name, variant, "1/s", rates, None, extra)]


def _state(setting: Setting) -> str:
    return f"{setting.environment['XDG_STATE_HOME']}/remit"


def _sessions(setting: Setting) -> set[str]:
    return set(log.sessions(_state(setting)))


def _recorded(path: str, workspace: str) -> tuple[int, int]:
    """(actions below ``workspace``, actions that could not be written) of a record."""
    events = lost = 0
    with open(path, encoding="utf-8") as file:
        for line in map(json.loads, file):
            if line["kind"] == "gap":
                lost += int(line["lost"])
            elif line["kind"] == "action" and line["axis"] == "filesystem" and line["right"] != "exec":
                events += str(line["object"]).startswith(f"{workspace}/")
    return events, lost


def _confined(
    setting: Setting, workspace: str, profiles: Mapping[str, str], argv: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    return {variant: setting.confined(workspace, *argv, profile=profile) for variant, profile in profiles.items()}


def _compared(name: str, unit: str, values: Mapping[str, list[float]]) -> list[Row]:
    """Rows whose ratio is to ``OFF``, with the differences to it and to bare; the bare one has none of these."""
    bare, off = statistics.median(values[BARE]), statistics.median(values[OFF])
    rows = [row(GROUP, name, BARE, unit, values[BARE], None)]
    for variant in [one for one in values if one != BARE]:
        made = row(GROUP, name, variant, unit, values[variant], off)
        rows.append(replace(made, extra={"over_off": made.median - off, "over_bare": made.median - bare}))
    return rows


def _failed(name: str, failed: Mapping[str, str]) -> list[NotMeasured]:
    return [NotMeasured(GROUP, f"{variant}: {name}", why) for variant, why in failed.items()]
