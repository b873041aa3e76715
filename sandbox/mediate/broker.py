"""The broker: the session's one seccomp listener, one notification at a time.

It runs in PID 1 of the session, on the thread in Landlock's outer domain, and must outlive anything that a confined
process does: whatever goes wrong with a call is that call's EACCES. If it dies, every mediated call gets ENOSYS and the
session ends; nothing opens.
"""

from __future__ import annotations

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

    Note: TypeAlias = Callable[["Source", str, int, int, bytes, str, str, int, str], None]
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


class Source:
    """Whose calls one listener brings: those of one command and everything it starts, told by the filter they are under."""

    __slots__ = ("before_exec", "denials", "handled", "listener")

    def __init__(self, before_exec: Callable[[int], None] | None = None) -> None:
        self.listener = Listener(-1)
        self.denials = 0
        """Actions outside the grant."""
        self.handled = 0
        self.before_exec = before_exec
        """Called with the pid of each process about to execute a program. What it raises (OSError), the program gets."""

    def attach(self, listener: int) -> None:
        """Its notifications come from this descriptor."""
        self.listener.fd = listener
        self.listener.synchronous()


class Broker:
    """Decides, for every source under one authority, and performs.

    ``spec`` is the wire form of ``compile.plan.Mediate``. ``note(source, kind, pid, nr, object, right, verdict, errno,
    rule)`` is called for each denial and, with ``observe``, for each call.
    """

    def __init__(self, spec: tuple[Any, ...], note: Note, *, observe: bool = False) -> None:
        name, roots, deny, protect, catalogue, opened, granted, *rest = spec
        reads, refuse, outer = (*rest, (), (), ())[:3]
        gateway = len(rest) > 3 and rest[3]
        if name != "mediate":
            raise ValueError(f"not a mediation: {name!r}")
        self._note = note
        self._observe = observe
        self._execs = frozenset([NR[call] for call in ("execve", "execveat") if call in NR])
        self._pid = self._nr = 0
        self._source = Source()
        self._gateway = bool(gateway)
        self._granted: list[tuple[bytes, str]] = [(_bytes(path), letters) for path, letters in granted]
        self._sockets = frozenset([_bytes(path) for path, letters in granted if letters == "s"])
        places = tuple([_bytes(root) for root in roots])
        readable = tuple([_bytes(root) for root in reads])
        rules = Rules(places, deny, protect, catalogue, opened)
        self._beyond = tuple([_bytes(root) for root in outer])
        self.calls = Calls(
            rules,
            places,
            readable,
            self._beyond,
            self._denied,
            self._outside,
            self._grants,
            monotonic,
            self._granted_socket,
        )
        self._handlers: dict[int, tuple[Callable[..., int], bool]] = {}
        for call in MEDIATED + OBSERVED:
            if call in NR:
                self._handlers[NR[call]] = (getattr(self.calls, call), call in _NEVER_PROCEED)
        self._refused: dict[int, list[tuple[int, tuple[Condition, ...]]]] = {}
        for call, errno, conditions in refuse:
            if call in NR:
                self._refused.setdefault(NR[call], []).append((errno, conditions))
        self._modes = {NR[call]: argument for call, argument in _MODES.items() if call in NR}

    def perform(self, handlers: dict[int, Callable[..., int]]) -> None:
        """Calls, by number, that these handlers perform or refuse, and never leave to the kernel."""
        for number, handler in handlers.items():
            self._handlers[number] = (handler, True)

    def handle(self, source: Source) -> None:
        """Receive and answer one notification. Raises only when the listener itself is gone."""
        listener = source.listener
        notification = listener.receive()
        if notification is None:
            return
        identifier, pid, _, nr, _, _, *arguments = notification
        source.handled += 1
        self._source, self._pid, self._nr = source, pid, nr
        calls = self.calls
        calls.listener = listener
        calls.id = identifier
        calls.performing = False
        calls.view.begin(pid)
        try:
            answer = self._answer(nr, arguments)
        except OSError as error:
            listener.reply(identifier, error=error.errno or EACCES)
        except Exception as error:
            # A bug of the mediator is the caller's EACCES, never its permission.
            self._tell(b"", "", "error", EACCES, f"{type(error).__name__}: {error}")
            listener.reply(identifier, error=EACCES)
        else:
            if answer == PROCEED:
                listener.proceed(identifier)
            elif answer != ANSWERED:
                listener.reply(identifier, answer)
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
        before_exec = self._source.before_exec
        if before_exec is not None and nr in self._execs:
            before_exec(self._pid)
        if self._observe:
            self._note(self._source, "attempt", self._pid, nr, b"", "", "", 0, "")
        try:
            return handler(*arguments)
        except Denied:
            raise
        except OSError:
            # What goes wrong before anything was done is the kernel's to say, with its own errno.
            if performs or self.calls.performing:
                raise
            return PROCEED
        except Foreign:
            if performs:
                raise failure(EACCES, "path") from None
            return PROCEED

    def _denied(self, right: str, path: bytes, rule: str, errno: int) -> OSError:
        self._source.denials += 1
        self._tell(path, right, "denied", errno, rule)
        return Denied(errno, rule)

    def _granted_socket(self, path: bytes) -> bool:
        return path in self._sockets

    def _grants(self, path: bytes, right: str) -> bool:
        """Something that is granted holds this."""
        letter = _LETTERS[right]
        return any([letter in letters and under(path, place) for place, letters in self._granted])

    def _outside(self, path: bytes, right: str) -> None:
        """Count what the kernel is about to refuse because nothing grants it."""
        if self._gateway and right == "connect" and not path.startswith(b"/"):
            return  # the gateway's to judge, and to count
        if self._grants(path, right):
            return
        private = path.startswith(_PRIVATE) and not path.startswith(b"/proc/sys") and right != "exec"
        if private and not any([under(path, place) for place in self._beyond]):
            return
        self._source.denials += 1
        self._tell(path, right, "denied", EACCES, "nothing grants it")

    def _tell(self, path: bytes, right: str, verdict: str, errno: int, rule: str) -> None:
        self._note(self._source, "mediation", self._pid, self._nr, path, right, verdict, errno, rule)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
