"""The seccomp filter, run in a simulator: what it answers for a call, and that it says what the table says."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.sandbox.authority.model import SYSCALL_GROUPS
from remit.sandbox.compile import syscalls
from remit.sandbox.compile.seccomp import architecture, build_filter, library
from remit.sandbox.compile.syscalls import NUMBERS, TABLE, Action, Compare, Row
from remit.sandbox.kernel.numbers import AUDIT_ARCH
from tests.plan import bpfsim

MACHINES = ("x86_64", "aarch64")
HIGH = 1 << 32


@cache
def program(
    machine: str,
    notify: bool = False,
    groups: tuple[str, ...] = (),
    brokered_reads: bool = False,
    metadata: bool = False,
) -> bytes:
    return build_filter(groups, notify=notify, brokered_reads=brokered_reads, metadata=metadata, machine=machine)


def number(machine: str, call: str) -> int:
    known = library().resolve_syscall(architecture(library(), machine), call)
    return known if known >= 0 else NUMBERS.get(call, -1)


def answer(machine: str, call: str, *arguments: int, notify: bool = False, groups: tuple[str, ...] = ()) -> str:
    nr = number(machine, call)
    assert nr >= 0, f"{call} does not exist on {machine}"
    return bpfsim.name(bpfsim.run(program(machine, notify, groups), AUDIT_ARCH[machine], nr, arguments))


# (call, arguments, answer without a mediator, answer with one); for every machine that has the call
CASES: list[tuple[str, tuple[int, ...], str, str]] = [
    ("read", (0, 0, 0), "allow", "allow"),
    ("ptrace", (0,), "allow", "allow"),
    ("process_vm_readv", (1,), "allow", "allow"),
    ("seccomp", (1, 0, 0), "allow", "allow"),
    ("clone3", (0, 88), "errno 38", "errno 38"),
    ("io_uring_setup", (1, 0), "errno 38", "errno 38"),
    ("io_uring_enter", (), "errno 38", "errno 38"),
    ("io_uring_register", (), "errno 38", "errno 38"),
    ("clone", (0x3D0F00,), "allow", "allow"),  # a thread
    ("clone", (0x1200011,), "allow", "allow"),  # fork
    ("clone", (0x4111,), "allow", "allow"),  # vfork
    ("clone", (0x10000011,), "errno 1", "notify"),
    ("clone", (0x20011,), "errno 1", "notify"),
    ("clone", (0x40000011 | HIGH,), "errno 1", "notify"),
    ("clone", (0x8011,), "errno 1", "notify"),  # a child of the caller's parent
    ("clone", (0x8011 | HIGH,), "errno 1", "notify"),
    ("unshare", (0x10000000,), "errno 1", "notify"),
    ("setns", (3, 0), "errno 1", "notify"),
    ("mount", (), "errno 1", "notify"),
    ("umount2", (), "errno 1", "notify"),
    ("pivot_root", (), "errno 1", "notify"),
    ("chroot", (), "errno 1", "notify"),
    ("open_tree", (), "errno 1", "notify"),
    ("open_tree_attr", (), "errno 1", "notify"),
    ("move_mount", (), "errno 1", "notify"),
    ("fsopen", (), "errno 1", "notify"),
    ("fsmount", (), "errno 1", "notify"),
    ("mount_setattr", (), "errno 1", "notify"),
    ("bpf", (), "errno 1", "notify"),
    ("keyctl", (), "errno 1", "notify"),
    ("perf_event_open", (), "errno 1", "notify"),
    ("userfaultfd", (), "errno 1", "notify"),
    ("open_by_handle_at", (), "errno 1", "notify"),
    ("name_to_handle_at", (), "allow", "allow"),
    ("landlock_create_ruleset", (0, 0, 1), "errno 95", "errno 95"),
    ("landlock_restrict_self", (), "errno 95", "errno 95"),
    ("ioctl", (0, 0x5401), "allow", "allow"),
    ("ioctl", (0, 0x5412), "errno 1", "notify"),
    ("ioctl", (0, 0x5412 | HIGH), "errno 1", "notify"),
    ("ioctl", (0, 0x541C | 0xDEAD << 32), "errno 1", "notify"),
    ("ioctl", (3, 0x40049409), "allow", "allow"),  # FICLONE
    ("ioctl", (3, 0x40049409 | HIGH), "allow", "allow"),
    ("ioctl", (3, 0x4020940D), "allow", "allow"),  # FICLONERANGE
    ("ioctl", (3, 0xC0189436), "allow", "allow"),  # FIDEDUPERANGE
    ("ioctl", (3, 0x81009431), "allow", "allow"),  # the file system's label
    ("ioctl", (3, 0x5000940E), "errno 1", "notify"),  # every other one of btrfs
    ("ioctl", (3, 0x50009417 | HIGH), "errno 1", "notify"),
    ("ioctl", (3, 0x9409), "errno 1", "notify"),
    ("ioctl", (3, 0x40869409), "errno 1", "notify"),
    ("ioctl", (3, 0x40086601), "allow", "allow"),
    ("ioctl", (3, 0x80086601), "allow", "allow"),  # chattr's query
    ("ioctl", (3, 0x40086602), "allow", "allow"),  # where a call may write less, see below
    ("ioctl", (3, 0x40806685), "errno 1", "notify"),
    ("ioctl", (3, 0x800C6613), "errno 1", "notify"),
    ("ioctl", (3, 0xC0506617 | HIGH), "errno 1", "notify"),
    ("ioctl", (3, 0x40087602), "errno 1", "notify"),
    ("ioctl", (3, 0x40047602), "errno 1", "notify"),
    ("ioctl", (3, 0x4004F50D), "errno 1", "notify"),  # f2fs
    ("ioctl", (3, 0xF501), "allow", "allow"),
    ("ioctl", (3, 0x8004F50C | HIGH), "allow", "allow"),
    ("ioctl", (3, 0x4020BC11), "errno 1", "notify"),  # bcachefs
    ("ioctl", (3, 0xC020660B), "allow", "allow"),  # FIEMAP
    ("ioctl", (3, 0x541B), "allow", "allow"),  # FIONREAD
    ("ioctl", (3, 0x5421), "allow", "allow"),  # FIONBIO
    ("fcntl", (3, 1040, 0x1000), "errno 22", "errno 22"),  # F_SETDELEG
    ("fcntl", (3, 1040 | HIGH, 0x1000), "errno 22", "errno 22"),
    ("fcntl", (3, 1039, 0x1000), "allow", "allow"),  # F_GETDELEG
    ("fcntl", (3, 1024, 0), "allow", "allow"),  # F_SETLEASE
    ("prlimit64", (0, 7, 0x1000, 0), "allow", "allow"),  # the caller's own
    ("prlimit64", (HIGH, 7, 0x1000, 0), "allow", "allow"),  # the kernel sees 0
    ("prlimit64", (5, 7, 0, 0x1000), "allow", "allow"),  # reads
    ("prlimit64", (5, 7, 0x1000, 0), "errno 1", "notify"),
    ("prlimit64", (5 | HIGH, 7, 0x1000, 0), "errno 1", "notify"),
    ("prlimit64", (5, 7, HIGH, 0), "errno 1", "notify"),  # a pointer with nothing in its low half
    ("prlimit64", (1, 7, 0, 0x1000), "errno 1", "notify"),
    ("personality", (0,), "allow", "allow"),
    ("personality", (0xFFFFFFFF,), "allow", "allow"),
    ("personality", (0xFFFFFFFFFFFFFFFF,), "allow", "allow"),
    ("personality", (0x40000,), "allow", "allow"),
    ("personality", (0x400000,), "errno 1", "errno 1"),
    ("personality", (0x80400000,), "errno 1", "errno 1"),
    ("personality", (0xFFFFFFFE,), "errno 1", "errno 1"),
    ("personality", (0x400000 | HIGH,), "errno 1", "errno 1"),
    ("socket", (1, 1, 0), "allow", "allow"),
    ("socket", (2, 0x80001, 6), "allow", "allow"),
    ("socket", (10, 2, 0), "allow", "allow"),
    ("socket", (2, 2, 1), "allow", "allow"),  # ping
    ("socket", (2, 0x80003, 1), "errno 1", "errno 1"),
    ("socket", (10, 3 | HIGH, 58), "errno 1", "errno 1"),
    ("socket", (2, 1, 262), "errno 93", "errno 93"),
    ("socket", (2 | HIGH, 1, 262 | HIGH), "errno 93", "errno 93"),
    ("socket", (16, 3, 0), "allow", "allow"),  # getifaddrs
    ("socket", (16, 0x80003, HIGH), "allow", "allow"),  # the kernel sees protocol 0
    ("socket", (16, 3, 9), "errno 93", "errno 93"),
    ("socket", (0, 1, 0), "errno 97", "errno 97"),
    ("socket", (17, 3, 0), "errno 97", "errno 97"),
    ("socket", (17 | HIGH, 3, 0), "errno 97", "errno 97"),
    ("socket", (31, 1, 0), "errno 97", "errno 97"),
    ("socket", (38, 5, 0), "errno 97", "errno 97"),
    ("socket", (40, 1, 0), "errno 97", "errno 97"),
    ("socketpair", (1, 1, 0), "allow", "allow"),
    ("socketpair", (40, 1, 0), "errno 97", "errno 97"),
    ("sendto", (3, 0, 0, 0x4000), "allow", "allow"),
    ("sendto", (3, 0, 0, 0x20000000), "errno 95", "errno 95"),
    ("sendmsg", (3, 0, 0x20004000 | HIGH), "errno 95", "errno 95"),
    ("sendmmsg", (3, 0, 1, 0x20000000), "errno 95", "errno 95"),
    ("connect", (3, 0, 0), "allow", "notify"),
    ("bind", (3, 0, 0), "allow", "notify"),
    ("execve", (), "allow", "notify"),
    ("execveat", (), "allow", "notify"),
    ("open", (0, 0), "allow", "allow"),
    ("open", (0, 0o2000000), "allow", "allow"),
    ("open", (0, 0o4101, 0o644), "allow", "notify"),
    ("open", (0, 0o101, 0o4755), "errno 1", "notify"),
    ("open", (0, 0o1, 0o4755), "allow", "notify"),  # the mode is not looked at
    ("openat", (0, 0, 0o2200000), "allow", "allow"),
    ("openat", (0, 0, 0o1), "allow", "notify"),
    ("openat", (0, 0, 0o2), "allow", "notify"),
    ("openat", (0, 0, 0o3), "allow", "notify"),
    ("openat", (0, 0, 0o1000), "allow", "notify"),
    ("openat", (0, 0, 0o100, 0o600), "allow", "notify"),
    ("openat", (0, 0, 0o100 | HIGH, 0o2600 | HIGH), "errno 1", "notify"),
    ("openat", (0, 0, 0o20200002, 0o4600), "errno 1", "notify"),
    ("openat", (0, 0, 0o20200102, 0o2600), "errno 1", "notify"),
    ("openat2", (), "allow", "notify"),
    ("creat", (0, 0o644), "allow", "notify"),
    ("creat", (0, 0o4644), "errno 1", "notify"),
    ("chmod", (0, 0o755), "allow", "notify"),
    ("chmod", (0, 0o2755), "errno 1", "notify"),
    ("fchmod", (0, 0o4755 | HIGH), "errno 1", "notify"),
    ("fchmodat", (0, 0, 0o6755), "errno 1", "notify"),
    ("fchmodat", (0, 0, 0o1777), "allow", "notify"),
    ("fchmodat2", (0, 0, 0o4755), "errno 1", "notify"),
    ("mkdir", (0, 0o2755), "errno 1", "notify"),
    ("mkdirat", (0, 0, 0o755), "allow", "notify"),
    ("mkdirat", (0, 0, 0o2755), "errno 1", "notify"),
    ("mknod", (0, 0o20666), "errno 1", "notify"),
    ("mknodat", (0, 0, 0o60660), "errno 1", "notify"),
    ("mknodat", (0, 0, 0o10600), "allow", "notify"),
    ("mknodat", (0, 0, 0o14600), "errno 1", "notify"),
    ("rename", (), "allow", "notify"),
    ("renameat2", (), "allow", "notify"),
    ("linkat", (), "allow", "notify"),
    ("symlinkat", (), "allow", "notify"),
    ("unlinkat", (), "allow", "notify"),
    ("rmdir", (), "allow", "notify"),
    ("truncate", (), "allow", "notify"),
    ("fchown", (), "allow", "notify"),
    ("umask", (), "allow", "notify"),
    ("reboot", (), "errno 1", "notify"),
    ("kexec_load", (), "errno 1", "notify"),
    ("finit_module", (), "errno 1", "notify"),
    ("pidfd_getfd", (), "errno 1", "notify"),
    ("get_mempolicy", (), "errno 1", "errno 1"),
]
ABSENT_ON_AARCH64 = {"open", "creat", "chmod", "mkdir", "mknod", "rename", "rmdir"}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("call", "arguments", "alone", "mediated"), CASES)
def test_answers(machine: str, call: str, arguments: tuple[int, ...], alone: str, mediated: str) -> None:
    if machine == "aarch64" and call in ABSENT_ON_AARCH64:
        assert number(machine, call) < 0
        return
    assert answer(machine, call, *arguments) == alone
    assert answer(machine, call, *arguments, notify=True) == mediated


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("notify", [False, True])
def test_foreign_architectures_get_enosys(machine: str, notify: bool) -> None:
    code = program(machine, notify)
    for arch in (bpfsim.X86_64, bpfsim.AARCH64, bpfsim.I386, 0x40000028):
        if arch != AUDIT_ARCH[machine]:
            for nr in (0, 1, 59, 165, 221, 452, 467):
                assert bpfsim.name(bpfsim.run(code, arch, nr)) == "errno 38"


@pytest.mark.parametrize("notify", [False, True])
def test_x32_gets_enosys(notify: bool) -> None:
    for nr in (0, 2, 41, 59, 101, 135, 165, 257, 467, 520):
        assert bpfsim.name(bpfsim.run(program("x86_64", notify), bpfsim.X86_64, nr | bpfsim.X32_BIT)) == "errno 38"


def meaning(chosen: list[Row], notify: bool, arguments: tuple[int, ...]) -> set[str]:
    """What the table alone says of one call: every answer that a matching row gives."""
    said: set[str] = set()
    for row in chosen:
        if all(condition.holds(arguments) for condition in row.conditions):
            if notify and row.action is not Action.REFUSE:
                said.add("notify")
            elif row.errno:
                said.add(f"errno {row.errno}")
    return said or {"allow"}


CALLS = sorted({row.call for row in TABLE})
VALUES = sorted({c.value for row in TABLE for c in row.conditions} | {0, 1, 0o666, 0o6777, 0xFFFFFFFF, 5, 14, 18, 45})


def union(one: int, other: int) -> int:
    return one | other


def above(low: int, high: int) -> int:
    return low | high << 32


WORDS = st.one_of(
    st.sampled_from(VALUES),
    st.builds(union, st.sampled_from(VALUES), st.sampled_from(VALUES)),
    st.builds(above, st.sampled_from(VALUES), st.integers(0, 0xFFFFFFFF)),
    st.integers(0, 0xFFFFFFFFFFFFFFFF),
)


@settings(max_examples=1500, deadline=None)
@given(
    call=st.sampled_from(CALLS),
    arguments=st.tuples(WORDS, WORDS, WORDS, WORDS, WORDS, WORDS),
    machine=st.sampled_from(MACHINES),
    notify=st.booleans(),
    group=st.sampled_from([(), *((g,) for g in SYSCALL_GROUPS)]),
    metadata=st.booleans(),
)
def test_the_program_says_what_the_table_says(
    call: str, arguments: tuple[int, ...], machine: str, notify: bool, group: tuple[str, ...], metadata: bool
) -> None:
    nr = number(machine, call)
    if nr < 0:
        return
    chosen = [row for row in syscalls.rows(group, metadata=metadata) if row.call == call]
    code = program(machine, notify, group, metadata=metadata)
    got = bpfsim.name(bpfsim.run(code, AUDIT_ARCH[machine], nr, arguments))
    assert got in meaning(chosen, notify, arguments)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("call", CALLS)
def test_every_boundary_value_of_a_call(machine: str, call: str) -> None:
    """Exhaustive over the values the rows of a call mention, with and without rubbish above 32 bits."""
    nr = number(machine, call)
    if nr < 0:
        return
    chosen = [row for row in TABLE if row.call == call]
    interesting: list[list[int]] = []
    for argument in range(6):
        values = {0}
        for row in chosen:
            for c in row.conditions:
                if c.argument == argument:
                    values |= {
                        c.value,
                        c.value + 1,
                        c.value | HIGH,
                        ~c.mask & 0xFFFFFFFF,
                        0xFFFFFFFF & (c.value | ~c.mask),
                    }
        interesting.append(sorted(values))
    for notify in (False, True):
        code = program(machine, notify, metadata=True)
        for arguments in itertools.islice(itertools.product(*interesting), 4000):
            got = bpfsim.name(bpfsim.run(code, AUDIT_ARCH[machine], nr, arguments))
            assert got in meaning(chosen, notify, arguments), arguments


def constants(code: bytes) -> set[int]:
    return {int.from_bytes(code[i + 4 : i + 8], "little") for i in range(0, len(code), 8)}


@pytest.mark.parametrize("machine", MACHINES)
def test_no_notification_without_a_mediator(machine: str) -> None:
    assert bpfsim.NOTIFY not in constants(program(machine))
    assert bpfsim.NOTIFY in constants(program(machine, True))


@pytest.mark.parametrize("machine", MACHINES)
def test_no_program_kills(machine: str) -> None:
    for notify in (False, True):
        code = program(machine, notify)
        returns = {code[i + 4 : i + 8] for i in range(0, len(code), 8) if code[i] == 0x06}
        assert all(bpfsim.name(int.from_bytes(k, "little")).split()[0] in ("allow", "notify", "errno") for k in returns)


@pytest.mark.parametrize("machine", MACHINES)
def test_brokered_reads_notify_every_open(machine: str) -> None:
    code = program(machine, True, (), True)
    assert bpfsim.name(bpfsim.run(code, AUDIT_ARCH[machine], number(machine, "openat"), (0, 0, 0))) == "notify"
    assert answer(machine, "openat", 0, 0, 0, notify=True) == "allow"


@pytest.mark.parametrize("machine", MACHINES)
def test_times_and_attributes_are_the_mediators_only_where_a_call_may_write_less(machine: str) -> None:
    for call in {row.call for row in TABLE if row.metadata}:
        nr = number(machine, call)
        if nr < 0:
            continue
        arguments = (0, syscalls.FS_IOC_SETFLAGS, 0)
        narrower = bpfsim.name(bpfsim.run(program(machine, True, metadata=True), AUDIT_ARCH[machine], nr, arguments))
        absent = call in ("setxattrat", "removexattrat", "file_setattr")
        assert narrower == ("errno 38" if absent else "notify"), call
        assert answer(machine, call, *arguments, notify=True) == "allow"


@pytest.mark.parametrize(
    ("group", "call", "arguments"),
    [
        ("nested-userns", "unshare", (0x10000000,)),
        ("nested-userns", "clone", (0x10000011,)),
        ("keyring", "keyctl", ()),
        ("keyring", "add_key", ()),
        ("perf", "perf_event_open", ()),
        ("bpf", "bpf", ()),
        ("personality", "personality", (0x400000,)),
        ("io-uring", "io_uring_setup", ()),
        ("userfaultfd", "userfaultfd", ()),
        ("numa", "mbind", ()),
        ("ptrace-any", "pidfd_getfd", ()),
    ],
)
def test_a_group_allows_its_calls_again_and_no_other(group: str, call: str, arguments: tuple[int, ...]) -> None:
    assert answer("x86_64", call, *arguments, groups=(group,)) == "allow"
    assert answer("x86_64", call, *arguments).startswith("errno")
    for still in ("chroot", "setns", "mount", "reboot"):
        assert answer("x86_64", still, groups=(group,)) == "errno 1"
    assert answer("x86_64", "clone", 0x8011, groups=(group,)) == "errno 1"


def test_every_group_has_a_row() -> None:
    assert {row.group for row in TABLE if row.group} == set(SYSCALL_GROUPS)


def test_no_call_mixes_a_plain_refusal_with_a_notification() -> None:
    """The kernel takes the first rule that matches: with both kinds, which one wins would be libseccomp's choice."""
    plain = {row.call for row in TABLE if row.action is Action.REFUSE}
    assert not plain & {row.call for row in TABLE if row.action is not Action.REFUSE}


