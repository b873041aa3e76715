"""Authority x host facts -> Plan + Lowering, or Unenforceable with every reason and its fix. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from remit.sandbox.authority.model import Authority, AutoExec, PathPattern, Right, Source
from remit.sandbox.authority.web import WebRules
from remit.sandbox.compile import landlock, limits, lowering, mounts, network, web
from remit.sandbox.compile.catalogue import WIRE as CATALOGUE
from remit.sandbox.compile.landlock import Rule
from remit.sandbox.compile.lowering import Layers, Report
from remit.sandbox.compile.mounts import Granted, Tree
from remit.sandbox.compile.paths import below, join, order, outermost, parent, parents, strictly_below, touch
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
)
from remit.sandbox.compile.seccomp import AUDIT_ARCH, build_filter
from remit.sandbox.compile.syscalls import refused
from remit.sandbox.kernel.facts import HostFacts
from remit.sandbox.resolve.binding import Kind, Named

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
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
    chdir: str = "",
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

    ``names``: every name of the authority, resolved, and ``workspace``, ``home``, ``chdir`` and Remit's own paths.
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
        authority,
        floor,
        names,
        facts,
        workspace,
        home,
        chdir or workspace,
        frozenset(degrade),
        frozenset(degrade_asked),
        explicit,
        deny_paths_of_remit,
        own_code,
        matches or {},
        audit,
        audit_on_full,
        Report(frozenset(degrade)),
        rules,
    )
    return job.run()


@dataclass(slots=True)
class Job:
    """One compilation: its inputs, and what it has to say so far."""

    authority: Authority
    floor: Authority
    names: Mapping[str, Named]
    facts: HostFacts
    workspace: str
    home: str
    chdir: str
    degrade: frozenset[str]
    degrade_asked: frozenset[str]
    explicit: Authority
    secret: tuple[str, ...]
    own_code: tuple[str, ...]
    matches: Mapping[str, tuple[Named, ...]]
    audit: str
    audit_on_full: str
    says: Report
    rules: WebRules = network.NO_RULES
    certificates: str = ""
    """Where the session's certificates are inside, if it has any."""
    used: dict[str, Named] = field(default_factory=dict[str, Named])

    def name(self, path: str) -> Named:
        """The resolution of a name, remembered as an assumption of the plan."""
        named = self.names.get(path) or Named(path, path, Kind.ABSENT)
        self.used[path] = named
        return named

    # --- the steps

    def run(self) -> Compiled:
        layers = self.layers()
        grants = self.grants()
        denied, protected = self.taken_away(grants)
        grants = tuple(self.left(grant, denied, protected) for grant in grants)
        grants = tuple(grant for grant in grants if grant.rights)
        roots = outermost(g.path for g in grants if Right.WRITE in g.rights and not _own(g.path))
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
        self.say_sockets(layers)
        self.say_granted(layers, {grant.path: grant.rights for grant in grants})
        self.say_denied(layers)
        lowering.missing(self.says, self.authority, layers, self.facts.landlock_abi, self.visible())
        self.says.raise_if_unenforceable()
        workspace = self.name(self.workspace).canonical
        plan = Plan(tuple(operations), self.assumptions(), workspace, tuple(sorted(self.degrade)))
        return Compiled(plan, self.says.lowering())

    def visible(self) -> tuple[str, ...]:
        return tuple(self.name(rule.path).canonical for rule in self.authority.paths)

    def layers(self) -> Layers:
        """What this host offers and the user did not give up; a layer that is missing otherwise is a reason."""
        facts = self.facts

        def have(layer: str, possible: bool, problem: str, fix: str) -> bool:
            if not possible and layer not in self.degrade:
                self.says.missing(layer, problem, fix)
            return possible and layer not in self.degrade

        why = dict(facts.missing).get("user_namespaces", "")
        userns_fix = (
            "install Remit's AppArmor profile (remit doctor prints it), or give the layer up with --degrade namespaces"
            if facts.apparmor_restricts_userns
            else "allow user namespaces (remit doctor says how), or give the layer up with --degrade namespaces"
        )
        cause = "AppArmor's restriction" if facts.apparmor_restricts_userns else why or "the kernel's configuration"
        namespaces = have("namespaces", facts.user_namespaces, f"no user namespaces here: {cause}", userns_fix)
        if facts.user_namespaces:
            namespaces = namespaces and have(
                "namespaces",
                facts.new_mount_api,
                "the kernel has no mount_setattr (Linux 5.12)",
                "use Linux 5.19 or later, or --degrade namespaces",
            )
            if not facts.fresh_proc and "namespaces" in self.degrade and facts.new_mount_api:
                # What is given up by name is only what cannot be had: a masked /proc is no reason to drop the rest.
                namespaces = True
        confined = have(
            "landlock",
            facts.landlock_abi >= landlock.MINIMUM_ABI,
            f"Landlock ABI {facts.landlock_abi}: at least {landlock.MINIMUM_ABI} is needed (Linux 5.19)",
            "add landlock to the boot parameter lsm=, or use Linux 5.19 or later",
        )
        filtered = have(
            "seccomp", facts.machine in AUDIT_ARCH, f"no system call table for {facts.machine}", "use x86-64 or aarch64"
        )
        mediation = have(
            "mediation",
            facts.seccomp_notify,
            "the kernel has no seccomp notification with descriptors (Linux 5.14)",
            "use Linux 5.19 or later, or give up denials of names that do not exist yet with --degrade mediation",
        )
        if not namespaces and not confined and not self.says.reasons:
            self.says.reasons.append(
                ("neither namespaces nor Landlock: nothing would confine the command", "keep one of them")
            )
        return Layers(
            namespaces,
            namespaces and "network" not in self.degrade,
            confined,
            filtered,
            filtered and mediation and confined,
        )

    def kinds(self, layers: Layers) -> tuple[str, ...]:
        return ("user", "mount", "pid", "ipc", "uts", *(("net",) if layers.network else ()), "cgroup")

    def grants(self) -> tuple[Granted, ...]:
        """The granted objects that exist, one a canonical path, parents first."""
        floor = {rule.path for rule in self.floor.paths}
        merged: dict[str, Granted] = {}
        for rule in self.authority.paths:
            named = self.name(rule.path)
            if named.kind is Kind.ABSENT:
                continue
            if named.canonical == "/":
                self.says.reasons.append(
                    (f"{rule.path}: the whole file system cannot be granted", "grant its directories")
                )
                continue
            rights = rule.rights | {Right.READ}
            held = merged.get(named.canonical)
            copied = rule.path in floor and mounts.in_etc(rule.path) and named.kind is Kind.FILE
            copied = copied and rights == frozenset({Right.READ})
            if held:
                rights, copied = rights | held.rights, copied and held.copied
            in_floor = rule.path in floor or bool(held and held.floor)
            merged[named.canonical] = Granted(
                named.canonical, named.kind, rights, in_floor, copied, self.idmap(named, rights)
            )
            if named.kind is Kind.FILE and named.parent_writable and Right.WRITE in rights:
                self.says.note(
                    f"{rule.path}: a file is granted as the object it is now; a new file of that name is not"
                )
        return tuple(merged[path] for path in sorted(merged, key=order))

    def idmap(self, named: Named, rights: Collection[Right]) -> bool:
        """Invariant 7: what root owns and the command may write is seen through an id-mapped mount, or not at all."""
        if self.facts.uid != 0 or named.uid != 0 or Right.WRITE not in rights or named.kind is Kind.DEVICE:
            return False
        if not self.facts.idmapped_mounts:
            self.says.reasons.append(
                (
                    f"{named.path} belongs to root, and this host cannot map its owner",
                    f"chown it to an ordinary user, or run as one: chown -R USER {named.path}",
                )
            )
        return True

    def taken_away(self, grants: tuple[Granted, ...]) -> tuple[dict[str, Kind], dict[str, Kind]]:
        """Existing objects that are denied, and those that are protected, by canonical path."""
        denied: dict[str, Kind] = {}
        protected: dict[str, Kind] = {}
        for patterns, into in ((self.authority.deny, denied), (self.authority.protect, protected)):
            for pattern in patterns:
                if pattern.any_depth:
                    self.name(pattern.anchor)
                    continue
                named = self.name(str(pattern))
                if named.kind is not Kind.ABSENT:
                    into[named.canonical] = named.kind
        for text in (str(pattern) for pattern in self.authority.deny if pattern.any_depth):
            for named in self.matches.get(text, ()):
                if named.kind is not Kind.ABSENT:
                    self.used[named.path] = named
                    denied[named.canonical] = named.kind
        for path in self.secret:
            named = self.name(path)
            if named.kind is not Kind.ABSENT:
                denied[named.canonical] = named.kind
        for path in self.own_code:
            named = self.name(path)
            if named.kind is Kind.ABSENT:
                continue
            rights = mounts.effective(named.canonical, grants)
            if rights and Right.EXEC not in rights:
                denied[named.canonical] = named.kind
            elif rights:
                protected[named.canonical] = named.kind
            if Right.WRITE in rights and below(named.canonical, self.name(self.workspace).canonical):
                self.says.note(
                    f"Remit is installed inside the workspace: {path} is read-only inside; install it elsewhere"
                )
        return denied, protected

    def left(self, grant: Granted, denied: Mapping[str, Kind], protected: Mapping[str, Kind]) -> Granted:
        """A grant without what a deny or protect above it takes away."""
        if any(below(grant.path, path) for path in denied) or self.matched(grant.path, self.authority.deny):
            self.says.note(f"{grant.path}: granted and denied: the denial wins")
            return replace(grant, rights=frozenset())
        if Right.WRITE in grant.rights and (
            any(below(grant.path, path) for path in protected) or self.matched(grant.path, self.authority.protect)
        ):
            self.says.note(f"{grant.path}: granted for writing and protected: the protection wins")
            return replace(grant, rights=grant.rights - {Right.WRITE}, idmap=False)
        return grant

    def matched(self, path: str, patterns: Collection[PathPattern]) -> bool:
        """Whether ``path`` is or lies below a name of one of the ``**/NAME`` patterns."""
        parts = path.split("/")
        for pattern in patterns:
            anchor, size = self.name(pattern.anchor).canonical, len(pattern.tail)
            if not pattern.any_depth or not below(path, anchor):
                continue
            depth = 1 if anchor == "/" else len(anchor.split("/"))
            if any(tuple(parts[i : i + size]) == pattern.tail for i in range(depth, len(parts) - size + 1)):
                return True
        return False

    def unheld_reads(
        self,
        grants: tuple[Granted, ...],
        denied: Mapping[str, Kind],
        layers: Layers,
        uncovered: Iterable[str] = (),
    ) -> tuple[str, ...]:
        """Roots in which the mediator has to open files for reading: denied names can lie anywhere in them.

        ``uncovered``: denied objects that no mount covers, though there are mounts.
        """
        brokered: set[str] = set()
        for pattern in (pattern for pattern in self.authority.deny if pattern.any_depth):
            if str(pattern) in self.matches and layers.namespaces:
                self.says.note(
                    f"deny {pattern}: objects of that name are found at start; a later one from outside is not held"
                )
                continue
            anchor = self.name(pattern.anchor).canonical
            for grant in grants:
                if not grant.directory or not touch(grant.path, anchor) or _own(grant.path):
                    continue
                if grant.floor:
                    self.says.note(f"deny {pattern}: not looked for in the floor's {grant.path}")
                    continue
                self.broker(brokered, max(grant.path, anchor, key=len), str(pattern), grants, layers)
        if not layers.namespaces:
            for path in denied:
                if any(strictly_below(path, grant.path) for grant in grants if grant.directory):
                    self.broker(brokered, path, path, grants, layers)
        for path in uncovered:
            for grant in grants:
                # All of the grant: Landlock's rule on it cannot leave one name out.
                if grant.directory and strictly_below(path, grant.path):
                    self.broker(brokered, grant.path, path, grants, layers)
        roots = outermost(brokered)
        if roots:
            self.says.note(
                f"every open is seen by the mediator, and those below {', '.join(roots)} are made by it: slower"
            )
        return roots

    def broker(self, brokered: set[str], root: str, text: str, grants: tuple[Granted, ...], layers: Layers) -> None:
        # Executing a file needs the right to read it, and nobody can execute on behalf of another.
        executable = Right.EXEC in mounts.effective(root, grants) or any(
            below(grant.path, root) and Right.EXEC in grant.rights for grant in grants
        )
        if layers.mediation and not executable:
            brokered.add(root)
            return
        note = "denied names below what may be executed can still be read"
        if not layers.mediation:
            note = "denied names can still be read: no mediator opens for the command"
        line = Line("filesystem", text, "read", note)
        missing = "mediation" if layers.namespaces else "namespaces"
        self.says.wider(missing, line, f"do not grant exec on {root}, or name the path instead of a pattern")

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

    def sockets(self) -> tuple[str, ...]:
        """Canonical paths of the granted Unix sockets that are there and are sockets."""
        named = (self.name(path) for path in self.authority.unix)
        return tuple(sorted({one.canonical for one in named if one.kind is Kind.SOCKET}))

    def say_sockets(self, layers: Layers) -> None:
        asked = frozenset(self.explicit.unix)
        by = ["namespaces"] if layers.namespaces else []
        if layers.landlock and landlock.abi(self.facts.landlock_abi).fs & landlock.RESOLVE_UNIX:
            by.append("landlock")
        for path in sorted(self.authority.unix):
            named = self.name(path)
            if named.kind is Kind.SOCKET:
                note = "" if named.canonical == path else f"is {named.canonical}"
                self.says.granted.append(Line("ipc", path, "connect", note, tuple(by)))
                continue
            why = "no such socket now" if named.kind is Kind.ABSENT else "not a socket"
            if path in asked:
                self.says.reasons.append((f"unix {path}: {why}", "start its server first, and name the socket itself"))
            else:
                self.says.deficit.append(Line("ipc", path, "connect", why))

    def devices(self) -> tuple[str, ...]:
        """Names below /dev."""
        chosen: list[str] = list(DEVICES)
        wanted = [name if name.startswith("/") else f"/dev/{name}" for name in self.authority.devices]
        wanted += [rule.path for rule in self.authority.paths if strictly_below(rule.path, "/dev")]
        for path in wanted:
            named = self.name(path)
            short = path.removeprefix("/dev/")
            if named.kind is Kind.DEVICE and below(named.canonical, "/dev"):
                short = named.canonical.removeprefix("/dev/")
                if short not in chosen:
                    chosen.append(short)
            elif short not in chosen:
                self.says.deficit.append(Line("devices", path, "use", "no such device on this host"))
        return tuple(chosen)

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
        rules = [Rule(g.path, landlock.mask(g.rights), g.directory) for g in grants if not _own(g.path)]
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
        """Where each rule stands; of several for one object, the first."""
        found: dict[str, Source] = {}
        for rule in self.authority.paths:
            found.setdefault(self.name(rule.path).canonical, rule.source)
        for pattern in (*self.authority.deny, *self.authority.protect):
            found.setdefault(str(pattern), pattern.source)
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

    def assumptions(self) -> tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...]:
        return tuple((path, n.kind.value, n.canonical, n.links) for path, n in sorted(self.used.items()))

    # --- the lowering

    def say_granted(self, layers: Layers, left: Mapping[str, frozenset[Right]]) -> None:
        held = tuple(name for name, on in (("namespaces", layers.namespaces), ("landlock", layers.landlock)) if on)
        for rule in self.authority.paths:
            named = self.name(rule.path)
            if named.canonical not in left:
                continue
            note = "" if named.canonical == rule.path else f"is {named.canonical}"
            if below(named.canonical, "/proc"):
                note = "the session's own /proc"
            writes = ("mediation",) if layers.mediation else ()
            for right in sorted((rule.rights | {Right.READ}) & left[named.canonical]):
                by = (*held, *(writes if right is Right.WRITE else ()))
                self.says.granted.append(Line("filesystem", rule.path, right.value, note, by, str(rule.where(right))))
            if rule not in self.floor.paths and named.kind is Kind.OTHER:
                self.says.note(f"{rule.path}: neither file, directory, device nor socket")
        for group in sorted(self.authority.syscalls):
            self.says.granted.append(Line("syscalls", group, "use", "", ("seccomp",)))
        for name in sorted(self.authority.devices):
            self.says.granted.append(Line("devices", name, "use", "", held))
        for name, setting in sorted(self.authority.environment, key=lambda pair: pair[0]):
            self.says.granted.append(
                Line("environment", name, "pass" if setting is None else "set", "", ("environment",))
            )
        for what, value in sorted(self.authority.limits):
            self.says.granted.append(Line("limits", what, str(value), "", ("limits",)))

    def say_denied(self, layers: Layers) -> None:
        visible = self.visible()
        for patterns, what in ((self.authority.deny, "deny"), (self.authority.protect, "protect")):
            for pattern in patterns:
                named = self.name(pattern.anchor if pattern.any_depth else str(pattern))
                inside = any(
                    touch(named.canonical, path) if pattern.any_depth else below(named.canonical, path)
                    for path in visible
                )
                by: list[str] = []
                if not inside:
                    by = [n for n, on in (("namespaces", layers.namespaces), ("landlock", layers.landlock)) if on]
                else:
                    if layers.namespaces and named.kind is not Kind.ABSENT and not pattern.any_depth:
                        by.append("namespaces")
                    if layers.mediation:
                        by.append("mediation")
                note = "not granted anyway" if not inside else ""
                if inside and named.kind is Kind.ABSENT and what == "deny":
                    note = "absent now; one that is made from outside later can be read"
                self.says.denied.append(Line("filesystem", str(pattern), what, note, tuple(by), str(pattern.source)))
                if inside and not layers.mediation:
                    line = Line("filesystem", str(pattern), what, "names made later are not held without mediation")
                    self.says.wider("mediation" if layers.landlock else "landlock", line, "keep the mediator")


def _own(path: str) -> bool:
    return any(below(path, own) for own in mounts.OWN)


def _matters(entry: _PatternEntry, reach: frozenset[str]) -> bool:
    """Whether a rule of the mediator can match anything that is visible."""
    anchor, tail, any_depth, _ = entry
    path = anchor if any_depth else join(anchor, *tail)
    if path in reach or "/" in reach or not reach.isdisjoint(parents(path)):
        return True
    return any_depth and any([below(place, anchor) for place in reach])
