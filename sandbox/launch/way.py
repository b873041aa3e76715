"""A session's way out, seen from the launcher: sockets of its namespace, and the gateway that takes them over.

The gateway starts with the first packet that wants out: until then the launcher holds the sockets, and only watches
them. Most commands connect nowhere, and a gateway costs what a whole session does (an interpreter, its memory). What
connects meanwhile waits in the backlog. Where requests are read (a plan's ``Web``), it starts at once: it makes the
certificates that the session's file system has to show. The gateway is the session's: it ends with it, and when it dies
first, the session has no network.
"""

from __future__ import annotations

import marshal
import posix
import select
import sys
from errno import EADDRINUSE, EMSGSIZE

from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.egress import inside, wire
from remit.sandbox.kernel import process, sockets
from remit.sandbox.kernel.call import failure
from remit.sandbox.kernel.spawn import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, TypeAlias

    from remit.sandbox.launch.request import Identity
    from remit.sandbox.launch.wire import Operation

    Events: TypeAlias = list[tuple[object, ...]] | str
    _Source: TypeAlias = tuple[str, tuple[wire.Rule, ...], tuple[wire.Role, ...], tuple[str, ...], list[int]]
    """(call, its rules, what the sockets are for, the placeholders' variables that it has, the sockets)."""

SOCKETS = inside.SOCKETS
"""The kind of the message that brings them. Its module is imported before the fork, because of this: what is forked has
nothing to import from once it is in its new root."""

_SOL_SOCKET, _SO_REUSEADDR = 1, 2
_BACKLOG = 128
_SIGKILL = 9
_HERE = __file__.rpartition("/remit/sandbox/")[0]
_PATIENCE_MS = 3000
"""For which a gateway that is to end may be silent: on a machine that is busy, it may not run for a second."""
_HEARD = 4096
"""Messages that are read at a time: more than fit into a socket."""
_GATHER_MS = 5
"""As the mediator's actions: the record is that much behind at most."""
_LIMITS = {"connections": "connections", "traffic": "bytes", "connection-time": "time"}
"""A limit's name, and what the gateway calls it (``wire``)."""


