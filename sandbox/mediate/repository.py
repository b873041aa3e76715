"""Names that mean something only because of what lies beside them: git directories and virtual environments.

A git directory is whatever holds ``objects`` and ``refs`` (git's ``is_git_directory``), or is called ``.git``. Every way
in which git finds one (``.git``, a bare repository, ``gitdir:``, ``commondir``, ``modules``) ends at such a directory,
so it is enough to keep this true: *a git directory's configuration and hooks are not written inside*. A directory
becomes one when the second marker appears; then what it already holds is checked, and its configuration replaced by the
mediator's own copy, which no descriptor from before can reach.
"""

from __future__ import annotations

import posix
from errno import ENOENT, ENOTDIR

from remit.sandbox.kernel.files import O_PATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2, renameat2
from remit.sandbox.mediate import gitconfig
from remit.sandbox.mediate.rules import (
    CONFIG_NAMES,
    GIT,
    HOOK_DIRECTORY,
    MARKERS,
    PROGRAM_DIRECTORIES,
    Rules,
    join,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from remit.sandbox.mediate.resolve import View

_S_IFMT, _S_IFLNK, _S_IFDIR, _S_IFREG = 0o170000, 0o120000, 0o040000, 0o100000
_LARGEST_CONFIG = 1 << 20
_HOOK = "auto_exec git hook"
_CONFIG = "auto_exec git config"
_INTERPRETER = "auto_exec interpreter"
_PRIVATE = (b"/tmp", b"/var/tmp", b"/dev", b"/run", b"/proc")


def _mode(directory: int, path: bytes) -> int:
    """The type of ``path``, 0 where it does not exist."""
    try:
        return posix.stat(path, dir_fd=directory, follow_symlinks=False).st_mode & _S_IFMT
    except OSError as error:
        if error.errno in (ENOENT, ENOTDIR):
            return 0
        raise


class Repository:
    """Decisions that look at a handful of names beside the one in question. Each returns a rule's text, or nothing."""

    def __init__(
        self, rules: Rules, view: View, inside: Callable[[bytes], bool], changes: Callable[[bytes], bool]
    ) -> None:
        """``inside``: in a root. ``changes``: in a root, or where other calls of the session may write."""
        self._rules = rules
        self._view = view
        self._inside = inside
        self._changes = changes

    def _git(self, directory: int, place: bytes) -> bool:
        return place.endswith(b"/.git") or bool(_mode(directory, MARKERS[0]) and _mode(directory, MARKERS[1]))

    def _hooks_of_git(self, directory: int, place: bytes) -> bool:
        if not place.endswith(b"/hooks"):
            return False
        return place.endswith(b"/.git/hooks") or bool(
            _mode(directory, b"../" + MARKERS[0]) and _mode(directory, b"../" + MARKERS[1])
        )

    def is_config(self, directory: int, place: bytes, name: bytes) -> bool:
        """``name`` is a git directory's configuration. ``config.worktree`` is one wherever it is."""
        return name == CONFIG_NAMES[1] or (name == CONFIG_NAMES[0] and self._git(directory, place))

    def creation(self, directory: int, place: bytes, name: bytes) -> str:
        """``name`` is made, opened for writing, or linked to."""
        if self._rules.opened(join(place, name)):
            return ""
        if name in self._rules.hooks and self._hooks_of_git(directory, place):
            return f"{_HOOK} {name.decode()}"
        if name in CONFIG_NAMES and self.is_config(directory, place, name):
            return _CONFIG
        if name in self._rules.interpreters and place.rpartition(b"/")[2] in PROGRAM_DIRECTORIES:
            return _INTERPRETER
        if name in MARKERS:
            return self._completes(directory, place, name)
        return ""

    def _completes(self, directory: int, place: bytes, name: bytes) -> str:
        """``name`` may make a git directory of ``place``: what it holds must be what git itself could have written."""
        other = MARKERS[1 - MARKERS.index(name)]
        if not _mode(directory, other) or _mode(directory, name) or place.endswith(b"/.git"):
            return ""
        return self._adopt(directory, place)

    def _adopt(self, directory: int, place: bytes) -> str:
        kind = _mode(directory, HOOK_DIRECTORY)
        if kind == _S_IFLNK or (kind == _S_IFDIR and self._has_hooks(directory, HOOK_DIRECTORY)):
            return _HOOK
        kind = _mode(directory, CONFIG_NAMES[0])
        if kind == 0:
            return ""
        if kind != _S_IFREG:
            return _CONFIG
        return self._checked_copy(directory, CONFIG_NAMES[0], directory, place, CONFIG_NAMES[0], b"")

    def _has_hooks(self, directory: int, path: bytes) -> bool:
        return any(_mode(directory, path + b"/" + hook) for hook in self._rules.hooks)

    def link(self, directory: int, place: bytes, name: bytes, target: bytes) -> str:
        """A symbolic link to ``target`` is made, or moved, to ``name``."""
        if self._rules.opened(join(place, name)):
            return ""
        if name == GIT or name in PROGRAM_DIRECTORIES:
            return f"auto_exec {name.decode()}"
        if name == HOOK_DIRECTORY and self._git(directory, place):
            return _HOOK
        if name in self._rules.interpreters and place.rpartition(b"/")[2] in PROGRAM_DIRECTORIES:
            return "" if self._trusted_interpreter(directory, target) else _INTERPRETER
        return self.creation(directory, place, name)

    def _trusted_interpreter(self, directory: int, target: bytes) -> bool:
        if target in self._rules.interpreters:
            return True
        try:
            found = self._view.own(openat2(directory, target, O_PATH | posix.O_CLOEXEC, 0, RESOLVE_NO_MAGICLINKS))
        except OSError:
            return False
        path = self._view.canonical(found)
        return not self._changes(path) and not path.startswith(_PRIVATE)

    def leaving(self, directory: int, place: bytes, name: bytes, is_directory: bool) -> str:
        """``name`` is moved away. Configuration and interpreters may be (they may be removed, too), hooks may not."""
        if name == HOOK_DIRECTORY and is_directory:
            if self._git(directory, place) and self._has_hooks(directory, name):
                return _HOOK
        elif name == GIT and is_directory:
            if self._has_hooks(directory, GIT + b"/" + HOOK_DIRECTORY):
                return _HOOK
        elif name in self._rules.hooks:
            return self.creation(directory, place, name)
        return ""

    def arriving(self, source: int, old: bytes, mode: int, directory: int, place: bytes, name: bytes) -> str:
        """``old`` in ``source`` is moved to ``name``."""
        kind = mode & _S_IFMT
        if self._rules.opened(join(place, name)):
            return ""
        if kind == _S_IFLNK:
            return self.link(directory, place, name, posix.readlink(old, dir_fd=source))
        if kind != _S_IFDIR:
            return self.creation(directory, place, name)
        if name == GIT:
            moved = self._view.own(
                openat2(source, old, O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC, 0, RESOLVE_NO_SYMLINKS)
            )
            return "" if self._git(moved, b"") else self._adopt(moved, join(place, name))
        if name == HOOK_DIRECTORY:
            return _HOOK if self._git(directory, place) and self._has_hooks(source, old) else ""
        if name in PROGRAM_DIRECTORIES:
            return self._programs(source, old)
        return self.creation(directory, place, name)

    def _programs(self, source: int, old: bytes) -> str:
        moved = self._view.own(
            openat2(source, old, O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC, 0, RESOLVE_NO_SYMLINKS)
        )
        for name in self._rules.interpreters:
            kind = _mode(moved, name)
            if kind == 0:
                continue
            if kind != _S_IFLNK or not self._trusted_interpreter(moved, posix.readlink(name, dir_fd=moved)):
                return _INTERPRETER
        return ""

    def replace_config(self, source: int, old: bytes, directory: int, place: bytes, name: bytes, flags: int) -> str:
        """git's own way to write configuration, a rename of its lock, done with a copy of what was checked."""
        text = self._checked_copy(source, old, directory, place, name, self._read(directory, name) or b"")
        if not text:
            posix.unlink(old, dir_fd=source)
        return text

    def _read(self, directory: int, name: bytes) -> bytes | None:
        flags = posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC
        try:
            descriptor = self._view.own(openat2(directory, name, flags, 0, RESOLVE_NO_SYMLINKS))
        except OSError:
            return None
        status = posix.fstat(descriptor)
        if status.st_mode & _S_IFMT != _S_IFREG or status.st_size > _LARGEST_CONFIG:
            return None
        pieces: list[bytes] = []
        while sum(map(len, pieces)) <= _LARGEST_CONFIG:
            piece = posix.read(descriptor, 1 << 16)
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
        return None

    def _checked_copy(self, source: int, old: bytes, directory: int, place: bytes, name: bytes, existing: bytes) -> str:
        text = self._read(source, old)
        if text is None:
            return f"{_CONFIG}: not a readable file of at most {_LARGEST_CONFIG >> 20} MiB"
        key = gitconfig.refused(text, existing, lambda value: self._worktree(place, value))
        if key:
            return f"{_CONFIG}: {key}"
        mode = posix.stat(old, dir_fd=source, follow_symlinks=False).st_mode & 0o777
        temporary = b".remit-config-%d" % posix.getpid()
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC
        copy = self._view.own(openat2(directory, temporary, flags, 0o600, RESOLVE_NO_SYMLINKS))
        try:
            left = memoryview(text)
            while left:
                left = left[posix.write(copy, left) :]
            posix.fchmod(copy, mode)
            renameat2(directory, temporary, directory, name, 0)
        except OSError:
            posix.unlink(temporary, dir_fd=directory)
            raise
        return ""

    def _worktree(self, place: bytes, value: bytes) -> bool:
        """``core.worktree`` may only name a relative place in a writable root, outside any ``.git`` (submodules)."""
        if not value or value[:1] == b"/":
            return False
        parts: list[bytes] = []
        for part in (place + b"/" + value).split(b"/"):
            if part == b"..":
                if parts:
                    parts.pop()
            elif part and part != b".":
                parts.append(part)
        return GIT not in parts and self._inside(b"/" + b"/".join(parts))
