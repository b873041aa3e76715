"""``--status-fd`` of ``remit exec``: the events of a call, as ``remit run`` has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remit.sandbox.session import status

if TYPE_CHECKING:
    from remit.sandbox.authority.errors import RemitError


class Status(status.Status):
    """The events of one call."""

    def started(self, session: str, call: str) -> None:
        """The call is under way."""
        self.event({"event": "started", "session": session, "call": call})

    def exited(self, code: int, signal: int, limit: str, denied: int) -> None:
        """The command ended. ``code``: the exit status. ``signal``: the one that ended it by itself, or 0. ``denied``: how many
        of its actions were outside the grant."""
        how = {"signal": signal} if signal else {"code": code}
        self.event({"event": "exited", **how, "limit": limit or None, "denials": denied})

    def failed(self, error: RemitError) -> None:
        """The command never ran."""
        self.event({"event": "failed", "phase": error.phase, "message": str(error), "hint": error.hint})
