"""Where and with what the benchmark runs: the directories, the environment, the ``remit`` and the anchors."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass

from tests.bench.measure import BenchError, Command

_FILTER = (
    "import platform, sys; from remit.sandbox.compile.seccomp import build_filter; "
    "sys.stdout.buffer.write(build_filter((), notify=False, brokered_reads=False, machine=platform.machine()))"
)
INSTALL = "install a wheel as this user: python3 -m venv V && V/bin/pip install WHEEL, and put V/bin first in PATH"


@dataclass(frozen=True)
class Setting:
    """``base`` is the temporary directory; everything else lies in it, but for the programs."""

    base: str
    errors: str
    environment: dict[str, str]
    remit: str
    version: str
    python: str
    bwrap: str | None
    filter: int

    def directory(self, name: str) -> str:
        """A new directory in ``base``."""
        path = f"{self.base}/{name}"
        os.mkdir(path)
        return path

    def program(self, name: str) -> str | None:
        """The absolute path of a program, as the timed commands would find it."""
        return shutil.which(name, path=self.environment["PATH"])

    def confined(self, workspace: str, *command: str) -> tuple[str, ...]:
        """``remit run`` of a command."""
        return (self.remit, "run", "-p", "offline", "-w", workspace, "--", *command)

    def bubblewrapped(self, workspace: str, *command: str) -> tuple[str, ...]:
        """bubblewrap with seccomp, as like an offline session as its options allow."""
        links = [word for name in ("bin", "sbin", "lib", "lib64") for word in ("--symlink", f"usr/{name}", f"/{name}")]
        tree = ("--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc", *links)
        own = ("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--bind", workspace, workspace)
        head = (self.bwrap or "/usr/bin/bwrap", "--unshare-all", "--die-with-parent", "--new-session")
        return (*head, *tree, *own, "--chdir", workspace, "--seccomp", "9", "--", *command)

    def command(self, workspace: str, *argv: str) -> Command:
        """A command in a workspace, that prepares nothing."""
        return Command(argv, workspace, self.environment)


def make(base: str, path: str) -> Setting:
    """Look at what is installed on the search path ``path``. BenchError where ``remit`` is not what users have."""
    if os.geteuid() == 0:
        raise BenchError("run this as an ordinary user: root takes another way through remit and bubblewrap")
    remit = shutil.which("remit", path=path)
    if remit is None:
        raise BenchError(f"no remit in PATH; {INSTALL}")
    remit = os.path.realpath(remit)
    # An ordinary user's own installation can keep its bundle of compiled modules; one that root made has to.
    if os.stat(remit).st_uid != os.geteuid():
        raise BenchError(f"{remit} belongs to somebody else; {INSTALL}")
    interpreter = f"{os.path.dirname(remit)}/python3"
    home = _output(interpreter, "-I", "-c", "import remit; print(remit.__file__)").decode().strip()
    if not home.endswith("-packages/remit/__init__.py"):
        raise BenchError(f"an editable install ({home}) checks its sources at each start; {INSTALL}")
    machine = platform.machine()
    filter_file = f"{base}/{machine}.bpf"
    with open(filter_file, "wb") as file:
        file.write(_output(interpreter, "-I", "-c", _FILTER))
    environment = {
        "HOME": os.path.expanduser("~"),
        "PATH": path,
        "LANG": "C.UTF-8",
        # The records of a thousand sessions are nobody's: they go when the directory goes.
        "XDG_STATE_HOME": f"{base}/state",
        "XDG_CACHE_HOME": f"{base}/cache",
    }
    python = shutil.which("python3", path="/usr/bin:/bin") or os.path.realpath(interpreter)
    return Setting(
        base=base,
        errors=f"{base}/errors",
        environment=environment,
        remit=remit,
        version=_output(remit, "--version").decode().split()[-1],
        python=python,
        bwrap=shutil.which("bwrap", path=path),
        filter=os.open(filter_file, os.O_RDONLY | os.O_CLOEXEC),
    )


def _output(*argv: str) -> bytes:
    done = subprocess.run(argv, capture_output=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(argv)[:200]}: {done.stderr.decode(errors='replace')[-600:].strip()}")
    return done.stdout
