"""Processes: making them in namespaces, taking their privileges away, starting programs, pidfds."""

from __future__ import annotations

import posix
from _struct import Struct

from remit.sandbox.kernel.call import NR, Buffer, call, long, prepared, quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

CLONE_NEWTIME = 0x80
CLONE_FS = 0x200
CLONE_FILES = 0x400
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x1000

NAMESPACES = {
    "user": CLONE_NEWUSER,
    "mount": CLONE_NEWNS,
    "pid": CLONE_NEWPID,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
    "net": CLONE_NEWNET,
    "cgroup": CLONE_NEWCGROUP,
}

CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_SYS_CHROOT = 18
CAP_NET_ADMIN = 12
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CLOSE_RANGE_CLOEXEC = 4
_SIGKILL = 9
_SIGCHLD = 17
_SIG_BLOCK = 0
_SIG_SETMASK = 2
_INT_SIZE = 4
_P_PID, _P_PIDFD = 1, 3
_SIGINFO_SIZE = 128
_WNOHANG = 1
_WSTOPPED = 2
_WEXITED = 4
_WNOWAIT = 0x1000000
_WNOTHREAD = 0x20000000
_WALL = 0x40000000
_CLD_EXITED = 1
_CLD_KILLED = 2
_CLD_DUMPED = 3
_CLD_ENDED = (_CLD_EXITED, _CLD_KILLED, _CLD_DUMPED)
_WORDS = Struct("=7i")
"""``siginfo_t`` of SIGCHLD: si_signo, si_errno, si_code, padding, si_pid, si_uid, si_status (64-bit machines)."""
_USAGE = Struct("=5q")
"""``struct rusage``: the two times, in seconds and microseconds, and ru_maxrss."""

_CLOCK_MONOTONIC = 1
_IOPRIO_WHO_PROCESS = 1
_ATTRIBUTES = 56
"""``struct sched_attr`` (Linux 5.3)."""
_PROCESSORS = 1024
"""Bytes of a set of processors: no kernel is made for more."""


def clone3(flags: int, *, pidfd: Buffer | None = None) -> int:
    """``clone3(2)`` as a fork: 0 in the child, its pid in the parent. Raises OSError.

    The interpreter is not told (no ``PyOS_AfterFork_Child``): the caller must have one thread only, and the child must
    not use ``threading``. That is what makes the child cheap. It is scheduled as others are, also where the caller
    stands back.
    """
    fields = (flags | (CLONE_PIDFD if pidfd else 0), pidfd.address if pidfd else 0, 0, 0, _SIGCHLD, 0, 0, 0)
    arguments = b"".join([field.to_bytes(8, "little") for field in fields])
    pid = quick(NR["clone3"], arguments, len(arguments))
    if pid == 0:
        compete()
    return pid


_standing_back: list[bool] = []


def stand_back() -> None:
    """From now on this process takes no CPU from another that runs there, only one that is free (SCHED_BATCH,
    ``sched(7)``): what it does is nobody's to wait for. Where it was given another policy, that stays."""
    if posix.sched_getscheduler(0) == posix.SCHED_OTHER:
        posix.sched_setscheduler(0, posix.SCHED_BATCH, posix.sched_param(0))
        _standing_back.append(True)


def compete() -> bool:
    """The contrary of ``stand_back``: whether it was in force."""
    if not _standing_back:
        return False
    _standing_back.clear()
    posix.sched_setscheduler(0, posix.SCHED_OTHER, posix.sched_param(0))
    return True


def leave(status: int) -> NoReturn:
    """End this process at once (``_exit(2)``): nothing is flushed, no other thread is waited for."""
    posix._exit(status)  # pyright: ignore[reportPrivateUsage]  # os, where it is public, would be an import


def unshare(flags: int) -> None:
    """``unshare(2)`` for the calling thread."""
    call(NR["unshare"], flags)


def setns(descriptor: int, flags: int) -> None:
    """``setns(2)`` for the calling thread."""
    call(NR["setns"], descriptor, flags)


def pidfd_open(pid: int) -> int:
    """``pidfd_open(2)`` (Linux 5.3)."""
    return call(NR["pidfd_open"], pid, 0)


def pidfd_getfd(pidfd: int, descriptor: int) -> int:
    """``pidfd_getfd(2)`` (Linux 5.6): another process's open file, here."""
    return call(NR["pidfd_getfd"], pidfd, descriptor, 0)


