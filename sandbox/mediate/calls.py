"""What every handler of a mediated call works with: the call at hand, the names that it gives, and what may be refused.

A handler returns ``PROCEED`` (the kernel goes on by itself: safe, because the command's own Landlock domain lacks the
right wherever the mediator has a say), ``ANSWERED``, or the call's result; it raises OSError for the caller to see.
What *resolving* raises becomes PROCEED too, so that the kernel itself finds the errno; chmod and chown (and ``metadata``), which
no Landlock right covers, are always performed or refused, never left to the kernel.

The mediator is one thread, and only through it can a name inside the roots change: between decision and performance
nothing inside can move. What changes from outside is met by performing on descriptors with RESOLVE_NO_SYMLINKS.
"""

from __future__ import annotations

import posix
from errno import EACCES, ENOENT, ENOTDIR, EXDEV

from remit.sandbox.kernel import memory
from remit.sandbox.kernel.call import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, NR, failure
from remit.sandbox.kernel.files import O_PATH, RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from remit.sandbox.mediate.repository import Repository
from remit.sandbox.mediate.resolve import Foreign, Umasks, View, signed
from remit.sandbox.mediate.rules import WRITE, Rules, join, under

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, TypeAlias

    from remit.sandbox.mediate.broker import Source

    Denial: TypeAlias = Callable[[str, bytes, str, int], OSError]

PROCEED, ANSWERED = -1, -2
STRICT = RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH
"""How what lies below a root is looked up: a spelling that the kernel takes so is canonical."""
DOTS = (b"", b".", b"..")
SPECIAL_MODES = 0o6000
"""S_ISUID and S_ISGID."""
_S_IFMT, _S_IFLNK = 0o170000, 0o120000
O_DIRECTORY, O_CLOEXEC = posix.O_DIRECTORY, posix.O_CLOEXEC


