"""A call's authority, inside a running session: what its thread does to itself. Pure.

The session's namespaces and mounts stand; a call adds a Landlock domain, a filter and the mediator's rules of its own, all
from one authority (floor, grant, and every deny and protect of the session's). What it may not do beyond that is what the
session may not do. Where the call's network or sockets are fewer than the session's, it gets a network and scratch
directories of its own; else those are shared with the session's other calls. Nobody is shown a lowering: that a layer is
off, or old, was said when the session began, and a call that asks for what cannot be held is refused.

Each new grant of a session waits for this, so what only depends on the session is found once (``Standing``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TypeAlias

from remit.sandbox.authority import codec
from remit.sandbox.authority.errors import GrantError
from remit.sandbox.authority.lattice import Bound, Violation, beyond, normal, union, violations
from remit.sandbox.authority.model import Authority, PathPattern, PathRule, Right
from remit.sandbox.authority.pattern import covers, parts, shape
from remit.sandbox.compile import host, landlock, mounts, network
from remit.sandbox.compile.compiler import Job
from remit.sandbox.compile.landlock import Rule
from remit.sandbox.compile.lowering import Layers, Report
from remit.sandbox.compile.mounts import Granted
from remit.sandbox.compile.objects import own as sessions_own
from remit.sandbox.compile.paths import below, outermost, parents
from remit.sandbox.compile.plan import Egress, Landlock, Limit, Tmpfs, canonical_json
from remit.sandbox.compile.syscalls import refused
from remit.sandbox.kernel.facts import HostFacts
from remit.sandbox.resolve.binding import Kind, Named

FORMAT = 1
_OWN_PLACES = ("/tmp", "/var/tmp", "/run")
_PER_PROCESS = ("rlimit", "nproc")
_LIMITS_OF_A_CALL = {"memory": "watch", "time": "timer"}

CallWire: TypeAlias = tuple[
    int,
    str,
    tuple[int, int, int, tuple[tuple[str, int], ...], tuple[tuple[int, int], ...]],
    bytes,
    tuple[object, ...],
    tuple[tuple[object, ...], ...],
    tuple[bool, bool],
    bool,
    tuple[tuple[str, tuple[int, int]], ...],
    tuple[tuple[str, int], ...],
    dict[str, object],
    tuple[object, ...] | None,
]
"""``launch.wire.CallWire``."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a call's compilation needs of its session's: layers, grants, covered names, the tree inside, writable roots."""

    layers: Layers
    grants: tuple[Granted, ...]
    floor: frozenset[tuple[str, frozenset[Right]]]
    covered: tuple[str, ...]
    tree: mounts.Tree
    roots: tuple[str, ...]
    taken: frozenset[PathPattern]
    """What every call of the session is denied, or has protected: no call can make it."""


