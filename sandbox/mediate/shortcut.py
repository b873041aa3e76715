"""What the listener's fast path may answer by itself, decided for directories.

A rule refuses a path because it names the path, or a directory on the way. So where a directory is refused nothing, neither
is anything in it, at any depth, that is reached by ordinary names: none that a rule ends in, none that means something to a
repository. That is a statement about words, true for as long as the rules are, whatever is there; and the kernel vouches that
the words are the place (RESOLVE_NO_SYMLINKS, below the workspace's descriptor), for the fast path as for ``opening``.
"""

from __future__ import annotations

import _thread
import posix
from errno import EEXIST

from remit.sandbox.kernel.call import NR
from remit.sandbox.kernel.fastpath import LEFT, FastPath
from remit.sandbox.kernel.files import O_PATH
from remit.sandbox.mediate.observe import OFF
from remit.sandbox.mediate.opening import DEVICES
from remit.sandbox.mediate.rules import REMOVE, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from remit.sandbox.kernel.fastpath import Others
    from remit.sandbox.mediate.broker import Source
    from remit.sandbox.mediate.calls import Calls
    from remit.sandbox.mediate.observe import Observer

_RIGHTS = {
    "open": (WRITE,),
    "creat": (WRITE,),
    "openat": (WRITE,),
    "mkdir": (WRITE,),
    "mkdirat": (WRITE,),
    "link": (WRITE,),
    "linkat": (WRITE,),
    "unlink": (REMOVE,),
    "unlinkat": (REMOVE,),
    "rmdir": (REMOVE,),
    "rename": (REMOVE, WRITE),
    "renameat": (REMOVE, WRITE),
    "renameat2": (REMOVE, WRITE),
}
"""The calls, with the rights that they take to what they name."""
_SCRATCH = b"/tmp"
"""Where programs make files for a moment, and what that costs shows."""
_WORTH_IT = 4
"""Calls before a fast path is made: it takes as long as some of them, and many a command makes fewer."""


class Shortcut:
    """Of one authority, for the thread that receives."""

    def __init__(self, calls: Calls, observer: Observer) -> None:
        self._calls = calls
        self._observer = observer
        self._rights = {NR[name]: rights for name, rights in _RIGHTS.items() if name in NR}
        self._execve = NR.get("execve", -1)
        self._making = frozenset([NR[name] for name in ("mkdir", "mkdirat") if name in NR])
        self.answered = 0
        """Calls that the fast path has answered."""
        self._fast: FastPath | None = None
        self._source: Source | None = None
        self._reading = _thread.allocate_lock()
        self._ends: set[bytes] = set()
        self._wanted = 0
        self._umasks = -1
        self._places: list[int] = []
        """Descriptors of directories that are elsewhere."""
        calls.named = self._learn

    def close(self) -> None:
        """No further call will come."""
        self._fast = None
        while self._places:
            posix.close(self._places.pop())

    @property
    def open(self) -> bool:
        """There is a fast path."""
        return self._fast is not None

    def receive(self, source: Source, others: Callable[[], Others] | None) -> tuple[int, ...] | None:
        """Receive a notification of the source's, answer it and those that come soon after it, and tell of them. The one that
        is not to be answered here; None where nothing is left to do. Raises OSError when the listener is gone."""
        fast, observer, calls = self._fast, self._observer, self._calls
        assert fast is not None
        observer.forget_old()
        if source.masks:
            self._look_at_umasks(fast)
        self._source = source
        beside = others() if others is not None else None
        result = fast.step(source.listener.fd, beside, as_started=calls.umasks.as_started and not source.masks)
        self.settle()
        return fast.notification() if result == LEFT else None

    def settle(self) -> None:
        """Tell of what has been answered so far. On any thread."""
        source, fast = self._source, self._fast
        if source is None or fast is None:
            return
        with self._reading:
            for when, pid, nr, errno, paths, program, start in fast.events():
                source.handled += 1
                self.answered += 1
                if nr == self._execve:
                    self._observer.let_execute(source, when, pid, paths[0], program, start)
                    continue
                if self._observer.level == OFF:
                    continue
                if program:
                    self._observer.introduce(pid, program, start)
                if errno == EEXIST and nr in self._making and not self._calls.watches_reads:
                    continue  # as ``Making.mkdirat``: asking for what is there is no more than looking
                touched = [*zip(paths, self._rights[nr], strict=False)]
                if errno < 0:
                    self._observer.went_on(source, when, pid, nr, touched)
                else:
                    self._observer.performed(source, when, pid, nr, touched, errno)

    def _look_at_umasks(self, fast: FastPath) -> None:
        umasks = self._calls.umasks
        umasks.expire()
        if umasks.changes != self._umasks:
            self._umasks = umasks.changes
            fast.forget_umasks()

    def learn(self, source: Source, nr: int) -> None:
        """Of a call that the mediator has answered: the next ones of its kind may be answered at once."""
        if nr not in self._rights and nr != self._execve:
            return
        self._wanted += 1
        if self._wanted < _WORTH_IT:
            return
        if self._wanted == _WORTH_IT:
            self._begin(source)
        for path, _ in self._calls.touched:
            self._learn(path)
        if self._fast is not None and source.masks and self._calls.umasks.holds(self._calls.view.pid):
            self._look_at_umasks(self._fast)
            self._fast.know_umask(self._calls.view.pid)

    def _begin(self, source: Source) -> None:
        observer = self._observer
        try:
            self._ends = self._calls.rules.endings()
            self._fast = FastPath(self._ends, DEVICES, source.listener.placement, anybody=observer.level == OFF)
        except OSError:
            return  # another machine's, or none may be executed
        observer.known = self._fast
        self._leave_to_kernel(_SCRATCH)

    def _leave_to_kernel(self, place: bytes) -> None:
        """What is below ``place``, where nothing of the host's is: no rule speaks of it, and mounts and Landlock decide."""
        assert self._fast is not None
        if self._observer.grants_around(place) or self._calls.view.private:
            return  # a call's own is not this process's: it cannot see whether a link is on the way
        try:
            anchor = posix.open(place, O_PATH | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
        except OSError:
            return
        self._places.append(anchor)
        self._fast.allow(place, anchor, len(place) + 1, elsewhere=True)

    def _learn(self, path: bytes) -> None:
        """The directories on the way to ``path`` that have to be said to be free of rules, for what comes next to it."""
        if self._fast is None:
            return
        for root, below, anchor in self._calls.roots:
            if path.startswith(below):
                self._free(path, len(root), anchor)
                return

    def _free(self, path: bytes, end: int, anchor: int) -> None:
        assert self._fast is not None
        free, below = False, end + 1
        while end >= 0:
            # What is in a free directory and has an ordinary name is free itself, without being said to be.
            directory = path[:end]
            if not free or directory[directory.rfind(b"/") + 1 :] in self._ends:
                free = self._fast.allowed(directory)
                if not free and self._calls.rules.ordinary(directory):
                    self._fast.allow(directory, anchor, below)
                    free = True
            end = path.find(b"/", end + 1)
