"""What the user's ``PATH`` really resolves to: the directories that its programs need to run, to read and execute only.

Tool managers spread a program over the home directory: a link in ``~/.local/bin`` to a virtual environment elsewhere,
whose interpreter is a link to a third place. Granting the home directory would be simple and would hand out every
secret in it, so this follows what is there and grants the roots it arrives at. What cannot be told from a person's own
directory is not granted: the program then fails with ENOENT, and ``why`` names the path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_ENTRIES = 4096
"""Entries looked at in one directory of ``PATH``; the rest is granted with the directory but its links not followed."""
MAX_LINKS = 2048
"""Links followed in all."""
MAX_CFG = 65536
"""Bytes read of a ``pyvenv.cfg``."""

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""What the floor of a profile grants anyway."""

_NEVER = frozenset(
    [
        "/",
        "/boot",
        "/dev",
        "/etc",
        "/home",
        "/lost+found",
        "/media",
        "/mnt",
        "/nix",
        "/opt",
        "/proc",
        "/root",
        "/run",
        "/snap",
        "/srv",
        "/sys",
        "/tmp",
        "/var",
        "/var/lib",
        "/var/tmp",
    ]
)
_SECRET = (
    ".aws",
    ".azure",
    ".config",
    ".docker",
    ".gnupg",
    ".kube",
    ".local/share/keyrings",
    ".local/share/remit",
    ".local/state",
    ".mozilla",
    ".password-store",
    ".ssh",
    ".thunderbird",
)
"""Below the home directory: neither these nor anything in them."""
_MIXED = (".cache", ".cargo", ".local", ".local/share", ".local/lib", ".npm", ".rustup", "go")
"""Below the home directory: not these as a whole, since programs lie in them beside credentials and caches."""


def toolchains(path_variable: str, home: str) -> tuple[str, ...]:
    """Paths to grant read and exec, sorted, none below another. ``home`` is the user's home directory.

    Absent, relative and system directories of ``path_variable`` give nothing. Nothing is executed; at most
    ``MAX_LINKS`` links are followed. Never raises for what it finds.
    """
    search = _Search(os.path.realpath(home), os.path.normpath(home))
    for entry in dict.fromkeys(path_variable.split(":")):
        if entry.startswith("/"):
            search.directory(os.path.normpath(entry))
    return search.result()


