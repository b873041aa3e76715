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
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EACCES
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from remit.sandbox.compile.catalogue import WIRE
from remit.sandbox.compile.seccomp import build_filter
from remit.sandbox.compile.syscalls import refused
from remit.sandbox.events.action import FIELDS
from remit.sandbox.kernel import landlock, memory, mount, notify, process
from remit.sandbox.kernel.call import MACHINE, NR, call
from remit.sandbox.kernel.placement import Placement
from remit.sandbox.kernel.spawn import spawn
from remit.sandbox.mediate.broker import Broker, Source
from remit.sandbox.mediate.calls import PROCEED

USER = 2001
_MS_REC, _MS_PRIVATE, _MS_NOSUID_NODEV_NOEXEC, _PIDFD_THREAD = 0x4000, 1 << 18, 14, 0o200
READ_FILE, READ_DIR = 1 << 2, 1 << 3
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
    notes: list[str] = field(default_factory=list[str])
    answered: int = 0
    """Calls that the fast path answered."""


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


@dataclass(frozen=True)
class Setup:
    """What one session is made of."""

    argv: tuple[str, ...]
    root: Path
    mode: str
    deny: tuple[Pattern, ...]
    protect: tuple[Pattern, ...]
    catalogue: bool
    opened: tuple[str, ...]
    reads: bool
    environment: dict[str, str]
    timeout: int
    program: bytes

    def spec(self) -> tuple[object, ...]:
        """The wire form of ``compile.plan.Mediate``."""
        root = str(self.root)
        granted = (("/usr", "rx"), ("/bin", "rx"), ("/lib", "rx"), ("/lib64", "rx"), ("/tmp", "rwx"), (root, "rwx"))
        reads = (root,) if self.reads else ()
        names = WIRE if self.catalogue else ()
        return ("mediate", (root,), self.deny, self.protect, names, self.opened, granted, reads, refused())


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
    timeout: int = 300,
) -> Result:
    """Run ``argv`` in ``root`` as an ordinary user. ``mode``:

    ``native``: Landlock's outer domain only; ``broker``: mediated; ``unnested``: the broker decides, but every call
    goes on in the kernel and the command has no domain of its own: the control arm of the races.
    """
    readable, writable = os.pipe()
    # libseccomp's bindings start processes: before the fork.
    mediated = mode != "native"
    program = build_filter((), notify=True, brokered_reads=reads, machine=MACHINE) if mediated else b""
    setup = Setup(
        tuple(argv),
        root,
        mode,
        tuple(deny),
        tuple(protect),
        catalogue,
        tuple(opened),
        reads,
        environment or {},
        timeout,
        program,
    )
    pid = os.fork()
    if pid == 0:
        os.close(readable)
        try:
            _session(setup, writable)
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
    denials, answered, *notes = tail.split("\n")
    return Result(os.waitstatus_to_exitcode(status), output, int(denials), notes, int(answered))


