"""The plan: the ordered list of kernel operations for an authority on this host.

Each operation describes itself in one line and has a *wire* form: a tuple of plain values, first its name. A plan's
wire form is what the cache stores and what the in-child stage (``remit.sandbox.launch.stage``) executes, operation by
operation, in order. Paths in a plan are symbolic; the stage opens them anew at every start and refuses to go on when
they are not what ``assumptions`` say. Nothing in this module touches the kernel.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import blake2b
from typing import Any, ClassVar, TypeAlias, cast

PLAN_FORMAT = 1

Assumption: TypeAlias = tuple[str, str, str, tuple[tuple[str, str], ...]]
"""(path as granted, kind, canonical path, symbolic links crossed)."""

Wire: TypeAlias = tuple[int, str, str, tuple[str, ...], tuple[Assumption, ...], tuple[tuple[object, ...], ...]]
"""(format, digest, workspace, degraded, assumptions, operations)."""


def _plain(value: object) -> object:
    """``value`` as JSON has it: tuples become lists, bytes (a program, which nobody reads) their digest and length."""
    if isinstance(value, bytes):
        return {"blake2b": blake2b(value, digest_size=32).hexdigest(), "length": len(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in cast("tuple[object, ...]", value)]
    return value


def canonical_json(value: object) -> str:
    """The one spelling that digests are taken over: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


@dataclass(frozen=True, slots=True)
class Op:
    """One kernel operation. ``layer`` is the enforcement layer that it belongs to (see ``LAYERS``)."""

    name: ClassVar[str] = ""
    layer: ClassVar[str] = ""

    def describe(self) -> str:
        """One line for people: what the operation does, in the words of the documentation."""
        raise NotImplementedError

    def wire(self) -> tuple[object, ...]:
        return (self.name, *(getattr(self, f.name) for f in fields(self)))

    def json(self) -> dict[str, object]:
        """``{"op": name, "layer": layer, field: value, ...}``; bytes as digest and length."""
        values = {f.name.rstrip("_"): _plain(getattr(self, f.name)) for f in fields(self)}
        return {"op": self.name, "layer": self.layer, **values}


_MECHANISMS = {
    "cgroup": "the whole session, by cgroup",
    "rlimit": "each process by itself",
    "nproc": "the whole session, by user namespace",
    "tmpfs": "the size of the tmpfs",
    "timer": "the supervisor's clock",
    "watch": "the supervisor samples the sum",
    "gateway": "the gateway counts",
    "none": "not enforced: degraded",
}


def _bytes(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift and size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size} bytes"


def _quantity(what: str, value: int) -> str:
    if what in ("memory", "file-size", "tmp", "traffic"):
        return _bytes(value)
    if what in ("time", "cpu-time", "connection-time"):
        return f"{value / 1000:g} s"
    if what == "cpu":
        return f"{value / 1000:g} CPUs"
    return str(value)


LAYERS = ("namespaces", "landlock", "seccomp", "mediation", "gateway", "limits", "environment", "audit")


@dataclass(frozen=True, slots=True)
class Unshare(Op):
    """``clone3(2)`` into new namespaces. ``kinds`` of user, mount, pid, ipc, uts, net, cgroup. Always first.

    ``loopback``: the new network namespace's ``lo`` is brought up (it is down when new).
    """

    name: ClassVar[str] = "unshare"
    layer: ClassVar[str] = "namespaces"
    kinds: tuple[str, ...]
    loopback: bool = True

    def describe(self) -> str:
        lo = ", its own loopback" if self.loopback and "net" in self.kinds else ""
        return f"new namespaces: {', '.join(self.kinds)}{lo}"


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
        return f"empty directory {self.path} (mode {self.mode:o})"


@dataclass(frozen=True, slots=True)
class Symlink(Op):
    name: ClassVar[str] = "link"
    layer: ClassVar[str] = "namespaces"
    path: str
    target: str

    def describe(self) -> str:
        return f"symlink {self.path} -> {self.target}"


@dataclass(frozen=True, slots=True)
class Watch(Op):
    """Names of secrets that are not shown: where the host has one, and FUSE, whoever looks for it is told of to the record.
    The answer is the same either way: nothing is there."""

    name: ClassVar[str] = "watch"
    layer: ClassVar[str] = "audit"
    paths: tuple[str, ...]

    def describe(self) -> str:
        return f"notice who looks for {', '.join(self.paths)}, which are not there"


