"""Start a session from a plan, stay its parent, and say how it ended.

The launcher is single-threaded, imports little, and is itself not trusted by what runs inside: it is outside of every
namespace, reachable by no descriptor but a terminal's master and one socket.
"""

from __future__ import annotations

import marshal
import posix
import select
import time

from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.kernel import memory, process, sockets
from remit.sandbox.kernel.sockets import MOST_DESCRIPTORS
from remit.sandbox.launch import copies, early
from remit.sandbox.launch.descriptors import keep
from remit.sandbox.launch.request import Identity, Request
from remit.sandbox.launch.signals import FORWARDED, SIGCONT, SIGKILL, SIGWINCH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from remit.sandbox.launch.cgroups import Groups
    from remit.sandbox.launch.request import Terminal
    from remit.sandbox.launch.terminal import Relay
    from remit.sandbox.launch.way import Events, Way
    from remit.sandbox.launch.wire import Operation, Wire

_SIGINFO_SIZE = 128
_MESSAGE_SIZE = 1 << 16
"""Bytes of a report: actions are gathered up to ``mediate.observe.GATHERED_SIZE``, and the last of them has two paths."""
_LOOK = 0.5
"""Seconds between two questions whether a grant was revoked."""
_PATIENCE = 10.0
"""Seconds that a first process has to end when the grant was revoked."""


class Outcome:
    """How a session ended. ``status`` is a wait status, or None where a limit ended it; ``limit`` names that limit."""

    __slots__ = ("denials", "enforcement", "limit", "status")

    def __init__(self, status: int | None, limit: str, denials: int, enforcement: Mapping[str, str]) -> None:
        self.status = status
        self.limit = limit
        self.denials = denials
        self.enforcement = enforcement


class Child:
    """A session's first process, made from a plan, seen from its parent.

    ``body`` is what it does, in the child: it gets the ``Request``, and waits for ``go`` before anything is done that could
    not be taken back. ``waiting`` is taken instead of a new child where it
    fits the plan; it does what ``early`` says. ``on_network`` hears what the gateway decides
    (``egress.wire.EVENT``), or one text: why it is gone. ``secrets`` gives the file of the gateway's secrets, to keep, where
    the plan has any (``egress.wire``); it is asked after the fork, so that nothing of them is in the child. Raises LaunchError.
    """

    def __init__(
        self,
        wire: Wire,
        body: Callable[[Request], None],
        *,
        argv: list[bytes] | None = None,
        environment: list[bytes] | None = None,
        directory: str = "/",
        terminal: Terminal | None = None,
        on_network: Callable[[Events], None] | None = None,
        waiting: early.Waiting | None = None,
        secrets: Callable[[], int] | None = None,
    ) -> None:
        _, _, workspace, degraded, _, operations = wire
        who = _identity(workspace, operations)
        self.way: Way | None = None
        self.groups: Groups | None = None
        self._went = False
        self._unsaid: list[bytes] = []
        flags = 0
        for operation in operations:
            if operation[0] == "unshare":
                for kind in operation[1]:
                    flags |= process.NAMESPACES[kind]
        try:
            if on_network is not None and any([operation[0] == "egress" for operation in operations]):
                from remit.sandbox.launch.way import Way

                self.way = Way(operations, who, on_network)
            request = Request(
                operations=operations,
                idmapped=who.idmapped,
                control=-1,
                uid=who.uid,
                gid=who.gid,
                self_map=who.self_map,
                stack_strings=memory.own_strings(),
                argv=argv or [],
                environment=environment or [],
                directory=directory.encode(errors="surrogateescape"),
                terminal=terminal,
                degraded=degraded,
            )
            if any([op[0] == "limit" and op[3] == "cgroup" for op in operations]):
                from remit.sandbox.launch import cgroups

                self.groups = cgroups.make([op for op in operations if op[0] == "limit"])
            if waiting is not None and not (who.self_map and flags == early.FLAGS):
                waiting.give_up()
                waiting = None
            if waiting is not None and waiting.hand(request.packed()):
                self.pid, self.control = waiting.pid, waiting.control
                self._read_for_it(operations)
            else:
                self.pid, self.control = _fork(request, flags, body)
        except BaseException:
            # A template goes on: it has only so many descriptors.
            if self.way is not None:
                self.way.close()
            if self.groups is not None:
                self.groups.remove()
            raise
        finally:
            for descriptor in who.idmapped.values():
                posix.close(descriptor)
        try:
            if not who.self_map and flags & process.CLONE_NEWUSER:
                who.write_maps(self.pid)
            if self.groups is not None:
                self.groups.add(self.pid)
        except OSError as error:
            self._give_up()
            raise LaunchError(
                f"the new process could not be set up: {error.strerror}", hint="see 'remit doctor'"
            ) from None

        if self.way is not None:
            try:
                self.way.begin(secrets)
            except BaseException:
                self._give_up()
                raise

    def go(self, canary: tuple[str, bytes]) -> None:
        """Let it confine itself. ``canary``: a file that it can read until then, and what that begins with.

        Where its file system shows a certificate that the gateway makes, that is when there is one.
        """
        if self.way is None:
            self._go(canary, b"")
        else:
            self.way.certified(lambda certificate: self._go(canary, certificate))

    def _go(self, canary: tuple[str, bytes], certificate: bytes | str) -> None:
        try:
            posix.write(self.control, marshal.dumps((*canary, certificate)))
            self._went = True
            for data in self._unsaid:
                posix.write(self.control, data)
        except OSError:
            pass  # it is dead: whoever listens hears of it

    def tell(self, data: bytes) -> None:
        """Say something to it. What is said before it goes on, it hears when it has."""
        if not self._went:
            self._unsaid.append(data)
            return
        self._tell(data)

    def _tell(self, data: bytes) -> None:
        try:
            posix.write(self.control, data)
        except OSError:
            pass  # it is ending; what it has to say comes first

    def _read_for_it(self, operations: Sequence[Operation]) -> None:
        """A child that is building already gets what the plan copies from the launcher, or has to read it by itself."""
        try:
            posix.write(self.control, marshal.dumps(copies.read(operations)))
        except (OSError, copies.Swapped):
            # Too large for one message; or the child will meet it too, and knows what to say. Or it is dead.
            self._tell(marshal.dumps(None))

    def _give_up(self) -> None:
        """Nothing has run: take away what there is of it."""
        self.kill()
        self.close()

    def kill(self) -> None:
        """End everything inside, now."""
        posix.kill(self.pid, SIGKILL)

    def out_of_memory(self) -> bool:
        """Whether the kernel killed something inside for the session's memory limit."""
        return self.groups is not None and self.groups.out_of_memory()

    def close(self) -> int:
        """Wait until everything inside is gone, and take away what was made outside for it. The wait status."""
        posix.close(self.control)  # a first process that still waits for its launcher ends now
        _, status = posix.waitpid(self.pid, 0)
        if self.way is not None:
            self.way.close()
        if self.groups is not None:
            self.groups.remove()
        return status


