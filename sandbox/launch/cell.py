"""Cells: what a call has for itself alone, made ahead of it. A mount and a PID namespace, with /proc and PID 1 in them.

The maker is a thread of the session's first process in no Landlock domain, since a confined thread can mount nothing. It
keeps the capabilities of the session's own user namespace and does nothing but this. Mount namespaces, PID namespaces
and capabilities belong to threads (``unshare(2)``, ``setns(2)``), so it goes into the new ones, puts PID 1 there, and
comes back.
"""

from __future__ import annotations

import posix
from errno import ENOENT

from remit.sandbox.kernel import files, mount, process
from remit.sandbox.launch import loopback as lo
from remit.sandbox.launch import reaper
from remit.sandbox.launch.fresh import Fresh

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from remit.sandbox.egress.inside import Sockets
    from remit.sandbox.launch.wire import Operation

_READ = posix.O_RDONLY | posix.O_CLOEXEC
_DIRECTORY = files.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC
_JOINED = (("mnt", process.CLONE_NEWNS), ("net", process.CLONE_NEWNET), ("ipc", process.CLONE_NEWIPC))
_SHM = "/dev/shm"
_SETTINGS = (b"oom_score_adj", b"coredump_filter", b"autogroup")
_ALWAYS = ("/proc", "/dev/pts")


class Cell:
    """Descriptors of one cell. ``close`` gives up all but ``life``, whose closing ends everything in the cell."""

    __slots__ = ("fresh", "init", "life", "namespaces", "number", "own", "settings", "sockets")

    def __init__(
        self, namespaces: list[tuple[int, int]], own: list[tuple[int, int]], life: int, init: int, number: int
    ) -> None:
        self.namespaces = namespaces
        """(descriptor, kind) for setns(2), in the order in which they are joined."""
        self.own = own
        """(descriptor, which place) of the roots of its own file systems: an index of ``Maker.places``."""
        self.life = life
        self.init = init
        """The pid of its PID 1, as the session's namespace has it."""
        self.number = number
        """Which PID namespace it is (``namespaces(7)``: the inode that ``/proc/PID/ns/pid`` leads to)."""
        self.sockets: Sockets | None = None
        """Of a network of its own with a way out: for the gateway."""
        self.fresh: Fresh | None = None
        """Of a private one: what it was like when it was made."""
        self.settings: tuple[bytes, ...] = ()
        """Its PID 1's when it was made: a call's processes have its uid, and may change them."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those that its thread needs, and still has when it has joined the namespaces."""
        return (self.life,) if self.fresh is None or self.fresh.queues < 0 else (self.life, self.fresh.queues)

    @property
    def _places(self) -> tuple[str, ...]:
        """Where its own file systems are, in the order of ``Maker.places``."""
        return _ALWAYS if self.fresh is None else (*_ALWAYS, *self.fresh.directories)

    def leave(self, own: int) -> tuple[int, ...]:
        """For the thread in it: descriptors of all that the next one needs to be in it (``left``). ``own``: this thread's
        directory in the session's /proc. Raises OSError."""
        found: list[int] = []
        try:
            for path in self._places:
                found.append(posix.open(path, _DIRECTORY))
            for name, _ in _namespaces(private=self.fresh is not None):
                found.append(posix.open(f"ns/{name}", _READ, dir_fd=own))
        except OSError:
            for descriptor in found:
                posix.close(descriptor)
            raise
        return (*found, *self.descriptors)

    def left(self, given: Sequence[int]) -> Cell | None:
        """The same cell, for whoever has received what ``leave`` gave. None: something is missing."""
        kinds = [kind for _, kind in _namespaces(private=self.fresh is not None)]
        count = len(self._places)
        if len(given) != count + len(kinds) + len(self.descriptors):
            return None
        own = [(descriptor, place) for place, descriptor in enumerate(given[:count])]
        namespaces = list(zip(given[count : count + len(kinds)], kinds, strict=True))
        life, *queues = given[count + len(kinds) :]
        made = Cell(namespaces, own, life, self.init, self.number)
        made.settings = self.settings
        if self.fresh is not None:
            made.fresh = Fresh.again(self.fresh, *queues)
        return made

    def close(self) -> None:
        """Whoever joins it has joined it."""
        for descriptor, _ in (*self.namespaces, *self.own):
            posix.close(descriptor)
        self.namespaces, self.own = [], []
        if self.fresh is not None and self.fresh.queues >= 0:
            posix.close(self.fresh.queues)
        if self.sockets is not None:
            self.sockets.close()
            self.sockets = None

    def undisturbed(self, opened: Sequence[int]) -> bool:
        """Its PID 1 is as it was, which whoever comes next can see. ``opened``: its files (``open_settings``), or nothing."""
        try:
            return _settings(self.init, opened) == self.settings[: 1 + len(opened)]
        except OSError:
            return False

    def cut(self) -> None:
        """Its life: the kernel ends everything in it at once, and PID 1 last."""
        if self.life >= 0:
            posix.close(self.life)
            self.life = -1

    def end(self) -> None:
        """End everything in it, and wait until it has ended. On the thread whose children are in it, if there are any."""
        self.cut()
        # PID 1 ends last, and not before somebody has reaped whatever has its parent outside (``pid_namespaces(7)``).
        process.reap_children()
        posix.waitpid(self.init, 0)


def _namespaces(*, private: bool) -> list[tuple[str, int]]:
    """What a cell has of its own, in the order in which it is joined."""
    kinds = [one for one in _JOINED if private or one[1] == process.CLONE_NEWNS]
    return [*kinds, ("pid_for_children", process.CLONE_NEWPID)]