class Calls:
    """The calls of one authority, one at a time. ``denied`` makes (and counts) the error for an action outside the grant.

    ``answering`` is called with the caller's pid before a handler answers by itself. ``umasks``: this process's.
    """

    def __init__(
        self,
        rules: Rules,
        roots: tuple[bytes, ...],
        reads: tuple[bytes, ...],
        outer: tuple[bytes, ...],
        denied: Denial,
        outside: Callable[..., None],
        connects: Callable[[bytes], bool],
        allows: Callable[[bytes, str], bool],
        answering: Callable[[int], object],
        umasks: Umasks,
    ) -> None:
        self.source: Source
        """Whose the call being handled is: set for each."""
        self.rules = rules
        self.view = View()
        self.umasks = umasks
        self.id = 0
        self.performing = False
        """Resolved and decided: from here on, an error is the call's own result."""
        self.touched: list[tuple[bytes, str]] = []
        """What the call being handled names in the roots, with the right it takes: cleared for each."""
        self.watches = True
        """``outside`` hears of every action elsewhere, too."""
        self.watches_reads = False
        """It hears of opens for reading, too."""
        self.later: tuple[Callable[..., None], tuple[Any, ...]] | None = None
        """What the record wants to know of a call that was let go on: a function and its arguments, for after the answer."""
        self.named: Callable[[bytes], None] = lambda _: None
        """Hears of a path that a call names, and that ``touched`` does not have."""
        self.denied = denied
        self.outside = outside
        self.answering = answering
        self.connects = connects
        """A grant names this socket."""
        self.allows = allows
        """A grant gives this right, or the place is the session's own."""
        self.roots: list[tuple[bytes, bytes, int]] = []
        movable: list[tuple[bytes, bytes, int]] = []
        for root in roots:
            try:
                descriptor = posix.open(root, O_PATH | O_CLOEXEC)
                its = movable if not _is_mount(root) else []
            except OSError:
                continue
            self.roots.append((root, root + b"/", descriptor))
            its.append(self.roots[-1])
        self._movable = tuple(movable)
        self.reads = reads
        self._outer = outer
        self.repository = Repository(rules, self.view, self.inside, self._changes)

    def close(self) -> None:
        """No further call will come."""
        for _, _, descriptor in self.roots:
            posix.close(descriptor)
        self.__dict__.clear()

    def assume_umask(self) -> None:
        """For what is about to be made in the caller's place."""
        self.umasks.assume(self.view.pid, as_started=not self.source.masks)

    def look(self) -> None:
        """Do what was put off until the call was answered: its caller does not wait for this."""
        if self.later is not None:
            (look, arguments), self.later = self.later, None
            look(*arguments)

    # --- names

    def inside(self, path: bytes) -> bool:
        return any([path.startswith(below) or path == root for root, below, _ in self.roots])

    def _changes(self, path: bytes) -> bool:
        """It may change inside the session: by this call, or by another one."""
        return self.inside(path) or any([under(path, place) for place in self._outer])

    def mediates(self, path: bytes, writes: int) -> bool:
        return self.inside(path) if writes else any([under(path, root) for root in self.reads])

    def resolved(self, descriptor: int, where: int) -> tuple[int, bytes, bytes, bool] | None:
        """The parent of what the caller names, fast where no link is on the way; None: the kernel goes on."""
        path = memory.read_string(self.view.pid, where)
        full = self.view.lexical(descriptor, path)
        if full is not None:
            directory, _, name = full.rpartition(b"/")
            for root, below, anchor in self.roots:
                if directory == root:
                    return anchor, name, directory, False
                if directory.startswith(below):
                    try:
                        parent = openat2(anchor, directory[len(below) :], O_PATH | O_DIRECTORY | O_CLOEXEC, 0, STRICT)
                    except OSError:
                        break
                    return self.view.own(parent), name, directory, False
        return self.view.parent(descriptor, path)

    def target(self, descriptor: int, where: int, right: str) -> tuple[int, bytes, bytes, bytes, bool] | None:
        """What the caller names, if it is the mediator's: (its directory, name, directory's path, own path, a slash behind).
        None: the kernel goes on."""
        found = self.resolved(descriptor, where)
        if found is None:
            return None
        directory, name, place, slash = found
        if name in DOTS:
            return None
        full = join(place, name)
        if not self.inside(full):
            self.elsewhere(full, right)
            return None
        return directory, name, place, full, slash

    def refuse_beyond(self, path: bytes, right: str) -> None:
        """Refuse what is writable for the session and not for this call: to the mediator, nothing else would."""
        if not self.inside(path) and self._changes(path):
            raise self.denied(right, path, "nothing grants it", EACCES)

    def hold(self, path: bytes) -> None:
        """Refuse what has the name of a root's, where the root has another one by now: a call of wider authority, or somebody
        outside, has moved the directory that was granted, and put another one in its place."""
        for root, below, anchor in self._movable:
            if path == root or path.startswith(below):
                try:
                    here = posix.stat(root, follow_symlinks=False)
                except OSError:
                    return  # then the name leads nowhere
                there = posix.fstat(anchor)
                if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
                    raise self.denied(WRITE, path, "it is not in the directory that was granted", EACCES)
                return

    def refuse(self, path: bytes, right: str) -> None:
        self.hold(path)
        if (path, right) not in self.touched:
            self.touched.append((path, right))
        self._decide(path, right)

    def elsewhere(self, path: bytes, right: str) -> int:
        """Not in a root: the kernel goes on, by mounts and Landlock."""
        if self.watches:
            self.outside(path, right)
        return PROCEED

    def check(self, path: bytes, right: str) -> None:
        self.hold(path)
        self._decide(path, right)

    def _decide(self, path: bytes, right: str) -> None:
        text = self.rules.decide(path, right)
        if text:
            raise self.denied(right, path, text, EACCES)

    def creation(self, directory: int, place: bytes, name: bytes) -> bytes:
        """Refuse making ``name`` by anything but rename and symlink; its full path."""
        path = join(place, name)
        self.refuse(path, WRITE)
        if name in self.rules.special:
            text = self.repository.creation(directory, place, name)
            if text:
                raise self.denied(WRITE, path, text, EACCES)
        return path

    def parent_of(self, directory: bytes) -> int:
        """A descriptor of a canonical directory."""
        flags = O_PATH | O_DIRECTORY | O_CLOEXEC
        return self.view.own(openat2(AT_FDCWD, directory or b"/", flags, 0, RESOLVE_NO_SYMLINKS))

    def special_by_path(self, full: bytes) -> None:
        """As ``_creation``, for an existing file that is known by its canonical path."""
        directory, _, name = full.rpartition(b"/")
        if name in self.rules.special:
            self.creation(self.parent_of(directory), directory, name)

    def object_fast(self, descriptor: int, path: bytes) -> tuple[int, bytes] | None:
        """A descriptor (O_PATH) of what lies in a root behind no link, and its path; None: look for it in another way."""
        full = self.view.lexical(descriptor, path)
        if full is not None:
            for _, below, anchor in self.roots:
                if full.startswith(below):
                    try:
                        found = openat2(anchor, full[len(below) :], O_PATH | O_CLOEXEC, 0, STRICT)
                    except OSError:
                        return None
                    return self.view.own(found), full
        return None

    def object_to_change(self, descriptor: int, path: bytes, flags: int, *, hooks_too: bool = False) -> int:
        """What the caller names, for changing what is no content of it. Raises what refuses that, and OSError.

        ``hooks_too``: the mode of a file decides whether git runs it.
        """
        quick = self.object_fast(descriptor, path)
        try:
            found, full = quick or self.view.object(
                descriptor, path, follow=not flags & AT_SYMLINK_NOFOLLOW, empty=bool(flags & AT_EMPTY_PATH)
            )
        except Foreign:
            raise failure(EACCES, "path") from None
        if not self.inside(full):
            self.refuse_beyond(full, WRITE)
            return self.view.as_mounted(found, full)
        self.refuse(full, WRITE)
        directory, _, name = full.rpartition(b"/")
        if hooks_too and name in self.rules.hooks:
            text = self.repository.creation(self.parent_of(directory), directory, name)
            if text:
                raise self.denied(WRITE, full, text, EACCES)
        return found


