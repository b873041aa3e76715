"""PID 1 while the command runs: one event loop that mediates, reaps, forwards signals and watches limits.

It is the only writer of reports to the launcher. When the command ends, or the launcher's end of the socket closes, this
process ends, and with it, by the kernel's hand, every process of the session.
"""

from __future__ import annotations

import _thread
import marshal
import posix
import select
import time
from errno import ECHILD, ESRCH
from fcntl import ioctl

from remit.sandbox.kernel import process
from remit.sandbox.kernel.fastpath import Others
from remit.sandbox.kernel.placement import Placement
from remit.sandbox.launch import limits, usage
from remit.sandbox.mediate.broker import Broker, Source, brokers_reads
from remit.sandbox.mediate.observe import GATHER_MS, GATHERED_AT_MOST, GATHERED_SIZE, size_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from remit.sandbox.launch.hidden import Hidden
    from remit.sandbox.launch.request import Request
    from remit.sandbox.launch.wire import Operation

SIGCHLD = 17
SIGKILL = 9
SIGSTOP = 19
SIGXCPU = 24
_GROUP_SIGNALS = (2, 3, 18, 19, 20)  # INT QUIT CONT STOP TSTP
_ENDING = (1, 2, 3, 15)  # HUP INT QUIT TERM
_WATCH_MS = 200
_TCSBRK = 0x5409


