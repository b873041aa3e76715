"""The calls that the mediator performs: each handler resolves, decides, then does the call on what it resolved.

A handler returns ``PROCEED`` (the kernel goes on by itself: safe, because the command's own Landlock domain lacks the
right wherever the mediator has a say), ``ANSWERED``, or the call's result; it raises OSError for the caller to see.
What *resolving* raises becomes PROCEED too, so that the kernel itself finds the errno; chmod and chown (and ``metadata``), which
no Landlock right covers, are always performed or refused, never left to the kernel.

The mediator is one thread, and only through it can a name inside the roots change: between decision and performance
nothing inside can move. What changes from outside is met by performing on descriptors with RESOLVE_NO_SYMLINKS.
"""

from __future__ import annotations

import _thread
import posix
from errno import (
    E2BIG,
    EACCES,
    EEXIST,
    EFBIG,
    EINVAL,
    ELOOP,
    EMFILE,
    ENOENT,
    ENXIO,
    EPERM,
    EXDEV,
)
from fcntl import F_SETFL, fcntl
from time import sleep

from remit.sandbox.kernel import memory
from remit.sandbox.kernel.call import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_FOLLOW,
    AT_SYMLINK_NOFOLLOW,
    NR,
    Buffer,
    call,
    failure,
)
from remit.sandbox.kernel.files import (
    O_PATH,
    RESOLVE_BENEATH,
    RESOLVE_CACHED,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    change_mode,
    fchownat,
    linkat,
    mknodat,
    openat2,
    renameat2,
)
from remit.sandbox.mediate.repository import Repository
from remit.sandbox.mediate.resolve import Foreign, Umasks, View, signed, status_of
from remit.sandbox.mediate.rules import READ, REMOVE, WRITE, Rules, join, under
from remit.sandbox.mediate.unix import made_inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from remit.sandbox.kernel.notify import Listener

    Denial: TypeAlias = Callable[[str, bytes, str, int], OSError]

PROCEED, ANSWERED = -1, -2

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
_STRICT = RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH
_LINKS_AT_MOST = 40
_S_IFMT, _S_IFLNK, _S_IFDIR, _S_IFIFO, _S_IFSOCK = 0o170000, 0o120000, 0o040000, 0o010000, 0o140000
_SPECIAL_MODES = 0o6000
_S_ISUID = 0o4000
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_AT_REMOVEDIR = 0x200
_HOW_SIZE, _PAGE = 24, 4096
_ERESTARTSYS = 512
_SIGXFSZ, _RLIMIT_FSIZE = 25, 1
_DOTS = (b"", b".", b"..")
_DEVICES = frozenset([b"/dev/null", b"/dev/zero", b"/dev/full", b"/dev/tty", b"/dev/random", b"/dev/urandom"])


_ASKED_BY_LIBC = frozenset([b"/var/run/nscd/socket", b"/run/nscd/socket"])
"""Where glibc asks for a cache of names at every look-up, wherever it runs: not an action of the program's."""


