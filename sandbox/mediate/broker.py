"""The broker: the session's one seccomp listener, one notification at a time.

It runs in PID 1 of the session, on the thread in Landlock's outer domain, and must outlive anything that a confined
process does: whatever goes wrong with a call is that call's EACCES. If it dies, every mediated call gets ENOSYS and the
session ends; nothing opens.
"""

from __future__ import annotations

import gc
from errno import EACCES, ENOSYS
from time import monotonic

from remit.sandbox.kernel.call import NR, failure
from remit.sandbox.kernel.notify import Listener
from remit.sandbox.mediate.calls import ANSWERED, PROCEED, Calls
from remit.sandbox.mediate.resolve import Foreign
from remit.sandbox.mediate.rules import Rules, under

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    Note: TypeAlias = Callable[[str, int, int, bytes, str, str, int, str], None]
    Condition: TypeAlias = tuple[int, int, int]

MEDIATED = (
    "open",
    "openat",
    "openat2",
    "creat",
    "truncate",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "symlink",
    "symlinkat",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "rmdir",
    "rename",
    "renameat",
    "renameat2",
    "chmod",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "chown",
    "lchown",
    "fchown",
    "fchownat",
)
OBSERVED = ("umask", "execve", "execveat", "connect", "bind")
_NEVER_PROCEED = frozenset(["chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchown", "fchownat"])
_MODES = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2}
_S_ISUID = 0o4000
_PRIVATE = (b"/dev", b"/tmp", b"/proc", b"/run", b"/var/tmp")
_LETTERS = {"write": "w", "exec": "x", "connect": "w"}


class Denied(OSError):
    """An action outside the grant; already counted."""


class Broker:
    """Answers the notifications of one listener.

    ``spec`` is the wire form of ``compile.plan.Mediate``. ``note(kind, pid, nr, object, right, verdict, errno, rule)``
    is called for each denial and, with ``observe``, for each call. ``denials`` counts actions outside the grant.
    """

    def __init__(self, listener_fd: int, spec: tuple[Any, ...], note: Note, *, observe: bool = False) -> None:
        name, roots, deny, protect, catalogue, opened, granted, *rest = spec
        reads, refuse, gateway = [*rest, *[(), (), False][len(rest) :]]
        if name != "mediate":
            raise ValueError(f"not a mediation: {name!r}")
        self.denials = 0
        self.handled = 0
        self._note = note
        self._observe = observe
        self.before_exec: Callable[[int], None] | None = None
        """Called with the pid of each process about to execute a program. What it raises (OSError), the program gets."""
        self._execs = frozenset([NR[call] for call in ("execve", "execveat") if call in NR])
        self._pid = self._nr = 0
        self._gateway = bool(gateway)
        self._granted: list[tuple[bytes, str]] = [(_bytes(path), letters) for path, letters in granted]
        self._sockets = frozenset([_bytes(path) for path, letters in granted if letters == "s"])
        places = tuple([_bytes(root) for root in roots])
        readable = tuple([_bytes(root) for root in reads])
        rules = Rules(places, deny, protect, catalogue, opened)
        self._listener = Listener(listener_fd)
        if listener_fd >= 0:
            self._listener.synchronous()
        self._calls = Calls(
            self._listener, rules, places, readable, self._denied, self._outside, monotonic, self._granted_socket
        )
        self._handlers: dict[int, tuple[Callable[..., int], bool]] = {}
        for call in MEDIATED + OBSERVED:
            if call in NR:
                self._handlers[NR[call]] = (getattr(self._calls, call), call in _NEVER_PROCEED)
        self._refused: dict[int, list[tuple[int, tuple[Condition, ...]]]] = {}
        for call, errno, conditions in refuse:
            if call in NR:
                self._refused.setdefault(NR[call], []).append((errno, conditions))
        self._modes = {NR[call]: argument for call, argument in _MODES.items() if call in NR}
        # A collection in the middle of a call is a call that takes a millisecond; nothing here makes cycles.
        gc.freeze()
        gc.disable()

    def attach(self, listener_fd: int) -> None:
        """Listen there. For a broker that was made, with -1, while its listener was still to come."""
        self._listener.fd = listener_fd
        self._listener.synchronous()

    def handle(self) -> None:
        """Receive and answer one notification. Raises only when the listener itself is gone."""
        notification = self._listener.receive()
        if notification is None:
            return
        identifier, pid, _, nr, _, _, *arguments = notification
        self.handled += 1
        self._pid, self._nr = pid, nr
        calls = self._calls
        calls.id = identifier
        calls.performing = False
        calls.view.begin(pid)
        try:
            answer = self._answer(nr, arguments)
        except OSError as error:
            self._listener.reply(identifier, error=error.errno or EACCES)
        except Exception as error:
            # A bug of the mediator is the caller's EACCES, never its permission.
            self._tell(b"", "", "error", EACCES, f"{type(error).__name__}: {error}")
            self._listener.reply(identifier, error=EACCES)
        else:
            if answer == PROCEED:
                self._listener.proceed(identifier)
            elif answer != ANSWERED:
                self._listener.reply(identifier, answer)
        finally:
            calls.view.end()

    def _answer(self, nr: int, arguments: list[int]) -> int:
        rows = self._refused.get(nr)
        if rows is not None:
            for errno, conditions in rows:
                if all(arguments[index] & mask == value for index, mask, value in conditions):
                    # A directory may be setgid: the handler looks at what it is.
                    if nr in self._modes and not arguments[self._modes[nr]] & _S_ISUID:
                        continue
                    raise self._denied("call", b"", f"system call {nr} is refused", errno)
        found = self._handlers.get(nr)
        if found is None:
            raise self._denied("call", b"", f"system call {nr} is not mediated", ENOSYS)
        handler, performs = found
        if self.before_exec is not None and nr in self._execs:
            self.before_exec(self._pid)
        if self._observe:
            self._note("attempt", self._pid, nr, b"", "", "", 0, "")
        try:
            return handler(*arguments)
        except Denied:
            raise
        except OSError:
            # What goes wrong before anything was done is the kernel's to say, with its own errno.
            if performs or self._calls.performing:
                raise
            return PROCEED
        except Foreign:
            if performs:
                raise failure(EACCES, "path") from None
            return PROCEED

    def _denied(self, right: str, path: bytes, rule: str, errno: int) -> OSError:
        self.denials += 1
        self._tell(path, right, "denied", errno, rule)
        return Denied(errno, rule)

    def _granted_socket(self, path: bytes) -> bool:
        return path in self._sockets

    def _outside(self, path: bytes, right: str) -> None:
        """Count what the kernel is about to refuse because nothing grants it."""
        if self._gateway and right == "connect" and not path.startswith(b"/"):
            return
        letter = _LETTERS[right]
        for place, letters in self._granted:
            if letter in letters and under(path, place):
                return
        if path.startswith(_PRIVATE) and not path.startswith(b"/proc/sys") and right != "exec":
            return
        self.denials += 1
        self._tell(path, right, "denied", EACCES, "nothing grants it")

    def _tell(self, path: bytes, right: str, verdict: str, errno: int, rule: str) -> None:
        self._note("mediation", self._pid, self._nr, path, right, verdict, errno, rule)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
