"""The thread of calls: it confines itself before a request arrives, and serves again where nothing of the last call is left.

Landlock domain, filter, capabilities, working directory, descriptor table, mount namespace and the PID namespace of
children belong to a thread, and ``posix_spawn(3)`` passes them on without copying page tables. So all that makes a call
slow is done ahead of it. What runs here is Remit's own code only; the memory that it shares with the zygote holds
nothing secret, and the command leaves it with its first exec.
"""

from __future__ import annotations

import _thread
import marshal
import posix
from errno import EACCES, EPIPE

from remit.sandbox.kernel import landlock, notify, process, sockets
from remit.sandbox.kernel.exemption import Exemption
from remit.sandbox.kernel.files import O_PATH
from remit.sandbox.kernel.netlink import SOCK_DIAG
from remit.sandbox.launch import envelope
from remit.sandbox.launch.cell import open_settings
from remit.sandbox.launch.descriptors import keep
from remit.sandbox.launch.ground import HINT, Refused, told
from remit.sandbox.launch.policy import REQUEST_DESCRIPTORS
from remit.sandbox.launch.running import Running, answer
from remit.sandbox.mediate.broker import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from remit.sandbox.launch.cell import Cell
    from remit.sandbox.launch.ground import Failure, Ground
    from remit.sandbox.launch.policy import Policy

REQUEST_SIZE = envelope.LIMIT
"""Bytes: each armed thread keeps a buffer for one. What is larger comes in an ``envelope``."""
_PLACE = O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC


