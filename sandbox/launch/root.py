"""Building the session's file system: from the plan's mount operations to a new root, by descriptor, swap-safe.

Runs in the child, in its new namespaces, with capabilities only there. Two passes: first every source is opened and
cloned (``open_tree``) while the host's tree is still the current one; then the new root is attached and everything is
placed in it, in plan order. A source is opened once, with ``RESOLVE_NO_SYMLINKS``, and mounted and granted by that
descriptor: a directory swapped for a link meanwhile ends the start instead of widening a grant.
"""

from __future__ import annotations

import posix
from _stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFMT, S_IFREG, S_IFSOCK  # stat would be a file to load
from errno import EEXIST, ENOENT

from remit.sandbox.kernel import files, mount
from remit.sandbox.launch import copies
from remit.sandbox.launch.copies import SAFE, Swapped, open_source
from remit.sandbox.launch.hidden import DIRECTORY, NAME, Hidden

O_PATH = files.O_PATH
_OPEN_SOURCE = O_PATH | posix.O_CLOEXEC

TYPE_CHECKING = False  # typing's own costs 3 ms to import; checkers know this name
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from remit.sandbox.launch.wire import Operation


class Root:
    """A new root under construction."""

    def __init__(self) -> None:
        self.certificates: Callable[[bytes], bytes] = bytes
        """The host's certificates with what the session's gateway made, where the plan shows them."""
        self._objects: dict[str, tuple[int, int]] = {}
        self.trees: dict[str, int] = {}
        """By path inside: the descriptor of what is bound there, for rules that must be about that very object."""
        self._copies: dict[str, bytes] = {}
        self._prepared: dict[int, int] = {}
        self._blocker = -1
        self._device_trees: list[tuple[str, int]] = []
        self._pts = self._shm = -1
        self.hidden: Hidden | None = None
        """The secrets whose names are watched, if any are."""
        self.descriptor = -1

    def _steps(self, prefix: str, operations: Sequence[Operation]) -> dict[str, Callable[..., Any] | None]:
        """What to do for each kind of operation."""
        return {kind: getattr(self, prefix + kind, None) for kind in {operation[0] for operation in operations}}

    # --- first pass -----------------------------------------------------------------------------------------------

    def open_sources(self, operations: Sequence[Operation], idmapped: Mapping[str, int]) -> None:
        """Open and clone what comes from the host, as the user who started the session."""
        takes = self._steps("_take_", operations)
        for index, operation in enumerate(operations):
            take = takes[operation[0]]
            if take is not None:
                self._prepared[index] = take(idmapped, *operation[1:])

    def have_copies(self, found: dict[str, bytes] | None, operations: Sequence[Operation]) -> None:
        """``found`` is what somebody else has read of the host's files (``copies.read``); None: nobody has."""
        self._copies = copies.read(operations) if found is None else found

    def make_filesystems(self, operations: Sequence[Operation]) -> None:
        """Make every new file system, as the user whom the command will run as: their files must have a mapped owner."""
        makes = self._steps("_make_", operations)
        for index, operation in enumerate(operations):
            make = makes[operation[0]]
            if make is not None:
                self._prepared[index] = make(*operation[1:])
            elif operation[0] == "proc" and operation[1]:
                attributes = mount.ATTR_NOSUID | mount.ATTR_NODEV | mount.ATTR_NOEXEC
                self._prepared[index] = mount.new_filesystem(b"proc", (), attributes)

    def _make_root(self, size: int) -> int:
        options = ((b"mode", b"0755"), (b"size", b"%d" % size))
        self.descriptor = mount.new_filesystem(b"tmpfs", options, mount.ATTR_NOSUID | mount.ATTR_NODEV)
        return self.descriptor

    def _take_bind(
        self,
        idmapped: Mapping[str, int],
        source: str,
        target: str,
        kind: str,
        read_only: bool,
        no_exec: bool,
        no_dev: bool,
        _idmap: bool,
    ) -> int:
        if source in idmapped:
            tree = idmapped[source]
        else:
            opened = open_source(source, _OPEN_SOURCE)
            status = posix.fstat(opened)
            if _KINDS.get(S_IFMT(status.st_mode)) != kind:
                raise Swapped(source)
            self._objects[target] = (status.st_dev, status.st_ino)
            tree = mount.clone_tree(opened)
            posix.close(opened)
        self.trees[target] = tree
        attributes = mount.ATTR_NOSUID
        attributes |= mount.ATTR_RDONLY if read_only else 0
        attributes |= mount.ATTR_NOEXEC if no_exec else 0
        attributes |= mount.ATTR_NODEV if no_dev else 0
        mount.set_attributes(tree, attributes)
        return tree

    def _make_tmpfs(self, _target: str, size: int, mode: int, no_exec: bool) -> int:
        attributes = mount.ATTR_NOSUID | mount.ATTR_NODEV | (mount.ATTR_NOEXEC if no_exec else 0)
        return mount.new_filesystem(b"tmpfs", ((b"mode", b"%o" % mode), (b"size", b"%d" % size)), attributes)

    def _take_dev(self, _idmapped: object, nodes: tuple[str, ...], _shm_size: int) -> int:
        for node in nodes:
            opened = open_source(f"/dev/{node}", _OPEN_SOURCE)
            tree = mount.clone_tree(opened, recursive=False)
            posix.close(opened)
            self._device_trees.append((node, tree))
        return -1

    def _make_dev(self, _nodes: tuple[str, ...], shm_size: int) -> int:
        quiet = mount.ATTR_NOSUID | mount.ATTR_NOEXEC
        options = ((b"ptmxmode", b"0666"), (b"mode", b"0620"))
        self._pts = mount.new_filesystem(b"devpts", options, quiet)
        options = ((b"mode", b"1777"), (b"size", b"%d" % shm_size))
        self._shm = mount.new_filesystem(b"tmpfs", options, quiet | mount.ATTR_NODEV)
        return mount.new_filesystem(b"tmpfs", ((b"mode", b"0755"), (b"size", b"65536")), quiet)

    def _take_proc(self, _idmapped: object, fresh: bool) -> int:
        if fresh:
            return -1
        opened = posix.open("/proc", _OPEN_SOURCE | posix.O_DIRECTORY)
        tree = mount.clone_tree(opened)
        posix.close(opened)
        return tree

    def _take_watch(self, _idmapped: object, paths: tuple[str, ...]) -> int:
        self.hidden = Hidden(paths)
        return -1

    def _make_watch(self, _paths: tuple[str, ...]) -> int:
        return self.hidden.filesystem() if self.hidden is not None else -1

    # --- second pass ----------------------------------------------------------------------------------------------

    def assemble(self, operations: Sequence[Operation]) -> None:
        """Attach the new root and place everything in it, in order."""
        places = self._steps("_place_", operations)
        for index, operation in enumerate(operations):
            place = places[operation[0]]
            if place is not None:
                place(self._prepared.get(index, -1), *operation[1:])

    def _place_root(self, prepared: int, _size: int) -> None:
        # /proc exists everywhere and everything that is needed of the host's has been opened by now.
        mount.attach_over(prepared, b"/proc")

    def _inside(self, path: str) -> bytes:
        return path.lstrip("/").encode(errors="surrogateescape") or b"."

    def _place_dir(self, _prepared: int, path: str, mode: int) -> None:
        try:
            posix.mkdir(self._inside(path), mode, dir_fd=self.descriptor)
        except OSError as error:
            if error.errno != EEXIST:
                raise

    def _place_link(self, _prepared: int, path: str, target: str) -> None:
        posix.symlink(target, self._inside(path), dir_fd=self.descriptor)

    def _place_copy(self, _prepared: int, _source: str, target: str) -> None:
        _write(self._copies[target], self._inside(target), self.descriptor)

    def _place_certificates(self, _prepared: int, _source: str, target: str) -> None:
        """A file system for one file: it may have to lie over one of the host's, and nobody inside may change it."""
        data = self.certificates(self._copies.get(target, b""))
        options = ((b"mode", b"0755"), (b"size", b"%d" % (len(data) + 65536)))
        made = mount.new_filesystem(b"tmpfs", options, mount.ATTR_NOSUID | mount.ATTR_NODEV | mount.ATTR_NOEXEC)
        _write(data, b"file", made)
        mount.set_attributes(made, mount.ATTR_RDONLY)
        opened = posix.open("file", _OPEN_SOURCE, dir_fd=made)
        tree = mount.clone_tree(opened, recursive=False)
        self._attach(tree, target, "file")
        for descriptor in (tree, opened, made):
            posix.close(descriptor)

    def _place_text(self, _prepared: int, path: str, content: str) -> None:
        name = posix.uname().nodename
        self._copies[path] = content.replace("{hostname}", name).encode(errors="surrogateescape")
        self._place_copy(-1, path, path)

    def _place_bind(self, prepared: int, _source: str, target: str, kind: str, *_attributes: bool) -> None:
        self._attach(prepared, target, kind)

    def _attach(self, tree: int, target: str, kind: str) -> None:
        path = self._inside(target)
        point = self._open_inside(path)
        if point < 0:
            # Only on a tmpfs of ours: below a bind the target exists, or the directory is not ours to write.
            self._make_point(path, directory=kind == "directory")
            mount.attach(tree, self.descriptor, path)
            return
        status = posix.fstat(point)
        if self._objects.get(target, (status.st_dev, status.st_ino)) != (status.st_dev, status.st_ino):
            raise Swapped(target)  # below an earlier bind, where the host's names rule
        mount.attach(tree, point)
        posix.close(point)

    def _open_inside(self, path: bytes) -> int:
        try:
            return files.openat2(self.descriptor, path, _OPEN_SOURCE, 0, SAFE | files.RESOLVE_BENEATH)
        except OSError as error:
            if error.errno == ENOENT:
                return -1
            raise

    def _make_point(self, path: bytes, *, directory: bool) -> None:
        if directory:
            posix.mkdir(path, 0o755, dir_fd=self.descriptor)
        else:
            posix.mknod(path, S_IFREG | 0o444, dir_fd=self.descriptor)

    def _place_tmpfs(self, prepared: int, target: str, _size: int, _mode: int, _no_exec: bool) -> None:
        self._attach(prepared, target, "directory")

    def _place_dev(self, prepared: int, _nodes: tuple[str, ...], _shm_size: int) -> None:
        for node, _ in self._device_trees:
            posix.mknod(node, S_IFREG | 0o666, dir_fd=prepared)
        for name in ("pts", "shm"):
            posix.mkdir(name, 0o755, dir_fd=prepared)
        for name, target in _DEV_LINKS:
            posix.symlink(target, name, dir_fd=prepared)
        self._attach(prepared, "/dev", "directory")
        for node, tree in self._device_trees:
            mount.attach(tree, prepared, node.encode())
            posix.close(tree)
        mount.attach(self._pts, prepared, b"pts")
        mount.attach(self._shm, prepared, b"shm")
        mount.set_attributes(prepared, mount.ATTR_NOSUID | mount.ATTR_NOEXEC)  # of every device at once
        mount.set_attributes(prepared, mount.ATTR_RDONLY, recursive=False)
        posix.close(self._pts)
        posix.close(self._shm)

    def _place_proc(self, prepared: int, _fresh: bool) -> None:
        self._attach(prepared, "/proc", "directory")

    def _place_cover(self, _prepared: int, path: str, kind: str) -> None:
        if self._blocker < 0:
            quiet = mount.ATTR_NOSUID | mount.ATTR_NODEV | mount.ATTR_NOEXEC
            self._blocker = mount.new_filesystem(b"tmpfs", ((b"mode", b"0755"), (b"size", b"4096")), quiet)
            posix.mkdir("d", 0, dir_fd=self._blocker)
            posix.close(posix.open("f", posix.O_WRONLY | posix.O_CREAT | posix.O_CLOEXEC, 0, dir_fd=self._blocker))
            mount.set_attributes(self._blocker, mount.ATTR_RDONLY)
        name = "d" if kind == "directory" else "f"
        opened = posix.open(name, _OPEN_SOURCE, dir_fd=self._blocker)
        tree = mount.clone_tree(opened, recursive=False)
        posix.close(opened)
        self._attach(tree, path, kind)
        posix.close(tree)

    def _place_watch(self, prepared: int, _paths: tuple[str, ...]) -> None:
        if prepared < 0 or self.hidden is None:
            return
        place = f"{DIRECTORY}/{NAME}"
        self._place_dir(-1, DIRECTORY, 0o755)
        self._attach(prepared, place, "directory")
        for name, path in self.hidden.paths.items():
            posix.symlink(place.encode() + b"/" + name, path.lstrip(b"/"), dir_fd=self.descriptor)

    # --- end ------------------------------------------------------------------------------------------------------

    def hidden_file(self) -> int:
        """A descriptor (O_PATH) of an empty file on the new root that has no name: what the Landlock canary tries to read."""
        posix.mknod(".canary", S_IFREG | 0o444, dir_fd=self.descriptor)
        opened = posix.open(".canary", _OPEN_SOURCE, dir_fd=self.descriptor)
        posix.unlink(".canary", dir_fd=self.descriptor)
        return opened

    def pivot(self, *, forbid_user_namespaces: bool) -> None:
        """Make it the root. The host's tree is gone; the root tmpfs and /proc/sys become read-only."""
        mount.pivot_to(self.descriptor)
        if forbid_user_namespaces:
            files.write("/proc/sys/user/max_user_namespaces", b"0")
        opened = posix.open("/proc/sys", _OPEN_SOURCE | posix.O_DIRECTORY)
        tree = mount.clone_tree(opened)
        mount.set_attributes(tree, mount.ATTR_RDONLY)
        mount.attach(tree, opened)
        posix.close(tree)
        posix.close(opened)
        mount.set_attributes(self.descriptor, mount.ATTR_RDONLY, recursive=False)
        if self._blocker >= 0:
            posix.close(self._blocker)

    def close(self) -> None:
        """Give up every descriptor of the construction, the root's own among them."""
        for descriptor in self._prepared.values():
            if descriptor >= 0:
                posix.close(descriptor)


def _write(data: bytes, name: bytes, directory: int) -> None:
    """A new file, readable for everybody."""
    view = memoryview(data)
    out = posix.open(name, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o444, dir_fd=directory)
    while view:
        view = view[posix.write(out, view) :]
    posix.close(out)


_DEV_LINKS = (
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)

_KINDS = {S_IFDIR: "directory", S_IFREG: "file", S_IFCHR: "device", S_IFBLK: "device", S_IFSOCK: "socket"}
