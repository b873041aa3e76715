"""Keys, chains and worlds for the tests of grants. The keys are the tests' own: made from one byte, and good for nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from remit.sandbox.authority.grant import Grant
from remit.sandbox.authority.lattice import normal
from remit.sandbox.authority.model import Authority, PathPattern, PathRule, Right
from remit.sandbox.authority.proof import Chain
from remit.sandbox.session.keys import Own, Trusted

READ = frozenset({Right.READ})
ALICE = Own(b"\1" * 32)
BOB = Own(b"\2" * 32)
MALLORY = Own(b"\3" * 32)
KNOWN = Trusted({ALICE.public: "alice.pub"})
NOW = 1_000_000.0


def reads(*paths: str) -> Authority:
    """An authority to read these."""
    return Authority(paths=tuple(PathRule(path, READ) for path in paths))


WIDE = normal(
    replace(
        reads("/w", "/usr"),
        deny=(PathPattern("/w", (".env",)),),
        protect=(PathPattern("/w", (".github",), True),),
        listen=(80, 3000),
        limits=(("pids", 10),),
    )
)
NARROW = replace(reads("/w/src"), listen=(80,), limits=(("pids", 5),))


def root(authority: Authority = WIDE, **more: Any) -> Grant:
    """A grant from alice to agent."""
    fields: dict[str, Any] = {"authority": authority, "grantor": "alice", "principal": "agent", **more}
    return Grant(**fields)


def chain(*grants: Grant, keys: tuple[Own, ...] = ()) -> Chain:
    """The grants, each signed over those above it: by ``keys`` in turn, or all by alice."""
    made: Chain | None = None
    for number, grant in enumerate(grants):
        made = (keys[number] if keys else ALICE).add(grant, made)
    assert made is not None
    return made


def three(**more: Any) -> Chain:
    """A root with one use after the other narrowed out of it."""
    fields: dict[str, Any] = {"not_before": NOW - 10, "expires": NOW + 100, "uses": 5, **more}
    first = root(**fields)
    second = first.narrow(NARROW, principal="tool", uses=3)
    return chain(first, second, second.narrow(reads_below(second), principal="assistant", expires=NOW + 50, uses=1))


def reads_below(grant: Grant) -> Authority:
    """Less than ``grant`` has."""
    return replace(grant.authority, paths=(PathRule("/w/src/a", READ),), listen=())
