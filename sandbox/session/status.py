"""``--status-fd``: JSON lines that tell Remit's own ends from the command's, written where the caller says."""

from __future__ import annotations

import posix

from remit.sandbox.audit.text import dumps
from remit.sandbox.authority.errors import LaunchError, UsageError
from remit.sandbox.kernel import files

SCHEMA = "remit.status/1"
_OPTION = "--status-fd"
_ACCESS = 0o3
"""Of a descriptor's flags, how it may be used (``open(2)``): O_RDONLY is 0."""


class Status:
    """The events of one run, on a descriptor; nowhere where it is negative.

    What cannot be written there does not end the command, which runs already: ``check`` tells of it, once, when all is over.
    """

    def __init__(self, descriptor: int) -> None:
        """UsageError where it is known that nothing can be written: nothing has been started then."""
        self._descriptor = descriptor
        self._problem = ""
        if descriptor >= 0:
            _look_at(descriptor)

    @property
    def wanted(self) -> bool:
        """Whether anybody is to be told."""
        return self._descriptor >= 0

    def event(self, event: dict[str, object]) -> None:
        """One event of the run."""
        self.say({"schema": SCHEMA, **event})

    def say(self, document: dict[str, object]) -> None:
        """One line."""
        if self._descriptor < 0 or self._problem:
            return
        try:
            files.say(self._descriptor, (dumps(document) + "\n").encode())
        except OSError as error:
            self._problem = error.strerror or str(error)

    def check(self) -> None:
        """Raises LaunchError where not everything that was said could be written."""
        if self._problem:
            raise LaunchError(
                f"descriptor {self._descriptor}: {self._problem}",
                where=_OPTION,
                hint="the command has run; how it ended could not be told there",
            )


def _look_at(descriptor: int) -> None:
    from fcntl import F_GETFL, fcntl  # only where it is asked for

    try:
        flags = fcntl(descriptor, F_GETFL)
    except (OSError, OverflowError):
        raise UsageError(f"descriptor {descriptor} is not open", where=_OPTION) from None
    if flags & files.O_PATH or flags & _ACCESS == posix.O_RDONLY:
        raise UsageError(
            f"descriptor {descriptor} is not open for writing", where=_OPTION, hint=f"such as {descriptor}>status.json"
        )
