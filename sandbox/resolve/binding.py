"""What an authority's names resolve to now. ``resolve()`` makes it; the compiler sees only its symbolic half.

Bindings are made anew at every start, never serialised, never cached.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    DIRECTORY = "directory"
    FILE = "file"
    DEVICE = "device"
    SOCKET = "socket"
    OTHER = "other"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Named:
    """One name of an authority, resolved component by component.

    ``canonical`` has no symbolic link in it. ``links`` are the links crossed on the way, outermost first, as
    (canonical path of the link itself, its target as stored): the new root repeats them, so that the name the user
    wrote works inside. For ``ABSENT``, ``canonical`` is the deepest resolvable parent joined with the rest.
    """

    path: str
    canonical: str
    kind: Kind
    links: tuple[tuple[str, str], ...] = ()
    device: int = 0
    inode: int = 0
    uid: int = 0
    mode: int = 0
    parent_writable: bool = False
    """The directory that holds a file can be written by this user: a grant on the file binds its inode, and says so."""
    way: tuple[tuple[int, int], ...] = field(default=(), compare=False, repr=False)
    """(device, inode) of every directory that was gone through from the root down, and of the object itself: one for each
    component of ``canonical``, and the root's. It tells of the moment of the walk, and is not kept with a session."""

    @property
    def identity(self) -> tuple[int, int] | None:
        """What tells the object from every other one that there is; None for what is absent."""
        return None if self.kind is Kind.ABSENT else (self.device, self.inode)