class Calls:
    """Handlers of one session. ``denied`` makes (and counts) the error for an action outside the grant."""

    def __init__(
        self,
        rules: Rules,
        roots: tuple[bytes, ...],
        reads: tuple[bytes, ...],
        outer: tuple[bytes, ...],
        denied: Denial,
        outside: Callable[..., None],
        clock: Callable[[], float],
        connects: Callable[[bytes], bool],
    ) -> None:
        self.listener: Listener
        """Where the call being handled came from: set for each."""
        self.rules = rules
        self.view = View()
        self.umasks = Umasks(clock)
        self.id = 0
        self.performing = False
        """Resolved and decided: from here on, an error is the call's own result."""
        self.touched: list[tuple[bytes, str]] = []
        """What the call being handled names in the roots, with the right it takes: cleared for each."""
        self.watches = True
        """``outside`` hears of every action elsewhere, too."""
        self.watches_reads = False
        """It hears of opens for reading, too."""
        self.later: tuple[int, bytes, bytes | None] | None = None
        self._program: bytes | None = None
        self._denied = denied
        self._outside = outside
        self._connects = connects
        self._roots: list[tuple[bytes, bytes, int]] = []
        for root in roots:
            try:
                descriptor = posix.open(root, O_PATH | O_CLOEXEC)
            except OSError:
                continue
            self._roots.append((root, root + b"/", descriptor))
        self._reads = reads
        self._outer = outer
        self._repository = Repository(rules, self.view, self._inside)

    # --- names

    def _inside(self, path: bytes) -> bool:
        return any([path.startswith(below) or path == root for root, below, _ in self._roots])

    def _mediates(self, path: bytes, writes: int) -> bool:
        return self._inside(path) if writes else any([under(path, root) for root in self._reads])

    def _resolved(self, descriptor: int, where: int) -> tuple[int, bytes, bytes, bool] | None:
        """The parent of what the caller names, fast where no link is on the way; None: the kernel goes on."""
        path = memory.read_string(self.view.pid, where)
        full = self.view.lexical(descriptor, path)
        if full is not None:
            directory, _, name = full.rpartition(b"/")
            for root, below, anchor in self._roots:
                if directory == root:
                    return anchor, name, directory, False
                if directory.startswith(below):
                    try:
                        parent = openat2(anchor, directory[len(below) :], O_PATH | O_DIRECTORY | O_CLOEXEC, 0, _STRICT)
                    except OSError:
                        break
                    return self.view.own(parent), name, directory, False
        return self.view.parent(descriptor, path)

    def _refuse_beyond(self, path: bytes, right: str) -> None:
        """Refuse what is writable for the session and not for this call: to the mediator, nothing else would."""
        if not self._inside(path) and any(under(path, place) for place in self._outer):
            raise self._denied(right, path, "nothing grants it", EACCES)

    def _refuse(self, path: bytes, right: str) -> None:
        if (path, right) not in self.touched:
            self.touched.append((path, right))
        self._check(path, right)

    def _elsewhere(self, path: bytes, right: str) -> int:
        """Not in a root: the kernel goes on, by mounts and Landlock."""
        if self.watches:
            self._outside(path, right)
        return PROCEED

    def _check(self, path: bytes, right: str) -> None:
        text = self.rules.decide(path, right)
        if text:
            raise self._denied(right, path, text, EACCES)

    def _creation(self, directory: int, place: bytes, name: bytes) -> bytes:
        """Refuse making ``name`` by anything but rename and symlink; its full path."""
        path = join(place, name)
        self._refuse(path, WRITE)
        if name in self.rules.special:
            text = self._repository.creation(directory, place, name)
            if text:
                raise self._denied(WRITE, path, text, EACCES)
        return path

    def _parent_of(self, directory: bytes) -> int:
        """A descriptor of a canonical directory."""
        flags = O_PATH | O_DIRECTORY | O_CLOEXEC
        return self.view.own(openat2(AT_FDCWD, directory or b"/", flags, 0, RESOLVE_NO_SYMLINKS))

    def _special_by_path(self, full: bytes) -> None:
        """As ``_creation``, for an existing file that is known by its canonical path."""
        directory, _, name = full.rpartition(b"/")
        if name in self.rules.special:
            self._creation(self._parent_of(directory), directory, name)

    # --- opening

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
        content = memory.read(self.view.pid, how, size)
        if content[_HOW_SIZE:].strip(b"\0"):
            raise failure(E2BIG, "openat2")
        flags, mode, resolve = (int.from_bytes(content[at : at + 8], "little") for at in (0, 8, 16))
        return self._open(descriptor, path, flags, mode, resolve)

    def _open(self, descriptor: int, where: int, flags: int, mode: int, resolve: int) -> int:
        writes = flags & _WRITES
        if flags & O_PATH:
            return PROCEED
        if not (writes or self._reads):
            return self._read(descriptor, where) if self.watches_reads else PROCEED
        if flags & (O_CREAT | O_TMPFILE_BIT) and mode & _SPECIAL_MODES:
            raise self._denied("setuid", b"", "setuid and setgid modes are refused", EPERM)
        path = memory.read_string(self.view.pid, where)
        if flags & O_TMPFILE_BIT:
            return self._open_unnamed(descriptor, path, flags, mode, resolve)
        if resolve:
            return self._open_constrained(descriptor, path, flags, mode, resolve)
        full = self.view.lexical(descriptor, path)
        if full is not None:
            if full in _DEVICES:
                return PROCEED
            answer = self._open_fast(full, flags, mode)
            if answer is not None:
                return answer
        return self._open_slowly(descriptor, path, flags, mode)

    def _open_fast(self, full: bytes, flags: int, mode: int) -> int | None:
        """Open a path that holds no link (else None). The kernel vouches for it, so the spelling is canonical."""
        for _, start, descriptor in self._roots:
            if full.startswith(start):
                below, anchor = start, descriptor
                break
        else:
            if self._mediates(full, flags & _WRITES) or not self.view.plain(full):
                return None
            if flags & _WRITES or self.watches_reads:
                self._outside(full, WRITE if flags & _WRITES else READ)
            return PROCEED
        if not flags & _WRITES and not self._mediates(full, 0):
            if not self.watches_reads:
                return PROCEED
            if not self.view.plain(full):
                return None
            self._outside(full, READ)
            return PROCEED
        if self.rules.decide(full, WRITE if flags & _WRITES else READ):
            return None
        if full.rpartition(b"/")[2] in self.rules.special:
            return None
        self.touched.append((full, WRITE if flags & _WRITES else READ))
        try:
            return self._perform_open(anchor, full[len(below) :], flags, mode, _STRICT)
        except OSError as error:
            if error.errno == EMFILE or (error.errno == EEXIST and flags & O_EXCL):
                raise
            self.performing = False
            self.touched.clear()
            return None

    def _read(self, descriptor: int, where: int) -> int:
        """Only watched: the kernel opens, and reads its own copy of the name. ``look`` says afterwards what it was."""
        path = memory.read_string(self.view.pid, where)
        self.later = (descriptor, path, self.view.lexical(descriptor, path))
        return PROCEED

    def look(self) -> None:
        """Tell of the program or the open that was let go on. The caller does not wait for this; its name may mean something
        else by now, which changes what is recorded and nothing that is decided."""
        program = self._program
        if program is not None:
            self._program = None
            self._executed(program)
        if self.later is None:
            return
        descriptor, path, full = self.later
        self.later = None
        errno = self.view.missing(full) if full is not None else ELOOP
        if errno == ELOOP:
            try:
                _, full = self.view.object(descriptor, path, follow=True)
                errno = 0
            except OSError as error:
                full, errno = self.view.spelled(descriptor, path), error.errno or 0
            except Foreign:
                return
        if full is not None and not full.startswith(b"/proc/"):
            self._outside(full, READ, errno)

    def _perform_open(self, directory: int, name: bytes, flags: int, mode: int, resolve: int) -> int:
        """Open and hand over. Never blocks: what exists is opened O_NONBLOCK, which a FIFO or a lease needs."""
        self.performing = True
        if flags & O_CREAT:
            self.umasks.assume(self.view.pid)
            try:
                made = self.view.own(openat2(directory, name, flags | O_EXCL | O_CLOEXEC, mode, resolve))
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
            if error.errno == ENXIO and self._waits(directory, name, flags, resolve):
                return ANSWERED
            raise
        self.view.own(found)
        if not flags & O_NONBLOCK:
            if not flags & O_ACCMODE and posix.fstat(found).st_mode & _S_IFMT == _S_IFIFO:
                self._in_background(found, flags)
                return ANSWERED
            fcntl(found, F_SETFL, flags & ~O_NONBLOCK)
        return self._give(found, flags)

    def _give(self, descriptor: int, flags: int) -> int:
        if self.view.copies and not flags & O_ACCMODE and posix.fstat(descriptor).st_mode & _S_IFMT == _S_IFDIR:
            # From a directory of this process's mounts, "../../proc" would lead to the session's.
            descriptor = self.view.directory_there(descriptor)
        self.listener.give(self.id, descriptor, cloexec=bool(flags & O_CLOEXEC))
        return ANSWERED

    def _waits(self, directory: int, name: bytes, flags: int, resolve: int) -> bool:
        """ENXIO: a FIFO without a reader, for which the caller waits; the mediator does not. False for a socket."""
        if flags & O_NONBLOCK:
            return False
        entry = self.view.own(openat2(directory, name, O_PATH | O_CLOEXEC, 0, resolve))
        if posix.fstat(entry).st_mode & _S_IFMT != _S_IFIFO:
            return False
        self._in_background(entry, flags)
        return True

    def _in_background(self, entry: int, flags: int) -> None:
        _thread.start_new_thread(_wait_for_fifo, (self.listener, self.id, self.view.pid, posix.dup(entry), flags))

    def _open_slowly(self, descriptor: int, path: bytes, flags: int, mode: int) -> int:
        writes = flags & _WRITES
        right = WRITE if writes else READ
        directory, name, place, slash = self.view.parent(descriptor, path)
        for _ in range(_LINKS_AT_MOST + 1):
            if name in _DOTS or slash:
                if writes:
                    return PROCEED
                return self._open_directory(descriptor, path, flags, mode)
            full = join(place, name)
            mediates = self._mediates(full, writes)
            if mediates:
                self._refuse(full, right)
                if writes and name in self.rules.special:
                    self._creation(directory, place, name)
                try:
                    return self._perform_open(directory, name, flags, mode, _STRICT)
                except OSError as error:
                    if error.errno != ELOOP:
                        raise
                    self.performing = False
            if _stays(flags):
                if mediates:
                    raise failure(ELOOP, "open")
                return PROCEED
            try:
                _, target, magic, _ = self.view.target(directory, name)
            except OSError:
                if writes or self.watches_reads:
                    self._outside(full, right)
                return PROCEED
            if magic >= 0:
                return self._reopen(magic, flags)
            if not target:
                if writes or self.watches_reads:
                    self._outside(full, right)
                return PROCEED
            directory, name, place, slash = self.view.follow(directory, target)
        return PROCEED

    def _reopen(self, found: int, flags: int) -> int:
        """Open what a magic link of the caller's own refers to (``/dev/stdout``, ``/proc/self/fd/3``)."""
        full = self.view.canonical(found)
        writes = flags & _WRITES
        if not self._mediates(full, writes):
            return PROCEED
        self._refuse(full, WRITE if writes else READ)
        if writes:
            self._special_by_path(full)
        return self._perform_open(AT_FDCWD, b"/proc/self/fd/%d" % found, flags & ~O_CREAT, 0, 0)

    def _open_directory(self, descriptor: int, path: bytes, flags: int, mode: int) -> int:
        """For reading, a path that can only be a directory's."""
        found, full = self.view.object(descriptor, path, follow=True)
        if not self._mediates(full, 0):
            return PROCEED
        self._refuse(full, READ)
        return self._give_directory(found, flags, mode)

    def _give_directory(self, found: int, flags: int, mode: int) -> int:
        self.performing = True
        # Not "." in it, which would need the right to search it, unless the flag forbids the magic link.
        if flags & O_NOFOLLOW:
            made = openat2(found, b".", flags | O_CLOEXEC, mode, 0)
        else:
            made = openat2(AT_FDCWD, b"/proc/self/fd/%d" % found, flags | O_CLOEXEC, mode, 0)
        return self._give(self.view.own(made), flags)

    def _open_constrained(self, descriptor: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
        """The caller's own RESOLVE_* flags, applied by the kernel to the caller's own directory."""
        writes = flags & _WRITES
        base = self.view.base(descriptor)
        resolve &= ~RESOLVE_CACHED
        safe = resolve | RESOLVE_NO_MAGICLINKS
        for _ in range(_LINKS_AT_MOST + 1):
            head, slash, name = path.rpartition(b"/")
            if name in _DOTS:
                return PROCEED if writes else self._open_constrained_directory(base, path, flags, mode, safe)
            parent = head + slash or b"."
            directory = self.view.own(openat2(base, parent, O_PATH | O_DIRECTORY | O_CLOEXEC, 0, safe))
            place = self.view.canonical(directory)
            full = join(place, name)
            if self._mediates(full, writes):
                self._refuse(full, WRITE if writes else READ)
                if writes and name in self.rules.special:
                    self._creation(directory, place, name)
                try:
                    return self._perform_open(directory, name, flags, mode, _STRICT)
                except OSError as error:
                    if error.errno != ELOOP or resolve & RESOLVE_NO_SYMLINKS or _stays(flags):
                        raise
                    self.performing = False
            _, target, magic, _ = self.view.target(directory, name)
            if magic >= 0 or not target:
                return PROCEED
            # A link at the end: once more from where it stands, under the caller's own constraints.
            path = target if target[:1] == b"/" else head + slash + target
        return PROCEED

    def _open_constrained_directory(self, base: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
        found = self.view.own(openat2(base, path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0, resolve))
        full = self.view.canonical(found)
        if not self._mediates(full, 0):
            return PROCEED
        self._refuse(full, READ)
        return self._give_directory(found, flags, mode)

    def _open_unnamed(self, descriptor: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
        """O_TMPFILE: a file without a name, which linkat(2) may name later, after a decision of its own."""
        resolve &= ~RESOLVE_CACHED
        if resolve:
            safe = resolve | RESOLVE_NO_MAGICLINKS
            look = O_PATH | O_DIRECTORY | O_CLOEXEC | flags & O_NOFOLLOW
            found = self.view.own(openat2(self.view.base(descriptor), path, look, 0, safe))
            place = self.view.canonical(found)
        else:
            found, place = self.view.object(descriptor, path, follow=not flags & O_NOFOLLOW)
        if not self._inside(place):
            return PROCEED
        self._refuse(place, WRITE)
        self.umasks.assume(self.view.pid)
        self.performing = True
        made = self.view.own(openat2(found, b".", flags | O_CLOEXEC, mode, resolve))
        return self._give(made, flags)

    def truncate(self, path: int, length: int, *_: int) -> int:
        """``truncate(2)``. The caller's file size limit holds, with its signal."""
        found, full = self.view.object(AT_FDCWD, memory.read_string(self.view.pid, path), follow=True)
        if not self._inside(full):
            return self._elsewhere(full, WRITE)
        self._refuse(full, WRITE)
        self._special_by_path(full)
        self.performing = True
        length = length - (1 << 64) if length >> 63 else length
        if length > 0 and length > self._file_size_limit():
            posix.kill(self.view.pid, _SIGXFSZ)
            raise failure(EFBIG, "truncate")
        posix.truncate(b"/proc/self/fd/%d" % found, length)
        return 0

    def _file_size_limit(self) -> int:
        old = Buffer(16)
        call(NR["prlimit64"], self.view.pid, _RLIMIT_FSIZE, None, old.address)
        return int.from_bytes(old.view[:8], "little")

    # --- making

    def mkdir(self, path: int, mode: int, *_: int) -> int:
        """``mkdir(2)``."""
        return self.mkdirat(AT_FDCWD, path, mode)

    def mkdirat(self, descriptor: int, path: int, mode: int, *_: int) -> int:
        """``mkdirat(2)``."""
        found = self._resolved(descriptor, path)
        if found is None:
            return PROCEED
        directory, name, place, slash = found
        if name in _DOTS:
            return PROCEED
        if not self._inside(join(place, name)):
            return self._elsewhere(join(place, name), WRITE)
        self._creation(directory, place, name)
        self.umasks.assume(self.view.pid)
        self.performing = True
        posix.mkdir(name + b"/" if slash else name, mode & 0o7777, dir_fd=directory)
        return 0

    def mknod(self, path: int, mode: int, device: int, *_: int) -> int:
        """``mknod(2)``."""
        return self.mknodat(AT_FDCWD, path, mode, device)

    def mknodat(self, descriptor: int, path: int, mode: int, device: int, *_: int) -> int:
        """``mknodat(2)``."""
        found = self._resolved(descriptor, path)
        if found is None:
            return PROCEED
        directory, name, place, slash = found
        if name in _DOTS:
            return PROCEED
        if not self._inside(join(place, name)):
            return self._elsewhere(join(place, name), WRITE)
        if mode & _SPECIAL_MODES:
            raise self._denied("setuid", join(place, name), "setuid and setgid modes are refused", EPERM)
        self._creation(directory, place, name)
        self.umasks.assume(self.view.pid)
        self.performing = True
        mknodat(directory, name + b"/" if slash else name, mode & 0xFFFFFFFF, device)
        return 0

    def symlink(self, target: int, path: int, *_: int) -> int:
        """``symlink(2)``."""
        return self.symlinkat(target, AT_FDCWD, path)

    def symlinkat(self, target: int, descriptor: int, path: int, *_: int) -> int:
        """``symlinkat(2)``. A link may not stand where a rule names a directory: it would redirect the rule."""
        text = memory.read_string(self.view.pid, target)
        found = self._resolved(descriptor, path)
        if found is None:
            return PROCEED
        directory, name, place, slash = found
        full = join(place, name)
        if name in _DOTS:
            return PROCEED
        if not self._inside(full):
            return self._elsewhere(full, WRITE)
        self._refuse(full, WRITE)
        rule = self.rules.component(full)
        if not rule and name in self.rules.special:
            rule = self._repository.link(directory, place, name, text)
        if rule:
            raise self._denied(WRITE, full, rule, EACCES)
        self.performing = True
        posix.symlink(text, name + b"/" if slash else name, dir_fd=directory)
        return 0

    def link(self, old: int, new: int, *_: int) -> int:
        """``link(2)``."""
        return self.linkat(AT_FDCWD, old, AT_FDCWD, new, 0)

    def linkat(self, from_: int, old: int, to: int, new: int, flags: int, *_: int) -> int:
        """``linkat(2)``: a second name for a protected file would be a way to write it, so both names are decided on."""
        flags &= 0xFFFFFFFF
        if flags & ~(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH):
            raise failure(EINVAL, "linkat")
        source_path = memory.read_string(self.view.pid, old)
        unnamed = bool(flags & AT_EMPTY_PATH and not source_path)
        # The kernel lets a process name its own unnamed file, but a descriptor from here is not its own.
        self.performing = unnamed
        found = self._resolved(to, new)
        if found is None:
            return PROCEED
        directory, name, place, slash = found
        full = join(place, name)
        if name in _DOTS:
            return PROCEED
        if not self._inside(full):
            return self._elsewhere(full, WRITE)
        source, origin = self.view.object(
            from_, source_path, follow=bool(flags & AT_SYMLINK_FOLLOW), empty=bool(flags & AT_EMPTY_PATH)
        )
        self._refuse_beyond(origin, WRITE)
        self._check(origin, WRITE)
        self._creation(directory, place, name)
        target = name + b"/" if slash else name
        self.performing = True
        if not unnamed and posix.fstat(source).st_mode & _S_IFMT == _S_IFLNK:
            # /proc/self/fd would follow it. Its name cannot change between here and there: see above.
            above, last = origin[: origin.rindex(b"/")], origin[origin.rindex(b"/") + 1 :]
            linkat(self._parent_of(above), last, directory, target, 0)
        else:
            linkat(AT_FDCWD, b"/proc/self/fd/%d" % source, directory, target, AT_SYMLINK_FOLLOW)
        return 0

    # --- removing and renaming

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
        found = self._resolved(descriptor, path)
        if found is None:
            return PROCEED
        directory, name, place, slash = found
        full = join(place, name)
        if name in _DOTS:
            return PROCEED
        if not self._inside(full):
            return self._elsewhere(full, REMOVE)
        self.touched.append((full, REMOVE))
        text = self.rules.decide(full, REMOVE)
        if not text and name in self.rules.hooks:
            text = self._repository.creation(directory, place, name)
        if text:
            # Nothing to remove is no denial: rm -f probes.
            posix.stat(name, dir_fd=directory, follow_symlinks=False)
            raise self._denied(REMOVE, full, text, EACCES)
        target = name + b"/" if slash else name
        self.performing = True
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
        first, second = self._resolved(from_, old), self._resolved(to, new)
        if first is None or second is None:
            return PROCEED
        directory1, name1, place1, slash1 = first
        directory2, name2, place2, slash2 = second
        path1, path2 = join(place1, name1), join(place2, name2)
        if name1 in _DOTS or name2 in _DOTS:
            return PROCEED
        if not (self._inside(path1) or self._inside(path2)):
            self._elsewhere(path1, REMOVE)
            return self._elsewhere(path2, WRITE)
        self._refuse_beyond(path1, REMOVE)
        self._refuse_beyond(path2, WRITE)
        mode1 = posix.stat(name1, dir_fd=directory1, follow_symlinks=False).st_mode
        if path1 != path2:
            config = self._moves(directory1, name1, path1, mode1, directory2, place2, name2, flags)
            if flags & _RENAME_EXCHANGE:
                mode2 = posix.stat(name2, dir_fd=directory2, follow_symlinks=False).st_mode
                self._moves(directory2, name2, path2, mode2, directory1, place1, name1, flags)
            elif config:
                self.performing = True
                text = self._repository.replace_config(directory1, name1, directory2, place2, name2, flags)
                if text:
                    raise self._denied(WRITE, path2, text, EACCES)
                return 0
        self.performing = True
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
        rules = self.rules
        self._refuse(path1, REMOVE)
        self._refuse(path2, WRITE)
        kind = mode & _S_IFMT
        if kind == _S_IFDIR:
            for path in (path1, path2):
                for rest, text in rules.governed(path):
                    if _exists(directory1, name1 + b"/" + rest):
                        raise self._denied(REMOVE if path == path1 else WRITE, path + b"/" + rest, text, EACCES)
            if rules.crosses(path1, path2):
                self.performing = True
                raise failure(EXDEV, "rename")
        elif kind == _S_IFLNK:
            text = rules.component(path2)
            if text:
                raise self._denied(WRITE, path2, text, EACCES)
        # What is replaced disappears.
        self._check(path2, REMOVE)
        if name1 in rules.special:
            text = self._repository.leaving(directory1, path1.rpartition(b"/")[0], name1, kind == _S_IFDIR)
            if text:
                raise self._denied(REMOVE, path1, text, EACCES)
        if name2 in rules.special:
            if not flags and self._repository.is_config(directory2, place2, name2):
                return not rules.opened(path2)
            text = self._repository.arriving(directory1, name1, mode, directory2, place2, name2)
            if text:
                raise self._denied(WRITE, path2, text, EACCES)
        return False

    # --- modes and owners: no Landlock right covers these, so the kernel never goes on by itself

    def chmod(self, path: int, mode: int, *_: int) -> int:
        """``chmod(2)``."""
        return self._chmod(AT_FDCWD, memory.read_string(self.view.pid, path), mode, 0)

    def fchmod(self, descriptor: int, mode: int, *_: int) -> int:
        """``fchmod(2)``."""
        return self._chmod(positive(descriptor), b"", mode, AT_EMPTY_PATH)

    def fchmodat(self, descriptor: int, path: int, mode: int, *_: int) -> int:
        """``fchmodat(2)``."""
        return self._chmod(descriptor, memory.read_string(self.view.pid, path), mode, 0)

    def fchmodat2(self, descriptor: int, path: int, mode: int, flags: int, *_: int) -> int:
        """``fchmodat2(2)`` (Linux 6.6)."""
        flags &= 0xFFFFFFFF
        if flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
            raise failure(EINVAL, "fchmodat2")
        return self._chmod(descriptor, memory.read_string(self.view.pid, path), mode, flags)

    def _chmod(self, descriptor: int, path: bytes, mode: int, flags: int) -> int:
        found = self.object_to_change(descriptor, path, flags, hooks_too=True)
        if mode & _SPECIAL_MODES:
            directory = posix.fstat(found).st_mode & _S_IFMT == _S_IFDIR
            # A directory's setgid bit only says which group its files get: git's shared repositories live on it.
            if mode & _S_ISUID or not directory:
                raise self._denied("setuid", path, "setuid and setgid modes are refused", EPERM)
        if flags & AT_SYMLINK_NOFOLLOW and posix.fstat(found).st_mode & _S_IFMT == _S_IFLNK:
            return call(NR["fchmodat2"], found, b"", mode & 0o7777, AT_EMPTY_PATH)
        change_mode(found, mode & 0o7777)
        return 0

    def chown(self, path: int, uid: int, gid: int, *_: int) -> int:
        """``chown(2)``."""
        return self._chown(AT_FDCWD, memory.read_string(self.view.pid, path), uid, gid, 0)

    def lchown(self, path: int, uid: int, gid: int, *_: int) -> int:
        """``lchown(2)``."""
        return self._chown(AT_FDCWD, memory.read_string(self.view.pid, path), uid, gid, AT_SYMLINK_NOFOLLOW)

    def fchown(self, descriptor: int, uid: int, gid: int, *_: int) -> int:
        """``fchown(2)``."""
        return self._chown(positive(descriptor), b"", uid, gid, AT_EMPTY_PATH)

    def fchownat(self, descriptor: int, path: int, uid: int, gid: int, flags: int, *_: int) -> int:
        """``fchownat(2)``."""
        flags &= 0xFFFFFFFF
        if flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
            raise failure(EINVAL, "fchownat")
        return self._chown(descriptor, memory.read_string(self.view.pid, path), uid, gid, flags)

    def _chown(self, descriptor: int, path: bytes, uid: int, gid: int, flags: int) -> int:
        found = self.object_to_change(descriptor, path, flags, hooks_too=False)
        fchownat(found, b"", signed(uid), signed(gid), AT_EMPTY_PATH)
        return 0

    def _object_fast(self, descriptor: int, path: bytes) -> tuple[int, bytes] | None:
        """A descriptor (O_PATH) of what lies in a root behind no link, and its path; None: look for it in another way."""
        full = self.view.lexical(descriptor, path)
        if full is not None:
            for _, below, anchor in self._roots:
                if full.startswith(below):
                    try:
                        found = openat2(anchor, full[len(below) :], O_PATH | O_CLOEXEC, 0, _STRICT)
                    except OSError:
                        return None
                    return self.view.own(found), full
        return None

    def object_to_change(self, descriptor: int, path: bytes, flags: int, *, hooks_too: bool = False) -> int:
        """What the caller names, for changing what is no content of it. Raises what refuses that, and OSError.

        ``hooks_too``: the mode of a file decides whether git runs it.
        """
        quick = self._object_fast(descriptor, path)
        try:
            found, full = quick or self.view.object(
                descriptor, path, follow=not flags & AT_SYMLINK_NOFOLLOW, empty=bool(flags & AT_EMPTY_PATH)
            )
        except Foreign:
            raise failure(EACCES, "path") from None
        if not self._inside(full):
            self._refuse_beyond(full, WRITE)
            return found
        self._refuse(full, WRITE)
        directory, _, name = full.rpartition(b"/")
        if hooks_too and name in self.rules.hooks:
            text = self._repository.creation(self._parent_of(directory), directory, name)
            if text:
                raise self._denied(WRITE, full, text, EACCES)
        return found

    # --- what is only watched

    def umask(self, value: int, *_: int) -> int:
        """``umask(2)``."""
        self.umasks.changed(self.view.pid, value)
        return PROCEED

    def execve(self, path: int, *_: int) -> int:
        """``execve(2)``."""
        return self.execveat(AT_FDCWD, path)

    def execveat(self, descriptor: int, path: int, *_: int) -> int:
        """``execveat(2)``: Landlock decides; a program that exists here and is not granted counts as a denial."""
        self._program = self.view.lexical(descriptor, memory.read_string(self.view.pid, path))
        return PROCEED

    def _executed(self, full: bytes) -> None:
        if full.startswith(b"/proc/"):
            return
        try:
            found = self.view.own(posix.open(full, O_PATH | O_CLOEXEC))
        except OSError as error:
            if error.errno in (EACCES, EPERM):
                self._outside(full, "exec")
        else:
            self._outside(self.view.canonical(found), "exec")

    def connect(self, _descriptor: int, address: int, length: int, *_: int) -> int:
        """``connect(2)``: namespaces and Landlock decide."""
        return self._address(address, length, "connect")

    def bind(self, _descriptor: int, address: int, length: int, *_: int) -> int:
        """``bind(2)``: a socket's name may not be one that a rule takes away (it cannot hold code; the race is harmless)."""
        return self._address(address, length, "bind")

    def _unix(self, path: bytes) -> None:
        """Refuse a named socket of the outside that was not granted, whatever tree it lies in.

        The kernel resolves the name again after the answer, so a racing thread could still arrive at another one; where
        Landlock knows the right to connect to named sockets (Linux 7.1), it holds that too.
        """
        try:
            entry, full = self.view.object(AT_FDCWD, path, follow=True)
        except OSError:
            spelled = self.view.lexical(AT_FDCWD, path)
            if spelled is not None and spelled not in _ASKED_BY_LIBC:
                self._outside(spelled, "connect")  # not there, because nothing grants it
            raise
        status = posix.fstat(entry)
        if status.st_mode & _S_IFMT != _S_IFSOCK:
            return
        if self._connects(full) or made_inside(status):
            self._elsewhere(full, "connect")
            return
        raise self._denied("connect", full, "no grant names this socket", EACCES)

    def _address(self, address: int, length: int, right: str) -> int:
        length &= 0xFFFFFFFF
        if not 2 < length <= 128:
            return PROCEED
        raw = memory.read(self.view.pid, address, length)
        family = int.from_bytes(raw[:2], "little")
        if family == 1 and raw[2]:
            path = raw[2:].partition(b"\0")[0]
            if right == "bind":
                directory, name, place, _ = self.view.parent(AT_FDCWD, path)
                if name not in _DOTS and self._inside(join(place, name)):
                    self._creation(directory, place, name)
                elif name not in _DOTS:
                    return self._elsewhere(join(place, name), WRITE)
            else:
                self._unix(path)
        elif family == 2 and len(raw) >= 8:
            self._elsewhere(b"%d.%d.%d.%d:%d" % (*raw[4:8], int.from_bytes(raw[2:4], "big")), right)
        elif family == 10 and len(raw) >= 24:
            words = b":".join([b"%x" % int.from_bytes(raw[at : at + 2], "big") for at in range(8, 24, 2)])
            self._elsewhere(b"[%s]:%d" % (words, int.from_bytes(raw[2:4], "big")), right)
        return PROCEED

    def kill(self, pid: int, number: int, *_: int) -> int:
        """``kill(2)``: the PID namespace and Landlock's scope decide. Signal 0 only asks whether somebody is there."""
        target = signed(pid)
        if target > 0 and number:
            self._elsewhere(_process(target), "signal")
        return PROCEED

    def ptrace(self, request: int, pid: int, *_: int) -> int:
        """``ptrace(2)``, PTRACE_ATTACH and PTRACE_SEIZE: as ``kill``."""
        self._elsewhere(_process(signed(pid)), "trace")
        return PROCEED


def _stays(flags: int) -> bool:
    """An open that does not follow a link at the end."""
    return bool(flags & O_NOFOLLOW or (flags & O_CREAT and flags & O_EXCL))


def _mode(flags: int, mode: int) -> int:
    """The mode argument of open(2) and openat(2), which the kernel ignores unless something may be created."""
    return mode & 0o7777 if flags & (O_CREAT | O_TMPFILE_BIT) else 0


def positive(descriptor: int) -> int:
    """A descriptor that may not be AT_FDCWD."""
    number = signed(descriptor)
    return number if number >= 0 else -1


def _process(pid: int) -> bytes:
    """A process as an object; ``own`` where the session has one of that number."""
    name = b"/proc/%d" % pid
    return b"own " + name if _exists(AT_FDCWD, name) else name


def _exists(directory: int, path: bytes) -> bool:
    try:
        posix.stat(path, dir_fd=None if directory == AT_FDCWD else directory, follow_symlinks=False)
    except OSError as error:
        return error.errno not in (ENOENT, 20)
    return True


def _wait_for_fifo(listener: Listener, identifier: int, pid: int, entry: int, flags: int) -> None:
    """Wait for a FIFO's other end in the caller's place, on a thread of its own, as long as the caller waits.

    A caller that a signal handler interrupts gets ERESTARTSYS, which the kernel turns into EINTR or a restart as
    ``sigaction(2)`` was told: a supervised call does not notice signals by itself.
    """
    pause = 0.001
    try:
        while listener.valid(identifier):
            try:
                opened = posix.open(b"/proc/self/fd/%d" % entry, (flags & ~O_CREAT) | O_NONBLOCK | O_CLOEXEC)
            except OSError as error:
                if error.errno != ENXIO:
                    listener.reply(identifier, error=error.errno or EACCES)
                    return
            else:
                fcntl(opened, F_SETFL, flags & ~O_NONBLOCK)
                try:
                    listener.give(identifier, opened, cloexec=bool(flags & O_CLOEXEC))
                except OSError as error:
                    listener.reply(identifier, error=error.errno or EACCES)
                posix.close(opened)
                return
            if _interrupted(pid):
                listener.reply(identifier, error=_ERESTARTSYS)
                return
            sleep(pause)
            pause = min(pause * 1.5, 0.02)
    except OSError:
        return
    finally:
        posix.close(entry)


def _interrupted(pid: int) -> bool:
    status = status_of(pid)

    def mask(name: bytes) -> int:
        at = status.index(name) + len(name)
        return int(status[at : status.index(b"\n", at)], 16)

    pending = mask(b"\nSigPnd:") | mask(b"\nShdPnd:")
    return bool(pending & ~mask(b"\nSigBlk:") & mask(b"\nSigCgt:"))
