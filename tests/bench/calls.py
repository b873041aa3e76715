"""What a system call costs inside: ``tests/probes/mediation_cost.c``, with two calls more that nobody mediates."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path

from tests.bench.measure import BenchError, Command, NotMeasured, Row, interleave, row
from tests.bench.setting import Setting

GROUP = "call"
COUNT = 1000
_BARE, _REMIT, _BWRAP = "bare", "remit run", "bubblewrap + seccomp"
_BATCH = 100
_PROBES = Path(__file__).resolve().parent.parent / "probes"
_SOURCE = f"""
#define main mediated_calls
#include "mediation_cost.c"
#undef main
int main(int argc, char **argv) {{
	struct stat found;
	int status = mediated_calls(argc, argv);
	MEASURE("stat-call", (void)0, stat("target", &found), (void)0);
	/* One call takes less than reading the clock does. */
	MEASURE("getppid", (void)0, for (int j = 0; j < {_BATCH}; j++) getppid(), (void)0);
	return status;
}}
"""
_NAMES = {
    "open-new": "open, O_CREAT, new name",
    "open-existing-write": "open, existing, for writing",
    "rename": "rename",
    "mkdir": "mkdir",
    "rmdir": "rmdir",
    "create-then-unlink": "unlink",
    "chmod": "chmod",
    "open-dev-null": "open /dev/null for writing",
    "open-existing-read": "open for reading (not mediated)",
    "stat-call": "stat (not mediated)",
    "stat": "access (not mediated)",
    "getppid": "getppid (not mediated)",
}
"""The probe's names that become rows. Its file in ``/tmp`` does not: inside, that is another file system."""


def measure(setting: Setting, rounds: int) -> list[Row | NotMeasured]:
    """The rows of the group, in microseconds: each value is the median of COUNT calls in one run of the probe."""
    workspace = setting.directory("calls")
    probe, empty, output = f"{workspace}/probe", f"{workspace}/empty", f"{setting.base}/calls.out"
    compiler = setting.program("gcc") or setting.program("cc")
    if compiler is None:
        return [NotMeasured(GROUP, "system calls", "no C compiler")]
    built = subprocess.run(
        [compiler, "-O2", "-w", "-x", "c", "-", "-I", str(_PROBES), "-o", probe],
        input=_SOURCE.encode(),
        capture_output=True,
        check=False,
    )
    if built.returncode != 0:
        raise BenchError(f"the probe does not compile: {built.stderr.decode(errors='replace')[-600:]}")

    def clean() -> None:
        shutil.rmtree(empty, ignore_errors=True)
        os.mkdir(empty)

    # The shell changes directory: a session starts where its caller stands, bubblewrap where it is told.
    inside = ("/bin/sh", "-c", 'cd "$1" && exec "$2" "$3"', "sh", empty, probe, str(COUNT))
    variants: dict[str, Command] = {
        _BARE: setting.command(workspace, *inside),
        _REMIT: setting.command(workspace, *setting.confined(workspace, *inside)),
    }
    missing: list[Row | NotMeasured] = []
    if setting.bwrap is None:
        missing.append(NotMeasured(GROUP, _BWRAP, "not installed"))
    else:
        wrapped = setting.command(workspace, *setting.bubblewrapped(workspace, *inside))
        variants[_BWRAP] = replace(wrapped, seccomp=setting.filter)
    commands = {name: replace(command, prepare=clean, output=output) for name, command in variants.items()}
    medians: dict[tuple[str, str], list[float]] = {}
    minima: dict[tuple[str, str], list[float]] = {}

    def collect(variant: str) -> None:
        for line in Path(output).read_text().splitlines():
            call, median, minimum = line.split()
            each = 1000 * (_BATCH if call == "getppid" else 1)
            medians.setdefault((call, variant), []).append(int(median) / each)
            minima.setdefault((call, variant), []).append(int(minimum) / each)

    interleave(commands, rounds, setting.errors, collect)
    rows: list[Row | NotMeasured] = []
    for call, name in _NAMES.items():
        bare = statistics.median(medians[call, _BARE])
        for variant in commands:
            made = row(GROUP, name, variant, "µs", medians[call, variant], bare, {"calls_a_run": COUNT})
            rows.append(replace(made, minimum=min(minima[call, variant])))
    return [*rows, *missing]