@dataclass(frozen=True, slots=True)
class Bind(Op):
    """``open_tree(2)`` of ``source`` (host, canonical), ``mount_setattr(2)``, ``move_mount(2)`` onto ``target``.

    The stage opens ``source`` with ``openat2(RESOLVE_NO_SYMLINKS)``; for a target that lies in an earlier bind it
    checks that source and target are the same object. ``kind`` is ``directory``, ``file``, ``device`` or ``socket``.
    The stage makes the mount point when it lies on a tmpfs of the plan. Always nosuid; ``no_dev`` unless a device.
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
        where = self.source if self.source == self.target else f"{self.source} as {self.target}"
        return f"show {where} ({', '.join(how)}{', ids mapped' if self.idmap else ''})"


@dataclass(frozen=True, slots=True)
class Copy(Op):
    """A snapshot of a small host file on the root tmpfs, taken at start: cheaper than a mount, and it cannot change."""

    name: ClassVar[str] = "copy"
    layer: ClassVar[str] = "namespaces"
    source: str
    target: str

    def describe(self) -> str:
        where = self.source if self.source == self.target else f"{self.source} as {self.target}"
        return f"copy {where} (as it is at start)"


@dataclass(frozen=True, slots=True)
class Text(Op):
    """A small file of Remit's own on the root tmpfs. ``{hostname}`` in it is the session's."""

    name: ClassVar[str] = "text"
    layer: ClassVar[str] = "namespaces"
    path: str
    content: str

    def describe(self) -> str:
        return f"write {self.path} (Remit's own)"


@dataclass(frozen=True, slots=True)
class Certificates(Op):
    """A read-only file of the certificates that programs inside are to trust: the host's, read from ``source`` ("" for
    none), and the one that the session's gateway makes for itself at each start. Mounted at ``target``."""

    name: ClassVar[str] = "certificates"
    layer: ClassVar[str] = "gateway"
    source: str
    target: str

    def describe(self) -> str:
        return f"show as {self.target} the session's own certificate{' behind those of ' + self.source if self.source else ''}"


@dataclass(frozen=True, slots=True)
class Tmpfs(Op):
    name: ClassVar[str] = "tmpfs"
    layer: ClassVar[str] = "namespaces"
    target: str
    size: int
    mode: int
    no_exec: bool

    def describe(self) -> str:
        return f"private {self.target} (tmpfs, {_bytes(self.size)}{', noexec' if self.no_exec else ''})"


@dataclass(frozen=True, slots=True)
class Dev(Op):
    """A private ``/dev``: ``nodes`` bound from the host, ``shm`` of ``shm_size`` bytes, new devpts, the usual links."""

    name: ClassVar[str] = "dev"
    layer: ClassVar[str] = "namespaces"
    nodes: tuple[str, ...]
    shm_size: int

    def describe(self) -> str:
        return f"private /dev: {', '.join(self.nodes)}, pts, shm ({_bytes(self.shm_size)})"


@dataclass(frozen=True, slots=True)
class Proc(Op):
    """A proc of the session's PID namespace, ``/proc/sys`` read-only.

    ``fresh`` false: the outer one, bound (hosts that mask it).
    """

    name: ClassVar[str] = "proc"
    layer: ClassVar[str] = "namespaces"
    fresh: bool

    def describe(self) -> str:
        return "own /proc" if self.fresh else "host's /proc (the host masks /proc: a new one cannot be mounted)"


@dataclass(frozen=True, slots=True)
class Cover(Op):
    """Hide an existing denied ``path`` (inside) under an empty, read-only, mode 000 object: EACCES to open and list."""

    name: ClassVar[str] = "cover"
    layer: ClassVar[str] = "namespaces"
    path: str
    kind: str

    def describe(self) -> str:
        return f"cover {self.path}: open and list answer EACCES"


@dataclass(frozen=True, slots=True)
class PivotRoot(Op):
    """``pivot_root(2)``, detach the host's tree, make the root tmpfs read-only, forbid nested user namespaces if so."""

    name: ClassVar[str] = "pivot"
    layer: ClassVar[str] = "namespaces"
    forbid_user_namespaces: bool

    def describe(self) -> str:
        more = ", no user namespaces inside" if self.forbid_user_namespaces else ""
        return f"the host's tree is gone{more}"


