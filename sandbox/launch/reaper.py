"""A call's PID 1: a program of 400 bytes, so that the command is PID 2 and has normal signals, and orphans are reaped.

A command that is PID 1 of its namespace ignores every signal whose action is the default one. PID 1 of a call mounts the
call's own /proc (only a process inside a PID namespace can), gives up its capability, lets the kernel reap what it adopts
(SIGCHLD ignored, ``wait(2)``), says that it is ready, and then reads its standard input: when the last writer of that pipe
closes it, it ends, and the kernel ends every process of the call with it. A forked interpreter would do the same at ten
times the price; it is what machines without code here, or with ``vm.memfd_noexec``, use.

Per machine, in machine code: mount("proc", "/proc", "proc", NOSUID|NODEV|NOEXEC); mount("/proc/sys", same, BIND);
mount(NULL, "/proc/sys", REMOUNT|BIND|RDONLY|...); capset(nothing); rt_sigaction(SIGCHLD, SIG_IGN); write(1, "/", 1);
close_range(1, ~0); read(0) until it gives no byte; exit_group(0). Any failure before the write: exit_group(1).
``tests/unit/test_reaper.py`` takes it apart.
"""

from __future__ import annotations

import posix

from remit.sandbox.kernel import files, mount, process
from remit.sandbox.kernel.call import MACHINE
from remit.sandbox.kernel.spawn import spawn

CODE = {
    "x86_64": bytes.fromhex(
        "b8a5000000488d3de4000000488d35e20000004889fa41ba0e0000004531c00f0585c00f88bb000000b8a5000000488d3dc6"
        "0000004889fe31d241ba001000004531c00f0585c00f8897000000b8a500000031ff488d35a000000031d241ba2f10000045"
        "31c00f0585c07878b87e000000488d3d90000000488d35990000000f0585c0785fb80d000000bf11000000488d357a000000"
        "31d241ba080000000f05b801000000bf01000000488d3544000000ba010000000f05b8b4010000bf01000000beffffffff31"
        "d20f0531c031ff488d7424f8ba010000000f0583f8fc74eb31ffeb05bf01000000b8e70000000f0570726f63002f70726f63"
        "002f70726f632f737973000f1f00220508200000000001000000000000000000000000000000000000000000000000000000"
        "000000000000000000000000"
    ),
    "aarch64": bytes.fromhex(
        "2007001021070030e20300aac30180d2e4031faa080580d2010000d4e005003560060070e10300aae2031faa030082d2e403"
        "1faa080580d2010000d4e0040035e0031faa41050070e2031faae30582d2e4031faa080580d2010000d4e003003500050010"
        "61050010680b80d2010000d440030035200280d281040010e2031faa030180d2c81080d2010000d4200080d2c10200302200"
        "80d2080880d2010000d4200080d201008012e2031faa883680d2010000d4e0031faae14300d1220080d2e80780d2010000d4"
        "1f10003140ffff54e0031faa02000014200080d2c80b80d2010000d470726f63002f70726f63002f70726f632f7379730000"
        "00001f2003d52205082000000000010000000000000000000000000000000000000000000000000000000000000000000000"
        "00000000"
    ),
}
_ELF_MACHINE = {"x86_64": 62, "aarch64": 183}
_BASE = 0x400000
_HEADERS = 64 + 56
NAME = b"remit-call"
SIGCHLD = 17


def elf(machine: str) -> bytes:
    """A static executable: an ELF header, one program header, the code (``elf(5)``)."""
    code = CODE[machine]
    size = _HEADERS + len(code)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = identity + _fields(
        (2, 2), (_ELF_MACHINE[machine], 2), (1, 4), (_BASE + _HEADERS, 8), (64, 8), (0, 8), (0, 4)
    )
    header += _fields((64, 2), (56, 2), (1, 2), (0, 2), (0, 2), (0, 2))
    segment = _fields((1, 4), (5, 4), (0, 8), (_BASE, 8), (_BASE, 8), (size, 8), (size, 8), (4096, 8))
    return header + segment + code


def _fields(*fields: tuple[int, int]) -> bytes:
    return b"".join([value.to_bytes(size, "little") for value, size in fields])


def program() -> bytes:
    """A path under which this process can execute it, or empty where a fork has to do."""
    if MACHINE not in CODE:
        return b""
    descriptor = posix.memfd_create("remit-call", posix.MFD_CLOEXEC)
    posix.write(descriptor, elf(MACHINE))
    # A read-only descriptor, or executing it is ETXTBSY.
    path = b"/proc/self/fd/%d" % descriptor
    reader = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    posix.close(descriptor)
    path = b"/proc/self/fd/%d" % reader
    return path if posix.access(path, posix.X_OK) else b""


def start(path: bytes, life: int, ready: int) -> int:
    """Start it in the PID namespace that this thread's children are in; ``life`` and ``ready`` become 0 and 1."""
    if path:
        return spawn(path, [NAME], [], directory=b"/", descriptors=(life, ready, ready))
    # Not clone3, which gives the interpreter up while it runs: in the child, the thread that has it then does not exist.
    child = posix.fork()
    if child == 0:
        _fork(life, ready)
    return child


def _fork(life: int, ready: int) -> None:
    try:
        quiet = mount.ATTR_NOSUID | mount.ATTR_NODEV | mount.ATTR_NOEXEC
        mount.attach_over(mount.new_filesystem(b"proc", (), quiet), b"/proc")
        tree = posix.open("/proc/sys", files.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        copy = mount.clone_tree(tree)
        mount.set_attributes(copy, mount.ATTR_RDONLY)
        mount.attach(copy, tree)
        process.set_capabilities(0)
        process.ignore_signal(SIGCHLD)
        posix.dup2(life, 0)
        posix.write(ready, b"/")
        process.close_range(1, 0xFFFFFFFF)
        while posix.read(0, 1):
            pass
    finally:
        process.leave(0)
