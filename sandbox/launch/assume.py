"""What a plan takes for granted about names, and whether it is still so.

A plan is symbolic: its paths are canonical, its links and absent names are those of the moment it was compiled. Objects
that exist need no check here: the stage opens each of them by its canonical path without following any link, and what it
opens is what is bound. What cannot be seen by opening is checked at every start: a link that leads elsewhere now, a name
that was absent and is there now (a grant, or a deny, that was about nothing).
"""

from __future__ import annotations

import posix
from errno import ENOENT, ENOTDIR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    from remit.sandbox.launch.wire import Assumption

    Check: TypeAlias = tuple[str, str, str | tuple[int, int, int]]
    """(kind, path, expectation): ``link`` and its target, ``absent`` and "", ``same`` and (device, inode, mtime in ns)."""

_ROOT = 0


def checks(assumptions: Iterable[Assumption]) -> tuple[Check, ...]:
    """The cheapest checks that cover the assumptions as they hold now.

    Names that are absent from a directory that only root writes are covered together, by the directory's change time;
    a home or a workspace changes too often for that, so absent names there are looked up one by one.
    """
    found: dict[tuple[str, str], Check] = {}
    for _path, kind, canonical, links in assumptions:
        for link, target in links:
            found["link", link] = ("link", link, target)
        if kind == "absent":
            check = _absence(canonical)
            found[check[0], check[1]] = check
    return tuple(found.values())


def _absence(path: str) -> Check:
    parent = path
    while parent != "/":
        parent = parent.rpartition("/")[0] or "/"
        try:
            status = posix.stat(parent)
        except OSError:
            continue
        if status.st_uid == _ROOT and not status.st_mode & 0o022 and posix.geteuid() != _ROOT:
            return ("same", parent, (status.st_dev, status.st_ino, status.st_mtime_ns))
        break
    return ("absent", path, "")


def broken(expected: Iterable[Check]) -> str:
    """The path of the first check that does not hold any more, or ""."""
    for kind, path, expectation in expected:
        try:
            if kind == "link":
                holds = posix.readlink(path) == expectation
            elif kind == "same":
                status = posix.stat(path)
                holds = (status.st_dev, status.st_ino, status.st_mtime_ns) == expectation
            else:
                posix.lstat(path)
                holds = False
        except OSError as error:
            holds = kind == "absent" and error.errno in (ENOENT, ENOTDIR)
        if not holds:
            return path
    return ""
