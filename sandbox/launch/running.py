"""One call on its thread: starts the command, listens to the client and watches the clock meanwhile, says how it ended."""

from __future__ import annotations

import marshal
import posix
import select
import time
from errno import EAGAIN, ECONNRESET, EINTR, EPIPE

from remit.sandbox.kernel import process, sockets
from remit.sandbox.kernel.call import Buffer
from remit.sandbox.kernel.spawn import spawn
from remit.sandbox.launch import program
from remit.sandbox.launch.ground import Refused
from remit.sandbox.launch.leader import Leader
from remit.sandbox.launch.signals import SIGCONT
from remit.sandbox.mediate.observe import GATHER_MS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from remit.sandbox.launch.ground import Failure
    from remit.sandbox.launch.jail import Jail

_REPORTED = 128
"""Denials that a reply names; all of them are counted, and all are in the record."""
_REPLY = 1 << 16
"""Bytes of a reply: it names fewer where their names are long. Clients read twice as much, and any socket takes it."""
_RECORDED = 4096
_SIGKILL = 9
_LONGEST_WAIT_MS = 5000
"""poll(2) does not count suspended time, an expiry does: so it is looked at again this often."""
_LINGER_MS = 1000
_GRACE = 1.0
"""Seconds in which a killed command ends, or whoever traces one lets go of it when it is over (``strace -D`` does)."""
_LONGEST_PAUSE_MS = 200
_ENDS = ("revoked", "expired")
"""Why a call that holds no authority any more is stopped; anything else ends it."""