_Held: TypeAlias = dict[Right, dict[str, list[tuple[Named, bool]]]]


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A session's authority and what it was compiled from: what every call in it is measured against.

    ``authority`` includes ``floor``. ``root``: of a narrower session, the authority of the one that runs: its network, mounts
    and limits are what a call is in. ``freeze``: what happens to a call whose grant ends while it runs.
    """

    authority: Authority
    floor: Authority
    names: Mapping[str, Named]
    facts: HostFacts
    workspace: str
    home: str
    directory: str
    degrade: tuple[str, ...]
    secret: tuple[str, ...]
    own_code: tuple[str, ...]
    matches: Mapping[str, tuple[Named, ...]]
    freeze: bool = False
    audit: str = "writes"
    audit_on_full: str = "deny"
    certificates: str = ""
    """Where the session's own certificates are inside, if it has any."""
    placeholders: tuple[str, ...] = ()
    """Variables that hold a credential's placeholder: a call that is granted one may use it."""
    withheld: tuple[str, ...] = ()
    """Variables of the caller's that hold a credential's secret: passed to no call, whatever is granted."""
    root: Authority | None = None
    _standing: list[Standing] = field(init=False, default_factory=list["Standing"], compare=False, repr=False)
    _above: list[Bound] = field(init=False, default_factory=list[Bound], compare=False, repr=False)
    _held: list[_Held] = field(init=False, default_factory=list["_Held"], compare=False, repr=False)

    @property
    def session(self) -> Authority:
        """The authority of the session that runs."""
        return self.authority if self.root is None else self.root

    def standing(self) -> Standing:
        """The session that every call is in, compiled once."""
        if not self._standing:
            job = self.job(self.session, self.names)
            layers = host.layers(self.facts, self.degrade, job.says)
            grants = job.grants()
            denied, protected = job.taken_away(grants)
            grants = job.left(grants, denied, protected)
            tree = job.tree(grants, denied, protected)
            floor = frozenset([(rule.path, rule.rights | {Right.READ}) for rule in self.floor.paths])
            taken = frozenset((*self.session.deny, *self.session.protect))
            self._standing.append(Standing(layers, grants, floor, tuple(denied), tree, _roots(grants), taken))
        return self._standing[0]

    def above(self) -> Bound:
        """The authority by the objects' own names, to measure others against."""
        if not self._above:
            self._above.append(Bound(canonical(self.authority, self.names)))
        return self._above[0]

    def held(self) -> _Held:
        """What it grants, by right and canonical path, as the objects that they were when it was made."""
        if not self._held:
            floor = {rule.path: rule.rights | {Right.READ} for rule in self.floor.paths}
            made: _Held = {right: {} for right in Right}
            for rule in self.authority.paths:
                named = self.names.get(rule.path) or Named(rule.path, rule.path, Kind.ABSENT)
                always, own = floor.get(rule.path, frozenset()), sessions_own(named.canonical)
                for right in rule.rights | {Right.READ}:
                    made[right].setdefault(named.canonical, []).append((named, own or right in always))
            self._held.append(made)
        return self._held[0]

    def lost(self, named: Named, right: Right) -> str:
        """Empty where an object of this authority's holds ``named`` (which was followed just now) with the right; else the
        name that would, had its object not gone.

        The floor's every call has, by its name; and what the session has one of its own of is no object outside.
        """
        held, lost = self.held()[right], ""
        for depth, above in enumerate(("/", *parents(named.canonical), named.canonical)):
            for one, fixed in held.get(above, ()):
                if fixed:
                    return ""
                last = depth + 1 == len(named.way)
                if depth < len(named.way) and one.identity == named.way[depth] and (last or one.kind is Kind.DIRECTORY):
                    return ""
                lost = one.path
        return lost

    def job(self, authority: Authority, names: Mapping[str, Named]) -> Job:
        """A compilation of ``authority`` on this session's host."""
        return Job(
            authority=authority,
            floor=self.floor,
            names=names,
            facts=self.facts,
            workspace=self.workspace,
            secret=self.secret,
            own_code=self.own_code,
            matches=self.matches,
            says=Report(frozenset(self.degrade)),
            home=self.home,
            degrade=frozenset(self.degrade),
            audit=self.audit,
            audit_on_full=self.audit_on_full,
            certificates=self.certificates,
        )


@dataclass(frozen=True, slots=True)
class CallPlan:
    """What a call's thread does to itself."""

    domain: Landlock
    program: bytes
    mediation: tuple[object, ...]
    limits: tuple[Limit, ...]
    private: bool
    loopback: bool
    """Of a private one: whether its loopback device is up."""
    freeze: bool
    objects: tuple[tuple[str, tuple[int, int]], ...]
    own: tuple[tuple[str, int], ...]
    egress: Egress | None
    beyond: Authority
    """For the record: the authority without what every call of the session has (``lattice.beyond``)."""
    digest: str = field(init=False)
    """BLAKE2b-256 (hex) over everything that the thread is told."""

    def __post_init__(self) -> None:
        domain, program = self.domain.json(), blake2b(self.program, digest_size=32).hexdigest()
        limits = [limit.json() for limit in self.limits]
        rest = [
            self.private,
            self.loopback,
            self.freeze,
            repr(self.mediation),
            repr(self.objects),
            repr(self.own),
            repr(self.egress),
        ]
        told = canonical_json([domain, program, limits, *rest]).encode()
        object.__setattr__(self, "digest", blake2b(told, digest_size=32).hexdigest())

    def wire(self) -> CallWire:
        """Plain values, for ``launch.policy``."""
        domain = self.domain
        rules = (domain.handled_fs, domain.handled_net, domain.scoped, domain.rules, domain.ports)
        limits = tuple(limit.wire() for limit in self.limits)
        way = None if self.egress is None else self.egress.wire()
        cell = (self.private, self.loopback)
        rest = (rules, self.program, self.mediation, limits, cell, self.freeze, self.objects, self.own)
        return (FORMAT, self.digest, *rest, codec.recorded(self.beyond), way)


