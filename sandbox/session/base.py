"""What ``Session`` and ``AsyncSession`` have in common: what a session is, and starting a call, but for the waiting."""

from __future__ import annotations

import atexit
import os
import socket
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from errno import ECONNREFUSED, ECONNRESET, ENOTCONN, EPIPE
from typing import Any, TypeVar

from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.authority.grant import Grant as Held
from remit.sandbox.session import keywords, opening
from remit.sandbox.session.asked import Grant, StrPath
from remit.sandbox.session.core import Core, Ticket
from remit.sandbox.session.door import Door
from remit.sandbox.session.handle import Conversation, Handle, window
from remit.sandbox.session.link import Link, send
from remit.sandbox.session.result import CompletedCall, SessionClosed
from remit.sandbox.session.shared import Armed
from remit.sandbox.session.streams import Decode, Streams, not_started

_WHERE = "Session"
_WINDOW = (24, 80)
_TOO_MANY_IN_FLIGHT = 109
"""ETOOMANYREFS: an ordinary user may have as many descriptors in messages that nobody has received yet as a process may have
open."""
_GONE = frozenset([EPIPE, ECONNRESET, ECONNREFUSED, ENOTCONN])
"""What the kernel says where nobody is at a socket's other end."""
PAUSE = 0.002
"""Seconds until a request is tried again that met with ETOOMANYREFS: nothing tells when descriptors have been received."""

_links: dict[int, Link] = {}
_links_lock = threading.Lock()
_sessions: weakref.WeakSet[Base] = weakref.WeakSet()
_handles: weakref.WeakSet[Handle] = weakref.WeakSet()
HandleType = TypeVar("HandleType", bound=Handle)


def _template() -> Link:
    """This process's template: one for all of its sessions."""
    with _links_lock:
        link = _links.get(os.getpid())
        if link is not None and not link.alive():
            link.close()
            link = None
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
    for handle in list(_handles):
        handle.abandon()


def _at_exit() -> None:
    """The sessions end with this process; a development mode's interpreter wants to see the socket closed."""
    for link in _links.values():
        link.abandon()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


@dataclass(frozen=True, slots=True)
class Opened:
    """A session that has begun, or a narrower one in it."""

    core: Core
    door: Door
    enforcement: dict[str, str]
    link: Link | None
    owner: bool
    warnings: tuple[str, ...] = ()
    process: int = field(default_factory=os.getpid)

    def stop(self) -> None:
        """End it, or take the narrower one's grant back. Blocks until it has ended. Twice is once."""
        shared = self.core.shared
        if self.process != os.getpid():
            if not shared.closed:
                raise SessionClosed("a forked process cannot end its parent's session")
            return
        if self.core.depth:
            if not shared.closed:
                self.door.revoke(self.core, self.core.revoke())
            return
        # One that has died by itself has its sockets still.
        shared.closed = shared.closed or "it was closed"
        try:
            if self.owner and self.link is not None:
                self.link.stop(shared.session)
        except SessionClosed:
            pass  # the template died, and the session with it
        finally:
            self.door.close()
            with shared.lock:
                for armed in (*shared.policies.values(), *shared.given_up):
                    armed.requests.close()
                shared.policies.clear()
                shared.given_up.clear()


def begin(wanted: opening.Wanted) -> Opened:
    """Open a session. Blocks; raises RemitError."""
    link = _template()
    core, enforcement, door, warnings = opening.open_session(link, wanted, os.environ)
    return Opened(core, Door(door, link), dict(enforcement), link, owner=True, warnings=warnings)


