"""Several errors at once: whoever mistyped two options wants to hear of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remit.sandbox.authority.errors import RemitError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Several(RemitError):
    """Errors that were found together. Phase, exit status and hint are the first one's."""

    def __init__(self, errors: Sequence[RemitError]) -> None:
        super().__init__("\n".join(str(error) for error in errors), hint=errors[0].hint)
        self.errors = tuple(errors)
        self.phase = errors[0].phase
        self.exit_status = errors[0].exit_status
