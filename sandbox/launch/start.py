"""Start a session from a plan, stay its parent, and say how it ended.

The launcher is single-threaded, imports little, and is itself not trusted by what runs inside: it is outside of every
namespace, reachable by no descriptor but a terminal's master and one socket.
"""

from __future__ import annotations

import marshal
import posix
import select
from errno import ECONNRESET

from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.kernel import memory, process, sockets
from remit.sandbox.launch.request import Identity, Request
from remit.sandbox.launch.stage import Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from remit.sandbox.launch.cgroups import Groups
    from remit.sandbox.launch.request import Terminal
    from remit.sandbox.launch.terminal import Relay
    from remit.sandbox.launch.way import Way
    from remit.sandbox.launch.wire import Operation, Wire

SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGTERM = 1, 2, 3, 10, 12, 14, 15
SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGWINCH = 18, 19, 20, 21, 22, 28
SIGKILL = 9
FORWARDED = (SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGTERM, SIGCONT, SIGTSTP, SIGWINCH)
_SIGINFO_SIZE = 128
_MESSAGE_SIZE = 1 << 14
_GO = b"go"


class Outcome:
    """How a session ended. ``status`` is a wait status, or None where a limit ended it; ``limit`` names that limit."""

    __slots__ = ("denials", "enforcement", "limit", "status")

    def __init__(self, status: int | None, limit: str, denials: int, enforcement: Mapping[str, str]) -> None:
        self.status = status
        self.limit = limit
        self.denials = denials
        self.enforcement = enforcement