class Base(ABC):
    """A session's (or narrower session's) values, and the steps of a call that do not wait."""

    _opened: Opened | None = None

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
        expires: float | str | None = None,
        purpose: str = "",
    ) -> None:
        ends = keywords.duration(expires, f"{_WHERE}.expires")
        wanted = opening.Wanted(
            profile=profile,
            workspace=keywords.paths([workspace], f"{_WHERE}.workspace")[0],
            grants=opening.options(
                {
                    "read": keywords.paths(read, f"{_WHERE}.read"),
                    "write": keywords.paths(write, f"{_WHERE}.write"),
                    "exec": keywords.paths(exec, f"{_WHERE}.exec"),
                    "deny": keywords.paths(deny, f"{_WHERE}.deny"),
                    "protect": keywords.paths(protect, f"{_WHERE}.protect"),
                    "connect": keywords.words(connect, f"{_WHERE}.connect"),
                    "listen": keywords.ports(listen, f"{_WHERE}.listen"),
                    "unix": keywords.paths(unix, f"{_WHERE}.unix"),
                    "env": keywords.variables(env, f"{_WHERE}.env"),
                    "limit": keywords.limits(limits, f"{_WHERE}.limits"),
                    "allow-syscalls": keywords.words(allow_syscalls, f"{_WHERE}.allow_syscalls"),
                    "degrade": keywords.words(degrade, f"{_WHERE}.degrade"),
                    "expires": [ends] if ends else [],
                    "purpose": [purpose] if purpose else [],
                }
            ),
        )
        self._open(wanted)

    @abstractmethod
    def _open(self, wanted: opening.Wanted) -> None:
        """Begin, or keep what is to be begun. Raises RemitError."""

    def _begin(self, opened: Opened) -> None:
        self._opened = opened
        _sessions.add(self)

    def _begun(self) -> Opened:
        if self._opened is None:
            raise SessionClosed("the session has not begun", hint="'async with' begins it, or 'await'")
        return self._opened

    @property
    def _core(self) -> Core:
        return self._begun().core

    @property
    def _door(self) -> Door:
        return self._begun().door

    @property
    def enforcement(self) -> dict[str, str]:
        """What the start proved, layer by layer."""
        return self._begun().enforcement

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should hear, such as a suggestion in the workspace that was not applied."""
        return self._begun().warnings

    def __repr__(self) -> str:
        if self._opened is None:
            return f"<{type(self).__name__} that has not begun>"
        return f"<{type(self).__name__} {self.id}{' closed' if self._core.shared.closed else ''}>"

    def abandon(self) -> None:
        """In a forked child: it is the parent's."""
        self._door.abandon()
        self._core.shared.abandon()

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

    # --- the steps of a call -------------------------------------------------------------------------------------------

    def _narrowed(self, grant: Grant, principal: str, task: str, purpose: str) -> Opened:
        asked = a_grant(grant)
        if asked is None:
            raise TypeError("grant is a remit.Grant, not None")
        core = self._core.narrow(asked, principal=principal, task=task, purpose=purpose)
        return replace(self._begun(), core=core, owner=False, warnings=())

    def _taken_back(self, grant: Held | CompletedCall[Any] | Handle | str | None) -> str:
        """From now on nothing starts under it; what runs is the door's to end."""
        return self._core.revoke(grant.grant if isinstance(grant, CompletedCall | Handle) else grant)

    def _armed(self, grant: Grant | None) -> Armed:
        """Where to send a request under ``grant``, held for it. Blocks where that is not known yet."""
        core = self._core
        known = core.ready(a_grant(grant))
        if known is not None:
            return known  # what makes a call impossible is looked at when it has a ticket
        core.check(core.chain, core.grant)
        self._forget_given_up()
        armed, definition = core.armed(grant, _packet_pair)
        try:
            if definition is not None:
                identifier, wire, theirs = definition
                self._door.define(identifier, wire, theirs)
        except BaseException:
            core.shared.release(armed)
            raise
        return armed

    def _ticket(
        self,
        armed: Armed,
        args: Sequence[StrPath] | str,
        grant: Grant | None,
        *,
        cwd: StrPath | None,
        env: Mapping[str, str] | None,
        shell: bool,
        pty: bool,
        background: bool,
    ) -> Ticket:
        words: Sequence[Any] = ["/bin/sh", "-c", args] if shell else [args] if isinstance(args, str) else list(args)
        if cwd is not None:
            _check_directory(cwd)
        terminal = (window(*_WINDOW), (True, True, True)) if pty else None
        ticket = self._core.ticket(armed, grant, words, cwd=cwd, env=env, terminal=terminal, background=background)
        files = self._core.files(grant)
        if files:
            self._door.watch(files)
        return ticket

    def _send(self, ticket: Ticket, theirs: socket.socket, streams: Streams, flags: int = 0) -> float | None:
        """Send a request: None when it is sent, else for how many seconds to wait for anything to change before the next
        try (0: until the socket is writable, with ``flags`` MSG_DONTWAIT). Raises RemitError.
        """
        try:
            send(ticket.requests, ticket.data, [theirs.fileno(), *streams.theirs], flags)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == _TOO_MANY_IN_FLIGHT:
                return PAUSE
            if error.errno not in _GONE and ticket.requests.fileno() >= 0:
                # What was to be sent is at fault, such as a descriptor closed meanwhile.
                raise not_started(error) from None
            self._door.drain(self._core, ticket.armed.identifier)
            raise self._core.failure(ticket) from None
        return None

    def _handle(
        self,
        kind: type[HandleType],
        ticket: Ticket,
        ours: socket.socket,
        streams: Streams,
        *,
        background: bool,
        decode: Decode,
    ) -> HandleType:
        conversation = Conversation(self._core, self._door, ticket, ours)
        made = kind(conversation, streams, background=background, decode=decode)
        _handles.add(made)
        return made

    def _forget_given_up(self) -> None:
        """Blocks. Best when a request is on its way: what ends in the session then would take the processor time that its call
        waits for."""
        given_up = self._core.shared.given_up
        while True:
            try:
                old = given_up.pop()
            except IndexError:
                return  # by now, or by another thread
            self._door.forget(old.identifier)
            old.requests.close()


def a_grant(grant: Any) -> Grant | None:
    """Raises TypeError: it is none. A result's ``grant``, which says what a call ran under, is none to call with either."""
    if grant is None or isinstance(grant, Grant):
        return grant
    raise TypeError(f"grant is a remit.Grant, not {type(grant).__name__}: {grant!r}")


def _check_directory(cwd: Any) -> None:
    """Raises LaunchError; TypeError where it is no path."""
    if isinstance(cwd, bytes):
        raise TypeError(f"cwd is a string or a pathlib.Path, not {cwd!r}")
    try:
        path = os.fsencode(cwd)
    except UnicodeEncodeError:
        path = b"\0"
    if not path:
        raise LaunchError("an empty path", where="cwd", hint="leave it out for the workspace, or write '.'")
    if b"\0" in path:
        raise LaunchError(f"{cwd!r} cannot be a path", where="cwd", hint="remove the NUL, or the lone surrogate")


def reply_pair() -> tuple[socket.socket, socket.socket]:
    """Where a call's answer comes out, and where it goes in."""
    return _pair()


def _pair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise not_started(error) from None


def _packet_pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = _pair()
    return ours, theirs
