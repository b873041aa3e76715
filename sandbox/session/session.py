"""``remit.Session``: a running ceiling, and calls in it, each under its own narrower grant. Blocking; for any thread."""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, overload

from remit.sandbox.authority.grant import Grant as Held
from remit.sandbox.session import opening
from remit.sandbox.session.asked import Grant, StrPath, variables
from remit.sandbox.session.call import PIPE, Popen, Stream, Streams, decoder, encoded, window
from remit.sandbox.session.core import Armed, Core
from remit.sandbox.session.door import Door
from remit.sandbox.session.link import Link, send
from remit.sandbox.session.result import CAPTURE_LIMIT, CompletedCall, SessionClosed

_WINDOW = (24, 80)

_links: dict[int, Link] = {}
_links_lock = threading.Lock()
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _template() -> Link:
    """This process's template: one for all of its sessions."""
    with _links_lock:
        link = _links.get(os.getpid())
        if link is None:
            link = _links[os.getpid()] = Link.start()
        return link


def _after_fork() -> None:
    """A child shares no session with its parent: it neither uses nor ends them."""
    global _links_lock
    _links_lock = threading.Lock()
    for link in _links.values():
        link.abandon()
    _links.clear()
    for session in list(_sessions):
        session.abandon()


os.register_at_fork(after_in_child=_after_fork)