def open_settings(directory: bytes) -> tuple[int, ...]:
    """What a process's owner may write of it, in its directory in /proc. Raises OSError."""
    found: list[int] = []
    for name in _SETTINGS:
        try:
            found.append(posix.open(directory + name, _READ))
        except OSError as error:
            # The kernel may be made without one; the order is the same whoever asks.
            if error.errno != ENOENT:
                for descriptor in found:
                    posix.close(descriptor)
                raise
    return tuple(found)


def _settings(pid: int, opened: Sequence[int]) -> tuple[bytes, ...]:
    return process.scheduling(pid), *[posix.pread(descriptor, 256, 0) for descriptor in opened]


class Maker:
    """Makes cells. ``make`` is for one thread only, which has every capability and is in no Landlock domain."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._program = reaper.program()
        self._proc = posix.open("/proc", _DIRECTORY)
        self._home = [(self._namespace(name), kind) for name, kind in _JOINED]
        self._home.append((self._namespace("pid"), process.CLONE_NEWPID))
        binds = [str(operation[2]) for operation in operations if operation[0] == "bind"]
        found: list[tuple[str, int, int, bool]] = []
        for operation in operations:
            if operation[0] == "tmpfs":
                _, target, size, mode, no_exec = operation
                # A tree of the session's that is bound below it would be gone.
                if not any([bind.startswith(target + "/") for bind in binds]):
                    found.append((target, size, mode, no_exec))
            elif operation[0] == "dev":
                found.append((_SHM, operation[2], 0o1777, True))
        self._scratch = found
        self.places = (*_ALWAYS, *[target for target, *_ in found])
        """Where the file systems of a cell's own lie: all of them for a private cell, else the first two alone."""

    def _namespace(self, name: str) -> int:
        return posix.open(f"thread-self/ns/{name}", _READ, dir_fd=self._proc)

    def make(self, *, private: bool, loopback: bool = True, egress: Operation | None = None) -> Cell:
        """A new cell; ``private``: with a network, System V IPC, /tmp and /dev/shm of its own. Raises OSError.

        ``loopback``: what a private network has up; without, it has nothing at all.
        ``egress``: what the private network has for a way out (``compile.plan.Egress``).
        """
        flags = process.CLONE_NEWNS | process.CLONE_NEWPID
        flags |= (process.CLONE_NEWNET | process.CLONE_NEWIPC) if private else 0
        namespaces: list[tuple[int, int]] = []
        own: list[tuple[int, int]] = []
        way: Sockets | None = None
        fresh: Fresh | None = None
        pipes: list[int] = []
        init = 0
        try:
            for _ in range(2):
                pipes += posix.pipe2(posix.O_CLOEXEC)
            life_read, life, ready_read, ready = pipes
            process.unshare(flags)
            self._make_terminals(own)
            if private:
                if loopback:
                    lo.up()
                if egress is not None:
                    from remit.sandbox.egress import inside  # imported by the template, which forked this process

                    way = inside.open_way(egress)
                self._make_scratch(own)
                fresh = Fresh(self.places[len(_ALWAYS) :])
            init = reaper.start(self._program, life_read, ready)
            posix.close(ready)
            pipes.remove(ready)
            if not posix.read(ready_read, 1):
                raise OSError(1, "the call's PID 1 could not mount its /proc")
            # Not before there is a process in it: a PID namespace has no descriptor without one.
            for name, kind in _namespaces(private=private):
                namespaces.append((self._namespace(name), kind))
            number = posix.fstat(namespaces[-1][0]).st_ino
            own.append((posix.open("/proc", _DIRECTORY), 0))
            files_of_it = open_settings(b"/proc/1/")  # the cell's: this thread is in its mounts
            try:
                settings = _settings(init, files_of_it)
            finally:
                for descriptor in files_of_it:
                    posix.close(descriptor)
            pipes.remove(life)
        except OSError:
            for descriptor, _ in (*namespaces, *own):
                posix.close(descriptor)
            if way is not None:
                way.close()
            if fresh is not None and fresh.queues >= 0:
                posix.close(fresh.queues)
            while pipes:
                posix.close(pipes.pop())
            if init:
                posix.waitpid(init, 0)  # its life has ended with the pipes
            raise
        finally:
            for descriptor in pipes:
                posix.close(descriptor)
            for descriptor, kind in self._home:
                if flags & kind:
                    process.setns(descriptor, kind)
        cell = Cell(namespaces, own, life, init, number)
        cell.sockets, cell.fresh, cell.settings = way, fresh, settings
        return cell

    def _make_scratch(self, made: list[tuple[int, int]]) -> None:
        for index, (target, size, mode, no_exec) in enumerate(self._scratch):
            attributes = mount.ATTR_NOSUID | mount.ATTR_NODEV | (mount.ATTR_NOEXEC if no_exec else 0)
            options = ((b"mode", b"%o" % mode), (b"size", b"%d" % size))
            tree = mount.new_filesystem(b"tmpfs", options, attributes)
            made.append((tree, index + len(_ALWAYS)))
            mount.attach_over(tree, target.encode())

    def _make_terminals(self, made: list[tuple[int, int]]) -> None:
        """Pseudo-terminals of the call's own: in the session's, any call could open any other's."""
        options = ((b"ptmxmode", b"0666"), (b"mode", b"0620"))
        tree = mount.new_filesystem(b"devpts", options, mount.ATTR_NOSUID | mount.ATTR_NOEXEC)
        made.append((tree, 1))
        mount.attach_over(tree, b"/dev/pts")
