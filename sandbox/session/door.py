"""The socket to a session's first process: what calls may be armed for, and what is taken back."""

from __future__ import annotations

import marshal
import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from remit.sandbox.session.core import Core
from remit.sandbox.session.link import Link, descriptors, message, receive, send
from remit.sandbox.session.result import SessionClosed

_REPLY = 1 << 17


class Door:
    """The socket to the session's first process."""

    MOMENT = 1.0
    """Seconds that a reason is waited for."""
    SOON = 0.1
    """Seconds after which a call that was told to end, and has not, is asked after: it may never have been taken."""
    PATIENCE = 10.0
    """Seconds until what it would do at once, if it were well, is waited for no longer, and the session ended."""

    def __init__(self, connection: socket.socket, link: Link) -> None:
        self._socket = connection
        self._link = link
        self._lock = threading.Lock()
        self._kept: list[tuple[Any, ...]] = []

    def define(self, identifier: int, wire: Any, theirs: socket.socket) -> None:
        """Arm calls under this authority; their requests come through ``theirs``. Raises SessionClosed."""
        with theirs:
            self._send(("policy", identifier, wire), [theirs.fileno()])

    def forget(self, identifier: int) -> None:
        """Arm no more of them."""
        self._send(("forget", identifier))

    def watch(self, grants: tuple[str, ...]) -> None:
        """A call runs under these grants out of files: it ends when they are revoked. Raises SessionClosed."""
        self._send(("watch", grants))

    def revoke(self, core: Core, grant: str) -> list[str]:
        """End (or stop) what runs under a grant: the ids of those calls.

        Raises SessionClosed: the session's first process did not answer, and everything in the session was ended.
        """
        heard = self._ask(core, "revoke", grant, "revoked")
        return [] if heard is None else list(heard[2])

    def taken(self, core: Core, call: str) -> bool:
        """Whether the session has begun with a call. Where it has not, and the call was told to end before, it never does.

        Raises SessionClosed, as ``revoke``.
        """
        heard = self._ask(core, "taken", call, "taken")
        return heard is None or bool(heard[2])

    def _ask(self, core: Core, kind: str, about: str, answer: str) -> tuple[Any, ...] | None:
        """What the session's first process says to that. None: the session has ended, and with it every call."""
        deadline = time.monotonic() + self.PATIENCE
        watch = select.poll()
        with self._lock:
            try:
                self._socket.send(marshal.dumps((kind, about)))
                watch.register(self._socket, select.POLLIN)
                while watch.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    heard = self._next(wait=True)
                    if heard is None or heard[:2] == (answer, about):
                        return heard
                    self._kept.append(heard)
            except (OSError, ValueError):
                return None
        raise self.give_up(core)

    def give_up(self, core: Core) -> SessionClosed:
        """The session's first process does not answer: end the session. Blocks, for a bounded time. What to raise."""
        shared = core.shared
        shared.closed = shared.closed or "its first process did not answer"
        try:
            self._link.stop(shared.session)
        except SessionClosed:
            pass  # with its template
        return SessionClosed(f"session {shared.session} was ended: {shared.closed}", hint="open a new session")

    def drain(self, core: Core, identifier: int) -> None:
        """Hear why the session's first process let go of a request, or of the authority ``identifier``, if it says.

        Blocks for a moment: where it has no descriptor left for what was sent to it, the kernel drops that, and whoever is at the
        other end sees so, before the reason can be said. Of one that has died there is nothing more to hear.
        """
        deadline = time.monotonic() + self.MOMENT
        watch = select.poll()
        with self._lock:
            for kept in self._kept:
                core.heard(kept)
            self._kept.clear()
            try:
                watch.register(self._socket, select.POLLIN)
                while identifier not in core.shared.refused and core.shared.full is None:
                    if not watch.poll(max(0.0, deadline - time.monotonic()) * 1000):
                        break
                    heard = self._next(wait=False)
                    if heard is None:
                        break
                    core.heard(heard)
            except (OSError, ValueError):
                pass  # it has ended, or this client has left it

    def _next(self, *, wait: bool) -> tuple[Any, ...] | None:
        data, ancillary = receive(self._socket, _REPLY, flags=0 if wait else socket.MSG_DONTWAIT)
        for descriptor in descriptors(ancillary):
            os.close(descriptor)
        heard = message(data)
        return None if heard[0] == "lost" else heard

    def _send(self, what: tuple[Any, ...], passed: Sequence[int] = ()) -> None:
        try:
            with self._lock:
                send(self._socket, marshal.dumps(what), [*passed])
        except OSError:
            raise SessionClosed("the session has ended", hint="open a new session") from None

    def close(self) -> None:
        """The session goes on without this client."""
        self._socket.close()

    def abandon(self) -> None:
        """In a forked child."""
        self._lock = threading.Lock()
        self._socket.close()
