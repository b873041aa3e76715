"""The tree inside: which mounts and directories make exactly the granted paths visible.

The new root is a tmpfs that ends up read-only. Every granted object is bound at its own canonical path; a grant below
another one whose mount has the same attributes needs none of its own. Symbolic links that a name crossed are repeated
where they would otherwise be missing, so that the name the user wrote works. Parents always come before children.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from remit.sandbox.authority.model import Right
from remit.sandbox.compile.paths import below, order, parents, strictly_below
from remit.sandbox.compile.plan import Bind, Copy, Cover, Dev, Directory, Op, Proc, Symlink, Text, Tmpfs
from remit.sandbox.resolve.binding import Kind

RUN_SIZE = 16 << 20
SHM_SIZE = 256 << 20
SECRETS = (".aws", ".azure", ".docker", ".gnupg", ".kube", ".mozilla", ".password-store", ".ssh", ".thunderbird")
"""Directories of the home directory that hold credentials, and that no program looks into which is not after them. Not
``.netrc``: every ``pip`` asks whether it is there."""
OWN = ("/dev", "/proc")
"""Made new for every session: a grant of the host's is not bound."""


@dataclass(frozen=True, slots=True)
class Granted:
    """One object that is granted, under its canonical path."""

    path: str
    kind: Kind
    rights: frozenset[Right]
    floor: bool = False
    copied: bool = False
    """A floor file that the user's name for it puts directly in /etc: a snapshot, not a mount."""
    idmap: bool = False

    @property
    def directory(self) -> bool:
        return self.kind is Kind.DIRECTORY


@dataclass(slots=True)
class Tree:
    """The operations by the path that each one makes, with what lies on a tmpfs of the plan told from bound trees."""

    entries: dict[str, Op] = field(default_factory=dict[str, Op])
    covers: list[Cover] = field(default_factory=list[Cover])

    def operations(self) -> tuple[Op, ...]:
        """In order: parents first, covers last."""
        placed = (self.entries[path] for path in sorted(self.entries, key=order))
        covers = {cover.path: cover for cover in self.covers}
        return (*placed, *(covers[path] for path in sorted(covers, key=order)))

    def holder(self, path: str) -> Op | None:
        """The mount that ``path`` would lie in (not the one at ``path`` itself); None is the root tmpfs."""
        for above in reversed(parents(path)):
            op = self.entries.get(above)
            if isinstance(op, Bind | Tmpfs | Dev | Proc):
                return op
        return None

    def on_tmpfs(self, path: str) -> bool:
        """Whether the plan has to make ``path`` itself, since nothing of the host shows there."""
        return self.holder(path) is None or isinstance(self.holder(path), Tmpfs)

    def make_parents(self, path: str) -> None:
        for above in parents(path):
            if above not in self.entries and self.on_tmpfs(above):
                self.entries[above] = Directory(above, 0o755)

    def place(self, path: str, op: Op) -> None:
        self.make_parents(path)
        self.entries[path] = op

    def tmpfs_directories(self) -> tuple[str, ...]:
        """Directories of the plan's own making, the root first."""
        return ("/", *(path for path in sorted(self.entries, key=order) if isinstance(self.entries[path], Directory)))


def effective(path: str, grants: Iterable[Granted]) -> frozenset[Right]:
    """The rights at ``path``: those of every grant at it or above it."""
    rights: frozenset[Right] = frozenset()
    for grant in grants:
        if grant.path == path or (grant.directory and below(path, grant.path)):
            rights |= grant.rights
    return rights


def build(
    grants: tuple[Granted, ...],
    *,
    links: Iterable[tuple[str, str]],
    directories: Iterable[str],
    devices: tuple[str, ...],
    sockets: Iterable[str] = (),
    tmp_size: int,
    fresh_proc: bool,
    covers: Mapping[str, Kind],
    read_only: Mapping[str, Kind],
) -> Tree:
    """The tree for ``grants``.

    ``links``: (canonical path of a link, its target) to repeat. ``sockets``: granted Unix sockets. ``directories``:
    to exist, empty, if nothing else shows there. ``covers``: existing denied objects. ``read_only``: existing protected
    objects. Both matter only where a bound tree shows them.
    """
    tree = Tree()
    taken = {grant.path for grant in grants}
    for path, private in (
        ("/tmp", Tmpfs("/tmp", tmp_size, 0o1777, False)),
        ("/run", Tmpfs("/run", RUN_SIZE, 0o755, True)),
    ):
        if path not in taken:
            tree.place(path, private)
    tree.place("/dev", Dev(devices, SHM_SIZE))
    tree.place("/proc", Proc(fresh_proc))

    for grant in sorted(grants, key=lambda item: order(item.path)):
        _bind(tree, grant, grants)
    _var_tmp(tree, tmp_size)
    for path in sockets:
        # A read-only mount does not stop connect(2), which asks for the right to write the socket's inode alone.
        if path not in tree.entries and not isinstance(tree.holder(path), Bind):
            tree.place(path, Bind(path, path, Kind.SOCKET.value, True, True))
    for link, target in links:
        if link not in tree.entries and tree.on_tmpfs(link):
            tree.place(link, Symlink(link, target))
    for path in directories:
        if path not in tree.entries and tree.on_tmpfs(path):
            tree.place(path, Directory(path, 0o755))
    for path, kind in sorted(read_only.items()):
        # What is covered shows nothing that could be written.
        if not any(below(path, covered) for covered in covers):
            _protect(tree, path, kind)
    for path, kind in sorted(covers.items()):
        if visible(tree, path):
            tree.covers.append(Cover(path, "directory" if kind is Kind.DIRECTORY else "file"))
    return tree


