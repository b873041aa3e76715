"""The way to a template: making one, and asking it for sessions. Blocking, one request at a time."""

from __future__ import annotations

import array
import marshal
import os
import posix
import select
import signal
import socket
import sys
import threading
import time
from itertools import count
from typing import TYPE_CHECKING, Any

import remit
from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.launch import envelope
from remit.sandbox.launch.template import CLIENT, LISTENER
from remit.sandbox.session.result import SessionClosed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remit.sandbox.launch.wire import Wire

_STARTER = """
import sys
sys.path.append(sys.argv.pop(1))
def ledger(state):
    from remit.sandbox.session.ledger import Ledger
    return Ledger(state)
from remit.sandbox.launch.template import main
main(ledger)
"""
"""The ledger is this room's, and the template's to look into only where a grant file is in use."""
_SPARE = 10
"""Where a descriptor waits while the ones below it are put in place."""


def interpreter() -> str:
    """The interpreter that a template runs in."""
    # Not sys.executable: an embedding program's is no Python.
    return sys.executable or os.path.join(sys.base_prefix, "bin", "python3")


def spawn(client: int, listener: int = -1) -> int:
    """Execute a template with an empty environment and nothing but these descriptors. Returns its pid."""
    actions: list[Any] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        # The caller's stderr would be a way out for whatever finds it.
        *([] if "REMIT_DEBUG" in os.environ else [(os.POSIX_SPAWN_DUP2, 0, 2)]),
        (os.POSIX_SPAWN_DUP2, client, CLIENT),
    ]
    if listener >= 0:
        actions.append((os.POSIX_SPAWN_DUP2, listener, LISTENER))
    package = os.path.dirname(os.path.dirname(os.path.abspath(remit.__file__)))
    words = [interpreter(), "-I", "-S", "-X", "utf8", "-c", _STARTER, package]
    return os.posix_spawn(words[0], words, {}, file_actions=actions, setsid=True, setsigmask=())


def high(descriptor: int) -> int:
    """A copy of a descriptor above those that a template's are put in place of."""
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _SPARE)


