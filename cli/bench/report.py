"""A result as markdown tables, and their place in a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from remit.cli.bench.measure import BARE, BWRAP, CALL, RUN
from remit.sandbox.authority.errors import UsageError

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

Rows = list[dict[str, Any]]


def check(page: Path) -> str:
    """The text of ``page``. UsageError where the marks are not in it, once each, in order."""
    try:
        whole = page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(page)) from None
    if whole.count(BEGIN) != 1 or whole.count(END) != 1 or whole.index(BEGIN) > whole.index(END):
        raise UsageError(f"wants one '{BEGIN}' and, after it, one '{END}'", where=str(page))
    return whole


def replace(page: Path, text: str) -> None:
    """Put ``text`` between the marks of ``page``. UsageError as for ``check``."""
    whole = check(page)
    head, _, rest = whole.partition(BEGIN)
    page.write_text(f"{head}{BEGIN}\n{text}{END}{rest.partition(END)[2]}", encoding="utf-8")


def markdown(result: dict[str, Any]) -> str:
    """The tables of a result (``remit.bench/1``)."""
    host = result["host"]
    loads = " → ".join([f"{load[0]:.1f}" for load in (host["load_before"], host["load_after"])])
    lines = [
        f"remit {host['remit']}, Python {host['python']}, Linux {host['kernel']}, {host['machine']}, {host['cpus']} CPUs; "
        f"{result['when']}; load average before → after: {loads}.",
        "",
        *[line for caveat in host["caveats"] for line in (f"Beware: {caveat}.", "")],
    ]
    for group, title, table in _TABLES:
        rows = [row for row in result["rows"] if row["group"] == group]
        if rows:
            lines += [f"### {title}", "", *table(rows), ""]
    lines += _missing(result["not_measured"])
    return "\n".join(lines)


def _missing(entries: list[dict[str, str]]) -> list[str]:
    if not entries:
        return []
    # One reason is often that of many: a line of it, with all whom it concerns.
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in entries:
        reasons.setdefault((one["group"], " ".join(one["reason"].split())), []).append(one["name"])
    return [
        "Not measured:",
        "",
        *[f"- {group}: {'; '.join(names)}: {reason}" for (group, reason), names in reasons.items()],
        "",
    ]


def _number(value: float) -> str:
    """Three digits that count, at most two after the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _ratio(row: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    return _number(row["median"] / other["median"]) if row and other else "-"


def _values(row: dict[str, Any]) -> str:
    return " | ".join([str(row["n"]), *[_number(row[name]) for name in ("median", "p99", "minimum")]])


def _starts(rows: Rows) -> list[str]:
    lines = ["| | n | median | p99 | min | ratio to bare | to bubblewrap |", "|---" + "|--:" * 6 + "|"]
    wrapped = next((row for row in rows if row["name"] == BWRAP), None)
    for row in sorted(rows, key=lambda row: row["median"]):
        lines.append(f"| {row['name']} | {_values(row)} | {_number(row['ratio'])} | {_ratio(row, wrapped)} |")
    return lines


def _sessions(rows: Rows) -> list[str]:
    lines = ["| | n | median | p99 | min |", "|---" + "|--:" * 4 + "|"]
    return [*lines, *[f"| {row['name']} | {_values(row)} |" for row in rows]]


def _warm(rows: Rows) -> list[str]:
    lines = [
        "| | | n | median | p99 | min | ratio to subprocess.run | bubblewrap takes, times |",
        "|---|---" + "|--:" * 6 + "|",
    ]
    by = {(row["name"], row["variant"]): row for row in rows}
    for row in rows:
        wrapped = _ratio(by.get((row["name"], BWRAP)), row)
        lines.append(f"| {row['variant']} | {row['name']} | {_values(row)} | {_number(row['ratio'])} | {wrapped} |")
    return lines


def _rates(rows: Rows) -> list[str]:
    lines = ["| | | n | median | min | ratio to bare | to bubblewrap |", "|---|---" + "|--:" * 5 + "|"]
    by = {(row["name"], row["variant"]): row for row in rows}
    for row in rows:
        values = " | ".join([str(row["n"]), _number(row["median"]), _number(row["minimum"]), _number(row["ratio"])])
        wrapped = _ratio(row, by.get((row["name"], BWRAP)))
        lines.append(f"| {row['variant']} | {row['name']} | {values} | {wrapped} |")
    return lines


def _memory(rows: Rows) -> list[str]:
    lines = ["| | n | PSS, median | RSS | processes |", "|---" + "|--:" * 4 + "|"]
    for row in sorted(rows, key=lambda row: row["median"]):
        cells = [str(row["n"]), *[_number(one) for one in (row["median"], row["extra"]["rss"])]]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {row['extra']['processes']:.1f} |")
    return lines


def _syscalls(rows: Rows) -> list[str]:
    variants = list(dict.fromkeys([row["variant"] for row in rows]))
    confined = [variant for variant in variants if variant != BARE]
    heads = [*variants, *[f"{variant}, ratio to bare" for variant in confined]]
    lines = [f"| | n | {' | '.join(heads)} |", "|---|--:" + "|--:" * len(heads) + "|"]
    by = {(row["name"], row["variant"]): row for row in rows}
    for name in dict.fromkeys([row["name"] for row in rows]):
        cells = [f"{_number(by[name, v]['median'])} / {_number(by[name, v]['minimum'])}" for v in variants]
        cells += [_number(by[name, variant]["ratio"]) for variant in confined]
        lines.append(f"| {name} | {by[name, BARE]['n']} | {' | '.join(cells)} |")
    return lines


def _network(rows: Rows) -> list[str]:
    lines = ["| | | unit | n | median | p99 | min | ratio to the relay |", "|---|---|---" + "|--:" * 5 + "|"]
    for row in rows:
        ratio = "-" if row["ratio"] is None else _number(row["ratio"])
        lines.append(f"| {row['name']} | {row['variant']} | {row['unit']} | {_values(row)} | {ratio} |")
    return lines


def _audit(rows: Rows) -> list[str]:
    heads = "| | | unit | n | median | p99 | min | ratio | more than level off | than bare | ratio without the start | lost |"
    lines = [heads, "|---|---|---" + "|--:" * 9 + "|"]
    for row in rows:
        extra = row["extra"]
        cells = [_number(row["ratio"]) if row["ratio"] is not None else "-"]
        cells += [_number(extra[key]) if key in extra else "-" for key in ("over_off", "over_bare", "net_ratio")]
        cells.append(f"{extra['lost']:,} of {extra['recorded'] + extra['lost']:,}" if "lost" in extra else "-")
        lines.append(f"| {row['variant']} | {row['name']} | {row['unit']} | {_values(row)} | {' | '.join(cells)} |")
    return lines


def _workloads(rows: Rows) -> list[str]:
    variants = [variant for variant in (RUN, CALL) if any([row["variant"] == variant for row in rows])]
    heads = ["n", BARE, "p99", "min"]
    for variant in variants:
        heads += [variant, "p99", "min", "ratio to bare", "ratio without the start"]
    lines = [f"| | {' | '.join(heads)} |", "|---" + "|--:" * len(heads) + "|"]
    by = {(row["name"], row["variant"]): row for row in rows}
    for name in dict.fromkeys([row["name"] for row in rows]):
        cells = [_values(by[name, BARE])]
        for variant in variants:
            row = by.get((name, variant))
            if row is None:
                cells += ["-"] * 5
                continue
            cells += [_number(row[key]) for key in ("median", "p99", "minimum", "ratio")]
            cells.append(_number(row["extra"]["net_ratio"]) if "net_ratio" in row["extra"] else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


_TABLES: tuple[tuple[str, str, Callable[[Rows], list[str]]], ...] = (
    ("start", "Cold start of `true`, ms", _starts),
    ("session", "Sessions through the Python API, ms", _sessions),
    ("warm", "One call of `true` from a running program, ms", _warm),
    ("rate", "Calls of `true` a second", _rates),
    ("memory", "Kept in memory while idle, KiB", _memory),
    ("syscall", "One system call, µs: median / minimum", _syscalls),
    ("network", "The network", _network),
    ("audit", "What the record costs: [audit] level off, writes, full", _audit),
    ("workload", "Whole commands, ms", _workloads),
)
