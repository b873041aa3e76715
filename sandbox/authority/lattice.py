"""The order on authorities: what one denotes, ⊑, meet, join, and the decisions that ``explain`` and ``why`` show.

An authority denotes a set of (axis, object, right):

- *filesystem, exec*: a rule grants its path and everything below it; ``write`` and ``exec`` imply ``read``. A deny
  takes every right from what it matches and from everything below, a protect takes ``write``; no rule opens either.
- *auto-exec catalogue*: ``opened`` names, or every name with ``AutoExec.ALLOW``.
- *network, ipc, syscalls, devices*: endpoints, ports, paths and names as sets; ``loopback`` is one atom.
- *environment*: (name, value) atoms. Passing the caller's value and setting a value are different atoms, even where the
  values happen to be equal: the first one tells the caller's secret, whatever it is.
- *limits*: every amount up to the maximum; an absent name is unlimited.

There are two forms. ``normal`` loses nothing: it merges, spells out and sorts, and what it returns can be resolved,
kept and joined. ``extent`` is the one canonical form of the denoted set: two authorities are ⊑ each other exactly when
their extents are equal. An extent is for comparing only. It leaves out every line that adds nothing *as a name*, such
as a deny outside all rules, and names are not objects: where ``/p/link`` leads to ``/q``, a deny of ``/p/link/key``
does take something from a grant of ``/q``, and a join may grant ``/p`` later.

``optional`` and ``source`` belong to lines, not to the set: no comparison looks at them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from remit.sandbox.authority.endpoint import canonical, intersection, matches, uncovered
from remit.sandbox.authority.model import NOWHERE, Authority, AutoExec, Endpoint, PathPattern, PathRule, Right
from remit.sandbox.authority.pattern import (
    Parts,
    Shape,
    covers,
    irredundant,
    joined,
    parts,
    pattern,
    restrict,
    shape,
    spelled,
    within,
)

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Violation:
    """One object of an authority that lies outside another. ``reason`` says what the other one holds instead."""

    axis: str
    object: str
    right: str
    reason: str

    def __str__(self) -> str:
        return f"{self.axis}: {self.right} {self.object}: {self.reason}"


def _implied(rights: frozenset[Right]) -> frozenset[Right]:
    return rights | {Right.READ} if rights else rights


def _rules(rules: Iterable[PathRule]) -> tuple[PathRule, ...]:
    """One rule a path. It is required if any of the merged ones is; the line that added a right stands for that right."""
    merged: dict[str, PathRule] = {}
    for rule in rules:
        parts(rule.path)
        if not rule.rights:
            continue
        old = merged.get(rule.path)
        if old is None:
            if Right.READ in rule.rights and rule.exec_source is NOWHERE:
                merged[rule.path] = rule  # as nearly all are, and as it would be made below
                continue
            old = rule
        source = rule.source if Right.WRITE in rule.rights - old.rights else old.source
        executes = (rule if Right.EXEC in rule.rights - old.rights else old).where(Right.EXEC)
        rights = _implied(old.rights | rule.rights)
        apart = executes if Right.EXEC in rights and executes != source else NOWHERE
        merged[rule.path] = PathRule(rule.path, rights, old.optional and rule.optional, source, apart)
    return tuple(merged[path] for path in sorted(merged))


def _patterns(patterns: Iterable[PathPattern]) -> tuple[PathPattern, ...]:
    merged: dict[PathPattern, PathPattern] = {}
    for one in patterns:
        made = spelled(one)
        if made not in merged:
            same = made.anchor == one.anchor and made.tail == one.tail
            merged[made] = one if same else replace(made, source=one.source)
    return tuple(merged[made] for made in sorted(merged))


def _endpoints(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    merged: dict[Endpoint, Endpoint] = {}
    for one in endpoints:
        merged.setdefault(one, one)
    return tuple(merged[one] for one in sorted(merged))


def _limits(limits: Iterable[tuple[str, int]]) -> dict[str, int]:
    merged: dict[str, int] = {}
    for name, most in limits:
        merged[name] = min(most, merged.get(name, most))
    return merged


def _environment(environment: Iterable[tuple[str, str | None]]) -> tuple[tuple[str, str | None], ...]:
    merged = dict(environment)
    return tuple((name, merged[name]) for name in sorted(merged))


def normal(a: Authority) -> Authority:
    """The same authority with one rule a path, implied rights spelled out, exact duplicates gone, everything sorted.

    Of duplicates, the first one's source is kept. For one environment name the last value holds, for one limit the
    lowest maximum. Equal normal forms denote equal sets; the reverse holds for ``extent``. A rule or pattern that
    another one holds *by name* stays, because what it resolves to may be another object.

    Raises:
        ValueError: a path is not absolute and lexically normal.
    """
    if a.in_normal_form:
        return a
    made = Authority(
        paths=_rules(a.paths),
        deny=_patterns(a.deny),
        protect=_patterns(a.protect),
        auto_exec=a.auto_exec,
        opened=tuple(sorted(set(a.opened))),
        connect=_endpoints(a.connect),
        listen=tuple(sorted(set(a.listen))),
        publish=tuple(sorted(set(a.publish))),
        loopback=a.loopback,
        unix=tuple(sorted(set(a.unix))),
        syscalls=tuple(sorted(set(a.syscalls))),
        devices=tuple(sorted(set(a.devices))),
        environment=_environment(a.environment),
        limits=tuple(sorted(_limits(a.limits).items())),
    )
    object.__setattr__(made, "in_normal_form", True)
    return made


def _taken(a: Authority, right: Right) -> list[tuple[Shape, PathPattern]]:
    """What is taken from a right, each with the line that takes it: deny, and for writing also protect."""
    lines = (*a.deny, *a.protect) if right is Right.WRITE else a.deny
    return [(shape(line), line) for line in lines]


def _roots(a: Authority, right: Right, also: Iterable[Shape] = ()) -> list[Parts]:
    """The topmost paths that have the right. They and what is taken below them (by ``a``, and ``also``) determine what is
    allowed."""
    taken = [*[one for one, _ in _taken(a, right)], *also]
    roots: list[Parts] = []
    # Sorted, a path comes after everything above it; it is below the last root or below none.
    for path in sorted({parts(rule.path) for rule in a.paths if right in _implied(rule.rights)}):
        if roots and path[: len(roots[-1])] == roots[-1]:
            continue
        if not any(covers(one, path) for one in taken):
            roots.append(path)
    return roots


def extent(a: Authority) -> Authority:
    """The canonical form of the denoted set: ``extent(a) == extent(b)`` exactly when each is ⊑ the other.

    For comparing only (see the module's text): never resolve it, never join it.

    Raises:
        ValueError: a path is not absolute and lexically normal.
    """
    roots = {right: _roots(a, right) for right in Right}
    rights: dict[Parts, frozenset[Right]] = {}
    for right, paths in roots.items():
        for path in paths:
            rights[path] = _implied(rights.get(path, frozenset[Right]()) | {right})
    readable, writable = roots[Right.READ], roots[Right.WRITE]
    deny = irredundant(made for line in a.deny for root in readable for made in restrict(shape(line), root))
    protect = irredundant(
        (made for line in a.protect for root in writable for made in restrict(shape(line), root)), deny
    )
    allow = a.auto_exec is AutoExec.ALLOW
    same = normal(a)
    return Authority(
        paths=tuple(PathRule(path, held) for path, held in sorted((joined(p), held) for p, held in rights.items())),
        deny=tuple(sorted(map(pattern, deny))),
        protect=tuple(sorted(map(pattern, protect))),
        auto_exec=a.auto_exec,
        opened=() if allow else same.opened,
        connect=tuple(canonical(a.connect)),
        listen=same.listen,
        publish=same.publish,
        loopback=a.loopback,
        unix=same.unix,
        syscalls=same.syscalls,
        devices=same.devices,
        environment=same.environment,
        limits=same.limits,
    )


def _axis(right: Right) -> str:
    return "exec" if right is Right.EXEC else "filesystem"


def _path_violations(a: Authority, b: Bound, *, carries: bool) -> list[Violation]:
    found: list[Violation] = []
    for right in Right:
        inner: list[Shape] | None = None
        granted = b.granted[right]
        for root in _roots(a, right, [one for one, _ in b.taken[right]] if carries else ()):
            name = joined(root)
            if not any(root[:size] in granted for size in range(len(root) + 1)):
                found.append(Violation(_axis(right), name, right, "not granted"))
                continue
            if carries:
                continue
            for one, line in b.taken[right]:
                for made in restrict(one, root):
                    if inner is None:
                        inner = [shape for shape, _ in _taken(a, right)]
                    # Inclusion is pairwise (see ``pattern``): one shape of ``a`` has to hold all of it.
                    if not any(within(made, mine) for mine in inner):
                        verb = "denies" if line in b.authority.deny else "protects"
                        object_ = str(pattern(made)) if made != (root, ()) else name
                        found.append(Violation(_axis(right), object_, right, f"the ceiling {verb} {line}"))
    return found


def _set_violations(axis: str, right: str, a: Iterable[object], b: Iterable[object]) -> list[Violation]:
    held = set(b)
    return [Violation(axis, str(one), right, "not granted") for one in a if one not in held]


class Bound:
    """An authority that many others are measured against: what ``violations`` wants of it is made once.

    Raises:
        ValueError: a path is not absolute and lexically normal.
    """

    __slots__ = ("authority", "granted", "taken")

    def __init__(self, authority: Authority) -> None:
        self.authority = normal(authority)
        self.taken = {right: _taken(self.authority, right) for right in Right}
        self.granted = {
            right: frozenset([parts(rule.path) for rule in self.authority.paths if right in _implied(rule.rights)])
            for right in Right
        }


def violations(a: Authority, ceiling: Authority | Bound, *, carries: bool = False) -> tuple[Violation, ...]:
    """Every object by which ``a`` goes beyond ``ceiling``; empty exactly when ``a`` ⊑ ``ceiling``.

    ``carries``: as if ``a`` had every deny and protect of the ceiling's too.

    Raises:
        ValueError: a path is not absolute and lexically normal.
    """
    above = ceiling if isinstance(ceiling, Bound) else Bound(ceiling)
    a, b = normal(a), above.authority
    found = _path_violations(a, above, carries=carries)
    if b.auto_exec is not AutoExec.ALLOW:
        if a.auto_exec is AutoExec.ALLOW:
            found.append(Violation("filesystem", "auto_exec", "write", "auto-executed files are protected"))
        else:
            found += _set_violations("filesystem", "write", a.opened, b.opened)
    found += [Violation("network", str(one), "connect", "not granted") for one in uncovered(a.connect, b.connect)]
    found += _set_violations("network", "listen", a.listen, b.listen)
    found += _set_violations("network", "publish", a.publish, b.publish)
    if a.loopback and not b.loopback:
        found.append(Violation("network", "loopback", "connect", "loopback is closed"))
    found += _set_violations("ipc", "connect", a.unix, b.unix)
    found += _set_violations("syscalls", "call", a.syscalls, b.syscalls)
    found += _set_violations("devices", "use", a.devices, b.devices)
    outer = dict(b.environment)
    for name, value in a.environment:
        if name not in outer:
            found.append(Violation("environment", name, "pass" if value is None else "set", "not granted"))
        elif outer[name] != value:
            held = "only passing it is granted" if outer[name] is None else "only another value is granted"
            found.append(Violation("environment", name, "pass" if value is None else "set", held))
    mine = dict(a.limits)
    for name, most in b.limits:
        if name not in mine:
            found.append(Violation("limits", name, "use", f"unlimited, the maximum is {most}"))
        elif mine[name] > most:
            found.append(Violation("limits", name, "use", f"{mine[name]} is above the maximum of {most}"))
    return tuple(dict.fromkeys(found))


def leq(a: Authority, b: Authority) -> bool:
    """``a`` ⊑ ``b``: everything that ``a`` denotes, ``b`` denotes. A preorder; ``extent`` makes it a partial order."""
    return not violations(a, b)


def _both(a: Iterable[str], b: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(a) & set(b)))


def meet(a: Authority, b: Authority) -> Authority:
    """The greatest authority that is ⊑ both: it denotes the intersection, and carries every deny and protect of both.

    Two environment lines for one name that differ have nothing in common (see the module's text): the name is dropped.
    A rule is optional if the deeper of the two that made it is. The result is in normal form.

    Raises:
        ValueError: a path is not absolute and lexically normal.
    """
    a, b = normal(a), normal(b)
    rules: list[PathRule] = []
    for one in a.paths:
        for other in b.paths:
            first, second = parts(one.path), parts(other.path)
            deeper, upper = (one, other) if len(first) >= len(second) else (other, one)
            if parts(deeper.path)[: min(len(first), len(second))] == parts(upper.path):
                optional = deeper.optional or (first == second and upper.optional)
                held = one.rights & other.rights
                rules.append(PathRule(deeper.path, held, optional, deeper.source, deeper.exec_source))
    if a.auto_exec is b.auto_exec:
        opened = _both(a.opened, b.opened)
    else:
        opened = a.opened if b.auto_exec is AutoExec.ALLOW else b.opened
    connect = (intersection(one, other) for one in a.connect for other in b.connect)
    theirs = set(b.environment)
    return normal(
        Authority(
            paths=tuple(rules),
            deny=a.deny + b.deny,
            protect=a.protect + b.protect,
            auto_exec=AutoExec.PROTECT if AutoExec.PROTECT in (a.auto_exec, b.auto_exec) else AutoExec.ALLOW,
            opened=opened,
            connect=tuple(one for one in connect if one is not None),
            listen=tuple(port for port in a.listen if port in b.listen),
            publish=_both(a.publish, b.publish),
            loopback=a.loopback and b.loopback,
            unix=_both(a.unix, b.unix),
            syscalls=_both(a.syscalls, b.syscalls),
            devices=_both(a.devices, b.devices),
            environment=tuple(atom for atom in a.environment if atom in theirs),
            limits=a.limits + b.limits,
        )
    )


def join(a: Authority, b: Authority) -> Authority:
    """``a`` with the lines of ``b`` added, as when a session is built from a profile and the user's options.

    Not the least upper bound: rules, endpoints and names unite, and so do deny and protect, which keep winning over
    every rule. For one limit or environment name, ``b``'s value holds. Auto-executed files open if ``a`` or ``b`` opens
    them. Loopback stays closed if either closes it: open is the default, which cannot be told from silence. The result
    is in normal form.

    Raises:
        ValueError: a path is not absolute and lexically normal.
    """
    return normal(union(a, b))


def beyond(a: Authority, floor: Authority, session: Authority) -> Authority:
    """A call's authority without the lines that are its session's floor's, or taken away by its session: those are the same for
    every call, and the most. ``whole`` undoes it."""
    rules, variables = frozenset(floor.paths), frozenset(floor.environment)
    deny, protect = frozenset(session.deny), frozenset(session.protect)
    return replace(
        a,
        paths=tuple(rule for rule in a.paths if rule not in rules),
        environment=tuple(atom for atom in a.environment if atom not in variables),
        deny=tuple(line for line in a.deny if line not in deny),
        protect=tuple(line for line in a.protect if line not in protect),
    )


def whole(rest: Authority, floor: Authority, session: Authority) -> Authority:
    """The authority that ``beyond`` left ``rest`` of, in normal form."""
    return normal(
        replace(
            rest,
            paths=floor.paths + rest.paths,
            environment=floor.environment + rest.environment,
            deny=session.deny + rest.deny,
            protect=session.protect + rest.protect,
        )
    )


def union(a: Authority, b: Authority) -> Authority:
    """``join``, not in normal form yet."""
    return Authority(
        paths=a.paths + b.paths,
        deny=a.deny + b.deny,
        protect=a.protect + b.protect,
        auto_exec=AutoExec.ALLOW if AutoExec.ALLOW in (a.auto_exec, b.auto_exec) else AutoExec.PROTECT,
        opened=a.opened + b.opened,
        connect=a.connect + b.connect,
        listen=a.listen + b.listen,
        publish=a.publish + b.publish,
        loopback=a.loopback and b.loopback,
        unix=a.unix + b.unix,
        syscalls=a.syscalls + b.syscalls,
        devices=a.devices + b.devices,
        environment=a.environment + b.environment,
        limits=tuple((_limits(a.limits) | _limits(b.limits)).items()),
    )


def allows_path(a: Authority, path: str, right: Right) -> tuple[bool, PathRule | PathPattern | None]:
    """Whether ``a`` allows a right on a path, with the line that decides.

    That is the deny or protect that takes it (also where nothing grants it: adding a rule would not help), else the
    deepest rule that grants it, else None: nothing does. The auto-exec catalogue is not looked at.

    Raises:
        ValueError: ``path``, or a path of ``a``, is not absolute and lexically normal.
    """
    asked = parts(path)
    for one, line in _taken(a, right):
        if covers(one, asked):
            return False, line
    best: PathRule | None = None
    depth = -1
    for rule in a.paths:
        above = parts(rule.path)
        if len(above) > depth and asked[: len(above)] == above and right in _implied(rule.rights):
            best, depth = rule, len(above)
    return best is not None, best


def allows_connect(
    a: Authority, name: str | None, address: str | None, port: int, protocol: str = "tcp"
) -> tuple[bool, Endpoint | None]:
    """Whether ``a`` allows a connection, with the endpoint that does. Own loopback is ``a.loopback``, not decided here.

    Args:
        a: the authority.
        name: the canonical host name that was asked for, or None where the program gave an address.
        address: the IPv4 or IPv6 address, or None where the name is not resolved yet: then no CIDR holds.
        port: 1 to 65535.
        protocol: ``tcp`` or ``udp``.

    Raises:
        ValueError: ``address`` is not an address.
    """
    for endpoint in a.connect:
        if matches(endpoint, name, address, port, protocol):
            return True, endpoint
    return False, None
