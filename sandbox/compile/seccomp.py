"""The seccomp filter: ``compile.syscalls.TABLE`` as a BPF program.

libseccomp builds it, as a binary tree over the system call's number. A short prologue stands before its program, for
what libseccomp cannot say: two comparisons of one argument, comparisons of 32 bits that are not masks, overlapping
two-argument rules (libseccomp takes the first branch that matches and does not come back), and calls younger than the
library. Jumps in classic BPF are relative, so that one program can stand before the other.

The filter never kills: a thread of the launcher runs under it too, and a program that probes a call deserves an errno.
A foreign architecture and x32 get ENOSYS.
"""

from __future__ import annotations

import importlib
import os
import struct
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Protocol, cast

from remit.sandbox.compile.syscalls import ENOSYS, NUMBERS, Action, Compare, Condition, Row, rows
from remit.sandbox.kernel.numbers import AUDIT_ARCH

RET_ALLOW, RET_ERRNO, RET_NOTIFY = 0x7FFF0000, 0x00050000, 0x7FC00000
_MASKED_EQ = 7
_NR, _ARCH, _ARGUMENTS = 0, 4, 16
_LD, _JEQ, _JGT, _JA, _AND, _RET = 0x20, 0x15, 0x25, 0x05, 0x54, 0x06
_OPTIMIZE_BINARY_TREE = 2

_NumberedRules = list[tuple[int, tuple[Condition, ...]]]


class _Filter(Protocol):
    def add_arch(self, arch: int) -> None: ...
    def remove_arch(self, arch: int) -> None: ...
    def set_attr(self, attr: int, value: int) -> None: ...
    def add_rule(self, action: int, syscall: str, *args: object) -> None: ...
    def export_bpf(self, file: object) -> None: ...


class _Attributes(Protocol):
    ACT_BADARCH: int
    CTL_OPTIMIZE: int


class _Architectures(Protocol):
    NATIVE: int
    X86_64: int
    AARCH64: int


class Library(Protocol):
    """What pyseccomp and libseccomp's own Python module have in common."""

    Attr: _Attributes
    Arch: _Architectures

    def SyscallFilter(self, defaction: int) -> _Filter: ...
    def Arg(self, arg: int, op: int, datum_a: int, datum_b: int) -> object: ...
    def resolve_syscall(self, arch: int, syscall: str) -> int: ...
    def system_arch(self) -> int: ...


def library() -> Library:
    """libseccomp's Python API, from the distribution (``python3-seccomp``) or from PyPI (``pyseccomp``)."""
    # Imported late: pyseccomp looks for the library by starting processes, and a cached plan needs none of it.
    try:
        module = importlib.import_module("seccomp")
    except ImportError:
        module = importlib.import_module("pyseccomp")
    return cast(Library, module)


def architecture(api: Library, machine: str) -> int:
    """The library's own value for a machine: one of the two spells ``AUDIT_ARCH_*`` as a negative int."""
    return {"x86_64": api.Arch.X86_64, "aarch64": api.Arch.AARCH64}[machine]


def build_filter(
    groups: Collection[str], *, notify: bool, brokered_reads: bool, machine: str, metadata: bool = False
) -> bytes:
    """The program, as an array of ``struct sock_filter`` in native order.

    ``groups`` of ``model.SYSCALL_GROUPS`` are allowed again. ``notify``: for a session with a mediator; without it, no
    path through the program ends in a notification. ``brokered_reads``: every open is notified; ``metadata``: so is
    changing times and attributes. ``machine``: ``x86_64`` or ``aarch64``, which need not be this one. ValueError for
    another machine.
    """
    if machine not in AUDIT_ARCH:
        raise ValueError(f"no system call table for {machine}")
    return _program(tuple(sorted(groups)), notify, brokered_reads, machine, metadata)


@lru_cache(maxsize=32)
def _program(groups: tuple[str, ...], notify: bool, brokered_reads: bool, machine: str, metadata: bool) -> bytes:
    # A session's calls have few different ones, and each takes libseccomp milliseconds.
    calls = library()
    arch = architecture(calls, machine)
    by_call: dict[str, list[Row]] = {}
    for row in rows(groups, brokered_reads=brokered_reads, metadata=metadata):
        by_call.setdefault(row.call, []).append(row)

    prologue: list[tuple[int, _NumberedRules]] = []
    body: list[tuple[str, _NumberedRules]] = []
    for call, its_rows in by_call.items():
        rules = _rules(its_rows, notify)
        known = calls.resolve_syscall(arch, call)
        number = known if known >= 0 else NUMBERS.get(call, -1)
        if number < 0 or not rules:
            continue
        if known >= 0 and _masks_of_one_argument(rules):
            body.append((call, rules))
        else:
            prologue.append((number, rules))
    return _assemble(AUDIT_ARCH[machine], prologue) + _compile(calls, machine, body)


