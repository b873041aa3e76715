"""``python -m tests.bench.run``: measure ``remit run`` beside its anchors, interleaved, as an ordinary user.

``remit`` on PATH has to be what users have: a wheel, installed by this user (``python3 -m venv V && V/bin/pip install
WHEEL``, and ``V/bin`` first in PATH). Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import calls, report, setting, starts, workloads
from tests.bench.measure import BenchError, NotMeasured, Row

SCHEMA = "remit.bench/1"
_ROUNDS = 100
_LEAST = 7


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.run", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument(
        "--rounds",
        type=int,
        default=_ROUNDS,
        metavar="N",
        help=f"starts of each kind (default {_ROUNDS}); of workloads and probes a tenth, at least {_LEAST} or N",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="groups (start, call, workload) or parts of workloads' names",
    )
    parser.add_argument(
        "--directory", default=os.path.expanduser("~"), help="make the temporary directory here (not /tmp)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result here ('-': standard output)")
    parser.add_argument("--markdown", action="store_true", help="print the tables")
    parser.add_argument(
        "--write", metavar="FILE", help="with --markdown: replace what is between the marks in FILE instead"
    )
    parser.add_argument("--from-json", metavar="FILE", help="measure nothing: the tables of an earlier result")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write what was asked for. Returns an exit status."""
    arguments = _arguments(argv)
    write = os.path.abspath(arguments.write) if arguments.write else None
    output = os.path.abspath(arguments.json) if arguments.json and arguments.json != "-" else arguments.json
    try:
        if arguments.from_json:
            result = json.loads(Path(arguments.from_json).read_text(encoding="utf-8"))
        else:
            result = _measured(arguments.rounds, arguments.only, os.path.realpath(arguments.directory))
        text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        if output == "-":
            sys.stdout.write(text)
        elif output:
            Path(output).write_text(text, encoding="utf-8")
        if write:
            report.replace(Path(write), report.markdown(result))
        elif arguments.markdown or not output:
            sys.stdout.write(report.markdown(result))
    except BenchError as error:
        sys.stderr.write(f"bench: error: {error}\n")
        return 2
    return 0


def _measured(rounds: int, only: Sequence[str], parent: str) -> dict[str, object]:
    path = os.environ.get("PATH", "/usr/bin:/bin")
    base = tempfile.mkdtemp(prefix="remit-bench-", dir=parent)
    try:
        where = setting.make(base, path)
        before = os.getloadavg()
        rows = _rows(where, rounds, only)
        return {
            "schema": SCHEMA,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": {
                "kernel": platform.release(),
                "machine": platform.machine(),
                "cpus": len(os.sched_getaffinity(0)),
                "python": platform.python_version(),
                "remit": where.version,
                "load_before": before,
                "load_after": os.getloadavg(),
            },
            "rounds": rounds,
            "rows": [
                {name: value for name, value in {**vars(row), **row.extra}.items() if name != "extra"}
                for row in rows
                if isinstance(row, Row)
            ],
            "not_measured": [vars(row) for row in rows if isinstance(row, NotMeasured)],
        }
    finally:
        os.chdir("/")
        shutil.rmtree(base, ignore_errors=True)


def _rows(where: setting.Setting, rounds: int, only: Sequence[str]) -> list[Row | NotMeasured]:
    def wanted(group: str, name: str = "") -> bool:
        return not only or group in only or any([bool(name) and part in name for part in only])

    def say(name: str) -> None:
        sys.stderr.write(f"bench: {name}\n")

    fewer = max(min(rounds, _LEAST), rounds // 10)
    rows: list[Row | NotMeasured] = []
    if wanted(starts.GROUP):
        say("cold starts")
        rows += starts.measure(where, rounds)
    if wanted(calls.GROUP):
        say("system calls")
        rows += calls.measure(where, fewer)
    rows += workloads.measure(where, fewer, lambda name: wanted(workloads.GROUP, name), say)
    return rows


if __name__ == "__main__":
    sys.exit(main())