class Link:
    """One connection to a template, usable from any thread."""

    PATIENCE = 20.0
    """Seconds until a template that does not answer is ended, with all that it holds. Longer than it may wait itself, for
    a session's first process to end."""
    START = 60.0
    """Seconds that a session's start may take."""

    def __init__(self, connection: socket.socket, pid: int = 0) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._tokens = count(1)
        self.pid = pid
        """The template, where this process is its parent; else 0."""
        self.closed: dict[str, str] = {}
        """Sessions that have ended, and why."""

    @classmethod
    def start(cls) -> Link:
        """A template of this process's own: it ends with this process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            moved = high(theirs.fileno())
            try:
                return cls(ours, spawn(moved))
            except OSError as error:
                raise LaunchError(f"no template process: {error.strerror}", where=interpreter()) from None
            finally:
                os.close(moved)

    def open(
        self, wire: Wire, about: dict[str, object], state: str, secrets: int = -1
    ) -> tuple[str, dict[str, str], socket.socket]:
        """A new session: its id, what its start proved, and a socket to its first process. Raises RemitError.

        ``secrets``: the file of its gateway's secrets (``egress.wire``), if it has any.
        """
        with self._lock:
            token = next(self._tokens)
            deadline = time.monotonic() + self.START
            self._send(("open", token, wire, about, state), [secrets] if secrets >= 0 else [])
            session, door = self._door(token, deadline)
            try:
                enforcement = self._opened(token, session, deadline)
            except TimeoutError:
                door.close()
                self._stop(session)
                raise LaunchError(
                    f"the session did not start within {self.START:g} seconds", hint="'remit doctor' may say why"
                ) from None
            except BaseException:
                door.close()
                raise
            return session, enforcement, door

    def attach(self, session: str) -> socket.socket:
        """A socket to a session's first process. Raises SessionClosed."""
        with self._lock:
            token = next(self._tokens)
            self._send(("attach", token, session))
            return self._door(token, time.monotonic() + self.PATIENCE)[1]

    def keep(self, session: str) -> None:
        """The session stands by itself from now on: until this is said, it ends with this connection. Raises SessionClosed."""
        with self._lock:
            self._send(("keep", session))

    def alive(self) -> bool:
        """The template is there."""
        # Its sessions may hold the other end of the socket for a moment longer than it did.
        if self.pid and posix.waitpid(self.pid, posix.WNOHANG)[0]:
            self.pid = 0
            return False
        watch = select.poll()
        watch.register(self._socket, select.POLLHUP)
        return not watch.poll(0)

    def stop(self, session: str) -> None:
        """End a session and wait until it has ended. Raises SessionClosed where it has, with its template."""
        with self._lock:
            self._stop(session)

    def _stop(self, session: str) -> None:
        if session in self.closed:
            return
        self._send(("stop", session))
        deadline = time.monotonic() + self.PATIENCE
        try:
            while session not in self.closed:
                message, _ = self._receive(deadline)
                self._note(message)
        except TimeoutError:
            raise self._stuck() from None

    def _stuck(self) -> SessionClosed:
        """The template does not answer. Its sessions are its children, and end with it."""
        if not self.pid:
            return SessionClosed(
                "the session's template process does not answer", hint="end it: it is its sessions' parent"
            )
        os.kill(self.pid, signal.SIGKILL)
        return self._dead()

    def close(self) -> None:
        """Give the template up: what it started for this process alone ends."""
        self._socket.close()
        if self.pid:
            try:
                posix.waitpid(self.pid, 0)
            except ChildProcessError:
                pass
            self.pid = 0

    def abandon(self) -> None:
        """In a forked child: nothing of the parent's is this process's to end."""
        self._socket.close()
        self._lock = threading.Lock()
        self.pid = 0

    def _door(self, token: int, deadline: float) -> tuple[str, socket.socket]:
        while True:
            try:
                message, came = self._receive(deadline)
            except TimeoutError:
                raise self._stuck() from None
            if message[0] == "door" and message[1] == token:
                return message[2], socket.socket(fileno=came[0])
            for descriptor in came:
                os.close(descriptor)
            self._note(message, token)

    def _opened(self, token: int, session: str, deadline: float) -> dict[str, str]:
        while True:
            message, _ = self._receive(deadline)
            if message[0] == "opened" and message[1] == token:
                found: dict[str, str] = message[3]
                return found
            self._note(message, token)
            if session in self.closed:
                raise LaunchError(
                    f"the session ended as it started: {self.closed[session]}", hint="'remit doctor' may say why"
                )

    def _note(self, message: tuple[Any, ...], token: int = 0) -> None:
        if message[0] == "closed":
            self.closed[message[1]] = message[2]
        elif message[0] == "failed" and message[1] in (token, 0):
            _, _, phase, text, hint, status = message
            error = LaunchError(text, hint=hint) if phase != "session" else SessionClosed(text, hint=hint)
            error.phase, error.exit_status = phase, status
            raise error

    def _send(self, message: tuple[Any, ...], passed: Sequence[int] = ()) -> None:
        try:
            send(self._socket, marshal.dumps(message), [*passed])
        except OSError:
            raise self._dead() from None

    def _receive(self, deadline: float) -> tuple[tuple[Any, ...], list[int]]:
        """The next message. Raises TimeoutError when ``deadline`` (by the monotonic clock) has passed."""
        watch = select.poll()
        watch.register(self._socket, select.POLLIN)
        if not watch.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        try:
            data, ancillary = receive(self._socket, envelope.LIMIT, socket.CMSG_SPACE(16))
        except OSError:
            data, ancillary = b"", []
        heard = message(data)
        if heard[0] in ("lost", "unreadable"):
            raise self._dead()
        return heard, descriptors(ancillary)

    def _dead(self) -> SessionClosed:
        return SessionClosed("the template process has ended, and every session with it", hint="open a new session")


def receive(
    source: socket.socket, size: int, space: int = 0, flags: int = 0
) -> tuple[bytes, list[tuple[int, int, bytes]]]:
    """One message, as ``recvmsg`` has it. Raises OSError.

    ECONNRESET is said once, and before all that is there to read: the other end closed with something unread. So the last
    words of who has failed come after it.
    """
    flags |= socket.MSG_CMSG_CLOEXEC
    try:
        data, ancillary, _, _ = source.recvmsg(size, space, flags)
    except ConnectionResetError:
        data, ancillary, _, _ = source.recvmsg(size, space, flags)
    return data, ancillary


def message(data: bytes) -> tuple[Any, ...]:
    """What was received: ``("lost",)`` where it is nothing, ``("unreadable",)`` where it is no message, or not all of it."""
    if not data:
        return ("lost",)
    try:
        kind, *values = marshal.loads(data)
    except (EOFError, ValueError, TypeError):
        return ("unreadable",)
    return (kind, *values)


def descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came with a message (``unix(7)`` SCM_RIGHTS)."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def send(connection: socket.socket, data: bytes, passed: list[int], flags: int = 0) -> None:
    """One message with descriptors, in an ``envelope`` where it is large. Raises OSError."""
    message, more = envelope.enclosed(data)
    rights = array.array("i", [*passed, *more])
    try:
        # Not socket.send_fds, which ignores its flags (CPython 3.11): a caller who must not wait would.
        connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else [], flags)
    finally:
        for descriptor in more:
            os.close(descriptor)
