"""Starting a program in a new process: ``posix_spawn(3)`` with what this project needs of it, and no more.

glibc's own resets signals one by one, asking first (120 system calls on each start), and allocates a stack. Here a few
instructions of machine code make the child (``CLONE_VM | CLONE_VFORK``: nothing is copied, and the caller waits until the
child has executed the program), and in it make the system calls of a table, the last of which is ``execve(2)``. The child
uses no stack and no library. Where the machine is another, or memory may not be executed (SELinux's ``execmem``,
systemd's ``MemoryDenyWriteExecute``), glibc's serves.
"""

from __future__ import annotations

import posix
from _struct import Struct

from remit.sandbox.kernel.call import (
    MACHINE,
    NR,
    Buffer,
    address,
    check,
    failure,
    has_libc,
    libc_call,
    long,
)
from remit.sandbox.kernel.code import executable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CODE = {
    "x86_64": bytes.fromhex(
        "5341544889fb4989f44889d731f631d24989ca4531c0b8380000000f054885c0753d488b03488b7b08488b7310488b53184c8b53204c"
        "8b43284c8b4b300f05483d01f0ffff73094883c33849ffcc75d2488903bf7f000000b8e70000000f05415c5bc3"
    ),
    "aarch64": bytes.fromhex(
        "e90300aaea0301aae00302aae1031faae2031faae40303aae3031faa881b80d2010000d4e00100b5280140a9210941a9231142a9251940"
        "f9010000d41ffc3fb18200005429e100914a0500f1e1feff54200100f9e00f80d2c80b80d2010000d4c0035fd6"
    ),
}
"""By machine: ``long start(long (*steps)[7], long count, long flags, int *number)``. A step is a system call's number and
its arguments. ``clone(2)``; in the child, one step after the other until one fails, whose result takes the place of its
number, and ``exit_group(127)``; in the caller, what ``clone`` returned. ``number``: for ``CLONE_CHILD_SETTID``."""

_STEP = Struct("=7q")
_CLONE = 0x100 | 0x4000 | 0x01000000 | 17
"""CLONE_VM, CLONE_VFORK, CLONE_CHILD_SETTID, SIGCHLD: ``clone(2)``."""
_SIG_BLOCK, _SIG_SETMASK = 0, 2
_MASK_SIZE = 8
_LAST_SIGNAL = 64
_NEVER = (9, 19)
"""SIGKILL and SIGSTOP have no other action (``rt_sigaction(2)``)."""
_F_SETFD = 2
_TIOCSPGRP = 0x5410
_AT_FDCWD = -100
_EXECVE = NR.get("execve", -1)
_DEFAULT = bytes(32)
"""``struct sigaction`` of the kernel's: the default action."""
_NONE, _ALL = bytes(_MASK_SIZE), b"\xff" * _MASK_SIZE
_KEPT_AT_MOST = 32

_reset = [signal for signal in range(1, _LAST_SIGNAL + 1) if signal not in _NEVER]
_machine: list[Callable[[object, object, object, object], int] | None] = []
_kept: dict[tuple[bytes, tuple[int, ...], bool, bool, tuple[tuple[int, bytes], ...]], bytes] = {}
"""Calls come by the thousand, with their streams at the same few numbers: the steps before the program's."""


def reset_only(signals: int) -> None:
    """From now on programs are started with only these signals (a mask) at their default: what this process ignores. Those
    that it handles, ``execve(2)`` resets by itself."""
    _reset[:] = [
        signal for signal in range(1, _LAST_SIGNAL + 1) if signals >> (signal - 1) & 1 and signal not in _NEVER
    ]
    _kept.clear()


def direct() -> bool:
    """Whether the system calls of the table are made here. glibc knows neither ``limits`` nor ``words``."""
    if not _machine:
        _machine.append(executable(CODE.get(MACHINE, b"")))
    return _machine[0] is not None


