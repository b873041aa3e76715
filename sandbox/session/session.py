"""``remit.Session``: a running ceiling, and calls in it, each under its own narrower grant. Blocking; for any thread."""

from __future__ import annotations

import io
import marshal
import os
import select
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Literal, overload

from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.authority.grant import Grant as Held
from remit.sandbox.session import opening
from remit.sandbox.session.asked import Grant, StrPath
from remit.sandbox.session.core import Core, Ticket
from remit.sandbox.session.link import Link, descriptors
from remit.sandbox.session.result import (
    Capture,
    CompletedCall,
    GrantExpired,
    SessionClosed,
    TimeoutExpired,
)

PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
_REPLY = 1 << 17
_CHUNK = 1 << 16
_INLINE = 1 << 16
_STDIN_COPY = 64 << 20
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
        session._abandon()


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
                    "read": map(os.fspath, read),
                    "write": map(os.fspath, write),
                    "exec": map(os.fspath, exec),
                    "deny": map(os.fspath, deny),
                    "protect": map(os.fspath, protect),
                    "connect": connect,
                    "listen": map(str, listen),
                    "unix": map(os.fspath, unix),
                    "env": (f"{k}={v}" for k, v in env.items()) if isinstance(env, Mapping) else env,
                    "limit": (f"{name}={value}" for name, value in (limits or {}).items()),
                    "allow-syscalls": allow_syscalls,
                    "degrade": degrade,
                    "expires": [expires] if expires else [],
                    "purpose": [purpose] if purpose else [],
                }
            ),
        )
        link = _template()
        core, enforcement, door = opening.open_session(link, wanted, os.environ)
        self._begin(core, link, _Door(door), enforcement, owner=True)

    def _begin(self, core: Core, link: Link | None, door: _Door, enforcement: Mapping[str, str], *, owner: bool) -> None:
        self._core = core
        self._link = link
        self._door = door
        self._owner = owner
        self._pid = os.getpid()
        self.enforcement = dict(enforcement)
        """What the start proved, layer by layer."""
        _sessions.add(self)

    def _abandon(self) -> None:
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
        stdin: int | IO[Any] | None = ...,
        input: bytes | None = ...,
        stdout: int | IO[Any] | None = ...,
        stderr: int | IO[Any] | None = ...,
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
        stdin: int | IO[Any] | None = ...,
        input: str | None = ...,
        stdout: int | IO[Any] | None = ...,
        stderr: int | IO[Any] | None = ...,
        text: bool | None = ...,
        cwd: StrPath | None = ...,
        env: Mapping[str, str] | None = ...,
        timeout: float | None = ...,
        check: bool = ...,
        shell: bool = ...,
        encoding: str | None = ...,
        errors: str | None = ...,
        max_output: int = ...,
    ) -> CompletedCall[str]: ...
    def run(
        self,
        args: Sequence[StrPath] | str,
        *,
        grant: Grant | None = None,
        stdin: int | IO[Any] | None = None,
        input: bytes | str | None = None,
        stdout: int | IO[Any] | None = PIPE,
        stderr: int | IO[Any] | None = PIPE,
        text: bool | None = None,
        cwd: StrPath | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        check: bool = False,
        shell: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        max_output: int = Capture().limit,
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
        with self.popen(
            args,
            grant=grant,
            stdin=PIPE if input is not None else stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=env,
            shell=shell,
        ) as call:
            call._decode = _decoder(text, encoding, errors)
            result = call._complete(_encoded(input, encoding), timeout, max_output)
        if check:
            result.check_returncode()
        return result

    def popen(
        self,
        args: Sequence[StrPath] | str,
        *,
        grant: Grant | None = None,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = PIPE,
        stderr: int | IO[Any] | None = PIPE,
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
        words: Sequence[Any] = ["/bin/sh", "-c", args] if shell else [args] if isinstance(args, str) else list(args)
        core = self._core
        armed = self._armed(grant)
        ticket = core.ticket(
            armed,
            grant,
            words,
            cwd=cwd,
            env=env,
            terminal=_window(*_WINDOW) if pty else None,
            background=background,
        )
        streams = _Streams(stdin, stdout, stderr, pty=pty)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                socket.send_fds(armed.requests, [ticket.data], [theirs.fileno(), *streams.theirs])
            except OSError as error:
                ours.close()
                if error.errno in (90, 105):  # EMSGSIZE, ENOBUFS
                    raise LaunchError(
                        f"arguments and environment take {len(ticket.data)} bytes, more than a request carries",
                        hint="pass large data through stdin or a file",
                    ) from None
                self._door.drain(core)
                raise core.failure(ticket, None) from None
            finally:
                theirs.close()
        except BaseException:
            streams.close()
            raise
        finally:
            streams.close_theirs()
        call = Popen(self, ticket, ours, streams, background=background)
        call._decode = _decoder(text, encoding, errors)
        call._open_streams(text=call._decode is not None)
        return call

    def _armed(self, grant: Grant | None) -> Any:
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


class _Door:
    """The socket to the session's first process."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._kept: list[tuple[Any, ...]] = []

    def define(self, identifier: int, wire: Any, theirs: socket.socket) -> None:
        with theirs:
            self._send(("policy", identifier, wire), [theirs.fileno()])

    def forget(self, identifier: int) -> None:
        self._send(("forget", identifier))

    def revoke(self, grant: str) -> list[str]:
        with self._lock:
            try:
                self._socket.send(marshal.dumps(("revoke", grant)))
                while True:
                    message = self._next(wait=True)
                    if message is None:
                        return []
                    if message[0] == "revoked" and message[1] == grant:
                        return list(message[2])
                    self._kept.append(message)
            except OSError:
                return []  # the session has ended, and with it every call

    def drain(self, core: Core) -> None:
        """Hear what the session's first process has said by now."""
        with self._lock:
            while True:
                try:
                    message = self._next(wait=False)
                except OSError:
                    break
                if message is None:
                    break
                core.heard(message)
            for message in self._kept:
                core.heard(message)
            self._kept.clear()

    def _next(self, *, wait: bool) -> tuple[Any, ...] | None:
        data, ancillary, _, _ = self._socket.recvmsg(_REPLY, 0, 0 if wait else socket.MSG_DONTWAIT)
        for descriptor in descriptors(ancillary):
            os.close(descriptor)
        return marshal.loads(data) if data else None

    def _send(self, message: tuple[Any, ...], passed: Sequence[int] = ()) -> None:
        data = marshal.dumps(message)
        try:
            with self._lock:
                socket.send_fds(self._socket, [data], passed)
        except OSError as error:
            if error.errno in (90, 105):
                raise LaunchError(f"the grant compiles to {len(data)} bytes", hint="grant fewer things") from None
            raise SessionClosed("the session has ended", hint="open a new session") from None

    def close(self) -> None:
        self._socket.close()

    def abandon(self) -> None:
        self._lock = threading.Lock()
        self._socket.close()


class _Streams:
    """The three standard descriptors of a call: theirs to send, ours to keep."""

    def __init__(
        self, stdin: int | IO[Any] | None, stdout: int | IO[Any] | None, stderr: int | IO[Any] | None, *, pty: bool
    ) -> None:
        self.theirs: list[int] = []
        self.ours = [-1, -1, -1]
        self._opened: list[int] = []
        if pty:
            return
        try:
            self.theirs.append(self._input(stdin))
            self.theirs.append(self._output(1, stdout))
            self.theirs.append(self.theirs[1] if stderr == STDOUT else self._output(2, stderr))
        except BaseException:
            self.close()
            self.close_theirs()
            raise

    def _input(self, wanted: int | IO[Any] | None) -> int:
        if wanted == PIPE:
            read, self.ours[0] = os.pipe2(os.O_CLOEXEC)
            return self._own(read)
        if wanted is None or wanted == DEVNULL:
            return self._own(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        descriptor = wanted if isinstance(wanted, int) else wanted.fileno()
        copied = copy_of_regular(descriptor)
        return descriptor if copied < 0 else self._own(copied)

    def _output(self, which: int, wanted: int | IO[Any] | None) -> int:
        if wanted == PIPE:
            self.ours[which], write = os.pipe2(os.O_CLOEXEC)
            return self._own(write)
        if wanted == DEVNULL:
            return self._own(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))
        if wanted is None:
            return which
        return wanted if isinstance(wanted, int) else wanted.fileno()

    def _own(self, descriptor: int) -> int:
        self._opened.append(descriptor)
        return descriptor

    def close_theirs(self) -> None:
        for descriptor in self._opened:
            os.close(descriptor)
        self._opened.clear()

    def close(self) -> None:
        for index, descriptor in enumerate(self.ours):
            if descriptor >= 0:
                os.close(descriptor)
                self.ours[index] = -1


def copy_of_regular(descriptor: int) -> int:
    """What is left to read of a regular file, in memory and sealed; -1 for anything else.

    A regular file's descriptor is a door: ``/proc/self/fd/0`` opens it again, for writing too.
    """
    import fcntl
    import stat

    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return -1
    copy = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    left = _STDIN_COPY
    while left > 0 and (data := os.read(descriptor, min(_CHUNK, left))):
        os.write(copy, data)
        left -= len(data)
    if left <= 0 and os.read(descriptor, 1):
        os.close(copy)
        raise LaunchError(
            f"stdin is a file of more than {_STDIN_COPY >> 20} MiB", hint="pass it through a pipe (stdin=PIPE)"
        )
    os.lseek(copy, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
    return copy


class Popen:
    """A running call, with the names of ``subprocess.Popen``."""

    def __init__(
        self, session: Session, ticket: Ticket, reply: socket.socket, streams: _Streams, *, background: bool
    ) -> None:
        self._session = session
        self._ticket = ticket
        self._reply = reply
        self._streams = streams
        self._background = background
        self._decode: tuple[str, str] | None = None
        self._answer: tuple[Any, ...] | None = None
        self._frozen = ""
        self.args = ticket.args
        self.call = ticket.call
        """The call's id in the session."""
        self.grant = ticket.grant
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        self.terminal = -1
        """With ``pty``: the master side's descriptor, once the command has started (``wait_started``)."""
        self.returncode: int | None = None

    def _open_streams(self, *, text: bool) -> None:
        names = ("stdin", "stdout", "stderr")
        for index, name in enumerate(names):
            descriptor = self._streams.ours[index]
            if descriptor >= 0:
                raw = io.FileIO(descriptor, "w" if index == 0 else "r")
                file: IO[Any] = io.BufferedWriter(raw) if index == 0 else io.BufferedReader(raw)
                if text and self._decode is not None:
                    file = io.TextIOWrapper(file, *self._decode)  # type: ignore[arg-type]  # a buffered one
                setattr(self, name, file)

    def __enter__(self) -> Popen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is not None and self._answer is None:
                self.kill()
            if not self._background and self._answer is None:
                self._wait_answer(None)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the call: what still runs of it is ended."""
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                try:
                    file.close()
                except OSError:
                    pass  # a broken pipe on the last flush
        if self.terminal >= 0:
            os.close(self.terminal)
            self.terminal = -1
        self._reply.close()

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self._answer is None and self._reply.fileno() >= 0 and _readable(self._reply, 0):
            self._listen()
        return self._status()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the command to end. Raises TimeoutExpired (it goes on running), GrantExpired, GrantRevoked."""
        if not self._wait_answer(timeout):
            assert timeout is not None
            raise TimeoutExpired(self.args, timeout)
        self._raise_frozen()
        status = self._status()
        assert status is not None
        return status

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Send ``input``, read both streams to their ends, wait. Raises TimeoutExpired (it goes on running)."""
        result = self._complete(_encoded(input, None), timeout, Capture().limit, kill=False)
        return result.stdout, result.stderr

    def result(self) -> CompletedCall[Any]:
        """Everything about a call that has ended (streams that were pipes are the caller's to read)."""
        self._wait_answer(None)
        self._raise_frozen()
        return self._completed(None, None)

    def send_signal(self, signal: int) -> None:
        """A signal for the command."""
        self._say(b"s" + int(signal).to_bytes(4, "little"))

    def terminate(self) -> None:
        """SIGTERM for the command."""
        self.send_signal(15)

    def kill(self) -> None:
        """End the command and, unless it is a background call, everything that it started."""
        self._say(b"k")

    def resize(self, rows: int, columns: int) -> None:
        """The terminal's window has this size now."""
        import fcntl
        import termios

        self.wait_started()
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, _window(rows, columns))

    def wait_started(self) -> None:
        """With ``pty``: until there is a terminal, or the call has failed."""
        while self.terminal < 0 and self._answer is None:
            self._listen()

    # --- inside --------------------------------------------------------------------------------------------------------

    def _say(self, message: bytes) -> None:
        if self._answer is None or self._background:
            try:
                self._reply.send(message, socket.MSG_NOSIGNAL)
            except OSError:
                pass  # it has ended

    def _listen(self) -> None:
        """One message about the call. Raises what made it impossible."""
        try:
            data, ancillary, _, _ = self._reply.recvmsg(_REPLY, 64, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            data, ancillary = b"", []
        core = self._session._core
        if not data:
            self._session._door.drain(core)
            self._answer = ("lost",)
            raise core.failure(self._ticket, None)
        message: tuple[Any, ...] = marshal.loads(data)
        if message[0] == "terminal":
            self.terminal = descriptors(ancillary)[0]
        elif message[0] == "frozen":
            self._frozen = message[1]
        elif message[0] == "failed":
            self._answer = message
            raise core.failure(self._ticket, message)
        else:
            self._answer = message

    def _raise_frozen(self) -> None:
        if self._frozen and self._answer is None:
            raise GrantExpired(
                f"grant {self.grant.id} {self._frozen}; the call is stopped where it stood",
                hint="kill() ends it; the session's end ends it too",
            )

    def _wait_answer(self, timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._answer is None and not self._frozen:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if left is not None and not _readable(self._reply, left):
                return False
            self._listen()
        return True

    def _status(self) -> int | None:
        if self._answer is not None and self._answer[0] == "exited":
            self.returncode = os.waitstatus_to_exitcode(self._answer[1])
        return self.returncode

    def _completed(self, stdout: Any, stderr: Any, lost: tuple[int, int] = (0, 0)) -> CompletedCall[Any]:
        assert self._answer is not None
        result = self._session._core.completed(self._ticket, self._answer, stdout, stderr, lost)
        self.returncode = result.returncode
        return result

    def _complete(
        self, given: bytes | None, timeout: float | None, limit: int, *, kill: bool = True
    ) -> CompletedCall[Any]:
        """Feed it, read it, wait for it."""
        deadline = None if timeout is None else time.monotonic() + timeout
        captures: dict[int, Capture] = {}
        watch = select.poll()
        watch.register(self._reply.fileno(), select.POLLIN)
        for index in (1, 2):
            if self._streams.ours[index] >= 0:
                captures[self._streams.ours[index]] = Capture(limit)
                watch.register(self._streams.ours[index], select.POLLIN)
        writer = self._streams.ours[0]
        pending = memoryview(given or b"")
        if writer >= 0:
            if pending:
                os.set_blocking(writer, False)
                watch.register(writer, select.POLLOUT)
            else:
                self._close_stdin()
        streaming = len(captures)
        while self._answer is None or streaming:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = watch.poll(None if left is None else left * 1000)
            if not ready and left is not None and not left:
                self._expire(timeout, captures, kill=kill)
            for descriptor, events in ready:
                if descriptor in captures:
                    data = os.read(descriptor, _CHUNK)
                    if data:
                        captures[descriptor].add(data)
                    else:
                        watch.unregister(descriptor)
                        streaming -= 1
                elif descriptor == writer:
                    if events & (select.POLLERR | select.POLLHUP):
                        pending = pending[:0]
                    else:
                        try:
                            pending = pending[os.write(descriptor, pending[:_CHUNK]) :]
                        except (BrokenPipeError, BlockingIOError) as error:
                            pending = pending[:0] if isinstance(error, BrokenPipeError) else pending
                    if not pending:
                        watch.unregister(descriptor)
                        self._close_stdin()
                else:
                    self._listen()
                    self._raise_frozen()
                    if self._answer is not None:
                        watch.unregister(descriptor)
        values = [self._text(captures.get(self._streams.ours[index])) for index in (1, 2)]
        lost = [captures[fd].lost if (fd := self._streams.ours[index]) in captures else 0 for index in (1, 2)]
        return self._completed(values[0], values[1], (lost[0], lost[1]))

    def _expire(self, timeout: float | None, captures: Mapping[int, Capture], *, kill: bool) -> None:
        assert timeout is not None
        if kill:
            self.kill()
            self._wait_answer(None)
        values = [self._text(captures.get(self._streams.ours[index])) for index in (1, 2)]
        raise TimeoutExpired(self.args, timeout, values[0], values[1])

    def _close_stdin(self) -> None:
        if self.stdin is not None:
            try:
                self.stdin.close()
            except OSError:
                pass

    def _text(self, capture: Capture | None) -> Any:
        if capture is None:
            return None
        data = capture.value()
        if self._decode is None:
            return data
        return data.decode(*self._decode).replace("\r\n", "\n").replace("\r", "\n")


def _decoder(text: bool | None, encoding: str | None, errors: str | None) -> tuple[str, str] | None:
    return (encoding or "utf-8", errors or "strict") if text or encoding or errors else None


def _encoded(given: Any, encoding: str | None) -> bytes | None:
    return given.encode(encoding or "utf-8") if isinstance(given, str) else given


def _readable(connection: socket.socket, timeout: float) -> bool:
    watch = select.poll()
    watch.register(connection.fileno(), select.POLLIN)
    return bool(watch.poll(timeout * 1000))


def _packet_pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    return ours, theirs


def _window(rows: int, columns: int) -> bytes:
    """``struct winsize`` (``tty_ioctl(4)``)."""
    return rows.to_bytes(2, "little") + columns.to_bytes(2, "little") + bytes(4)
