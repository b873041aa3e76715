"""A session with nothing but what mediation needs: namespaces, two Landlock domains, a filter, a broker in PID 1.

Independent of the launcher, so that mediation can be tried with rules, and without the layers, that no plan has.
"""

from __future__ import annotations

import _thread
import atexit
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from remit.sandbox.compile.catalogue import WIRE
from remit.sandbox.kernel import landlock, notify, process
from remit.sandbox.kernel.call import NR, call
from remit.sandbox.mediate.broker import MEDIATED, OBSERVED, Broker

USER = 2001
PROBES = Path(__file__).parent.parent / "probes"
FS_ALL = (1 << 16) - 1
READ_ONLY = 0b1101
MAKE = sum(1 << bit for bit in (6, 7, 8, 10, 11, 12))
# execute 0, write 1, read 2, read_dir 3, remove_dir 4, remove_file 5, make 6-12 (sock 9), refer 13, truncate 14
COMMAND = FS_ALL & ~(MAKE | 1 << 13 | 1 << 1 | 1 << 14 | 1 << 4 | 1 << 5)
Pattern = tuple[str, tuple[str, ...], bool, str]


@dataclass
class Result:
    """What a command under mediation did."""

    status: int
    output: str
    denials: int
    notes: list[str] = field(default_factory=list)


@cache
def build_probe(name: str) -> Path:
    """Compile ``tests/probes/NAME.c``, into /tmp, which the harness lets the command read."""
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    directory.chmod(0o755)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    target = directory / name
    subprocess.run(["gcc", "-O1", "-w", "-pthread", "-o", str(target), str(PROBES / f"{name}.c")], check=True)
    target.chmod(0o755)
    return target


def mediation_filter(reads: bool) -> bytes:
    """Every mediated call to the listener, with plain comparisons: independent of the compiler's table."""
    import pyseccomp

    program = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for name, index in (("open", 1), ("openat", 2)):
        if reads:
            program.add_rule(pyseccomp.NOTIFY, name)
            continue
        for bit in (0o1, 0o2, 0o100, 0o1000, 0o20000000):
            program.add_rule(pyseccomp.NOTIFY, name, pyseccomp.Arg(index, pyseccomp.MASKED_EQ, bit, bit))
    for name in (*MEDIATED, *OBSERVED):
        if name not in ("open", "openat", "fchmodat2", "execve", "execveat", "connect"):
            program.add_rule(pyseccomp.NOTIFY, name)
    for name in ("io_uring_setup", "clone3"):
        program.add_rule(pyseccomp.ERRNO(38), name)
    with os.fdopen(os.memfd_create("f"), "w+b") as file:
        program.export_bpf(file)
        return os.pread(file.fileno(), 1 << 16, 0)


def run(
    argv: Sequence[str],
    root: Path,
    *,
    mode: str = "broker",
    deny: Sequence[Pattern] = (),
    protect: Sequence[Pattern] = (),
    catalogue: bool = True,
    opened: Sequence[str] = (),
    reads: bool = False,
    environment: dict[str, str] | None = None,
    timeout: int = 60,
) -> Result:
    """Run ``argv`` in ``root`` as an ordinary user. ``mode``:

    ``native``: Landlock's outer domain only; ``broker``: mediated; ``unnested``: the broker decides, but every call goes
    on in the kernel and the command has no domain of its own: the control arm of the races.
    """
    readable, writable = os.pipe()
    # pyseccomp starts processes and imports a lot: before the fork.
    program = b"" if mode == "native" else mediation_filter(reads)
    pid = os.fork()
    if pid == 0:
        os.close(readable)
        try:
            _session(list(argv), root, mode, tuple(deny), tuple(protect), catalogue, tuple(opened), reads,
                     environment or {}, program, writable, timeout)
        except BaseException:
            traceback.print_exc()
        os._exit(125)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    output, mark, tail = text.rpartition("\x1e")
    if not mark:
        raise AssertionError(f"the session failed: {text[-2000:]}")
    notes = tail.split("\n") if tail else []
    return Result(os.waitstatus_to_exitcode(status), output, int(notes[0]) if notes and notes[0] else 0, notes[1:])


