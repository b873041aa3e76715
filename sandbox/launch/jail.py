"""One call: a thread that confines itself before the request for it arrives, starts the command, and says how it ended.

Landlock domain, filter, capabilities, working directory, descriptor table, mount namespace and the PID namespace of
children belong to a thread, and ``posix_spawn(3)`` passes them on without copying page tables. So all that makes a call
slow is done ahead of it. What runs here is Remit's own code only; the memory that it shares with the zygote holds
nothing secret, and the command leaves it with its first exec.
"""

from __future__ import annotations

import _thread
import marshal
import posix
import select
import time
from errno import EACCES, EINTR, EPIPE

from remit.sandbox.kernel import landlock, notify, process, sockets
from remit.sandbox.kernel.call import Buffer
from remit.sandbox.kernel.exemption import Exemption
from remit.sandbox.kernel.files import O_PATH
from remit.sandbox.kernel.netlink import SOCK_DIAG
from remit.sandbox.kernel.spawn import spawn
from remit.sandbox.launch import envelope, program
from remit.sandbox.launch.descriptors import keep
from remit.sandbox.launch.ground import HINT, Refused, told
from remit.sandbox.launch.policy import REQUEST_DESCRIPTORS
from remit.sandbox.mediate.broker import Source
from remit.sandbox.mediate.observe import GATHER_MS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from remit.sandbox.launch.cell import Cell
    from remit.sandbox.launch.ground import Failure, Ground
    from remit.sandbox.launch.policy import Policy

REQUEST_SIZE = envelope.LIMIT
"""Bytes: each armed thread keeps a buffer for one. What is larger comes in an ``envelope``."""
_REPORTED = 128
"""Denials that a reply names; all of them are counted, and all are in the record."""
_RECORDED = 4096
_SIGKILL = 9
_LONGEST_WAIT_MS = 5000
"""poll(2) does not count suspended time, an expiry does: so it is looked at again this often."""
_PLACE = O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC
_ENDS = ("revoked", "expired")
"""Why a call that holds no authority any more is stopped; anything else ends it."""


