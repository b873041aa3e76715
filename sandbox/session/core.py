"""The protocol between a session's user and its first process, without I/O: what to send, and what an answer means.

``Session`` and ``AsyncSession`` do the waiting; everything that is decided is decided here. One ``Core`` belongs to one
session, or to a narrower one that was made from it, and may be used from any thread.
"""

from __future__ import annotations

import marshal
import os
import posix
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from errno import EACCES
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

from remit.sandbox.audit.context import Context, event_of
from remit.sandbox.audit.record import state_directory
from remit.sandbox.authority.errors import GrantError, LaunchError, RemitError, no_program
from remit.sandbox.authority.grant import Grant
from remit.sandbox.authority.lattice import normal
from remit.sandbox.authority.model import Authority, PathPattern, PathRule
from remit.sandbox.compile import network, web
from remit.sandbox.compile.call import CallPlan, Ceiling, authority_of, compile_call, outside, replaced
from remit.sandbox.launch.envelope import LARGEST
from remit.sandbox.resolve.binding import Kind
from remit.sandbox.resolve.names import look, resolve
from remit.sandbox.session.asked import Grant as Asked
from remit.sandbox.session.asked import Identity
from remit.sandbox.session.chained import check_objects
from remit.sandbox.session.grantfile import plain
from remit.sandbox.session.ledger import Ledger
from remit.sandbox.session.result import (
    REPORTED,
    CompletedCall,
    Denial,
    GrantExpired,
    GrantRevoked,
    OfNetwork,
    SessionClosed,
    Usage,
)

if TYPE_CHECKING:
    from remit.sandbox.launch.wire import CallWire
    from remit.sandbox.resolve.binding import Named

MAX_DEPTH = 8
"""How many times a session can be narrowed, one out of the other."""
POLICIES = 32
"""Authorities for which calls are kept armed at a time; the least recently used one is given up."""
PLANS = 256
"""Grants whose objects and compiled authority are remembered; of the oldest, they are looked up again."""
Terminal = tuple[bytes, tuple[bool, bool, bool]]
"""A pseudo-terminal for a call: its ``struct winsize``, and which of its three streams it is."""
_LAYERS = frozenset(["namespaces", "landlock", "seccomp", "mediation"])
_ENDED = {"expired": GrantExpired, "revoked": GrantRevoked}
_HAS = {"expired": "has expired", "revoked": "was revoked"}


def _boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class Armed:
    """An authority for which the session's first process keeps threads armed, and our end of their socket."""

    identifier: int
    plan: CallPlan
    requests: Any
    held: int = 0
    """Calls that were sent there, or are about to be, and have not answered: it is not given up under them."""


Planned: TypeAlias = tuple[str, CallPlan, Authority, tuple[bytes, ...]]
Seen: TypeAlias = tuple[tuple[str, tuple[int, int] | None], ...]
"""Names, each with the (device, inode) that it led to, or None for nothing."""


@dataclass(slots=True)
class Known:
    """A grant that was looked up before: what it came to, and what that depends on."""

    planned: Planned
    seen: Seen
    """Names that it takes away and that its session does not: who may make one, or put another object in its place, makes
    the plan one of another moment."""

    def holds(self) -> bool:
        """Whether those names lead where they led when the plan was made."""
        for path, was in self.seen:
            try:
                status = os.stat(path)
            except OSError:
                now = None
            else:
                now = (status.st_dev, status.st_ino)
            if now != was:
                return False
        return True


@dataclass(slots=True)
class Uses:
    """What is counted for one asked-for grant: since when it runs, and how often it was used."""

    first: float
    boot: float
    used: int = 0


@dataclass(slots=True)
class Ticket:
    """One call that may start: its message, its grant, and what its answer is made into."""

    call: str
    data: bytes
    requests: Any
    armed: Armed
    derive: Callable[[], Grant]
    args: Sequence[Any]
    started: float
    begin: int
    """How long the record was, where it will have to be read."""
    _grant: Grant | None = None

    @property
    def grant(self) -> Grant:
        """Made when it is first asked for: the request does not wait for it."""
        if self._grant is None:
            self._grant = self.derive()
        return self._grant