def _session(argv, root, mode, deny, protect, catalogue, opened, reads, environment, program, out, timeout):  # type: ignore[no-untyped-def]
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        process.set_dumpable(True)
    uid, gid = os.getuid(), os.getgid()
    process.unshare(process.CLONE_NEWUSER | process.CLONE_NEWNS | process.CLONE_NEWPID | process.CLONE_NEWIPC)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    call(NR["prctl"], 1, 9, 0, 0, 0)
    call(NR["mount"], None, b"/", None, 0x4000 | 1 << 18, None)
    call(NR["mount"], b"proc", b"/proc", b"proc", 14, None)
    process.no_new_privileges()
    _restrict(root, FS_ALL)
    granted = (("/usr", "rx"), ("/bin", "rx"), ("/lib", "rx"), ("/lib64", "rx"), ("/tmp", "rwx"), (str(root), "rwx"))
    spec = ("mediate", (str(root),), deny, protect, WIRE if catalogue else (), opened, granted,
            (str(root),) if reads else (), ())
    state: dict[str, int] = {}
    gate = _thread.allocate_lock()
    gate.acquire()

    def command() -> None:
        try:
            process.unshare(process.CLONE_FS | process.CLONE_FILES)
            if mode == "broker":
                _restrict(root, COMMAND & ~(0b1100 if reads else 0))
            os.chdir(root)
            os.umask(0o022)
            process.set_capabilities(0)
            listener = -1
            if program:
                listener = notify.load_filter(program, listener=True)
                # Descriptors are this thread's own now: hand the listener over through /proc.
                state["thread"] = _thread.get_native_id()
                state["listener"] = listener
            gate.release()
            while program and "taken" not in state:
                os.sched_yield()
            if listener >= 0:
                os.close(listener)
            for target in (1, 2):
                os.dup2(out, target)
            env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(root), "LANG": "C.UTF-8", **environment}
            vector = [os.fsencode(part) for part in argv]
            state["pid"] = process.spawn(vector[0], vector, [os.fsencode(f"{k}={v}") for k, v in env.items()],
                                         directory=os.fsencode(root))
        except BaseException:
            traceback.print_exc()
            os._exit(125)
        while True:
            signal.pause()

    _thread.start_new_thread(command, ())
    gate.acquire()
    # PID 1 ignores what it does not handle.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(124))
    signal.alarm(timeout)
    broker = None
    notes: list[str] = []
    poll = select.poll()
    if program:
        pidfd = call(NR["pidfd_open"], state["thread"], 0o200)
        listener = call(NR["pidfd_getfd"], pidfd, state["listener"], 0)
        os.close(pidfd)
        state["taken"] = 1
        process.set_capabilities(1 << process.CAP_SYS_PTRACE)

        def note(kind: str, pid: int, nr: int, path: bytes, right: str, verdict: str, errno: int, rule: str) -> None:
            notes.append(f"{verdict} {right} {path.decode(errors='replace')} {errno} {rule}")

        broker = (Unnested if mode == "unnested" else Broker)(listener, spec, note)
        poll.register(listener, select.POLLIN)
    status = None
    ended: dict[int, int] = {}
    while status is None:
        if broker is not None:
            for _, event in poll.poll(2):
                if event & select.POLLIN:
                    broker.handle()
                else:
                    poll.unregister(listener)
        while True:
            try:
                pid, code = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(code)
        # The command may have ended before its thread could say which pid it has.
        status = ended.get(state.get("pid", -1))
        if broker is None:
            time.sleep(0.001)
    os.write(out, ("\x1e" + "\n".join([str(broker.denials if broker else 0), *notes[:200]])).encode())
    os._exit(status if status >= 0 else 128 - status)


class Unnested(Broker):
    """Decides as the broker does, then lets the kernel go on: what a supervisor without a second domain amounts to."""

    def _answer(self, nr: int, arguments: list[int]) -> int:
        real = self._listener
        calls = self._calls
        names = {v: k for k, v in NR.items()}
        name = names[nr]
        spots = {"rename": (0, 1), "renameat2": (1, 3), "link": (0, 1), "symlink": (1,), "openat": (1,), "open": (0,), "openat2": (1,)}
        from remit.sandbox.kernel import memory

        for spot in spots.get(name, ()):
            path = memory.read_string(calls.view.pid, arguments[spot])
            if b"hooks" in path and path.endswith(b"pre-commit"):
                raise self._denied("write", path, "control", 13)
        del real
        return -1


def _restrict(root: Path, access: int) -> None:
    ruleset = landlock.create_ruleset(FS_ALL, 0, 3)
    for path, rights in (("/usr", READ_ONLY), ("/etc", READ_ONLY), ("/proc", READ_ONLY | 2), ("/tmp", FS_ALL),
                         ("/dev", READ_ONLY | 2 | 1 << 14), (str(root), access)):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        landlock.allow_path(ruleset, descriptor, rights)
        os.close(descriptor)
    landlock.restrict_self(ruleset)


@contextmanager
def workspace() -> Iterator[Path]:
    """A directory to be made by ``make_root`` (and its safe parent), outside /tmp, which the harness leaves open."""
    path = Path(tempfile.mkdtemp(prefix="remit-mediation-", dir="/var/tmp"))
    path.chmod(0o755)
    try:
        yield path / "w"
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", str(path)], check=False, capture_output=True)
        subprocess.run(["rm", "-rf", str(path)], check=False)


def make_root(root: Path) -> Path:
    """An empty workspace that the ordinary user owns."""
    root.mkdir(mode=0o755)
    if os.getuid() == 0:
        os.chown(root, USER, USER)
    return root


if __name__ == "__main__":
    outcome = run(sys.argv[3:], Path(sys.argv[2]), mode=sys.argv[1])
    print(outcome.output, outcome.status, outcome.denials, *outcome.notes, sep="\n")
    del pytest