def _rules(its_rows: Iterable[Row], notify: bool) -> _NumberedRules:
    """(action, conditions) in order; one unconditional rule swallows the others of the same action."""
    rules: _NumberedRules = []
    for row in its_rows:
        refuses = row.action in (Action.REFUSE, Action.COUNT, Action.JUDGE)
        if notify and row.action is not Action.REFUSE:
            rules.append((RET_NOTIFY, row.conditions))
        elif refuses:
            rules.append((RET_ERRNO | row.errno, row.conditions))
    unconditional = [rule for rule in rules if not rule[1]]
    return unconditional[:1] or rules


def _masks_of_one_argument(rules: _NumberedRules) -> bool:
    return all(
        len(conditions) <= 1 and all(c.compare is Compare.MASKED and not c.high for c in conditions)
        for _, conditions in rules
    )


def _compile(api: Library, machine: str, body: list[tuple[str, _NumberedRules]]) -> bytes:
    program = api.SyscallFilter(RET_ALLOW)
    program.set_attr(api.Attr.ACT_BADARCH, RET_ERRNO | ENOSYS)
    program.set_attr(api.Attr.CTL_OPTIMIZE, _OPTIMIZE_BINARY_TREE)
    native, wanted = api.system_arch() & 0xFFFFFFFF, AUDIT_ARCH[machine]
    if wanted != native:
        program.add_arch(architecture(api, machine))
        program.remove_arch(api.Arch.NATIVE)
    for call, rules in body:
        for action, conditions in rules:
            arguments = (api.Arg(c.argument, _MASKED_EQ, c.mask, c.value) for c in conditions)
            program.add_rule(action, call, *arguments)
    descriptor = os.memfd_create("filter", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "r+b") as file:
        program.export_bpf(file)
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _instruction(code: int, k: int, when_true: int = 0, when_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, when_true, when_false, k)


def _assemble(arch: int, calls: list[tuple[int, _NumberedRules]]) -> bytes:
    """``calls`` as BPF that ends by falling through to whatever follows."""
    blocks = [(number, b"".join(_rule(action, conditions) for action, conditions in rules)) for number, rules in calls]
    sizes = [2 + len(code) // 8 + 1 for _, code in blocks]
    total = 1 + sum(sizes)
    # JA, unlike a conditional jump, reaches further than 255 instructions.
    out = [_instruction(_LD, _ARCH), _instruction(_JEQ, arch, 1, 0), _instruction(_JA, total)]
    out.append(_instruction(_LD, _NR))
    left = sum(sizes)
    for (number, code), size in zip(blocks, sizes, strict=True):
        left -= size
        out.append(_instruction(_JEQ, number, 1, 0))
        out.append(_instruction(_JA, size - 2))
        out.append(code)
        out.append(_instruction(_JA, left))
    return b"".join(out)


def _rule(action: int, conditions: tuple[Condition, ...]) -> bytes:
    """Return ``action`` when every condition holds, else fall through.

    The low half of an argument comes first in memory: both machines are little-endian.
    """
    tests: list[tuple[bytes, Condition]] = []
    for condition in conditions:
        head = _instruction(_LD, _ARGUMENTS + 8 * condition.argument + 4 * condition.high)
        if condition.compare is Compare.MASKED and condition.mask != 0xFFFFFFFF:
            head += _instruction(_AND, condition.mask)
        tests.append((head, condition))
    length = sum(len(head) // 8 + 1 for head, _ in tests) + 1
    out: list[bytes] = []
    position = 0
    for head, condition in tests:
        position += len(head) // 8 + 1
        miss = length - position
        out.append(head)
        if condition.compare is Compare.MASKED:
            out.append(_instruction(_JEQ, condition.value, 0, miss))
        elif condition.compare is Compare.NOT:
            out.append(_instruction(_JEQ, condition.value, miss, 0))
        else:
            out.append(_instruction(_JGT, condition.value, 0, miss))
    out.append(_instruction(_RET, action))
    return b"".join(out)
