"""Where and with what the benchmark runs: the directories, the environment, the ``remit`` that is measured."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import remit
from remit.cli.bench.measure import BenchError, Command
from remit.cli.fast import BUNDLE
from remit.sandbox.compile.seccomp import build_filter

PROFILE = "offline"
_numbers = itertools.count()


@dataclass(frozen=True)
class Setting:
    """``base`` is the temporary directory; everything else lies in it, but for the programs.

    ``caveats`` say what makes this run unlike an ordinary user's. ``tell`` shows people what is being measured.
    """

    base: str
    errors: str
    environment: dict[str, str]
    remit: str
    python: str
    bwrap: str | None
    filter: str
    caveats: tuple[str, ...]
    tell: Callable[[str], None]

    def directory(self, name: str) -> str:
        """A new directory in ``base``."""
        path = f"{self.base}/{name}"
        os.mkdir(path, 0o755)
        return path

    def aside(self, *paths: str) -> None:
        """Put what a run has made out of the next one's way. It goes with ``base``.

        Not removed: an ext4 without a journal searches past every inode that was freed in the last five minutes, and
        each run would pay for those before it.
        """
        gone = f"{self.base}/gone"
        os.makedirs(gone, exist_ok=True)
        for path in paths:
            if os.path.lexists(path):
                os.rename(path, f"{gone}/{next(_numbers)}")

    def program(self, name: str) -> str | None:
        """The absolute path of a program, as the timed commands would find it."""
        return shutil.which(name, path=self.environment["PATH"])

    @property
    def true(self) -> str:
        """The program that does nothing."""
        return self.program("true") or "/bin/true"

    def confined(self, workspace: str, *command: str, profile: str = PROFILE) -> tuple[str, ...]:
        """``remit run`` of a command."""
        return (self.remit, "run", "-p", profile, "-w", workspace, "--", *command)

    def bubblewrapped(self, workspace: str, *command: str) -> tuple[str, ...]:
        """bubblewrap with seccomp, as like an offline session as its options allow."""
        links = [word for name in ("bin", "sbin", "lib", "lib64") for word in ("--symlink", f"usr/{name}", f"/{name}")]
        tree = ("--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc", *links)
        own = ("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--bind", workspace, workspace)
        head = (self.bwrap or "/usr/bin/bwrap", "--unshare-all", "--die-with-parent", "--new-session")
        return (*head, *tree, *own, "--chdir", workspace, "--seccomp", "9", "--", *command)

    def command(self, workspace: str, *argv: str) -> Command:
        """A command in a workspace."""
        return Command(argv, workspace, self.environment)

    def wrapped(self, workspace: str, *argv: str) -> Command:
        """The same in bubblewrap."""
        return Command(self.bubblewrapped(workspace, *argv), workspace, self.environment, seccomp=self.filter)


def make(base: str, tell: Callable[[str], None]) -> Setting:
    """Look at this installation and its host. BenchError where there is no ``remit`` to measure."""
    path = os.environ.get("PATH", os.defpath)
    # The command that belongs to the code that runs: another one on PATH is another version.
    beside = f"{os.path.dirname(sys.executable)}/remit"
    command = beside if os.access(beside, os.X_OK) else shutil.which("remit", path=path)
    if command is None:
        raise BenchError(f"no remit beside {sys.executable}", hint="install it: pip install remit")
    # What is only this run's goes when the directory goes: a thousand records, the plans, the sockets.
    kept = {name: f"{base}/{name[4:].lower()}" for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR")}
    for directory in kept.values():
        os.mkdir(directory, 0o700)
    filter_file = f"{base}/seccomp.bpf"
    Path(filter_file).write_bytes(build_filter((), notify=False, brokered_reads=False, machine=platform.machine()))
    return Setting(
        base=base,
        errors=f"{base}/errors",
        environment={"HOME": os.path.expanduser("~"), "PATH": path, "LANG": "C.UTF-8", **kept},
        remit=command,
        python=shutil.which("python3", path="/usr/bin:/bin") or os.path.realpath(sys.executable),
        bwrap=shutil.which("bwrap", path=path),
        filter=filter_file,
        caveats=tuple(_caveats()),
        tell=tell,
    )


def _caveats() -> list[str]:
    found: list[str] = []
    if os.geteuid() == 0:
        found.append("run as root, who takes another way through remit and bubblewrap than an ordinary user")
    if not (remit.__file__ or "").endswith("-packages/remit/__init__.py"):
        found.append("an editable install, which looks at its own sources at each start")
    if not os.access(os.path.dirname(BUNDLE), os.W_OK):
        found.append(
            "the bundle of compiled modules is not this user's to make: it may be missing, or of older sources"
        )
    return found