def ended(pid: int) -> tuple[int, float, int] | None:
    """How a child that has ended did, leaving it to be reaped: wait status, CPU time in seconds, largest resident set in
    KiB (``waitid(2)`` with WNOWAIT, and the ``rusage`` that only the system call itself gives). Raises OSError.

    None: it has not ended, or whoever traces it has not let go of it (``ptrace(2)``): its pidfd can be read by then.
    """
    filled = Buffer(_SIGINFO_SIZE + 144)
    usage = filled.address + _SIGINFO_SIZE
    prepared(NR["waitid"], _P_PID, pid, long(filled.address), _WEXITED | _WNOHANG | _WNOWAIT, long(usage))
    words = _WORDS.unpack_from(filled.view)
    if not words[4]:
        return None
    code, value = words[2], words[6]
    status = value << 8 if code == _CLD_EXITED else value | (0x80 if code == _CLD_DUMPED else 0)
    user, user_us, system, system_us, most = _USAGE.unpack_from(filled.view, _SIGINFO_SIZE)
    return status, user + system + (user_us + system_us) / 1e6, most


def next_stop(pidfd: int) -> int:
    """Wait until a child stops: the signal that stopped it. Each stop is told once. 0: it has ended, and is still to be reaped,
    or is reaped already (``waitid(2)``, P_PIDFD: Linux 5.4)."""
    filled = Buffer(_SIGINFO_SIZE)
    pointer = long(filled.address)
    while True:
        try:
            # First a look, which takes nothing: what waits for the child's end is to find that.
            prepared(NR["waitid"], _P_PIDFD, pidfd, pointer, _WSTOPPED | _WEXITED | _WNOWAIT, None)
            if _WORDS.unpack_from(filled.view)[2] in _CLD_ENDED:
                return 0
            prepared(NR["waitid"], _P_PIDFD, pidfd, pointer, _WSTOPPED | _WNOHANG, None)
        except InterruptedError:
            continue
        except ChildProcessError:
            return 0
        words = _WORDS.unpack_from(filled.view)
        if words[4]:
            return int(words[6])


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """``pidfd_send_signal(2)``: never hits a recycled pid."""
    call(NR["pidfd_send_signal"], pidfd, signal, None, 0)


