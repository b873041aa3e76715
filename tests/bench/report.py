"""A result as markdown tables, and their place in a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.measure import BenchError

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def replace(page: Path, text: str) -> None:
    """Put ``text`` between the marks of ``page``. BenchError where they are not there, once each, in order."""
    whole = page.read_text(encoding="utf-8")
    if whole.count(BEGIN) != 1 or whole.count(END) != 1 or whole.index(BEGIN) > whole.index(END):
        raise BenchError(f"{page}: wants one '{BEGIN}' and, after it, one '{END}'")
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
    ]
    for group, title, table in _TABLES:
        rows = [row for row in result["rows"] if row["group"] == group]
        if rows:
            lines += [f"### {title}", "", *table(rows), ""]
    if result["not_measured"]:
        lines += ["Not measured:", ""]
        lines += [
            f"- {one['name']} ({one['group']}): {' '.join(one['reason'].split())}" for one in result["not_measured"]
        ]
        lines.append("")
    return "\n".join(lines)


def _number(value: float) -> str:
    """Three digits that count, at most two after the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _starts(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| | n | median | p99 | min | ratio to bare |", "|---|--:|--:|--:|--:|--:|"]
    for row in sorted(rows, key=lambda row: row["median"]):
        cells = [_number(row[name]) for name in ("median", "p99", "minimum", "ratio")]
        lines.append(f"| {row['name']} | {row['n']} | {' | '.join(cells)} |")
    return lines


def _calls(rows: list[dict[str, Any]]) -> list[str]:
    variants = list(dict.fromkeys([row["variant"] for row in rows]))
    confined = [variant for variant in variants if variant != "bare"]
    heads = [*variants, *[f"{variant}, ratio to bare" for variant in confined]]
    lines = [f"| | n | {' | '.join(heads)} |", "|---|--:" + "|--:" * len(heads) + "|"]
    by = {(row["name"], row["variant"]): row for row in rows}
    for name in dict.fromkeys([row["name"] for row in rows]):
        cells = [f"{_number(by[name, v]['median'])} / {_number(by[name, v]['minimum'])}" for v in variants]
        cells += [_number(by[name, variant]["ratio"]) for variant in confined]
        lines.append(f"| {name} | {by[name, 'bare']['n']} | {' | '.join(cells)} |")
    return lines


def _workloads(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| | n | bare | p99 | min | `remit run` | p99 | min | ratio to bare | without the start | ratio to bare |",
        "|---" + "|--:" * 10 + "|",
    ]
    by = {(row["name"], row["variant"]): row for row in rows}
    for name in dict.fromkeys([row["name"] for row in rows]):
        bare, confined = by[name, "bare"], by[name, "remit run"]
        cells = [_number(row[key]) for row in (bare, confined) for key in ("median", "p99", "minimum")]
        cells += [_number(confined[key]) for key in ("ratio", "net_median", "net_ratio")]
        lines.append(f"| {name} | {bare['n']} | {' | '.join(cells)} |")
    return lines


_TABLES: tuple[tuple[str, str, Callable[[list[dict[str, Any]]], list[str]]], ...] = (
    ("start", "Cold start of `true`, ms", _starts),
    ("call", "One system call, µs: median / minimum", _calls),
    ("workload", "Whole commands, ms", _workloads),
)
