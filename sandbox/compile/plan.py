"""The plan: the ordered list of kernel operations for an authority on this host.

Each operation describes itself in one line and has a *wire* form: a tuple of plain values, first its name. A plan's wire
form is what the cache stores and what the in-child stage (``remit.sandbox.launch.stage``) executes, operation by
operation, in order. Paths in a plan are symbolic; the stage opens them anew at every start and refuses to go on when
they are not what ``assumptions`` say. Nothing in this module touches the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

PLAN_FORMAT = 1

type_names = ("directory", "file", "device", "socket")


@dataclass(frozen=True, slots=True)
class Op:
    """One kernel operation. ``layer`` is the enforcement layer that it belongs to (see ``LAYERS``)."""

    name: ClassVar[str] = ""
    layer: ClassVar[str] = ""

    def describe(self) -> str:
        raise NotImplementedError

    def wire(self) -> tuple[object, ...]:
        return (self.name, *(getattr(self, f.name) for f in fields(self)))


LAYERS = ("namespaces", "landlock", "seccomp", "mediation", "limits", "environment")


@dataclass(frozen=True, slots=True)
class Unshare(Op):
    """``clone3(2)`` into new namespaces. ``kinds`` of user, mount, pid, ipc, uts, net, cgroup. Always first."""

    name: ClassVar[str] = "unshare"
    layer: ClassVar[str] = "namespaces"
    kinds: tuple[str, ...]

    def describe(self) -> str:
        return f"new namespaces: {', '.join(self.kinds)}"


@dataclass(frozen=True, slots=True)
class NewRoot(Op):
    """A tmpfs that becomes ``/``. Everything visible inside is put there by a later operation."""

    name: ClassVar[str] = "root"
    layer: ClassVar[str] = "namespaces"
    size: int

    def describe(self) -> str:
        return "empty root (tmpfs)"


@dataclass(frozen=True, slots=True)
class Directory(Op):
    """``mkdir`` in the new root, a plain directory on its tmpfs (parents are made by earlier operations)."""

    name: ClassVar[str] = "dir"
    layer: ClassVar[str] = "namespaces"
    path: str
    mode: int

    def describe(self) -> str:
        return f"directory {self.path} mode {self.mode:o}"


@dataclass(frozen=True, slots=True)
class Symlink(Op):
    name: ClassVar[str] = "link"
    layer: ClassVar[str] = "namespaces"
    path: str
    target: str

    def describe(self) -> str:
        return f"symlink {self.path} -> {self.target}"


@dataclass(frozen=True, slots=True)
class Bind(Op):
    """``open_tree(2)`` of ``source`` (host, canonical), ``mount_setattr(2)``, ``move_mount(2)`` onto ``target`` (inside).

    The stage opens ``source`` with ``openat2(RESOLVE_NO_SYMLINKS)``; for a target that lies in an earlier bind it checks
    that source and target are the same object. ``kind`` is ``directory``, ``file``, ``device`` or ``socket``. The stage makes the mount point
    when it lies on the root tmpfs. Always nosuid; ``no_dev`` unless a device.
    """

    name: ClassVar[str] = "bind"
    layer: ClassVar[str] = "namespaces"
    source: str
    target: str
    kind: str
    read_only: bool
    no_exec: bool
    no_dev: bool = True
    idmap: bool = False

    def describe(self) -> str:
        how = [w for w, on in (("ro", self.read_only), ("rw", not self.read_only), ("noexec", self.no_exec)) if on]
        return f"bind {self.source} at {self.target} ({', '.join(how)})"


@dataclass(frozen=True, slots=True)
class Copy(Op):
    """A snapshot of a small host file on the root tmpfs, taken at start (cheaper than a mount, and it cannot change)."""

    name: ClassVar[str] = "copy"
    layer: ClassVar[str] = "namespaces"
    source: str
    target: str

    def describe(self) -> str:
        return f"copy {self.source}"


@dataclass(frozen=True, slots=True)
class Tmpfs(Op):
    name: ClassVar[str] = "tmpfs"
    layer: ClassVar[str] = "namespaces"
    target: str
    size: int
    mode: int
    no_exec: bool

    def describe(self) -> str:
        return f"private {self.target} (tmpfs, {self.size >> 20} MiB{', noexec' if self.no_exec else ''})"


@dataclass(frozen=True, slots=True)
class Dev(Op):
    """A private ``/dev``: ``nodes`` bound from the host, ``shm`` of ``shm_size`` bytes, a new devpts, the usual links."""

    name: ClassVar[str] = "dev"
    layer: ClassVar[str] = "namespaces"
    nodes: tuple[str, ...]
    shm_size: int

    def describe(self) -> str:
        return f"private /dev: {', '.join(self.nodes)}, pts, shm"


@dataclass(frozen=True, slots=True)
class Proc(Op):
    """A proc of the session's PID namespace, ``/proc/sys`` read-only. ``fresh`` false: bind the outer one (masked hosts)."""

    name: ClassVar[str] = "proc"
    layer: ClassVar[str] = "namespaces"
    fresh: bool

    def describe(self) -> str:
        return "own /proc" if self.fresh else "host's /proc (the host masks /proc: a new one cannot be mounted)"


@dataclass(frozen=True, slots=True)
class Cover(Op):
    """Hide an existing denied ``path`` (inside) under an empty, read-only, mode 000 object: open and list give EACCES."""

    name: ClassVar[str] = "cover"
    layer: ClassVar[str] = "namespaces"
    path: str
    kind: str

    def describe(self) -> str:
        return f"deny {self.path}: covered"