class Jail(Source):
    """The thread of one call, and what the mediator knows of it."""

    __slots__ = (
        "_children",
        "_exemption",
        "_keeps",
        "_mail",
        "_own",
        "_tell_end",
        "arms",
        "busy",
        "call",
        "cell",
        "chain",
        "control",
        "deadline",
        "ending",
        "events",
        "failure",
        "ground",
        "identifier",
        "joins",
        "limit",
        "pid",
        "policy",
        "reply",
        "revoked",
        "separated",
        "spoiled",
        "terminal",
        "unseen",
        "untold",
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
        super().__init__(before_exec=self._executes)
        self.identifier = identifier
        self.policy = policy
        self.cell = cell
        self.ground = ground
        self.control = control
        self.arms = arms
        self.revoked = revoked
        """Ids of grants that were taken back: of the whole session, and growing."""
        self.separated = _thread.allocate_lock()
        """Held until the thread's descriptor table is its own."""
        self.separated.acquire()
        self.joins: list[tuple[int, int]] = []
        self._mail = sockets.Receiver(REQUEST_SIZE, REQUEST_DESCRIPTORS)
        self.busy = False
        """From a request's arrival until nothing of the call is left."""
        self._tell_end = tell_end
        self._keeps = keeps
        """Whether a cell that is left by a call under a policy is kept for another thread."""
        self.failure: Failure | None = None
        """Why this thread is of no use, which the mediator's thread finds out."""
        self.spoiled = False
        """Something of a call is, or may be, left in the cell."""
        self.terminal = False
        """The call was given one, which its client may hold for longer than it lasts."""
        self.untold: tuple[Any, ...] = ()
        """That the command began, where nobody was told yet."""
        self.unseen: tuple[Any, ...] = ()
        """The command's exec, where the mediator was not asked: when that was and when its process started, and the path."""
        self.ending = _thread.allocate_lock()
        """Held from before a call is answered until its end is told. Whoever ends the session takes it first."""
        self._exemption: Exemption | None = None
        self._own = -1
        """This thread's directory in the session's /proc: in the cell's it has none."""
        self._children = -1
        """A list in the cell's /proc, open from its first use to the thread's end."""
        self.call = ""
        self.chain: tuple[str, ...] = ()
        self.events: list[tuple[Any, ...]] = []
        self.pid = 0
        self.reply = -1
        self.deadline = 0.0
        self.limit = ""
        """What ended the command, where it was not its own doing: the name of a limit, ``expired``, ``revoked``, ``killed``."""
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
            self._end_cell()
            self._tell_main("broken", *told(error))
            return
        try:
            while self._serve():
                self._renew()
        finally:
            self._leave()

    def _separate(self) -> None:
        """A descriptor table of its own, with nothing of any other call's in it."""
        process.unshare(process.CLONE_FS | process.CLONE_FILES)
        policy = self.policy
        self.joins = [*self.cell.namespaces]
        namespaces = [descriptor for descriptor, _ in self.joins]
        own = (self.ground.place, self.control, self.arms, self.woken, *self.cell.descriptors)
        keep(policy.requests, policy.ruleset, *own, *namespaces)
        self._own = posix.open("/proc/thread-self", _PLACE)

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
            self._exemption = Exemption()
            before = self._exemption.program
        listener = notify.load_filter(before + policy.program, listener=True)
        self._tell_main("armed", descriptors=(listener, *asks))
        for descriptor in (listener, *asks):
            posix.close(descriptor)
        ground.prove(("landlock", "seccomp"))
        posix.close(ground.place)
        self._tell_main("proven")

    def _serve(self) -> bool:
        """One call. False: this thread is of no use for another."""
        data, came = self._mail.receive(self.policy.requests)
        if not data:
            return False  # the policy is forgotten, or the session ends
        self.reply = came.pop(0)
        self._take()
        try:
            if data == envelope.MARK:
                data = envelope.content(came.pop())
            return self._run(marshal.loads(data), came)
        except Exception as error:
            self._fail(error)
            # Nothing was started; but a terminal may have been opened.
            self.spoiled = bool(self.pid) or not (self._alone() and self._untouched())
            return not self.failure and not self.spoiled
        finally:
            for descriptor in came:
                posix.close(descriptor)
            posix.close(self.reply)

    def _run(self, request: tuple[Any, ...], came: list[int]) -> bool:
        """Start what is asked for and see it to its end. True: nothing of it is left anywhere."""
        call, chain, argv, environment, directory, terminal, background, expires = request
        if self.failure:
            raise Refused(*self.failure)
        self.spoiled = True
        self.call, self.chain = call, chain
        if expires and time.clock_gettime(time.CLOCK_BOOTTIME) >= expires:
            raise Refused("grant", "the grant has expired", "ask the grantor for a new one", 125)
        self._refuse_revoked()
        self.deadline = expires
        self.ground.bar(tuple(came))
        program.enter(directory)
        descriptors = tuple(came)
        path = b""
        if terminal is not None:
            from remit.sandbox.launch import stdio

            size, replaces = terminal
            self.terminal = True
            slave, path = stdio.open_call_terminal(self.reply, size)
            descriptors = tuple([slave if replaces[index] else came[index] for index in range(3)])
            came.append(slave)
        if self.policy.egress is not None:
            # Before it can connect: the gateway's decisions are to be known as this call's.
            sockets.send(self.control, marshal.dumps(("serves", self.identifier, call, chain)))
        begun, started = time.time(), time.monotonic()
        if path or not self._start_unasked(argv, environment, directory, descriptors):
            try:
                self.pid = program.start(
                    argv, environment, directory=directory, descriptors=descriptors, new_session=True, terminal=path
                )
            except Refused:
                self._refuse_revoked()  # that is why its exec was refused (``_executes``)
                raise
            # The limits are inherited from here on.
            self.before_exec = None
        while came:
            posix.close(came.pop())
        if self.policy.watched:
            self._tell_main("runs")
        self.untold = begun, call, self.pid, _brief(argv), self.policy.identifier, chain
        status, cpu, memory = self._wait(started)
        clean = self._alone()
        with self.ending:
            if not background and not clean:
                # The cell's PID 1 ends last, and not before the command's process is reaped (``pid_namespaces(7)``).
                self._reap()
                self._end_cell()
                self._answer(status, cpu, memory)
            else:
                self._answer(status, cpu, memory)
                self._reap()
            # What was noted of the call is in the record before its end is.
            began = self._beginning()
            denials = self.denials + self.looked_for
            self._tell_end(began, self.call, status, self.limit, cpu, memory, denials)
        if background and not clean:
            self._linger(started)
        self.spoiled = not (clean and self._untouched())
        return not self.spoiled

    def _start_unasked(
        self, argv: list[bytes], environment: list[bytes], directory: bytes, descriptors: tuple[int, ...]
    ) -> bool:
        """Start the command without the mediator. False: it has to be asked, and nothing is started.

        Asking takes two switches of thread and the mediator's work, longer than all the rest of a call's start. What goes
        wrong is tried again with its knowledge, and told as is all that a call's programs try.
        """
        exemption = self._exemption
        if exemption is None or self.policy.broker.held:
            return False
        path = program.found(argv[0], environment)
        if path is None:
            return False
        # Before it runs: a program can put another name in its own place.
        name = self._canonical(path) or (path if path.startswith(b"/") else directory + b"/" + path)
        number = Buffer(8)
        # As of a command that runs: from its first instruction on it may ask the mediator, before this thread wakes up.
        self.before_exec = None
        when, begun = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            self.pid = spawn(
                path,
                argv,
                environment,
                directory=directory,
                descriptors=descriptors,
                new_session=True,
                limits=self.policy.limits,
                words=exemption.words,
                own_number=number,
            )
        except OSError:
            self.before_exec = self._executes
            return False
        start = process.ticks(begun)
        if start != process.ticks(time.clock_gettime(time.CLOCK_BOOTTIME)):
            start = process.started(int.from_bytes(number.view, "little"))
        self.unseen = when, start, name
        return True

    def _beginning(self) -> tuple[Any, ...]:
        """That the command began, with its exec where the mediator did not see that; empty where it was told already."""
        if not self.untold:
            return ()
        executed = None
        if self.unseen:
            when, start, path = self.unseen
            if not path.startswith(b"/proc/"):
                executed = self.policy.broker.executed(self, when, self.pid, start, path)
        began = *self.untold, executed
        self.untold = self.unseen = ()
        return began

    def _canonical(self, path: bytes) -> bytes:
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

    def _take(self) -> None:
        """Not waiting for a request any more."""
        self.busy = True
        self.policy.calls += 1

    def _answer(self, status: int, cpu: float, memory: int) -> None:
        self._reply("exited", status, self.limit, cpu, memory, self.denials + self.looked_for, self.events[:_REPORTED])

    def _reap(self) -> None:
        with self.meeting:
            pass
        posix.waitpid(self.pid, 0)

    def _refuse_revoked(self) -> None:
        if not self.revoked.isdisjoint(self.chain):
            raise Refused("grant", "the grant was revoked", "ask the grantor for a new one", 125)

    def _renew(self) -> None:
        """Ready for the next call: nothing of the last one's is left, and what confines this thread still does.

        No process of the last call exists any more, so nobody is in this cell and under this filter but the next one. A
        private cell's own files do exist: it is not used again (``_serve`` ended with it).
        """
        self.policy.broker.settle(self)  # what the last of them did is still this call's
        self.before_exec = self._executes
        self.denials = self.looked_for = 0
        self.masks = False
        self.events = []
        self.recent = []
        self.call, self.chain = "", ()
        self.pid = 0
        self.terminal = False
        self.limit = ""
        self.deadline = 0.0
        posix.chdir("/")
        self.untold = self.unseen = ()
        self.busy = False

    def _wait(self, started: float) -> tuple[int, float, int]:
        """Until the command has ended, which is not reaped yet: listen to the client meanwhile, and watch the clock."""
        if process.has_ended(self.pid):
            self.policy.broker.settle(self)
            return process.ended(self.pid)
        watched = process.pidfd_open(self.pid)
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        poll.register(self.reply, select.POLLIN)
        poll.register(self.woken, select.POLLIN)
        self._look_out(poll)
        limit = self.policy.time_limit
        try:
            while True:
                # Of a command that is over in a moment, all is told at once.
                ready = poll.poll(GATHER_MS if self.untold else self._timeout(started, limit))
                for descriptor, events in ready:
                    if descriptor == watched:
                        self.policy.broker.settle(self)
                        return process.ended(self.pid)
                    if descriptor == self.woken:
                        self._heed()
                    elif descriptor == self.policy.requests:
                        self._want_another(poll, events)
                    elif events & (select.POLLHUP | select.POLLERR) and not events & select.POLLIN:
                        self.limit = self.limit or "abandoned"
                        self.kill(_SIGKILL)
                        poll.unregister(descriptor)
                    elif not self._obey():
                        poll.unregister(descriptor)
                if self.untold:
                    self._tell_template("began", *self._beginning())
                if limit and time.monotonic() - started >= limit:
                    limit = 0.0
                    self._stop("time")
                if self.deadline and time.clock_gettime(time.CLOCK_BOOTTIME) >= self.deadline:
                    self.deadline = 0.0
                    self._stop("expired")
        finally:
            posix.close(watched)

    def _look_out(self, poll: select.poll) -> None:
        """For a further request, where no other thread waits for one: it is not to wait for this call's end.

        A second thread that waits ahead would take every other request, with what its processor remembers of the last one.
        """
        if not self.policy.idle:
            poll.register(self.policy.requests, select.POLLIN)

    def _want_another(self, poll: select.poll, events: int) -> None:
        poll.unregister(self.policy.requests)
        if not events & select.POLLHUP:  # else there will be no further one
            self._tell_main("wanted")

    def _heed(self) -> None:
        """What the mediator says of a call, which may be over by now."""
        for why in self._told():
            self._stop(why)

    def _told(self) -> list[str]:
        lines = [line.partition(" ") for line in posix.read(self.woken, 4096).decode().splitlines()]
        return [why for why, _, call in lines if call == self.call]

    def _stop(self, why: str) -> None:
        """The authority is gone: end everything of this call's, or, for a policy that says so, stop it where it stands."""
        self.limit = self.limit or why
        if why not in _ENDS or not self.policy.freeze:
            self.kill(_SIGKILL)
        else:
            # Only the mediator sees the session's numbers of the cell's processes.
            self._tell_main("freeze")
            self._reply("frozen", why)

    def _timeout(self, started: float, limit: float) -> int | None:
        left: list[float] = []
        if limit:
            left.append(started + limit - time.monotonic())
        if self.deadline:
            left.append(self.deadline - time.clock_gettime(time.CLOCK_BOOTTIME))
        if not left:
            return None
        return max(0, min(_LONGEST_WAIT_MS, int(min(left) * 1000) + 1))

    def _obey(self) -> bool:
        """One message of the client's: a signal for the command. False: the client is gone, and the call with it."""
        try:
            data, _ = sockets.receive(self.reply, 64)
        except OSError as error:
            if error.errno == EINTR:
                return True
            data = b""
        if not data:
            self.limit = self.limit or "abandoned"
            self.kill(_SIGKILL)
            return False
        kind, number = data[:1], int.from_bytes(data[1:5], "little")
        if kind == b"k":
            self.limit = self.limit or "killed"
            self.kill(_SIGKILL)
        elif kind == b"g":
            self.kill(number, group=True)
        elif kind == b"s":
            self.kill(number)
        return True

    def _alone(self) -> bool:
        """Nothing but PID 1 is left in the cell: it has adopted every orphan, and has none."""
        try:
            if self._children < 0:
                self._children = posix.open("/proc/1/task/1/children", posix.O_RDONLY | posix.O_CLOEXEC)
            return not posix.pread(self._children, 64, 0)
        except OSError:
            return False

    def _linger(self, started: float) -> None:
        """A background call outlives its command: until its client lets go of it, or it has no authority any more."""
        poll = select.poll()
        poll.register(self.reply, select.POLLIN)
        poll.register(self.woken, select.POLLIN)
        self._look_out(poll)
        limit = self.policy.time_limit
        while not self._alone():
            ended: list[str] = []
            for descriptor, events in poll.poll(1000):
                if descriptor == self.woken:
                    ended += self._told()
                elif descriptor == self.policy.requests:
                    self._want_another(poll, events)
                elif events & (select.POLLHUP | select.POLLERR):
                    return
                else:
                    data, _ = sockets.receive(self.reply, 64)
                    if not data or data[:1] == b"k":
                        return
            if limit and time.monotonic() - started >= limit:
                return
            if self.deadline and time.clock_gettime(time.CLOCK_BOOTTIME) >= self.deadline:
                self.deadline = 0.0
                ended.append("expired")
            if ended and not (self.policy.freeze and all([why in _ENDS for why in ended])):
                return
            if ended:
                self._tell_main("freeze")

    def _fail(self, error: Exception) -> None:
        failure = told(error)
        if failure[0] == "changed":
            failure = ("launch", failure[1], HINT, 125)
        if self.reply >= 0:
            self._reply("failed", *failure)
        if self.untold:
            self._tell_template("began", *self._beginning())
        if self.call:
            self._tell_template("refused", self.call, *failure)

    def _reply(self, *message: Any) -> None:
        try:
            sockets.say(self.reply, marshal.dumps(message))
        except OSError as error:
            if error.errno != EPIPE:
                raise

    def _end_cell(self) -> None:
        if self.cell.life >= 0:
            self.cell.end()
            self.cell.life = -1

    def _leave(self) -> None:
        # The thread's own table goes with it, and with that the last copy of everything that was not told.
        if not self._give_back():
            self._end_cell()
            self._tell_main("done", False)

    def _untouched(self) -> bool:
        """Nothing is left in a cell that nobody is in: no terminal that somebody outside of it holds, and of a private one, it is
        as it was made."""
        if not self.policy.exempts:
            # Every open asks the mediator, and nobody can promise that it has time to answer.
            return not self.terminal and not self.policy.private
        try:
            if posix.listdir("/dev/pts") != ["ptmx"]:
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
        if self.spoiled or self.cell.life < 0 or not policy.exempts or policy.egress is not None:
            return False
        if not self._keeps(policy) or not self._alone():
            return False
        try:
            self._tell_main("done", True, descriptors=self.cell.leave(self._own))
        except OSError:
            return False
        return True

    def _tell_main(self, *message: Any, descriptors: tuple[int, ...] = ()) -> None:
        sockets.send(self.arms, marshal.dumps((self.identifier, *message)), descriptors)

    def _tell_template(self, *message: Any) -> None:
        try:
            sockets.say(self.control, marshal.dumps(message))
        except OSError as error:
            if error.errno != EPIPE:
                raise
            # The session is being ended, and nothing else may be told as the reason of that.
            process.leave(0)

    # --- for the mediator's thread too ---------------------------------------------------------------------------------

    def _executes(self, pid: int) -> None:
        """The command's first process waits for the mediator: the call's limits are its own from here on.

        Raises OSError: its grant was taken back since the call was let in. Who takes it back is told on this same thread, so
        that nothing runs its first instruction after that.
        """
        if not self.revoked.isdisjoint(self.chain):
            raise OSError(EACCES, posix.strerror(EACCES))
        self.policy.apply_limits(pid)

    def kill(self, signal: int, *, group: bool = False) -> None:
        """A signal for the command, or for its process group."""
        if self.pid:
            try:
                process.kill(-self.pid if group else self.pid, signal)
            except OSError:
                pass  # it has just ended


def _brief(argv: list[bytes]) -> list[bytes]:
    """A command line for the record, which keeps 4 KiB of it."""
    left = _RECORDED
    kept: list[bytes] = []
    for word in argv:
        if len(word) + 1 > left:
            return [*kept, word[:left], b"..."]
        kept.append(word)
        left -= len(word) + 1
    return kept
