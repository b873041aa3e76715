"""A session's way out, seen from the launcher: the gateway's process, its sockets, what it reports.

The gateway is spawned beside the stage and starts while the session is built; what connects meanwhile waits in the
backlog of its sockets. It is the session's: it ends with it, and when it dies first, the session has no network.
"""

from __future__ import annotations

import marshal
import posix
import select
import sys
from errno import EADDRINUSE, ECONNRESET, EPIPE

from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.egress import wire
from remit.sandbox.kernel import process, sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

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
        """Bind what is published, start the process, tell it the rules. Raises LaunchError."""
        _, rules, _udp, published, _loopback = operation
        self._on_event = on_event
        self.alive = True
        self.ready = False
        self.denials = 0
        self.problem = ""
        listeners = [_publish(*one) for one in published]
        self.control, inside = sockets.packet_pair()
        process.close_range(3, 0xFFFFFFFF, on_exec=True)  # nothing of the caller's comes along
        try:
            self.pid = _start(inside, who)
        except OSError as error:
            raise LaunchError(f"the gateway could not be started: {error.strerror}", hint="see 'remit doctor'") from None
        finally:
            posix.close(inside)
        self._send((wire.CONFIG, "", {"rules": rules}))
        if listeners:
            roles = tuple([(wire.PUBLISHED, inner) for _, _, inner in published])
            self.listen(roles, listeners)

    def listen(self, roles: tuple[wire.Role, ...], descriptors: list[int], call: str = "") -> None:
        """Give sockets to the gateway, and keep no copy: with it they end."""
        try:
            sockets.send_descriptors(self.control, marshal.dumps((wire.LISTEN, call, (), roles)), descriptors)
        except OSError as error:
            if error.errno not in (EPIPE, ECONNRESET):
                raise
            # It has died: its end of the control socket says so.
        finally:
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
            self.alive = False
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
        if self.alive:
            try:
                sockets.end_writing(self.control)
            except OSError:
                pass
            poll = select.poll()
            poll.register(self.control, select.POLLIN)
            while poll.poll(_PATIENCE_MS) and self.report():
                pass
        posix.close(self.control)
        if not posix.waitpid(self.pid, posix.WNOHANG)[0]:
            # It had its time to say what happened; a gateway that hangs does not keep a session from ending.
            posix.kill(self.pid, _SIGKILL)
            posix.waitpid(self.pid, 0)

    def _send(self, message: wire.Config) -> None:
        data = marshal.dumps(message)
        if len(data) > wire.MESSAGE_SIZE:
            raise LaunchError("more network rules than a gateway takes", hint="grant networks or *.names, not each host")
        posix.write(self.control, data)


def _publish(host: str, port: int, _inner: int) -> int:
    family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
    listener = sockets.internet(family, sockets.STREAM)
    try:
        sockets.option(listener, _SOL_SOCKET, _SO_REUSEADDR, 1)
        sockets.bind(listener, family, sockets.packed(host), port)
        sockets.listen(listener, _BACKLOG)
    except OSError as error:
        hint = "another program listens there; choose another port" if error.errno == EADDRINUSE else ""
        raise LaunchError(f"{host}:{port} cannot be published: {error.strerror}", where="--publish", hint=hint) from None
    return listener


def _start(control: int, who: Identity) -> int:
    program = sys.executable.encode(errors="surrogateescape")
    code = wire.GATEWAY.encode()
    argv = [program, b"-I", b"-S", b"-X", b"utf8", b"-c", code, _HERE.encode(errors="surrogateescape"), b"3"]
    argv += [path.encode(errors="surrogateescape") for path in sys.path if path.startswith("/")]
    null = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
    try:
        if posix.geteuid() != 0:
            return process.spawn(program, argv, [], directory=b"/", descriptors=(null, null, null, control), new_group=True)
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
