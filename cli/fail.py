"""Errors for people: one line that says what is wrong and where, one hint, an exit status. Never a traceback."""

from __future__ import annotations

import os
import sys

from remit.sandbox.authority.errors import RemitError, Unenforceable

INTERNAL = 125
"""Exit status of a failure of Remit itself: never one that the command could be thought to have given."""


class Failures(RemitError):
    """Several errors at once. Its exit status is that of the first."""

    def __init__(self, errors: list[RemitError]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = errors
        self.phase = errors[0].phase
        self.exit_status = errors[0].exit_status


def lines(error: RemitError) -> list[str]:
    """What to print for ``error``, without the program's name."""
    if isinstance(error, Failures):
        return [line for one in error.errors for line in lines(one)]
    found = [f"error: {printable(str(error))}"]
    if isinstance(error, Unenforceable):
        for what, fix in error.reasons:
            found.append(f"  - {printable(what)}")
            if fix:
                found.append(f"    fix: {printable(fix)}")
    if error.hint:
        found.append(f"hint: {printable(error.hint)}")
    return found


def printable(text: str) -> str:
    """``text`` with control characters and lone surrogates escaped: a path must not be able to drive the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def report(error: BaseException) -> int:
    """Print ``error`` on stderr and return the exit status it asks for (``SystemExit``: its own)."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else INTERNAL
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):
        return 141
    if isinstance(error, RemitError):
        _print(lines(error))
        return error.exit_status
    if os.environ.get("REMIT_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    _print(
        [
            f"internal error: {printable(what)}".replace("\n", " "),
            "hint: this is a bug in Remit; REMIT_DEBUG=1 shows where",
        ]
    )
    return INTERNAL


def _print(found: list[str]) -> None:
    try:
        print("\n".join(f"remit: {line}" for line in found), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return
