"""The only module that prints. JSON for programs; for people, tables on a terminal and plain lines elsewhere.

Whatever comes from a path, a file or an error passes ``printable`` first: a file name must not be able to move the
cursor or forge a line.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from remit.sandbox.kernel import files

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from rich.live import Live

GAP = "  "


def printable(text: str) -> str:
    """``text`` with control characters and lone surrogates escaped (newlines stay)."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def document(name: str, content: Mapping[str, object]) -> None:
    """One JSON object on stdout, with ``"schema": "remit.NAME/1"`` first."""
    import json

    print(json.dumps({"schema": f"remit.{name}/1", **content}, indent=2, ensure_ascii=True))


def text(line: str = "") -> None:
    """One line, or several, on stdout."""
    print(printable(line))


def heading(title: str) -> None:
    """A section's title; bold on a terminal."""
    shown = printable(title)
    bold = _terminal() and os.environ.get("TERM", "") not in ("", "dumb")
    print(f"\033[1m{shown}\033[0m" if bold else shown)


def listing(lines: Iterable[str]) -> None:
    """Lines of one section, indented."""
    for line in lines:
        print(f"{GAP}{printable(line)}")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], whole: Collection[str] = ()) -> None:
    """A table: drawn by rich on a terminal, columns padded with blanks elsewhere (no wrapping, nothing cut).

    ``whole``: columns that stay on one line on a terminal too, for what is copied from there.
    """
    shown = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    if _terminal():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            drawn.add_column(column, overflow="fold", no_wrap=column in whole)
        for row in shown:
            drawn.add_row(*[Text(cell) for cell in row])
        Console(markup=False, highlight=False).print(drawn)
        return
    widths = [max(len(line[i]) for line in [list(columns), *shown]) for i in range(len(columns))]
    for row in [[c.upper() for c in columns], *shown]:
        print(GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class Progress:
    """What is going on, for people: one line on stderr that is replaced and, in the end, gone. On a terminal only.

    It is drawn when it is told something, never by a thread of its own: that would run while things are timed.
    """

    def __init__(self) -> None:
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def tell(self, what: str) -> None:
        """Show ``what`` instead of what was told before."""
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(f"{printable(what)} ..."), refresh=True)


def problems(lines: Iterable[str]) -> None:
    """Lines on stderr, each under the program's name."""
    _to_stderr("".join([f"remit: {printable(line)}\n" for line in lines]))


def line(content: Mapping[str, object]) -> None:
    """One JSON object on stderr, as its last line."""
    import json

    _to_stderr(json.dumps(content) + "\n")


def _to_stderr(text: str) -> None:
    """A stderr that is closed, or that nobody reads, is no reason to fail differently."""
    stream = sys.stderr
    try:
        stream.flush()
        if stream is sys.__stderr__:
            files.say(2, text.encode(errors="backslashreplace"))
        else:
            print(text, end="", file=stream, flush=True)  # a program's own, which runs this within it
    except (AttributeError, OSError, ValueError):
        return  # None where it was closed


def traceback(error: BaseException) -> None:
    """Where ``error`` came from, on stderr; only for ``REMIT_DEBUG=1``."""
    from traceback import print_exception

    print_exception(error)


def _terminal() -> bool:
    return sys.stdout.isatty()
