"""The objects of a compilation: what the granted and the denied names are on this host, and what is left of each grant.

Everything here goes by canonical path: two names of one object are one grant, and a denial of either takes it away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from remit.sandbox.authority.model import Authority, PathPattern, Right
from remit.sandbox.compile import mounts
from remit.sandbox.compile.lowering import Layers, Report
from remit.sandbox.compile.mounts import Granted
from remit.sandbox.compile.paths import below, order, outermost, parents, strictly_below, touch
from remit.sandbox.compile.plan import Line
from remit.sandbox.kernel.facts import HostFacts
from remit.sandbox.resolve.binding import Kind, Named

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


@dataclass(slots=True)
class Objects:
    """An authority by the objects that its names lead to, and what there is to say of them.

    ``secret``: Remit's own places, which nobody reaches; ``own_code``: its code, which nobody writes. ``matches``: for a
    ``**/NAME`` deny, by its text, what exists of that name.
    """

    authority: Authority
    floor: Authority
    names: Mapping[str, Named]
    facts: HostFacts
    workspace: str
    secret: tuple[str, ...]
    own_code: tuple[str, ...]
    matches: Mapping[str, tuple[Named, ...]]
    says: Report
    used: dict[str, Named] = field(default_factory=dict[str, Named])

    def name(self, path: str) -> Named:
        """The resolution of a name, remembered as an assumption of the plan."""
        named = self.names.get(path) or Named(path, path, Kind.ABSENT)
        self.used[path] = named
        return named

    def visible(self) -> tuple[str, ...]:
        return tuple(self.name(rule.path).canonical for rule in self.authority.paths)

    def assumptions(self) -> tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...]:
        return tuple((path, n.kind.value, n.canonical, n.links) for path, n in sorted(self.used.items()))

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

    def left(
        self, grants: Iterable[Granted], denied: Mapping[str, Kind], protected: Mapping[str, Kind]
    ) -> tuple[Granted, ...]:
        """The grants without what a deny or protect above them takes away, where anything is left."""
        deny, protect = self.anywhere(self.authority.deny), self.anywhere(self.authority.protect)
        found: list[Granted] = []
        for grant in grants:
            path, above = grant.path, (grant.path, *parents(grant.path))
            if not denied.keys().isdisjoint(above) or _matched(path, deny):
                self.says.note(f"{path}: granted and denied: the denial wins")
                continue
            if Right.WRITE in grant.rights and (not protected.keys().isdisjoint(above) or _matched(path, protect)):
                self.says.note(f"{path}: granted for writing and protected: the protection wins")
                found.append(replace(grant, rights=grant.rights - {Right.WRITE}, idmap=False))
            else:
                found.append(grant)
        return tuple(found)

    def anywhere(self, patterns: Collection[PathPattern]) -> list[tuple[str, tuple[str, ...]]]:
        """The ``**/NAME`` patterns among them: below which directory, and the name's parts."""
        return [(self.name(one.anchor).canonical, one.tail) for one in patterns if one.any_depth]

    def unheld_reads(
        self,
        grants: tuple[Granted, ...],
        denied: Mapping[str, Kind],
        layers: Layers,
        uncovered: Iterable[str] = (),
        missing: Iterable[str] = (),
    ) -> tuple[str, ...]:
        """Roots in which the mediator has to open files for reading: denied names can lie anywhere in them.

        ``uncovered``: denied objects that no mount covers, though there are mounts. ``missing``: denied names that are not
        there yet, and that somebody else may make: below what may be executed, whoever has them denied must not start then.
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
                if not grant.directory or not touch(grant.path, anchor) or own(grant.path):
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
        for path in missing:
            for grant in grants:
                held = grant.directory and strictly_below(path, grant.path)
                if held and layers.mediation and not _executable(grant.path, grants):
                    brokered.add(grant.path)
        roots = outermost(brokered)
        if roots:
            self.says.note(
                f"every open is seen by the mediator, and those below {', '.join(roots)} are made by it: slower"
            )
        return roots

    def broker(self, brokered: set[str], root: str, text: str, grants: tuple[Granted, ...], layers: Layers) -> None:
        if layers.mediation and not _executable(root, grants):
            brokered.add(root)
            return
        note = "denied names below what may be executed can still be read"
        if not layers.mediation:
            note = "denied names can still be read: no mediator opens for the command"
        line = Line("filesystem", text, "read", note)
        missing = "mediation" if layers.namespaces else "namespaces"
        self.says.wider(missing, line, f"do not grant exec on {root}, or name the path instead of a pattern")

    def sockets(self) -> tuple[str, ...]:
        """Canonical paths of the granted Unix sockets that are there and are sockets."""
        named = (self.name(path) for path in self.authority.unix)
        return tuple(sorted({one.canonical for one in named if one.kind is Kind.SOCKET}))

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


def _executable(root: str, grants: tuple[Granted, ...]) -> bool:
    """Whether something there may be executed. That needs the right to read it, and nobody can execute for another."""
    return Right.EXEC in mounts.effective(root, grants) or any(
        below(grant.path, root) and Right.EXEC in grant.rights for grant in grants
    )


def _matched(path: str, patterns: Iterable[tuple[str, tuple[str, ...]]]) -> bool:
    """Whether ``path`` is or lies below a name of one of the patterns."""
    names = path.split("/")
    for anchor, tail in patterns:
        if not below(path, anchor):
            continue
        size, depth = len(tail), 1 if anchor == "/" else len(anchor.split("/"))
        if any(tuple(names[i : i + size]) == tail for i in range(depth, len(names) - size + 1)):
            return True
    return False


@lru_cache(4096)
def own(path: str) -> bool:
    """Whether the session has one of its own there, whatever is granted."""
    return any(below(path, place) for place in mounts.OWN)
