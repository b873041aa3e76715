"""What the mediator tells the record: who did what to what, and what the authority says of it.

Nothing here decides anything that the kernel or the mediator enforces. The verdict on an action that the kernel is left
to decide comes from the same grants that the kernel's rules were compiled from.
"""

from __future__ import annotations

import posix
from errno import ENOENT
from time import monotonic

from remit.sandbox.events.action import (
    ALLOWED,
    ASKED,
    ATTEMPTED,
    DENIED,
    EXERCISED,
    LOOKED_UP,
    MOOT,
    PRIVATE,
    RELAYED,
    UNGRANTED,
)
from remit.sandbox.kernel import memory, process
from remit.sandbox.kernel.call import AT_FDCWD, NR
from remit.sandbox.mediate.inside import KEPT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from remit.sandbox.kernel.fastpath import FastPath
    from remit.sandbox.mediate.broker import Source
    from remit.sandbox.mediate.inside import Recent
    from remit.sandbox.mediate.resolve import View

OFF, WRITES, FULL = "off", "writes", "full"
_OWN = (b"/dev/", b"/proc/")
_SCRATCH = (b"/tmp/", b"/run/", b"/var/tmp/")
_LETTERS = {"read": "r", "write": "w", "remove": "w", "setuid": "w", "exec": "x", "connect": "w", "bind": "w"}
_FOREVER = 1.0
GATHER_MS = 5
"""Actions wait that long for others, to be told together."""
GATHERED_AT_MOST = 64
GATHERED_SIZE = 8000
_ACTION_SIZE = 160
_CACHED_AT_MOST = 256
_EXECVE = NR.get("execve", -1)
_PATHS: dict[str, tuple[tuple[int, int, str], ...]] = {
    "open": ((-1, 0, "write"),),
    "openat": ((0, 1, "write"),),
    "creat": ((-1, 0, "write"),),
    "truncate": ((-1, 0, "write"),),
    "mkdir": ((-1, 0, "write"),),
    "mkdirat": ((0, 1, "write"),),
    "mknod": ((-1, 0, "write"),),
    "mknodat": ((0, 1, "write"),),
    "symlink": ((-1, 1, "write"),),
    "symlinkat": ((1, 2, "write"),),
    "link": ((-1, 1, "write"),),
    "linkat": ((2, 3, "write"),),
    "unlink": ((-1, 0, "remove"),),
    "unlinkat": ((0, 1, "remove"),),
    "rmdir": ((-1, 0, "remove"),),
    "rename": ((-1, 0, "remove"), (-1, 1, "write")),
    "renameat": ((0, 1, "remove"), (2, 3, "write")),
    "renameat2": ((0, 1, "remove"), (2, 3, "write")),
    "chmod": ((-1, 0, "write"),),
    "fchmodat": ((0, 1, "write"),),
    "fchmodat2": ((0, 1, "write"),),
    "chown": ((-1, 0, "write"),),
    "lchown": ((-1, 0, "write"),),
    "fchownat": ((0, 1, "write"),),
}
"""Where a call has its names: (descriptor argument or -1, path argument, right)."""


def size_of(action: tuple[Any, ...]) -> int:
    """About how much of a message an action takes."""
    return _ACTION_SIZE + len(action[3]) + len(action[5]) + len(action[11])


