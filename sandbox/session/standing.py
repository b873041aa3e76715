"""Sessions that stand by themselves, for shells and other languages: no daemon, one template process and one socket each.

The socket lies in the user's runtime directory, which only this user can enter, and the template asks the kernel who
connects (SO_PEERCRED). A session ends when it is stopped, when its time limit says so, or with the machine.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Generator, Mapping
from dataclasses import dataclass

from remit.sandbox.audit.record import make_parents, state_directory
from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.kernel import files
from remit.sandbox.session import context
from remit.sandbox.session.core import Core
from remit.sandbox.session.link import Link, high, spawn
from remit.sandbox.session.opening import Wanted, open_session
from remit.sandbox.session.place import identity
from remit.sandbox.session.result import SessionClosed
from remit.sandbox.session.shared import Shared

_BACKLOG = 64
_SUFFIX = ".sock"


@dataclass(frozen=True, slots=True)
class Started:
    """A session that was started and goes on without its starter."""

    session: str
    workspace: str
    enforcement: Mapping[str, str]
    warnings: tuple[str, ...]


def directory(environ: Mapping[str, str]) -> str:
    """Where the sockets are: ``$XDG_RUNTIME_DIR/remit``, else ``run`` in the state directory."""
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return os.path.join(runtime, "remit")
    return os.path.join(state_directory(_bytes(environ)), "run")


def start(wanted: Wanted, environ: Mapping[str, str]) -> Started:
    """Start a session. Raises RemitError: bad options or profile, Unenforceable, LaunchError."""
    place = _own_directory(directory(environ))
    try:
        listener, name = _listen(place)
        with listener:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                moved = (high(theirs.fileno()), high(listener.fileno()))
                try:
                    spawn(*moved)
                finally:
                    for descriptor in moved:
                        os.close(descriptor)
        link = Link(ours)
        try:
            core, enforcement, door, warnings = open_session(link, wanted, environ)
            door.close()
            session = core.shared.session
            text = context.write(core.ceiling, core.grant, core.chain[:-1], core.shared.placeholders)
            _keep_context(environ, session, text)
            os.rename(name, f"{session}{_SUFFIX}", src_dir_fd=place, dst_dir_fd=place)
            name = f"{session}{_SUFFIX}"
            link.keep(session)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # whoever lists sessions may have been first
                os.unlink(name, dir_fd=place)
            raise
        finally:
            link.close()
    finally:
        os.close(place)
    return Started(session, core.ceiling.workspace, enforcement, warnings)


def live(environ: Mapping[str, str]) -> list[str]:
    """The sessions that stand now, oldest first. A socket that nobody listens on any more is taken away, and so is one of a start
    that was interrupted; not one whose maker is only about to listen."""
    try:
        place = os.open(directory(environ), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return []
    found: list[str] = []
    try:
        for name in sorted(os.listdir(place)):
            starting = name.startswith(".")
            if _is_alive(name[1:].partition("-")[0]) if starting else not name.endswith(_SUFFIX):
                continue
            try:
                _dial(place, name).close()
            except ConnectionRefusedError:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=place)
            except OSError:
                continue
            else:
                if not starting:
                    found.append(name.removesuffix(_SUFFIX))
    finally:
        os.close(place)
    return found


@contextlib.contextmanager
def connected(session: str, environ: Mapping[str, str]) -> Generator[Link]:
    """A connection to the session's template. Raises SessionClosed."""
    try:
        place = os.open(directory(environ), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise _unknown(session, environ) from None
    try:
        connection = _dial(place, f"{session}{_SUFFIX}")
    except OSError:
        raise _unknown(session, environ) from None
    finally:
        os.close(place)
    link = Link(connection)
    try:
        yield link
    finally:
        link.close()


def core_of(session: str, environ: Mapping[str, str]) -> Core:
    """What decides on calls in a standing session. Raises SessionClosed."""
    path = os.path.join(state_directory(_bytes(environ)), "sessions", session, context.NAME)
    try:
        text = files.read(path, 1 << 26).decode()
    except OSError:
        raise _unknown(session, environ) from None
    ceiling, grant, held, placeholders = context.read(text, session)
    shared = Shared(session, placeholders)
    return Core(ceiling, grant, shared, _bytes(environ), uid=identity(ceiling.workspace), chain=held)


def full(session: str, environ: Mapping[str, str]) -> str:
    """A session's whole id from any unambiguous beginning or end of it. Raises SessionClosed."""
    every = live(environ)
    if session in every:
        return session
    found = [one for one in every if session and (one.startswith(session) or one.endswith(session))]
    if len(found) == 1:
        return found[0]
    if found:
        raise SessionClosed(f"{session!r} could be {', '.join(found)}", hint="give more of the id")
    raise _unknown(session, environ)


def _unknown(session: str, environ: Mapping[str, str]) -> SessionClosed:
    every = live(environ)
    hint = f"live: {', '.join(every)}" if every else "remit session start"
    return SessionClosed(f"no live session {session!r}", hint=hint)


def _own_directory(path: str) -> int:
    """The directory, made where it is missing. LaunchError where somebody else could put a socket there."""
    try:
        make_parents(path)
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror}", hint="set XDG_RUNTIME_DIR to a directory of your own") from None
    status = os.fstat(opened)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(opened)
        raise LaunchError(f"{path} is not this user's alone", hint=f"chmod 700 {path}, or set XDG_RUNTIME_DIR")
    return opened


def _listen(place: int) -> tuple[socket.socket, str]:
    name = f".{os.getpid()}-{os.urandom(4).hex()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # By descriptor: a socket's path is at most 107 bytes, a home directory's can be longer.
        listener.bind(f"/proc/self/fd/{place}/{name}")
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise LaunchError(f"no socket for the session: {error.strerror}", hint="set XDG_RUNTIME_DIR") from None
    return listener, name


def _is_alive(pid: str) -> bool:
    """Whether there is such a process, or the number is none that a start has put into a name (``_listen``)."""
    return not pid.isdecimal() or os.path.exists(f"/proc/{pid}")


def _dial(place: int, name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(f"/proc/self/fd/{place}/{name}")
    except OSError:
        connection.close()
        raise
    return connection


def _keep_context(environ: Mapping[str, str], session: str, text: str) -> None:
    path = os.path.join(state_directory(_bytes(environ)), "sessions", session, context.NAME)
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(opened, "w") as file:
        file.write(text)


def _bytes(environ: Mapping[str, str]) -> dict[bytes, bytes]:
    return {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}