def spawn(
    program: bytes,
    arguments: list[bytes],
    environment: list[bytes],
    *,
    directory: bytes,
    descriptors: tuple[int, ...] = (0, 1, 2),
    new_group: bool = False,
    new_session: bool = False,
    terminal: bytes = b"",
    foreground: int = -1,
    about_to: Callable[[], object] | None = None,
    limits: tuple[tuple[int, bytes], ...] = (),
    words: tuple[int, int, int] = (0, 0, 0),
    own_number: Buffer | None = None,
) -> int:
    """Start ``program`` with every signal at its default and none blocked. Returns the pid; raises OSError, as
    ``execve(2)`` and what comes before it.

    The interpreter lock is given up until the child has exec'd: a child whose execve(2) is reported to a mediator in this
    very process would wait for ever. (``os.posix_spawn`` holds it; it also knows no working directory and no
    ``tcsetpgrp(3)``, without which a command started in its own process group reads the terminal as a background job.)

    ``descriptors[i]`` becomes descriptor i; all others are closed on exec by the caller. ``foreground`` is a terminal
    whose foreground group the new group becomes. ``new_session``: ``setsid(2)``; ``terminal`` is then the path of a
    terminal that becomes the new session's own, opened before the descriptors are placed.
    ``about_to`` is called when nothing but the call that makes the process is left.

    Where the machine code serves (``direct``): ``limits`` are set in the child (resource, ``struct rlimit``), ``words`` are
    the arguments that execve(2) does not have (``exemption``), and ``own_number`` (8 bytes) gets the child's pid as it has it.
    """
    start = _machine[0] if direct() else None
    if start is None:
        how = (directory, descriptors, new_group, new_session, terminal, foreground)
        return _by_libc(program, arguments, environment, *how, about_to)
    key = (directory, descriptors, new_group, new_session, limits)
    number = own_number or Buffer(8)
    before = _kept.get(key) if foreground < 0 and not terminal else None
    if before is None:
        before = _before(*key, terminal, foreground, number.address)
        if foreground < 0 and not terminal and len(_kept) < _KEPT_AT_MOST:
            _kept[key] = before
    argv, envp = _vector(arguments), _vector(environment)
    text = before + _STEP.pack(_EXECVE, address(program), address(argv), address(envp), *words)
    steps = Buffer(len(text))
    steps.view[:] = text
    if about_to is not None:
        about_to()
    pid = start(long(steps.address), long(len(text) // _STEP.size), long(_CLONE), long(number.address))
    if pid < 0:
        raise failure(-pid, "clone")
    if bytes(steps.view) != text:
        try:
            posix.waitpid(pid, 0)
        except ChildProcessError:
            pass  # another thread, which reaps whatever there is, was faster
        raise failure(-min(_STEP.iter_unpack(steps.view))[0], "spawn")
    return pid


def _before(
    directory: bytes,
    descriptors: tuple[int, ...],
    new_group: bool,
    new_session: bool,
    limits: tuple[tuple[int, bytes], ...],
    terminal: bytes,
    foreground: int,
    number: int,
) -> bytes:
    """The steps that make the new process what the program is to find; ``number``: where its own pid is then. They point
    to the arguments."""
    steps: list[tuple[int, ...]] = []

    def step(name: str, *values: int) -> None:
        steps.append((NR[name], *values, *(0,) * (6 - len(values))))

    # A group that is not in the foreground yet would be stopped by SIGTTOU for changing that.
    step("rt_sigprocmask", _SIG_BLOCK, address(_ALL), 0, _MASK_SIZE)
    for signal in _reset:
        step("rt_sigaction", signal, address(_DEFAULT), 0, _MASK_SIZE)
    if new_session:
        step("setsid")
    if new_group:
        step("setpgid", 0, 0)
    if foreground >= 0:
        step("ioctl", foreground, _TIOCSPGRP, number)
    if terminal:
        # Opening it makes it the controlling one of a session's leader that has none (``tty_ioctl(4)``).
        step("close_range", 0, 0, 0)
        step("openat", _AT_FDCWD, address(terminal), posix.O_RDWR, 0)
    for number, descriptor in enumerate(descriptors):
        if number == descriptor:
            step("fcntl", descriptor, _F_SETFD, 0)
        else:
            step("dup3", descriptor, number, 0)
    step("chdir", address(directory))
    for resource, limit in limits:
        step("prlimit64", 0, resource, address(limit), 0)
    step("rt_sigprocmask", _SIG_SETMASK, address(_NONE), 0, _MASK_SIZE)
    return b"".join([_STEP.pack(*one) for one in steps])


def _vector(strings: list[bytes]) -> bytes:
    """A NULL-terminated array of the strings' addresses; ``strings`` must outlive it."""
    return b"".join([address(s).to_bytes(8, "little") for s in strings]) + bytes(8)


# --- glibc's -----------------------------------------------------------------------------------------------------------

_SETPGROUP = 0x02
_SETSIGDEF = 0x04
_SETSIGMASK = 0x08
_SETSID = 0x80
_ATTRIBUTES_SIZE = 512
_ACTIONS_SIZE = 128
_SIGSET_SIZE = 128


def _by_libc(
    program: bytes,
    arguments: list[bytes],
    environment: list[bytes],
    directory: bytes,
    descriptors: tuple[int, ...],
    new_group: bool,
    new_session: bool,
    terminal: bytes,
    foreground: int,
    about_to: Callable[[], object] | None,
) -> int:
    """``posix_spawn(3)`` (``addchdir_np``: glibc 2.29; ``addtcsetpgrp_np``: glibc 2.35)."""
    flags = _SETSIGDEF | _SETSIGMASK | (_SETPGROUP if new_group else 0) | (_SETSID if new_session else 0)
    attributes, mask = Buffer(_ATTRIBUTES_SIZE), bytes(_SIGSET_SIZE)
    every = b"\xff" * _SIGSET_SIZE
    check("posix_spawnattr_init", attributes.address)
    check("posix_spawnattr_setsigmask", attributes.address, mask)
    check("posix_spawnattr_setsigdefault", attributes.address, every)
    check("posix_spawnattr_setflags", attributes.address, flags)
    actions = Buffer(_ACTIONS_SIZE)
    check("posix_spawn_file_actions_init", actions.address)
    try:
        if foreground >= 0 and has_libc("posix_spawn_file_actions_addtcsetpgrp_np"):
            check("posix_spawn_file_actions_addtcsetpgrp_np", actions.address, foreground)
        if terminal:
            check("posix_spawn_file_actions_addopen", actions.address, 0, terminal, posix.O_RDWR, 0)
        for number, descriptor in enumerate(descriptors):
            check("posix_spawn_file_actions_adddup2", actions.address, descriptor, number)
        check("posix_spawn_file_actions_addchdir_np", actions.address, directory)
        pid = Buffer(4)
        argv, envp = _vector(arguments), _vector(environment)
        if about_to is not None:
            about_to()
        check("posix_spawn", pid.address, program, actions.address, attributes.address, address(argv), address(envp))
    finally:
        libc_call("posix_spawn_file_actions_destroy", actions.address)
    return int.from_bytes(pid.view, "little")
