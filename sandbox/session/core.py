"""The protocol between a session's user and its first process, without I/O: what to send, and what an answer means.

``Session`` and ``AsyncSession`` do the waiting; everything that is decided is decided here. One ``Core`` belongs to one
session, or to a narrower one that was made from it, and may be used from any thread.
"""

from __future__ import annotations

import marshal
import os
import posix
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from errno import EACCES
from functools import partial
from typing import TYPE_CHECKING, Any

from remit.sandbox.audit.context import Context, event_of
from remit.sandbox.audit.record import state_directory
from remit.sandbox.authority.errors import GrantError, LaunchError, RemitError, no_program
from remit.sandbox.authority.grant import Grant
from remit.sandbox.authority.model import Authority
from remit.sandbox.compile import network, web
from remit.sandbox.compile.call import Ceiling, compile_call
from remit.sandbox.launch.envelope import LARGEST
from remit.sandbox.session.asked import Grant as Asked
from remit.sandbox.session.grantfile import plain
from remit.sandbox.session.inside import Known, Planned, inside, taken_away
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
from remit.sandbox.session.shared import Armed, Shared, Uses, boot

if TYPE_CHECKING:
    from remit.sandbox.launch.wire import CallWire

MAX_DEPTH = 8
"""How many times a session can be narrowed, one out of the other."""
PLANS = 256
"""Grants whose objects and compiled authority are remembered; of the oldest, they are looked up again."""
Terminal = tuple[bytes, tuple[bool, bool, bool]]
"""A pseudo-terminal for a call: its ``struct winsize``, and which of its three streams it is."""
_LAYERS = frozenset(["namespaces", "landlock", "seccomp", "mediation"])
_ENDED = {"expired": GrantExpired, "revoked": GrantRevoked}
_HAS = {"expired": "has expired", "revoked": "was revoked"}


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
            ends = boot() + grant.expires - time.time()
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
        authority, names, _ = inside(asked, self.ceiling, self.uid)
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

    def _uses(self, asked: Asked) -> Uses:
        with self.shared.lock:
            found = self.shared.uses.get(asked.identity)
            if found is None:
                now = boot()
                found = self.shared.uses[asked.identity] = Uses(now + self.shared.clock, now)
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
        if self._ends is not None and boot() >= self._ends:
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
            authority, names, seen = taken_away(self.ceiling.authority, self.ceiling.names, self.ceiling, self.uid)
        else:
            authority, names, seen = inside(asked, self.ceiling, self.uid)
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
        """Where to send a request under ``asked``; a definition to send first, if it is new (``Shared.armed``).

        ``pair()`` makes two connected packet sockets: ours and the session's.
        """
        key, plan, _, _ = self.plan(asked)
        return self.shared.armed(key, plan, pair)

    def ready(self, asked: Asked | None) -> Armed | None:
        """Where to send a request under ``asked``, if that is known already: nothing is resolved or compiled."""
        found = self._plans.get(None if asked is None else asked.meant)
        return self.shared.ready(found.planned[0]) if found is not None and found.holds() else None

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
        jobs: bool = False,
    ) -> Ticket:
        """A call that may start now, counted as a use of its grant. ``jobs``: its client wants to hear that the command has
        begun, and when it stops. Raises RemitError."""
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
        if ends is not None and boot() >= ends:
            raise GrantExpired(f"grant {identifier} has expired", hint="ask the grantor for a new one")
        call = f"{self.shared.prefix}-{next(self.shared.numbers)}"
        request = (call, chain, words, list(environment), directory, terminal, background, ends or 0.0, jobs)
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