class Observer:
    """``note(source, action...)`` is called with the fields of ``events.action.FIELDS``.

    ``outer``: what the session may write and this call may not.
    """

    def __init__(
        self, granted: list[tuple[bytes, str]], note: Callable[..., None], level: str, outer: tuple[bytes, ...] = ()
    ) -> None:
        self.level = level
        self.reads = level == FULL
        self._note = note
        self._granted = dict(granted)
        self._granting: dict[tuple[bytes, str], tuple[bool, str, str]] = {}
        self._outer = tuple([place + b"/" for place in outer])
        self._programs: dict[int, bytes] = {}
        self._starts: dict[int, int] = {}
        self._since = 0.0
        self._caller: bytes | None = b""
        self._unheard = False
        self._refused = (0, b"")
        self.known: FastPath | None = None
        """Who hears of which callers are known."""
        self._paths = {NR[call]: paths for call, paths in _PATHS.items() if call in NR}

    # --- the authority

    def verdict(self, path: bytes, right: str) -> tuple[bool, str, str]:
        """What the grants say: (whether they allow it, the granted path or another rule, the layer that would refuse)."""
        # What an ancestor grants, it grants to all that a directory holds, but for what is granted something else itself.
        below = path[: path.rfind(b"/")], right
        if path not in self._granted and below in self._granting:
            return self._granting[below]
        letter = _LETTERS[right]
        place, visible = path, False
        while place:
            letters = self._granted.get(place)
            if letters is not None:
                if letter in letters or (right == "connect" and "s" in letters):
                    found = True, place.decode(errors="surrogateescape"), ""
                    if place != path:
                        if len(self._granting) >= _CACHED_AT_MOST:
                            self._granting.clear()
                        self._granting[below] = found
                    return found
                visible = True
            place = place[: place.rfind(b"/")] if place.rfind(b"/") > 0 else b""
        if right != "exec" and not path.startswith(b"/proc/sys/"):
            # What is granted below /tmp is the host's.
            slashed = path + b"/"
            scratch = not visible and slashed.startswith(_SCRATCH) and not slashed.startswith(self._outer)
            if slashed.startswith(_OWN) or scratch:
                return True, PRIVATE, ""
        return False, UNGRANTED, "landlock" if visible else "namespaces"

    def grants_around(self, place: bytes) -> bool:
        """Whether something is granted in ``place`` or above it, or may be written there by other calls of the session."""
        granted = [*self._granted, *[outer[:-1] for outer in self._outer]]
        return any(
            [path == place or path.startswith(place + b"/") or place.startswith(path + b"/") for path in granted]
        )

    # --- telling

    def denied(
        self, source: Source, pid: int, nr: int, path: bytes, right: str, layer: str, errno: int, rule: str
    ) -> None:
        """Refused by the mediator, with ``errno``."""
        if self.level != OFF:
            self._tell(source, pid, nr, path, right, DENIED, DENIED, layer, errno, rule)

    def failed(self, source: Source, pid: int, nr: int, errno: int, text: str) -> None:
        """A bug of the mediator's, which refuses."""
        if self.level != OFF:
            self._tell(source, pid, nr, b"", "", "error", DENIED, "mediation", errno, text)

    def done(
        self, source: Source, pid: int, nr: int, touched: list[tuple[bytes, str]], errno: int, performed: bool
    ) -> None:
        """Granted, and performed by the mediator or left to the kernel; ``errno``: what it got, or will get."""
        if self.level == OFF:
            return
        for path, right in touched:
            if right == "read" and not self.reads:
                continue
            allowed, rule, _ = self.verdict(path, right)
            if errno or not allowed:
                self._tell(source, pid, nr, path, right, MOOT, ATTEMPTED, "", errno, rule)
            else:
                self._tell(source, pid, nr, path, right, ALLOWED, EXERCISED if performed else ATTEMPTED, "", 0, rule)

    def performed(
        self, source: Source, when: float, pid: int, nr: int, touched: list[tuple[bytes, str]], errno: int
    ) -> None:
        """As ``done``, of a call that the fast path performed, at ``when``, for a caller that is known. On any thread: on one
        that is confined itself, a look into /proc would have to be answered by the one that may be waiting for it."""
        exe, start = self._programs.get(pid, b""), self._starts.get(pid, 0)
        for path, right in touched:
            allowed, rule, _ = self.verdict(path, right)
            verdict, certainty = (MOOT, ATTEMPTED) if errno or not allowed else (ALLOWED, EXERCISED)
            self._note(source, when, pid, start, exe, nr, path, right, verdict, certainty, "", errno, rule)

    def went_on(self, source: Source, when: float, pid: int, nr: int, named: list[tuple[bytes, str]]) -> None:
        """The fast path left a call to the kernel, whose names are no places of the mediator's. On any thread."""
        exe, start = self._programs.get(pid, b""), self._starts.get(pid, 0)
        for path, right in named:
            allowed, rule, layer = self.verdict(path, right)
            if not allowed:
                source.denials += 1
                _remember(source.recent, (path, right, rule, exe))
            verdict = ALLOWED if allowed else DENIED
            self._note(source, when, pid, start, exe, nr, path, right, verdict, ATTEMPTED, layer, 0, rule)

    def let_execute(self, source: Source, when: float, pid: int, path: bytes, program: bytes, start: int) -> None:
        """The fast path let ``pid`` go on to execute ``path`` (empty: nothing is there). ``program``, ``start``: of a caller that
        it did not know. On any thread."""
        if program:
            self.introduce(pid, program, start)
        if path:
            own = self._programs.get(pid, b"")
            action = self.executed(source, when, pid, self._starts.get(pid, 0), path, own)
            if action is not None:
                self._note(source, *action)
        self._programs.pop(pid, None)

    def executed(
        self, source: Source, when: float, pid: int, start: int, path: bytes, own: bytes = b""
    ) -> tuple[Any, ...] | None:
        """``path`` was, or is about to be, executed by ``own`` (empty: by Remit's program), as the kernel decides: the action, if
        that is recorded. On any thread."""
        allowed, rule, layer = self.verdict(path, "exec")
        if not allowed:
            source.denials += 1
            _remember(source.recent, (path, "exec", rule, own))
        if self.level == OFF:
            return None
        verdict = ALLOWED if allowed else DENIED
        return when, pid, start, own, _EXECVE, path, "exec", verdict, ATTEMPTED, layer, 0, rule

    def proceeding(
        self, source: Source, pid: int, nr: int, path: bytes, right: str, *, allowed: bool, layer: str, rule: str
    ) -> None:
        """The kernel is about to decide by itself."""
        if self.level != OFF:
            self._tell(source, pid, nr, path, right, ALLOWED if allowed else DENIED, ATTEMPTED, layer, 0, rule)

    def relayed(self, source: Source, pid: int, nr: int, address: bytes) -> None:
        """A connection that the gateway decides on."""
        if self.level != OFF:
            self._tell(source, pid, nr, address, "connect", ASKED, ATTEMPTED, "", 0, RELAYED)

    def looked_for(self, source: Source, pid: int, path: bytes) -> None:
        """Somebody looks for a secret that is not shown, and waits. Called on a thread of its own."""
        if self.level == OFF or process.own_thread(pid):
            return
        told, what = self._refused
        if told == pid and (what == path or what.startswith(path + b"/")):
            return  # the mediator was asked first, and has said more
        exe = _program(pid)
        source.looked_for += 1
        _remember(source.recent, (path, "read", UNGRANTED, exe))
        self._note(
            *(source, monotonic(), pid, process.started(pid), exe, LOOKED_UP, path, "read"),
            *(DENIED, ATTEMPTED, "namespaces", ENOENT, UNGRANTED),
        )

    def _tell(
        self,
        source: Source,
        pid: int,
        nr: int,
        path: bytes,
        right: str,
        verdict: str,
        certainty: str,
        layer: str,
        errno: int,
        rule: str,
    ) -> None:
        if self._unheard:
            return  # a thread that will execute the command, and tries the layers before
        exe = self.identify(pid)
        start = self.date(pid)
        if self.known is not None:
            self.known.know(pid)
        if verdict == DENIED:
            self._refused = pid, path
            _remember(source.recent, (path, right, rule, exe))
        self._note(source, monotonic(), pid, start, exe, nr, path, right, verdict, certainty, layer, errno, rule)

    # --- who and what

    def meet(self, pid: int, *, starting: bool) -> None:
        """A caller. ``starting``: the command does not run yet, so that it may be a thread of this process."""
        if self.level == OFF:
            return
        self.forget_old()
        self._unheard = starting and process.own_thread(pid)
        self._caller = self._programs.get(pid)

    def identify(self, pid: int) -> bytes:
        """The caller's program, which is remembered for a second: far less than a pid takes to come round again. To be asked
        before the answer where there is something to tell: after it, it may be another. When it started is asked later, since
        that stays the same, and the caller does not wait for it."""
        if self.level == OFF or self._unheard:
            return b""
        exe = self._caller
        if exe is None:
            exe = self._caller = self._programs[pid] = _program(pid)
        return exe

    def date(self, pid: int) -> int:
        """When the caller started, where that is recorded."""
        if self.level == OFF or self._unheard:
            return 0
        start = self._starts.get(pid)
        if start is None:
            start = self._starts[pid] = process.started(pid)
        return start

    def meet_newcomer(self, pid: int) -> None:
        """The same of a command's first process, which is about to execute the command: it is still Remit's own program, and
        nobody reaps it before its source's ``meeting`` is free."""
        self.forget_old()
        self._caller = b""
        self._unheard = False
        self._starts.pop(pid, None)

    def forget_old(self) -> None:
        """A second is over, or too many are remembered."""
        now = monotonic()
        if now - self._since > _FOREVER or max(len(self._programs), len(self._starts)) > _CACHED_AT_MOST:
            self.forget()
            self._since = now

    def forget(self) -> None:
        """Know nobody."""
        self._programs.clear()
        self._starts.clear()
        if self.known is not None:
            self.known.forget_all()

    def introduce(self, pid: int, program: bytes, start: int) -> None:
        """Of a caller that the fast path has met: its program, and when it started. On any thread."""
        self._programs[pid] = program
        self._starts[pid] = start

    def executes(self, pid: int) -> None:
        """``pid`` is about to become another program."""
        self._programs.pop(pid, None)
        if self.known is not None:
            self.known.forget(pid)

    def names(self, nr: int, arguments: list[int], view: View) -> list[tuple[bytes, str]]:
        """What a call names, by its spelling only: for calls that were refused unseen, or whose names lead nowhere."""
        found: list[tuple[bytes, str]] = []
        for descriptor, path, right in self._paths.get(nr, ()):
            try:
                text = memory.read_string(view.pid, arguments[path])
                full = view.spelled(AT_FDCWD if descriptor < 0 else arguments[descriptor], text)
            except OSError:
                continue
            if full is not None:
                found.append((full, right))
        return found


def _remember(recent: list[Recent], one: Recent) -> None:
    recent.append(one)
    if len(recent) > KEPT:
        del recent[0]


def _program(pid: int) -> bytes:
    try:
        return posix.readlink(b"/proc/%d/exe" % pid)
    except OSError:
        return b""