class Way:
    """One session's way out. ``on_events`` is called with tuples of the fields of ``egress.wire.EVENT``, or with a text: why
    the gateway is gone."""

    def __init__(self, operations: Sequence[Operation], who: Identity, on_events: Callable[[Events], None]) -> None:
        """Bind what is published. Raises LaunchError."""
        found = {operation[0]: operation for operation in operations}
        _, rules, _udp, published, *_filters, _variables = found["egress"]
        limits = {_LIMITS[what]: value for _, what, value, _ in _limits(operations)}
        self._options: dict[str, Any] = {"rules": rules, "limits": limits}
        self._web = "web" in found
        self._certificate: bytes | str | None = None if self._web else b""
        self._awaited: list[Callable[[bytes | str], object]] = []
        if self._web:
            self._options["http"] = found["web"][1]
        self._who = who
        self._on_events = on_events
        self._control = self._timer = -1
        self._ears: select.poll | None = None
        """The control socket alone."""
        self._pauses = False
        """The loop waits for the timer, and not for the control socket."""
        self._pid = 0
        self._ready = False
        self._dead = False
        self._problem = ""
        self.denials = self._told = 0
        self._waiting: list[_Source] = []
        self._watched: set[int] = set()
        if published:
            roles = tuple([(wire.PUBLISHED, inner) for _, _, inner in published])
            self._waiting.append(("", (), roles, (), [_publish(*one) for one in published]))

    def begin(self, secrets: Callable[[], int] | None) -> None:
        """The child is there. Start the gateway now, where it has to make certificates. Raises LaunchError."""
        if self._web:
            secret = secrets() if secrets is not None else -1
            try:
                self._start(secret)
            finally:
                if secret >= 0:
                    posix.close(secret)
            self._hand_over()

    # --- in a loop -------------------------------------------------------------------------------------------------

    def watch(self, poll: select.poll) -> None:
        """Wait for the first packet that wants out or, at a published port, in."""
        if self._control >= 0 and not self._dead:
            poll.register(self._control, select.POLLIN)
        for _, _, roles, _, descriptors in self._waiting:
            for (role, _), descriptor in zip(roles, descriptors, strict=True):
                if role != wire.PUBLISH and descriptor not in self._watched:
                    self._watched.add(descriptor)
                    poll.register(descriptor, select.POLLIN)

    def owns(self, descriptor: int) -> bool:
        """Whether ``ready`` is to be called for it."""
        return descriptor in (self._control, self._timer) or descriptor in self._watched

    def ready(self, descriptor: int, poll: select.poll) -> None:
        """Something can be read there."""
        if descriptor in self._watched:
            self._unwatch(poll)
            self._start()
            poll.register(self._control, select.POLLIN)
            self._hand_over()
            return
        before = self._told
        if not self._listen():
            self._leave(poll)
            self._dead = True
            self._problem = self._problem or "it ended by itself"
            self._on_events(self._problem)
            self._certify(self._problem)
        elif self._told != before:
            self._pause(poll)
        elif self._pauses:
            self._pauses = False
            poll.unregister(self._timer)
            poll.register(self._control, select.POLLIN)

    def hear(self) -> None:
        """What the gateway has said until now, without waiting: so that a call's denials are told before its end. It says
        what it refuses before the program can know of it."""
        if self._control >= 0 and not self._dead:
            self._listen()  # the gateway's end is for the loop to see, which reads the same again

    def _pause(self, poll: select.poll) -> None:
        """Listen again a little later, to several connections at once: to be woken for each is two fifths of what a
        connection costs here."""
        if self._timer < 0:
            self._timer = process.timer()
        process.set_timer(self._timer, _GATHER_MS)
        if not self._pauses:
            self._pauses = True
            poll.unregister(self._control)
            poll.register(self._timer, select.POLLIN)

    def hold(
        self,
        roles: tuple[wire.Role, ...],
        descriptors: list[int],
        poll: select.poll,
        call: str = "",
        rules: tuple[wire.Rule, ...] = (),
        variables: tuple[str, ...] = (),
    ) -> None:
        """Take sockets of the session's namespace, or of a call's own with its own rules."""
        self._waiting.append((call, rules, roles, variables, descriptors))
        if self._control >= 0:
            self._hand_over()
        else:
            self.watch(poll)

    def drop(self, call: str, poll: select.poll) -> None:
        """A call is over: its sockets and connections end."""
        gone = [source for source in self._waiting if source[0] == call]
        self._waiting = [source for source in self._waiting if source[0] != call]
        for *_, descriptors in gone:
            for descriptor in descriptors:
                if descriptor in self._watched:
                    self._watched.discard(descriptor)
                    poll.unregister(descriptor)
                posix.close(descriptor)
        if self._control >= 0 and not self._dead:
            try:
                _send(self._control, (wire.CLOSE, call), [])
            except OSError:
                pass  # it is dying

    def leave(self, poll: select.poll) -> None:
        """The loop has no more to do with it: ``close`` comes next."""
        self._unwatch(poll)
        if self._control >= 0 and not self._dead:
            self._leave(poll)

    def _leave(self, poll: select.poll) -> None:
        poll.unregister(self._timer if self._pauses else self._control)

    def _unwatch(self, poll: select.poll) -> None:
        for descriptor in self._watched:
            poll.unregister(descriptor)
        self._watched.clear()

    # --- the gateway -----------------------------------------------------------------------------------------------

    def _start(self, secret: int = -1) -> None:
        """Start the gateway and tell it the rules. A failure is its death: the control socket's other end is closed."""
        self._control, theirs = sockets.packet_pair()
        try:
            process.close_range(3, 0xFFFFFFFF, on_exec=True)  # nothing of the caller's comes along
            self._pid = _start(theirs, self._who)
        except OSError as error:
            self._problem = f"it could not be started: {error.strerror}"
        finally:
            posix.close(theirs)
        try:
            _send(self._control, (wire.CONFIG, "", self._options), [secret] if secret >= 0 else [])
        except OSError as error:
            self._problem = self._problem or f"it could not be told the rules: {error.strerror}"

    def _hand_over(self) -> None:
        """Give the gateway what is held, and keep no copy: with it they end."""
        waiting, self._waiting = self._waiting, []
        try:
            for call, rules, roles, variables, descriptors in waiting:
                _send(self._control, (wire.LISTEN, call, rules, roles, variables), descriptors)
        except OSError as error:
            # It has died: its end of the control socket says so too.
            self._problem = self._problem or f"it could not be given its sockets: {error.strerror}"
        finally:
            for *_, descriptors in waiting:
                for descriptor in descriptors:
                    posix.close(descriptor)

    def _listen(self) -> bool:
        """Read what there is. False: the gateway is gone."""
        if self._ears is None:
            self._ears = select.poll()
            self._ears.register(self._control, select.POLLIN)
        events: list[tuple[object, ...]] = []
        lives = True
        for _ in range(_HEARD):
            if not self._ears.poll(0):
                break
            lives = self._read(events)
            if not lives:
                break
        if events:
            self._told += len(events)
            self.denials += len([event for event in events if event[3] == "denied"])
            self._on_events(events)
        return lives

    def _read(self, events: list[tuple[object, ...]]) -> bool:
        """Read one message; its events are added. False: the gateway is gone."""
        try:
            data = posix.read(self._control, wire.MESSAGE_SIZE)
        except ConnectionResetError:
            # It closed with something unread, which is told before its last words.
            data = posix.read(self._control, wire.MESSAGE_SIZE)
        if not data:
            return False
        kind, *values = marshal.loads(data)
        if kind == wire.READY:
            self._ready = True
            self._certify(values[0])
        elif kind == wire.FAILED:
            self._problem = str(values[0])
        elif kind == wire.EVENTS:
            events += values[0]
        return True

    def certified(self, then: Callable[[bytes | str], object]) -> None:
        """Call ``then`` as soon as the gateway has made what it had to: with its certificate, b"" where it needs none, or
        why there is none."""
        if self._certificate is None:
            self._awaited.append(then)
        else:
            then(self._certificate)

    def _certify(self, made: bytes | str) -> None:
        if self._certificate is None:
            self._certificate = made
            for then in self._awaited:
                then(made)
            self._awaited = []

    def close(self) -> None:
        """End the gateway, and hear what it still has to say."""
        for *_, descriptors in self._waiting:
            for descriptor in descriptors:
                posix.close(descriptor)
        self._waiting = []
        if self._control < 0:
            return
        if self._ready and not self._dead:
            try:
                sockets.end_writing(self._control)
            except OSError:
                pass
            poll = select.poll()
            poll.register(self._control, select.POLLIN)
            while poll.poll(_PATIENCE_MS) and self._listen():
                pass
        posix.close(self._control)
        if self._timer >= 0:
            posix.close(self._timer)
        if self._pid and not posix.waitpid(self._pid, posix.WNOHANG)[0]:
            # It had its time to say what happened; a gateway that hangs does not keep a session from ending.
            posix.kill(self._pid, _SIGKILL)
            posix.waitpid(self._pid, 0)


