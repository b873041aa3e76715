"""Who reaches for a secret that the session does not show: seen, at no cost to anything else.

What is not in the new root is ENOENT, and nobody hears of it. So the names of secrets lead, by links, into a file system where
whatever is asked for is asked of this process (FUSE), which says ENOENT too. It shows nothing and grants nothing; without it the
same names are simply not there.

Answering takes a thread of its own: the mediator walks the paths that programs name, and would wait for itself.
"""

from __future__ import annotations

import posix

from remit.sandbox.kernel import fuse, mount, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DIRECTORY, NAME = "/.remit", "hidden"
"""Where it is mounted."""
_SEEN = frozenset([fuse.LOOKUP, fuse.GETATTR, fuse.OPENDIR, fuse.ACCESS])
_QUIET = mount.ATTR_NOSUID | mount.ATTR_NODEV | mount.ATTR_NOEXEC | mount.ATTR_RDONLY


class Hidden:
    """One session's. ``paths``: those that are there, of the names that the plan watches, by their last component."""

    def __init__(self, paths: Sequence[str]) -> None:
        """Looks for them on the host. Nothing is raised: where there is no FUSE, nothing is seen."""
        self.paths = {_bytes(path).rpartition(b"/")[2]: _bytes(path) for path in paths if _is_there(path)}
        self.device = -1
        if self.paths:
            try:
                self.device = posix.open(fuse.DEVICE, posix.O_RDWR | posix.O_CLOEXEC)
            except OSError:
                self.paths.clear()
        self._uid = self._gid = -1

    def filesystem(self) -> int:
        """A detached mount, for the user that this process is; -1: there is none."""
        if self.device < 0:
            return -1
        self._uid, self._gid = posix.getuid(), posix.getgid()
        try:
            return mount.new_filesystem(b"fuse", fuse.options(self.device, self._uid, self._gid), _QUIET)
        except OSError:
            posix.close(self.device)
            self.device = -1
            return -1

    def serve(self, tell: Callable[[int, bytes], None]) -> None:
        """A thread's whole life: ``tell(thread, path)`` while that thread waits for its answer."""
        nodes = dict(enumerate(self.paths.values(), fuse.ROOT + 1))
        numbers = {name: node for node, name in enumerate(self.paths, fuse.ROOT + 1)}
        while True:
            try:
                data = posix.read(self.device, fuse.BUFFER)
            except FileNotFoundError:
                continue  # whoever asked has gone
            except OSError:
                return  # the file system has
            operation, number, node, pid, name = fuse.asked(data)
            if node in nodes and operation in _SEEN:
                # To walk through the directory is no question yet; to ask for anything of it, or in it, is. Who is in no
                # namespace of the session's looks in from outside.
                if pid:
                    try:
                        tell(pid, nodes[node] + b"/" + name if name else nodes[node])
                    except Exception:  # whoever asked waits for an answer, come what may
                        pass
                _write(self.device, fuse.nothing(number))
            elif operation == fuse.LOOKUP:
                # The mediator is to find nothing here: then it says what was named, and not where that led.
                inner = 0 if process.own_thread(pid) else numbers.get(name)
                there = fuse.found(number, inner, self._uid, self._gid) if inner else fuse.nothing(number)
                _write(self.device, there)
            else:
                answer = fuse.answered(operation, number, self._uid, self._gid)
                if answer:
                    _write(self.device, answer)


def _write(device: int, answer: bytes) -> None:
    try:
        posix.write(device, answer)
    except OSError:
        pass  # whoever asked has gone


def _is_there(path: str) -> bool:
    try:
        posix.lstat(path)
    except OSError:
        return False
    return True


def _bytes(path: str) -> bytes:
    return path.encode(errors="surrogateescape")
