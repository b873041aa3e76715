"""The way to a template: making one, and asking it for sessions. Blocking, one request at a time."""

from __future__ import annotations

import array
import marshal
import os
import posix
import socket
import sys
import threading
from itertools import count
from typing import TYPE_CHECKING, Any

import remit
from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.launch import envelope
from remit.sandbox.launch.template import CLIENT, LISTENER
from remit.sandbox.session.result import SessionClosed

if TYPE_CHECKING:
    from remit.sandbox.launch.wire import Wire

_STARTER = "import sys; sys.path.append(sys.argv.pop(1)); from remit.sandbox.launch.template import main; main()"
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

    def open(self, wire: Wire, about: dict[str, object], state: str) -> tuple[str, dict[str, str], socket.socket]:
        """A new session: its id, what its start proved, and a socket to its first process. Raises RemitError."""
        with self._lock:
            token = next(self._tokens)
            self._send(("open", token, wire, about, state))
            session, door = self._door(token)
            try:
                _, _, enforcement = self._await(token, "opened")
            except BaseException:
                door.close()
                raise
            return session, enforcement, door

    def attach(self, session: str) -> socket.socket:
        """A socket to a session's first process. Raises SessionClosed."""
        with self._lock:
            token = next(self._tokens)
            self._send(("attach", token, session))
            return self._door(token)[1]

    def stop(self, session: str) -> None:
        """End a session and wait until it has ended."""
        with self._lock:
            if session in self.closed:
                return
            self._send(("stop", session))
            while session not in self.closed:
                message, _ = self._receive()
                self._note(message)

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

    def _door(self, token: int) -> tuple[str, socket.socket]:
        while True:
            message, came = self._receive()
            if message[0] == "door" and message[1] == token:
                return message[2], socket.socket(fileno=came[0])
            for descriptor in came:
                os.close(descriptor)
            self._note(message, token)

    def _await(self, token: int, kind: str) -> tuple[Any, ...]:
        while True:
            message, _ = self._receive()
            if message[0] == kind and message[1] == token:
                return message[1:]
            self._note(message, token)

    def _note(self, message: tuple[Any, ...], token: int = 0) -> None:
        if message[0] == "closed":
            self.closed[message[1]] = message[2]
        elif message[0] == "failed" and message[1] == token:
            _, _, phase, text, hint, status = message
            error = LaunchError(text, hint=hint) if phase != "session" else SessionClosed(text, hint=hint)
            error.phase, error.exit_status = phase, status
            raise error

    def _send(self, message: tuple[Any, ...]) -> None:
        try:
            send(self._socket, marshal.dumps(message), [])
        except OSError:
            raise self._dead() from None

    def _receive(self) -> tuple[tuple[Any, ...], list[int]]:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(envelope.LIMIT, socket.CMSG_SPACE(16), socket.MSG_CMSG_CLOEXEC)
        except OSError:
            data, ancillary = b"", []
        if not data:
            raise self._dead()
        return marshal.loads(data), descriptors(ancillary)

    def _dead(self) -> SessionClosed:
        return SessionClosed("the template process has ended, and every session with it", hint="open a new session")


def descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came with a message (``unix(7)`` SCM_RIGHTS)."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def send(connection: socket.socket, data: bytes, passed: list[int]) -> None:
    """One message with descriptors, in an ``envelope`` where it is large. Raises OSError."""
    message, more = envelope.enclosed(data)
    try:
        socket.send_fds(connection, [message], [*passed, *more])
    finally:
        for descriptor in more:
            os.close(descriptor)
