"""A session's first process where it serves many calls: it mediates, and keeps calls armed ahead of their requests.

Threads, each with what it alone may do:

- *main*: the mediator, in the Landlock domain *session*, with CAP_SYS_PTRACE of the session's own user namespace. One loop:
  it listens to the template (``control``), to clients (``doors``), to the calls' filters, and to what the others tell it.
- *maker*: makes cells (``cells``). No Landlock domain, every capability; it runs nothing that comes from anywhere.
- *armer* (``armer``): joins both: in the domain *session*, so that what it starts is below the mediator's, with the
  capabilities that entering a cell takes.
- one for each armed or running call (``jail``, ``running``).

Every descriptor that the main thread holds is closed in the calls' own tables. When ``control`` closes, this process ends,
and with it, by the kernel's hand, everything in the session.
"""

from __future__ import annotations

import _thread
import marshal
import posix
import select
import time

from remit.sandbox.kernel import landlock, network, process, sockets
from remit.sandbox.kernel.fastpath import Others
from remit.sandbox.kernel.placement import Placement
from remit.sandbox.kernel.spawn import reset_only
from remit.sandbox.launch import envelope, stops, usage
from remit.sandbox.launch.armer import Armer
from remit.sandbox.launch.cells import Cells
from remit.sandbox.launch.freeze import freeze, processes
from remit.sandbox.launch.ground import Ground, Refused, open_inside, told
from remit.sandbox.launch.notes import Notes
from remit.sandbox.launch.policy import Policy
from remit.sandbox.mediate.observe import GATHER_MS
from remit.sandbox.mediate.resolve import Umasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from remit.sandbox.launch.jail import Jail
    from remit.sandbox.launch.request import Request

_STACK = 1 << 18
_REVOKE = b"revoke "
_WATCH_MS = 200
_LAST_WORDS = 1.0
_DEVICE_NODES = 1 << 6 | 1 << 11
"""LANDLOCK_ACCESS_FS_MAKE_CHAR and MAKE_BLOCK."""
_FULL = (
    "launch",
    "the session can open no more descriptors: the call was not started",
    "raise 'ulimit -n' before the session starts, or run fewer calls at a time",
    125,
)
MOST = 32
"""Threads of one policy. Beyond that, requests wait for one to come back."""
_DESCRIPTORS = 16
"""With a message at most: of a private cell that is left."""


