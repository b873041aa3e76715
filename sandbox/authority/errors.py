"""Errors, one class a phase. Each carries the value that was wrong, where it stands, and one hint that fixes it."""

from __future__ import annotations

NOWHERE = "the current directory does not exist any more"
"""What a relative path meets with where it has been removed."""


class RemitError(Exception):
    """Base of every error that Remit raises for its user (exported as ``remit.Error``)."""

    phase = "remit"
    exit_status = 125

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        # Not super(): of an error that is subprocess's too, the next in line is subprocess's, with arguments of its own.
        Exception.__init__(self, message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class UsageError(RemitError):
    """A malformed option or argument."""

    phase = "usage"
    exit_status = 2


class GrantError(RemitError):
    """A grant that is malformed, or wider than what it is taken from."""

    phase = "grant"
    exit_status = 2


class Unenforceable(RemitError):
    """The authority cannot be enforced on this host. ``reasons`` names each missing thing with its fix."""

    phase = "compile"

    def __init__(
        self, message: str, *, reasons: tuple[tuple[str, str], ...] = (), where: str = "", hint: str = ""
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.reasons = reasons


class LaunchError(RemitError):
    """Remit failed before the command ran."""

    phase = "launch"


def no_program() -> LaunchError:
    """Where the name of the program is empty: what a shell says of it."""
    error = LaunchError("'': not found", hint="the first word of the command is empty")
    error.phase, error.exit_status = "exec", 127
    return error
