"""Standard output as everything that prints sees it: the one place where what cannot be written becomes an error.

Nobody between here and whoever printed may take it for something else: click makes exit status 1 of a broken pipe, which is
what ``remit`` says where profiles differ or a grant does not hold, and the interpreter loses what it could not flush at its end.
"""

from __future__ import annotations

import io
import os
import sys
from errno import EBADF, EPIPE
from typing import TYPE_CHECKING

from remit.sandbox.authority.errors import RemitError
from remit.sandbox.kernel import files

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDOUT = 1
READER_GONE = 141
"""128 + SIGPIPE: as a program that leaves the signal alone ends where nobody reads any more."""


class Unwritten(RemitError):
    """Standard output took less than was said. Where its reader has gone, there is nobody to be told (``quiet``)."""

    phase = "output"

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error), where="standard output")
        self.quiet = error.errno == EPIPE
        if self.quiet:
            self.exit_status = READER_GONE


class _Descriptor(io.RawIOBase):
    """Descriptor 1. After the first failure the rest goes nowhere: it is reported once."""

    def __init__(self, closed: bool) -> None:
        self._missing = closed
        self._failed = False

    def fileno(self) -> int:
        return _STDOUT

    def isatty(self) -> bool:
        return not self._missing and os.isatty(_STDOUT)

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        view = bytes(data)
        if self._failed:
            return len(view)
        try:
            if self._missing:
                raise OSError(EBADF, os.strerror(EBADF))
            files.say(_STDOUT, view)
        except OSError as error:
            self._failed = True
            raise Unwritten(error) from None
        return len(view)


def install() -> None:
    """From now on what is printed goes through here. ``sys.stdout`` is None where the process began without one."""
    raw = _Descriptor(sys.stdout is None)
    errors = "surrogateescape" if sys.stdout is None else sys.stdout.errors
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors=errors, line_buffering=raw.isatty())


def flush() -> None:
    """Everything that was printed is where it belongs. Raises Unwritten."""
    if sys.stdout is not None:
        sys.stdout.flush()