class Handlers:
    """The handlers of some kinds of call, each named after its call."""

    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._view = calls.view
        self._rules = calls.rules
        self._repository = calls.repository

    def handlers(self) -> dict[int, Callable[..., int]]:
        """By the numbers that this machine has."""
        return {NR[name]: getattr(self, name) for name in self.names if name in NR}


def _is_mount(path: bytes) -> bool:
    """Something is mounted there: nobody can move it away."""
    directory, _, name = path.rpartition(b"/")
    parent = posix.open(directory or b"/", O_PATH | O_DIRECTORY | O_CLOEXEC)
    try:
        posix.close(openat2(parent, name or b".", O_PATH | O_CLOEXEC, 0, RESOLVE_NO_XDEV))
    except OSError as error:
        return error.errno == EXDEV
    finally:
        posix.close(parent)
    return False


def positive(descriptor: int) -> int:
    """A descriptor that may not be AT_FDCWD."""
    number = signed(descriptor)
    return number if number >= 0 else -1


def exists(directory: int, path: bytes) -> bool:
    try:
        posix.stat(path, dir_fd=None if directory == AT_FDCWD else directory, follow_symlinks=False)
    except OSError as error:
        return error.errno not in (ENOENT, ENOTDIR)
    return True


def leads_elsewhere(directory: int, path: bytes, rest: bytes) -> bool:
    """``rest`` leads, from ``path`` in ``directory``, through a symbolic link, whatever is behind that."""
    names = rest.split(b"/")
    for i in range(1, len(names)):
        place = path + b"/" + b"/".join(names[:i])
        try:
            mode = posix.stat(place, dir_fd=directory, follow_symlinks=False).st_mode
        except OSError:
            return False
        if mode & _S_IFMT == _S_IFLNK:
            return True
    return False