class Jail(Source):
    """The thread of one call at a time, and what the mediator knows of it."""

    __slots__ = (
        "_children",
        "_commands",
        "_ended",
        "_keeps",
        "_mail",
        "_own",
        "_settings",
        "_spoiled",
        "arms",
        "busy",
        "cell",
        "control",
        "ending",
        "events",
        "executing",
        "exemption",
        "failure",
        "ground",
        "identifier",
        "joins",
        "parted",
        "policy",
        "revoked",
        "running",
        "separated",
        "tell_end",
        "wake",
        "woken",
    )

    def __init__(
        self,
        identifier: int,
        policy: Policy,
        cell: Cell,
        ground: Ground,
        control: int,
        arms: int,
        revoked: set[str],
        tell_end: Callable[..., None],
        keeps: Callable[[Policy], bool],
    ) -> None:
        super().__init__(before_exec=self.executes)
        self.identifier = identifier
        self.policy = policy
        self.cell = cell
        self.ground = ground
        self.control = control
        self.arms = arms
        self.revoked = revoked
        """Ids of grants that were taken back: of the whole session, and growing."""
        self.separated = _thread.allocate_lock()
        """Held until the thread's descriptor table is its own, or cannot be."""
        self.separated.acquire()
        self.parted = False
        """It is its own: what was made for the thread is in both, and each closes its copy. Otherwise, all is the armer's."""
        self.joins: list[tuple[int, int]] = []
        self._mail = sockets.Receiver(REQUEST_SIZE, REQUEST_DESCRIPTORS)
        self.busy = False
        """From a request's arrival until nothing of the call is left."""
        self.running: Running | None = None
        """The call. For other threads: it can be over, and another one be there, by the next look."""
        self.events: list[tuple[Any, ...]] = []
        """Its denials, for the answer."""
        self.executing = 0
        """The first process that was about to execute a program since a leader asked whether it may make one."""
        self.tell_end = tell_end
        self._keeps = keeps
        """Whether a cell that is left by a call under a policy is kept for another thread."""
        self.failure: Failure | None = None
        """Why this thread is of no use, which the mediator's thread finds out."""
        self._spoiled = False
        """Something of a call is, or may be, left in the cell."""
        self._ended = False
        """The cell is gone."""
        self.ending = _thread.allocate_lock()
        """Held from before a call is answered until its end is told. Whoever ends the session takes it first."""
        self.exemption: Exemption | None = None
        self._own = -1
        """This thread's directory in the session's /proc: in the cell's it has none."""
        self._children = -1
        """A list in the cell's /proc, open from its first use to the thread's end."""
        self._commands = -1
        """This thread's own children."""
        self._settings: tuple[int, ...] = ()
        """Files of the cell's PID 1, likewise."""
        self.woken, self.wake = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)
        """The thread reads the first, the mediator's thread writes the second: a line with a reason and a call."""

    # --- the thread ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """The thread's whole life. Ends with the call, never with an exception."""
        try:
            try:
                self._separate()
            finally:
                self.separated.release()
            self._confine()
        except Exception as error:
            if self.parted:
                self.end_cell()
            self.tell_main("broken", *told(error))
            return
        try:
            while self._serve():
                self._renew()
        finally:
            self._leave()

    def _separate(self) -> None:
        """A descriptor table of its own, with nothing of any other call's in it."""
        process.unshare(process.CLONE_FS | process.CLONE_FILES)
        self.parted = True
        policy = self.policy
        self.joins = [*self.cell.namespaces]
        namespaces = [descriptor for descriptor, _ in self.joins]
        own = (self.ground.place, self.control, self.arms, self.woken, *self.cell.descriptors)
        keep(policy.requests, policy.ruleset, *own, *namespaces)
        self._own = posix.open("/proc/thread-self", _PLACE)
        self._commands = posix.open("/proc/thread-self/children", posix.O_RDONLY | posix.O_CLOEXEC)

    def _confine(self) -> None:
        policy, ground = self.policy, self.ground
        for descriptor, kind in self.joins:
            process.setns(descriptor, kind)
            posix.close(descriptor)
        # Of a network of the call's own, only a socket that was made in it can tell the mediator.
        asks = (sockets.netlink_socket(SOCK_DIAG),) if policy.private else ()
        posix.chdir("/")
        landlock.restrict_self(policy.ruleset)
        process.set_capabilities(0)
        before = b""
        if policy.exempts:
            self.exemption = Exemption()
            before = self.exemption.program
        listener = notify.load_filter(before + policy.program, listener=True)
        self.tell_main("armed", descriptors=(listener, *asks))
        for descriptor in (listener, *asks):
            posix.close(descriptor)
        ground.prove(("landlock", "seccomp"))
        posix.close(ground.place)
        self.tell_main("proven")

    def _serve(self) -> bool:
        """One call. False: this thread is of no use for another."""
        data, came = self._mail.receive(self.policy.requests)
        if not data:
            return False  # the policy is forgotten, or the session ends
        reply = came.pop(0)
        self.busy = self._spoiled = True
        self.policy.calls += 1
        try:
            if data == envelope.MARK:
                data = envelope.content(came.pop())
            if self.failure:
                raise Refused(*self.failure)
            self.running = Running(self, reply, marshal.loads(data))
            self._spoiled = not (self.running.run(came) and self._untouched())
        except Exception as error:
            self._fail(reply, error)
        finally:
            for descriptor in came:
                posix.close(descriptor)
            posix.close(reply)
        return not self.failure and not self._spoiled

    def _fail(self, reply: int, error: Exception) -> None:
        failure = told(error)
        if failure[0] == "changed":
            failure = ("launch", failure[1], HINT, 125)
        running = self.running
        if running is None:
            answer(reply, "failed", *failure)
        else:
            running.failed(running.give_up(failure))
        # Nothing was started; but a terminal may have been opened.
        self._spoiled = self.pid != 0 or not (self.alone() and self._untouched())

    def _renew(self) -> None:
        """Ready for the next call: nothing of the last one's is left, and what confines this thread still does.

        No process of the last call exists any more, so nobody is in this cell and under this filter but the next one.
        """
        self.policy.broker.settle(self)  # what the last of them did is still this call's
        self.before_exec = self.executes
        self.denials = self.looked_for = 0
        self.masks = False
        self.events = []
        self.recent = []
        self.running = None
        posix.chdir("/")
        self.busy = False

    def alone(self, ended: int = 0) -> bool:
        """Nothing but PID 1 is left in the cell: it has adopted every orphan, and has none; and this thread has no child, who may
        have made others that are its own too (CLONE_PARENT, which the filter refuses). ``ended``: the command, not reaped yet."""
        try:
            if self.cell.life < 0:
                return False  # they are ending
            if self._children < 0:
                self._children = posix.open("/proc/1/task/1/children", posix.O_RDONLY | posix.O_CLOEXEC)
            own = b"%d " % ended if ended else b""
            return not posix.pread(self._children, 64, 0) and posix.pread(self._commands, 64, 0) == own
        except OSError:
            return False

    def end_cell(self) -> None:
        """With everything in it."""
        if self._ended:
            return
        self._ended = True
        self.cell.cut()
        # The cell's PID 1 ends last, and not before the command's process is reaped (``pid_namespaces(7)``).
        if self.running is not None:
            self.running.reap()
        self.cell.end()

    def _leave(self) -> None:
        # The thread's own table goes with it, and with that the last copy of everything that was not told.
        if not self._give_back():
            self.end_cell()
            self.tell_main("done", False)
        self.running = None  # a cycle, and nothing is collected here

    def canonical(self, path: bytes) -> bytes:
        """What a path leads to from here, without links; empty where it leads nowhere."""
        try:
            opened = posix.open(path, O_PATH | posix.O_CLOEXEC)
        except OSError:
            return b""
        try:
            return posix.readlink(b"fd/%d" % opened, dir_fd=self._own)
        except OSError:
            return b""
        finally:
            posix.close(opened)

    def _untouched(self) -> bool:
        """Nothing is left in a cell that nobody is in: no terminal that somebody outside of it holds, its PID 1 as it was, and of
        a private one, all of it as it was made."""
        if not self.policy.exempts:
            # Every open asks the mediator, and nobody can promise that it has time to answer.
            if not self.cell.undisturbed(()):
                return False
            return not self.policy.private and not (self.running is not None and self.running.terminal)
        try:
            if not self._settings:
                self._settings = open_settings(b"/proc/1/")
            if not self.cell.undisturbed(self._settings) or posix.listdir("/dev/pts") != ["ptmx"]:
                return False
        except OSError:
            return False
        if not self.policy.private:
            return True
        fresh = self.cell.fresh
        # With a way out too: the gateway has sent and learned nothing where no packet was sent.
        return fresh is not None and fresh.still()

    def _give_back(self) -> bool:
        """Leave the cell to the next thread that is armed, whatever its authority: nothing is in it, and what confined those
        who were is this thread's. It takes a millisecond to make one, and as much to end it."""
        policy = self.policy
        if self._spoiled or self.cell.life < 0 or not policy.exempts or policy.egress is not None:
            return False
        if not self._keeps(policy) or not self.alone():
            return False
        try:
            self.tell_main("done", True, descriptors=self.cell.leave(self._own))
        except OSError:
            return False
        return True

    # --- what is told --------------------------------------------------------------------------------------------------

    def tell_main(self, *message: Any, descriptors: tuple[int, ...] = ()) -> None:
        """The mediator's thread (``Zygote._from_jail``)."""
        sockets.send(self.arms, marshal.dumps((self.identifier, *message)), descriptors)

    def tell_template(self, *message: Any) -> None:
        """For the record."""
        try:
            sockets.say(self.control, marshal.dumps(message))
        except OSError as error:
            if error.errno != EPIPE:
                raise
            # The session is being ended, and nothing else may be told as the reason of that.
            process.leave(0)

    # --- for the mediator's thread too ---------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The command's, as the session's namespace has it; 0 where none was started."""
        running = self.running
        return 0 if running is None else running.pid

    def executes(self, pid: int) -> None:
        """The command's first process waits for the mediator: the call's limits are its own from here on.

        Raises OSError: its grant was taken back since the call was let in. Who takes it back is told on this same thread, so
        that nothing runs its first instruction after that.
        """
        running = self.running
        if running is not None and not self.revoked.isdisjoint(running.chain):
            raise OSError(EACCES, posix.strerror(EACCES))
        self.executing = self.executing or pid
        self.policy.apply_limits(pid)
