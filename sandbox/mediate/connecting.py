"""Connecting and binding: watched, and decided on where the name of a socket is a file's; in a root, binding is performed."""

from __future__ import annotations

import posix
from errno import EACCES, EINTR

from remit.sandbox.kernel import memory, process, sockets
from remit.sandbox.kernel.call import AT_FDCWD, failure
from remit.sandbox.kernel.files import O_PATH
from remit.sandbox.mediate.calls import DOTS, PROCEED, Handlers, positive
from remit.sandbox.mediate.rules import WRITE, join
from remit.sandbox.mediate.unix import made_inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

_S_IFMT, _S_IFSOCK = 0o170000, 0o140000
_LONGEST_NAME = 108
"""``UNIX_PATH_MAX`` (``linux/un.h``)."""
_ASKED_BY_LIBC = frozenset([b"/var/run/nscd/socket", b"/run/nscd/socket"])
"""Where glibc asks for a cache of names at every look-up, wherever it runs: not an action of the program's."""


class Connecting(Handlers):
    """Internet addresses are the namespaces' to decide on, and Landlock's."""

    names: ClassVar[tuple[str, ...]] = (
        "connect",
        "bind",
    )

    def connect(self, _descriptor: int, address: int, length: int, *_: int) -> int:
        """``connect(2)``: namespaces and Landlock decide."""
        return self._address(address, length, "connect")

    def bind(self, descriptor: int, address: int, length: int, *_: int) -> int:
        """``bind(2)``: a socket's name is a new one in its directory, and decided on as that."""
        return self._address(address, length, "bind", descriptor)

    def _unix(self, path: bytes) -> None:
        """Refuse a named socket that was not granted: of the outside, whatever tree it lies in, and of the session, in a tree
        that this call may not write.

        The kernel resolves the name again after the answer, so a racing thread could still arrive at another one; where
        Landlock knows the right to connect to named sockets (Linux 7.1), it holds that too.
        """
        try:
            entry, full = self._view.object(AT_FDCWD, path, follow=True)
        except OSError:
            spelled = self._view.lexical(AT_FDCWD, path)
            if spelled is not None and spelled not in _ASKED_BY_LIBC:
                self._calls.outside(spelled, "connect")  # not there, because nothing grants it
            raise
        status = posix.fstat(entry)
        if status.st_mode & _S_IFMT != _S_IFSOCK:
            return
        own = self._calls.allows(full, "connect") and made_inside(status, self._calls.source.listeners)
        if self._calls.connects(full) or own:
            self._calls.elsewhere(full, "connect")
            return
        raise self._calls.denied("connect", full, "no grant names this socket", EACCES)

    def _address(self, address: int, length: int, right: str, descriptor: int = -1) -> int:
        length &= 0xFFFFFFFF
        if not 2 < length <= 128:
            return PROCEED
        raw = memory.read(self._view.pid, address, length)
        family = int.from_bytes(raw[:2], "little")
        if family == 1 and raw[2]:
            path = raw[2:].partition(b"\0")[0]
            if right == "bind":
                directory, name, place, _ = self._view.parent(AT_FDCWD, path)
                if name not in DOTS and self._calls.inside(join(place, name)):
                    self._calls.creation(directory, place, name)
                    return self._bind(descriptor, path, directory, place, name)
                if name not in DOTS:
                    return self._calls.elsewhere(join(place, name), WRITE)
            else:
                self._unix(path)
        elif family == 2 and len(raw) >= 8:
            self._calls.elsewhere(b"%d.%d.%d.%d:%d" % (*raw[4:8], int.from_bytes(raw[2:4], "big")), right)
        elif family == 10 and len(raw) >= 24:
            words = b":".join([b"%x" % int.from_bytes(raw[at : at + 2], "big") for at in range(8, 24, 2)])
            self._calls.elsewhere(b"[%s]:%d" % (words, int.from_bytes(raw[2:4], "big")), right)
        return PROCEED

    def _bind(self, descriptor: int, path: bytes, directory: int, place: bytes, name: bytes) -> int:
        """Bind the caller's socket for it: its own domain has not the right to make one in a root.

        The socket keeps the name as it was bound (``getsockname(2)``), and programs remove by that what they have made. So it
        is the caller's spelling where no link is on the way, from the caller's working directory.
        """
        calls, view = self._calls, self._view
        calls.performing = True
        its = view.own(process.pidfd_open(view.group()))
        found = view.own(process.pidfd_getfd(its, positive(descriptor)))
        if not calls.source.listener.valid(calls.id):
            raise failure(EINTR, "bind")  # it has ended, and the number may be another process's
        calls.assume_umask()
        full = join(place, name)
        if path[:1] == b"/" and path == full:
            sockets.bind_path(found, path)
        elif path[:1] != b"/" and view.lexical(AT_FDCWD, path) == full:
            here = view.own(posix.open(b".", O_PATH | posix.O_CLOEXEC))
            posix.fchdir(view.base(AT_FDCWD))
            try:
                sockets.bind_path(found, path)
            finally:
                posix.fchdir(here)
        else:
            short = b"/proc/self/fd/%d/%s" % (directory, name)
            sockets.bind_path(found, full if len(full) < _LONGEST_NAME else short)
        return 0