class Session:
    """A session of one command, seen from its parent. It is on its way when it is made, and starts nothing before ``go``."""

    def __init__(
        self,
        wire: Wire,
        *,
        argv: list[bytes],
        environment: list[bytes],
        directory: str,
        on_event: Callable[[tuple[Any, ...]], None],
        on_start: Callable[[Mapping[str, str]], None],
        secrets: Callable[[], int] | None = None,
    ) -> None:
        self._on_event = on_event
        self._on_start = on_start
        self._terminal: Terminal | None = None
        self._relay: Relay | None = None
        if posix.isatty(0) or posix.isatty(1) or posix.isatty(2):
            from remit.sandbox.launch import terminal

            self._terminal = terminal.wanted()
        self._outcome: Outcome | None = None
        self._enforcement: Mapping[str, str] = {}
        # Blocked before the fork: a signal that came between would end a launcher whose child nobody waits for.
        process.block_signals(FORWARDED)
        self._signals = process.signalfd(FORWARDED)
        self._child = Child(
            wire,
            _stage,
            argv=argv,
            environment=environment,
            directory=directory,
            terminal=self._terminal,
            on_network=lambda events: on_event(("gateway", events)),
            waiting=early.take(),
            secrets=secrets,
        )
        self._control = self._child.control
        self._mail = sockets.Receiver(_MESSAGE_SIZE, MOST_DESCRIPTORS)

    def go(self, canary: tuple[str, bytes]) -> None:
        """Let the command start, once there is a record of it (``Child.go``)."""
        self._child.go(canary)

    def kill(self) -> None:
        """End everything inside, now."""
        self._child.kill()

    def hold(self, on: bool) -> None:
        """Refuse every action that would be recorded, or no longer: the record cannot be written."""
        self._say(b"h", int(on))

    def wait(self, revoked: Callable[[], bool] | None = None, *, freeze: bool = False) -> Outcome:
        """Relay, forward and listen until the session has ended. Raises LaunchError where the command never ran.

        ``revoked`` is asked now and then. Once it says so, everything inside is ended or, with ``freeze``, stopped.
        """
        looked = told = 0.0
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._signals, select.POLLIN)
        way = self._child.way
        if way is not None:
            way.watch(poll)
        try:
            while self._outcome is None:
                relay = self._relay
                moment = relay.watch(poll) if relay is not None else None
                if revoked is not None:
                    moment = min(moment or _LOOK * 1000, _LOOK * 1000)
                for descriptor, events in poll.poll(moment):
                    if descriptor == self._control:
                        self._report(poll)
                    elif descriptor == self._signals:
                        self._forward()
                    elif way is not None and way.owns(descriptor):
                        way.ready(descriptor, poll)
                    elif relay is not None and descriptor == relay.master:
                        if events & select.POLLOUT:
                            relay.flush()
                        if events & (select.POLLIN | select.POLLHUP) and not relay.output():
                            poll.unregister(relay.master)
                            self._close_relay(poll)
                    elif relay is not None and descriptor == relay.source and not relay.keys():
                        poll.unregister(descriptor)
                if revoked is not None and time.monotonic() - looked >= _LOOK:
                    looked = time.monotonic()
                    if not told and revoked():
                        told = looked
                        self._say(b"f" if freeze else b"r")
                    elif told and not freeze and looked - told >= _PATIENCE:
                        self.kill()  # it should have ended by itself
        finally:
            if self._relay is not None:
                self._relay.drain()
                self._relay.suspend()
        if not self._outcome.limit and self._child.out_of_memory():
            self._outcome.limit = "memory"
        return self._outcome

    def close(self) -> None:
        """Wait until everything inside is gone, and take away what was made outside for it."""
        self._child.close()

    @property
    def has_gateway(self) -> bool:
        """Whether something may still be heard of the network until ``close``."""
        return self._child.way is not None

    @property
    def network_denials(self) -> int:
        """What the gateway refused. All of it only after ``close``."""
        return self._child.way.denials if self._child.way is not None else 0

    def _close_relay(self, poll: select.poll) -> None:
        relay = self._relay
        if relay is not None:
            relay.leave(poll)
            self._relay = None

    def _report(self, poll: select.poll) -> None:
        data, came = self._mail.receive(self._control)
        if self._mail.cut:
            raise LaunchError(
                "the session's first process said more than a report can hold: the session was ended",
                hint="please report this",
            )
        if not data:
            raise LaunchError(
                "the session's first process died", hint="nothing inside survived it; 'remit doctor' may say why"
            )
        if data == b"terminal":
            assert self._terminal is not None
            from remit.sandbox.launch.terminal import Relay

            self._relay = Relay(self._terminal, came[0])
            return
        kind, *values = marshal.loads(data)
        if kind == "sockets":
            assert self._child.way is not None
            self._child.way.hold(values[0], came, poll)
        elif kind == "actions":
            self._on_event(tuple(values))
        elif kind == "started":
            self._enforcement = values[1]
            self._on_start(self._enforcement)
        elif kind == "stopped":
            self._stop()
        elif kind == "exited":
            self._outcome = Outcome(values[0], values[1], values[2], self._enforcement)
        elif kind == "failed":
            phase, message, hint, status = values
            failure = LaunchError(message, hint=hint)
            failure.phase, failure.exit_status = phase, status
            raise failure

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
            if number == SIGCONT and self._relay is not None:
                self._relay.resume()  # whoever stopped this process has not asked it to give the terminal back
            # SIGTSTP too: the launcher stops when it hears that the command has, which may catch the signal.
            self._signal(number)

    def _signal(self, number: int) -> None:
        self._say(b"s", number)

    def _say(self, kind: bytes, number: int = 0) -> None:
        self._child.tell(kind + number.to_bytes(4, "little"))

    def _stop(self) -> None:
        from remit.sandbox.launch import terminal

        terminal.stop(self._relay)
        self._signal(SIGCONT)