class Session:
    """A session: its authority is the ceiling of every call in it.

    The authority is the profile's and what the keywords add (``read``, ``write``, ``exec``, ``connect``, ...) or take
    away (``deny``, ``protect``), as the options of ``remit run`` do; paths are relative to the current directory. The
    session starts with the object and ends with ``close``, which the context manager calls; it ends with this process in
    any case.

    Raises:
        remit.Error: a bad option or profile, ``Unenforceable``, a start that failed.
    """

    def __init__(
        self,
        profile: str = "",
        workspace: StrPath = ".",
        *,
        read: Iterable[StrPath] = (),
        write: Iterable[StrPath] = (),
        exec: Iterable[StrPath] = (),
        deny: Iterable[StrPath] = (),
        protect: Iterable[StrPath] = (),
        connect: Iterable[str] = (),
        listen: Iterable[int] = (),
        unix: Iterable[StrPath] = (),
        env: Iterable[str] | Mapping[str, str] = (),
        limits: Mapping[str, str | int] | None = None,
        allow_syscalls: Iterable[str] = (),
        degrade: Iterable[str] = (),
        expires: str = "",
        purpose: str = "",
    ) -> None:
        wanted = opening.Wanted(
            profile=profile,
            workspace=os.fspath(workspace),
            grants=opening.options(
                {
                    "read": _paths(read),
                    "write": _paths(write),
                    "exec": _paths(exec),
                    "deny": _paths(deny),
                    "protect": _paths(protect),
                    "connect": connect,
                    "listen": map(str, listen),
                    "unix": _paths(unix),
                    "env": variables(env),
                    "limit": (f"{name}={value}" for name, value in (limits or {}).items()),
                    "allow-syscalls": allow_syscalls,
                    "degrade": degrade,
                    "expires": [expires] if expires else [],
                    "purpose": [purpose] if purpose else [],
                }
            ),
        )
        link = _template()
        core, enforcement, door, warnings = opening.open_session(link, wanted, os.environ)
        self._begin(core, link, Door(door), enforcement, owner=True)
        self.warnings = warnings
        """What the user should hear, such as a suggestion in the workspace that was not applied."""

    def _begin(self, core: Core, link: Link | None, door: Door, enforcement: Mapping[str, str], *, owner: bool) -> None:
        self._core = core
        self._link = link
        self._door = door
        self._owner = owner
        self._pid = os.getpid()
        self.enforcement = dict(enforcement)
        """What the start proved, layer by layer."""
        _sessions.add(self)

    def abandon(self) -> None:
        """In a forked child: it is the parent's."""
        self._door.abandon()
        self._core.shared.closed = "it belongs to the process that this one was forked from"
        for armed in self._core.shared.policies.values():
            armed.requests.close()

    # --- what it is ----------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The session's id: its record's name."""
        return self._core.shared.session

    @property
    def grant(self) -> Held:
        """The grant that this session (or narrowed session) is."""
        return self._core.grant

    @property
    def workspace(self) -> str:
        """The workspace, without symbolic links."""
        return self._core.ceiling.workspace

    def __repr__(self) -> str:
        return f"<Session {self.id}{' closed' if self._core.shared.closed else ''}>"

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session and everything in it. A narrowed session: take its grant back. Twice is once."""
        if self._core.shared.closed:
            return
        if self._core.depth:
            self.revoke()
            return
        if self._pid != os.getpid():
            raise SessionClosed("a forked process cannot end its parent's session")
        self._core.shared.closed = "it was closed"
        try:
            if self._owner and self._link is not None:
                self._link.stop(self.id)
        except SessionClosed:
            pass  # the template died, and the session with it
        finally:
            self._door.close()
            with self._core.shared.lock:
                for armed in self._core.shared.policies.values():
                    armed.requests.close()
                self._core.shared.policies.clear()

    # --- grants --------------------------------------------------------------------------------------------------------

    def narrow(self, grant: Grant, *, principal: str = "", task: str = "", purpose: str = "") -> Session:
        """A session in this one whose ceiling is ``grant``: for a sub-agent. Closing it takes the grant back.

        Raises GrantError: the grant is beyond this session's authority, or this is the eighth narrowing.
        """
        made = object.__new__(type(self))
        core = self._core.narrow(grant, principal=principal, task=task, purpose=purpose)
        made._begin(core, self._link, self._door, self.enforcement, owner=False)
        made.warnings = ()
        return made

    def revoke(self, grant: Held | CompletedCall[Any] | Popen | str | None = None) -> list[str]:
        """Take a grant back: a result's, a running call's, an id's, or (without one) this session's own.

        Nothing can start under it or under what was narrowed from it; calls that run under it are ended (or stopped, as
        the profile says). Returns their ids.
        """
        what = grant.grant if isinstance(grant, CompletedCall | Popen) else grant
        identifier = self._core.revoke(what)
        return self._door.revoke(identifier)

    # --- calls ---------------------------------------------------------------------------------------------------------

    @overload
    def run(
        self,
        args: Sequence[StrPath] | str,
        *,
        grant: Grant | None = ...,
        stdin: Stream = ...,
        input: bytes | None = ...,
        stdout: Stream = ...,
        stderr: Stream = ...,
        text: Literal[False] | None = ...,
        cwd: StrPath | None = ...,
        env: Mapping[str, str] | None = ...,
        timeout: float | None = ...,
        check: bool = ...,
        shell: bool = ...,
        encoding: None = ...,
        errors: None = ...,
        max_output: int = ...,
    ) -> CompletedCall[bytes]: ...
    @overload
    def run(
        self,
        args: Sequence[StrPath] | str,
        *,
        grant: Grant | None = ...,
        stdin: Stream = ...,
        input: str | None = ...,
        stdout: Stream = ...,
        stderr: Stream = ...,
        text: Literal[True],
        cwd: StrPath | None = ...,
        env: Mapping[str, str] | None = ...,
        timeout: float | None = ...,
        check: bool = ...,
        shell: bool = ...,
        encoding: str | None = ...,
        errors: str | None = ...,
        max_output: int = ...,
    ) -> CompletedCall[str]: ...
    @overload
    def run(
        self,
        args: Sequence[StrPath] | str,
        *,
        grant: Grant | None = ...,
        stdin: Stream = ...,
        input: str | None = ...,
        stdout: Stream = ...,
        stderr: Stream = ...,
        text: bool | None = ...,
        cwd: StrPath | None = ...,
        env: Mapping[str, str] | None = ...,
        timeout: float | None = ...,
        check: bool = ...,
        shell: bool = ...,
        encoding: str,
        errors: str | None = ...,
        max_output: int = ...,
    ) -> CompletedCall[str]: ...
    def run(
        self,
        args: Sequence[StrPath] | str,
        *,
        grant: Grant | None = None,
        stdin: Stream = None,
        input: bytes | str | None = None,
        stdout: Stream = PIPE,
        stderr: Stream = PIPE,
        text: bool | None = None,
        cwd: StrPath | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        check: bool = False,
        shell: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        max_output: int = CAPTURE_LIMIT,
    ) -> CompletedCall[Any]:
        """One call, to its end. As ``subprocess.run``, with captured output and no input by default.

        ``grant``: what this call may do, beside the floor; without one, what the session may. ``cwd`` is relative to the
        workspace. ``max_output``: bytes of each stream that are kept, its first and its last half.

        Raises:
            GrantError: the grant is beyond the session, spent, revoked or expired: nothing was started.
            TimeoutExpired: everything that the call started was ended.
            CalledProcessError: with ``check``, where the command failed.
            SessionClosed, LaunchError: the call could not be started, or its session ended.
        """
        with self._start(
            args,
            grant,
            Streams(PIPE if input is not None else stdin, stdout, stderr, pty=False),
            decoder(text, encoding, errors),
            cwd=cwd,
            env=env,
            shell=shell,
        ) as call:
            result = call.complete(encoded(input, encoding), timeout, max_output)
        if check:
            result.check_returncode()
        return result

    def popen(
        self,
        args: Sequence[StrPath] | str,
        *,
        grant: Grant | None = None,
        stdin: Stream = None,
        stdout: Stream = PIPE,
        stderr: Stream = PIPE,
        text: bool | None = None,
        cwd: StrPath | None = None,
        env: Mapping[str, str] | None = None,
        shell: bool = False,
        pty: bool = False,
        background: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
    ) -> Popen:
        """A call that runs while the caller goes on. As ``subprocess.Popen``.

        ``pty``: its three streams are a pseudo-terminal of its own, ``call.terminal``. ``background``: processes that it
        leaves behind live on until the handle is closed; otherwise they end with the command.

        Raises: as ``run``, but for what only the end can tell.
        """
        call = self._start(
            args,
            grant,
            Streams(stdin, stdout, stderr, pty=pty),
            decoder(text, encoding, errors),
            cwd=cwd,
            env=env,
            shell=shell,
            pty=pty,
            background=background,
        )
        call.open_streams()
        return call

    def _start(
        self,
        args: Sequence[StrPath] | str,
        grant: Grant | None,
        streams: Streams,
        decode: tuple[str, str] | None,
        *,
        cwd: StrPath | None,
        env: Mapping[str, str] | None,
        shell: bool,
        pty: bool = False,
        background: bool = False,
    ) -> Popen:
        words: Sequence[Any] = ["/bin/sh", "-c", args] if shell else [args] if isinstance(args, str) else list(args)
        core = self._core
        try:
            armed = self._armed(grant)
            terminal = (window(*_WINDOW), (True, True, True)) if pty else None
            ticket = core.ticket(armed, grant, words, cwd=cwd, env=env, terminal=terminal, background=background)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                send(armed.requests, ticket.data, [theirs.fileno(), *streams.theirs])
            except OSError:
                ours.close()
                self._door.drain(core)
                raise core.failure(ticket, None) from None
            finally:
                theirs.close()
        except BaseException:
            streams.close()
            raise
        finally:
            streams.close_theirs()
        return Popen(core, self._door, ticket, ours, streams, background=background, decode=decode)

    def _armed(self, grant: Grant | None) -> Armed:
        core = self._core
        core.check(core.chain, core.grant)
        armed, definition, dropped = core.armed(grant, _packet_pair)
        if definition is not None:
            identifier, wire, theirs = definition
            self._door.define(identifier, wire, theirs)
        for old in dropped:
            self._door.forget(old.identifier)
            old.requests.close()
        return armed


def _packet_pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ours, theirs


def _paths(paths: Iterable[StrPath]) -> list[str]:
    return [os.fspath(path) for path in paths]
