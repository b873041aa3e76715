"""The broker: the session's one seccomp listener, one notification at a time.

It runs in PID 1 of the session, on the thread in Landlock's outer domain, and must outlive anything that a confined
process does: whatever goes wrong with a call is that call's EACCES. If it dies, every mediated call gets ENOSYS and the
session ends; nothing opens.
"""

from __future__ import annotations

import _thread
import posix
from errno import EACCES, ENOSPC, ENOSYS
from time import monotonic

from remit.sandbox.events.action import HELD, PRIVATE, TAKES_AWAY, UNGRANTED
from remit.sandbox.kernel import network
from remit.sandbox.kernel.call import NR, failure
from remit.sandbox.kernel.notify import Listener
from remit.sandbox.mediate import inside
from remit.sandbox.mediate.attributes import Attributes
from remit.sandbox.mediate.calls import ANSWERED, PROCEED, Calls
from remit.sandbox.mediate.connecting import Connecting
from remit.sandbox.mediate.making import Making
from remit.sandbox.mediate.moving import Moving
from remit.sandbox.mediate.observe import FULL, OFF, WRITES, Observer
from remit.sandbox.mediate.opening import Opening
from remit.sandbox.mediate.processes import Processes
from remit.sandbox.mediate.programs import Programs
from remit.sandbox.mediate.resolve import Foreign, Umasks
from remit.sandbox.mediate.rules import Rules
from remit.sandbox.mediate.shortcut import Shortcut

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias

    from remit.sandbox.kernel.fastpath import Others
    from remit.sandbox.kernel.placement import Placement

    Note: TypeAlias = Callable[..., None]
    Condition: TypeAlias = tuple[int, int, int, bool]

_KINDS = (Opening, Making, Moving, Programs, Connecting, Processes)
_MODES = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2}
_S_ISUID = 0o4000
_LOOPBACK = (b"127.", b"[0:0:0:0:0:0:0:1]:", b"0.0.0.0:", b"[0:0:0:0:0:0:0:0]:", b"[0:0:0:0:0:ffff:7f")
"""A connection to no address at all goes to the own host (``ip(7)``)."""
_LOCALHOST, _LOCALHOST_6, _MAPPED = b"\x7f\0\0\1", bytes(15) + b"\1", bytes(10) + b"\xff\xff"


def brokers_reads(spec: tuple[Any, ...]) -> bool:
    """Whether every open goes to the mediator, for reading too. ``spec``: as for ``Broker``."""
    _, _, _, _, _, _, _, *rest = spec
    return any(rest[:1]) or rest[3:4] == [FULL]


class Denied(OSError):
    """An action outside the grant; already counted."""


class _Asks(Exception):
    """A program asks what was denied to it."""


class Source:
    """Whose calls one listener brings: those of one command and everything it starts, told by the filter they are under."""

    __slots__ = (
        "before_exec",
        "denials",
        "handled",
        "listener",
        "listeners",
        "looked_for",
        "masks",
        "meeting",
        "recent",
        "telling",
    )

    def __init__(self, before_exec: Callable[[int], None] | None = None) -> None:
        self.listener = Listener(-1)
        self.listeners = network.Listeners()
        """Who listens in the network that they are in."""
        self.denials = 0
        """Actions outside the grant."""
        self.looked_for = 0
        """Those that no call of the mediator's was: they are noted, and counted, on another thread."""
        self.recent: list[inside.Recent] = []
        """The last of them."""
        self.masks = False
        """Somebody has called umask(2): until then, all have the one that the command was started with."""
        self.handled = 0
        self.before_exec: Callable[[int], None] | None = before_exec
        """Called with the pid of each process about to execute a program. What it raises (OSError), the program gets."""
        self.telling = _thread.allocate_lock()
        """Held from before a call is decided on until all of it has been noted. Whoever tells how the command ended takes it
        first: so the denials that it counts are all of them."""
        self.meeting = _thread.allocate_lock()
        """The same for the exec of the command itself, which is no denial where the command runs. Whoever reaps the command
        takes it first: its process is there to be asked about, and its end is noted last."""

    def attach(self, listener: int, placement: Placement) -> None:
        """Its notifications come from this descriptor. ``placement``: of the thread that handles them."""
        self.listener.fd = listener
        self.listener.synchronous(placement)


