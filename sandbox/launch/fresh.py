"""Whether a private cell is as it was made, when a call in it is over.

A private cell has a network, System V IPC, POSIX message queues and scratch directories of its own, in which a call may leave
something behind that no process holds. Most leave nothing; their cell serves again, which spares making another network
(half a millisecond of processor time, and as much to take the last one down).
"""

from __future__ import annotations

import posix
from errno import ENODEV

from remit.sandbox.kernel import mount
from remit.sandbox.kernel.call import NR, Buffer, call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_SHM_INFO, _MSG_INFO, _SEM_INFO = 14, 12, 19
"""``shmctl(2)``, ``msgctl(2)``, ``semctl(2)``: how many there are in the namespace."""
_USED_SHM, _USED_MSG, _USED_SEM = 0, 0, 28
"""Where that stands: ``shm_info.used_ids``, ``msginfo.msgpool``, ``seminfo.semusz``."""
_INFO_SIZE = 64
_NO_QUEUE = 40
"""Bytes of the root of ``mqueue`` as it is made. Each queue adds some (ipc/mqueue.c, DIRENT_SIZE)."""


class Fresh:
    """What a private cell was like when it was made, by whoever made it; and whether it still is, for who is in it."""

    __slots__ = ("_looks", "_loopback", "directories", "queues")

    def __init__(self, directories: Sequence[str]) -> None:
        """For the thread that is in the new cell, with the capability to mount. Raises OSError."""
        self.directories = tuple(directories)
        self._looks = tuple([_look(path) for path in directories])
        self.queues = _message_queues()
        """The root of a file system of its message queues, which is mounted nowhere; -1: this kernel has none."""
        self._loopback = -1

    @classmethod
    def again(cls, of: Fresh, queues: int = -1) -> Fresh:
        """That of a cell which was left, for whoever has it now; ``queues``: its own descriptor."""
        made = object.__new__(cls)
        made.directories, made._looks, made.queues, made._loopback = of.directories, of._looks, queues, -1
        return made

    def still(self) -> bool:
        """For a thread in the cell, whose /proc is the cell's: no trace of a call is left."""
        try:
            return self._no_files() and self._no_objects() and self._no_packets()
        except OSError:
            return False

    def _no_files(self) -> bool:
        """The directories are empty and have the times that they had: nothing was ever made in them."""
        return all([_look(path) == then for path, then in zip(self.directories, self._looks, strict=True)])

    def _no_objects(self) -> bool:
        if self.queues >= 0 and posix.fstat(self.queues).st_size > _NO_QUEUE:
            return False
        info = Buffer(_INFO_SIZE)
        for name, arguments, at in (
            ("shmctl", (0, _SHM_INFO), _USED_SHM),
            ("msgctl", (0, _MSG_INFO), _USED_MSG),
            ("semctl", (0, 0, _SEM_INFO), _USED_SEM),
        ):
            call(NR[name], *arguments, info.address)
            if any(info.view[at : at + 4]):
                return False
        return True

    def _no_packets(self) -> bool:
        """Nothing was ever sent in the network: no connection can linger, nor what was learned from one."""
        if self._loopback < 0:
            self._loopback = posix.open("/proc/1/net/dev", posix.O_RDONLY | posix.O_CLOEXEC)
        for line in posix.pread(self._loopback, 4096, 0).splitlines():
            name, _, counts = line.strip().partition(b":")
            if name == b"lo":
                return not any([int(count) for count in counts.split()])
        return False


def _look(path: str) -> tuple[object, ...]:
    status = posix.lstat(path)
    times = (status.st_mtime_ns, status.st_ctime_ns)
    owner = (status.st_mode, status.st_uid, status.st_gid)
    # A change in the same tick of the clock has the same time, but not the same size.
    return (status.st_dev, status.st_ino, *owner, status.st_size, status.st_nlink, *times, *posix.listxattr(path))


def _message_queues() -> int:
    quiet = mount.ATTR_NOSUID | mount.ATTR_NODEV | mount.ATTR_NOEXEC
    try:
        return mount.new_filesystem(b"mqueue", (), quiet)
    except OSError as error:
        if error.errno == ENODEV:
            return -1
        raise