@dataclass(frozen=True, slots=True)
class Landlock(Op):
    """One Landlock domain. ``domain`` is ``session`` (also binds the mediator) or ``command`` (nested in it).

    ``rules`` are (path inside, access mask). The masks hold only bits that the ABI has; ``handled_*`` are everything
    the ABI has, so that what no rule grants is denied. ``ports`` are (port, network access mask).
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
        ports = f", {len(self.ports)} ports" if self.ports else ""
        return f"landlock domain of the {self.domain}: {len(self.rules)} paths{ports}; everything else denied"


@dataclass(frozen=True, slots=True)
class Egress(Op):
    """The way out of the network namespace: routes, packet filter and sockets inside, and a gateway that decides.

    ``rules`` are (endpoint, where it stands), ``udp`` the granted UDP ports, ``published`` (address, port, port inside).
    ``filter`` is the packet filter (``compile.packets``), a netlink batch in native order; ``plainer`` the one for a kernel that
    refuses that. ``variables``: those whose placeholders a call was given (``Web``).
    """

    name: ClassVar[str] = "egress"
    layer: ClassVar[str] = "gateway"
    rules: tuple[tuple[str, str], ...]
    udp: tuple[int, ...] = ()
    published: tuple[tuple[str, int, int], ...] = ()
    filter: bytes = b""
    plainer: bytes = b""
    variables: tuple[str, ...] = ()

    def describe(self) -> str:
        udp = f", UDP to port {', '.join(map(str, self.udp))}" if self.udp else ""
        published = "".join(f", {host}:{port} of the host to {inner}" for host, port, inner in self.published)
        return f"a gateway for everything that leaves ({len(self.rules)} rules{udp}){published}"


@dataclass(frozen=True, slots=True)
class Web(Op):
    """What the gateway reads of some hosts' requests, and which secrets it puts in.

    ``http``: (host, methods, paths, where it stands). ``credentials``: (host, what is put in where, where the secret comes
    from, the variable that holds a placeholder inside, where it stands); never a secret, and no command.
    """

    name: ClassVar[str] = "web"
    layer: ClassVar[str] = "gateway"
    http: tuple[tuple[str, tuple[str, ...], tuple[str, ...], str], ...] = ()
    credentials: tuple[tuple[str, str, str, str, str], ...] = ()

    def describe(self) -> str:
        secrets = (
            f"; credentials for {', '.join(sorted({one[0] for one in self.credentials}))}" if self.credentials else ""
        )
        return f"requests are read, {len(self.http)} HTTP rules{secrets}: a certificate authority of the session's own"


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
    """Load a BPF program (``struct sock_filter`` array in native order). ``notify``: with a notification listener."""

    name: ClassVar[str] = "seccomp"
    layer: ClassVar[str] = "seccomp"
    program: bytes
    notify: bool

    def describe(self) -> str:
        listener = ", with the mediator listening" if self.notify else ""
        return f"seccomp filter, {len(self.program) // 8} instructions{listener}"


@dataclass(frozen=True, slots=True)
class Mediate(Op):
    """What the mediator on the session's listener enforces. Paths are as seen inside, canonical.

    ``roots``: writable subtrees in which the command can neither create, write, truncate, remove nor rename by itself
    (the ``command`` Landlock domain lacks those rights there); the mediator performs those calls after deciding.
    ``deny`` and ``protect``: (anchor, tail components, any depth, rule text). ``catalogue``: the auto-exec names
    (``compile.catalogue.WIRE``), empty when opened; ``opened``: catalogue names that a grant opened, by literal path.
    ``brokered_reads``: subtrees in which a denied name can appear at any depth, so that the command has no right to
    open files by itself there and the mediator opens them for it, for reading too.
    ``refuse``: the notified calls that are refused whatever they name: (system call, errno, conditions), a condition
    being (argument index, mask, value), and all of them hold: ``argument & mask == value``
    (``compile.syscalls.refused``).
    """

    name: ClassVar[str] = "mediate"
    layer: ClassVar[str] = "mediation"
    roots: tuple[str, ...]
    deny: tuple[tuple[str, tuple[str, ...], bool, str], ...]
    protect: tuple[tuple[str, tuple[str, ...], bool, str], ...]
    catalogue: tuple[tuple[str, ...], ...]
    opened: tuple[str, ...]
    granted: tuple[tuple[str, str], ...]
    """(path, letters of ``r``, ``w``, ``x``, or ``s`` for a socket): all that is granted, for verdicts on observed calls."""
    brokered_reads: tuple[str, ...] = ()
    refuse: tuple[tuple[str, int, tuple[tuple[int, int, int, bool], ...]], ...] = ()
    outer: tuple[str, ...] = ()
    """Subtrees that the session may write and this call may not: modes, owners, times and attributes there are refused,
    since neither a mount nor Landlock would."""
    audit: str = "writes"
    """What the record is told: ``off``, ``writes`` or ``full`` (reads too)."""
    gateway: bool = False
    """Connections to the network are judged, and denials of them counted, by the gateway."""

    def describe(self) -> str:
        roots = ", ".join(self.roots) or "nothing writable"
        cat = "; auto-executed files" if self.catalogue else ""
        reads = f"; and every open below {', '.join(self.brokered_reads)}" if self.brokered_reads else ""
        rules = f"{len(self.deny)} deny, {len(self.protect)} protect{cat}"
        return f"mediate creating, writing, renaming and removing in {roots}{reads} ({rules})"


@dataclass(frozen=True, slots=True)
class Record(Op):
    """What the session's record holds, what happens when it cannot be written (``deny`` or ``stop``), and ``lines``:
    where each rule that an event may name stands (rule, file, line, key). A rule is a granted path inside; behind
    ``EXECUTES``, one whose right to execute stands in another line; behind ``TAKES_AWAY``, a pattern of ``deny`` or
    ``protect``."""

    name: ClassVar[str] = "record"
    layer: ClassVar[str] = "audit"
    level: str
    on_full: str
    lines: tuple[tuple[str, str, int, str], ...] = ()

    def describe(self) -> str:
        what = {"off": "start and end only", "writes": "denials, writes, programs, connections", "full": "reads too"}
        full = "actions are refused" if self.on_full == "deny" else "the session ends"
        return f"record {what[self.level]}; when it cannot be written, {full}"


@dataclass(frozen=True, slots=True)
class Limit(Op):
    """One limit. ``mechanism``: ``cgroup``, ``rlimit`` (per process), ``nproc`` (sum, by user namespace), ``tmpfs``,
    ``timer`` (the supervisor's clock), ``watch`` (the supervisor samples), ``gateway``, ``none`` (degraded)."""

    name: ClassVar[str] = "limit"
    layer: ClassVar[str] = "limits"
    what: str
    value: int
    mechanism: str

    def describe(self) -> str:
        return f"limit {self.what} to {_quantity(self.what, self.value)} ({_MECHANISMS[self.mechanism]})"


@dataclass(frozen=True, slots=True)
class Environment(Op):
    """The command's whole environment: ``passed`` names from the caller, then ``set_`` values."""

    name: ClassVar[str] = "environment"
    layer: ClassVar[str] = "environment"
    passed: tuple[str, ...]
    set_: tuple[tuple[str, str], ...]

    def describe(self) -> str:
        names = ", ".join((*self.passed, *(f"{name}={value}" for name, value in self.set_)))
        return f"environment: {names or 'empty'}"


@dataclass(frozen=True)  # without slots: the digest is kept
class Plan:
    """Ordered operations, with what they assume about names: (path, kind, canonical path, symlinks crossed).

    ``digest`` is BLAKE2b-256 (hex) over the canonical JSON of everything else in the plan. A filter program takes part
    by its own BLAKE2b-256.
    """

    operations: tuple[Op, ...]
    assumptions: tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...]
    workspace: str
    degraded: tuple[str, ...] = ()

    def wire(self) -> Wire:
        """Plain nested tuples, for ``marshal``: (format, digest, workspace, degraded, assumptions, operations)."""
        operations = tuple(op.wire() for op in self.operations)
        return (PLAN_FORMAT, self.digest, self.workspace, self.degraded, self.assumptions, operations)

    @cached_property
    def digest(self) -> str:
        body = {
            "format": PLAN_FORMAT,
            "workspace": self.workspace,
            "degraded": list(self.degraded),
            "assumptions": _plain(self.assumptions),
            "operations": [op.json() for op in self.operations],
        }
        return blake2b(canonical_json(body).encode("ascii"), digest_size=32).hexdigest()

    def json(self) -> dict[str, object]:
        """The plan as ``explain --json`` prints it."""
        return {
            "format": PLAN_FORMAT,
            "digest": self.digest,
            "workspace": self.workspace,
            "degraded": list(self.degraded),
            "assumptions": [
                {"path": path, "kind": kind, "canonical": canonical, "links": [list(link) for link in links]}
                for path, kind, canonical, links in self.assumptions
            ],
            "operations": [op.json() for op in self.operations],
        }


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a lowering: an axis, an object, a right, what the plan makes of it, and the layers that hold it."""

    axis: str
    object: str
    right: str
    note: str = ""
    layers: tuple[str, ...] = ()
    source: str = ""

    def json(self) -> dict[str, Any]:
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class Lowering:
    """What the plan says of itself: granted, enforced, slack (enforced wider), deficit (narrower), unenforceable."""

    granted: tuple[Line, ...] = ()
    denied: tuple[Line, ...] = ()
    slack: tuple[Line, ...] = ()
    deficit: tuple[Line, ...] = ()
    unenforceable: tuple[Line, ...] = ()
    notes: tuple[str, ...] = ()

    def json(self) -> dict[str, object]:
        parts = ("granted", "denied", "slack", "deficit", "unenforceable")
        lines: dict[str, tuple[Line, ...]] = {part: getattr(self, part) for part in parts}
        return {**{part: [line.json() for line in lines[part]] for part in parts}, "notes": list(self.notes)}
