"""A session's first process where it serves many calls: it mediates, and keeps calls armed ahead of their requests.

Threads, each with what it alone may do:

- *main*: the mediator, in the Landlock domain *session*, with CAP_SYS_PTRACE of the session's own user namespace. One loop:
  it listens to the template (``control``), to clients (``doors``), to the calls' filters, and to what the others tell it.
- *maker*: makes cells (``cell``). No Landlock domain, every capability; it runs nothing that comes from anywhere.
- *armer*: joins both: in the domain *session*, so that what it starts is below the mediator's, with the capabilities that
  entering a cell takes.
- one for each armed or running call (``jail``).

Every descriptor that the main thread holds is closed in the calls' own tables. When ``control`` closes, this process ends,
and with it, by the kernel's hand, everything in the session.
"""

from __future__ import annotations

import _thread
import marshal
import posix
import select
import time

from remit.sandbox.events.action import DENIED
from remit.sandbox.kernel import landlock, network, process, sockets
from remit.sandbox.kernel.fastpath import Others
from remit.sandbox.kernel.placement import Placement
from remit.sandbox.kernel.spawn import reset_only
from remit.sandbox.launch import envelope, usage
from remit.sandbox.launch.cell import Cell, Maker
from remit.sandbox.launch.ground import Ground, Refused, open_inside, told
from remit.sandbox.launch.jail import Jail
from remit.sandbox.launch.policy import Policy
from remit.sandbox.mediate.observe import GATHER_MS, GATHERED_AT_MOST, GATHERED_SIZE, size_of
from remit.sandbox.mediate.resolve import Umasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from remit.sandbox.launch.request import Request
    from remit.sandbox.launch.wire import Operation
    from remit.sandbox.mediate.broker import Source