def canonical(authority: Authority, names: Mapping[str, Named]) -> Authority:
    """The same authority by the objects' own names: no path of it leads through a symbolic link."""

    def path(text: str) -> str:
        named = names.get(text)
        return named.canonical if named is not None else text

    def moved(pattern: PathPattern) -> PathPattern:
        if pattern.any_depth:
            return replace(pattern, anchor=path(pattern.anchor))
        full = path(str(pattern))
        head, _, name = full.rpartition("/")
        return PathPattern(head or "/", (name,), False, pattern.source)

    return normal(
        replace(
            authority,
            paths=tuple(replace(rule, path=path(rule.path)) for rule in authority.paths),
            # A literal name and what it leads to: both are taken away.
            deny=tuple(one for pattern in authority.deny for one in dict.fromkeys((pattern, moved(pattern)))),
            protect=tuple(one for pattern in authority.protect for one in dict.fromkeys((pattern, moved(pattern)))),
            opened=tuple(path(name) for name in authority.opened),
            unix=tuple(path(name) for name in authority.unix),
        )
    )


def outside(grant: Authority, ceiling: Ceiling, names: Mapping[str, Named]) -> tuple[Violation, ...]:
    """Every object of ``grant`` that the session does not have; empty exactly when it is inside.

    Decided on what the names resolve to. A grant of a tree in which the session denies names is inside (a deny
    accumulates); a grant of a denied name is not.
    """
    above = ceiling.above()
    return beyond_objects(_with_limits(canonical(grant, names), above.authority), above)


def beyond_objects(own: Authority, above: Bound) -> tuple[Violation, ...]:
    """Every object of ``own`` that ``above`` does not hold, both by the objects' own names (``canonical``)."""
    found: list[Violation] = []
    for rule in own.paths:
        found += _taken(rule, above.authority)
    return (*found, *violations(own, above, carries=True))


def replaced(grant: Authority, ceiling: Ceiling, names: Mapping[str, Named]) -> tuple[Violation, ...]:
    """What of ``grant`` is inside the session (``outside``) by its name alone: what was granted there is another object, or
    has another name now.

    Who may rename around a directory would otherwise decide what is granted below its name. What lies between it and the
    name that is asked for is inside the grant, whatever it is now.
    """
    found: list[Violation] = []
    for rule in grant.paths:
        named = names[rule.path]
        if named.kind is Kind.ABSENT:
            continue
        for right in sorted(rule.rights):
            lost = ceiling.lost(named, right)
            if lost:
                what = f"{lost} is not what was granted: there is another object, or none, under that name now"
                found.append(Violation("exec" if right is Right.EXEC else "filesystem", rule.path, right, what))
    return tuple(found)


def _taken(rule: PathRule, held: Authority) -> list[Violation]:
    found: list[Violation] = []
    path = parts(rule.path)
    for patterns, verb, rights in (
        (held.deny, "denies", tuple(sorted(rule.rights))),
        (held.protect, "protects", (Right.WRITE,) if Right.WRITE in rule.rights else ()),
    ):
        for pattern in patterns:
            if covers(shape(pattern), path):
                found += [
                    Violation("filesystem", rule.path, right, f"the ceiling {verb} {pattern}") for right in rights
                ]
    return found


def _with_limits(own: Authority, held: Authority) -> Authority:
    """A limit that a grant does not mention is the session's."""
    limits = {**dict(held.limits), **dict(own.limits)}
    return replace(own, limits=tuple(sorted(limits.items())), loopback=held.loopback)