class Session:
    """A running session, seen from its parent."""

    def __init__(
        self,
        wire: Wire,
        *,
        argv: list[bytes],
        environment: list[bytes],
        directory: str,
        canary: tuple[str, bytes],
        on_event: Callable[[tuple[object, ...]], None],
        on_start: Callable[[Mapping[str, str]], None],
        pty: bool = True,
    ) -> None:
        self._on_event = on_event
        self._on_start = on_start
        self._terminal: Terminal | None = None
        self._relay: Relay | None = None
        if pty and (posix.isatty(0) or posix.isatty(1) or posix.isatty(2)):
            from remit.sandbox.launch import terminal

            self._terminal = terminal.wanted()
        self._outcome: Outcome | None = None
        self._enforcement: Mapping[str, str] = {}
        _, _, workspace, degraded, _, operations = wire
        who = _identity(workspace, operations)
        outside, inside = sockets.packet_pair()
        self._control = outside
        # Blocked before the fork: a signal that came between would end a launcher whose child nobody waits for.
        process.block_signals(FORWARDED)
        self._signals = process.signalfd(FORWARDED)
        request = Request(
            operations=operations,
            idmapped=who.idmapped,
            control=inside,
            uid=who.uid,
            gid=who.gid,
            self_map=who.self_map,
            stack_strings=memory.own_strings(),
            canary=canary,
            argv=argv,
            environment=environment,
            directory=directory.encode(errors="surrogateescape"),
            terminal=self._terminal,
            degraded=degraded,
        )
        flags = 0
        for operation in operations:
            if operation[0] == "unshare":
                for kind in operation[1]:
                    flags |= process.NAMESPACES[kind]
        self._way: Way | None = None
        self._watched: tuple[int, ...] = ()
        self._groups: Groups | None = None
        if any([op[0] == "limit" and op[3] == "cgroup" for op in operations]):
            from remit.sandbox.launch import cgroups

            self._groups = cgroups.make([op for op in operations if op[0] == "limit"])
        self._open_way(operations, who)
        ready = who.self_map and self._groups is None
        if ready:
            posix.write(self._control, _GO)  # nothing is left to do from outside: the child need not wait for it
        try:
            self.pid = process.clone3(flags)
        except OSError as error:
            raise LaunchError(
                f"no new namespaces: {error.strerror}",
                hint="'remit doctor' says what refuses them and how to allow them",
            ) from None
        if self.pid == 0:
            _run_stage(request, inside)
        posix.close(inside)
        for descriptor in who.idmapped.values():
            posix.close(descriptor)
        if ready:
            return
        try:
            if not who.self_map and flags & process.CLONE_NEWUSER:
                who.write_maps(self.pid)
            if self._groups is not None:
                self._groups.add(self.pid)
        except OSError as error:
            self.kill()
            raise LaunchError(
                f"the new process could not be set up: {error.strerror}", hint="see 'remit doctor'"
            ) from None
        posix.write(self._control, _GO)

    def _open_way(self, operations: Sequence[Operation], who: Identity) -> None:
        for operation in operations:
            if operation[0] == "egress":
                # Both before the fork: the stage has nothing to import from once it is in its new root.
                from remit.sandbox.egress import inside  # noqa: F401
                from remit.sandbox.launch.way import Way

                self._way = Way(operation, who, lambda event: self._on_event(("gateway", *event)))

    def kill(self) -> None:
        """End everything inside, now."""
        posix.kill(self.pid, SIGKILL)

    def wait(self) -> Outcome:
        """Relay, forward and listen until the session has ended. Raises LaunchError where the command never ran."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._signals, select.POLLIN)
        way = self._way
        if way is not None:
            self._watch(way, poll)
        try:
            while self._outcome is None:
                relay = self._relay
                if relay is not None:
                    poll.register(relay.master, select.POLLIN | (select.POLLOUT if relay.blocked else 0))
                for descriptor, events in poll.poll():
                    if descriptor == self._control:
                        self._report(poll)
                    elif descriptor == self._signals:
                        self._forward()
                    elif way is not None and descriptor == way.control:
                        if not way.report():
                            poll.unregister(descriptor)
                            self._on_event(("gateway", way.problem))
                    elif way is not None and descriptor in self._watched:
                        for one in self._watched:
                            poll.unregister(one)
                        self._watched = ()
                        way.start()
                        poll.register(way.control, select.POLLIN)
                    elif relay is not None and descriptor == relay.master:
                        if events & select.POLLOUT:
                            relay.flush()
                        if events & (select.POLLIN | select.POLLHUP) and not relay.output():
                            poll.unregister(relay.master)
                            self._close_relay(poll)
                    elif relay is not None and descriptor == relay.source and not relay.keys():
                        poll.unregister(descriptor)
        finally:
            if self._relay is not None:
                while self._relay.output() and self._readable(self._relay.master):
                    pass
                self._relay.suspend()
        if self._groups is not None and not self._outcome.limit and self._groups.out_of_memory():
            self._outcome.limit = "memory"
        return self._outcome

    @property
    def network_denials(self) -> int:
        """What the gateway refused. All of it only after ``close``."""
        return self._way.denials if self._way is not None else 0

    def close(self) -> None:
        """Wait until everything inside is gone, and take away what was made outside for it."""
        posix.close(self._control)  # a first process that still waits for its launcher ends now
        posix.waitpid(self.pid, 0)
        if self._way is not None:
            self._way.close()
        if self._groups is not None:
            self._groups.remove()

    @staticmethod
    def _readable(descriptor: int) -> bool:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def _close_relay(self, poll: select.poll) -> None:
        relay = self._relay
        if relay is not None:
            if relay.source >= 0:
                try:
                    poll.unregister(relay.source)
                except KeyError:
                    pass
            relay.suspend()
            self._relay = None

    def _report(self, poll: select.poll) -> None:
        try:
            data, came = sockets.receive_all(self._control, _MESSAGE_SIZE)
        except OSError as error:
            if error.errno == ECONNRESET:
                return  # it ended with a signal of ours unread; what it said before comes next
            raise
        if not data:
            raise LaunchError(
                "the session's first process died", hint="nothing inside survived it; 'remit doctor' may say why"
            )
        if data == b"terminal":
            assert self._terminal is not None
            from remit.sandbox.launch.terminal import Relay

            self._relay = Relay(self._terminal, came[0])
            if self._relay.source >= 0:
                poll.register(self._relay.source, select.POLLIN)
            return
        kind, *values = marshal.loads(data)
        if kind == "sockets":
            assert self._way is not None
            self._way.hold(values[0], came)
            self._watch(self._way, poll)
        elif kind == "event":
            self._on_event(tuple(values))
        elif kind == "started":
            self._enforcement = values[1]
            self._on_start(self._enforcement)
        elif kind == "stopped":
            self._stop(values[0])
        elif kind == "exited":
            self._outcome = Outcome(values[0], values[1], values[2], self._enforcement)
        elif kind == "failed":
            phase, message, hint, status = values
            failure = LaunchError(message, hint=hint)
            failure.phase, failure.exit_status = phase, status
            raise failure

    def _watch(self, way: Way, poll: select.poll) -> None:
        """Wait for the first packet that wants out (or, at a published port, in)."""
        self._watched = tuple(way.watched())
        for descriptor in self._watched:
            poll.register(descriptor, select.POLLIN)

    def _forward(self) -> None:
        try:
            data = posix.read(self._signals, _SIGINFO_SIZE * 16)
        except BlockingIOError:
            return
        for start in range(0, len(data), _SIGINFO_SIZE):
            number = int.from_bytes(data[start : start + 4], "little")
            if number == SIGWINCH:
                if self._relay is not None:
                    self._relay.resize()
                continue
            # SIGTSTP too: the launcher stops when it hears that the command has, which may catch the signal.
            self._signal(number)

    def _signal(self, number: int) -> None:
        try:
            posix.write(self._control, b"s" + number.to_bytes(4, "little"))
        except OSError:
            pass  # it is ending; what it has to say comes first

    def _stop(self, _number: int) -> None:
        """The command stopped: stop too, as the caller's shell expects, and go on with it when the shell says so."""
        if self._relay is not None:
            self._relay.suspend()
        posix.kill(posix.getpid(), SIGSTOP)
        if self._relay is not None:
            self._relay.resume()
            self._relay.resize()
        self._signal(SIGCONT)


def _identity(workspace: str, operations: Sequence[Operation]) -> Identity:
    """Whom the command runs as: an ordinary user as oneself; what root does instead is a module of its own."""
    if posix.geteuid() != 0:
        return Identity(posix.geteuid(), posix.getegid(), self_map=True, idmapped={})
    from remit.sandbox.launch import identity

    return identity.choose(workspace, operations)


def _run_stage(request: Request, control: int) -> None:
    try:
        # Nothing of the launcher's or its caller's but the standard descriptors and the socket.
        _keep(control, *request.idmapped.values())
        Stage(request).run()
    finally:
        process.leave(125)


def _keep(*wanted: int) -> None:
    """Close every descriptor but the standard ones and ``wanted``."""
    first = 3
    for descriptor in sorted(wanted):
        if descriptor > first:
            process.close_range(first, descriptor - 1)
        first = descriptor + 1
    process.close_range(first, 0xFFFFFFFF)
