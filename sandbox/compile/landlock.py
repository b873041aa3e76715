"""Landlock: what each ABI can deny, and an authority's rights as its access bits.

Two nested domains. ``session`` is the authority and also confines the mediator; ``command`` is nested in it and lacks,
below every *mediated* root, whatever creates, writes, replaces or removes a name. The command cannot do these things by
itself, so a call that the filter missed, a dead mediator, or a mediator that lets a call continue, cannot do them
either.

Landlock rules only add, and a rule on a directory counts for everything below it, mounts included. A mediated root
below a writable place (a workspace below the private /tmp) therefore makes the whole place mediated.

Sources: ``include/uapi/linux/landlock.h``, Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from remit.sandbox.authority.model import Right
from remit.sandbox.compile.paths import below, order, parents, strictly_below

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << i for i in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << i for i in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV, RESOLVE_UNIX = (1 << i for i in range(13, 17))
BIND_TCP, CONNECT_TCP = 1, 2
SCOPE_ABSTRACT_UNIX, SCOPE_SIGNAL = 1, 2

FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV | RESOLVE_UNIX
"""What a rule on something that is not a directory may hold; any other bit there is EINVAL (landlock_add_rule(2))."""

BASE = (1 << 13) - 1
MINIMUM_ABI = 2


@dataclass(frozen=True, slots=True)
class Abi:
    """What one version of the interface handles."""

    version: int
    kernel: str
    fs: int
    net: int
    scoped: int
    adds: str


ABIS: tuple[Abi, ...] = (
    Abi(1, "5.13", BASE, 0, 0, "13 file system rights"),
    Abi(2, "5.19", BASE | REFER, 0, 0, "linking and renaming between directories"),
    Abi(3, "6.2", BASE | REFER | TRUNCATE, 0, 0, "truncation"),
    Abi(4, "6.7", BASE | REFER | TRUNCATE, BIND_TCP | CONNECT_TCP, 0, "TCP bind and connect"),
    Abi(5, "6.10", BASE | REFER | TRUNCATE | IOCTL_DEV, BIND_TCP | CONNECT_TCP, 0, "ioctl on devices"),
    Abi(6, "6.12", BASE | REFER | TRUNCATE | IOCTL_DEV, 3, 3, "abstract Unix sockets and signals to the outside"),
    Abi(7, "6.15", BASE | REFER | TRUNCATE | IOCTL_DEV, 3, 3, "flags for the audit log"),
    Abi(8, "7.0", BASE | REFER | TRUNCATE | IOCTL_DEV, 3, 3, "restricting all threads at once"),
    Abi(9, "7.1", BASE | REFER | TRUNCATE | IOCTL_DEV | RESOLVE_UNIX, 3, 3, "named Unix sockets of the outside"),
)
"""One row a version, each with all that came before it. A newer kernel is used as the last row: its own additions are
not handled, hence allowed, until a row says what they are."""


def abi(version: int) -> Abi:
    """The row for a kernel's ABI version (>= 1)."""
    return ABIS[min(version, len(ABIS)) - 1]


def lacking(version: int) -> tuple[Abi, ...]:
    """The rows that a kernel of this version does not have."""
    return ABIS[max(version, 0) :]


READ = READ_FILE | READ_DIR
CHANGE = (
    WRITE_FILE
    | TRUNCATE
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_DIR
    | MAKE_REG
    | MAKE_SOCK
    | MAKE_FIFO
    | MAKE_SYM
    | MAKE_CHAR
    | MAKE_BLOCK
    | REFER
)
"""What the ``command`` domain lacks below a mediated root. MAKE_SOCK too: a socket holds no code, but git takes one, which may
be searched like a directory, for the ``refs`` that make a repository of what lies beside it."""
WRITE = CHANGE & ~(MAKE_CHAR | MAKE_BLOCK)
"""A write right. Device nodes are made by nobody."""
DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV
DEVICES = DEVICE | READ_DIR
PROC = READ | WRITE_FILE
SCRATCH = READ | WRITE


def mask(rights: Iterable[Right]) -> int:
    """The bits for a set of rights over a directory."""
    held = frozenset(rights)
    bits = READ if held else 0
    if Right.EXEC in held:
        bits |= EXECUTE
    if Right.WRITE in held:
        bits |= WRITE
    return bits


@dataclass(frozen=True, slots=True)
class Rule:
    """Bits over a path inside. ``directory`` false: only what a file may have is kept."""

    path: str
    bits: int
    directory: bool = True

    def masked(self, handled: int) -> tuple[str, int]:
        return self.path, self.bits & handled & (~0 if self.directory else FILE_RIGHTS)


def mediated(roots: Iterable[str], scratch: Iterable[str]) -> tuple[str, ...]:
    """``roots`` and every writable private place that one of them lies in."""
    wanted = tuple(roots)
    holding = (place for place in scratch if any(below(root, place) for root in wanted))
    return tuple(dict.fromkeys((*wanted, *holding)))


def gathered(rules: Iterable[Rule], directories: Iterable[str]) -> tuple[Rule, ...]:
    """A rule for each of ``directories`` in which everything that is there may be read, and nothing else is.

    They are directories of the new root's own tmpfs (``/etc``, of which dozens of small files are granted): what they
    hold was put there because it is granted, so the one rule grants what the many would, at a tenth of the time. A plan
    without a root of its own has no such directory and keeps every rule.
    """
    own = frozenset(directories)
    every = tuple(rule for rule in rules if rule.path not in own)
    found: list[Rule] = []
    for directory in sorted(own):
        inside = [rule for rule in every if strictly_below(rule.path, directory)]
        if inside and all(rule.bits & READ_FILE for rule in inside):
            found.append(Rule(directory, READ_FILE | READ_DIR))
    return tuple(found)


def command_rules(rules: Iterable[Rule], roots: Iterable[str], brokered_reads: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of the nested domain. A rule above or below a root loses what would count inside that root."""
    changed, read = tuple(roots), tuple(brokered_reads)
    out: list[Rule] = []
    for rule in rules:
        bits = rule.bits
        if bits & CHANGE and any(below(rule.path, root) or below(root, rule.path) for root in changed):
            bits &= ~CHANGE
        if any(below(rule.path, root) or below(root, rule.path) for root in read):
            bits &= ~(READ_FILE | EXECUTE)
        out.append(Rule(rule.path, bits, rule.directory))
    return tuple(out)


def compiled(rules: Iterable[Rule], handled: int) -> tuple[tuple[str, int], ...]:
    """(path, bits) as the plan has them: one entry a path, sorted, none empty (ENOMSG), none with a foreign bit, and
    none that adds nothing to a rule above it (each one costs two system calls at start)."""
    merged: dict[str, int] = {}
    for rule in rules:
        path, bits = rule.masked(handled)
        merged[path] = merged.get(path, 0) | bits
    kept: dict[str, int] = {}
    for path in sorted(merged, key=order):
        above = kept.get("/", 0)
        for other in parents(path):
            above |= kept.get(other, 0)
        if merged[path] & ~above:
            kept[path] = merged[path]
    return tuple(sorted(kept.items()))
