"""Removing and renaming: a name that goes, and what it takes with it."""

from __future__ import annotations

import posix
from errno import EACCES, EINVAL, EXDEV

from remit.sandbox.kernel.call import AT_FDCWD, failure
from remit.sandbox.kernel.files import renameat2
from remit.sandbox.mediate.calls import DOTS, PROCEED, Handlers, exists, leads_elsewhere
from remit.sandbox.mediate.rules import REMOVE, WRITE, join

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

_S_IFMT, _S_IFLNK, _S_IFDIR = 0o170000, 0o120000, 0o040000
_RENAME_EXCHANGE = 2
_AT_REMOVEDIR = 0x200


class Moving(Handlers):
    """What a rename carries away, and where it arrives, is decided on as if it were removed and made."""

    names: ClassVar[tuple[str, ...]] = (
        "unlink",
        "rmdir",
        "unlinkat",
        "rename",
        "renameat",
        "renameat2",
    )

    def unlink(self, path: int, *_: int) -> int:
        """``unlink(2)``."""
        return self._remove(AT_FDCWD, path, 0)

    def rmdir(self, path: int, *_: int) -> int:
        """``rmdir(2)``."""
        return self._remove(AT_FDCWD, path, _AT_REMOVEDIR)

    def unlinkat(self, descriptor: int, path: int, flags: int, *_: int) -> int:
        """``unlinkat(2)``."""
        flags &= 0xFFFFFFFF
        if flags & ~_AT_REMOVEDIR:
            raise failure(EINVAL, "unlinkat")
        return self._remove(descriptor, path, flags)

    def _remove(self, descriptor: int, path: int, flags: int) -> int:
        found = self._calls.target(descriptor, path, REMOVE)
        if found is None:
            return PROCEED
        directory, name, place, full, slash = found
        self._calls.touched.append((full, REMOVE))
        self._calls.hold(full)
        text = self._rules.decide(full, REMOVE)
        if not text and name in self._rules.hooks:
            text = self._repository.creation(directory, place, name)
        if text:
            # Nothing to remove is no denial: rm -f probes.
            posix.stat(name, dir_fd=directory, follow_symlinks=False)
            raise self._calls.denied(REMOVE, full, text, EACCES)
        target = name + b"/" if slash else name
        self._calls.performing = True
        if flags:
            posix.rmdir(target, dir_fd=directory)
        else:
            posix.unlink(target, dir_fd=directory)
        return 0

    def rename(self, old: int, new: int, *_: int) -> int:
        """``rename(2)``."""
        return self.renameat2(AT_FDCWD, old, AT_FDCWD, new, 0)

    def renameat(self, from_: int, old: int, to: int, new: int, *_: int) -> int:
        """``renameat(2)``."""
        return self.renameat2(from_, old, to, new, 0)

    def renameat2(self, from_: int, old: int, to: int, new: int, flags: int, *_: int) -> int:
        """``renameat2(2)``: only rules that the renamed component is part of can change their meaning."""
        flags &= 0xFFFFFFFF
        first, second = self._calls.resolved(from_, old), self._calls.resolved(to, new)
        if first is None or second is None:
            return PROCEED
        directory1, name1, place1, slash1 = first
        directory2, name2, place2, slash2 = second
        path1, path2 = join(place1, name1), join(place2, name2)
        if name1 in DOTS or name2 in DOTS:
            return PROCEED
        if not (self._calls.inside(path1) or self._calls.inside(path2)):
            self._calls.elsewhere(path1, REMOVE)
            return self._calls.elsewhere(path2, WRITE)
        self._calls.refuse_beyond(path1, REMOVE)
        self._calls.refuse_beyond(path2, WRITE)
        mode1 = posix.stat(name1, dir_fd=directory1, follow_symlinks=False).st_mode
        if path1 != path2:
            config = self._moves(directory1, name1, path1, mode1, directory2, place2, name2, flags)
            if flags & _RENAME_EXCHANGE:
                mode2 = posix.stat(name2, dir_fd=directory2, follow_symlinks=False).st_mode
                self._moves(directory2, name2, path2, mode2, directory1, place1, name1, flags)
            elif config:
                self._calls.performing = True
                text = self._repository.replace_config(directory1, name1, directory2, place2, name2, flags)
                if text:
                    raise self._calls.denied(WRITE, path2, text, EACCES)
                return 0
        self._calls.performing = True
        renameat2(directory1, name1 + b"/" if slash1 else name1, directory2, name2 + b"/" if slash2 else name2, flags)
        return 0

    def _moves(
        self,
        directory1: int,
        name1: bytes,
        path1: bytes,
        mode: int,
        directory2: int,
        place2: bytes,
        name2: bytes,
        flags: int,
    ) -> bool:
        """Refuse moving what is called ``path1`` to ``place2/name2``; True: git configuration, to be checked by content."""
        path2 = join(place2, name2)
        rules = self._rules
        self._calls.refuse(path1, REMOVE)
        self._calls.refuse(path2, WRITE)
        kind = mode & _S_IFMT
        if kind == _S_IFDIR:
            for path in (path1, path2):
                for rest, text in rules.governed(path):
                    inside = name1 + b"/" + rest
                    # A link on the way to what a rule names would redirect the rule, also where nothing is there yet.
                    if exists(directory1, inside) or (path == path2 and leads_elsewhere(directory1, name1, rest)):
                        raise self._calls.denied(REMOVE if path == path1 else WRITE, path + b"/" + rest, text, EACCES)
            if rules.crosses(path1, path2):
                self._calls.performing = True
                raise failure(EXDEV, "rename")
        elif kind == _S_IFLNK:
            text = rules.component(path2)
            if text:
                raise self._calls.denied(WRITE, path2, text, EACCES)
        # What is replaced disappears.
        self._calls.check(path2, REMOVE)
        if name1 in rules.special:
            text = self._repository.leaving(directory1, path1.rpartition(b"/")[0], name1, kind == _S_IFDIR)
            if text:
                raise self._calls.denied(REMOVE, path1, text, EACCES)
        if name2 in rules.special:
            if not flags and self._repository.is_config(directory2, place2, name2):
                return not rules.opened(path2)
            text = self._repository.arriving(directory1, name1, mode, directory2, place2, name2)
            if text:
                raise self._calls.denied(WRITE, path2, text, EACCES)
        return False