_STACK = 1 << 18
_REVOKE = b"revoke "
_WATCH_MS = 200
_LAST_WORDS = 1.0
_SIGSTOP = 19
_DEVICE_NODES = 1 << 6 | 1 << 11
"""LANDLOCK_ACCESS_FS_MAKE_CHAR and MAKE_BLOCK."""
_FULL = (
    "launch",
    "the session can open no more descriptors: the call was not started",
    "raise 'ulimit -n' before the session starts, or run fewer calls at a time",
    125,
)
_MOST = 32
"""Threads of one policy. Beyond that, requests wait for one to come back."""
_SHARED, _PRIVATE, _SILENT = b"s", b"p", b"q"
"""Kinds of cells: in the session's network; in one of its own; in one of its own that has not even a loopback."""
_SPARES = 2
"""Cells of each kind that are kept at most for threads that are not armed yet."""
_QUIET_MS = 5
"""Nothing was to be armed for so long: time to make a cell that will be wanted at once."""
_DESCRIPTORS = 16
"""With a message at most: of a private cell that is left."""
_EVENTS = 1024
"""Denials of one call that are kept for its reply."""


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
        self._jobs_read, self._jobs = -1, -1
        self._arms_read, self._arms = -1, -1
        self._queue: list[tuple[Policy, int]] = []
        self._arming: dict[int, Policy] = {}
        self._held = False
        self._noted: list[tuple[Any, ...]] = []
        self._noted_size = 0
        self._noting = _thread.allocate_lock()
        self._placement = Placement()
        self._umasks = Umasks(time.monotonic)
        self._cells: list[Cell | OSError] = []
        self._spares: dict[bytes, list[Cell]] = {_SHARED: [], _PRIVATE: [], _SILENT: []}
        """Cells that nobody is in, for any call: by their kind, without a way out."""
        self._keeping = True
        """Spare cells are made and kept."""
        self._ways: list[Operation | None] = []
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
        self._arms_read, self._arms = sockets.packet_pair()
        self._jobs_read, self._jobs = posix.pipe2(posix.O_CLOEXEC)
        self._asked_read, self._asked = posix.pipe2(posix.O_CLOEXEC)
        self._made_read, self._made = posix.pipe2(posix.O_CLOEXEC)
        self._maker = Maker(self._request.operations)
        _thread.start_new_thread(self._make_cells, ())
        landlock.restrict_self(self._domain())
        _thread.start_new_thread(self._arm_calls, ())
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

    # --- the other threads ---------------------------------------------------------------------------------------------

    def _make_cells(self) -> None:
        """The maker's thread: one cell for each byte, of that kind."""
        # The mediator sets the main thread's umask; what starts on another thread has the session's.
        process.unshare(process.CLONE_FS)
        process.raise_ambient(process.CAP_SYS_ADMIN)
        while True:
            asked = posix.read(self._asked_read, 1)
            if not asked:
                return
            try:
                cell: Cell | OSError = self._maker.make(
                    private=asked != _SHARED, loopback=asked != _SILENT, egress=self._ways.pop(0)
                )
            except OSError as error:
                cell = error
            self._cells.append(cell)
            posix.write(self._made, b"c")

    def _arm_calls(self) -> None:
        """The armer's thread: one armed call for each byte. Every call's thread comes from it, with its umask."""
        process.unshare(process.CLONE_FS)
        jobs = select.poll()
        jobs.register(self._jobs_read, select.POLLIN)
        wanted: set[bytes] = set()
        while True:
            for kind in [kind for kind in wanted if not self._spares[kind]]:
                if not self._keeping or jobs.poll(_QUIET_MS):
                    break
                spare = self._make_cell(kind, None)
                if isinstance(spare, OSError):
                    self._keeping = False
                else:
                    self._spares[kind].append(spare)
            if not posix.read(self._jobs_read, 1):
                return
            policy, number = self._queue.pop(0)
            cell: Cell | OSError | None = None
            kind = _kind(policy)
            if policy.egress is None:
                wanted.add(kind)
                cell = self._spare(kind)
            if cell is None:
                cell = self._make_cell(kind, policy.egress)
            if isinstance(cell, OSError):
                sockets.send(self._arms, marshal.dumps((number, "broken", *told(cell))))
                continue
            jail = None
            try:
                policy.allow(cell)
                if cell.sockets is not None and policy.egress is not None:
                    _, rules, *_, variables = policy.egress
                    cell.sockets.send(self._request.control, number, rules, variables)
                jail = Jail(
                    number,
                    policy,
                    cell,
                    self._ground,
                    self._request.control,
                    self._arms,
                    self._revoked,
                    self._tell_end,
                    self._keeps,
                )
                self._jails[number] = jail
                _thread.start_new_thread(jail.run, ())
            except (OSError, RuntimeError) as error:  # the latter: a thread too many
                cell.close()
                cell.end()
                if jail is not None:
                    posix.close(jail.woken)
                sockets.send(self._arms, marshal.dumps((number, "broken", *told(error))))
                continue
            # The thread makes itself a copy of this table and closes there what is not its own; here, what is.
            jail.separated.acquire()
            cell.close()
            posix.close(cell.life)
            posix.close(jail.woken)

    def _make_cell(self, kind: bytes, way: Operation | None) -> Cell | OSError:
        """Have the maker make one. On the armer's thread."""
        self._ways.append(way)
        posix.write(self._asked, kind)
        posix.read(self._made_read, 1)
        return self._cells.pop(0)

    def _spare(self, kind: bytes) -> Cell | None:
        try:
            return self._spares[kind].pop()
        except IndexError:
            return None

    def _keeps(self, policy: Policy) -> bool:
        return self._keeping and len(self._spares[_kind(policy)]) < _SPARES

    def _make_room(self) -> None:
        """Something is short: nothing is kept for later any more."""
        self._keeping = False
        for kind in self._spares:
            while (spare := self._spare(kind)) is not None:
                spare.close()
                spare.end()

    # --- the loop ------------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        self._watch(self._request.control, self._from_template)
        self._watch(self._arms_read, self._from_jail)
        while True:
            ready = self._poll.poll(self._timeout())
            if not ready:
                self._tell_noted()
            for descriptor, events in ready:
                handler = self._handlers.get(descriptor)
                if handler is not None:
                    handler(descriptor, events)
            if self._deadline and time.monotonic() >= self._deadline:
                self._end("time")
            self._watch_memory()

    def _timeout(self) -> int | None:
        if self._noted:
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
            limit, call = jail.policy.memory_limit, jail.call
            if limit and jail.pid and not jail.limit and usage.memory_exceeds(limit, self.processes(jail)):
                _tell_jail(jail, "memory", call)

    def _end(self, limit: str) -> None:
        self._tell_noted()
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
            self._tell_noted()
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
                self._make_room()
                self._say(door, "full", *_FULL)
                return
            data = envelope.content(came.pop())
        kind, *values = marshal.loads(data)
        if kind == "policy" and not came:
            self._make_room()
            self._say(door, "refused", values[0], *_FULL)
        elif kind == "policy":
            self._define(door, values[0], values[1], came[0])
        elif kind == "forget":
            for policy in [one for one in self._policies.values() if (one.door, one.identifier) == (door, values[0])]:
                self._drop(policy)
        elif kind == "revoke":
            self._say(door, "revoked", values[0], self._take_back(values[0]))
        elif kind == "watch":
            self._tell("watch", values[0])

    def _define(self, door: int, identifier: int, wire: Any, requests: int) -> None:
        try:
            policy = Policy(identifier, wire, requests, self._note, self._maker.places, self._lines, self._umasks)
        except Exception as error:
            if isinstance(error, OSError):
                self._make_room()
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
            call = jail.call
            if call and grant in jail.chain:
                stopped.append(call)
                _tell_jail(jail, "revoked", call)
        return stopped

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
        self._queue.append((policy, self._number))
        posix.write(self._jobs, b"a")

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
        elif kind == "freeze" and jail is not None:
            self._freeze(jail)
        elif kind == "done":
            left = self._leaving.pop(number, None)
            gone = jail or left
            if gone is not None and values[0]:
                self._keep(gone.cell, gone.policy, came)
            if jail is not None:
                self._done(jail)
            elif left is not None:
                self._over(left.policy)
        elif kind == "broken":
            self._broken(number, values)

    def _wanted(self, policy: Policy) -> None:
        """A request waits, and every thread runs a call: another one."""
        if not policy.idle and not policy.dropped and policy.busy < _MOST:
            self._arm(policy)

    def _await_use(self, policy: Policy) -> None:
        """Nobody waits for a request, and nobody who runs a call looks whether there is one."""
        if policy.idle or policy.dropped or policy.requests in self._handlers:
            return

        def asked(descriptor: int, events: int) -> None:
            self._unwatch(descriptor)
            if not events & select.POLLHUP:  # else nobody will use it any more, which the client is about to say
                self._wanted(policy)

        self._watch(policy.requests, asked)

    def _keep(self, cell: Cell, policy: Policy, came: list[int]) -> None:
        """A cell that a thread has left."""
        left = cell.left(came)
        if left is None:
            # There was no room for its descriptors: its life ended with the message.
            for descriptor in came:
                posix.close(descriptor)
            posix.waitpid(cell.init, 0)
        elif self._keeps(policy):
            self._spares[_kind(policy)].append(left)
        else:
            left.close()
            left.end()

    def _done(self, jail: Jail) -> None:
        self._tell_noted()
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
        self._make_room()
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

    def _note(self, source: Source, *action: Any) -> None:
        """Actions go to the template by the dozen, when nothing happens for a moment, and before their call's end."""
        assert isinstance(source, Jail)
        if action[7] == DENIED and len(source.events) < _EVENTS:
            source.events.append(action)
        with self._noting:
            self._noted.append((source.call, source.chain[-1] if source.chain else "", action))
            self._noted_size += size_of(action)
            if len(self._noted) >= GATHERED_AT_MOST or self._noted_size > GATHERED_SIZE:
                self._send_noted()

    def _looked_for(self, pid: int, path: bytes) -> None:
        """On the thread that answers, while whoever asked waits."""
        try:
            number = posix.stat(f"/proc/{pid}/ns/pid").st_ino
        except OSError:
            return
        for jail in [*self._jails.values()]:
            # Its pid is known a moment later than it runs.
            if jail.call and jail.cell.number == number:
                jail.policy.broker.looked_for(jail, pid, path)
                self._tell_noted()

    def _tell_noted(self) -> None:
        """On any thread, which may be the second to want it."""
        with self._noting:
            self._send_noted()

    def _tell_end(self, *of: Any) -> None:
        """What was noted and the end of a call, in one. On its thread."""
        with self._noting:
            self._tell("finished", self._take_noted(), *of)

    def _send_noted(self) -> None:
        noted = self._take_noted()
        if noted:
            self._tell("actions", noted)

    def _take_noted(self) -> list[tuple[Any, ...]]:
        noted, self._noted, self._noted_size = self._noted, [], 0
        return noted

    def processes(self, jail: Jail) -> list[int]:
        """The processes of one call, by this namespace's numbers."""
        found: list[int] = []
        for name in posix.listdir("/proc"):
            if name.isdecimal():
                try:
                    number = posix.stat(f"/proc/{name}/ns/pid").st_ino
                except OSError:
                    continue
                if number == jail.cell.number and int(name) != jail.cell.init:
                    found.append(int(name))
        return found

    def _freeze(self, jail: Jail) -> None:
        """SIGSTOP for every process of the call, again until no new one appears: a fork may be under way."""
        seen: set[int] = set()
        while new := [pid for pid in self.processes(jail) if pid not in seen]:
            for pid in new:
                try:
                    posix.kill(pid, _SIGSTOP)
                except OSError:
                    pass
            seen.update(new)


def _kind(policy: Policy) -> bytes:
    """Of its cells."""
    return (_PRIVATE if policy.loopback else _SILENT) if policy.private else _SHARED


def _tell_jail(jail: Jail, why: str, call: str) -> None:
    """The call may be over by the time that its thread reads this: so it is named."""
    try:
        posix.write(jail.wake, f"{why} {call}\n".encode())
    except OSError:
        pass  # the thread has ended
