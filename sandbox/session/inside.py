"""What a grant for a call comes to inside its session, when it is asked for: objects, authority, and what that depends on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from remit.sandbox.authority.errors import GrantError
from remit.sandbox.authority.lattice import normal
from remit.sandbox.authority.model import Authority, PathPattern, PathRule
from remit.sandbox.compile.call import CallPlan, Ceiling, authority_of, outside, replaced
from remit.sandbox.resolve.binding import Kind
from remit.sandbox.resolve.names import look, resolve
from remit.sandbox.session.asked import Grant as Asked
from remit.sandbox.session.chained import check_objects

if TYPE_CHECKING:
    from remit.sandbox.resolve.binding import Named

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


def inside(asked: Asked, ceiling: Ceiling, uid: int) -> tuple[Authority, dict[str, Named], Seen]:
    """The whole authority of a grant (floor and what is taken away included), which is inside this session's."""
    wanted = asked.authority(ceiling.workspace)
    names = _resolve(wanted, ceiling, uid)
    beyond = outside(wanted, ceiling, names) or replaced(wanted, ceiling, names)
    if beyond:
        raise GrantError(
            "beyond the session's authority: " + "; ".join(map(str, beyond)),
            where="grant",
            hint="ask for less, or open a session that was granted more",
        )
    for chain in asked.proofs:
        check_objects(chain, names, uid=uid)
    return taken_away(authority_of(wanted, ceiling), names, ceiling, uid)


def taken_away(
    authority: Authority, names: Mapping[str, Named], ceiling: Ceiling, uid: int
) -> tuple[Authority, dict[str, Named], Seen]:
    """The authority with what its denied and protected names are *now*: looking anew can only take more away. A name that
    led elsewhere then keeps what it led to out of reach, too.

    Not the session's own: those no call can make or move (``Standing.taken``)."""
    found, seen = dict(names), dict[str, tuple[int, int] | None]()
    session = ceiling.standing().taken
    added: dict[str, list[PathPattern]] = {"deny": [], "protect": []}
    for kind, more in added.items():
        for pattern in getattr(authority, kind):
            if pattern.any_depth or pattern in session:
                continue
            path = str(pattern)
            then, now = names.get(path), look(path, uid=uid)
            found[path], found[pattern.anchor] = now, look(pattern.anchor, uid=uid)
            seen[path] = now.identity
            if then is not None and then.canonical != now.canonical:
                anchor, _, name = then.canonical.rpartition("/")
                more.append(PathPattern(anchor or "/", (name,), False, pattern.source))
                found[then.canonical] = replace(then, path=then.canonical, links=())
    if added["deny"] or added["protect"]:
        deny, protect = (*authority.deny, *added["deny"]), (*authority.protect, *added["protect"])
        authority = normal(replace(authority, deny=deny, protect=protect))
    return authority, found, tuple(seen.items())


def _resolve(wanted: Authority, ceiling: Ceiling, uid: int) -> dict[str, Named]:
    """This session's names as they were resolved when it began (a narrower one's: when it was made), and what is new in
    ``wanted`` as it is now. A name that led elsewhere since would let what is outside pass for what is inside; and
    what the ceiling takes away is to be found by its names, which ``wanted`` does not mention.

    Of each granted name, how its object is come to now (``Named.way``), which ``replaced`` decides on."""
    known = ceiling.names
    fresh = tuple(rule for rule in wanted.paths if rule.path not in known)
    names = {**resolve(replace(wanted, paths=fresh), uid=uid), **known}
    for rule in wanted.paths:
        if rule.path in known:
            names[rule.path] = _again(rule, known[rule.path], ceiling, uid)
    return names


def _again(rule: PathRule, named: Named, ceiling: Ceiling, uid: int) -> Named:
    """A name that this session knows: the object that it led to then, and how that is come to now."""
    if named.kind is not Kind.ABSENT:
        now = look(named.canonical, uid=uid)
        same = (now.canonical, now.identity) == (named.canonical, named.identity)
        return replace(named, way=now.way if same else ())
    # Nothing was granted under this name. What is there by now is granted where it lies in a tree that was.
    now = look(rule.path, uid=uid)
    found = now.kind is not Kind.ABSENT and not any(ceiling.lost(now, right) for right in rule.rights)
    return now if found else named