@dataclass(slots=True)
class Shared:
    """What a session and the narrower ones made from it have in common."""

    session: str
    placeholders: dict[str, str] = field(default_factory=dict[str, str])
    """By variable: what stands inside for a secret that stays outside."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    policies: OrderedDict[str, Armed] = field(default_factory=OrderedDict[str, Armed])
    given_up: list[Armed] = field(default_factory=list[Armed])
    """Nobody asks for them any more; the session's first process is still to be told."""
    dropped: deque[Armed] = field(default_factory=deque["Armed"])
    """Of handles that were dropped: to be released by whoever has the lock next. Dropping takes none, as it happens on any
    thread, in the middle of anything."""
    numbers: count[int] = field(default_factory=lambda: count(1))
    prefix: str = field(default_factory=lambda: secrets.token_hex(3))
    refused: dict[int, tuple[str, str, str, int]] = field(default_factory=dict[int, tuple[str, str, str, int]])
    full: tuple[str, str, str, int] | None = None
    """Something large was not received, and whoever sent it has not heard yet."""
    uses: WeakKeyDictionary[Identity, Uses] = field(default_factory=WeakKeyDictionary["Identity", "Uses"])
    revoked: set[str] = field(default_factory=set[str])
    clock: float = field(default_factory=lambda: time.time() - _boot())
    """What the wall clock was ahead of CLOCK_BOOTTIME: the times of the session's grants are by the clock that it began under."""
    closed: str = ""

    def abandon(self) -> None:
        """In a forked child: it is the parent's. Twice is once."""
        # Whoever held it when the process was forked is not in this one.
        self.lock = threading.Lock()
        self.closed = "it belongs to the process that this one was forked from"
        for armed in (*self.policies.values(), *self.given_up):
            armed.requests.close()


def ids(asked: Asked | None) -> tuple[str, ...]:
    """Of the grants out of files that a call under ``asked`` holds: with any of them, it ends."""
    return tuple([id for chain in asked.proofs for id in chain.ids]) if asked is not None and asked.proofs else ()


