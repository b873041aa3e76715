"""What can be wrong with a profile: every problem at once, each with its place."""

from __future__ import annotations

from typing import NamedTuple

from remit.sandbox.authority.errors import RemitError


class Problem(NamedTuple):
    """One thing that is wrong: ``line`` is 1-based, 0 when it is about the file as a whole; ``key`` may be empty."""

    file: str
    line: int
    key: str
    message: str
    hint: str = ""

    @property
    def where(self) -> str:
        """``FILE:LINE``, or the file alone."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        parts = [self.where, self.key, self.message] if self.key else [self.where, self.message]
        text = ": ".join(parts)
        return f"{text} ({self.hint})" if self.hint else text


class ProfileError(RemitError):
    """A profile that is malformed, missing, unsafe to read, or in conflict with what it extends.

    ``problems`` holds everything that was found, in the order of the file. ``message`` has one line for each.
    """

    phase = "profile"
    exit_status = 2

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        first = problems[0]
        super().__init__("\n".join(str(problem) for problem in problems), hint=first.hint)
        self.problems = problems
