"""Objects that a ``**/NAME`` deny names, as they are at start.

Mounts cover what exists, and can be made only for names that somebody found. So a deny at any depth costs one walk over the
granted trees it can match in, and only then: a profile without such a deny walks nothing. The floor's system directories are
not walked. What appears later is the mediator's, as far as it is made inside.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from remit.sandbox.authority.model import Authority, PathPattern
from remit.sandbox.resolve.binding import Kind, Named
from remit.sandbox.resolve.names import resolve_name
from remit.sandbox.resolve.toolchains import below

MAX_ENTRIES = 200_000
"""Directory entries looked at for all patterns together: about 0.2 s where they are cached."""

_OWN = ("/dev", "/proc", "/sys")


def matches(
    authority: Authority, floor: Authority, names: Mapping[str, Named], *, uid: int
) -> dict[str, tuple[Named, ...]]:
    """For each ``**/NAME`` deny, by its text, every object of that name below a granted directory, outermost only.

    ``names``: as ``resolve`` made it. A pattern is missing from the result where the walk came to its bound, or met a
    directory that this user may not list: then nobody can say what it would have to cover.
    """
    patterns = [pattern for pattern in authority.deny if pattern.any_depth]
    if not patterns:
        return {}
    system = {rule.path for rule in floor.paths}
    granted = {
        names[rule.path].canonical
        for rule in authority.paths
        if rule.path not in system and names[rule.path].kind is Kind.DIRECTORY
    }
    left = MAX_ENTRIES
    found: dict[str, tuple[Named, ...]] = {}
    for pattern in patterns:
        anchor = names[pattern.anchor].canonical
        roots = {max(anchor, path, key=len) for path in granted if below(path, anchor) or below(anchor, path)}
        walk = _Walk(anchor, pattern, left)
        for root in sorted(roots):
            if not any(below(root, other) for other in roots - {root}):
                walk.directory(root)
        left = walk.left
        if walk.complete:
            found[str(pattern)] = tuple(resolve_name(path, uid=uid) for path in walk.found)
    return found


class _Walk:
    """One pattern's walk. Symbolic links are matched by name and never followed."""

    def __init__(self, anchor: str, pattern: PathPattern, left: int) -> None:
        self.anchor = anchor
        self.tail = pattern.tail
        self.left = left
        self.complete = True
        self.found: list[str] = []

    def directory(self, root: str) -> None:
        pending = [root]
        while pending and self.complete:
            try:
                entries = os.scandir(pending.pop())
            except FileNotFoundError:
                continue
            except OSError:
                self.complete = False
                return
            with entries:
                for entry in entries:
                    self.left -= 1
                    if self.left < 0:
                        self.complete = False
                        return
                    if entry.name == self.tail[-1] and self.matched(entry.path):
                        self.found.append(entry.path)
                    elif entry.is_dir(follow_symlinks=False) and entry.path not in _OWN:
                        pending.append(entry.path)

    def matched(self, path: str) -> bool:
        beyond = path[len(self.anchor) :].strip("/").split("/")
        return tuple(beyond[-len(self.tail) :]) == self.tail