class Core:
    """One session's (or narrowed session's) decisions."""

    def __init__(
        self,
        ceiling: Ceiling,
        grant: Grant,
        shared: Shared,
        environ: Mapping[bytes, bytes],
        *,
        uid: int,
        depth: int = 0,
        chain: tuple[str, ...] = (),
        held: tuple[Asked, ...] = (),
        ends: float | None = None,
    ) -> None:
        self.ceiling = ceiling
        self.grant = grant
        self.shared = shared
        self.uid = uid
        self.depth = depth
        self.chain = (*chain, grant.id)
        """The ids of the grants that this one came out of (the session's files' first, then the session's), and its own."""
        if ends is None and grant.expires is not None:
            ends = _boot() + grant.expires - time.time()
        self._ends = ends
        """When the grant ends, by the clock that nobody sets (CLOCK_BOOTTIME): what has begun goes by no other."""
        self._held = held
        """What this session was narrowed by: each of its calls is a use of all of them."""
        self._environ = environ
        self._directory = os.fsencode(ceiling.directory)
        self._record = f"{state_directory(dict(environ))}/sessions/{shared.session}"
        self._gateway = bool(network.variables(ceiling.authority, ceiling.degrade))
        self._surroundings: tuple[Mapping[str, str], tuple[str, ...], frozenset[str]] | None = None
        self._plans: OrderedDict[object, Known] = OrderedDict()

    # --- grants --------------------------------------------------------------------------------------------------------

    def narrow(self, asked: Asked, *, principal: str, task: str, purpose: str) -> Core:
        """A narrower session's core. Raises GrantError: beyond this one's authority, or too deep."""
        if self.depth >= MAX_DEPTH:
            raise GrantError(
                f"narrowed {self.depth} times already",
                where="narrow",
                hint=f"at most {MAX_DEPTH}: give the work to a session nearer to the root",
            )
        self.check(self.chain, self.grant)
        authority, names, _ = self._inside(asked)
        held = self._holding(asked)
        with self.shared.lock:
            self._check_uses(held)
        uses = self._uses(asked)
        grant = self._derive(asked, authority, os.urandom(16).hex(), self._expires(asked, uses))
        grant = replace(
            grant,
            principal=principal or grant.principal,
            task=task or grant.task,
            purpose=purpose or grant.purpose,
        )
        ceiling = replace(self.ceiling, authority=authority, names=names, root=self.ceiling.session)
        return Core(
            ceiling,
            grant,
            self.shared,
            self._environ,
            uid=self.uid,
            depth=self.depth + 1,
            chain=(*self.chain, *ids(asked)),
            held=held,
            ends=self._ending(asked, uses),
        )

    def _inside(self, asked: Asked) -> tuple[Authority, dict[str, Named], Seen]:
        """The whole authority of a grant (floor and what is taken away included), which is inside this session's."""
        wanted = asked.authority(self.ceiling.workspace)
        names = self._resolve(wanted)
        beyond = outside(wanted, self.ceiling, names) or replaced(wanted, self.ceiling, names)
        if beyond:
            raise GrantError(
                "beyond the session's authority: " + "; ".join(map(str, beyond)),
                where="grant",
                hint="ask for less, or open a session that was granted more",
            )
        for chain in asked.proofs:
            check_objects(chain, names, uid=self.uid)
        return self._taken_away(authority_of(wanted, self.ceiling), names)

    def _taken_away(self, authority: Authority, names: Mapping[str, Named]) -> tuple[Authority, dict[str, Named], Seen]:
        """The authority with what its denied and protected names are *now*: looking anew can only take more away. A name that
        led elsewhere then keeps what it led to out of reach, too.

        Not the session's own: those no call can make or move (``Standing.taken``)."""
        found, seen = dict(names), dict[str, tuple[int, int] | None]()
        session = self.ceiling.standing().taken
        added: dict[str, list[PathPattern]] = {"deny": [], "protect": []}
        for kind, more in added.items():
            for pattern in getattr(authority, kind):
                if pattern.any_depth or pattern in session:
                    continue
                path = str(pattern)
                then, now = names.get(path), look(path, uid=self.uid)
                found[path], found[pattern.anchor] = now, look(pattern.anchor, uid=self.uid)
                seen[path] = now.identity
                if then is not None and then.canonical != now.canonical:
                    anchor, _, name = then.canonical.rpartition("/")
                    more.append(PathPattern(anchor or "/", (name,), False, pattern.source))
                    found[then.canonical] = replace(then, path=then.canonical, links=())
        if added["deny"] or added["protect"]:
            deny, protect = (*authority.deny, *added["deny"]), (*authority.protect, *added["protect"])
            authority = normal(replace(authority, deny=deny, protect=protect))
        return authority, found, tuple(seen.items())

    def _resolve(self, wanted: Authority) -> dict[str, Named]:
        """This session's names as they were resolved when it began (a narrower one's: when it was made), and what is new in
        ``wanted`` as it is now. A name that led elsewhere since would let what is outside pass for what is inside; and
        what the ceiling takes away is to be found by its names, which ``wanted`` does not mention.

        Of each granted name, how its object is come to now (``Named.way``), which ``replaced`` decides on."""
        known = self.ceiling.names
        fresh = tuple(rule for rule in wanted.paths if rule.path not in known)
        names = {**resolve(replace(wanted, paths=fresh), uid=self.uid), **known}
        for rule in wanted.paths:
            if rule.path in known:
                names[rule.path] = self._again(rule, known[rule.path])
        return names

    def _again(self, rule: PathRule, named: Named) -> Named:
        """A name that this session knows: the object that it led to then, and how that is come to now."""
        if named.kind is not Kind.ABSENT:
            now = look(named.canonical, uid=self.uid)
            same = (now.canonical, now.identity) == (named.canonical, named.identity)
            return replace(named, way=now.way if same else ())
        # Nothing was granted under this name. What is there by now is granted where it lies in a tree that was.
        now = look(rule.path, uid=self.uid)
        found = now.kind is not Kind.ABSENT and not any(self.ceiling.lost(now, right) for right in rule.rights)
        return now if found else named

    def _uses(self, asked: Asked) -> Uses:
        with self.shared.lock:
            found = self.shared.uses.get(asked.identity)
            if found is None:
                boot = _boot()
                found = self.shared.uses[asked.identity] = Uses(boot + self.shared.clock, boot)
            return found

    def _holding(self, asked: Asked | None) -> tuple[Asked, ...]:
        """All grant objects that a call under ``asked`` uses, each once."""
        held = self._held if asked is None else (*self._held, asked)
        return tuple({id(one.identity): one for one in held}.values()) if len(held) > 1 else held

    def files(self, asked: Asked | None) -> tuple[str, ...]:
        """Of the grants out of files that a call under ``asked`` holds, in any way: with any of them, it ends."""
        return tuple([id for one in self._holding(asked) for id in ids(one)])

    def _check_uses(self, held: Iterable[Asked]) -> None:
        """Raises GrantError: one of them is spent. The lock is the caller's."""
        for one in held:
            uses = self.shared.uses.get(one.identity)
            if one.uses is not None and uses is not None and uses.used >= one.uses:
                raise GrantError(
                    f"the grant is good for {one.uses} {'use' if one.uses == 1 else 'uses'}, all of them used",
                    where="grant",
                    hint="ask the grantor for a new one",
                )

    def _use(self, held: Iterable[Asked]) -> None:
        """Count a call as a use of all of them, or of none. Raises GrantError, LedgerError."""
        for one in held:
            self._uses(one)
        with self.shared.lock:
            self._check_uses(held)
            chains = {chain.ids: chain for one in held for chain in one.proofs}
            if chains:
                claims = [claim for chain in chains.values() for claim in plain(chain)]
                Ledger(state_directory(dict(os.environb))).spend(claims, self.shared.session)
            for one in held:
                self.shared.uses[one.identity].used += 1

    def revoke(self, what: Grant | str | None = None) -> str:
        """Take a grant back, with everything narrowed from it: its id. Without one: this (narrowed) session's own."""
        identifier = self.grant.id if what is None else what if isinstance(what, str) else what.id
        with self.shared.lock:
            self.shared.revoked.add(identifier)
        return identifier

    def check(self, chain: Iterable[str], grant: Grant) -> None:
        """Raises SessionClosed, GrantRevoked, GrantExpired: what makes a call impossible whatever it asks for."""
        if self.shared.closed:
            raise SessionClosed(
                f"session {self.shared.session} has ended: {self.shared.closed}", hint="open a new session"
            )
        revoked = self.shared.revoked.intersection(chain)
        if revoked:
            raise GrantRevoked(f"grant {min(revoked)} was revoked", hint="ask the grantor for a new one")
        if self._ends is not None and _boot() >= self._ends:
            raise GrantExpired(f"grant {grant.id} has expired", hint="ask the grantor for a new one")

    # --- calls ---------------------------------------------------------------------------------------------------------

    def plan(self, asked: Asked | None) -> Planned:
        """Of calls under ``asked`` (None: everything that this session has): what they have in common with others that
        can be armed alike, by its key; and what is theirs alone, their authority and environment."""
        meant = None if asked is None else asked.meant
        known = self._plans.get(meant)
        if known is not None and known.holds():
            return known.planned
        if asked is None:
            authority, names, seen = self._taken_away(self.ceiling.authority, self.ceiling.names)
        else:
            authority, names, seen = self._inside(asked)
        plan = compile_call(authority, self.ceiling, names)
        found = (plan.digest, plan, authority, self._environment(authority, None))
        with self.shared.lock:
            # A grant that is used again means the objects that it meant the first time, unless what it takes away is
            # another thing by now: then all of it is looked up anew, inside the same session.
            self._plans[meant] = Known(found, seen)
            while len(self._plans) > PLANS:
                self._plans.popitem(last=False)
        return found

    def armed(self, asked: Asked | None, pair: Any) -> tuple[Armed, tuple[int, CallWire, Any] | None]:
        """Where to send a request under ``asked``; a definition to send first, if it is new. What is given up for it is left in
        ``Shared.given_up``.

        It is held for the request until ``release``. ``pair()`` makes two connected packet sockets: ours and the session's.
        """
        key, plan, _, _ = self.plan(asked)
        with self.shared.lock:
            known = self._hold(key)
            if known is not None:
                return known, None
            policies = self.shared.policies
            ours, theirs = pair()
            identifier = next(self.shared.numbers)
            made = Armed(identifier, plan, ours, held=1)
            refused = policies.pop(key, None)
            policies[key] = made
            while self.shared.dropped:
                self.shared.dropped.popleft().held -= 1
            # A request that waits under an authority which is given up would be lost, and look like a dead session.
            idle = [one for one, armed in policies.items() if not armed.held]
            self.shared.given_up += [policies.pop(one) for one in idle[: max(0, len(policies) - POLICIES)]]
            if refused is not None:
                self.shared.given_up.append(refused)
            return made, (identifier, plan.wire(), theirs)

    def ready(self, asked: Asked | None) -> Armed | None:
        """Where to send a request under ``asked``, if that is known already: nothing is resolved or compiled."""
        found = self._plans.get(None if asked is None else asked.meant)
        if found is None or not found.holds():
            return None
        with self.shared.lock:
            return self._hold(found.planned[0])

    def _hold(self, key: str) -> Armed | None:
        known = self.shared.policies.get(key)
        if known is None or known.identifier in self.shared.refused:
            return None
        self.shared.policies.move_to_end(key)
        known.held += 1
        return known

    def release(self, armed: Armed) -> None:
        """A call has answered, or will not be sent: once for each time that ``armed`` or ``ready`` gave it."""
        with self.shared.lock:
            armed.held -= 1
            while self.shared.dropped:
                self.shared.dropped.popleft().held -= 1

    def ticket(
        self,
        armed: Armed,
        asked: Asked | None,
        args: Sequence[Any],
        *,
        cwd: str | os.PathLike[str] | None,
        env: Mapping[str, str] | None,
        terminal: Terminal | None,
        background: bool,
    ) -> Ticket:
        """A call that may start now, counted as a use of its grant. Raises RemitError."""
        words = [os.fsencode(word) for word in args]
        if not words or any(b"\0" in word for word in words):
            raise LaunchError(f"no command: {args!r}", hint="a list: a program and its arguments")
        if not words[0]:
            raise no_program()
        directory = os.fsencode(os.path.join(self.ceiling.workspace, cwd)) if cwd else self._directory
        # Not the armed thread's: two grants that differ in variables alone share their threads.
        known = self._plans.get(None if asked is None else asked.meant)
        _, _, authority, environment = self.plan(asked) if known is None else known.planned
        if env is not None:
            environment = self._environment(authority, env)
        ends, expires = self._ends, self.grant.expires
        if asked is None:
            identifier, chain = self.grant.id, self.chain
        else:
            identifier = os.urandom(16).hex()
            chain = (*self.chain, *ids(asked), identifier)
        self.check(chain, self.grant)
        if self._held or (asked is not None and (asked.uses is not None or asked.proofs)):
            self._use(self._holding(asked))
        if asked is not None and asked.expires is not None:
            uses = self._uses(asked)
            ends, expires = self._ending(asked, uses), self._expires(asked, uses)
        if ends is not None and _boot() >= ends:
            raise GrantExpired(f"grant {identifier} has expired", hint="ask the grantor for a new one")
        call = f"{self.shared.prefix}-{next(self.shared.numbers)}"
        request = (call, chain, words, list(environment), directory, terminal, background, ends or 0.0)
        data = marshal.dumps(request)
        if len(data) > LARGEST:
            raise LaunchError(
                f"arguments and environment take {len(data)} bytes", hint="pass large data through stdin or a file"
            )
        begin = self._recorded() if self._gateway else 0
        derive = self._own_grant if asked is None else partial(self._derive, asked, authority, identifier, expires)
        return Ticket(call, data, armed.requests, armed, derive, args, time.monotonic(), begin)

    def _own_grant(self) -> Grant:
        return self.grant

    def _recorded(self) -> int:
        try:
            return os.stat(f"{self._record}/events.jsonl").st_size
        except OSError:
            return 0  # whoever reads it will hear why

    def _expires(self, asked: Asked, uses: Uses) -> float | None:
        """When a call's grant ends (Unix seconds), which is counted from its first use: for the record. See ``_ending``."""
        most = self.grant.expires
        if asked.expires is None:
            return most
        own = uses.first + asked.expires
        return own if most is None else min(own, most)

    def _ending(self, asked: Asked, uses: Uses) -> float | None:
        """The same by CLOCK_BOOTTIME, which decides."""
        if asked.expires is None:
            return self._ends
        own = uses.boot + asked.expires
        return own if self._ends is None else min(own, self._ends)

    def _derive(self, asked: Asked, authority: Authority, identifier: str, expires: float | None) -> Grant:
        parent = self.grant
        return Grant(
            authority=authority,
            grantor=parent.principal,
            principal=asked.principal,
            task=asked.task or parent.task,
            purpose=asked.purpose or parent.purpose,
            not_before=parent.not_before,
            expires=expires,
            uses=asked.uses,
            parent=parent.id,
            parent_digest=self._digest,
            session=self.shared.session,
            id=identifier,
        )

    @property
    def _digest(self) -> str:
        """This session's grant's digest, computed once: canonical JSON of a whole authority takes a millisecond."""
        found: str | None = self.__dict__.get("_grant_digest")
        if found is None:
            found = self.__dict__["_grant_digest"] = self.grant.digest()
        return found

    def _environment(self, authority: Authority, env: Mapping[str, str] | None) -> tuple[bytes, ...]:
        """What the authority passes of the caller's and sets; ``env`` instead of it, within the names that are granted."""
        granted: dict[bytes, bytes] = {}
        placeholders = self.shared.placeholders
        for name, value in authority.environment:
            key = os.fsencode(name)
            if name in placeholders:
                granted[key] = os.fsencode(placeholders[name])
            elif value is not None:
                granted[key] = os.fsencode(value)
            elif key in self._environ and name not in self.ceiling.withheld:
                granted[key] = self._environ[key]
        told = network.variables(authority, self.ceiling.degrade)
        if told and self.ceiling.certificates:
            told |= web.variables()
        granted.update([(os.fsencode(name), os.fsencode(value)) for name, value in told.items()])
        if env is not None:
            names = {name for name, _ in authority.environment}
            beyond = sorted(set(env) - (names - {*self.ceiling.withheld} | {*placeholders}))
            if beyond:
                raise GrantError(
                    f"not granted to this call: {', '.join(beyond)}",
                    where="env",
                    hint="the session needs them (env=[...], or --env), and the call's grant too",
                )
            bad = sorted(name for name, value in env.items() if "\0" in value)
            if bad:
                raise LaunchError(
                    f"a NUL in the value of {', '.join(bad)}", where="env", hint="no program can have one"
                )
            own = {os.fsencode(name): os.fsencode(value) for name, value in told.items()}
            given = {name: placeholders.get(name, value) for name, value in env.items()}
            granted = {**own, **{os.fsencode(name): os.fsencode(value) for name, value in given.items()}}
        return tuple(name + b"=" + value for name, value in granted.items())

    # --- answers -------------------------------------------------------------------------------------------------------

    def failure(self, ticket: Ticket, heard: tuple[Any, ...] = ("lost",)) -> RemitError:
        """What a call is reported as that did not run, or whose end nobody knows; ``lost``: the connection closed without a
        word."""
        if heard[0] == "unreadable":
            return LaunchError("what the session answered cannot be read", hint="its record says how the call ended")
        if heard[0] != "lost":
            _, phase, text, hint, status = heard
            if phase == "grant":
                kind = GrantRevoked if "revoked" in text else GrantExpired
                return kind(text, hint=hint)
            error: RemitError = LaunchError(text, hint=hint)
            error.phase, error.exit_status = phase, status
            return error
        known = self.shared.refused.get(ticket.armed.identifier) or self.shared.full
        if known is not None:
            # Whatever was sent was dropped: the authority, if it was new.
            self.shared.refused[ticket.armed.identifier], self.shared.full = known, None
            phase, text, hint, status = known
            error = LaunchError(text, hint=hint)
            error.phase, error.exit_status = phase, status
            return error
        if not self.shared.closed:
            self.shared.closed = "its first process died"
        return SessionClosed(
            f"session {self.shared.session} ended during the call: {self.shared.closed}", hint="open a new session"
        )

    def completed(
        self,
        ticket: Ticket,
        message: tuple[Any, ...],
        stdout: Any,
        stderr: Any,
        lost: tuple[int, int] = (0, 0),
    ) -> CompletedCall[Any]:
        """The result of a call that ran. Raises GrantExpired, GrantRevoked where that ended it."""
        _, status, limit, cpu, memory, denied, events, whole = message
        self.raise_ended(ticket, limit)
        context = self._context(ticket) if events or self._gateway else None
        denials = _denials(ticket, events, context) if context is not None else ()
        return CompletedCall(
            args=ticket.args,
            returncode=posix.waitstatus_to_exitcode(status),
            stdout=stdout,
            stderr=stderr,
            answered=denials,
            # The mediator counts without knowing what there is outside: where it told of all, that is looked at.
            counted=len(denials) if whole and 0 < len(events) < REPORTED else denied,
            network=OfNetwork(self._record, ticket.begin, context) if context is not None and self._gateway else None,
            record=self._record,
            usage=Usage(cpu, time.monotonic() - ticket.started, memory << 10),
            grant=ticket.grant,
            call=ticket.call,
            limit="" if limit in ("killed", "abandoned") else limit,
            stdout_lost=lost[0],
            stderr_lost=lost[1],
        )

    def _context(self, ticket: Ticket) -> Context:
        """What denials of a call are explained by."""
        if self._surroundings is None:
            # Once: where there is a way out, every call's answer has one.
            ceiling = self.ceiling
            canonical = {path: named.canonical for path, named in ceiling.names.items()}
            visible = tuple(canonical.get(rule.path, rule.path) for rule in ceiling.authority.paths)
            self._surroundings = canonical, visible, _LAYERS.difference(ceiling.degrade)
        return Context(ticket.grant.authority, *self._surroundings)

    def raise_ended(self, ticket: Ticket, why: str, what: str = "the call was ended") -> None:
        """Raises GrantExpired, GrantRevoked where that is ``why`` a call ended (or was stopped)."""
        if why in _ENDED:
            raise _ENDED[why](f"grant {ticket.grant.id} {_HAS[why]}; {what}", hint="ask the grantor for a new one")

    def heard(self, message: tuple[Any, ...]) -> None:
        """A message from the session's first process that is about no call in particular."""
        kind, *values = message
        if kind == "refused":
            self.shared.refused[values[0]] = (values[1], values[2], values[3], values[4])
        elif kind == "full":
            self.shared.full = (values[0], values[1], values[2], values[3])


def _denials(ticket: Ticket, events: Sequence[tuple[Any, ...]], context: Context) -> tuple[Denial, ...]:
    """What the mediator told of a call, without what would have failed outside as well."""
    told = [(event_of(action, ticket.call, ticket.grant.id), action[10] or EACCES) for action in events]
    return tuple(
        Denial(event.object, event.right, errno, event.rule.text, event.pid, event, context)
        for event, errno in told
        if not event.moot
    )
