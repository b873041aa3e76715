"""What the fast path is told is free, no rule refuses."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

from remit.sandbox.compile.catalogue import WIRE
from remit.sandbox.kernel.call import NR
from remit.sandbox.kernel.fastpath import FastPath
from remit.sandbox.mediate.calls import Calls
from remit.sandbox.mediate.observe import Observer
from remit.sandbox.mediate.rules import REMOVE, WRITE, Rules
from remit.sandbox.mediate.shortcut import Shortcut

ROOTS = (b"/w", b"/v/x")
NAMES = [
    "a",
    "b",
    "c",
    ".git",
    "hooks",
    "objects",
    ".vscode",
    "settings.json",
    "node_modules",
    ".envrc",
    "bin",
    "config",
]


def granted(_place: bytes) -> bool:
    return True


class World:
    """A shortcut without calls."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.calls = SimpleNamespace(
            rules=rules,
            roots=[(root, root + b"/", 100 + i) for i, root in enumerate(ROOTS)],
            touched=[],
            view=SimpleNamespace(pid=1),
            named=None,
        )
        self.observer = SimpleNamespace(level="writes", known=None, forget=lambda: None, grants_around=granted)
        self.shortcut = Shortcut(cast("Calls", self.calls), cast("Observer", self.observer))
        self.source = cast("Any", SimpleNamespace(listener=SimpleNamespace(placement=None), masks=False))
        self.ends = rules.endings()

    def learn(self, path: bytes) -> None:
        self.calls.touched[:] = [(path, WRITE)]
        for _ in range(4):  # as often as it takes before there is a fast path
            self.shortcut.learn(self.source, NR["openat"])

    def free(self, path: bytes) -> bool:
        """As ``fastpath.c`` decides: an ancestor is listed, and all names after it are ordinary."""
        fast = cast("FastPath", self.observer.known)
        names = path.split(b"/")[1:]
        found = False
        for i, name in enumerate(names):
            found = found and name not in self.ends
            if i + 1 < len(names) and fast.allowed(b"/" + b"/".join(names[: i + 1])):
                found = True
        return found


def path(random: random.Random) -> bytes:
    root = random.choice([*ROOTS, b"/elsewhere"])
    return root + b"".join([b"/" + random.choice(NAMES).encode() for _ in range(random.randint(1, 5))])


def pattern(random: random.Random) -> tuple[str, tuple[str, ...], bool, str]:
    anchor = random.choice(["/w", "/", "/w/a", "/v/x"])
    return anchor, tuple(random.choices(NAMES, k=random.randint(1, 3))), random.random() < 0.5, "rule"


def test_nothing_that_a_rule_refuses_is_free() -> None:
    chance = random.Random(4)
    free = refused = allowed = 0
    for _ in range(400):
        rules = Rules(
            ROOTS,
            tuple([pattern(chance) for _ in range(chance.randint(0, 2))]),
            tuple([pattern(chance) for _ in range(chance.randint(0, 2))]),
            WIRE if chance.random() < 0.5 else (),
            tuple([path(chance).decode() for _ in range(chance.randint(0, 2))]),
        )
        world = World(rules)
        for _ in range(chance.randint(1, 6)):
            world.learn(path(chance))
        for _ in range(60):
            probe = path(chance)
            verdicts = [rules.decide(probe, right) for right in (WRITE, REMOVE)]
            if world.free(probe):
                free += 1
                assert verdicts == ["", ""], (probe, verdicts)
                assert probe.rpartition(b"/")[2] not in rules.special
                assert probe.startswith((b"/w/", b"/v/x/"))
            refused += any(verdicts)
            allowed += not any(verdicts)
    # Neither everything nor nothing: the test has seen both, and the fast path is of use.
    assert free > 2000
    assert refused > 2000
    assert allowed > 2000


def test_what_lies_below_a_repositorys_directory_is_free_once_it_is_met() -> None:
    world = World(Rules(ROOTS, (), (), WIRE, ()))
    world.learn(b"/w/a/file")
    assert world.free(b"/w/a/other")
    assert world.free(b"/w/b/c/d")
    assert not world.free(b"/w/.git/objects/ab/cd")
    world.learn(b"/w/.git/objects/ab/cd")
    assert world.free(b"/w/.git/objects/ef/01")
    assert not world.free(b"/w/.git/hooks/pre-commit")
    assert not world.free(b"/w/.git/config")
    assert not world.free(b"/w/c/.git/objects/ab/cd")
    world.learn(b"/w/.git/hooks/pre-commit")
    assert not world.free(b"/w/.git/hooks/pre-commit")


def test_there_is_none_for_a_few_calls() -> None:
    world = World(Rules(ROOTS, (), (), (), ()))
    world.calls.touched[:] = [(b"/w/a", WRITE)]
    for number in range(3):
        world.shortcut.learn(world.source, NR["openat"])
        assert not world.shortcut.open, number
    world.shortcut.learn(world.source, NR["chmod"] if "chmod" in NR else NR["fchmodat"])  # not one of its calls
    assert not world.shortcut.open
    world.shortcut.learn(world.source, NR["openat"])
    assert world.shortcut.open


def test_programs_that_are_executed_count_like_names_that_are_made() -> None:
    world = World(Rules((b"/w",), (), (), (), ()))
    for _ in range(3):
        world.shortcut.learn(world.source, NR["execve"])
    assert not world.shortcut.open
    world.shortcut.learn(world.source, NR["execve"])
    assert world.shortcut.open
