"""Opening for writing, and truncating; opening for reading where that is decided on, or watched."""

from __future__ import annotations

import _thread
import posix
from errno import E2BIG, EAGAIN, EEXIST, EFBIG, EINVAL, EISDIR, ELOOP, EMFILE, ENXIO, EPERM
from fcntl import F_SETFL, fcntl

from remit.sandbox.kernel import memory
from remit.sandbox.kernel.call import AT_FDCWD, NR, Buffer, call, failure
from remit.sandbox.kernel.files import (
    O_PATH,
    RESOLVE_CACHED,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)
from remit.sandbox.mediate import waiting
from remit.sandbox.mediate.calls import ANSWERED, DOTS, PROCEED, SPECIAL_MODES, STRICT, Handlers
from remit.sandbox.mediate.resolve import Foreign
from remit.sandbox.mediate.rules import READ, WRITE, join

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

O_CREAT, O_EXCL, O_TRUNC, O_NONBLOCK = posix.O_CREAT, posix.O_EXCL, posix.O_TRUNC, posix.O_NONBLOCK
O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW, O_ACCMODE = posix.O_CLOEXEC, posix.O_DIRECTORY, posix.O_NOFOLLOW, 3
O_TMPFILE_BIT = 0o20000000
_OPEN_FLAGS = (
    O_ACCMODE
    | O_CREAT
    | O_EXCL
    | posix.O_NOCTTY
    | O_TRUNC
    | posix.O_APPEND
    | O_NONBLOCK
    | posix.O_SYNC
    | posix.O_DSYNC
    | 0o20000  # FASYNC
    | posix.O_DIRECT
    | 0o100000  # O_LARGEFILE
    | O_DIRECTORY
    | O_NOFOLLOW
    | posix.O_NOATIME
    | O_CLOEXEC
    | O_PATH
    | O_TMPFILE_BIT
)
"""``VALID_OPEN_FLAGS`` of the kernel: open(2) ignores others, openat2(2) refuses them."""
_WRITES = O_ACCMODE | O_CREAT | O_TRUNC | O_TMPFILE_BIT
_LINKS_AT_MOST = 40
_S_IFMT, _S_IFDIR, _S_IFIFO, _S_IFREG = 0o170000, 0o040000, 0o010000, 0o100000
_WAITING = {ENXIO: _S_IFIFO, EAGAIN: _S_IFREG}
"""What an open with O_NONBLOCK says where one without would wait, and of what."""
_HOW_SIZE, _PAGE = 24, 4096
_SIGXFSZ, _RLIMIT_FSIZE = 25, 1
DEVICES = frozenset([b"/dev/null", b"/dev/zero", b"/dev/full", b"/dev/tty", b"/dev/random", b"/dev/urandom"])
"""What anybody may open, by the kernel alone: nobody is told."""


