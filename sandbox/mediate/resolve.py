"""Names as the caller means them: (descriptor, path) to a parent directory, a last name and a canonical path.

The mediator shares the caller's mount namespace and root directory, so the kernel resolves for it, but for what means
something else to each process: the working directory, descriptors, and the links below ``/proc/self``. Those are
resolved through ``/proc/TID``, component by component where a path runs into one. A call with places of its own (``/tmp`` and
others) is in a copy of the mounts, and there its names are looked up in its own (``View.private``).
"""

from __future__ import annotations

import posix
from errno import EACCES, EBADF, ELOOP, ENOENT, ENOTDIR, EROFS

from remit.sandbox.kernel import files
from remit.sandbox.kernel.call import AT_FDCWD, failure
from remit.sandbox.kernel.files import (
    O_PATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)
from remit.sandbox.mediate.rules import join, under

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_LINKS_AT_MOST = 40
_DIRECTORY = O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC
_ENTRY = O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC
_S_IFMT, _S_IFLNK = 0o170000, 0o120000
_DELETED = b" (deleted)"
_WHOLE_STATUS = 1 << 20
"""A user may be in 65,536 groups, which come first."""


def signed(value: int) -> int:
    """An ``int`` argument from its register."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


class Foreign(Exception):
    """The path leads through another process's ``/proc`` entry: the kernel decides, in the command's own domain."""


class View:
    """The names of the caller of one notification. ``begin`` and ``end`` bracket it; ``end`` closes what was opened."""

    __slots__ = ("_own_entries", "_proc_device", "_where", "copies", "owned", "pid", "private")

    def __init__(self) -> None:
        self.pid = 0
        self._where = b""
        self.copies = False
        """The caller's mounts are copies of this process's (``mount_namespaces(7)``): the same trees, yet to the kernel a
        link or a rename from one to the other is EXDEV. So all that is resolved is put into this process's."""
        self.private: tuple[bytes, ...] = ()
        """Where the caller's mounts hold something else than this process's: its own scratch. What this process has there is
        another call's, whose links must lead nobody anywhere, and whose files are not the caller's to change."""
        self.owned: list[int] = []
        self._proc_device = posix.stat(b"/proc").st_dev
        self._own_entries = b"/proc/%d" % posix.getpid()

    def begin(self, pid: int) -> None:
        """``pid`` is the calling thread's, in the mediator's PID namespace."""
        self.pid = pid
        self._where = b""

    def end(self) -> None:
        """Close every descriptor of this notification."""
        owned = self.owned
        while owned:
            posix.close(owned.pop())

    def own(self, descriptor: int) -> int:
        """``end`` closes ``descriptor``."""
        self.owned.append(descriptor)
        return descriptor

    def base(self, descriptor: int) -> int:
        """An O_PATH copy of the caller's descriptor or working directory. Raises EBADF."""
        number = signed(descriptor)
        if number == AT_FDCWD:
            return self._here(self.own(posix.open(b"/proc/%d/cwd" % self.pid, O_PATH | posix.O_CLOEXEC)))
        if number < 0:
            raise failure(EBADF, "descriptor")
        try:
            return self._here(self.own(posix.open(b"/proc/%d/fd/%d" % (self.pid, number), O_PATH | posix.O_CLOEXEC)))
        except FileNotFoundError:
            raise failure(EBADF, "descriptor") from None

    def _here(self, descriptor: int) -> int:
        """The same object through this process's mounts; as it came where it is not in them (a private place, a pipe)."""
        if not self.copies:
            return descriptor
        try:
            found = self.own(openat2(AT_FDCWD, self.canonical(descriptor), _ENTRY, 0, RESOLVE_NO_SYMLINKS))
        except OSError:
            return descriptor
        return found if _same(found, descriptor) else descriptor

    def _placed(self, descriptor: int) -> int:
        """The object of that name through the caller's mounts in a private place, and else through this process's. Raises
        OSError where there is none."""
        path = self.canonical(descriptor)
        return self._there(path, _ENTRY) if self._is_private(path) else self._here(descriptor)

    def _is_private(self, path: bytes) -> bool:
        return any([under(path, place) for place in self.private])

    def _there(self, path: bytes, flags: int) -> int:
        """What an absolute path without links is called through the caller's own mounts. Raises OSError."""
        root = self.own(posix.open(b"/proc/%d/root" % self.pid, _DIRECTORY))
        below = path.lstrip(b"/") or b"."
        return self.own(openat2(root, below, flags, 0, RESOLVE_NO_SYMLINKS | RESOLVE_IN_ROOT))

    def directory_there(self, descriptor: int) -> int:
        """The directory opened for reading, through the caller's own mounts: it may walk on from there. Raises EACCES."""
        found = self._there(self.canonical(descriptor), posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
        if not _same(found, descriptor):
            raise failure(EACCES, "path")
        return found

    def as_mounted(self, descriptor: int, path: bytes) -> int:
        """The object of a canonical path on the caller's own mounts, for changing it as they allow.

        Raises EROFS: it is on none of them. What came from outside as a standard stream is the host's: a descriptor lets its
        holder change mode, times and attributes, whatever it was opened for, and no Landlock rule is about those.
        """
        if path[:1] != b"/" or not posix.fstat(descriptor).st_nlink:
            return descriptor  # a pipe, or what no name leads to any more
        try:
            found = self._there(path, _ENTRY)
            if _same(found, descriptor):
                return found
        except OSError:
            pass  # its name is gone while another one is left, or lies where this process may not search
        mount = b"%d " % _field(files.read(f"/proc/self/fdinfo/{descriptor}"), b"mnt_id:")
        if not any([line.startswith(mount) for line in files.read(f"/proc/{self.pid}/mountinfo").splitlines()]):
            raise failure(EROFS, "path")
        return descriptor

    def canonical(self, descriptor: int) -> bytes:
        """The path of what ``descriptor`` refers to, without links."""
        return posix.readlink(b"/proc/self/fd/%d" % descriptor)

    def lexical(self, descriptor: int, path: bytes) -> bytes | None:
        """The path that the caller means if no component is a link; None where only a walk can tell.

        Good only together with RESOLVE_NO_SYMLINKS, which makes the kernel say so when it is wrong.
        """
        if b".." in path or not path or path[-1] == 47 or path.endswith(b"/.") or path == b".":
            return None
        if path[0] != 47:
            number = signed(descriptor)
            try:
                if number != AT_FDCWD:
                    base = posix.readlink(b"/proc/%d/fd/%d" % (self.pid, number))
                else:
                    # Once for both names of a rename.
                    base = self._where = self._where or posix.readlink(b"/proc/%d/cwd" % self.pid)
            except OSError:
                return None
            if base.endswith(_DELETED) or base[:1] != b"/":
                return None
            path = join(base, path)
        if b"//" in path or b"/./" in path:
            path = b"/" + b"/".join([part for part in path.split(b"/") if part not in (b"", b".")])
        return path

    def spelled(self, descriptor: int, path: bytes) -> bytes | None:
        """What the words say where no file can tell: for the record, never for a decision. None without a base."""
        if path[:1] != b"/":
            number = signed(descriptor)
            try:
                name = b"/proc/%d/cwd" % self.pid if number == AT_FDCWD else b"/proc/%d/fd/%d" % (self.pid, number)
                path = posix.readlink(name) + b"/" + path
            except OSError:
                return None
        parts: list[bytes] = []
        for part in path.split(b"/"):
            if part == b"..":
                del parts[-1:]
            elif part not in (b"", b"."):
                parts.append(part)
        return b"/" + b"/".join(parts)

    def plain(self, path: bytes) -> bool:
        """No component of the absolute ``path`` is a link, as far as it exists."""
        return self.missing(path) != ELOOP

    def missing(self, path: bytes) -> int:
        """0 where the absolute ``path`` leads to something without crossing a link, else the errno: ELOOP for a link."""
        flags = _ENTRY & ~posix.O_NOFOLLOW
        try:
            if self._is_private(path):
                self._there(path, flags)
            else:
                posix.close(openat2(AT_FDCWD, path, flags, 0, RESOLVE_NO_SYMLINKS))
        except OSError as error:
            return error.errno or ENOENT
        return 0

    def parent(self, descriptor: int, path: bytes) -> tuple[int, bytes, bytes, bool]:
        """(parent descriptor, last name, canonical parent, trailing slash). Raises OSError as the kernel would, Foreign."""
        if not path:
            raise failure(ENOENT, "path")
        return self._parent(-1 if path[0] == 47 else self.base(descriptor), path)

    def _parent(self, base: int, path: bytes) -> tuple[int, bytes, bytes, bool]:
        stripped = path.rstrip(b"/")
        head, slash, last = stripped.rpartition(b"/")
        directory = self._directory(base, head + slash)
        place = self.canonical(directory)
        if place.startswith(self._own_entries):
            # The kernel took /proc/self for the mediator's.
            directory = self._walk(base, head + slash)
            place = self.canonical(directory)
        return directory, last, place, len(stripped) < len(path)

    def _directory(self, base: int, path: bytes) -> int:
        if not path:
            return self.own(openat2(base, b".", _DIRECTORY, 0, 0)) if base >= 0 else self._root()
        # An absolute link is not the kernel's to follow where its root means something else to the caller.
        resolve = RESOLVE_NO_SYMLINKS if self.private else RESOLVE_NO_MAGICLINKS
        try:
            found = self.own(openat2(base if base >= 0 else AT_FDCWD, path, _DIRECTORY, 0, resolve))
            return self._placed(found) if self.private else found
        except OSError as error:
            if error.errno not in (ELOOP, ENOENT, ENOTDIR):
                raise
            # ENOENT too: below /proc/self the mediator's own entries need not be the caller's.
            return self._walk(base, path)

    def _root(self) -> int:
        return self.own(posix.open(b"/", _DIRECTORY))

    def _walk(self, base: int, path: bytes) -> int:
        current = self._root() if path[:1] == b"/" else base
        todo = path.split(b"/")
        todo.reverse()
        links = 0
        while todo:
            name = todo.pop()
            if not name or name == b".":
                continue
            entry = self.own(openat2(current, name, _ENTRY, 0, RESOLVE_NO_MAGICLINKS))
            status = posix.fstat(entry)
            if status.st_mode & _S_IFMT != _S_IFLNK:
                current = self._placed(entry) if self.private else entry
                continue
            links += 1
            if links > _LINKS_AT_MOST:
                raise failure(ELOOP, "path")
            magic, target = self.link(current, name, entry, status.st_dev)
            if magic >= 0:
                current = magic
                continue
            if not target:
                raise failure(ENOENT, "path")
            if target[0] == 47:
                current = self._root()
            parts = target.split(b"/")
            parts.reverse()
            todo += parts
        # The last component must be a directory that may be searched.
        return self.own(openat2(current, b".", _DIRECTORY, 0, 0))

    def link(self, directory: int, name: bytes, entry: int, device: int) -> tuple[int, bytes]:
        """What a link leads to: (descriptor of a magic link's object, b"") or (-1, target). Raises Foreign."""
        if device != self._proc_device:
            return -1, posix.readlink(b"", dir_fd=entry)
        place = self.canonical(directory)
        if place == b"/proc" and name in (b"self", b"thread-self"):
            group = self.group()
            return -1, b"%d" % group if name == b"self" else b"%d/task/%d" % (group, self.pid)
        parts = place.split(b"/")
        if len(parts) < 3 or parts[1] != b"proc":
            return -1, posix.readlink(b"", dir_fd=entry)
        owner = self.group()
        if parts[2] not in (b"%d" % owner, b"%d" % self.pid):
            raise Foreign
        return self._here(self.own(posix.open(name, O_PATH | posix.O_CLOEXEC, dir_fd=directory))), b""

    def group(self) -> int:
        """The caller's process (thread group) id."""
        return _field(status_of(self.pid), b"\nTgid:")

    def target(self, directory: int, name: bytes) -> tuple[int, bytes, int, int]:
        """The last component of a path: (entry descriptor, link target, descriptor of a magic link's object, mode).

        The target is empty for what is no link, the magic descriptor -1 for what is no magic link.
        """
        entry = self.own(openat2(directory, name, _ENTRY, 0, RESOLVE_NO_MAGICLINKS))
        status = posix.fstat(entry)
        if status.st_mode & _S_IFMT != _S_IFLNK:
            return self._placed(entry) if self.private else entry, b"", -1, status.st_mode
        magic, target = self.link(directory, name, entry, status.st_dev)
        return entry, target, magic, status.st_mode

    def follow(self, directory: int, target: bytes) -> tuple[int, bytes, bytes, bool]:
        """As ``parent``, for a link's target met in ``directory``."""
        return self._parent(-1 if target[:1] == b"/" else directory, target)

    def object(self, descriptor: int, path: bytes, *, follow: bool, empty: bool = False) -> tuple[int, bytes]:
        """An O_PATH descriptor of what the caller names, with its canonical path. Raises OSError, Foreign."""
        if empty and not path:
            found = self.base(descriptor)
            return found, self.canonical(found)
        directory, name, _, slash = self.parent(descriptor, path)
        for _ in range(_LINKS_AT_MOST + 1):
            if name in (b"", b".", b".."):
                found = self.own(openat2(directory, name or b".", _DIRECTORY, 0, 0))
                found = self._placed(found) if self.private else found
                return found, self.canonical(found)
            found, target, magic, mode = self.target(directory, name)
            if mode & _S_IFMT == _S_IFLNK and (follow or slash):
                if magic >= 0:
                    found, mode = magic, posix.fstat(magic).st_mode
                else:
                    directory, name, _, more = self.follow(directory, target)
                    slash = slash or more
                    continue
            if slash and mode & _S_IFMT != 0o040000:
                raise failure(ENOTDIR, "path")
            return found, self.canonical(found)
        raise failure(ELOOP, "path")


def _same(one: int, other: int) -> bool:
    first, second = posix.fstat(one), posix.fstat(other)
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def status_of(pid: int, size: int = 2048) -> bytes:
    """The beginning of ``/proc/PID/status``: name, umask, state, thread group."""
    descriptor = posix.open(b"/proc/%d/status" % pid, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(descriptor, size)
    finally:
        posix.close(descriptor)


def own_numbers(pid: int) -> tuple[int, int]:
    """Those of a thread's process and of the thread, as it has them itself, in its own PID namespace."""
    status = status_of(pid, _WHOLE_STATUS)
    return _last(status, b"\nNStgid:"), _last(status, b"\nNSpid:")


def _last(status: bytes, name: bytes) -> int:
    """The innermost of the namespaces' numbers comes last."""
    at = status.index(name) + len(name)
    return int(status[at : status.index(b"\n", at)].split()[-1])


def _field(status: bytes, name: bytes, base: int = 10) -> int:
    at = status.index(name) + len(name)
    return int(status[at : status.index(b"\n", at)], base)


def _umask(status: bytes) -> int:
    return _field(status, b"\nUmask:", 8)


class Umasks:
    """The umask of the caller's process, and of this one, which makes what the callers make: one object for the process.

    A command is started with this process's own, and as long as nobody under its filter has called umask(2), everybody there
    has it. From then on it is read from /proc once for each, and followed by its own umask(2) calls.

    The umask belongs to a process (``fs_struct``), not to a thread, and umask(2) takes effect only after the mediator
    answered. So threads share one record by thread group, and what a notified umask(2) said is not overwritten by a
    late look into /proc. Records live for a second: far less than it takes for a pid to come round again, and a bound
    on what the rare processes that share an ``fs_struct`` without being threads can see.
    """

    __slots__ = ("_by_group", "_by_thread", "_clock", "_current", "_since", "_started", "changes")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._by_thread: dict[int, list[int]] = {}
        self._by_group: dict[int, list[int]] = {}
        self._clock = clock
        self._since = 0.0
        self._started = self._current = -1
        self.changes = 0
        """Counts what makes ``holds`` say something else."""

    def expire(self) -> None:
        """Forget, where it is time."""
        now = self._clock()
        if now - self._since > 1.0:
            self._by_thread.clear()
            self._by_group.clear()
            self._since = now
            self.changes += 1

    def _record(self, pid: int) -> list[int]:
        self.expire()
        record = self._by_thread.get(pid)
        if record is None:
            status = status_of(pid)
            group = _field(status, b"\nTgid:")
            record = self._by_group.get(group)
            if record is None:
                record = self._by_group[group] = [_umask(status)]
            self._by_thread[pid] = record
        return record

    def changed(self, pid: int, value: int) -> None:
        """``pid`` calls umask(2)."""
        record = self._record(pid)
        record[0] = value & 0o777
        self.changes += 1
        kept = [(group, its) for group, its in self._by_group.items() if its is record]
        self._by_thread.clear()
        self._by_group.clear()
        self._by_group.update(kept)

    @property
    def as_started(self) -> bool:
        """This process's umask is the one that commands are started with."""
        return self._started == self._current >= 0

    def holds(self, pid: int) -> bool:
        """This process's umask is the caller's, as far as is remembered."""
        record = self._by_thread.get(pid)
        return record is not None and record[0] == self._current

    def assume(self, pid: int, *, as_started: bool) -> None:
        """Make the caller's umask this process's own. ``as_started``: it is the one that its command was started with."""
        if self._started < 0:
            # Nothing but this changes it: many a command never makes a file.
            self._started = self._current = _umask(status_of(posix.getpid()))
        value = self._started if as_started else self._record(pid)[0]
        if value != self._current:
            posix.umask(value)
            self._current = value
            self.changes += 1
