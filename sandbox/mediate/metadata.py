"""Times and extended attributes, for calls that may write less than their session.

No Landlock right covers them, and a mount is writable where the session is: so, as modes and owners are, they are
performed here or refused, never left to the kernel. An ordinary session's filter does not send them
(``compile.syscalls``), and pays nothing.
"""

from __future__ import annotations

import posix
from errno import E2BIG, EFAULT, EINVAL, ENAMETOOLONG, EPERM, ERANGE

from remit.sandbox.kernel import memory
from remit.sandbox.kernel.call import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, NR, call, failure
from remit.sandbox.mediate.calls import Handlers, positive
from remit.sandbox.mediate.resolve import signed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

_NAMES = (
    "utime",
    "utimes",
    "futimesat",
    "utimensat",
    "setxattr",
    "lsetxattr",
    "fsetxattr",
    "removexattr",
    "lremovexattr",
    "fremovexattr",
)
_OMIT = (0x3FFFFFFE).to_bytes(8, "little")
"""``UTIME_OMIT`` (``utimensat(2)``)."""
_LONGEST_NAME, _LARGEST_VALUE, _PAGE = 255, 1 << 16, 4096
"""``XATTR_NAME_MAX``, ``XATTR_SIZE_MAX`` (``linux/limits.h``)."""
_XATTR_FLAGS = 3
_S_IFMT, _S_IFLNK = 0o170000, 0o120000


class Metadata(Handlers):
    """Performed on a descriptor of the object, or refused."""

    names: ClassVar[tuple[str, ...]] = _NAMES

    # --- times

    def utime(self, path: int, times: int, *_: int) -> int:
        """``utime(2)``: two seconds."""
        given = self._read(times, 16)
        return self._times(AT_FDCWD, path, given and given[:8] + bytes(8) + given[8:] + bytes(8), 0)

    def utimes(self, path: int, times: int, *_: int) -> int:
        """``utimes(2)``."""
        return self._times(AT_FDCWD, path, _nanoseconds(self._read(times, 32)), 0)

    def futimesat(self, descriptor: int, path: int, times: int, *_: int) -> int:
        """``futimesat(2)``."""
        return self._times(descriptor, path, _nanoseconds(self._read(times, 32)), 0)

    def utimensat(self, descriptor: int, path: int, times: int, flags: int, *_: int) -> int:
        """``utimensat(2)``."""
        flags &= 0xFFFFFFFF
        given = self._read(times, 32)
        if given[8:16] == given[24:] == _OMIT:
            return 0
        if flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
            raise failure(EINVAL, "utimensat")
        return self._times(descriptor, path, given, flags)

    def _times(self, descriptor: int, path: int, times: bytes, flags: int) -> int:
        """Without a path, of the descriptor itself; without times, now."""
        calls = self._calls
        if path:
            found = calls.object_to_change(descriptor, memory.read_string(calls.view.pid, path), flags)
        elif signed(descriptor) == AT_FDCWD:
            raise failure(EFAULT, "path")
        elif flags:
            raise failure(EINVAL, "utimensat")
        else:
            found = calls.object_to_change(positive(descriptor), b"", AT_EMPTY_PATH)
        return call(NR["utimensat"], found, b"", times or None, AT_EMPTY_PATH)

    # --- extended attributes

    def setxattr(self, path: int, name: int, value: int, size: int, flags: int, *_: int) -> int:
        """``setxattr(2)``."""
        return self._set(AT_FDCWD, path, 0, name, value, size, flags)

    def lsetxattr(self, path: int, name: int, value: int, size: int, flags: int, *_: int) -> int:
        """``lsetxattr(2)``."""
        return self._set(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, name, value, size, flags)

    def fsetxattr(self, descriptor: int, name: int, value: int, size: int, flags: int, *_: int) -> int:
        """``fsetxattr(2)``."""
        return self._set(positive(descriptor), 0, AT_EMPTY_PATH, name, value, size, flags)

    def removexattr(self, path: int, name: int, *_: int) -> int:
        """``removexattr(2)``."""
        return self._remove(AT_FDCWD, path, 0, name)

    def lremovexattr(self, path: int, name: int, *_: int) -> int:
        """``lremovexattr(2)``."""
        return self._remove(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, name)

    def fremovexattr(self, descriptor: int, name: int, *_: int) -> int:
        """``fremovexattr(2)``."""
        return self._remove(positive(descriptor), 0, AT_EMPTY_PATH, name)

    def _set(self, descriptor: int, path: int, how: int, name: int, value: int, size: int, flags: int) -> int:
        if flags & 0xFFFFFFFF & ~_XATTR_FLAGS:
            raise failure(EINVAL, "setxattr")
        text = self._name(name)
        if size > _LARGEST_VALUE:
            raise failure(E2BIG, "setxattr")
        content = self._read(value, size)
        posix.setxattr(self._object(descriptor, path, how), text, content, flags & _XATTR_FLAGS)
        return 0

    def _remove(self, descriptor: int, path: int, how: int, name: int) -> int:
        text = self._name(name)
        posix.removexattr(self._object(descriptor, path, how), text)
        return 0

    def _object(self, descriptor: int, path: int, how: int) -> bytes:
        """A path of this process's to it: the ``f`` calls take no O_PATH descriptor."""
        calls = self._calls
        text = memory.read_string(calls.view.pid, path) if not how & AT_EMPTY_PATH else b""
        found = calls.object_to_change(descriptor, text, how)
        if posix.fstat(found).st_mode & _S_IFMT == _S_IFLNK:
            # /proc/self/fd would follow it; and no attribute of a link is an ordinary user's to set.
            raise failure(EPERM, "setxattr")
        return b"/proc/self/fd/%d" % found

    def _name(self, where: int) -> bytes:
        try:
            text = memory.read_string(self._calls.view.pid, where, _LONGEST_NAME + 1)
        except OSError as error:
            if error.errno != ENAMETOOLONG:
                raise
            text = b""
        if not text:
            raise failure(ERANGE, "attribute")
        return text

    def _read(self, where: int, size: int) -> bytes:
        """Memory of the caller's; nothing for a null pointer."""
        content = b""
        while where and len(content) < size:
            content += memory.read(self._calls.view.pid, where + len(content), min(_PAGE, size - len(content)))
        return content


def _nanoseconds(times: bytes) -> bytes:
    """Two ``struct timeval`` as two ``struct timespec``."""
    changed = b""
    for at in range(0, len(times), 16):
        microseconds = int.from_bytes(times[at + 8 : at + 16], "little", signed=True)
        if not 0 <= microseconds < 1_000_000:
            raise failure(EINVAL, "utimes")
        changed += times[at : at + 8] + (microseconds * 1000).to_bytes(8, "little")
    return changed
