"""The vocabulary of authority: immutable, symbolic, serialisable values.

An authority denotes a set over (axis, canonical path or endpoint, right). What is *allowed* is files and subtrees,
endpoints, names; ``deny`` and ``protect`` subtract and are the only places where patterns exist. Nothing here opens a
file, resolves a name or knows the kernel.

The values are plain frozen dataclasses. ``source`` fields say where a line came from (for ``explain`` and ``why``) and
never take part in comparison, hashing or digests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Right(StrEnum):
    """A right over a path. ``write`` and ``exec`` imply ``read`` (normal form spells it out)."""

    READ = "read"
    WRITE = "write"
    EXEC = "exec"


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """Where a line of an authority came from: a profile file and line, or the command line (``line`` 0)."""

    file: str
    line: int = 0
    key: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where} {self.key}".rstrip()


NOWHERE = Source("")


@dataclass(frozen=True, slots=True)
class PathRule:
    """Rights over one absolute, lexically normal path: a file, or a directory with everything below it."""

    path: str
    rights: frozenset[Right]
    optional: bool = False
    """The path may be absent at start (system directories of only some distributions): then it grants nothing."""
    source: Source = field(default=NOWHERE, compare=False)
    exec_source: Source = field(default=NOWHERE, compare=False)
    """Where ``exec`` stands, if not in the line of the other rights: neither of the two implies the other."""

    def where(self, right: Right) -> Source:
        """The line that grants a right."""
        return self.exec_source if right is Right.EXEC and self.exec_source != NOWHERE else self.source


@dataclass(frozen=True, slots=True, order=True)
class PathPattern:
    """A name taken away, with everything below it, whether it exists yet or not.

    ``anchor`` is an absolute, lexically normal directory. ``tail`` is one or more literal components. With
    ``any_depth`` the tail matches at any depth below the anchor (``anchor/**/a/b``), otherwise only directly
    (``anchor/a/b``). A literal path ``/x/y`` is ``PathPattern("/x", ("y",))``.
    """

    anchor: str
    tail: tuple[str, ...]
    any_depth: bool = False
    source: Source = field(default=NOWHERE, compare=False)

    def __str__(self) -> str:
        base = "" if self.anchor == "/" else self.anchor
        return f"{base}/{'**/' if self.any_depth else ''}{'/'.join(self.tail)}"


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """One network atom: the destination must match *every* part that is given.

    ``name`` is a canonical lower-case A-label host name; with ``wildcard`` it stands for every name one or more labels
    below it (``*.example.com``), and without a ``name`` for every name (``*``). ``network`` is a canonical CIDR
    (``10.1.0.0/16``, ``2001:db8::1/128``). At least one of the three is given. ``port`` 0 means any port.
    """

    name: str = ""
    wildcard: bool = False
    network: str = ""
    port: int = 0
    protocol: str = "tcp"
    source: Source = field(default=NOWHERE, compare=False)

    def __str__(self) -> str:
        host = ("*." if self.name else "*") + self.name if self.wildcard else self.name
        if self.network:
            host = f"{host}&{self.network}" if host else self.network
        if ":" in host:
            host = f"[{host}]"
        return f"{host}:{self.port or '*'}/{self.protocol}"


class AutoExec(StrEnum):
    """Invariant 5: whether files that something outside would execute may be written inside."""

    PROTECT = "protect"
    ALLOW = "allow"


LIMIT_NAMES = (
    "memory",
    "pids",
    "cpu",
    "cpu-time",
    "time",
    "files",
    "file-size",
    "tmp",
    "connections",
    "connection-time",
    "traffic",
)
"""Limit names. Units: ``memory``, ``file-size``, ``tmp``, ``traffic`` bytes; ``cpu-time``, ``time``, ``connection-time``
milliseconds; ``cpu`` thousandths of one CPU; ``pids``, ``files``, ``connections`` a count."""

SYSCALL_GROUPS = (
    "ptrace-any",
    "nested-userns",
    "keyring",
    "perf",
    "bpf",
    "personality",
    "io-uring",
    "userfaultfd",
    "numa",
)
"""Groups of system calls that the base filter refuses and ``--allow-syscalls`` or ``[syscalls] allow`` can grant."""

DEGRADABLE = ("namespaces", "network", "landlock", "seccomp", "mediation", "limits", "canary")
"""The closed, documented list of layers that can be given up by name (``[enforcement] degrade``, ``--degrade``)."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A set of (axis, object, right). Every collection is a set: see ``lattice.normal`` and ``lattice.extent``.

    ``environment`` maps a name to the value it is set to, or to ``None`` for "pass the caller's value".
    ``limits`` maps a name of ``LIMIT_NAMES`` to a maximum; an absent name is unlimited.
    ``publish``: ``ADDRESS:PORT:INNER``, a port of the host that leads to ``INNER`` inside (``parse_publish``).
    ``opened`` are catalogue names that an explicit grant opened (never a deny or protect).
    """

    paths: tuple[PathRule, ...] = ()
    deny: tuple[PathPattern, ...] = ()
    protect: tuple[PathPattern, ...] = ()
    auto_exec: AutoExec = AutoExec.PROTECT
    opened: tuple[str, ...] = ()
    connect: tuple[Endpoint, ...] = ()
    listen: tuple[int, ...] = ()
    publish: tuple[str, ...] = ()
    loopback: bool = True
    unix: tuple[str, ...] = ()
    syscalls: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    environment: tuple[tuple[str, str | None], ...] = ()
    limits: tuple[tuple[str, int], ...] = ()
    in_normal_form: bool = field(default=False, init=False, repr=False, compare=False)
    """``lattice.normal`` has made it: it need not be made again. ``replace`` forgets that."""