def authority_of(grant: Authority, ceiling: Ceiling) -> Authority:
    """A call's authority: floor, grant, and everything that the session takes away."""
    held = ceiling.authority
    own = union(ceiling.floor, grant)
    carried = replace(own, deny=own.deny + held.deny, protect=own.protect + held.protect)
    return normal(_with_limits(carried, held))


def compile_call(authority: Authority, ceiling: Ceiling, names: Mapping[str, Named]) -> CallPlan:
    """Compile a call's ``authority``, which is inside the session's (``outside``) and includes the floor.

    ``names``: the session's, with every name of the authority resolved. GrantError for a limit that no call can have;
    Unenforceable for what cannot be held.
    """
    session = ceiling.standing()
    layers, all_grants, tree, session_roots = session.layers, session.grants, session.tree, session.roots

    job = ceiling.job(authority, names)
    grants = job.grants()
    denied, protected = job.taken_away(grants)
    grants = job.left(grants, denied, protected)
    scratch = tuple(path for path in _OWN_PLACES if isinstance(tree.entries.get(path), Tmpfs))
    roots = landlock.mediated(_roots(grants), scratch)
    uncovered = [path for path in denied if not any(below(path, cover) for cover in session.covered)]
    missing = [
        named.canonical
        for pattern in authority.deny
        if not pattern.any_depth and pattern not in session.taken
        if (named := job.name(str(pattern))).kind is Kind.ABSENT
    ]
    brokered = job.unheld_reads(grants, denied, layers, uncovered, missing)
    private = _narrower_network(authority, ceiling)
    whole = normal(authority) == normal(ceiling.session)
    if whole:
        domain = job.domains(grants, tree, roots, brokered, layers)[-1]
        assert isinstance(domain, Landlock)
    else:
        kept = _free(scratch, all_grants, private)
        domain = _domain(job, grants, kept, tree, roots, brokered)
    dropped = ("/proc", "/dev/pts", *(("/dev/shm", *scratch) if private else ()))
    handled = domain.handled_fs
    own = [("/proc", landlock.PROC), ("/dev/pts", landlock.DEVICES), ("/dev/shm", landlock.SCRATCH)]
    for path in scratch:
        own.append((path, landlock.SCRATCH | _executable(tree, path)))
    metadata = _narrower_writes(authority, ceiling.session, roots, session_roots)
    mediation = replace(
        job.mediate(grants, roots, brokered, layers),
        refuse=refused(authority.syscalls, metadata=metadata),
        outer=session_roots,
    )
    limits = _limits(job, authority, ceiling, layers.namespaces)
    job.says.raise_if_unenforceable()
    objects = tuple(
        (named.canonical, (named.device, named.inode))
        for rule in authority.paths
        if (rule.path, rule.rights) not in session.floor
        and (named := job.name(rule.path)).kind not in (Kind.ABSENT, Kind.DEVICE)
        and not sessions_own(named.canonical)
    )
    return CallPlan(
        domain=replace(domain, rules=tuple(rule for rule in domain.rules if rule[0] not in dropped)),
        program=job.filter(layers, bool(brokered), metadata=metadata).program,
        mediation=mediation.wire(),
        limits=limits,
        private=private,
        loopback=network.has_loopback(replace(authority, publish=()), own_namespace=layers.network),
        freeze=ceiling.freeze,
        objects=tuple(sorted(set(objects))),
        own=tuple((path, bits & handled) for path, bits in own),
        egress=_way_out(authority, ceiling, own_namespace=layers.network) if private else None,
        beyond=beyond(authority, ceiling.floor, ceiling.session),
    )


def _free(scratch: tuple[str, ...], session: tuple[Granted, ...], private: bool) -> tuple[str, ...]:
    """The scratch places that hold nothing of the session's: a rule on one counts for all that is mounted below it."""
    if private:
        return scratch
    return tuple(place for place in scratch if not any(below(grant.path, place) for grant in session))


