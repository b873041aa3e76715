"""Making directories, nodes and links."""

from __future__ import annotations

import posix
from errno import EACCES, EEXIST, EINVAL, EPERM

from remit.sandbox.kernel import memory
from remit.sandbox.kernel.call import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_FOLLOW, failure
from remit.sandbox.kernel.files import linkat, mknodat
from remit.sandbox.mediate.calls import PROCEED, SPECIAL_MODES, Handlers
from remit.sandbox.mediate.rules import WRITE, join

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

_S_IFMT, _S_IFLNK = 0o170000, 0o120000


class Making(Handlers):
    """A new name is decided on as what it would be, before it is there."""

    names: ClassVar[tuple[str, ...]] = (
        "mkdir",
        "mkdirat",
        "mknod",
        "mknodat",
        "symlink",
        "symlinkat",
        "link",
        "linkat",
    )

    def mkdir(self, path: int, mode: int, *_: int) -> int:
        """``mkdir(2)``."""
        return self.mkdirat(AT_FDCWD, path, mode)

    def mkdirat(self, descriptor: int, path: int, mode: int, *_: int) -> int:
        """``mkdirat(2)``. What is there already is not made, whatever the rules say of it: the answer is the kernel's, and
        asking is no more than looking. A third of a package manager's calls ask for directories that it has."""
        found = self._calls.target(descriptor, path, WRITE)
        if found is None:
            return PROCEED
        directory, name, place, full, slash = found
        try:
            posix.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            pass  # not there, or mkdir(2) says why not
        else:
            if self._calls.watches_reads:
                self._calls.touched.append((full, WRITE))
            self._calls.performing = True
            raise failure(EEXIST, "mkdir")
        self._calls.creation(directory, place, name)
        self._calls.assume_umask()
        self._calls.performing = True
        posix.mkdir(name + b"/" if slash else name, mode & 0o7777, dir_fd=directory)
        return 0

    def mknod(self, path: int, mode: int, device: int, *_: int) -> int:
        """``mknod(2)``."""
        return self.mknodat(AT_FDCWD, path, mode, device)

    def mknodat(self, descriptor: int, path: int, mode: int, device: int, *_: int) -> int:
        """``mknodat(2)``."""
        found = self._calls.target(descriptor, path, WRITE)
        if found is None:
            return PROCEED
        directory, name, place, full, slash = found
        if mode & SPECIAL_MODES:
            raise self._calls.denied("setuid", full, "setuid and setgid modes are refused", EPERM)
        self._calls.creation(directory, place, name)
        self._calls.assume_umask()
        self._calls.performing = True
        mknodat(directory, name + b"/" if slash else name, mode & 0xFFFFFFFF, device)
        return 0

    def symlink(self, target: int, path: int, *_: int) -> int:
        """``symlink(2)``."""
        return self.symlinkat(target, AT_FDCWD, path)

    def symlinkat(self, target: int, descriptor: int, path: int, *_: int) -> int:
        """``symlinkat(2)``. A link may not stand where a rule names a directory: it would redirect the rule."""
        text = memory.read_string(self._view.pid, target)
        found = self._calls.target(descriptor, path, WRITE)
        if found is None:
            return PROCEED
        directory, name, place, full, slash = found
        self._calls.refuse(full, WRITE)
        self._refuse_redirecting(directory, place, name, text)
        self._calls.performing = True
        posix.symlink(text, name + b"/" if slash else name, dir_fd=directory)
        return 0

    def _refuse_redirecting(self, directory: int, place: bytes, name: bytes, target: bytes) -> None:
        full = join(place, name)
        rule = self._rules.component(full)
        if not rule and name in self._rules.special:
            rule = self._repository.link(directory, place, name, target)
        if rule:
            raise self._calls.denied(WRITE, full, rule, EACCES)

    def link(self, old: int, new: int, *_: int) -> int:
        """``link(2)``."""
        return self.linkat(AT_FDCWD, old, AT_FDCWD, new, 0)

    def linkat(self, from_: int, old: int, to: int, new: int, flags: int, *_: int) -> int:
        """``linkat(2)``: a second name for a protected file would be a way to write it, so both names are decided on; a second
        name for a symbolic link is a symbolic link, and decided on as one."""
        flags &= 0xFFFFFFFF
        if flags & ~(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH):
            raise failure(EINVAL, "linkat")
        source_path = memory.read_string(self._view.pid, old)
        unnamed = bool(flags & AT_EMPTY_PATH and not source_path)
        # The kernel lets a process name its own unnamed file, but a descriptor from here is not its own.
        self._calls.performing = unnamed
        found = self._calls.target(to, new, WRITE)
        if found is None:
            return PROCEED
        directory, name, place, _full, slash = found
        source, origin = self._calls.object_fast(from_, source_path) or self._view.object(
            from_, source_path, follow=bool(flags & AT_SYMLINK_FOLLOW), empty=bool(flags & AT_EMPTY_PATH)
        )
        self._calls.named(origin)
        self._calls.refuse_beyond(origin, WRITE)
        self._calls.check(origin, WRITE)
        self._calls.creation(directory, place, name)
        target = name + b"/" if slash else name
        is_link = posix.fstat(source).st_mode & _S_IFMT == _S_IFLNK
        if is_link:
            self._refuse_redirecting(directory, place, name, posix.readlink(b"", dir_fd=source))
        self._calls.performing = True
        if is_link and not unnamed:
            # /proc/self/fd would follow it. Its name cannot change between here and there: see above.
            above, last = origin[: origin.rindex(b"/")], origin[origin.rindex(b"/") + 1 :]
            linkat(self._calls.parent_of(above), last, directory, target, 0)
        else:
            linkat(AT_FDCWD, b"/proc/self/fd/%d" % source, directory, target, AT_SYMLINK_FOLLOW)
        return 0
