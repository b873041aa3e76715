"""Errors for people: one line that says what is wrong and where, one hint, an exit status. Never a traceback."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from remit.cli import render
from remit.cli.output import Unwritten
from remit.sandbox.authority.errors import RemitError, Unenforceable

if TYPE_CHECKING:
    from remit.profiles.errors import Problem

INTERNAL = 125
"""Exit status of a failure of Remit itself."""


def lines(error: RemitError) -> list[str]:
    """What to print for ``error``, without the program's name."""
    several: tuple[RemitError, ...] = getattr(error, "errors", ())
    if several:
        return [line for one in several for line in lines(one)]
    problems: tuple[Problem, ...] = getattr(error, "problems", ())
    if problems:
        # A profile's problems already name their own hints.
        return [f"error: {problem}" for problem in problems]
    found = [f"error: {error}"]
    if isinstance(error, Unenforceable) and len(error.reasons) > 1:
        for what, fix in error.reasons:
            found.append(f"  - {what}")
            if fix:
                found.append(f"    fix: {fix}")
        return found
    if error.hint:
        found.append(f"hint: {error.hint}")
    return found


def report(error: BaseException) -> int:
    """Print ``error`` on stderr and return the exit status it asks for (``SystemExit``: its own)."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else INTERNAL
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, Unwritten) and error.quiet:
        return error.exit_status
    if isinstance(error, RemitError):
        render.problems(lines(error))
        return error.exit_status
    if os.environ.get("REMIT_DEBUG") == "1":
        render.traceback(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    render.problems(
        [f"internal error: {what}".replace("\n", " "), "hint: this is a bug in Remit; REMIT_DEBUG=1 shows where"]
    )
    return INTERNAL