class Broker:
    """Decides, for every source under one authority, and performs.

    ``spec`` is the wire form of ``compile.plan.Mediate``. ``note(source, *action)`` is called with the fields of
    ``events.action.FIELDS``, for what the spec's audit level says. ``umasks``: of a process with several brokers, which
    has one umask for them all.
    """

    def __init__(
        self,
        spec: tuple[Any, ...],
        note: Note,
        lines: Sequence[tuple[str, str, int, str]] = (),
        umasks: Umasks | None = None,
    ) -> None:
        name, roots, deny, protect, catalogue, opened, granted, *rest = spec
        defaults: tuple[Any, ...] = ((), (), (), WRITES, False)
        reads, refuse, outer, level, gateway = (*rest, *defaults[len(rest) :])
        if name != "mediate":
            raise ValueError(f"not a mediation: {name!r}")
        self._lines = lines
        """Where each rule stands: its text, file, line and key."""
        self.held = False
        """The record cannot be written: everything that would be recorded is refused."""
        self._opens = frozenset([NR[call] for call in ("open", "openat", "openat2", "creat") if call in NR])
        self._execs = frozenset([NR[call] for call in ("execve", "execveat") if call in NR])
        self._pid = self._nr = self._errno = 0
        self._source = Source()
        self._gateway = bool(gateway)
        self._sockets = frozenset([_bytes(path) for path, letters in granted if letters == "s"])
        places = tuple([_bytes(root) for root in roots])
        readable = tuple([_bytes(root) for root in reads])
        rules = Rules(places, deny, protect, catalogue, opened)
        beyond = tuple([_bytes(root) for root in outer])
        self._observer = Observer([(_bytes(path), letters) for path, letters in granted], note, level, beyond)
        self.calls = Calls(
            rules,
            places,
            readable,
            beyond,
            self._denied,
            self._outside,
            self._sockets.__contains__,
            lambda path, right: self._observer.verdict(path, right)[0],
            self._observer.identify,
            umasks or Umasks(monotonic),
        )
        self.calls.watches_reads = level == FULL
        self.calls.watches = level != OFF
        self.shortcut = Shortcut(self.calls, self._observer)
        self._handlers: dict[int, tuple[Callable[..., int], bool]] = {}
        for kind in _KINDS:
            for number, handler in kind(self.calls).handlers().items():
                self._handlers[number] = (handler, False)
        self.perform(Attributes(self.calls).handlers())
        self._refused: dict[int, list[tuple[int, tuple[Condition, ...]]]] = {}
        for call, errno, conditions in refuse:
            if call in NR:
                self._refused.setdefault(NR[call], []).append((errno, conditions))
        self._modes = {NR[call]: argument for call, argument in _MODES.items() if call in NR}

    def close(self) -> None:
        """No further call will come. What they are made of refers to them, and where they live nothing is collected."""
        self.shortcut.close()
        self.calls.close()
        self.__dict__.clear()

    def looked_for(self, source: Source, pid: int, path: bytes) -> None:
        """A thread of the source's looks for a secret that is not shown (``launch.hidden``)."""
        self._observer.looked_for(source, pid, path)

    def executed(self, source: Source, when: float, pid: int, start: int, path: bytes) -> tuple[Any, ...] | None:
        """The source's own command was executed at ``when``, which did not ask here: as an action, if that is recorded. On any
        thread."""
        return self._observer.executed(source, when, pid, start, path)

    def perform(self, handlers: dict[int, Callable[..., int]]) -> None:
        """Calls, by number, that these handlers perform or refuse, and never leave to the kernel."""
        for number, handler in handlers.items():
            self._handlers[number] = (handler, True)

    def settle(self, source: Source) -> None:
        """Wait until all that has been let go on is told, on any thread: the source's command has ended."""
        with source.telling:
            self.shortcut.settle()

    def handle(self, source: Source, others: Callable[[], Others] | None = None) -> None:
        """Receive and answer one notification. With ``others``, which makes what else this thread waits for, perhaps those that
        come soon after it. Raises only when the listener itself is gone."""
        listener = source.listener
        if self.shortcut.open and source.before_exec is None and not self.held:
            notification = self.shortcut.receive(source, others)
        else:
            notification = listener.receive()
        if notification is None:
            return
        identifier, pid, _, nr, _, _, *arguments = notification
        source.handled += 1
        self._source, self._pid, self._nr, self._errno = source, pid, nr, 0
        calls = self.calls
        calls.source = source
        calls.id = identifier
        calls.performing = False
        calls.touched.clear()
        calls.view.begin(pid)
        telling = source.telling
        if source.before_exec is not None and nr in self._execs:
            telling = source.meeting
            self._observer.meet_newcomer(pid)
        else:
            self._observer.meet(pid, starting=source.before_exec is not None)
        try:
            # From before the handler: one that gives a descriptor has let the caller go on when it returns.
            with telling:
                self._answer_and_tell(source, identifier, pid, nr, arguments)
        finally:
            if source.before_exec is None:
                self.shortcut.learn(source, nr)
            calls.view.end()
            if nr in self._execs:
                self._observer.executes(pid)

    def _answer_and_tell(self, source: Source, identifier: int, pid: int, nr: int, arguments: list[int]) -> None:
        listener, calls, observer = source.listener, self.calls, self._observer
        try:
            answer = self._answer(nr, arguments)
        except OSError as error:
            if calls.touched:
                observer.identify(pid)
            listener.reply(identifier, error=error.errno or EACCES)
            if calls.touched and not isinstance(error, Denied):
                observer.done(source, pid, nr, calls.touched, error.errno or EACCES, True)
        except Exception as error:
            # A bug of the mediator is the caller's EACCES, never its permission.
            listener.reply(identifier, error=EACCES)
            observer.failed(source, pid, nr, EACCES, f"{type(error).__name__}: {error}")
        else:
            if answer != ANSWERED and (calls.touched or calls.later is not None):
                observer.identify(pid)
            if nr in self._execs and source.before_exec is None:
                observer.date(pid)  # one that can execute nothing may end at once
            if answer == PROCEED:
                listener.proceed(identifier)
            elif answer != ANSWERED:
                listener.reply(identifier, answer)
            # After the answer: the caller need not wait for its record.
            calls.look()
            if calls.touched:
                observer.done(source, pid, nr, calls.touched, self._errno, answer != PROCEED)

    def _answer(self, nr: int, arguments: list[int]) -> int:
        if self.held and nr != NR.get("umask"):
            raise self._denied("call", b"", HELD, ENOSPC)
        rows = self._refused.get(nr)
        if rows is not None:
            for errno, conditions in rows:
                for index, mask, value, equal in conditions:
                    if (arguments[index] & mask == value) is not equal:
                        break
                else:
                    # A directory may be setgid: the handler looks at what it is.
                    if nr in self._modes and not arguments[self._modes[nr]] & _S_ISUID:
                        continue
                    names = self._observer.names(nr, arguments, self.calls.view)
                    right, path = ("setuid", names[0][0]) if names else ("call", b"")
                    raise self._denied(right, path, f"system call {nr} is refused", errno)
        found = self._handlers.get(nr)
        if found is None:
            raise self._denied("call", b"", f"system call {nr} is not mediated", ENOSYS)
        handler, performs = found
        before_exec = self._source.before_exec
        if before_exec is not None and nr in self._execs:
            before_exec(self._pid)
        try:
            return handler(*arguments)
        except Denied:
            raise
        except OSError as error:
            # What goes wrong before anything was done is the kernel's to say, with its own errno.
            if performs or self.calls.performing:
                raise
            self._errno = error.errno or EACCES
            if self.calls.touched:
                return PROCEED
            try:
                self._unresolved(nr, arguments)
            except _Asks:
                return self._show()
            return PROCEED
        except _Asks:
            return self._show()
        except Foreign:
            if performs:
                raise failure(EACCES, "path") from None
            return PROCEED

    def _show(self) -> int:
        """The program's own denials, instead of a file."""
        stand = {
            text.removeprefix(TAKES_AWAY): f"{file}:{line}" if line else file
            for text, file, line, _ in self._lines
            if text.startswith(TAKES_AWAY)
        }
        content = inside.opened(
            inside.text(self._source.recent, stand, known=self.calls.watches, gateway=self._gateway)
        )
        self.calls.touched.clear()
        try:
            self._source.listener.give(self.calls.id, content, cloexec=False)
        finally:
            posix.close(content)
        return ANSWERED

    def _denied(self, right: str, path: bytes, rule: str, errno: int) -> OSError:
        self._source.denials += 1
        layer = "seccomp" if right == "call" else "mediation"
        self._observer.denied(self._source, self._pid, self._nr, path, right, layer, errno, rule)
        return Denied(errno, rule)

    def _outside(self, path: bytes, right: str, errno: int = 0) -> None:
        """The kernel is about to decide, by mounts and Landlock: count what it will refuse, because nothing grants it.

        ``errno``: what it will say where something does. Raises _Asks for the name that asks.
        """
        if path == inside.PLACE and right == "write" and self._nr in self._opens:
            raise _Asks
        if self._gateway and right == "connect" and not path.startswith((b"/", *_LOOPBACK)):
            # The gateway's to judge, and to count; but only here it is known who asks.
            self._observer.relayed(self._source, self._pid, self._nr, path)
            return
        if right in ("signal", "trace"):
            known = path.startswith(b"own ")
            path = path.removeprefix(b"own ")
            allowed, rule, layer = known, PRIVATE if known else UNGRANTED, "" if known else "namespaces"
        elif right == "bind" or path.startswith(_LOOPBACK):
            # Where nobody listens inside, whoever connects means somebody else.
            allowed = right == "bind" or self._source.listeners.hear(*_own_end(path))
            rule, layer = (PRIVATE, "") if allowed else (UNGRANTED, "namespaces")
        else:
            allowed, rule, layer = self._observer.verdict(path, right)
            if not allowed and right != "read":
                self._source.denials += 1
        if allowed and errno:
            self._observer.done(self._source, self._pid, self._nr, [(path, right)], errno, performed=False)
            return
        self._observer.proceeding(
            self._source, self._pid, self._nr, path, right, allowed=allowed, layer=layer, rule=rule
        )

    def _unresolved(self, nr: int, arguments: list[int]) -> None:
        """A name that leads nowhere inside may be one that no grant shows."""
        for path, right in self._observer.names(nr, arguments, self.calls.view):
            if path == inside.PLACE and right == "write" and nr in self._opens:
                raise _Asks
            allowed, rule, layer = self._observer.verdict(path, right)
            if allowed:
                self.calls.touched.append((path, right))
            else:
                self._observer.proceeding(
                    self._source, self._pid, self._nr, path, right, allowed=False, layer=layer, rule=rule
                )


def _own_end(path: bytes) -> tuple[bytes, int]:
    """Address and port of a place on the own host, as ``Calls`` spells it."""
    host, _, port = path.rpartition(b":")
    if not host.startswith(b"["):
        four = bytes([int(part) for part in host.split(b".")])
        return (four if any(four) else _LOCALHOST), int(port)
    six = b"".join([int(word, 16).to_bytes(2, "big") for word in host[1:-1].split(b":")])
    if six.startswith(_MAPPED):
        return six[len(_MAPPED) :], int(port)
    return (six if any(six) else _LOCALHOST_6), int(port)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