class Zygote:
    """One session's first process. Made and run in the child, once."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._ground = Ground(request)
        self._poll = select.poll()
        self._mail = sockets.Receiver(envelope.LIMIT, _DESCRIPTORS)
        self._handlers: dict[int, Callable[[int, int], None]] = {}
        self._others: dict[int, Others] = {}
        """By listener: what is watched besides it."""
        self._doors: set[int] = set()
        self._policies: dict[int, Policy] = {}
        self._jails: dict[int, Jail] = {}
        self._listeners: dict[int, Jail] = {}
        self._leaving: dict[int, Jail] = {}
        """Those whose thread is of no use, and not gone yet."""
        self._number = 0
        self._deadline = 0.0
        self._memory_limit = 0
        self._next_look = 0.0
        self._arming: dict[int, Policy] = {}
        self._held = False
        self._notes = Notes(self._tell)
        self._placement = Placement()
        self._umasks = Umasks(time.monotonic)
        self._revoked: set[str] = set()
        self._lines: tuple[tuple[str, str, int, str], ...] = next(
            (operation[3] for operation in request.operations if operation[0] == "record"), ()
        )

    def run(self) -> None:
        """Ends the process. A failure of the start is told to the template."""
        try:
            self._confine()
            # The plan is done with, and would be kept as long as the session.
            self._request.operations = ()
            self._ground.found.clear()
            self._tell("ready", self._ground.enforcement)
            self._loop()
        except Exception as error:
            self._tell("failed", *told(error))

    # --- the start -----------------------------------------------------------------------------------------------------

    def _confine(self) -> None:
        ground = self._ground
        if "unshare" not in ground.found or "landlock" not in ground.found or "mediate" not in ground.found:
            raise Refused(
                "launch",
                "a session needs namespaces, Landlock and mediation",
                "'remit run' can do without one of them (--degrade)",
                125,
            )
        ground.enter()
        if ground.canary >= 0:
            posix.close(ground.canary)
        ground.hide_place()
        held = process.capabilities()
        process.no_new_privileges()
        # Inheritable before the bounding set is empty: the calls' PID 1 mounts its /proc with it.
        process.set_capabilities(held, 1 << process.CAP_SYS_ADMIN)
        process.drop_bounding_set()
        process.set_dumpable(False)
        ground.prove(("namespaces",))
        ground.close_root()
        for _, what, value, mechanism in self._limits():
            if mechanism == "timer":
                self._deadline = time.monotonic() + int(value) / 1000
            elif mechanism == "watch" and what == "memory":
                self._memory_limit = int(value)
        self._start_threads()

    def _limits(self) -> list[tuple[Any, ...]]:
        return [operation for operation in self._request.operations if operation[0] == "limit"]

    def _start_threads(self) -> None:
        reset_only(usage.ignored_signals())
        _thread.stack_size(_STACK)
        self._cells = Cells(self._request.operations)
        landlock.restrict_self(self._domain())
        self._armer = Armer(
            self._cells, self._ground, self._request.control, self._jails, self._revoked, self._notes.end
        )
        self._armer.start()
        process.set_capabilities(1 << process.CAP_SYS_PTRACE)
        if self._ground.hidden is not None:
            _thread.start_new_thread(self._ground.hidden.serve, (self._looked_for,))

    def _domain(self) -> int:
        """The mediator's domain: what the mounts allow, and no device nodes. Every call's own is nested in it.

        It cannot be narrower. Landlock knows objects, and the cells' own file systems (/proc, terminals, a private /tmp) are
        not there yet when it is made; what a call may do in them, both domains have to allow.
        """
        for operation in self._request.operations:
            if operation[0] == "landlock" and operation[1] == "session":
                _, _, handled_fs, handled_net, scoped, _, ports = operation
                ruleset = landlock.create_ruleset(handled_fs, handled_net, scoped)
                root = open_inside("/")
                landlock.allow_path(ruleset, root, handled_fs & ~_DEVICE_NODES)
                posix.close(root)
                for port, access in ports:
                    landlock.allow_port(ruleset, port, access)
                return ruleset
        raise Refused("launch", "the plan has no Landlock domain", "", 125)

    # --- the loop ------------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        self._watch(self._request.control, self._from_template)
        self._watch(self._armer.told, self._from_jail)
        while True:
            ready = self._poll.poll(self._timeout())
            if not ready:
                self._notes.send()
            for descriptor, events in ready:
                handler = self._handlers.get(descriptor)
                if handler is not None:
                    handler(descriptor, events)
            if self._deadline and time.monotonic() >= self._deadline:
                self._end("time")
            self._watch_memory()

    def _timeout(self) -> int | None:
        if self._notes.waiting:
            return GATHER_MS
        if any([jail.pid and (self._memory_limit or jail.policy.memory_limit) for jail in self._listeners.values()]):
            return _WATCH_MS
        if self._deadline:
            return max(0, int((self._deadline - time.monotonic()) * 1000) + 1)
        return None

    def _watch_memory(self) -> None:
        """What processes use is sampled, and not at every message: looking costs as much as a call."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _WATCH_MS / 1000
        if self._memory_limit and usage.memory_exceeds(self._memory_limit):
            self._end("memory")
        for jail in [*self._listeners.values()]:
            limit, running = jail.policy.memory_limit, jail.running
            if not limit or running is None or not running.pid or running.over:
                continue
            if usage.memory_exceeds(limit, [pid for pid in processes(jail.cell) if pid != running.leader]):
                _tell_jail(jail, "memory", running.call)

    def _end(self, limit: str) -> None:
        self._notes.send()
        self._tell("limit", limit)
        process.leave(0)

    def _watch(self, descriptor: int, handler: Callable[[int, int], None]) -> None:
        self._others.clear()
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, select.POLLIN)

    def _unwatch(self, descriptor: int) -> None:
        self._others.clear()
        if self._handlers.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def _forget(self, descriptor: int) -> None:
        self._unwatch(descriptor)
        posix.close(descriptor)

    def _tell(self, *message: Any) -> None:
        try:
            data, copies = envelope.enclosed(marshal.dumps(message))
            if not copies:
                sockets.say(self._request.control, data)
                return
            sockets.send(self._request.control, data, tuple(copies))
            for copy in copies:
                posix.close(copy)
        except OSError:
            process.leave(125)  # the template is gone, and everything here goes with this process

    # --- the template and the clients ----------------------------------------------------------------------------------

    def _from_template(self, descriptor: int, _events: int) -> None:
        data, came = self._mail.receive(descriptor)
        if not data:
            deadline = time.monotonic() + _LAST_WORDS
            for jail in [*self._jails.values()]:
                # Whoever got an answer, and ends the session then, finds all of that call in its record.
                jail.ending.acquire(timeout=max(0.0, deadline - time.monotonic()))
            self._notes.send()
            process.leave(0)
        if data in (b"hold", b"go on"):
            self._held = data == b"hold"
            for policy in {jail.policy for jail in self._jails.values()} | {*self._policies.values()}:
                policy.broker.held = self._held
        elif data == b"door" and came:
            self._doors.add(came[0])
            self._watch(came[0], self._from_client)
        elif data.startswith(_REVOKE):
            self._take_back(data[len(_REVOKE) :].decode())

    def _from_client(self, door: int, _events: int) -> None:
        try:
            data, came = self._mail.receive(door)
        except OSError:
            data, came = b"", []
        if not data:
            self._doors.discard(door)
            for policy in [policy for policy in self._policies.values() if policy.door == door]:
                self._drop(policy)
            self._forget(door)
            return
        if data == envelope.MARK:
            if not came:
                self._cells.make_room()
                self._say(door, "full", *_FULL)
                return
            data = envelope.content(came.pop())
        kind, *values = marshal.loads(data)
        if kind == "policy" and not came:
            self._cells.make_room()
            self._say(door, "refused", values[0], *_FULL)
        elif kind == "policy":
            self._define(door, values[0], values[1], came[0])
        elif kind == "forget":
            for policy in [one for one in self._policies.values() if (one.door, one.identifier) == (door, values[0])]:
                self._drop(policy)
        elif kind == "revoke":
            self._say(door, "revoked", values[0], self._take_back(values[0]))
        elif kind == "taken":
            self._say(door, "taken", values[0], self._runs(values[0]))
        elif kind == "watch":
            self._tell("watch", values[0])

    def _define(self, door: int, identifier: int, wire: Any, requests: int) -> None:
        try:
            policy = Policy(identifier, wire, requests, self._notes.note, self._cells.places, self._lines, self._umasks)
        except Exception as error:
            if isinstance(error, OSError):
                self._cells.make_room()
            # Said before the socket closes: whoever sees its end asks here why.
            self._say(door, "refused", identifier, *told(error))
            posix.close(requests)
            return
        policy.door = door
        self._number += 1
        self._policies[self._number] = policy
        policy.number = self._number
        policy.watched = bool(self._memory_limit or policy.memory_limit)
        policy.broker.held = self._held
        self._tell("policy", identifier, policy.digest, policy.beyond)
        self._arm(policy)

    def _drop(self, policy: Policy, failure: Sequence[Any] = ()) -> None:
        """No further call under it; those that run go on. Its idle threads see the socket's end; who waits hears the failure."""
        if policy.dropped:
            return
        self._policies.pop(policy.number, None)
        self._unwatch(policy.requests)
        if failure:
            policy.refuse(failure)
        else:
            policy.end()
        self._give_up(policy)

    def _give_up(self, policy: Policy) -> None:
        """Close what a dropped policy holds, but not under a thread that is being armed for it: the numbers would be
        another policy's by the time that the thread uses them, and it would serve that one's requests."""
        if policy.dropped and policy not in self._arming.values():
            policy.close()
        self._over(policy)

    def _over(self, policy: Policy) -> None:
        """A thread of a dropped policy has gone, or will not come: with the last one goes what mediates for it."""
        leaving = [jail.policy for jail in self._leaving.values()]
        if policy.dropped and not policy.arming and not policy.jails and policy not in leaving:
            policy.broker.close()

    def _take_back(self, grant: str) -> list[str]:
        """End (or stop) the calls that run under a grant, and let no other one start. Their ids."""
        # Before looking at the calls: one whose request is on its way looks here after it can be seen.
        self._revoked.add(grant)
        stopped: list[str] = []
        # All of them: one that was only just armed may serve before the message with its listener has been read.
        for jail in [*self._jails.values()]:
            running = jail.running
            # One that has been answered is there until its thread is ready for the next.
            if running is not None and not running.ended and grant in running.chain:
                stopped.append(running.call)
                _tell_jail(jail, "revoked", running.call)
        return stopped

    def _runs(self, call: str) -> bool:
        """Whether a thread has a call's request. It can be seen here before that thread looks whether the client, who asks this
        only then, has withdrawn it (``Running``)."""
        at_work = [jail.running for jail in [*self._jails.values()]]
        return any([running is not None and running.call == call for running in at_work])

    def _say(self, door: int, *message: Any) -> None:
        try:
            sockets.send(door, marshal.dumps(message), wait=False)
        except OSError:
            pass  # who does not read hears nothing; the ends of its sockets tell the rest

    # --- the calls -----------------------------------------------------------------------------------------------------

    def _arm(self, policy: Policy) -> None:
        policy.arming += 1
        self._number += 1
        self._arming[self._number] = policy
        self._armer.arm(policy, self._number)

    def _from_jail(self, descriptor: int, _events: int) -> None:
        data, came = self._mail.receive(descriptor)
        number, kind, *values = marshal.loads(data)
        jail = self._jails.get(number)
        if kind == "armed" and jail is not None and not came:
            # Its thread does not know, and may take a request.
            jail.failure = _FULL
            self._leaving[number] = jail
            self._broken(number, _FULL)
        elif kind == "armed" and jail is not None:
            jail.attach(came[0], self._placement)
            if len(came) > 1:
                jail.listeners = network.Listeners(came[1])
            self._listeners[came[0]] = jail
            self._watch(came[0], self._from_filter)
        elif kind == "proven" and jail is not None:
            policy = jail.policy
            del self._arming[number]
            policy.arming -= 1
            policy.jails.append(jail)
            self._give_up(policy)
            if jail.busy:
                self._await_use(policy)  # it was quick, and may have looked before this
        elif kind == "wanted" and jail is not None:
            self._wanted(jail.policy)
        elif kind == "runs":
            pass  # this thread is awake, and finds it (``_timeout``)
        elif kind == "job" and jail is not None and came:
            running = jail.running
            if running is not None and running.call == values[0]:
                stops.watch(came[0], jail.wake, running)
            else:
                posix.close(came[0])  # it is over
        elif kind == "freeze" and jail is not None:
            freeze(jail.cell)
        elif kind == "done":
            left = self._leaving.pop(number, None)
            gone = jail or left
            if gone is not None and values[0]:
                self._cells.keep(gone.cell, gone.policy, came)
            if jail is not None:
                self._done(jail)
            elif left is not None:
                self._over(left.policy)
        elif kind == "broken":
            self._broken(number, values)

    def _wanted(self, policy: Policy) -> None:
        """A request waits, and every thread runs a call: another one."""
        if not policy.idle and not policy.dropped and policy.busy < MOST:
            self._arm(policy)

    def _await_use(self, policy: Policy) -> None:
        """Nobody waits for a request, and nobody who runs a call looks whether there is one."""
        if policy.idle or policy.dropped or policy.requests in self._handlers:
            return

        def asked(descriptor: int, events: int) -> None:
            self._unwatch(descriptor)
            # Hung up: nobody will use it any more, which the client is about to say. And a thread that has ended its call since
            # may have taken the request by now, which this one has only been told of.
            if not events & select.POLLHUP and _readable(descriptor):
                self._wanted(policy)

        self._watch(policy.requests, asked)

    def _done(self, jail: Jail) -> None:
        self._notes.send()
        self._jails.pop(jail.identifier, None)
        listener = jail.listener.fd
        if listener in self._listeners:
            del self._listeners[listener]
            self._forget(listener)
        posix.close(jail.wake)
        jail.listeners.close()
        jail.before_exec = None  # a method of its own: a cycle, and nothing is collected here
        policy = jail.policy
        if policy.egress is not None:
            self._tell("served", jail.identifier)
        if jail in policy.jails:
            policy.jails.remove(jail)
        self._over(policy)
        # Of a grant that was used once, nobody is armed ahead until it is used again: most are for one call.
        if policy.calls > 1:
            self._wanted(policy)
        else:
            self._await_use(policy)

    def _broken(self, number: int, failure: Sequence[Any]) -> None:
        """A call could not be armed: whoever asks under this authority hears why, and nothing is started."""
        self._cells.make_room()
        jail = self._jails.pop(number, None)
        policy = self._arming.pop(number)
        if jail is not None:
            if jail.listener.fd in self._listeners:
                del self._listeners[jail.listener.fd]
                self._forget(jail.listener.fd)
            posix.close(jail.wake)
            jail.listeners.close()
            jail.before_exec = None
        if policy.egress is not None:
            self._tell("served", number)
        policy.arming -= 1
        self._tell("broken", policy.digest, *failure)
        if policy.dropped:
            self._give_up(policy)
        elif not policy.idle:  # nobody is there, or about to be, for who waits
            self._say(policy.door, "refused", policy.identifier, *failure)
            self._drop(policy, failure)

    def _from_filter(self, listener: int, events: int) -> None:
        jail = self._listeners[listener]
        if events & select.POLLIN:
            # Made only where it is wanted: every call changes what is watched, and waits here for its exec.
            jail.policy.broker.handle(jail, lambda: self._beside(listener))
        elif events & select.POLLHUP:
            self._poll.unregister(listener)  # nobody is left under the filter; its thread says when it is done
            self._handlers.pop(listener)
            self._others.clear()

    def _beside(self, listener: int) -> Others:
        found = self._others.get(listener)
        if found is None:
            found = Others([descriptor for descriptor in self._handlers if descriptor != listener])
            self._others[listener] = found
        return found

    def _looked_for(self, pid: int, path: bytes) -> None:
        """On the thread that answers, while whoever asked waits."""
        try:
            number = posix.stat(f"/proc/{pid}/ns/pid").st_ino
        except OSError:
            return
        for jail in [*self._jails.values()]:
            # Its pid is known a moment later than it runs.
            if jail.running is not None and jail.cell.number == number:
                jail.policy.broker.looked_for(jail, pid, path)
                self._notes.send()


def _readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _tell_jail(jail: Jail, why: str, call: str) -> None:
    """The call may be over by the time that its thread reads this: so it is named."""
    try:
        posix.write(jail.wake, f"{why} {call}\n".encode())
    except OSError:
        pass  # the thread has ended
