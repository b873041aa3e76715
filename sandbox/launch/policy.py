"""A call's authority as the zygote holds it: one ruleset, one filter, one mediator's rules, for every call that is under it."""

from __future__ import annotations

import marshal
import posix

from remit.sandbox.kernel import landlock, sockets, spawn
from remit.sandbox.launch import envelope, limits
from remit.sandbox.launch.ground import Refused, open_inside
from remit.sandbox.mediate.broker import Broker, brokers_reads
from remit.sandbox.mediate.metadata import Metadata

REQUEST_DESCRIPTORS = 5
"""With a request: where its answer goes, three streams, and a file where it is large."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from remit.sandbox.launch.cell import Cell
    from remit.sandbox.launch.jail import Jail
    from remit.sandbox.launch.wire import CallWire
    from remit.sandbox.mediate.broker import Note
    from remit.sandbox.mediate.resolve import Umasks


class Policy:
    """Made once for each authority; the armed threads of its calls wait on ``requests``."""

    def __init__(
        self,
        identifier: int,
        wire: CallWire,
        requests: int,
        note: Note,
        places: tuple[str, ...],
        lines: Sequence[tuple[str, str, int, str]],
        umasks: Umasks,
    ) -> None:
        """Raises OSError, Refused where an object is not the one that the grant was decided on."""
        _, digest, domain, program, mediation, limit, cell, freeze, objects, own, self.beyond, egress = wire
        self.identifier = identifier
        self.digest = digest
        self.requests = requests
        self.program = program
        self.private, self.loopback = cell
        """Whether its cells have a network (and more) of their own, and whether that has a loopback."""
        self.freeze = freeze
        self.egress = egress
        """What a private network has for a way out: a plan's operation, or None."""
        self.limits = limits.prepared(limit)
        """Of each process by itself: (resource, ``struct rlimit``)."""
        self.time_limit = 0.0
        self.memory_limit = 0
        for _, what, value, mechanism in limit:
            if mechanism == "timer":
                self.time_limit = value / 1000
            elif mechanism == "watch" and what == "memory":
                self.memory_limit = value
        self.watched = False
        """What its calls use is looked at by the mediator's thread, which hears when there is one to look at."""
        self.arming = 0
        """Threads that are about to be armed."""
        self.jails: list[Jail] = []
        """Those that are."""
        self.calls = 0
        """How many requests were taken."""
        self.number = 0
        self.dropped = False
        self.door = -1
        self.ruleset = _ruleset(domain, dict(objects))
        accesses = dict(own)
        self._own = tuple([accesses.get(place, 0) for place in places])
        self.exempts = spawn.direct() and not brokers_reads(mediation)
        """A call's own command need not ask the mediator: what there is to note of it, its thread can find out unasked."""
        self.broker = Broker(mediation, note, lines, umasks)
        self.broker.calls.view.copies = True
        if self.private:
            # Not the first two: /proc, by whose numbers the mediator knows everybody, and terminals.
            self.broker.calls.view.private = tuple([place.encode() for place in places[2:]])
        self.broker.perform(Metadata(self.broker.calls).handlers())

    @property
    def busy(self) -> int:
        """How many threads run a call."""
        return [jail.busy for jail in self.jails].count(True)

    @property
    def idle(self) -> int:
        """How many wait for one, or are about to."""
        return self.arming + len(self.jails) - self.busy

    def allow(self, cell: Cell) -> None:
        """The cell's own file systems, which no rule about the session's can mean."""
        for descriptor, place in cell.own:
            if self._own[place]:
                landlock.allow_path(self.ruleset, descriptor, self._own[place])

    def apply_limits(self, pid: int) -> None:
        """While the call's first exec waits for the mediator."""
        limits.apply(pid, self.limits)

    def end(self) -> None:
        """No further call. Whoever waits for a request, or would send one, learns it."""
        self.dropped = True
        sockets.shut_down(self.requests)

    def refuse(self, failure: Sequence[Any]) -> None:
        """No further call, and none of those that wait: a thread that is busy has the socket too, for as long as it is."""
        self.end()
        mail = sockets.Receiver(envelope.LIMIT, REQUEST_DESCRIPTORS)
        while True:
            data, came = mail.receive(self.requests)
            if not data:
                return
            try:
                sockets.send(came[0], marshal.dumps(("failed", *failure)), wait=False)
            except (OSError, IndexError):
                pass  # nobody is there to hear it
            for descriptor in came:
                posix.close(descriptor)

    def close(self) -> None:
        """Give up the descriptors, when no thread that is being armed is about to use their numbers."""
        posix.close(self.requests)
        posix.close(self.ruleset)


def _ruleset(domain: tuple[Any, ...], objects: dict[str, tuple[int, int]]) -> int:
    handled_fs, handled_net, scoped, rules, ports = domain
    ruleset = landlock.create_ruleset(handled_fs, handled_net, scoped)
    try:
        for path, access in rules:
            opened = open_inside(path)
            try:
                if path in objects:
                    status = posix.fstat(opened)
                    if (status.st_dev, status.st_ino) != objects[path]:
                        raise Refused("changed", f"{path} is not the object that was granted", "grant it again", 125)
                landlock.allow_path(ruleset, opened, access)
            finally:
                posix.close(opened)
        for port, access in ports:
            landlock.allow_port(ruleset, port, access)
    except BaseException:
        posix.close(ruleset)
        raise
    return ruleset