def test_the_mediators_table_covers_every_counted_row() -> None:
    refusals = syscalls.refused(metadata=True)
    counted = [row for row in TABLE if row.action is Action.COUNT]
    assert len(refusals) == len(counted)
    assert all(c.compare is not Compare.ABOVE for row in counted for c in row.conditions)
    assert {call for call, _, _ in refusals} <= syscalls.NOTIFIED
    assert not any(call == "keyctl" for call, _, _ in syscalls.refused(("keyring",)))


@settings(max_examples=1500, deadline=None)
@given(
    call=st.sampled_from(sorted({row.call for row in TABLE if row.action is Action.COUNT})),
    arguments=st.tuples(WORDS, WORDS, WORDS, WORDS, WORDS, WORDS),
)
def test_the_mediator_refuses_what_the_table_says(call: str, arguments: tuple[int, ...]) -> None:
    counted = [row for row in TABLE if row.action is Action.COUNT and row.call == call]
    expected = [row.errno for row in counted if all(condition.holds(arguments) for condition in row.conditions)]
    got = [
        errno
        for name, errno, conditions in syscalls.refused(metadata=True)
        if name == call and all((arguments[index] & mask == value) is equal for index, mask, value, equal in conditions)
    ]
    assert got == expected


def test_an_unknown_machine_is_an_error() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        build_filter((), notify=False, brokered_reads=False, machine="riscv64")
