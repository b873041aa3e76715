"""Modes and owners: no Landlock right covers these, so the kernel never goes on by itself."""

from __future__ import annotations

import posix
from errno import EINVAL, EPERM

from remit.sandbox.kernel import memory
from remit.sandbox.kernel.call import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, NR, call, failure
from remit.sandbox.kernel.files import change_mode, fchownat
from remit.sandbox.mediate.calls import SPECIAL_MODES, Handlers, positive
from remit.sandbox.mediate.resolve import signed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

_S_IFMT, _S_IFLNK, _S_IFDIR = 0o170000, 0o120000, 0o040000
_S_ISUID = 0o4000


class Attributes(Handlers):
    """Performed on a descriptor of the object, or refused."""

    names: ClassVar[tuple[str, ...]] = (
        "chmod",
        "fchmod",
        "fchmodat",
        "fchmodat2",
        "chown",
        "lchown",
        "fchown",
        "fchownat",
    )

    def chmod(self, path: int, mode: int, *_: int) -> int:
        """``chmod(2)``."""
        return self._chmod(AT_FDCWD, memory.read_string(self._view.pid, path), mode, 0)

    def fchmod(self, descriptor: int, mode: int, *_: int) -> int:
        """``fchmod(2)``."""
        return self._chmod(positive(descriptor), b"", mode, AT_EMPTY_PATH)

    def fchmodat(self, descriptor: int, path: int, mode: int, *_: int) -> int:
        """``fchmodat(2)``."""
        return self._chmod(descriptor, memory.read_string(self._view.pid, path), mode, 0)

    def fchmodat2(self, descriptor: int, path: int, mode: int, flags: int, *_: int) -> int:
        """``fchmodat2(2)`` (Linux 6.6)."""
        flags &= 0xFFFFFFFF
        if flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
            raise failure(EINVAL, "fchmodat2")
        return self._chmod(descriptor, memory.read_string(self._view.pid, path), mode, flags)

    def _chmod(self, descriptor: int, path: bytes, mode: int, flags: int) -> int:
        found = self._calls.object_to_change(descriptor, path, flags, hooks_too=True)
        if mode & SPECIAL_MODES:
            directory = posix.fstat(found).st_mode & _S_IFMT == _S_IFDIR
            # A directory's setgid bit only says which group its files get: git's shared repositories live on it.
            if mode & _S_ISUID or not directory:
                raise self._calls.denied("setuid", path, "setuid and setgid modes are refused", EPERM)
        if flags & AT_SYMLINK_NOFOLLOW and posix.fstat(found).st_mode & _S_IFMT == _S_IFLNK:
            return call(NR["fchmodat2"], found, b"", mode & 0o7777, AT_EMPTY_PATH)
        change_mode(found, mode & 0o7777)
        return 0

    def chown(self, path: int, uid: int, gid: int, *_: int) -> int:
        """``chown(2)``."""
        return self._chown(AT_FDCWD, memory.read_string(self._view.pid, path), uid, gid, 0)

    def lchown(self, path: int, uid: int, gid: int, *_: int) -> int:
        """``lchown(2)``."""
        return self._chown(AT_FDCWD, memory.read_string(self._view.pid, path), uid, gid, AT_SYMLINK_NOFOLLOW)

    def fchown(self, descriptor: int, uid: int, gid: int, *_: int) -> int:
        """``fchown(2)``."""
        return self._chown(positive(descriptor), b"", uid, gid, AT_EMPTY_PATH)

    def fchownat(self, descriptor: int, path: int, uid: int, gid: int, flags: int, *_: int) -> int:
        """``fchownat(2)``."""
        flags &= 0xFFFFFFFF
        if flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
            raise failure(EINVAL, "fchownat")
        return self._chown(descriptor, memory.read_string(self._view.pid, path), uid, gid, flags)

    def _chown(self, descriptor: int, path: bytes, uid: int, gid: int, flags: int) -> int:
        found = self._calls.object_to_change(descriptor, path, flags, hooks_too=False)
        fchownat(found, b"", signed(uid), signed(gid), AT_EMPTY_PATH)
        return 0