def _identity(workspace: str, operations: Sequence[Operation]) -> Identity:
    """Whom the command runs as: an ordinary user as oneself; what root does instead is a module of its own."""
    if posix.geteuid() != 0:
        return Identity(posix.geteuid(), posix.getegid(), self_map=True, idmapped={})
    from remit.sandbox.launch import identity

    return identity.choose(workspace, operations)


def _stage(request: Request) -> None:
    early.prepared()
    from remit.sandbox.launch.stage import Stage

    Stage(request).run()


def _fork(request: Request, flags: int, body: Callable[[Request], None]) -> tuple[int, int]:
    """A child in new namespaces that runs ``body``: its pid, and this end of its socket. Raises LaunchError."""
    control, request.control = sockets.packet_pair()
    try:
        pid = process.clone3(flags)
    except OSError as error:
        posix.close(control)
        posix.close(request.control)
        raise LaunchError(
            f"no new namespaces: {error.strerror}",
            hint="'remit doctor' says what refuses them and how to allow them",
        ) from None
    if pid == 0:
        _run(request, body)
    posix.close(request.control)
    return pid, control


def _run(request: Request, body: Callable[[Request], None]) -> None:
    try:
        # Nothing of the launcher's or its caller's but the standard descriptors and the socket.
        keep(request.control, *request.idmapped.values())
        body(request)
    finally:
        process.leave(125)