def die_with_parent() -> None:
    """SIGKILL when the *thread* that made this process ends (``PR_SET_PDEATHSIG``): a belt, not the braces."""
    quick(NR["prctl"], _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """Orphaned descendants become this process's children (``PR_SET_CHILD_SUBREAPER``)."""
    quick(NR["prctl"], _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def set_dumpable(on: bool) -> None:
    """Whether others of this user may look into this process (``/proc/PID/mem``, ``environ``, ``fd``)."""
    quick(NR["prctl"], _PR_SET_DUMPABLE, int(on), 0, 0, 0)


def set_name(name: bytes) -> None:
    """The thread's name (15 bytes), as ``ps`` shows it."""
    quick(NR["prctl"], _PR_SET_NAME, name, 0, 0, 0)


def no_new_privileges() -> None:
    """``PR_SET_NO_NEW_PRIVS`` for the calling thread."""
    quick(NR["prctl"], _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def drop_bounding_set() -> None:
    """Empty the capability bounding set. Ends at the first number that the kernel does not know."""
    number, capability = NR["prctl"], 0
    try:
        while True:
            quick(number, _PR_CAPBSET_DROP, capability, 0, 0, 0)
            capability += 1
    except OSError:
        return


def set_capabilities(mask: int, inheritable: int = 0) -> None:
    """``capset(2)``: permitted and effective become ``mask``, for the calling thread. What is not inheritable any more is
    not ambient any more either."""
    header = _CAPABILITY_VERSION_3.to_bytes(4, "little") + bytes(4)
    sets = b"".join(
        [(one >> shift & 0xFFFFFFFF).to_bytes(4, "little") for shift in (0, 32) for one in (mask, mask, inheritable)]
    )
    quick(NR["capset"], header, sets)


def capabilities() -> int:
    """``capget(2)``: the calling thread's permitted capabilities."""
    header = _CAPABILITY_VERSION_3.to_bytes(4, "little") + bytes(4)
    sets = Buffer(24)
    call(NR["capget"], header, sets.address)
    return int.from_bytes(sets.view[4:8], "little") | int.from_bytes(sets.view[16:20], "little") << 32


def raise_ambient(capability: int) -> None:
    """``PR_CAP_AMBIENT_RAISE`` (Linux 4.3): a program that this thread executes keeps it. It must be inheritable."""
    quick(NR["prctl"], _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)


def close_range(first: int, last: int, *, on_exec: bool = False) -> None:
    """``close_range(2)`` (Linux 5.9), or with ``on_exec`` mark them close-on-exec (Linux 5.11)."""
    call(NR["close_range"], first, last, _CLOSE_RANGE_CLOEXEC if on_exec else 0)


def limit(soft: int, hard: int) -> bytes:
    """``struct rlimit``. Units are the resource's; -1 is unlimited."""
    mask = (1 << 64) - 1
    return (soft & mask).to_bytes(8, "little") + (hard & mask).to_bytes(8, "little")


def set_limit(pid: int, resource: int, value: bytes) -> None:
    """``prlimit(2)`` of another process (0: this one)."""
    quick(NR["prlimit64"], pid, resource, value, None)


def hard_limit(resource: int) -> int:
    """The caller's own hard limit (``prlimit(2)``), which nobody without CAP_SYS_RESOURCE can exceed."""
    limits = Buffer(16)
    call(NR["prlimit64"], 0, resource, None, limits.address)
    return int.from_bytes(limits.view[8:], "little")


def scheduling(pid: int) -> bytes:
    """How a process is scheduled (``sched_getattr(2)``, ``sched_getaffinity(2)``, ``ioprio_get(2)``), to be compared. Raises
    OSError."""
    filled = Buffer(_ATTRIBUTES + _PROCESSORS)
    call(NR["sched_getattr"], pid, filled.address, _ATTRIBUTES, 0)
    call(NR["sched_getaffinity"], pid, _PROCESSORS, filled.address + _ATTRIBUTES)
    priority = call(NR["ioprio_get"], _IOPRIO_WHO_PROCESS, pid)
    return bytes(filled.view) + priority.to_bytes(4, "little")


def block_signals(signals: tuple[int, ...]) -> bytes:
    """``SIG_BLOCK`` for the calling thread; the mask that it had, for ``set_signal_mask``. (The ``signal`` module imports
    ``enum``: 3 ms.)"""
    mask, before = sum([1 << (signal - 1) for signal in signals]), Buffer(8)
    call(NR["rt_sigprocmask"], _SIG_BLOCK, mask.to_bytes(8, "little"), before.address, 8)
    return bytes(before.view)


def set_signal_mask(mask: bytes) -> None:
    """``SIG_SETMASK`` for the calling thread."""
    call(NR["rt_sigprocmask"], _SIG_SETMASK, mask, None, 8)


def kill(pid: int, signal: int) -> None:
    """``kill(2)``. Unlike ``posix.kill`` it gives the interpreter up meanwhile: a confined thread's call may wait for the
    mediator, which is a thread of the same process."""
    call(NR["kill"], pid, signal)


def ignore_signal(signal: int) -> None:
    """``SIG_IGN`` for this process."""
    ignored = (1).to_bytes(8, "little") + bytes(24)
    call(NR["rt_sigaction"], signal, ignored, None, 8)


def timer() -> int:
    """``timerfd_create(2)``: a descriptor that can be read when its time has come. Non-blocking, close-on-exec."""
    return call(NR["timerfd_create"], _CLOCK_MONOTONIC, posix.O_CLOEXEC | posix.O_NONBLOCK)


def set_timer(descriptor: int, milliseconds: int) -> None:
    """``timerfd_settime(2)``: once, in so many milliseconds (more than 0). What it said of an earlier time is forgotten."""
    seconds, rest = divmod(milliseconds, 1000)
    once = bytes(16) + seconds.to_bytes(8, "little") + (rest * 1_000_000).to_bytes(8, "little")
    call(NR["timerfd_settime"], descriptor, 0, once, None)


def signalfd(signals: tuple[int, ...]) -> int:
    """``signalfd(2)``: a descriptor that reads the given signals, which the caller has blocked. Non-blocking, close-on-exec."""
    mask = sum(1 << (signal - 1) for signal in signals)
    return call(NR["signalfd4"], -1, mask.to_bytes(8, "little"), 8, posix.O_CLOEXEC | posix.O_NONBLOCK)


def reap_children() -> None:
    """Wait for every child of the calling thread, of whatever kind, and for none of another thread's (``wait(2)``)."""
    try:
        while True:
            posix.waitpid(-1, _WALL | _WNOTHREAD)
    except ChildProcessError:
        pass


def ticks(seconds: float) -> int:
    """A time since the machine started, as ``proc_pid_stat(5)`` counts it. USER_HZ is 100 on each machine that Remit knows."""
    return int(seconds * 100)


def started(pid: int) -> int:
    """When a process started, in ticks since the machine did (``proc_pid_stat(5)``, field 22); 0: it is not there."""
    try:
        opened = posix.open(b"/proc/%d/stat" % pid, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return int(posix.read(opened, 1024).rpartition(b")")[2].split(None, 20)[19])
    except (OSError, IndexError, ValueError):
        return 0
    finally:
        posix.close(opened)


def own_thread(pid: int) -> bool:
    """Whether a thread of this process has that number, here."""
    try:
        posix.stat(b"/proc/self/task/%d" % pid)
    except OSError:
        return False
    return True
