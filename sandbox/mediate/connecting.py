"""Connecting and binding: watched, and decided on where the name of a socket is a file's."""

from __future__ import annotations

import posix
from errno import EACCES

from remit.sandbox.kernel import memory
from remit.sandbox.kernel.call import AT_FDCWD
from remit.sandbox.mediate.calls import DOTS, PROCEED, Handlers
from remit.sandbox.mediate.rules import WRITE, join
from remit.sandbox.mediate.unix import made_inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

_S_IFMT, _S_IFSOCK = 0o170000, 0o140000
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

    def bind(self, _descriptor: int, address: int, length: int, *_: int) -> int:
        """``bind(2)``: a socket's name may not be one that a rule takes away (it cannot hold code; the race is harmless)."""
        return self._address(address, length, "bind")

    def _unix(self, path: bytes) -> None:
        """Refuse a named socket of the outside that was not granted, whatever tree it lies in.

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
        if self._calls.connects(full) or made_inside(status):
            self._calls.elsewhere(full, "connect")
            return
        raise self._calls.denied("connect", full, "no grant names this socket", EACCES)

    def _address(self, address: int, length: int, right: str) -> int:
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
                elif name not in DOTS:
                    return self._calls.elsewhere(join(place, name), WRITE)
            else:
                self._unix(path)
        elif family == 2 and len(raw) >= 8:
            self._calls.elsewhere(b"%d.%d.%d.%d:%d" % (*raw[4:8], int.from_bytes(raw[2:4], "big")), right)
        elif family == 10 and len(raw) >= 24:
            words = b":".join([b"%x" % int.from_bytes(raw[at : at + 2], "big") for at in range(8, 24, 2)])
            self._calls.elsewhere(b"[%s]:%d" % (words, int.from_bytes(raw[2:4], "big")), right)
        return PROCEED
