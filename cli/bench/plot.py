"""A result as a picture: medians on a logarithmic axis, each with its minimum and 99th percentile.

SVG by hand, because a plotting library would weigh more than Remit. Its colours follow the reader's scheme, light or dark,
also where a page shows it as an image.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from remit.cli.bench.measure import BARE, BenchError
from remit.sandbox.authority.errors import UsageError

_WIDTH, _LEFT, _RIGHT = 760, 300, 76
_LINE, _TOP, _GAP = 22, 44, 34
_TICKS, _FEW = (1, 2, 5), (1, 3)
_CONVERTERS = (
    ("rsvg-convert", "-z", "2", "-b", "white", "-o", "{to}", "{from}"),
    ("inkscape", "-d", "192", "--export-background=white", "-o", "{to}", "{from}"),
    ("magick", "-density", "192", "-background", "white", "svg:{from}", "-flatten", "{to}"),
)
"""Programs that make a PNG of an SVG: twice the size, and on white, because a PNG follows no reader's scheme."""
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #656d76; }
.title { font-weight: 600; font-size: 14px; }
.minor, .value { font-size: 12px; }
.grid { stroke: #8c959f; stroke-opacity: 0.35; }
.span { stroke: #8c959f; stroke-width: 2; }
.dot { fill: #8c959f; }
.ours .span { stroke: #218bff; }
.ours .dot { fill: #218bff; }
.ours text { font-weight: 600; }
@media (prefers-color-scheme: light) { text { fill: #1f2328; } .minor, .value { fill: #59636e; } }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .minor, .value { fill: #9198a1; } }
"""
"""Colours that can be read on light and on dark; clearer ones where the reader's choice is known."""

Points = list[tuple[str, float, float, float]]
"""Label, minimum, median and 99th percentile, in milliseconds."""


def write(path: Path, result: dict[str, Any]) -> None:
    """Draw ``result`` into ``path``, whose suffix says how. UsageError for another suffix, or nothing to draw."""
    text = svg(result)
    if path.suffix == ".svg":
        path.write_text(text, encoding="utf-8")
        return
    if path.suffix != ".png":
        raise UsageError("the name ends neither in .svg nor in .png", where=str(path))
    for program, *options in _CONVERTERS:
        found = shutil.which(program)
        if found is None:
            continue
        source = path.with_suffix(".svg.tmp")
        source.write_text(text, encoding="utf-8")
        words = [word.replace("{to}", str(path)).replace("{from}", str(source)) for word in options]
        try:
            done = subprocess.run([found, *words], capture_output=True, check=False)
        finally:
            source.unlink()
        if done.returncode != 0:
            raise BenchError(f"{program}: {done.stderr.decode(errors='replace')[-300:].strip()}")
        return
    raise UsageError(
        "no program here makes a PNG of an SVG", where=str(path), hint="install librsvg2-bin, or ask for .svg"
    )


def svg(result: dict[str, Any]) -> str:
    """The picture. UsageError where nothing that it shows was measured."""
    panels = [(title, points) for title, points in _panels(result["rows"]) if points]
    if not panels:
        raise UsageError(
            "nothing to draw: neither starts nor warm calls were measured", hint="--only start --only warm"
        )
    drawn: list[str] = []
    height = 0
    for title, points in panels:
        part, used = _panel(title, points, height)
        drawn += part
        height += used
    host = result["host"]
    foot = (
        f"Linux {host['kernel']}, {host['cpus']} CPUs; one run, interleaved. Dot: median; line: from the minimum to the 99th "
        "percentile."
    )
    drawn.append(f'<text class="minor" x="12" y="{height + 10}">{escape(foot)}</text>')
    height += 24
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">'
    )
    return "\n".join([head, f"<style>{_STYLE}</style>", *drawn, "</svg>\n"])


def _panels(rows: list[dict[str, Any]]) -> list[tuple[str, Points]]:
    starts = [row for row in rows if row["group"] == "start"]
    warm = [row for row in rows if row["group"] == "warm" and row["name"] == "output captured"]
    return [
        ("Cold start of true, from a shell: milliseconds", _points(starts, "name")),
        ("One call of true from a running Python program, its output captured: milliseconds", _points(warm, "variant")),
    ]


def _points(rows: list[dict[str, Any]], label: str) -> Points:
    points = [(row[label], row["minimum"], row["median"], row["p99"]) for row in rows]
    return sorted([(f"{name} posix_spawn" if name == BARE else name, *rest) for name, *rest in points], key=_median)


def _median(point: tuple[str, float, float, float]) -> float:
    return point[2]


def _panel(title: str, points: Points, top: int) -> tuple[list[str], int]:
    low, high = min([point[1] for point in points]), max([point[3] for point in points])
    low, high = _below(low), _above(high)
    span = math.log(high) - math.log(low)

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log(value) - math.log(low)) / span

    bottom = top + _TOP + _LINE * len(points)
    out = [f'<text class="title" x="12" y="{top + 20}">{escape(title)}</text>']
    for tick in _ticks(low, high):
        at = f"{x(tick):.1f}"
        out.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{top + _TOP - 10}" y2="{bottom - 6}"/>')
        out.append(f'<text class="minor" text-anchor="middle" x="{at}" y="{bottom + 10}">{tick:g}</text>')
    for number, (name, minimum, median, p99) in enumerate(points):
        y = top + _TOP + _LINE * number
        out.append(f'<g class="{"ours" if name.startswith("remit") else "theirs"}">')
        out.append(f'<text text-anchor="end" x="{_LEFT - 14}" y="{y + 4}">{escape(name)}</text>')
        out.append(f'<line class="span" x1="{x(minimum):.1f}" x2="{x(p99):.1f}" y1="{y}" y2="{y}"/>')
        out.append(f'<circle class="dot" cx="{x(median):.1f}" cy="{y}" r="5"/>')
        out.append(f'<text class="value" x="{_WIDTH - _RIGHT + 14}" y="{y + 4}">{_number(median)}</text></g>')
    return out, bottom + _GAP - top


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _steps(value: float) -> list[float]:
    decade = 10.0 ** math.floor(math.log10(value))
    return [decade * tick for tick in (*_TICKS, 10)]


def _below(value: float) -> float:
    return max([step for step in _steps(value) if step <= value])


def _above(value: float) -> float:
    return min([step for step in _steps(value) if step > value])


def _ticks(low: float, high: float) -> list[float]:
    found: list[float] = []
    ticks = _TICKS if math.log10(high / low) < 3 else _FEW
    decade = 10.0 ** math.floor(math.log10(low))
    while decade <= high:
        found += [decade * tick for tick in ticks if low <= decade * tick * 1.0001 and decade * tick <= high * 1.0001]
        decade *= 10
    return found
