"""Compiled plans, kept between starts: symbolic plans and filter bytes only, never a binding.

A cached plan is an escape if somebody else wrote it, so the directory and the file must be this user's alone, the
content must match its digest, and every input (profile files, those that might shadow them, the search path's
directories) must still be what it was. Anything else is a miss. What the plan says of the host's files is checked again
at every start (``launch.assume``).
"""

from __future__ import annotations

import marshal
import posix
from _blake2 import blake2b

from remit.sandbox.audit.record import make_parents

FORMAT = 5
_DIGEST_SIZE = 32
_MAXIMUM = 1 << 22
_READ = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC
_DIRECTORY = _READ | posix.O_DIRECTORY
_CREATE = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
_FOREIGN = 0o077
_S_IFMT = 0o170000
_S_IFDIR = 0o040000

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


def key(material: tuple[Any, ...]) -> str:
    """The name of an entry: a digest of everything that a plan depends on and that is known before it is compiled."""
    return blake2b(marshal.dumps((FORMAT, material)), digest_size=_DIGEST_SIZE).hexdigest()


def fingerprint(path: str) -> tuple[int, ...]:
    """What an input is now: its identity, owner, mode, size and times, or nothing where it is absent.

    The change time is the kernel's own and no call can set it: a file whose content was changed, whoever did it, does not
    keep its fingerprint. (Reading and hashing the content again costs ten times as much and says the same.)
    """
    try:
        status = posix.stat(path)
    except OSError as error:
        return (error.errno or 0,)
    identity = (status.st_dev, status.st_ino, status.st_uid, status.st_mode)
    if status.st_mode & _S_IFMT == _S_IFDIR:
        return (*identity, status.st_mtime_ns)
    return (*identity, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Cache:
    """One user's cache directory."""

    def __init__(self, directory: str) -> None:
        self._path = directory

    def load(self, name: str) -> tuple[Any, ...] | None:
        """The entry, or None where there is none that can be trusted and is still true."""
        try:
            directory = posix.open(self._path, _DIRECTORY)
        except OSError:
            return None
        try:
            if not _own(posix.fstat(directory)):
                return None
            opened = posix.open(name, _READ, dir_fd=directory)
        except OSError:
            return None
        finally:
            posix.close(directory)
        try:
            if not _own(posix.fstat(opened)):
                return None
            data = posix.read(opened, _MAXIMUM)
        finally:
            posix.close(opened)
        digest, body = data[:_DIGEST_SIZE], data[_DIGEST_SIZE:]
        if blake2b(body, digest_size=_DIGEST_SIZE).digest() != digest:
            return None
        inputs, *entry = marshal.loads(body)
        for path, then in inputs:
            if fingerprint(path) != then:
                return None
        return tuple(entry)

    def store(self, name: str, inputs: Iterable[str], entry: tuple[Any, ...]) -> None:
        """Keep an entry. A cache that cannot be written is no failure: the next start compiles again."""
        body = marshal.dumps((tuple([(path, fingerprint(path)) for path in inputs]), *entry))
        data = blake2b(body, digest_size=_DIGEST_SIZE).digest() + body
        try:
            directory = self._open_or_make()
        except OSError:
            return
        temporary = f".{name}.{posix.getpid()}"
        try:
            opened = posix.open(temporary, _CREATE, 0o600, dir_fd=directory)
            try:
                while data:
                    data = data[posix.write(opened, data) :]
            finally:
                posix.close(opened)
            posix.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            self._prune(directory)
        except OSError:
            _try_unlink(temporary, directory)
        finally:
            posix.close(directory)

    def _open_or_make(self) -> int:
        make_parents(self._path)
        return posix.open(self._path, _DIRECTORY)

    def _prune(self, directory: int) -> None:
        """At most a few hundred entries: beyond that, start anew."""
        names = posix.listdir(directory)
        if len(names) > _MANY:
            for name in names:
                _try_unlink(name, directory)


_MANY = 256


def _own(status: posix.stat_result) -> bool:
    return status.st_uid == posix.geteuid() and not status.st_mode & _FOREIGN


def _try_unlink(name: str, directory: int) -> None:
    try:
        posix.unlink(name, dir_fd=directory)
    except OSError:
        pass
