"""Files of the host's that a session gets as copies, or in them: read through no link, while the session starts."""

from __future__ import annotations

import posix
from _stat import S_IFMT, S_IFREG  # stat would be a file to load

from remit.sandbox.kernel import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from remit.sandbox.launch.wire import Operation

SAFE = files.RESOLVE_NO_SYMLINKS | files.RESOLVE_NO_MAGICLINKS
_LIMIT = 1 << 20
"""Bytes of each that are copied."""


class Swapped(Exception):
    """An object is not the one that was resolved: (path,)."""


def open_source(path: str, flags: int) -> int:
    """A descriptor of a host object. Raises OSError with the path as its file name."""
    try:
        return files.openat2(-100, path.encode(errors="surrogateescape"), flags, 0, SAFE)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def read(operations: Iterable[Operation]) -> dict[str, bytes]:
    """The content of what ``operations`` copy, by the name inside. Raises OSError with a path; Swapped."""
    found: dict[str, bytes] = {}
    for operation in operations:
        if operation[0] in ("copy", "certificates") and operation[1]:
            _, source, target = operation
            # A FIFO in its place must not be waited for.
            opened = open_source(source, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
            try:
                status = posix.fstat(opened)
                if S_IFMT(status.st_mode) != S_IFREG:
                    raise Swapped(source)
                found[target] = posix.read(opened, min(status.st_size, _LIMIT))
            finally:
                posix.close(opened)
    return found