def _domain(
    job: Job,
    grants: tuple[Granted, ...],
    scratch: tuple[str, ...],
    tree: mounts.Tree,
    roots: tuple[str, ...],
    brokered: tuple[str, ...],
) -> Landlock:
    """A domain of the grants alone. Unlike a session's, in which all that can be seen is granted, it lists no directory
    of the new root's own: a rule there would list what lies below, too."""
    rules = [
        Rule(grant.path, landlock.mask(grant.rights), grant.directory)
        for grant in grants
        if not sessions_own(grant.path)
    ]
    rules += [Rule("/dev", landlock.DEVICES), Rule("/dev/shm", landlock.SCRATCH)]
    if job.certificates:
        rules.append(Rule(job.certificates, landlock.READ_FILE, False))
    for place in scratch:
        rules.append(Rule(place, landlock.SCRATCH | _executable(tree, place)))
    abi = landlock.abi(job.facts.landlock_abi)
    wanted, ports = network.landlock_tcp(job.authority, own_namespace=True)
    net = abi.net & wanted
    inner = landlock.command_rules(rules, roots, brokered)
    return Landlock("command", abi.fs, net, abi.scoped, landlock.compiled(inner, abi.fs), ports if net else ())


def _executable(tree: mounts.Tree, place: str) -> int:
    op = tree.entries.get(place)
    return landlock.EXECUTE if isinstance(op, Tmpfs) and not op.no_exec else 0


def _roots(grants: tuple[Granted, ...]) -> tuple[str, ...]:
    writable = (grant.path for grant in grants if Right.WRITE in grant.rights)
    return outermost(path for path in writable if not sessions_own(path))


def _narrower_writes(own: Authority, held: Authority, roots: tuple[str, ...], session_roots: tuple[str, ...]) -> bool:
    """Whether the session may change something that this call may not. Then its times and attributes are mediated, too."""
    if any(not any(below(place, root) for root in roots) for place in session_roots):
        return True
    return {*own.deny, *own.protect} != {*held.deny, *held.protect}


def _narrower_network(own: Authority, ceiling: Ceiling) -> bool:
    held = ceiling.session
    if (set(own.connect), set(own.listen), set(own.unix)) != (set(held.connect), set(held.listen), set(held.unix)):
        return True
    # In the session's own network, every credential of the session's would be the call's.
    return bool(own.connect) and _placeholders(own, ceiling) != ceiling.placeholders


def _placeholders(own: Authority, ceiling: Ceiling) -> tuple[str, ...]:
    granted = {name for name, _ in own.environment}
    return tuple(name for name in ceiling.placeholders if name in granted)


def _way_out(own: Authority, ceiling: Ceiling, *, own_namespace: bool) -> Egress | None:
    """Published ports are the session's: a call's own network has none."""
    made = network.egress(replace(own, publish=()), own_namespace=own_namespace)
    closed = made is None and own.listen and not own.loopback
    if closed and network.egress(ceiling.session, own_namespace=own_namespace) is not None:
        # Where the session has a way out, its closed loopback has a packet filter.
        made = network.dead_end(own)
    return None if made is None else replace(made, variables=_placeholders(own, ceiling))


def _limits(job: Job, authority: Authority, ceiling: Ceiling, namespaces: bool) -> tuple[Limit, ...]:
    """The session's limits on each process hold for every call; a smaller one of the call's own replaces it."""
    held = dict(ceiling.session.limits)
    every = {op.what: op for op in job.limits(ceiling.standing().layers) if isinstance(op, Limit)}
    found: list[Limit] = []
    for what, value in sorted(authority.limits):
        mechanism = every[what].mechanism if what in every else "none"
        if held.get(what) == value:
            if mechanism in _PER_PROCESS:
                found.append(Limit(what, value, mechanism))
            continue
        if what in ("files", "file-size", "cpu-time"):
            found.append(Limit(what, value, "rlimit"))
        elif what == "pids" and namespaces:
            # Counted over every process of the session, this call's and others'.
            found.append(Limit(what, value, "nproc"))
        elif what in _LIMITS_OF_A_CALL:
            found.append(Limit(what, value, _LIMITS_OF_A_CALL[what]))
        else:
            raise GrantError(
                f"limit {what}: a call cannot have one of its own",
                hint="give the limit to the session; of its own a call can have memory, pids, cpu-time, time, files "
                "and file-size",
            )
    return tuple(found)