@dataclass(frozen=True, slots=True)
class PivotRoot(Op):
    """``pivot_root(2)``, detach the host's tree, make the root tmpfs read-only, forbid nested user namespaces if asked."""

    name: ClassVar[str] = "pivot"
    layer: ClassVar[str] = "namespaces"
    forbid_user_namespaces: bool

    def describe(self) -> str:
        more = ", no user namespaces inside" if self.forbid_user_namespaces else ""
        return f"the host's tree is gone{more}"


@dataclass(frozen=True, slots=True)
class Landlock(Op):
    """One Landlock domain. ``domain`` is ``session`` (also binds the mediator) or ``command`` (nested in it).

    ``rules`` are (path inside, access mask). The masks hold only bits that the ABI has; ``handled_*`` are everything the ABI
    has, so that what no rule grants is denied. ``ports`` are (port, network access mask).
    """

    name: ClassVar[str] = "landlock"
    layer: ClassVar[str] = "landlock"
    domain: str
    handled_fs: int
    handled_net: int
    scoped: int
    rules: tuple[tuple[str, int], ...]
    ports: tuple[tuple[int, int], ...] = ()

    def describe(self) -> str:
        return f"landlock {self.domain}: {len(self.rules)} paths, {len(self.ports)} ports; all else denied"


@dataclass(frozen=True, slots=True)
class Privileges(Op):
    """no_new_privs, empty capability and bounding sets, non-dumpable until exec. The stage keeps CAP_SYS_PTRACE of the
    session's own user namespace for the mediator (it reads the memory of the processes whose calls it performs)."""

    name: ClassVar[str] = "privileges"
    layer: ClassVar[str] = "seccomp"

    def describe(self) -> str:
        return "no_new_privs; no capabilities"


@dataclass(frozen=True, slots=True)
class Seccomp(Op):
    """Load a BPF program (``struct sock_filter`` array in native order). ``notify``: with a user-notification listener."""

    name: ClassVar[str] = "seccomp"
    layer: ClassVar[str] = "seccomp"
    program: bytes
    notify: bool

    def describe(self) -> str:
        return f"seccomp filter, {len(self.program) // 8} instructions{', with listener' if self.notify else ''}"


@dataclass(frozen=True, slots=True)
class Mediate(Op):
    """What the mediator on the session's listener enforces. Paths are as seen inside, canonical.

    ``roots``: writable subtrees in which the command can neither create, write, truncate, remove nor rename by itself
    (the ``command`` Landlock domain lacks those rights there); the mediator performs those calls after deciding.
    ``deny`` and ``protect``: (anchor, tail components, any depth, rule text). ``catalogue``: the auto-exec names
    (``compile.catalogue.WIRE``), empty when opened; ``opened``: catalogue names that a grant opened, by literal path.
    ``exempt``: (path, rights) of everything granted, for the verdict of observed calls.
    """

    name: ClassVar[str] = "mediate"
    layer: ClassVar[str] = "mediation"
    roots: tuple[str, ...]
    deny: tuple[tuple[str, tuple[str, ...], bool, str], ...]
    protect: tuple[tuple[str, tuple[str, ...], bool, str], ...]
    catalogue: tuple[tuple[str, ...], ...]
    opened: tuple[str, ...]
    granted: tuple[tuple[str, str], ...]
    """(path, letters of ``r``, ``w``, ``x``): everything granted, for the verdict on observed calls."""

    def describe(self) -> str:
        roots = ", ".join(self.roots) or "nothing writable"
        cat = "; auto-executed files" if self.catalogue else ""
        return f"mediate creation and writing in {roots}: {len(self.deny)} deny, {len(self.protect)} protect{cat}"


@dataclass(frozen=True, slots=True)
class Limit(Op):
    """One limit. ``mechanism``: ``cgroup``, ``rlimit`` (per process), ``nproc`` (sum, by user namespace), ``tmpfs``,
    ``timer`` (the supervisor's clock), ``watch`` (the supervisor samples), ``none`` (degraded)."""

    name: ClassVar[str] = "limit"
    layer: ClassVar[str] = "limits"
    what: str
    value: int
    mechanism: str

    def describe(self) -> str:
        return f"limit {self.what} = {self.value} ({self.mechanism})"


@dataclass(frozen=True, slots=True)
class Environment(Op):
    """The command's whole environment: ``passed`` names from the caller, then ``set_`` values."""

    name: ClassVar[str] = "environment"
    layer: ClassVar[str] = "environment"
    passed: tuple[str, ...]
    set_: tuple[tuple[str, str], ...]

    def describe(self) -> str:
        return f"environment: {', '.join((*self.passed, *(n for n, _ in self.set_)))}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered operations, with what they assume about names: (path, kind, canonical path, symlinks crossed).

    ``digest`` is BLAKE2b-256 (hex) over the canonical JSON of the operations.
    """

    operations: tuple[Op, ...]
    assumptions: tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...]
    workspace: str
    degraded: tuple[str, ...] = ()

    def wire(self) -> tuple[object, ...]:
        """Plain nested tuples, for ``marshal``: (format, digest, workspace, degraded, assumptions, operations)."""
        operations = tuple(op.wire() for op in self.operations)
        return (PLAN_FORMAT, self.digest, self.workspace, self.degraded, self.assumptions, operations)

    @property
    def digest(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a lowering: an axis, an object and right, and what the plan makes of it, with the layers that hold it."""

    axis: str
    object: str
    right: str
    note: str = ""
    layers: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Lowering:
    """What the plan says of itself: granted, enforced, slack (enforced wider), deficit (narrower), unenforceable."""

    granted: tuple[Line, ...] = ()
    denied: tuple[Line, ...] = ()
    slack: tuple[Line, ...] = ()
    deficit: tuple[Line, ...] = ()
    unenforceable: tuple[Line, ...] = ()
    notes: tuple[str, ...] = ()
