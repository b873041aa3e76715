"""``--status-fd``: JSON lines that tell Remit's own ends from the command's."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from remit.cli import render
from remit.sandbox.authority.errors import UsageError

if TYPE_CHECKING:
    from remit.sandbox.authority.errors import RemitError
    from remit.sandbox.session.result import CompletedCall

SCHEMA = "remit.status/1"


class Status:
    """The events of one run, on a descriptor; nowhere where it is negative."""

    def __init__(self, descriptor: int) -> None:
        """UsageError where the descriptor is not open."""
        self._descriptor = descriptor
        if descriptor >= 0:
            try:
                os.fstat(descriptor)
            except (OSError, OverflowError):
                raise UsageError(f"descriptor {descriptor} is not open", where="--status-fd") from None

    def started(self, session: str, call: str) -> None:
        """The command runs."""
        self._say({"event": "started", "session": session, "call": call})

    def exited(self, result: CompletedCall[Any], denied: int) -> None:
        """The command ended. ``denied``: how many of its actions were outside the grant."""
        how = {"signal": -result.returncode} if result.returncode < 0 else {"code": result.returncode}
        self._say({"event": "exited", **how, "limit": result.limit or None, "denials": denied})

    def failed(self, error: RemitError) -> None:
        """The command never ran."""
        self._say({"event": "failed", "phase": error.phase, "message": str(error), "hint": error.hint})

    def _say(self, event: dict[str, object]) -> None:
        if self._descriptor >= 0:
            self.say({"schema": SCHEMA, **event})

    def say(self, document: dict[str, object]) -> None:
        """One line."""
        data = (json.dumps(document) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            render.problems([f"--status-fd {self._descriptor}: {error.strerror}"])