class Init:
    """The loop. ``listen``, ``enforced``, ``command_started`` and ``command_failed`` are called by the command's thread."""

    def __init__(
        self,
        request: Request,
        descriptors: list[int],
        terminal: int,
        operations: Mapping[str, Operation],
        hidden: Hidden | None,
    ) -> None:
        self._control = request.control
        self._descriptors = descriptors
        self._terminal = terminal
        self._mediate = operations.get("mediate")
        self._lines = operations["record"][3] if "record" in operations else ()
        self._limits = [op for op in request.operations if op[0] == "limit"]
        self._own_namespace = "unshare" in operations
        self._command = 0
        self._spawned = 0
        self._held: list[int] = []
        self._frozen = False
        self._failure: tuple[object, ...] | None = None
        self._enforcement: dict[str, str] = {}
        self._early: dict[int, int] = {}
        self._early_stops: dict[int, int] = {}
        self._listener = -1
        self._attended = False
        self._noted: list[tuple[Any, ...]] = []
        self._noted_size = 0
        self._noting = _thread.allocate_lock()
        self._hidden = hidden
        self._broker: Broker | None = None
        self._unrecorded = False
        """The launcher has said that the record cannot be written."""
        # The command's process exists and has not run an instruction of its own program yet. More than one is tried
        # where the program is a script that only a shell takes.
        self._source = Source(before_exec=self._apply_limits)
        self._others: Others | None = None
        # Before the command's thread exists: a SIGCHLD that any thread does not block is lost to the descriptor.
        process.block_signals((SIGCHLD,))
        self._children = process.signalfd((SIGCHLD,))
        self._wake_read, self._wake_write = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)
        self._deadline = 0.0
        self._memory_limit = 0
        self._next_look = time.monotonic() + _WATCH_MS / 1000
        for _, what, value, mechanism in self._limits:
            if mechanism == "timer":
                self._deadline = time.monotonic() + int(value) / 1000
            elif mechanism == "watch" and what == "memory":
                self._memory_limit = int(value)
        if self._mediate is None:
            # Nobody reports the first exec: the limits hold for this process, which does nothing else, and so for all.
            self._apply_limits(0)

    # --- called by the command's thread ------------------------------------------------------------------------------

    def listen(self, listener: int) -> None:
        """The filter is loaded: from now on its calls wait for this loop.

        The loop hears of it at once where this thread's own opens are among them, else not before ``attend``: until there
        is a process of the command's, two threads that run would only take the interpreter from each other.
        """
        self._listener = listener
        if self._mediate is not None and brokers_reads(self._mediate):
            self.attend()

    def attend(self) -> None:
        """The first call that waits for this loop is about to come."""
        if self._listener >= 0 and not self._attended:
            self._attended = True
            posix.write(self._wake_write, b"l")

    def enforced(self, enforcement: dict[str, str]) -> None:
        """Every layer has been proven."""
        self._enforcement = enforcement

    def command_started(self, pid: int) -> None:
        """The command runs as ``pid``."""
        # Only the loop sets ``_command``, after it has told the start: no end is told before it.
        self._spawned = pid
        posix.write(self._wake_write, b"c")

    def command_failed(self, refusal: tuple[object, ...]) -> None:
        """There will be no command: (phase, message, hint, exit status)."""
        self._failure = refusal
        posix.write(self._wake_write, b"f")

    # --- the loop ------------------------------------------------------------------------------------------------------

    def loop(self) -> None:
        """Until the command has ended. Does not return."""
        if self._hidden is not None:
            _thread.start_new_thread(self._hidden.serve, (self._looked_for,))
        children = self._children
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        poll.register(children, select.POLLIN)
        while True:
            ready = poll.poll(self._timeout())
            if not ready:
                self._tell_noted()
            for descriptor, events in ready:
                if descriptor == self._listener:
                    if events & select.POLLIN and self._broker is not None:
                        self._broker.handle(self._source, self._beside)
                    elif events & select.POLLHUP:
                        poll.unregister(descriptor)  # nobody is left under the filter
                elif descriptor == children:
                    posix.read(children, 128 * 8)
                    self._reap()
                elif descriptor == self._wake_read:
                    self._woken(poll)
                elif descriptor == self._control:
                    self._command_from_launcher()
            if self._deadline and time.monotonic() >= self._deadline:
                self._end(None, "time")
            if self._memory_limit and time.monotonic() >= self._next_look:
                # A sample, and not at every mediated call: looking at every process costs more than the call.
                self._next_look = time.monotonic() + _WATCH_MS / 1000
                if usage.memory_exceeds(self._memory_limit):
                    self._end(None, "memory")

    def _beside(self) -> Others:
        """What the loop waits for besides the listener: most commands end before that is asked for."""
        if self._others is None:
            self._others = Others((self._control, self._wake_read, self._children))
        return self._others

    def _timeout(self) -> int | None:
        if self._noted:
            return GATHER_MS
        if self._memory_limit:
            return _WATCH_MS
        if self._deadline:
            return max(0, int((self._deadline - time.monotonic()) * 1000) + 1)
        return None

    def _woken(self, poll: select.poll) -> None:
        for event in posix.read(self._wake_read, 64):
            if event == ord("l"):
                if self._mediate is not None:
                    self._make_broker(self._mediate)
                self._source.attach(self._listener, Placement())
                poll.register(self._listener, select.POLLIN)
            elif event == ord("c"):
                self._command = self._spawned
                self._source.before_exec = None
                self._tell("started", self._command, self._enforcement)
                self._tell_noted()  # the record is written while the command runs, not after it
                if self._command in self._early_stops:
                    self._tell("stopped", self._early_stops[self._command])
                for number in self._held:
                    self._signal(number)
                if self._command in self._early:
                    self._ended(self._early[self._command])
            elif event == ord("f"):
                self._tell("failed", *(self._failure or ()))
                process.leave(0)

    def _make_broker(self, plan: Operation) -> None:
        """While the command's process is being made."""
        self._broker = Broker(plan, self._note, self._lines)
        self._broker.held = self._unrecorded

    def _apply_limits(self, pid: int) -> None:
        limits.apply(pid, limits.prepared(self._limits))

    def _note(self, _source: Source, *action: Any) -> None:
        """Actions go to the launcher by the dozen, when nothing happens for a moment, and before the command's end."""
        with self._noting:
            self._noted.append(action)
            self._noted_size += size_of(action)
            if len(self._noted) >= GATHERED_AT_MOST or self._noted_size > GATHERED_SIZE:
                self._send_noted()

    def _looked_for(self, pid: int, path: bytes) -> None:
        """On the thread that answers, while whoever asked waits."""
        if self._broker is not None:
            self._broker.looked_for(self._source, pid, path)
            self._tell_noted()

    def _tell_noted(self) -> None:
        """On any thread, which may be the second to want it."""
        with self._noting:
            self._send_noted()

    def _send_noted(self) -> None:
        noted, self._noted, self._noted_size = self._noted, [], 0
        if noted:
            self._tell("actions", *noted)

    def _tell(self, *message: Any) -> None:
        try:
            posix.write(self._control, marshal.dumps(message))
        except OSError:
            process.leave(125)  # the launcher is gone, and everything here goes with this process

    def _command_from_launcher(self) -> None:
        try:
            data = posix.read(self._control, 4096)
        except OSError:
            data = b""
        if not data:
            process.leave(125)
        kind, number = data[:1], int.from_bytes(data[1:5], "little")
        if kind == b"h":
            self._unrecorded = bool(number)
            if self._broker is not None:
                self._broker.held = self._unrecorded
        elif kind == b"r":
            self._end(None, "revoked")
        elif kind == b"f":
            self._freeze()
        elif kind == b"s" and self._frozen:
            if number in _ENDING:
                self._end(None, "revoked")  # nothing that stands still could take it
        elif kind == b"s":
            if self._command:
                self._signal(number)
            else:
                self._held.append(number)  # it is for the command, which is only just starting

    def _freeze(self) -> None:
        """The authority is gone: everything stands still until a signal ends it. Nothing wakes it any more."""
        if not self._own_namespace:
            self._end(None, "revoked")  # there, kill(2) would mean more than this session
        self._frozen = True
        try:
            posix.kill(-1, SIGSTOP)
        except OSError as error:
            if error.errno != ESRCH:
                raise

    def _signal(self, number: int) -> None:
        try:
            # The whole group where the signal comes from a keyboard or a job-control shell; else the command alone.
            posix.kill(-self._command if number in _GROUP_SIGNALS else self._command, number)
        except OSError as error:
            if error.errno != ESRCH:
                raise

    # --- ends ----------------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        while True:
            try:
                pid, status = posix.waitpid(-1, posix.WNOHANG | posix.WUNTRACED)
            except OSError as error:
                if error.errno == ECHILD:
                    return
                raise
            if not pid:
                return
            if posix.WIFSTOPPED(status):
                if self._frozen:
                    continue  # its shell is not to wake it
                if pid == self._command:
                    self._tell("stopped", posix.WSTOPSIG(status))
                elif not self._command:
                    self._early_stops[pid] = posix.WSTOPSIG(status)
            elif pid == self._command:
                self._ended(status)
            elif not self._command:
                self._early[pid] = status

    def _ended(self, status: int) -> None:
        cpu = any(what == "cpu-time" for _, what, _value, mechanism in self._limits if mechanism == "rlimit")
        ended_by_cpu = cpu and posix.WIFSIGNALED(status) and posix.WTERMSIG(status) == SIGXCPU
        self._end(status, "cpu-time" if ended_by_cpu else "")

    def _end(self, status: int | None, limit: str) -> None:
        """Report, and end. The kernel ends every process of this PID namespace with us."""
        if self._terminal >= 0:
            _drain(self._terminal)
        if not self._own_namespace:
            _end_descendants()
        self._tell_noted()
        self._tell("exited", status, limit, self._source.denials + self._source.looked_for)
        process.leave(0)


def _end_descendants() -> None:
    """Without a PID namespace the kernel does not do it: kill children until none is left; orphans become children."""
    while True:
        for task in posix.listdir("/proc/self/task"):
            opened = posix.open(f"/proc/self/task/{task}/children", posix.O_RDONLY | posix.O_CLOEXEC)
            for child in posix.read(opened, 1 << 16).split():
                posix.kill(int(child), SIGKILL)
            posix.close(opened)
        try:
            posix.waitpid(-1, 0)
        except OSError as error:
            if error.errno == ECHILD:
                return
            raise


def _drain(terminal: int) -> None:
    # What was written to the terminal must have left it before its last slave closes.
    try:
        ioctl(terminal, _TCSBRK, 1)  # with an argument: tcdrain(3)
    except OSError:
        pass