class Running:
    """From the request's arrival until nothing of the call is left, or the thread is of no use for another."""

    __slots__ = (
        "_answered",
        "_argv",
        "_background",
        "_directory",
        "_early",
        "_environment",
        "_expires",
        "_frozen",
        "_jail",
        "_jobs",
        "_leader",
        "_overdue",
        "_reaped",
        "_reply",
        "_report",
        "_started",
        "_unseen",
        "_untold",
        "_window",
        "call",
        "chain",
        "ended",
        "limit",
        "over",
        "pid",
        "stopped",
        "terminal",
    )

    def __init__(self, jail: Jail, reply: int, request: tuple[Any, ...]) -> None:
        """``reply``: where the answer goes, and the client's wishes come from. ``request``: ``core.Ticket``'s."""
        call, chain, argv, environment, directory, window, background, expires, jobs = request
        self.call: str = call
        self.chain: tuple[str, ...] = chain
        self.pid = 0
        self.limit = ""
        """What ended the command, where it was not its own doing: the name of a limit, ``expired``, ``revoked``, ``killed``."""
        self.ended = False
        """Nothing of it is left, which its client is about to hear, or has heard."""
        self.over = False
        """It holds no authority any more: whatever is left of it ends with its command, and nothing of it lingers."""
        self.terminal = False
        """The call was given one, which its client may hold for longer than it lasts."""
        self.stopped = False
        """The client is told so, and has not let it go on yet. Set by the thread that waits for it (``stops``)."""
        self._argv: list[bytes] = argv
        self._environment: list[bytes] = environment
        self._directory: bytes = directory
        self._early: list[bytes] = []
        """What the client said before there was a command to say it to."""
        self._window = window
        self._background: bool = background
        self._expires: float = expires
        self._frozen = False
        """It stands where it stood when its authority ended."""
        self._answered = self._reaped = False
        self._jail = jail
        self._jobs: bool = jobs
        """The client controls it as a job: it hears that the command has begun, and when it stops."""
        self._leader: Leader | None = None
        """The command's parent, where it is not this process."""
        self._report: tuple[int, float, int] | None = None
        """What the leader said of the command's end."""
        self._overdue = 0.0
        """When the command, which was killed or is over, is waited for no longer; on the monotonic clock. 0: it runs."""
        self._reply = reply
        self._started = 0.0
        self._untold: tuple[Any, ...] = ()
        """That the command began, where nobody was told yet."""
        self._unseen: tuple[Any, ...] = ()
        """The command's exec, where the mediator was not asked: when that was and when its process started, and the path."""

    def run(self, came: list[int]) -> bool:
        """Start what is asked for, with the streams that ``came``, and see it to its end. True: nothing of it is left in the
        cell. Raises Refused, OSError: nothing was started, or, where ``pid`` is set, something is wrong with what was."""
        jail = self._jail
        expires = self._expires
        if expires and time.clock_gettime(time.CLOCK_BOOTTIME) >= expires:
            raise Refused("grant", "the grant has expired", "ask the grantor for a new one", 125)
        self._refuse_revoked()
        if self._withdrawn():
            self._never_start()
            return True
        jail.ground.bar(tuple(came))
        program.enter(self._directory)
        descriptors = tuple(came)
        slave, path = -1, b""
        if self._window is not None:
            from remit.sandbox.launch import stdio

            size, replaces = self._window
            self.terminal = True
            slave, path = stdio.open_call_terminal(self._reply, size)
            descriptors = tuple([slave if replaces[index] else came[index] for index in range(3)])
            came.append(slave)
        if jail.policy.egress is not None:
            # Before it can connect: the gateway's decisions are to be known as this call's.
            sockets.send(jail.control, marshal.dumps(("serves", jail.identifier, self.call, self.chain)))
        begun, self._started = time.time(), time.monotonic()
        if path and self._jobs and jail.policy.exempts:
            self._start_led(slave, descriptors)
        elif path or not self._start_unasked(descriptors):
            try:
                self.pid = program.start(
                    self._argv,
                    self._environment,
                    directory=self._directory,
                    descriptors=descriptors,
                    new_group=self._apart,
                    new_session=not self._apart,
                    terminal=path,
                )
            except Refused:
                self._refuse_revoked()  # that is why its exec was refused (``Jail.executes``)
                raise
            # The limits are inherited from here on.
            jail.before_exec = None
        while came:
            posix.close(came.pop())
        if jail.policy.watched:
            jail.tell_main("runs")
        if self._jobs:
            answer(self._reply, "began")
        self._untold = begun, self.call, self.pid, _brief(self._argv), jail.policy.identifier, self.chain
        for message in self._early:
            self._heed(message)
        return self._see_to_its_end()

    @property
    def leader(self) -> int:
        """The pid of the command's leader, if it has one, which is Remit's own."""
        return 0 if self._leader is None else self._leader.pid

    def give_up(self, failure: Failure) -> Failure:
        """Something is wrong with it: end what was started of it. What to tell of that."""
        if not self.pid:
            return failure
        phase, message, hint, status = failure
        self._jail.end_cell()
        return phase, f"the command had been started, and was ended: {message}", hint, status

    def failed(self, failure: Failure) -> None:
        """Tell the client, and the template."""
        jail = self._jail
        self.ended = True
        if not self._answered:
            self._answered = True
            answer(self._reply, "failed", *failure)
        if self._untold:
            jail.tell_template("began", *self._beginning())
        jail.tell_template("refused", self.call, *failure)

    def kill(self, signal: int, *, group: bool = False) -> None:
        """A signal for the command, or for its process group."""
        if self.pid:
            try:
                process.kill(-self.pid if group else self.pid, signal)
            except OSError:
                pass  # it has just ended

    # --- its start -----------------------------------------------------------------------------------------------------

    @property
    def _apart(self) -> bool:
        """It gets a process group of its own, and no session: a group whose parents are all in other sessions is orphaned, and
        SIGTSTP does nothing there (``setpgid(2)``). Only the first process of a session gets a terminal, though."""
        return self._jobs and not self.terminal

    def _refuse_revoked(self) -> None:
        if not self._jail.revoked.isdisjoint(self.chain):
            raise Refused("grant", "the grant was revoked", "ask the grantor for a new one", 125)

    def _withdrawn(self) -> bool:
        """The client has ended the call, or let go of it, while its request waited for this thread."""
        poll = select.poll()
        poll.register(self._reply, select.POLLIN)
        while ready := poll.poll(0):
            data = b""
            if ready[0][1] & select.POLLIN:
                data, _ = sockets.receive(self._reply, 64)
            if not data or data[:1] == b"k":
                return True
            self._early.append(data)
        return False

    def _never_start(self) -> None:
        """As if it had been killed before its first instruction. For the record, it is one that was refused."""
        self._answered = self.ended = True
        answer(self._reply, "exited", _SIGKILL, "killed", 0.0, 0, 0, [], True)
        self.failed(("launch", "it was withdrawn before it was started", "", 125))

    def _start_led(self, terminal: int, descriptors: tuple[int, ...]) -> None:
        """Start the command as its leader's child. Everything is listened to meanwhile: as soon as the command runs, it can stop
        whoever would say that it does."""
        jail = self._jail
        leader = self._leader = Leader(terminal, descriptors, self._argv, self._environment, self._directory)
        poll = select.poll()
        for descriptor in (leader.channel, self._reply, jail.woken):
            poll.register(descriptor, select.POLLIN)
        limit = jail.policy.time_limit
        why = ""
        while not why:
            for descriptor, _ in poll.poll(self._timeout(limit, 0)):
                if descriptor == jail.woken:
                    why = why or next(iter(self._told()), "")
                elif descriptor == self._reply and self._withdrawn():
                    why = why or "killed"
            heard = leader.heard()
            if heard is not None and heard[0] == "asks":
                jail.executing = 0
                leader.go()
            elif heard is not None and heard[0] == "started" and jail.executing:
                self.pid, jail.before_exec = jail.executing, None
                break
            elif heard is not None and heard[0] == "failed":
                self.reap()
                self._refuse_revoked()
                raise Refused(*heard[1:])
            elif heard is not None:
                why = why or "lost"
            if limit and time.monotonic() - self._started >= limit:
                why = why or "time"
            if self._has_expired():
                why = why or "expired"
        if why:
            # Nobody can say how far it came.
            self.over = True
            jail.end_cell()
            self._refuse_revoked()
            raise Refused("launch", f"the call was ended while its command was started: {why}", "", 125)

    def _start_unasked(self, descriptors: tuple[int, ...]) -> bool:
        """Start the command without the mediator. False: it has to be asked, and nothing is started.

        Asking takes two switches of thread and the mediator's work, longer than all the rest of a call's start. What goes
        wrong is tried again with its knowledge, and told as is all that a call's programs try.
        """
        jail = self._jail
        if jail.exemption is None or jail.policy.broker.held:
            return False
        path = program.found(self._argv[0], self._environment)
        if path is None:
            return False
        # Before it runs: a program can put another name in its own place.
        name = jail.canonical(path) or (path if path.startswith(b"/") else self._directory + b"/" + path)
        number = Buffer(8)
        # As of a command that runs: from its first instruction on it may ask the mediator, before this thread wakes up.
        before, jail.before_exec = jail.before_exec, None
        when, begun = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            self.pid = spawn(
                path,
                self._argv,
                self._environment,
                directory=self._directory,
                descriptors=descriptors,
                new_group=self._apart,
                new_session=not self._apart,
                limits=jail.policy.limits,
                words=jail.exemption.words,
                own_number=number,
            )
        except OSError:
            jail.before_exec = before
            return False
        start = process.ticks(begun)
        if start != process.ticks(time.clock_gettime(time.CLOCK_BOOTTIME)):
            start = process.started(int.from_bytes(number.view, "little"))
        self._unseen = when, start, name
        return True

    def _beginning(self) -> tuple[Any, ...]:
        """That the command began, with its exec where the mediator did not see that; empty where it was told already."""
        if not self._untold:
            return ()
        executed = None
        if self._unseen:
            when, start, path = self._unseen
            if not path.startswith(b"/proc/"):
                executed = self._jail.policy.broker.executed(self._jail, when, self.pid, start, path)
        began = *self._untold, executed
        self._untold = self._unseen = ()
        return began

    # --- its end -------------------------------------------------------------------------------------------------------

    def _see_to_its_end(self) -> bool:
        jail, background = self._jail, self._background
        status, cpu, memory = self._wait()
        clean = jail.alone(self.leader or self.pid)
        # Not one whose authority ended under its command: what it left behind has none either.
        lingers = background and not clean and not self.over and jail.cell.life >= 0
        with jail.ending:
            if not clean and not lingers:
                jail.end_cell()
                self.ended = True
                self._answer(status, cpu, memory)
            else:
                self.ended = clean
                self._answer(status, cpu, memory)
                self.reap()
            # What was noted of the call is in the record before its end is.
            began = self._beginning()
            denials = jail.denials + jail.looked_for
            jail.tell_end(began, self.call, status, self.limit, cpu, memory, denials)
        if lingers:
            self._linger()
        return clean

    def _answer(self, status: int, cpu: float, memory: int) -> None:
        jail = self._jail
        how = "exited", status, self.limit, cpu, memory, jail.denials + jail.looked_for
        events = jail.events[:_REPORTED]
        data = marshal.dumps((*how, events, True))
        if len(data) > _REPLY:
            # What a command names can be as long as it likes.
            data = marshal.dumps((*how, _fitting(events), False))
        say(self._reply, data)
        self._answered = True

    def reap(self) -> None:
        """The command's process, once: it has ended, or is ending with the cell."""
        if self._reaped or not (self.pid or self._leader):
            return
        with self._jail.meeting:
            pass
        if self._leader is None:
            posix.waitpid(self.pid, 0)
        else:
            self._leader.reap()
        self._reaped = True

    def _wait(self) -> tuple[int, float, int]:
        """Until the command has ended, which is not reaped yet: listen to the client meanwhile, and watch the clock.

        A process that is traced has ended when its tracer lets go of it (``ptrace(2)``), which no signal for it can change;
        and the tracer may be its own child. One that does not let go in time is ended with all of the cell.
        """
        jail = self._jail
        ended = self._ended()
        if ended is not None:
            return ended
        leader = self._leader
        watched = process.pidfd_open(self.pid) if leader is None else leader.channel
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        poll.register(self._reply, select.POLLIN)
        poll.register(jail.woken, select.POLLIN)
        if self._jobs and leader is None:
            jail.tell_main("job", self.call, descriptors=(watched,))
        self._look_out(poll)
        limit = jail.policy.time_limit
        pause = 0
        try:
            while True:
                # Of a command that is over in a moment, all is told at once.
                ready = poll.poll(GATHER_MS if self._untold else self._timeout(limit, pause))
                for descriptor, events in ready:
                    if descriptor == watched:
                        ended = self._ended()
                        if ended is not None:
                            return ended
                        if leader is not None and not events & select.POLLHUP:
                            continue
                        poll.unregister(watched)
                        pause = 1
                        if not self._background:
                            self._give_time()
                    elif descriptor == jail.woken:
                        for why in self._told():
                            if why == "stopped":
                                self._tell_stopped()
                            else:
                                self._stop(why)
                    elif descriptor == jail.policy.requests:
                        self._want_another(poll, events)
                    elif events & (select.POLLHUP | select.POLLERR) and not events & select.POLLIN:
                        self._end("abandoned")
                        poll.unregister(descriptor)
                    elif not self._obey():
                        poll.unregister(descriptor)
                if pause:
                    # Nothing tells that the tracer has let go.
                    ended = self._ended()
                    if ended is not None:
                        return ended
                    pause = min(2 * pause, _LONGEST_PAUSE_MS)
                if self._untold:
                    jail.tell_template("began", *self._beginning())
                if self._overdue and time.monotonic() >= self._overdue:
                    jail.cell.cut()
                    self._overdue = 0.0
                    pause = pause or 1
                if limit and time.monotonic() - self._started >= limit:
                    limit = 0.0
                    self._stop("time")
                if self._has_expired():
                    self._stop("expired")
        finally:
            if leader is None:
                posix.close(watched)

    def _ended(self) -> tuple[int, float, int] | None:
        if self._leader is None:
            ended = process.ended(self.pid)
        else:
            ended = self._told_end(self._leader)
        if ended is not None:
            self._jail.policy.broker.settle(self._jail)
        return ended

    def _told_end(self, leader: Leader) -> tuple[int, float, int] | None:
        """Of a leader that was killed, from inside, its own end is the command's: everything else ends with it."""
        while (heard := leader.heard()) is not None:
            if heard[0] == "stopped" and not self.stopped:
                self.stopped = True
                self._tell_stopped()
            elif heard[0] == "ended":
                self._report = heard[1:]
            elif heard[0] == "gone":
                break
        return self._report or process.ended(leader.pid)

    def _linger(self) -> None:
        """A background call outlives its command: until its client lets go of it, or it has no authority any more."""
        jail = self._jail
        poll = select.poll()
        poll.register(self._reply, select.POLLIN)
        poll.register(jail.woken, select.POLLIN)
        self._look_out(poll)
        limit = jail.policy.time_limit
        while not jail.alone():
            ended: list[str] = []
            for descriptor, events in poll.poll(_LINGER_MS):
                if descriptor == jail.woken:
                    ended += self._told()
                elif descriptor == jail.policy.requests:
                    self._want_another(poll, events)
                elif events & (select.POLLHUP | select.POLLERR):
                    return
                else:
                    data, _ = sockets.receive(self._reply, 64)
                    if not data or data[:1] == b"k":
                        return
            if limit and time.monotonic() - self._started >= limit:
                return
            if self._has_expired():
                ended.append("expired")
            if ended and not (jail.policy.freeze and all([why in _ENDS for why in ended])):
                return
            if ended:
                jail.tell_main("freeze")

    def _give_time(self) -> None:
        self._overdue = self._overdue or time.monotonic() + _GRACE

    def _kill(self) -> None:
        """The command, and where that does not end it, all of the cell."""
        self.kill(_SIGKILL)
        self._give_time()

    def _timeout(self, limit: float, pause: int) -> int | None:
        left: list[float] = [pause / 1000] if pause else []
        if self._overdue:
            left.append(self._overdue - time.monotonic())
        if limit:
            left.append(self._started + limit - time.monotonic())
        if self._expires:
            left.append(self._expires - time.clock_gettime(time.CLOCK_BOOTTIME))
        if not left:
            return None
        return max(0, min(_LONGEST_WAIT_MS, int(min(left) * 1000) + 1))

    def _has_expired(self) -> bool:
        """Once."""
        if not self._expires or time.clock_gettime(time.CLOCK_BOOTTIME) < self._expires:
            return False
        self._expires = 0.0
        return True

    # --- what others want of it ----------------------------------------------------------------------------------------

    def _look_out(self, poll: select.poll) -> None:
        """For a further request, where no other thread waits for one: it is not to wait for this call's end.

        A second thread that waits ahead would take every other request, with what its processor remembers of the last one.
        """
        if not self._jail.policy.idle:
            poll.register(self._jail.policy.requests, select.POLLIN)

    def _want_another(self, poll: select.poll, events: int) -> None:
        poll.unregister(self._jail.policy.requests)
        if not events & select.POLLHUP:  # else there will be no further one
            self._jail.tell_main("wanted")

    def _told(self) -> list[str]:
        """What the mediator says of this call: it may say it of one that is over by now."""
        lines = [line.partition(" ") for line in posix.read(self._jail.woken, 4096).decode().splitlines()]
        return [why for why, _, call in lines if call == self.call]

    def _stop(self, why: str) -> None:
        """The authority is gone: end everything of this call's, or, for a policy that says so, stop it where it stands."""
        self.over = True
        if why not in _ENDS or not self._jail.policy.freeze:
            self._end(why)
        else:
            self.limit = self.limit or why
            self._frozen = True
            # Only the mediator sees the session's numbers of the cell's processes.
            self._jail.tell_main("freeze")
            answer(self._reply, "frozen", why)

    def _end(self, why: str) -> None:
        """End the command; of a call that stands frozen, everything at once: by the end of its command alone the kernel would
        wake others (SIGCONT for a process group that is orphaned, ``_exit(2)``)."""
        self.limit = self.limit or why
        if self._frozen:
            self._jail.cell.cut()
        else:
            self._kill()

    def _tell_stopped(self) -> None:
        """A client that is stopped itself reads nothing, and is not waited for."""
        if self._frozen:
            return  # nobody is to think that it could go on
        try:
            sockets.send(self._reply, marshal.dumps(("stopped",)), wait=False)
        except OSError as error:
            if error.errno not in (EAGAIN, EPIPE, ECONNRESET):
                raise

    def _obey(self) -> bool:
        """One message of the client's: a signal for the command. False: the client is gone, and the call with it."""
        try:
            data, _ = sockets.receive(self._reply, 64)
        except OSError as error:
            if error.errno == EINTR:
                return True
            data = b""
        if not data:
            self._end("abandoned")
            return False
        self._heed(data)
        return True

    def _heed(self, data: bytes) -> None:
        kind, number = data[:1], int.from_bytes(data[1:5], "little")
        if kind == b"k" or (self._frozen and number == _SIGKILL):
            self._end("killed")
        elif self._frozen:
            pass  # nobody can let it go on
        elif kind == b"g":
            if number == SIGCONT:
                self.stopped = False
            self.kill(number, group=True)
        elif kind == b"s":
            self.kill(number)


def answer(reply: int, *message: Any) -> None:
    """To a call's client, who may be gone. Raises OSError."""
    say(reply, marshal.dumps(message))


def say(reply: int, data: bytes) -> None:
    """``answer``, of what is marshalled already."""
    try:
        sockets.say(reply, data)
    except OSError as error:
        if error.errno not in (EPIPE, ECONNRESET):
            raise


def _fitting(events: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The first of them, as many as a reply has room for."""
    kept: list[tuple[Any, ...]] = []
    left = _REPLY
    for event in events:
        left -= len(marshal.dumps(event))
        if left < 0:
            break
        kept.append(event)
    return kept


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