class Opening(Handlers):
    """What opens is handed to the caller as a descriptor (ADDFD)."""

    names: ClassVar[tuple[str, ...]] = (
        "open",
        "creat",
        "openat",
        "openat2",
        "truncate",
    )

    def open(self, path: int, flags: int, mode: int, *_: int) -> int:
        """``open(2)``."""
        return self._open(AT_FDCWD, path, flags & _OPEN_FLAGS, _mode(flags, mode), 0)

    def creat(self, path: int, mode: int, *_: int) -> int:
        """``creat(2)``."""
        return self._open(AT_FDCWD, path, O_CREAT | O_TRUNC | posix.O_WRONLY, mode & 0o7777, 0)

    def openat(self, descriptor: int, path: int, flags: int, mode: int, *_: int) -> int:
        """``openat(2)``."""
        return self._open(descriptor, path, flags & _OPEN_FLAGS, _mode(flags, mode), 0)

    def openat2(self, descriptor: int, path: int, how: int, size: int, *_: int) -> int:
        """``openat2(2)``: flags and mode lie in memory, read once, and what was read is what is performed."""
        if size < _HOW_SIZE:
            raise failure(EINVAL, "openat2")
        if size > _PAGE:
            raise failure(E2BIG, "openat2")
        content = memory.read(self._view.pid, how, size)
        if content[_HOW_SIZE:].strip(b"\0"):
            raise failure(E2BIG, "openat2")
        flags, mode, resolve = (int.from_bytes(content[at : at + 8], "little") for at in (0, 8, 16))
        return self._open(descriptor, path, flags, mode, resolve)

    def _open(self, descriptor: int, where: int, flags: int, mode: int, resolve: int) -> int:
        writes = flags & _WRITES
        if flags & O_PATH:
            return PROCEED
        if not (writes or self._calls.reads):
            return self._read(descriptor, where) if self._calls.watches_reads else PROCEED
        if flags & (O_CREAT | O_TMPFILE_BIT) and mode & SPECIAL_MODES:
            raise self._calls.denied("setuid", b"", "setuid and setgid modes are refused", EPERM)
        path = memory.read_string(self._view.pid, where)
        if flags & O_TMPFILE_BIT:
            return self._open_unnamed(descriptor, path, flags, mode, resolve)
        if resolve:
            return self._open_constrained(descriptor, path, flags, mode, resolve)
        full = self._view.lexical(descriptor, path)
        if full is not None:
            if full in DEVICES:
                return PROCEED
            answer = self._open_fast(full, flags, mode)
            if answer is not None:
                return answer
        return self._open_slowly(descriptor, path, flags, mode)

    def _open_fast(self, full: bytes, flags: int, mode: int) -> int | None:
        """Open a path that holds no link (else None). The kernel vouches for it, so the spelling is canonical."""
        for _, start, descriptor in self._calls.roots:
            if full.startswith(start):
                below, anchor = start, descriptor
                break
        else:
            if self._calls.mediates(full, flags & _WRITES) or not self._view.plain(full):
                return None
            if flags & _WRITES or self._calls.watches_reads:
                self._calls.outside(full, WRITE if flags & _WRITES else READ)
            return PROCEED
        if not flags & _WRITES and not self._calls.mediates(full, 0):
            if not self._calls.watches_reads:
                return PROCEED
            if not self._view.plain(full):
                return None
            self._calls.outside(full, READ)
            return PROCEED
        if self._rules.decide(full, WRITE if flags & _WRITES else READ):
            return None
        if full.rpartition(b"/")[2] in self._rules.special:
            return None
        self._calls.touched.append((full, WRITE if flags & _WRITES else READ))
        try:
            return self._perform_open(anchor, full[len(below) :], flags, mode, STRICT)
        except OSError as error:
            if error.errno == EMFILE or (error.errno == EEXIST and flags & O_EXCL):
                raise
            self._calls.performing = False
            self._calls.touched.clear()
            return None

    def _read(self, descriptor: int, where: int) -> int:
        """Only watched: the kernel opens, and reads its own copy of the name. ``_look`` says afterwards what it was."""
        path = memory.read_string(self._view.pid, where)
        self._calls.later = self._look, (descriptor, path, self._view.lexical(descriptor, path))
        return PROCEED

    def _look(self, descriptor: int, path: bytes, full: bytes | None) -> None:
        """Tell of the open that was let go on. Its name may mean something else by now, which changes what is recorded and
        nothing that is decided."""
        errno = self._view.missing(full) if full is not None else ELOOP
        if errno == ELOOP:
            try:
                _, full = self._view.object(descriptor, path, follow=True)
                errno = 0
            except OSError as error:
                full, errno = self._view.spelled(descriptor, path), error.errno or 0
            except Foreign:
                return
        if full is not None and not full.startswith(b"/proc/"):
            self._calls.outside(full, READ, errno)

    def _perform_open(self, directory: int, name: bytes, flags: int, mode: int, resolve: int) -> int:
        """Open and hand over. Never blocks: what exists is opened O_NONBLOCK, which a FIFO or a lease needs."""
        self._calls.performing = True
        if flags & O_CREAT:
            self._calls.assume_umask()
            try:
                made = self._view.own(openat2(directory, name, flags | O_EXCL | O_CLOEXEC, mode, resolve))
            except OSError as error:
                # Whatever is not "no such file yet" is found out by the caller's own flags.
                if error.errno == EEXIST and flags & O_EXCL:
                    raise
            else:
                try:
                    return self._give(made, flags)
                except OSError:
                    posix.unlink(name, dir_fd=directory)
                    raise
        try:
            found = openat2(directory, name, flags | O_NONBLOCK | O_CLOEXEC, mode, resolve)
        except OSError as error:
            if error.errno in _WAITING and self._waits(directory, name, flags, resolve, _WAITING[error.errno]):
                return ANSWERED
            raise
        self._view.own(found)
        if not flags & O_NONBLOCK:
            if not flags & O_ACCMODE and posix.fstat(found).st_mode & _S_IFMT == _S_IFIFO:
                self._in_background(found, flags)
                return ANSWERED
            fcntl(found, F_SETFL, flags & ~O_NONBLOCK)
        return self._give(found, flags)

    def _give(self, descriptor: int, flags: int) -> int:
        if self._view.copies and not flags & O_ACCMODE and posix.fstat(descriptor).st_mode & _S_IFMT == _S_IFDIR:
            # From a directory of this process's mounts, "../../proc" would lead to the session's.
            descriptor = self._view.directory_there(descriptor)
        self._calls.answering(self._view.pid)
        self._calls.source.listener.give(
            self._calls.id, descriptor, cloexec=bool(flags & O_CLOEXEC), pid=self._view.pid
        )
        return ANSWERED

    def _waits(self, directory: int, name: bytes, flags: int, resolve: int, kind: int) -> bool:
        """A FIFO without a reader, or a file with a lease: the caller waits, the mediator does not. False: it is not of that
        kind (ENXIO is said of a socket too), or the caller does not want to wait."""
        if flags & O_NONBLOCK:
            return False
        entry = self._view.own(openat2(directory, name, O_PATH | O_CLOEXEC, 0, resolve))
        if posix.fstat(entry).st_mode & _S_IFMT != kind:
            return False
        self._in_background(entry, flags)
        return True

    def _in_background(self, entry: int, flags: int, length: int = -1) -> None:
        arguments = self._calls.source.listener, self._calls.id, self._view.pid, posix.dup(entry), flags, length
        _thread.start_new_thread(waiting.wait, arguments)

    def _open_slowly(self, descriptor: int, path: bytes, flags: int, mode: int) -> int:
        writes = flags & _WRITES
        right = WRITE if writes else READ
        directory, name, place, slash = self._view.parent(descriptor, path)
        for _ in range(_LINKS_AT_MOST + 1):
            if name in DOTS or slash:
                if writes:
                    return PROCEED
                return self._open_directory(descriptor, path, flags, mode)
            full = join(place, name)
            mediates = self._calls.mediates(full, writes)
            if mediates:
                self._calls.refuse(full, right)
                if writes and name in self._rules.special:
                    self._calls.creation(directory, place, name)
                try:
                    return self._perform_open(directory, name, flags, mode, STRICT)
                except OSError as error:
                    if error.errno != ELOOP:
                        raise
                    self._calls.performing = False
            if _stays(flags):
                if mediates:
                    raise failure(ELOOP, "open")
                return PROCEED
            try:
                _, target, magic, _ = self._view.target(directory, name)
            except OSError:
                if writes or self._calls.watches_reads:
                    self._calls.outside(full, right)
                return PROCEED
            if magic >= 0:
                return self._reopen(magic, flags)
            if not target:
                if writes or self._calls.watches_reads:
                    self._calls.outside(full, right)
                return PROCEED
            directory, name, place, slash = self._view.follow(directory, target)
        return PROCEED

    def _reopen(self, found: int, flags: int) -> int:
        """Open what a magic link of the caller's own refers to (``/dev/stdout``, ``/proc/self/fd/3``)."""
        full = self._view.canonical(found)
        writes = flags & _WRITES
        if not self._calls.mediates(full, writes):
            return PROCEED
        self._calls.refuse(full, WRITE if writes else READ)
        if writes:
            self._calls.special_by_path(full)
        return self._perform_open(AT_FDCWD, b"/proc/self/fd/%d" % found, flags & ~O_CREAT, 0, 0)

    def _open_directory(self, descriptor: int, path: bytes, flags: int, mode: int) -> int:
        """For reading, a path that can only be a directory's."""
        found, full = self._view.object(descriptor, path, follow=True)
        if not self._calls.mediates(full, 0):
            return PROCEED
        self._calls.refuse(full, READ)
        return self._give_directory(found, flags, mode)

    def _give_directory(self, found: int, flags: int, mode: int) -> int:
        self._calls.performing = True
        # Not "." in it, which would need the right to search it, unless the flag forbids the magic link.
        if flags & O_NOFOLLOW:
            made = openat2(found, b".", flags | O_CLOEXEC, mode, 0)
        else:
            made = openat2(AT_FDCWD, b"/proc/self/fd/%d" % found, flags | O_CLOEXEC, mode, 0)
        return self._give(self._view.own(made), flags)

    def _open_constrained(self, descriptor: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
        """The caller's own RESOLVE_* flags, applied by the kernel to the caller's own directory."""
        writes = flags & _WRITES
        base = self._view.base(descriptor)
        resolve &= ~RESOLVE_CACHED
        safe = resolve | RESOLVE_NO_MAGICLINKS
        for _ in range(_LINKS_AT_MOST + 1):
            head, slash, name = path.rpartition(b"/")
            if name in DOTS:
                return PROCEED if writes else self._open_constrained_directory(base, path, flags, mode, safe)
            parent = head + slash or b"."
            directory = self._view.own(openat2(base, parent, O_PATH | O_DIRECTORY | O_CLOEXEC, 0, safe))
            place = self._view.canonical(directory)
            full = join(place, name)
            if self._calls.mediates(full, writes):
                self._calls.refuse(full, WRITE if writes else READ)
                if writes and name in self._rules.special:
                    self._calls.creation(directory, place, name)
                try:
                    return self._perform_open(directory, name, flags, mode, STRICT)
                except OSError as error:
                    if error.errno != ELOOP or resolve & RESOLVE_NO_SYMLINKS or _stays(flags):
                        raise
                    self._calls.performing = False
            _, target, magic, _ = self._view.target(directory, name)
            if magic >= 0 or not target:
                return PROCEED
            # A link at the end: once more from where it stands, under the caller's own constraints.
            path = target if target[:1] == b"/" else head + slash + target
        return PROCEED

    def _open_constrained_directory(self, base: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
        found = self._view.own(openat2(base, path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0, resolve))
        full = self._view.canonical(found)
        if not self._calls.mediates(full, 0):
            return PROCEED
        self._calls.refuse(full, READ)
        return self._give_directory(found, flags, mode)

    def _open_unnamed(self, descriptor: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
        """O_TMPFILE: a file without a name, which linkat(2) may name later, after a decision of its own."""
        resolve &= ~RESOLVE_CACHED
        if resolve:
            safe = resolve | RESOLVE_NO_MAGICLINKS
            look = O_PATH | O_DIRECTORY | O_CLOEXEC | flags & O_NOFOLLOW
            found = self._view.own(openat2(self._view.base(descriptor), path, look, 0, safe))
            place = self._view.canonical(found)
        else:
            found, place = self._view.object(descriptor, path, follow=not flags & O_NOFOLLOW)
        if not self._calls.inside(place):
            return PROCEED
        self._calls.refuse(place, WRITE)
        self._calls.assume_umask()
        self._calls.performing = True
        made = self._view.own(openat2(found, b".", flags | O_CLOEXEC, mode, resolve))
        return self._give(made, flags)

    def truncate(self, path: int, length: int, *_: int) -> int:
        """``truncate(2)``. The caller's file size limit holds, with its signal."""
        found, full = self._view.object(AT_FDCWD, memory.read_string(self._view.pid, path), follow=True)
        if not self._calls.inside(full):
            return self._calls.elsewhere(full, WRITE)
        self._calls.refuse(full, WRITE)
        self._calls.special_by_path(full)
        self._calls.performing = True
        length = length - (1 << 64) if length >> 63 else length
        kind = posix.fstat(found).st_mode & _S_IFMT
        if length < 0 or kind != _S_IFREG:
            raise failure(EISDIR if length >= 0 and kind == _S_IFDIR else EINVAL, "truncate")
        if length > self._file_size_limit():
            posix.kill(self._view.pid, _SIGXFSZ)
            raise failure(EFBIG, "truncate")
        flags = posix.O_WRONLY | O_NONBLOCK | O_CLOEXEC
        try:
            # truncate(2) itself would wait for whoever has a lease on the file, and every other call with it.
            opened = self._view.own(posix.open(b"/proc/self/fd/%d" % found, flags))
        except OSError as error:
            if error.errno != EAGAIN:
                raise
            self._in_background(found, flags, length)
            return ANSWERED
        posix.ftruncate(opened, length)
        return 0

    def _file_size_limit(self) -> int:
        old = Buffer(16)
        call(NR["prlimit64"], self._view.pid, _RLIMIT_FSIZE, None, old.address)
        return int.from_bytes(old.view[:8], "little")


def _stays(flags: int) -> bool:
    """An open that does not follow a link at the end."""
    return bool(flags & O_NOFOLLOW or (flags & O_CREAT and flags & O_EXCL))


def _mode(flags: int, mode: int) -> int:
    """The mode argument of open(2) and openat(2), which the kernel ignores unless something may be created."""
    return mode & 0o7777 if flags & (O_CREAT | O_TMPFILE_BIT) else 0
