"""Cold start: from before ``posix_spawn`` until ``/bin/true`` has been waited for."""

from __future__ import annotations

import os
import shutil
import statistics
from dataclasses import replace

from tests.bench.measure import BenchError, Command, NotMeasured, Row, cpu, interleave, milliseconds, row
from tests.bench.setting import Setting

GROUP = "start"
BARE = "bare posix_spawn"
_PEERS = ("firejail", "crun", "runc", "nsjail", "minijail0", "codex", "srt")


def measure(setting: Setting, rounds: int) -> list[Row | NotMeasured]:
    """The rows of the group. The plan is in the cache and the bundle made, but for the row that says otherwise."""
    workspace = setting.directory("start")
    true = setting.program("true") or "/bin/true"
    commands: dict[str, Command] = {
        BARE: setting.command(workspace, true),
        "python3 -I -S -c pass": setting.command(workspace, setting.python, "-I", "-S", "-c", "pass"),
        "remit run": setting.command(workspace, setting.remit, "run", "-p", "offline", "--", "true"),
    }
    missing: list[Row | NotMeasured] = []
    if setting.bwrap is None:
        missing.append(NotMeasured(GROUP, "bubblewrap + seccomp", "not installed"))
    else:
        wrapped = setting.command(workspace, *setting.bubblewrapped(workspace, "true"))
        commands["bubblewrap + seccomp"] = replace(wrapped, seccomp=setting.filter)
    for peer in _PEERS:
        path = setting.program(peer)
        if path is None:
            missing.append(NotMeasured(GROUP, peer, "not installed"))
        elif peer == "firejail":
            commands[peer] = setting.command(workspace, *_firejail(path, workspace))
        else:
            missing.append(NotMeasured(GROUP, peer, "installed; has no invocation here"))
    rows = _rows(commands, rounds, setting.errors)
    return [*rows, *_first(setting, workspace, rounds), *missing]


def _firejail(path: str, workspace: str) -> tuple[str, ...]:
    alone = ("--net=none", "--private-tmp", "--private-dev", "--ipc-namespace")
    less = ("--caps.drop=all", "--nonewprivs", "--noroot", "--seccomp")
    return (path, "--quiet", "--noprofile", *alone, *less, "--read-only=/", f"--read-write={workspace}", "--", "true")


def _rows(commands: dict[str, Command], rounds: int, errors: str) -> list[Row]:
    samples = interleave(commands, rounds, errors)
    bare = statistics.median(milliseconds(samples[BARE]))
    return [
        row(GROUP, name, "", "ms", milliseconds(taken), bare, {"cpu_median": cpu(taken)})
        for name, taken in samples.items()
    ]


def _first(setting: Setting, workspace: str, rounds: int) -> list[Row | NotMeasured]:
    """A start whose plan has to be compiled, beside bare ones of its own."""
    name = "remit run, plan not in the cache"
    cache = f"{setting.base}/no-cache"

    def forget() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        os.mkdir(cache, 0o700)

    first = replace(
        setting.command(workspace, setting.remit, "run", "-p", "offline", "--", "true"),
        environment={**setting.environment, "XDG_CACHE_HOME": cache},
        prepare=forget,
    )
    commands = {BARE: setting.command(workspace, setting.program("true") or "/bin/true"), name: first}
    try:
        return [one for one in _rows(commands, max(2, rounds // 5), setting.errors) if one.name == name]
    except BenchError as error:
        return [NotMeasured(GROUP, name, str(error))]