def _session(setup: Setup, out: int) -> NoReturn:
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
        _, code = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(code) & 0xFF)
    process.die_with_parent()
    call(NR["mount"], None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    call(NR["mount"], b"proc", b"/proc", b"proc", _MS_NOSUID_NODEV_NOEXEC, None)
    _pin_parent(Path(os.fsdecode(setup.root)))
    process.no_new_privileges()
    _restrict(setup.root, FS_ALL)
    state: dict[str, int] = {}
    gate = _thread.allocate_lock()
    gate.acquire()
    _thread.start_new_thread(_command, (setup, out, state, gate))
    gate.acquire()

    def too_late(number: int, frame: object) -> None:
        os._exit(124)

    # PID 1 ignores signals that it does not handle.
    signal.signal(signal.SIGALRM, too_late)
    signal.alarm(setup.timeout)
    broker = None
    source = Source()
    notes: list[str] = []
    poll = select.poll()
    if setup.program:
        pidfd = call(NR["pidfd_open"], state["thread"], _PIDFD_THREAD)
        listener = call(NR["pidfd_getfd"], pidfd, state["listener"], 0)
        os.close(pidfd)
        state["taken"] = 1
        process.set_capabilities(1 << process.CAP_SYS_PTRACE)

        def note(_: Source, *action: Any) -> None:
            found = dict(zip(FIELDS, action, strict=True))
            if found["verdict"] in ("denied", "error"):
                path = found["object"].decode(errors="replace")
                notes.append(f"{found['verdict']} {found['right']} {path} {found['errno']} {found['rule']}")

        broker = (Unnested if setup.mode == "unnested" else Broker)(setup.spec(), note)
        source.attach(listener, Placement())
        poll.register(listener, select.POLLIN)
    status = None
    ended: dict[int, int] = {}
    while status is None:
        for descriptor, event in poll.poll(2):
            if broker is not None and event & select.POLLIN:
                broker.handle(source)
            else:
                poll.unregister(descriptor)
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
    os.write(
        out,
        (
            "\x1e" + "\n".join([str(source.denials), str(broker.shortcut.answered if broker else 0), *notes[:200]])
        ).encode(),
    )
    os._exit(status if status >= 0 else 128 - status)


def _pin_parent(root: Path) -> None:
    """Where this user owns what holds ``root``, random calls on ``..`` must not change it: natively nothing forbids that."""
    if root.parent.stat().st_uid != os.getuid():
        return
    outer, inner = os.open(root.parent, os.O_PATH), os.open(root, os.O_PATH)
    fixed, free = mount.clone_tree(outer), mount.clone_tree(inner)
    mount.set_attributes(fixed, mount.ATTR_RDONLY)
    mount.attach_over(fixed, os.fsencode(root.parent))
    mount.attach_over(free, os.fsencode(root))
    for descriptor in (outer, inner, fixed, free):
        os.close(descriptor)


def _command(setup: Setup, out: int, state: dict[str, int], gate: _thread.LockType) -> None:
    """The second thread: nests itself in the inner domain, loads the filter, spawns."""
    try:
        process.unshare(process.CLONE_FS | process.CLONE_FILES)
        if setup.mode == "broker":
            _restrict(setup.root, COMMAND & ~(READ_FILE | READ_DIR) if setup.reads else COMMAND)
        os.chdir(setup.root)
        os.umask(0o022)
        process.set_capabilities(0)
        listener = -1
        if setup.program:
            listener = notify.load_filter(setup.program, listener=True)
            # Descriptors are this thread's own now: the other one takes the listener by pidfd.
            state["thread"] = _thread.get_native_id()
            state["listener"] = listener
        gate.release()
        while setup.program and "taken" not in state:
            os.sched_yield()
        if listener >= 0:
            os.close(listener)
        for target in (1, 2):
            os.dup2(out, target)
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(setup.root),
            "LANG": "C.UTF-8",
            **setup.environment,
        }
        vector = [os.fsencode(part) for part in setup.argv]
        variables = [os.fsencode(f"{name}={value}") for name, value in environment.items()]
        state["pid"] = spawn(vector[0], vector, variables, directory=os.fsencode(setup.root))
    except BaseException:
        traceback.print_exc()
        os._exit(125)
    while True:
        signal.pause()


class Unnested(Broker):
    """Decides as a broker does, then lets the kernel go on: what a supervisor without a second domain amounts to."""

    _PATHS: ClassVar[dict[str, int]] = {"rename": 1, "link": 1, "symlink": 1, "openat": 1, "open": 0, "openat2": 1}

    def _answer(self, nr: int, arguments: list[int]) -> int:
        for name, position in self._PATHS.items():
            if NR.get(name) == nr and b"hooks" in memory.read_string(self.calls.view.pid, arguments[position]):
                raise self._denied("write", b"", "control", EACCES)
        return PROCEED


def _restrict(root: Path, access: int) -> None:
    ruleset = landlock.create_ruleset(FS_ALL, 0, 3)
    for path, rights in (
        ("/usr", READ_ONLY),
        ("/etc", READ_ONLY),
        ("/proc", READ_ONLY | 2),
        ("/tmp", FS_ALL),
        ("/dev", READ_ONLY | 2 | 1 << 14),
        (str(root), access),
    ):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        landlock.allow_path(ruleset, descriptor, rights)
        os.close(descriptor)
    landlock.restrict_self(ruleset)


@contextmanager
def workspace() -> Generator[Path]:
    """A directory to be made by ``make_root`` (and its safe parent), outside /tmp, which the harness leaves open."""
    path = Path(tempfile.mkdtemp(prefix="remit-mediation-", dir=os.environ.get("REMIT_TEST_ROOT", "/var/tmp")))
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
