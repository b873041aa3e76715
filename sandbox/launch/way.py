"""A session's way out, seen from the launcher: sockets of its namespace, and the gateway that takes them over.

The gateway starts with the first packet that wants out: until then the launcher holds the sockets, and only watches
them. Most commands connect nowhere, and a gateway costs what a whole session does (an interpreter, its memory). What
connects meanwhile waits in the backlog. The gateway is the session's: it ends with it, and when it dies first, the
session has no network.
"""

from __future__ import annotations

import marshal
import posix
import select
import sys
from errno import EADDRINUSE, ECONNRESET, EMSGSIZE

from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.egress import wire
from remit.sandbox.kernel import process, sockets
from remit.sandbox.kernel.call import failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from remit.sandbox.launch.request import Identity
    from remit.sandbox.launch.wire import Operation

_SOL_SOCKET, _SO_REUSEADDR = 1, 2
_BACKLOG = 128
_SIGKILL = 9
_HERE = __file__.rpartition("/remit/sandbox/")[0]
_PATIENCE_MS = 1000


class Way:
    """One gateway. ``on_event`` is called with the fields of ``egress.wire.EVENT``."""

    def __init__(self, operation: Operation, who: Identity, on_event: Callable[[tuple[object, ...]], None]) -> None:
        """Bind what is published. Raises LaunchError."""
        _, self._rules, _udp, published, _filter = operation
        self._who = who
        self._on_event = on_event
        self.control = -1
        self.pid = 0
        self.ready = False
        self.denials = 0
        self.problem = ""
        self._waiting: list[tuple[tuple[wire.Role, ...], list[int]]] = []
        if published:
            roles = tuple([(wire.PUBLISHED, inner) for _, _, inner in published])
            self._waiting.append((roles, [_publish(*one) for one in published]))

    def hold(self, roles: tuple[wire.Role, ...], descriptors: list[int]) -> None:
        """Keep sockets of the session's namespace until something arrives at one of them."""
        self._waiting.append((roles, descriptors))
        if self.control >= 0:
            self._hand_over()

    def watched(self) -> list[int]:
        """The sockets at which the first packet can arrive: those that are held, but for the unconnected ones."""
        return [
            descriptor
            for roles, descriptors in self._waiting
            for (role, _), descriptor in zip(roles, descriptors, strict=True)
            if role != wire.PUBLISH
        ]

    def start(self) -> None:
        """Start the gateway, tell it the rules, and give it what is held. A failure is its death: see ``problem``."""
        self.control, inside = sockets.packet_pair()
        try:
            process.close_range(3, 0xFFFFFFFF, on_exec=True)  # nothing of the caller's comes along
            self.pid = _start(inside, self._who)
        except OSError as error:
            self.problem = f"it could not be started: {error.strerror}"
        finally:
            posix.close(inside)
        try:
            _send(self.control, (wire.CONFIG, "", {"rules": self._rules}), [])
        except OSError as error:
            self.problem = self.problem or f"it could not be told the rules: {error.strerror}"
        self._hand_over()

    def _hand_over(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            for roles, descriptors in waiting:
                _send(self.control, (wire.LISTEN, "", (), roles), descriptors)
        except OSError as error:
            # It has died already: its end of the control socket says so too.
            self.problem = self.problem or f"it could not be given its sockets: {error.strerror}"
        finally:
            for _, descriptors in waiting:
                for descriptor in descriptors:
                    posix.close(descriptor)

    def report(self) -> bool:
        """Read one message. False: the gateway is gone."""
        try:
            data = posix.read(self.control, wire.MESSAGE_SIZE)
        except OSError as error:
            if error.errno != ECONNRESET:
                raise
            data = b""
        if not data:
            self.problem = self.problem or "it ended by itself"
            return False
        kind, *values = marshal.loads(data)
        if kind == wire.READY:
            self.ready = True
        elif kind == wire.FAILED:
            self.problem = str(values[0])
        elif kind == wire.EVENT_KIND:
            if values[3] == "denied":
                self.denials += 1
            self._on_event(tuple(values))
        return True

    def close(self) -> None:
        """End the gateway, and hear what it still has to say."""
        for _, descriptors in self._waiting:
            for descriptor in descriptors:
                posix.close(descriptor)
        if self.control < 0:
            return
        if self.ready and not self.problem:
            try:
                sockets.end_writing(self.control)
            except OSError:
                pass
            poll = select.poll()
            poll.register(self.control, select.POLLIN)
            while poll.poll(_PATIENCE_MS) and self.report():
                pass
        posix.close(self.control)
        if self.pid and not posix.waitpid(self.pid, posix.WNOHANG)[0]:
            # It had its time to say what happened; a gateway that hangs does not keep a session from ending.
            posix.kill(self.pid, _SIGKILL)
            posix.waitpid(self.pid, 0)


def _send(control: int, message: tuple[Any, ...], descriptors: list[int]) -> None:
    data = marshal.dumps(message)
    if len(data) > wire.MESSAGE_SIZE:
        raise failure(EMSGSIZE, "gateway")
    if descriptors:
        sockets.send_descriptors(control, data, descriptors)
    else:
        posix.write(control, data)


def _publish(host: str, port: int, _inner: int) -> int:
    family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
    listener = sockets.internet(family, sockets.STREAM)
    try:
        sockets.option(listener, _SOL_SOCKET, _SO_REUSEADDR, 1)
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
    argv += [path.encode(errors="surrogateescape") for path in sys.path if path.startswith("/")]
    null = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
    try:
        if posix.geteuid() != 0:
            return process.spawn(
                program, argv, [], directory=b"/", descriptors=(null, null, null, control), new_group=True
            )
        return _start_as(who, argv, null, control)
    finally:
        posix.close(null)


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
