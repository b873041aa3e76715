"""One table of system calls: what the filter refuses, what the mediator sees, and why.

The seccomp filter (``compile.seccomp``), the mediator's own refusals (``refused``) and the documentation come from
``TABLE``, so that they cannot disagree. Everything that is not in it is allowed: this is a second layer under
namespaces and Landlock, and a list of what is allowed would break programs on every new kernel.

Conditions look at registers only, and at their low 32 bits wherever the kernel does: a filter that compares 64 bits of
an ``int`` argument is passed by with a bit set above them (CVE-2019-10063). A pointer is both halves.

Sources: the manual pages of section 2 named by each call, ``include/uapi/asm-generic/*.h`` of Linux 6.18 for the
values, Docker's and Flatpak's lists for what programs live without.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TypeAlias

EPERM, EINVAL, ENOSYS, EPROTONOSUPPORT, EOPNOTSUPP, EAFNOSUPPORT = 1, 22, 38, 93, 95, 97


class Action(StrEnum):
    """What happens to a call that a row matches."""

    REFUSE = "refuse"
    """The kernel answers with the errno. Programs probe these in normal work: nobody counts them."""
    COUNT = "count"
    """As ``REFUSE``, but where a mediator listens it gives the answer, and the attempt is counted."""
    MEDIATE = "mediate"
    """With a mediator: it decides and performs the call. Without one the call is allowed."""
    JUDGE = "judge"
    """With a mediator: it refuses the call or lets the kernel go on. Without one the call is refused."""
    OBSERVE = "observe"
    """With a mediator: it notes the call and lets the kernel go on. Without one the call is allowed."""


class Compare(StrEnum):
    """How an argument is compared."""

    MASKED = "masked"
    """``argument & mask == value``."""
    NOT = "not"
    """The 32 bits differ from ``value``."""
    ABOVE = "above"
    """The 32 bits, unsigned, are greater than ``value``."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A test of one argument register (0 to 5)."""

    argument: int
    value: int
    mask: int = 0xFFFFFFFF
    compare: Compare = Compare.MASKED
    high: bool = False
    """Of the high 32 bits: half of what the kernel takes as a whole, a pointer."""

    def holds(self, arguments: tuple[int, ...]) -> bool:
        """The meaning, in Python: what tests compare the compiled filter with."""
        half = arguments[self.argument] >> (32 if self.high else 0) & 0xFFFFFFFF
        if self.compare is Compare.NOT:
            return half != self.value
        if self.compare is Compare.ABOVE:
            return half > self.value
        return half & self.mask == self.value


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the row matches a call when every condition holds."""

    call: str
    action: Action
    errno: int = 0
    conditions: tuple[Condition, ...] = ()
    group: str = ""
    """The group of ``model.SYSCALL_GROUPS`` that allows it again."""
    metadata: bool = False
    """Only for a call that may write less than its session: what nothing but the mediator holds (``_metadata``)."""


def _bit(argument: int, value: int) -> tuple[Condition, ...]:
    return (Condition(argument, value, value),)


def _is(argument: int, value: int) -> Condition:
    return Condition(argument, value)


O_WRONLY, O_RDWR, O_CREAT, O_TRUNC = 0o1, 0o2, 0o100, 0o1000
O_TMPFILE_BIT = 0o20000000
"""``__O_TMPFILE``: O_TMPFILE without O_DIRECTORY, whose value depends on the architecture."""
S_ISUID, S_ISGID = 0o4000, 0o2000
S_IFMT, S_IFCHR, S_IFBLK = 0o170000, 0o020000, 0o060000
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
NAMESPACE_FLAGS = (
    CLONE_NEWNS,
    CLONE_NEWCGROUP,
    CLONE_NEWUTS,
    CLONE_NEWIPC,
    CLONE_NEWUSER,
    CLONE_NEWPID,
    CLONE_NEWNET,
)
CLONE_PARENT = 0x8000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
F_SETDELEG = 1040
FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR = 0x40086602, 0x401C5820
_IOCTL_TYPE = 0xFF00
"""Which driver a request belongs to (``asm-generic/ioctl.h``)."""
OPEN_FOR_READING = {
    "FS_IOC_SETVERSION": 0x40087602,
    "FS_IOC32_SETVERSION": 0x40047602,
    "EXT4_IOC_SETVERSION": 0x40086604,
    "EXT4_IOC_MIGRATE": 0x6609,
    "FS_IOC_SET_ENCRYPTION_POLICY": 0x800C6613,
    "FS_IOC_ADD_ENCRYPTION_KEY": 0xC0506617,
    "FS_IOC_REMOVE_ENCRYPTION_KEY": 0xC0406618,
    "FS_IOC_REMOVE_ENCRYPTION_KEY_ALL_USERS": 0xC0406619,
    "FS_IOC_ENABLE_VERITY": 0x40806685,
    "FAT_IOCTL_SET_ATTRIBUTES": 0x40047211,
    "ZFS_IOC_SETDOSFLAGS": 0x40088302,
    "OCFS2_IOC_REFLINK": 0x40186F04,
    "CEPH_IOC_SET_LAYOUT": 0x40289702,
    "CEPH_IOC_SET_LAYOUT_POLICY": 0x40289705,
}
"""Requests that change a file, a directory or what is below it, and ask for no more than a descriptor for reading."""
FILE_SYSTEMS = {
    # btrfs, whose subvolumes are made and removed as directories are. The first three are every file system's: they need a
    # destination that is open for writing, or change nothing that can be read. The last one tells the label.
    0x94: (0x40049409, 0x4020940D, 0xC0189436, 0x81009431),
    # f2fs. SQLite asks for the features, and writes at once where there are some, to what is open for writing.
    0xF5: (0x8004F50C, 0xF501, 0xF502, 0xF505),
    # bcachefs
    0xBC: (),
}
"""By type, those of file systems that have many: all but these are refused."""
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOCKET_FAMILIES = (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK)
SOCK_TYPE_MASK, SOCK_RAW, SOCK_PACKET = 0xF, 3, 10
IPPROTO_MPTCP = 262
MSG_FASTOPEN = 0x20000000
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
PERSONALITY_QUERY, PERSONALITY_HARMLESS = 0xFFFFFFFF, 0x7FFFF

_ADMINISTRATION = (
    "acct",
    "add_key",
    "bpf",
    "chroot",
    "clock_settime",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "modify_ldt",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_by_handle_at",
    "open_tree",
    "open_tree_attr",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "umount2",
    "unshare",
    "userfaultfd",
    "vhangup",
)
_GROUP = {
    "add_key": "keyring",
    "bpf": "bpf",
    "kcmp": "ptrace-any",
    "keyctl": "keyring",
    "perf_event_open": "perf",
    "pidfd_getfd": "ptrace-any",
    "request_key": "keyring",
    "unshare": "nested-userns",
    "userfaultfd": "userfaultfd",
}


def _rows() -> Iterator[Row]:
    # Calls that would administer the machine, or change what a path means. setns and chroot stay refused even with
    # nested-userns: in another root the mediator would resolve the caller's paths in its own.
    for call in _ADMINISTRATION:
        yield Row(call, Action.COUNT, EPERM, group=_GROUP.get(call, ""))
    for flag in NAMESPACE_FLAGS:
        yield Row("clone", Action.COUNT, EPERM, _bit(0, flag), "nested-userns")
    # A child of the caller's parent, which for a call's command is Remit's own process: outside of the call, where nobody
    # looks for what the call left behind, and nobody reaps it. No library uses it.
    yield Row("clone", Action.COUNT, EPERM, _bit(0, CLONE_PARENT))

    # clone3 keeps its flags in memory, where no filter sees them: glibc falls back to clone on ENOSYS. io_uring
    # performs system calls that no filter sees.
    yield Row("clone3", Action.REFUSE, ENOSYS)
    for call in ("io_uring_setup", "io_uring_enter", "io_uring_register"):
        yield Row(call, Action.REFUSE, ENOSYS, group="io-uring")
    # The mediator performs calls in its own Landlock domain: a caller's nested one would be bypassed, so the caller
    # hears at once that there is none to be had.
    for call in ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"):
        yield Row(call, Action.REFUSE, EOPNOTSUPP)
    for call in ("uselib", "ustat", "sysfs", "_sysctl", "nfsservctl", "lookup_dcookie"):
        yield Row(call, Action.REFUSE, ENOSYS)
    for call in ("adjtimex", "clock_adjtime"):
        yield Row(call, Action.REFUSE, EPERM)
    for call in ("get_mempolicy", "mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node"):
        yield Row(call, Action.REFUSE, EPERM, group="numa")
    # Everything above the low 19 bits: READ_IMPLIES_EXEC, MMAP_PAGE_ZERO, address limits. ADDR_NO_RANDOMIZE (gdb) and
    # the query stay.
    yield Row(
        "personality",
        Action.REFUSE,
        EPERM,
        (
            Condition(0, PERSONALITY_HARMLESS, compare=Compare.ABOVE),
            Condition(0, PERSONALITY_QUERY, compare=Compare.NOT),
        ),
        "personality",
    )
    for request in (TIOCSTI, TIOCLINUX):
        yield Row("ioctl", Action.COUNT, EPERM, (_is(1, request),))
    # Of Linux 6.19, for file servers. Whoever then changes a name, a mode or an owner waits in the kernel until the holder lets
    # go, up to 45 s (``/proc/sys/fs/lease-break-time``): the mediator, who does that for everybody. Older kernels say the same.
    yield Row("fcntl", Action.REFUSE, EINVAL, (_is(1, F_SETDELEG),))
    # The session's PID 1 has the command's uid, and that is all that prlimit asks for: with no descriptors left the
    # mediator could only refuse, and with a CPU limit it would die.
    yield Row("prlimit64", Action.COUNT, EPERM, (_is(0, 1),))
    # So it is with the number of any of its threads, which no filter knows: who changes limits (the pointer is not null, in one
    # half or the other) changes its own, and only the mediator knows whose number is the caller's.
    for high in (False, True):
        given = Condition(2, 0, compare=Compare.NOT, high=high)
        yield Row("prlimit64", Action.JUDGE, EPERM, (Condition(0, 0, compare=Compare.NOT), given))

    yield from _sockets()
    yield from _files()

    for call in ("execve", "execveat", "connect", "bind"):
        yield Row(call, Action.OBSERVE)
    yield Row("kill", Action.OBSERVE)
    for request in (PTRACE_ATTACH, PTRACE_SEIZE):
        yield Row("ptrace", Action.OBSERVE, conditions=(_is(0, request),))


def _sockets() -> Iterator[Row]:
    for call in ("socket", "socketpair"):
        families = tuple(Condition(0, family, compare=Compare.NOT) for family in SOCKET_FAMILIES)
        yield Row(call, Action.REFUSE, EAFNOSUPPORT, families)
        # getifaddrs needs NETLINK_ROUTE; the other protocols talk to audit, firewall, crypto and device code.
        yield Row(
            call,
            Action.REFUSE,
            EPROTONOSUPPORT,
            (_is(0, AF_NETLINK), Condition(2, 0, compare=Compare.NOT)),
        )
        for family in (AF_INET, AF_INET6):
            for kind in (SOCK_RAW, SOCK_PACKET):
                yield Row(call, Action.REFUSE, EPERM, (_is(0, family), Condition(1, kind, SOCK_TYPE_MASK)))
            # Landlock's TCP rights did not see MPTCP, and neither would a gateway.
            yield Row(call, Action.REFUSE, EPROTONOSUPPORT, (_is(0, family), _is(2, IPPROTO_MPTCP)))
    # TCP Fast Open connects without connect(2).
    for call, argument in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        yield Row(call, Action.REFUSE, EOPNOTSUPP, _bit(argument, MSG_FASTOPEN))


def _files() -> Iterator[Row]:
    for call, flags in (("open", 1), ("openat", 2)):
        for creates in (O_CREAT, O_TMPFILE_BIT):
            for special in (S_ISUID, S_ISGID):
                conditions = (*_bit(flags, creates), *_bit(flags + 1, special))
                yield Row(call, Action.COUNT, EPERM, conditions)
        for flag in (O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE_BIT):
            yield Row(call, Action.MEDIATE, conditions=_bit(flags, flag))
    modes = (
        ("chmod", 1),
        ("fchmod", 1),
        ("fchmodat", 2),
        ("fchmodat2", 2),
        ("creat", 1),
        ("mkdir", 1),
        ("mkdirat", 2),
        ("mknod", 1),
        ("mknodat", 2),
    )
    for call, argument in modes:
        for special in (S_ISUID, S_ISGID):
            yield Row(call, Action.COUNT, EPERM, _bit(argument, special))
        yield Row(call, Action.MEDIATE)
    for call, argument in (("mknod", 1), ("mknodat", 2)):
        for kind in (S_IFCHR, S_IFBLK):
            yield Row(call, Action.COUNT, EPERM, (Condition(argument, kind, S_IFMT),))
    # openat2 keeps flags and mode in memory: the mediator reads them once and decides on its own copy.
    for call in (
        "openat2",
        "truncate",
        "rename",
        "renameat",
        "renameat2",
        "link",
        "linkat",
        "symlink",
        "symlinkat",
        "unlink",
        "unlinkat",
        "rmdir",
        "chown",
        "fchown",
        "lchown",
        "fchownat",
    ):
        yield Row(call, Action.MEDIATE)
    yield Row("umask", Action.OBSERVE)
    # Landlock has one right for all requests, on devices alone, and the kernel asks for no writable descriptor here: what is
    # mounted writable is all that counts. (A request's number is compared as a whole, so these are exact.)
    for request in OPEN_FOR_READING.values():
        yield Row("ioctl", Action.COUNT, EPERM, (_is(1, request),))
    for kind, allowed in FILE_SYSTEMS.items():
        others = tuple(Condition(1, request, compare=Compare.NOT) for request in allowed)
        yield Row("ioctl", Action.COUNT, EPERM, (Condition(1, kind << 8, _IOCTL_TYPE), *others))


def _metadata() -> Iterator[Row]:
    # Times and attributes: no Landlock right covers them, and a mount is writable where the session is. Mediating them
    # costs every tar and make a round trip a file, so only calls whose session may write more than they do pay it.
    for call in (
        "utime",
        "utimes",
        "futimesat",
        "utimensat",
        "setxattr",
        "lsetxattr",
        "fsetxattr",
        "removexattr",
        "lremovexattr",
        "fremovexattr",
    ):
        yield Row(call, Action.MEDIATE, metadata=True)
    # Their successors: programs fall back to the calls above.
    for call in ("setxattrat", "removexattrat", "file_setattr"):
        yield Row(call, Action.REFUSE, ENOSYS, metadata=True)
    # chattr needs no more than a descriptor for reading.
    for request in (FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR):
        yield Row("ioctl", Action.COUNT, EPERM, (_is(1, request),), metadata=True)


TABLE: tuple[Row, ...] = (*_rows(), *_metadata())

NOTIFIED: frozenset[str] = frozenset(row.call for row in TABLE if row.action is not Action.REFUSE)
"""Every call that can reach a mediator."""

NUMBERS = {"fchmodat2": 452, "setxattrat": 463, "removexattrat": 466, "open_tree_attr": 467, "file_setattr": 469}
"""Calls that are younger than a libseccomp in use, with the number that every architecture shares (since 424)."""


def rows(groups: Collection[str] = (), *, brokered_reads: bool = False, metadata: bool = False) -> tuple[Row, ...]:
    """The table without what ``groups`` allow; ``brokered_reads``: every open is the mediator's, for reading too;
    ``metadata``: times and attributes are."""
    chosen = tuple(
        row for row in TABLE if (not row.group or row.group not in groups) and (metadata or not row.metadata)
    )
    if not brokered_reads:
        return chosen
    return (*chosen, Row("open", Action.MEDIATE), Row("openat", Action.MEDIATE))


Refusal: TypeAlias = tuple[str, int, tuple[tuple[int, int, int, bool], ...]]


@lru_cache(maxsize=32)
def refused(groups: tuple[str, ...] = (), *, metadata: bool = False) -> tuple[Refusal, ...]:
    """What the mediator refuses whatever it names: (call, errno, conditions), in table order.

    A condition is (argument, mask, value, equal); a row matches when ``(arguments[argument] & mask == value) is equal`` for all
    of them.
    """
    return tuple(
        (
            row.call,
            row.errno,
            tuple((c.argument, c.mask, c.value, c.compare is not Compare.NOT) for c in row.conditions),
        )
        for row in rows(groups, metadata=metadata)
        if row.action is Action.COUNT
    )