def _limits(operations: Iterable[Operation]) -> list[Operation]:
    return [operation for operation in operations if operation[0] == "limit" and operation[3] == "gateway"]


def _send(control: int, message: tuple[Any, ...], descriptors: list[int]) -> None:
    data = marshal.dumps(message)
    if len(data) > wire.MESSAGE_SIZE:
        raise failure(EMSGSIZE, "gateway")
    sockets.send(control, data, tuple(descriptors))


def _publish(host: str, port: int, _inner: int) -> int:
    family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
    listener = sockets.internet(family, sockets.STREAM)
    try:
        sockets.option(listener, _SOL_SOCKET, _SO_REUSEADDR, 1)
        sockets.undelayed(listener)
        sockets.bind(listener, family, sockets.packed(host), port)
        sockets.listen(listener, _BACKLOG)
    except OSError as error:
        hint = "another program listens there; choose another port" if error.errno == EADDRINUSE else ""
        raise LaunchError(
            f"{host}:{port} cannot be published: {error.strerror}", where="--publish", hint=hint
        ) from None
    return listener


def _start(control: int, who: Identity) -> int:
    program = sys.executable.encode(errors="surrogateescape")
    code = wire.GATEWAY.encode()
    argv = [program, b"-I", b"-S", b"-X", b"utf8", b"-c", code, _HERE.encode(errors="surrogateescape"), b"3"]
    argv += [path.encode(errors="surrogateescape") for path in _sites()]
    null = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
    process.compete()  # it inherits that
    try:
        if posix.geteuid() != 0:
            return spawn(program, argv, [], directory=b"/", descriptors=(null, null, null, control), new_group=True)
        return _start_as(who, argv, null, control)
    finally:
        posix.close(null)
        # This process writes down what the gateway says: any CPU that is free will do.
        process.stand_back()


def _sites() -> list[str]:
    """Where this interpreter's libraries are: what it found itself, then its environment's, then its base's."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    prefix = sys.executable.rpartition("/")[0].rpartition("/")[0]
    found = [path for path in sys.path if path.startswith("/")]
    for base in (prefix, sys.base_prefix):
        found += [f"{base}/lib/{version}/site-packages", f"{base}/lib/{version}/dist-packages"]
        found.append(f"{base}/lib/python3/dist-packages")
    return list(dict.fromkeys(found))


def _start_as(who: Identity, argv: list[bytes], null: int, control: int) -> int:
    """As root: the gateway talks to the world, so it is the user that the session runs as."""
    child = process.clone3(0)
    if child:
        return child
    try:
        control = posix.dup2(control, 3) if control != 3 else control
        posix.set_inheritable(control, True)
        for number in (0, 1, 2):
            posix.dup2(null, number)
        posix.setpgid(0, 0)  # a signal from the keyboard is not for the gateway
        posix.setgroups([])
        posix.setresgid(who.gid, who.gid, who.gid)
        posix.setresuid(who.uid, who.uid, who.uid)
        process.no_new_privileges()
        posix.chdir("/")
        posix.execve(argv[0], argv, {})
    finally:
        process.leave(125)
