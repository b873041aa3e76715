"""Authority x host facts -> Plan + Lowering, or Unenforceable with every reason and its fix. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from remit.sandbox.authority.model import Authority, AutoExec, PathPattern, Right, Source
from remit.sandbox.authority.web import WebRules
from remit.sandbox.compile import host, landlock, limits, lowering, mounts, network, told, web
from remit.sandbox.compile.catalogue import WIRE as CATALOGUE
from remit.sandbox.compile.landlock import Rule
from remit.sandbox.compile.lowering import Layers, Report
from remit.sandbox.compile.mounts import Granted, Tree
from remit.sandbox.compile.objects import Objects, own
from remit.sandbox.compile.paths import below, join, outermost, parent, parents, strictly_below
from remit.sandbox.compile.plan import (
    Environment,
    Landlock,
    Limit,
    Line,
    Lowering,
    Mediate,
    NewRoot,
    Op,
    PivotRoot,
    Plan,
    Privileges,
    Record,
    Seccomp,
    Text,
    Tmpfs,
    Unshare,
    Watch,
)
from remit.sandbox.compile.seccomp import build_filter
from remit.sandbox.compile.syscalls import refused
from remit.sandbox.events.action import EXECUTES, TAKES_AWAY
from remit.sandbox.kernel.facts import HostFacts
from remit.sandbox.resolve.binding import Kind, Named

ROOT_SIZE = 16 << 20
TMP_SIZE = 512 << 20
REMIT = "remit's own files"

_PatternEntry = tuple[str, tuple[str, ...], bool, str]


@dataclass(frozen=True, slots=True)
class Compiled:
    plan: Plan
    lowering: Lowering


def compile_session(
    authority: Authority,
    floor: Authority,
    names: Mapping[str, Named],
    facts: HostFacts,
    *,
    workspace: str,
    home: str,
    degrade: Collection[str] = (),
    degrade_asked: Collection[str] = (),
    explicit: Authority = Authority(),  # noqa: B008 - a frozen value
    deny_paths_of_remit: tuple[str, ...] = (),
    own_code: tuple[str, ...] = (),
    matches: Mapping[str, tuple[Named, ...]] | None = None,
    audit: str = "writes",
    audit_on_full: str = "deny",
    rules: WebRules = network.NO_RULES,
) -> Compiled:
    """Compile ``authority`` (which includes ``floor``) for the host that ``facts`` describe.

    ``names``: every name of the authority, resolved, and ``workspace``, ``home``, where it starts and Remit's own paths.
    ``degrade``: layers given up by profile or command line, ``degrade_asked``: those of the command line alone.
    ``explicit``: what the command line granted; of that, what cannot be given refuses.
    ``deny_paths_of_remit``: configuration, keys, state, cache, runtime: no access, whatever is granted. ``own_code``:
    code and interpreter: never writable, and readable only where a grant to execute covers them.
    ``matches``: for a ``**/NAME`` deny (by its text), every object of that name that exists below a grant; a pattern
    that is missing here could not be searched.
    ``audit`` and ``audit_on_full``: what is recorded, and what happens when it cannot be.
    ``rules``: HTTP rules and credentials. (With any, ``names`` has ``web.LISTS`` too.)

    Unenforceable: with every reason, each with its fix.
    """
    job = Job(
        authority=authority,
        floor=floor,
        names=names,
        facts=facts,
        workspace=workspace,
        secret=deny_paths_of_remit,
        own_code=own_code,
        matches=matches or {},
        says=Report(frozenset(degrade)),
        home=home,
        degrade=frozenset(degrade),
        degrade_asked=frozenset(degrade_asked),
        explicit=explicit,
        audit=audit,
        audit_on_full=audit_on_full,
        rules=rules,
    )
    return job.run()


@dataclass(slots=True, kw_only=True)
class Job(Objects):
    """One compilation of those objects. ``explicit``: what the command line granted."""

    home: str
    degrade: frozenset[str]
    degrade_asked: frozenset[str] = frozenset()
    explicit: Authority = Authority()  # noqa: RUF009 - a frozen value
    audit: str
    audit_on_full: str
    rules: WebRules = network.NO_RULES
    certificates: str = ""
    """Where the session's certificates are inside, if it has any."""

    def run(self) -> Compiled:
        layers = host.layers(self.facts, self.degrade, self.says)
        grants = self.grants()
        denied, protected = self.taken_away(grants)
        grants = self.left(grants, denied, protected)
        roots = outermost(g.path for g in grants if Right.WRITE in g.rights and not own(g.path))
        brokered = self.unheld_reads(grants, denied, layers)

        operations: list[Op] = []
        way_out = network.egress(self.authority, own_namespace=layers.network)
        tree: Tree | None = None
        scratch: tuple[str, ...] = ()
        if layers.namespaces:
            tree = self.tree(grants, denied, protected)
            if way_out is not None:
                mounts.write(tree, network.FILES)
                if self.rules:
                    self.certificates = web.BUNDLE
                    web.place(tree, {path: self.name(path) for path in web.LISTS})
            scratch = tuple(p for p in ("/tmp", "/run", "/var/tmp") if isinstance(tree.entries.get(p), Tmpfs))
            loopback = network.has_loopback(self.authority, own_namespace=layers.network)
            operations += [Unshare(self.kinds(layers), loopback), NewRoot(ROOT_SIZE), *tree.operations()]
            operations += self.watched(tree)
            operations.append(PivotRoot("nested-userns" not in self.authority.syscalls))
        roots = landlock.mediated(roots, scratch)
        for place in scratch:
            if place in roots:
                self.says.note(
                    f"{place} is mediated too: a granted path lies below it (creating files there costs more)"
                )
        if way_out is not None:
            operations.append(way_out)
            if self.rules:
                operations.append(web.operation(self.rules))
        operations += self.limits(layers)
        operations.append(self.environment(way_out is not None))
        operations.append(Record(self.audit, self.audit_on_full, self.lines()))

        domains = self.domains(grants, tree, roots, brokered, layers)
        mediate = self.mediate(grants, roots, brokered, layers)
        operations += [*domains[:1], *([mediate] if layers.mediation else []), Privileges(), *domains[1:]]
        if layers.seccomp:
            operations.append(self.filter(layers, bool(brokered)))

        self.network(layers)
        told.sockets(self, layers, self.explicit)
        told.granted(self, layers, {grant.path: grant.rights for grant in grants})
        told.denied(self, layers)
        lowering.missing(self.says, self.authority, layers, self.facts.landlock_abi, self.visible())
        self.says.raise_if_unenforceable()
        workspace = self.name(self.workspace).canonical
        plan = Plan(tuple(operations), self.assumptions(), workspace, tuple(sorted(self.degrade)))
        return Compiled(plan, self.says.lowering())

    def kinds(self, layers: Layers) -> tuple[str, ...]:
        return ("user", "mount", "pid", "ipc", "uts", *(("net",) if layers.network else ()), "cgroup")

    def tree(self, grants: tuple[Granted, ...], denied: Mapping[str, Kind], protected: Mapping[str, Kind]) -> Tree:
        values = dict(self.authority.limits)
        links: dict[str, str] = {}
        for path in (*(rule.path for rule in self.authority.paths), *self.authority.unix):
            named = self.name(path)
            if named.kind is not Kind.ABSENT:
                links.update(named.links)
        directories: list[str] = []
        # Where the command starts is not among them: an empty directory in its place would be mistaken for it.
        for path in filter(None, (self.home, self.workspace)):
            named = self.name(path)
            links.update(named.links)
            directories.append(named.canonical)
        hidden = {path for path in links if any(below(path, gone) for gone in denied)}
        if not self.facts.fresh_proc:
            line = Line("ipc", "/proc", "read", "this host masks /proc: the outer one is shown, with its processes")
            self.says.wider("namespaces", line, "run outside the container, or unmask /proc; or --degrade namespaces")
        return mounts.build(
            grants,
            links=tuple(sorted((link, target) for link, target in links.items() if link not in hidden)),
            directories=tuple(directories),
            devices=self.devices(),
            tmp_size=values.get("tmp", TMP_SIZE),
            fresh_proc=self.facts.fresh_proc,
            sockets=tuple(path for path in self.sockets() if not any(below(path, gone) for gone in denied)),
            covers={path: kind for path, kind in denied.items() if not any(strictly_below(path, o) for o in denied)},
            read_only=protected,
        )

    def watched(self, tree: Tree) -> list[Op]:
        """Secrets that nothing shows. Where every read is recorded, the mediator sees who looks for them anyway."""
        if self.audit != "writes" or not self.home or not self.facts.fuse:
            return []
        paths = mounts.unshown(tree, self.name(self.home).canonical, mounts.SECRETS)
        return [Watch(paths)] if paths else []

    def limits(self, layers: Layers) -> list[Op]:
        asked = {name for name, _ in self.explicit.limits}
        out: list[Op] = []
        for what, value in sorted(self.authority.limits):
            how = limits.mechanism(what, self.facts, user_namespace=layers.namespaces, network=layers.network)
            out.append(Limit(what, value, how))
            if how == "none":
                line = Line("limits", what, str(value), "nothing on this host holds it")
                given_up = "limits" in (self.degrade_asked if what in asked else self.degrade)
                if given_up:
                    self.says.slack.append(line)
                else:
                    self.says.reasons.append((f"limit {what}: {line.note}", limits.fix(what)))
            elif how == "watch":
                self.says.note(f"limit {what}: no cgroup is delegated, so the supervisor samples the session's sum")
        return out

    def environment(self, way_out: bool) -> Environment:
        own = dict(network.VARIABLES) if way_out else {}
        if self.certificates:
            own |= web.variables()
        # A placeholder's value is made at each start.
        outside = self.rules.variables | self.rules.secret_variables | own.keys()
        passed = tuple(sorted(n for n, value in self.authority.environment if value is None and n not in outside))
        kept = {name: value for name, value in self.authority.environment if value is not None}
        if way_out:
            kept = {name: value for name, value in kept.items() if name not in self.rules.variables}
        return Environment(passed, tuple(sorted({**kept, **own}.items())))

    def domains(
        self,
        grants: tuple[Granted, ...],
        tree: Tree | None,
        roots: tuple[str, ...],
        brokered: tuple[str, ...],
        layers: Layers,
    ) -> list[Op]:
        if not layers.landlock:
            return []
        rules = [Rule(g.path, landlock.mask(g.rights), g.directory) for g in grants if not own(g.path)]
        rules += [Rule("/proc", landlock.PROC)]
        rules += [Rule(path, landlock.RESOLVE_UNIX, False) for path in self.sockets()]
        if self.certificates:
            rules.append(Rule(self.certificates, landlock.READ_FILE, False))
        if tree is None:
            rules += [Rule(f"/dev/{name}", landlock.DEVICE, False) for name in self.devices()]
        else:
            rules += [Rule("/dev", landlock.DEVICES), Rule("/dev/shm", landlock.SCRATCH)]
            rules += [Rule("/dev/pts", landlock.DEVICES)]
            for path in ("/tmp", "/var/tmp", "/run"):
                op = tree.entries.get(path)
                if isinstance(op, Tmpfs):
                    rules.append(Rule(path, landlock.SCRATCH | (0 if op.no_exec else landlock.EXECUTE)))
            rules += [Rule(path, landlock.READ_DIR) for path in mounts.listable(tree)]
            rules += [Rule(op.path, landlock.READ_FILE, False) for op in tree.entries.values() if isinstance(op, Text)]
            rules += landlock.gathered(rules, [path for path in mounts.uncovered(tree) if path == "/etc"])
        abi = landlock.abi(self.facts.landlock_abi)
        wanted, open_ports = network.landlock_tcp(self.authority, own_namespace=layers.network)
        net = abi.net & wanted
        ports = open_ports if net else ()
        session = Landlock("session", abi.fs, net, abi.scoped, landlock.compiled(rules, abi.fs), ports)
        if not layers.mediation:
            return [session]
        inner = landlock.command_rules(rules, roots, brokered)
        return [session, Landlock("command", abi.fs, net, abi.scoped, landlock.compiled(inner, abi.fs), ports)]

    def mediate(
        self, grants: tuple[Granted, ...], roots: tuple[str, ...], brokered: tuple[str, ...], layers: Layers
    ) -> Mediate:
        deny = [entry for pattern in self.authority.deny for entry in self.entries(pattern)]
        protect = [entry for pattern in self.authority.protect for entry in self.entries(pattern)]
        deny += [self.entry(path) for path in self.secret]
        protect += [self.entry(path) for path in self.own_code]
        reach = frozenset([g.path for g in grants])
        letters = ((Right.READ, "r"), (Right.WRITE, "w"), (Right.EXEC, "x"))
        return Mediate(
            roots if layers.mediation else (),
            tuple(sorted({e for e in deny if _matters(e, reach)})),
            tuple(sorted({e for e in protect if _matters(e, reach)})),
            CATALOGUE if self.authority.auto_exec is AutoExec.PROTECT else (),
            tuple(sorted(self.authority.opened)),
            (
                *((g.path, "".join(letter for right, letter in letters if right in g.rights)) for g in grants),
                *((path, "s") for path in self.sockets()),
            ),
            brokered,
            refused(self.authority.syscalls),
            audit=self.audit,
            gateway=network.egress(self.authority, own_namespace=layers.network) is not None,
        )

    def lines(self) -> tuple[tuple[str, str, int, str], ...]:
        """Where each rule stands (``plan.Record``); of several for one object, the first."""
        found: dict[str, Source] = {}
        for rule in self.authority.paths:
            path = self.name(rule.path).canonical
            found.setdefault(path, rule.source)
            if rule.where(Right.EXEC) != rule.source:
                found.setdefault(f"{EXECUTES}{path}", rule.exec_source)
        for pattern in (*self.authority.deny, *self.authority.protect):
            found.setdefault(f"{TAKES_AWAY}{pattern}", pattern.source)
        return tuple((text, s.file, s.line, s.key) for text, s in sorted(found.items()) if s.file)

    def entries(self, pattern: PathPattern) -> list[_PatternEntry]:
        """A pattern as the mediator has it: canonical anchor, tail, any depth, text. A literal that is a link, or lies
        behind one, is held under its own name and under what it leads to."""
        text = str(pattern)
        anchor = self.name(pattern.anchor).canonical
        out: list[_PatternEntry] = [(anchor, pattern.tail, pattern.any_depth, text)]
        if not pattern.any_depth:
            named = self.name(text)
            if named.canonical != join(anchor, *pattern.tail):
                out.append(self.entry(text, text))
        return out

    def entry(self, path: str, text: str = REMIT) -> _PatternEntry:
        canonical = self.name(path).canonical
        return parent(canonical), (canonical.rpartition("/")[2],), False, text

    def filter(self, layers: Layers, brokered_reads: bool, *, metadata: bool = False) -> Seccomp:
        program = build_filter(
            self.authority.syscalls,
            notify=layers.mediation,
            brokered_reads=brokered_reads or self.audit == "full",
            metadata=metadata,
            machine=self.facts.machine,
        )
        return Seccomp(program, layers.mediation)

    def network(self, layers: Layers) -> None:
        found = network.lower(self.authority, self.explicit, self.rules, own_namespace=layers.network)
        self.says.reasons += found.reasons
        self.says.granted += found.granted
        self.says.deficit += found.deficit
        self.says.slack += found.slack
        for text in found.notes:
            self.says.note(text)

    # --- the lowering


def _matters(entry: _PatternEntry, reach: frozenset[str]) -> bool:
    """Whether a rule of the mediator can match anything that is visible."""
    anchor, tail, any_depth, _ = entry
    path = anchor if any_depth else join(anchor, *tail)
    if path in reach or "/" in reach or not reach.isdisjoint(parents(path)):
        return True
    return any_depth and any([below(place, anchor) for place in reach])