@dataclass(slots=True)
class _Search:
    home: str
    home_as_written: str
    found: dict[str, None] = field(default_factory=dict[str, None])
    links: int = 0
    prefixes_seen: set[str] = field(default_factory=set[str])

    def result(self) -> tuple[str, ...]:
        chosen: list[str] = []
        for path in sorted(self.found):
            if not any(below(path, other) for other in chosen):
                chosen.append(path)
        return tuple(chosen)

    def directory(self, named: str) -> None:
        """One directory of ``PATH``."""
        real = os.path.realpath(named)
        if _system(real) or not os.path.isdir(real):
            return
        if not self.grant(named, real):
            return
        self.around(real)
        for path in _entries(real):
            if os.path.islink(path):
                self.follow(path, real)

    def grant(self, named: str, real: str) -> bool:
        """Add a path by the name it was met under (its links are repeated inside), if it is fit to be granted."""
        if self.unfit(real) or self.unfit(named):
            return False
        self.found[named] = None
        if named != real:
            self.found[real] = None
        return True

    def unfit(self, path: str) -> bool:
        if path in _NEVER or os.path.dirname(path) == "/home":
            return True
        for home in (self.home, self.home_as_written):
            if home == "/":
                continue
            if below(home, path):
                return True
            if any(below(path, f"{home}/{name}") for name in _SECRET):
                return True
            if any(path == f"{home}/{name}" for name in _MIXED):
                return True
        return False

    def around(self, directory: str) -> None:
        """What the programs of a directory of programs need beside it."""
        parent, name = os.path.split(directory)
        if directory in self.prefixes_seen:
            return
        self.prefixes_seen.add(directory)
        if os.path.isfile(f"{parent}/pyvenv.cfg"):
            self.environment(parent)
        elif self.manages(parent, name):
            self.grant(parent, parent)
        if parent == f"{self.home}/.cargo" or os.path.lexists(f"{directory}/rustup"):
            # rustup's proxies start the toolchain that its settings name; ~/.cargo itself holds the registry's token.
            for part in ("toolchains", "settings.toml"):
                self.existing(f"{self.home}/.rustup/{part}")
        if parent == f"{self.home}/.local":
            # Scripts of "pip install --user" find their packages here.
            for path in _entries(f"{parent}/lib"):
                if os.path.basename(path).startswith("python"):
                    self.existing(path)

    @staticmethod
    def manages(parent: str, name: str) -> bool:
        """Whether a directory of programs called ``name`` stands for the whole of its parent."""
        if name == "shims":
            return True
        if name == ".bin":
            return os.path.basename(parent) == "node_modules"
        return name in ("bin", "condabin", "sbin") and _is_prefix(parent)

    def environment(self, root: str) -> None:
        """A virtual environment, and the installation that its interpreter comes from (PEP 405)."""
        if not self.grant(root, os.path.realpath(root)):
            return
        base = _base(f"{root}/pyvenv.cfg")
        if base:
            self.program_directory(os.path.normpath(base))
        for name in ("python", "python3"):
            if os.path.islink(f"{root}/bin/{name}"):
                self.follow(f"{root}/bin/{name}", f"{root}/bin")

    def program_directory(self, named: str) -> None:
        """The directory of an interpreter that something else names."""
        real = os.path.realpath(named)
        if not _system(real) and os.path.isdir(real) and self.grant(named, real):
            self.around(real)

    def follow(self, link: str, directory: str) -> None:
        """A link in ``directory``: each hop that leaves it by name, and the root of the tool it ends in."""
        hop = link
        for _ in range(40):
            self.links += 1
            if self.links > MAX_LINKS:
                return
            if not os.path.islink(hop):
                break
            hop = os.path.normpath(os.path.join(os.path.realpath(os.path.dirname(hop)), os.readlink(hop)))
            if not below(hop, directory) and os.path.exists(hop) and hop != os.path.realpath(hop):
                real = os.path.realpath(hop)
                if not _system(real) and not _system(hop) and not self.unfit(hop) and not self.unfit(real):
                    self.found[hop] = None
        end = os.path.realpath(link)
        if below(end, directory) or _system(end) or not os.path.exists(end):
            return
        self.tool(end)

    def tool(self, program: str) -> None:
        """The root that a program outside every directory of ``PATH`` needs."""
        parts = program.split("/")
        if "node_modules" in parts:
            # A package finds its dependencies beside itself, in the outermost node_modules.
            root = "/".join(parts[: parts.index("node_modules") + 1])
            if self.grant(root, root):
                return
        if os.path.isdir(program):
            self.grant(program, program)
            return
        parent = os.path.dirname(program)
        above = os.path.dirname(parent)
        if os.path.isfile(f"{above}/pyvenv.cfg"):
            self.environment(above)
            if not self.unfit(above):
                return
        if os.path.basename(parent) in ("bin", "sbin", "libexec") and self.grant(parent, parent):
            self.around(parent)
            return
        self.existing(program)

    def existing(self, path: str) -> None:
        if os.path.exists(path):
            self.grant(path, os.path.realpath(path))


def below(path: str, directory: str) -> bool:
    """``path`` is ``directory`` or lies in it, by name."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _system(path: str) -> bool:
    return any(below(path, directory) for directory in SYSTEM)


def _entries(directory: str) -> Iterator[str]:
    try:
        with os.scandir(directory) as entries:
            for count, entry in enumerate(entries):
                if count >= MAX_ENTRIES:
                    return
                yield entry.path
    except OSError:
        return


def _is_prefix(directory: str) -> bool:
    """An installation prefix, not somebody's project that has a ``bin``: libraries, one more sign, no repository."""

    def has(*names: str) -> bool:
        return any(os.path.lexists(f"{directory}/{name}") for name in names)

    return has("lib", "lib64") and has("include", "share", "libexec", "pkg", "conda-meta") and not has(".git")


def _base(cfg: str) -> str:
    """``home`` of a ``pyvenv.cfg``: the directory of the base interpreter, or empty."""
    try:
        with open(cfg, "rb") as file:
            text = file.read(MAX_CFG).decode("utf-8", "replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip().lower() == "home" and value.strip().startswith("/"):
            return value.strip()
    return ""
