"""Runs the installed ``remit`` command as a user would, in a world of its own, and asks what the kernel lets it do.

Nothing here imports Remit: what is tested is the command, from outside.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PYTHON = "/usr/bin/python3"
PATH = "/usr/local/bin:/usr/bin:/bin"
TIMEOUT = 300.0
"""Seconds until a run that hangs is killed and its test fails. Not a synchronisation."""

PRELUDE = """
import array, ctypes, errno, fcntl, mmap, os, signal, socket, stat, struct, sys, termios, time
libc = ctypes.CDLL(None, use_errno=True)
def call(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result
def syscall(number, *arguments):
    return call(libc.syscall(ctypes.c_long(number), *arguments))
def write(path, data="x", flags=os.O_CREAT | os.O_TRUNC):
    fd = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        os.write(fd, data.encode())
    finally:
        os.close(fd)
def read(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)
def attempt(action):
    try:
        action()
    except socket.gaierror:
        return "EAI"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "ok"
"""


@dataclass(frozen=True)
class Result:
    """How a command ended: exit status (negative: killed by that signal) and what it wrote, as text."""

    status: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        """Standard output by lines."""
        return self.stdout.splitlines()


@dataclass(frozen=True)
class World:
    """A user's corner of a host: a home, a workspace, and the command, with an environment that holds nothing else."""

    command: str
    base: Path
    user: str = ""
    """Run as this user with setpriv(1) rather than as who runs the tests."""
    profile: str = "offline"
    prefix: tuple[str, ...] = ()
    """What every command is run by: a program that enters namespaces first."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def home(self) -> Path:
        """The user's home directory."""
        return self.base / "home"

    @property
    def workspace(self) -> Path:
        """The directory that is worked on."""
        return self.base / "project"

    @property
    def state(self) -> Path:
        """Where records of sessions are."""
        return self.home / ".local/state/remit"

    @property
    def cache(self) -> Path:
        """Where compiled plans are."""
        return self.home / ".cache/remit"

    def env(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of the command."""
        return {
            "PATH": PATH,
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "TERM": "xterm",
            "XDG_RUNTIME_DIR": str(self.base / "runtime"),
            **self.environment,
            **(extra or {}),
        }

    def argv(self, *argv: str) -> list[str]:
        """``remit`` with these words, as the world's user."""
        become: list[str] = []
        if self.user:
            become = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", "--"]
        return [*self.prefix, *become, self.command, *argv]

    def run_argv(self, command: Sequence[str], options: Sequence[str] = ()) -> list[str]:
        """``remit run`` in the workspace, with these options, for this command."""
        return self.argv("run", "-p", self.profile, "-w", str(self.workspace), *options, "--", *command)

    def remit(
        self,
        *argv: str,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = TIMEOUT,
        pass_fds: Sequence[int] = (),
    ) -> Result:
        """Run ``remit ARGV...`` to its end."""
        return finished(
            self.argv(*argv),
            stdin=stdin,
            env=self.env(env),
            cwd=cwd or self.workspace,
            timeout=timeout,
            pass_fds=pass_fds,
        )

    def run(
        self,
        *command: str,
        options: Sequence[str] = (),
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = TIMEOUT,
        pass_fds: Sequence[int] = (),
    ) -> Result:
        """``remit run -p PROFILE -w WORKSPACE OPTIONS -- COMMAND``, to its end."""
        return finished(
            self.run_argv(command, options),
            stdin=stdin,
            env=self.env(env),
            cwd=cwd or self.workspace,
            timeout=timeout,
            pass_fds=pass_fds,
        )

    def shell(self, script: str, *options: str, env: Mapping[str, str] | None = None) -> Result:
        """Run a shell script inside."""
        return self.run("sh", "-c", script, options=options, env=env)

    def python(self, code: str, *options: str, env: Mapping[str, str] | None = None) -> Result:
        """Run Python code inside, after ``PRELUDE``."""
        return self.run(PYTHON, "-I", "-S", "-c", PRELUDE + textwrap.dedent(code), options=options, env=env)

    def probe(self, action: str, *options: str, before: str = "") -> str:
        """The name of the error with which one action (a Python expression) fails inside, or ``"ok"``."""
        return self.probes({"it": action}, *options, before=before)["it"]

    def probes(self, actions: Mapping[str, str], *options: str, before: str = "") -> dict[str, str]:
        """By name: how each action ended, all in one session, in order."""
        return parsed(self.python(_attempts(actions, before), *options))

    def outside(self, action: str, before: str = "") -> str:
        """The same as ``probe``, without Remit: the control that shows that nothing else denies it."""
        return self.outsides({"it": action}, before=before)["it"]

    def outsides(self, actions: Mapping[str, str], before: str = "") -> dict[str, str]:
        """The same as ``probes``, without Remit."""
        code = PRELUDE + _attempts(actions, before)
        return parsed(finished([*self.prefix, PYTHON, "-I", "-S", "-c", code], env=self.env(), cwd=self.workspace))

    @contextmanager
    def start(
        self,
        *command: str,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Generator[subprocess.Popen[str], None, None]:
        """Start a session and leave it running, its standard descriptors pipes. Whatever is left of it is killed."""
        with subprocess.Popen(
            self.run_argv(command, options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env(env),
            cwd=self.workspace,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def records(self) -> list[Path]:
        """The records of sessions, oldest first."""
        return sorted((self.state / "sessions").iterdir(), key=lambda path: path.stat().st_mtime_ns)

    def give(self, path: Path) -> Path:
        """Make a path the world's user's."""
        if self.user:
            identity = int(subprocess.run(["id", "-u", self.user], capture_output=True, text=True, check=True).stdout)
            os.chown(path, identity, identity)
        return path


def _attempts(actions: Mapping[str, str], before: str) -> str:
    body = [textwrap.dedent(before), "results = {}"]
    body += [f"results[{name!r}] = attempt(lambda: {action})" for name, action in actions.items()]
    return "\n".join([*body, "import json", "print(json.dumps(results))"])


def parsed(result: Result) -> dict[str, str]:
    """The results of probes, from the program that tried them."""
    assert result.status == 0, result
    # What a probe started may speak after it.
    answer: dict[str, str] = json.loads(next(line for line in reversed(result.lines) if line.startswith("{")))
    return answer


def finished(
    argv: Sequence[str],
    *,
    stdin: str = "",
    env: Mapping[str, str],
    cwd: Path,
    timeout: float = TIMEOUT,
    pass_fds: Sequence[int] = (),
) -> Result:
    """Run a program to its end."""
    done = subprocess.run(
        argv,
        input=stdin.encode(),
        capture_output=True,
        env=env,
        cwd=cwd,
        timeout=timeout,
        check=False,
        pass_fds=pass_fds,
    )
    return Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


# --- terminals -----------------------------------------------------------------------------------------------------


class Terminal:
    """A program on a pseudo-terminal of its own, driven by what it prints: read until expected, never by waiting."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, size: tuple[int, int] = (24, 80)
    ) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(cwd)
                _resize(0, *size)  # before anybody looks
                os.execvpe(argv[0], list(argv), dict(env))
            finally:
                os._exit(120)
        self.output = ""

    def resize(self, rows: int, columns: int) -> None:
        """Change the window's size, as a terminal emulator does."""
        _resize(self.master, rows, columns)

    def send(self, keys: str) -> None:
        """Press keys."""
        os.write(self.master, keys.encode())

    def expect(self, pattern: str, timeout: float = TIMEOUT) -> re.Match[str]:
        """Read until ``pattern`` has appeared in what was not yet consumed, and consume it."""
        deadline = time.monotonic() + timeout
        while True:
            found = re.search(pattern, self.output)
            if found:
                self.output = self.output[found.end() :]
                return found
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"{pattern!r} never appeared; what did: {self.output!r}")

    def _read(self, seconds: float) -> bool:
        if seconds <= 0 or not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError as error:
            if error.errno == errno.EIO:
                return False
            raise
        self.output += data.decode(errors="replace")
        return bool(data)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Read to the end and return the exit status (negative: the signal that ended it)."""
        deadline = time.monotonic() + timeout
        while self._read(deadline - time.monotonic()):
            pass
        assert ended(self.pid, max(0.0, deadline - time.monotonic())), (
            f"still running after {timeout} s: {self.output!r}"
        )
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End what still runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.master)


def _resize(descriptor: int, rows: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextmanager
def terminal(world: World, *command: str, options: Sequence[str] = ()) -> Generator[Terminal, None, None]:
    """A session on a terminal."""
    opened = Terminal(world.run_argv(command, options), world.env(), world.workspace)
    try:
        yield opened
    finally:
        opened.close()


# --- processes, from outside ---------------------------------------------------------------------------------------


def ended(pid: int, seconds: float = TIMEOUT) -> bool:
    """Whether a process has ended, waiting at most so long for it."""
    try:
        opened = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return all_ended([opened], seconds)
    finally:
        os.close(opened)


def all_ended(pidfds: Sequence[int], seconds: float = TIMEOUT) -> bool:
    """Whether every process has ended, waiting at most so long for all of them."""
    deadline = time.monotonic() + seconds
    waiting = select.poll()
    for descriptor in pidfds:
        waiting.register(descriptor, select.POLLIN)
    left = set(pidfds)
    while left:
        ready = waiting.poll(max(0, int((deadline - time.monotonic()) * 1000)))
        if not ready:
            return False
        for descriptor, _ in ready:
            waiting.unregister(descriptor)
            left.discard(descriptor)
    return True


def descendants(pid: int) -> list[int]:
    """Every process below ``pid``, by the kernel's own list of children."""
    found: list[int] = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return found
    for task in tasks:
        try:
            children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in children:
            found += [int(child), *descendants(int(child))]
    return found


def first_line(process: subprocess.Popen[str]) -> str:
    """The next line that a started session prints."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, (process.wait(), process.stderr.read() if process.stderr else "")
    return line.rstrip("\n")


def libc_python(code: str) -> list[str]:
    """The argument vector of a Python program with the probes' helpers."""
    return [sys.executable if not os.path.exists(PYTHON) else PYTHON, "-I", "-S", "-c", PRELUDE + textwrap.dedent(code)]