def visible(tree: Tree, path: str) -> bool:
    """Whether a host object shows at ``path``: it is bound there, or lies in a tree that is."""
    return isinstance(tree.entries.get(path), Bind | Copy) or isinstance(tree.holder(path), Bind)


def _bind(tree: Tree, grant: Granted, grants: tuple[Granted, ...]) -> None:
    if any(below(grant.path, own) for own in OWN):
        return
    rights = effective(grant.path, grants)
    read_only, no_exec = Right.WRITE not in rights, Right.EXEC not in rights
    holder = tree.holder(grant.path)
    if isinstance(holder, Bind) and (holder.read_only, holder.no_exec) == (read_only, no_exec):
        return
    if grant.copied and read_only and no_exec and tree.on_tmpfs(grant.path):
        tree.place(grant.path, Copy(grant.path, grant.path))
        return
    kind = grant.kind.value if grant.kind is not Kind.OTHER else "file"
    device = grant.kind is Kind.DEVICE
    tree.place(grant.path, Bind(grant.path, grant.path, kind, read_only, no_exec, not device, grant.idmap))


def _var_tmp(tree: Tree, size: int) -> None:
    """/var/tmp is /tmp, unless the host's is granted or something below it is."""
    path = "/var/tmp"
    if path in tree.entries:
        if isinstance(tree.entries[path], Directory):
            tree.entries[path] = Tmpfs(path, size, 0o1777, False)
    elif tree.on_tmpfs(path):
        tree.place(path, Symlink(path, "/tmp"))


def _protect(tree: Tree, path: str, kind: Kind) -> None:
    """A read-only mount over a protected object in a writable tree. A second layer: the mediator holds the name."""
    at = tree.entries.get(path)
    holder = at if isinstance(at, Bind) else tree.holder(path)
    if not isinstance(holder, Bind) or holder.read_only or kind not in (Kind.DIRECTORY, Kind.FILE):
        return
    tree.entries[path] = Bind(path, path, kind.value, True, holder.no_exec, holder.no_dev, holder.idmap)
    # What is bound below it for writing would reopen it. What may be executed there is bound for that.
    for below_it, op in list(tree.entries.items()):
        if strictly_below(below_it, path) and isinstance(op, Bind):
            if (op.no_exec, op.no_dev) == (holder.no_exec, holder.no_dev):
                del tree.entries[below_it]
            else:
                tree.entries[below_it] = replace(op, read_only=True)


def unshown(tree: Tree, directory: str, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names in ``directory`` that nothing of the plan shows, makes, or leads through."""
    paths = [f"{directory.rstrip('/')}/{name}" for name in sorted(names)]
    if not paths or not tree.on_tmpfs(paths[0]):
        return ()
    return tuple(path for path in paths if not any(below(entry, path) for entry in tree.entries))


def write(tree: Tree, files: Iterable[tuple[str, str]]) -> None:
    """Files of Remit's own instead of the host's, where the directory is of the plan's making.

    Where the whole directory is granted the host's files stay: queries reach the session's resolver whatever a
    resolv.conf says.
    """
    for path, content in files:
        at = tree.entries.get(path)
        if tree.on_tmpfs(path) and not isinstance(at, Bind):
            tree.place(path, Text(path, content))


def listable(tree: Tree) -> tuple[str, ...]:
    """The outermost directories of the plan's making below which nothing is covered: listing them shows only what is
    granted."""
    chosen: list[str] = []
    for path in tree.tmpfs_directories():
        if any(below(path, other) for other in chosen) or any(below(cover.path, path) for cover in tree.covers):
            continue
        chosen.append(path)
    return tuple(chosen)


def uncovered(tree: Tree) -> tuple[str, ...]:
    """The directories of the plan's making, but the root, below which nothing is covered."""
    own = (path for path in tree.tmpfs_directories() if path != "/")
    return tuple(path for path in own if not any(below(cover.path, path) for cover in tree.covers))


def in_etc(named: str) -> bool:
    """A name below /etc."""
    return strictly_below(named, "/etc")
