"""Whether a private cell is as it was made, when a call in it is over.

A private cell has a network, System V IPC, POSIX message queues and scratch directories of its own, in which a call may leave
something behind that no process holds. Most leave nothing; their cell serves again, which spares making another network
(half a millisecond of processor time, and as much to take the last one down).
"""

from __future__ import annotations

import posix
from errno import ENODEV, ENOENT

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
_CYCLE = 64
"""So many objects of a kind are numbered one after the other before the sequence in the upper bits goes on (ipc/util.c)."""
_INDEX_BITS = 15
_IPC_RMID = 0
_COUNTS = ("snmp", "snmp6", "ip6_flowlabel")
"""Of the network: what was tried without a packet being sent, and labels that outlive their socket (``ipv6(7)``)."""
_COUNTS_SIZE = 16384
_NO_QUEUE = 40
"""Bytes of the root of ``mqueue`` as it is made. Each queue adds some (ipc/mqueue.c, DIRENT_SIZE)."""


class Fresh:
    """What a private cell was like when it was made, by whoever made it; and whether it still is, for who is in it."""

    __slots__ = ("_counters", "_counts", "_looks", "_loopback", "_numbers", "directories", "queues")

    def __init__(self, directories: Sequence[str]) -> None:
        """For the thread that is in the new cell, with the capability to mount. Raises OSError."""
        self.directories = tuple(directories)
        self._looks = tuple([_look(path) for path in directories])
        self.queues = _message_queues()
        """The root of a file system of its message queues, which is mounted nowhere; -1: this kernel has none."""
        self._loopback = -1
        self._counters: tuple[int, ...] = ()
        """Open, from the first look on; -1: this kernel has none such."""
        counters: tuple[int, ...] = ()
        try:
            counters = _open_counters(b"/proc/thread-self/net/")
            self._counts = _counted(counters)
            self._numbers = _numbers()
        except OSError:
            if self.queues >= 0:
                posix.close(self.queues)
            raise
        finally:
            for descriptor in counters:
                if descriptor >= 0:
                    posix.close(descriptor)

    @classmethod
    def again(cls, of: Fresh, queues: int = -1) -> Fresh:
        """That of a cell which was left, for whoever has it now; ``queues``: its own descriptor."""
        made = object.__new__(cls)
        made.directories, made._looks, made.queues, made._loopback = of.directories, of._looks, queues, -1
        made._counters, made._counts, made._numbers = (), of._counts, of._numbers
        return made

    def still(self) -> bool:
        """For a thread in the cell, whose /proc is the cell's: no trace of a call is left."""
        try:
            return self._no_files() and self._no_packets() and self._no_objects()
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
        before, self._numbers = self._numbers, _numbers()
        # Nobody tells the number of the next object but the object: it goes on by one from look to look, as processes' do.
        return self._numbers == tuple([_after(number) for number in before])

    def _no_packets(self) -> bool:
        """Nothing was ever sent in the network: no connection can linger, nor what was learned from one."""
        if self._loopback < 0:
            self._loopback = posix.open("/proc/1/net/dev", posix.O_RDONLY | posix.O_CLOEXEC)
            self._counters = _open_counters(b"/proc/1/net/")
        for line in posix.pread(self._loopback, 4096, 0).splitlines():
            name, _, counts = line.strip().partition(b":")
            if name == b"lo":
                return not any([int(count) for count in counts.split()]) and _counted(self._counters) == self._counts
        return False


def _open_counters(directory: bytes) -> tuple[int, ...]:
    found: list[int] = []
    for name in _COUNTS:
        try:
            found.append(posix.open(directory + name.encode(), posix.O_RDONLY | posix.O_CLOEXEC))
        except OSError as error:
            if error.errno != ENOENT:
                for descriptor in found:
                    if descriptor >= 0:
                        posix.close(descriptor)
                raise
            found.append(-1)
    return tuple(found)


def _counted(counters: Sequence[int]) -> tuple[bytes, ...]:
    return tuple([posix.pread(one, _COUNTS_SIZE, 0) if one >= 0 else b"" for one in counters])


def _numbers() -> tuple[int, ...]:
    """The numbers of three System V objects that are made for it, and are gone again."""
    shm = call(NR["shmget"], 0, 1, 0o600)
    call(NR["shmctl"], shm, _IPC_RMID, None)
    msg = call(NR["msgget"], 0, 0o600)
    call(NR["msgctl"], msg, _IPC_RMID, None)
    sem = call(NR["semget"], 0, 1, 0o600)
    call(NR["semctl"], sem, 0, _IPC_RMID, None)
    return shm, msg, sem


def _after(number: int) -> int:
    """The next object's number, where none is left. (Counted otherwise, every 64th look ends a cell.)"""
    index = number & ((1 << _INDEX_BITS) - 1)
    return number + 1 if index + 1 < _CYCLE else ((number >> _INDEX_BITS) + 1) << _INDEX_BITS


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
