"""Executing: only watched."""

from __future__ import annotations

import posix
from errno import EACCES, EPERM

from remit.sandbox.kernel import memory
from remit.sandbox.kernel.call import AT_FDCWD
from remit.sandbox.kernel.files import O_PATH
from remit.sandbox.mediate.calls import O_CLOEXEC, PROCEED, Handlers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class Programs(Handlers):
    """Mounts and Landlock decide."""

    names: ClassVar[tuple[str, ...]] = (
        "execve",
        "execveat",
    )

    def execve(self, path: int, *_: int) -> int:
        """``execve(2)``."""
        return self.execveat(AT_FDCWD, path)

    def execveat(self, descriptor: int, path: int, *_: int) -> int:
        """``execveat(2)``: Landlock decides; a program that exists here and is not granted counts as a denial."""
        full = self._view.lexical(descriptor, memory.read_string(self._view.pid, path))
        if full is not None:
            self._calls.later = self._executed, (full,)
        return PROCEED

    def _executed(self, full: bytes) -> None:
        if full.startswith(b"/proc/"):
            return
        try:
            found = self._view.own(posix.open(full, O_PATH | O_CLOEXEC))
        except OSError as error:
            if error.errno in (EACCES, EPERM):
                self._calls.outside(full, "exec")
        else:
            self._calls.outside(self._view.canonical(found), "exec")
