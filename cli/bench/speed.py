"""``remit bench speed``: what confinement costs, beside the same bare and in other sandboxes, all in one run."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

import remit
from remit.cli import render
from remit.cli.bench import audit, memory, network, plot, report, setting, starts, syscalls, warm, workloads
from remit.cli.bench.measure import BenchError, Line, NotMeasured, Row
from remit.cli.command import HELP_NAMES
from remit.sandbox.authority.errors import NOWHERE, UsageError
from remit.sandbox.session import place

SCHEMA = "bench"
GROUPS = (
    starts.GROUP,
    warm.START,
    warm.WARM,
    warm.RATE,
    memory.GROUP,
    syscalls.GROUP,
    network.GROUP,
    audit.GROUP,
    workloads.GROUP,
)
_ROUNDS = 100
_LEAST = 7
_FULL = 20
"""From so many rounds on, the figures are meant: windows are long, and memory is looked at more than once."""

_HELP = """Measure what confinement costs here, beside the same bare and in other sandboxes.

    Every row's variants run interleaved, in an order drawn for each round. Other sandboxes are measured where they are
    installed, without a network; what cannot be measured is listed, with the reason. Prints tables, unless another output is
    asked for. Takes some minutes; the machine should be idle.
"""


@click.command("speed", help=_HELP, context_settings={"help_option_names": list(HELP_NAMES)})
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=_ROUNDS,
    show_default=True,
    metavar="N",
    help=f"Runs of each start; of system calls and workloads a tenth, but {_LEAST} (or N); of warm calls five times it.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help=f"A group ({', '.join(GROUPS)}), or part of a workload's name. Repeatable.",
)
@click.option("--json", "as_json", metavar="FILE", help="Write the result as JSON (`-`: to standard output).")
@click.option("--markdown", is_flag=True, help="Print tables, whatever else is written.")
@click.option("--write", metavar="FILE", help="Put the tables between the marks in FILE.")
@click.option("--plot", "plot_file", metavar="FILE", help="Draw starts and calls into FILE (.svg or .png).")
@click.option(
    "--directory",
    metavar="DIR",
    help="Work in a new directory here; not in /tmp, which is another file system inside.  [default: the home directory]",
)
@click.option("--from-json", metavar="FILE", help="Measure nothing: take an earlier result.")
def command(
    rounds: int,
    only: tuple[str, ...],
    as_json: str | None,
    markdown: bool,
    write: str | None,
    plot_file: str | None,
    directory: str | None,
    from_json: str | None,
) -> int:
    """Measure, and write what was asked for."""
    _known(only)
    paths = [Path(_absolute(name)) if name and name != "-" else None for name in (as_json, write, plot_file)]
    output, page, picture = paths
    # Before minutes of measuring, not after them.
    if picture is not None and picture.suffix not in (".svg", ".png"):
        raise UsageError("the name ends neither in .svg nor in .png", where=str(plot_file))
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise UsageError("there is no such directory", where=str(path.parent))
    if page is not None:
        report.check(page)
    result = _read(from_json) if from_json else measured(rounds, only, directory or os.path.expanduser("~"))
    if as_json == "-":
        render.document(SCHEMA, {name: value for name, value in result.items() if name != "schema"})
    elif output is not None:
        output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if page is not None:
        report.replace(page, report.markdown(result))
    if picture is not None:
        plot.write(picture, result)
    if markdown or not (as_json or write or plot_file):
        render.text(report.markdown(result).rstrip("\n"))
    return 0


def _absolute(name: str) -> str:
    if not name.startswith("/") and not place.current_directory():
        raise UsageError(NOWHERE, where=name, hint="cd to one that does, or write it in full")
    return os.path.abspath(name)


def _known(only: tuple[str, ...]) -> None:
    for name in only:
        if name not in GROUPS and not any([name in workload for workload in workloads.WORKLOADS]):
            hint = f"a group ({', '.join(GROUPS)}), or part of a workload's name: {'; '.join(workloads.WORKLOADS)}"
            raise UsageError(f"nothing is called {name!r}", where="--only", hint=hint)


def _read(name: str) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(Path(name).read_text(encoding="utf-8"))
        schema: object = result["schema"]
    except (OSError, ValueError) as error:
        raise UsageError(f"no result can be read: {error}", where=name) from None
    except (KeyError, TypeError, IndexError):
        raise UsageError("this is no result of remit bench speed", where=name) from None
    if schema != f"remit.{SCHEMA}/1":
        raise UsageError(f"{schema!r} is not remit.{SCHEMA}/1", where=name)
    try:
        report.markdown(result)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"a result that is not whole: {error!r}", where=name, hint="measure again") from None
    return result


def measured(rounds: int, only: tuple[str, ...], parent: str) -> dict[str, Any]:
    """Measure in a new directory of ``parent``, which is removed again. The document."""
    where = place.current_directory()
    try:
        base = tempfile.mkdtemp(prefix="remit-bench-", dir=os.path.realpath(_absolute(parent)))
    except OSError as error:
        raise UsageError(
            f"no directory can be made here: {error.strerror}", where=parent, hint="--directory DIR"
        ) from None
    # Else nothing of what follows is cleaned up: not the directory, not the sessions.
    before_that = signal.signal(signal.SIGTERM, _terminated)
    try:
        with render.Progress() as progress:
            before = os.getloadavg()
            here = setting.make(base, progress.tell)
            lines = list(_lines(here, rounds, only))
        return {
            "schema": f"remit.{SCHEMA}/1",
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": {
                "kernel": platform.release(),
                "machine": platform.machine(),
                "cpus": len(os.sched_getaffinity(0)),
                "python": platform.python_version(),
                "remit": remit.__version__,
                "load_before": list(before),
                "load_after": list(os.getloadavg()),
                "caveats": list(here.caveats),
            },
            "rounds": rounds,
            "rows": [{**vars(line), "extra": dict(line.extra)} for line in lines if isinstance(line, Row)],
            "not_measured": [vars(line) for line in lines if isinstance(line, NotMeasured)],
        }
    finally:
        signal.signal(signal.SIGTERM, before_that)
        os.chdir(where or "/")
        shutil.rmtree(base, ignore_errors=True)


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _lines(here: setting.Setting, rounds: int, only: tuple[str, ...]) -> Iterable[Line]:
    fewer = max(min(rounds, _LEAST), rounds // 10)
    full = rounds >= _FULL

    def wanted(group: str, name: str = "") -> bool:
        return not only or group in only or any([bool(name) and part in name for part in only])

    groups: tuple[tuple[str, Callable[[], Iterable[Line]]], ...] = (
        (starts.GROUP, lambda: starts.measure(here, rounds)),
        (warm.START, lambda: warm.starts(here, max(2, rounds // 5))),
        (warm.WARM, lambda: warm.calls(here, 5 * rounds)),
        (warm.RATE, lambda: warm.rates(here, max(2, rounds // 20), 1.0 if full else 0.1)),
        (memory.GROUP, lambda: memory.measure(here, 3 if full else 1)),
        (syscalls.GROUP, lambda: syscalls.measure(here, fewer)),
        (network.GROUP, lambda: network.measure(here, fewer, 256 if full else 16)),
        (audit.GROUP, lambda: audit.measure(here, rounds, fewer, 3.0 if full else 0.1)),
    )
    for group, measure in groups:
        if wanted(group):
            try:
                yield from measure()
            except BenchError as error:
                yield NotMeasured(group, "all", str(error))
    yield from workloads.measure(here, fewer, lambda name: wanted(workloads.GROUP, name))
