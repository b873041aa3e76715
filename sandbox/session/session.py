"""``remit.Session``: a running ceiling, and calls in it, each under its own narrower grant. Blocking; for any thread."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, overload

from remit.sandbox.authority.grant import Grant as Held
from remit.sandbox.session.asked import Grant, StrPath
from remit.sandbox.session.base import Base, begin, reply_pair
from remit.sandbox.session.call import Popen
from remit.sandbox.session.core import Ticket
from remit.sandbox.session.handle import Handle, Timeout, size
from remit.sandbox.session.opening import Wanted
from remit.sandbox.session.result import CAPTURE_LIMIT, CompletedCall
from remit.sandbox.session.streams import PIPE, Decode, Stream, Streams, decoder, encoded

# As a plain number: an enumeration's "or" takes as long as the call.
_NEVER_WAIT = int(socket.MSG_DONTWAIT)


class Session(Base):
    """A session: its authority is the ceiling of every call in it.

    The authority is the profile's and what the keywords add (``read``, ``write``, ``exec``, ``connect``, ...) or take
    away (``deny``, ``protect``), as the options of ``remit run`` do; paths are relative to the current directory. The
    session starts with the object and ends with ``close``, which the context manager calls; it ends with this process in
    any case.

    Raises:
        remit.Error: a bad option or profile, ``Unenforceable``, a start that failed.
    """

    def _open(self, wanted: Wanted) -> None:
        self._begin(begin(wanted))

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session and everything in it. A narrowed session: take its grant back. Twice is once."""
        self._begun().stop()

    def narrow(self, grant: Grant, *, principal: str = "", task: str = "", purpose: str = "") -> Session:
        """A session in this one whose ceiling is ``grant``: for a sub-agent. Closing it takes the grant back.

        Raises GrantError: the grant is beyond this session's authority, or this is the eighth narrowing.
        """
        made = object.__new__(type(self))
        made._begin(self._narrowed(grant, principal, task, purpose))
        return made

    def revoke(self, grant: Held | CompletedCall[Any] | Handle | str | None = None) -> list[str]:
        """Take a grant back: a result's, a running call's, an id's, or (without one) this session's own.

        Nothing can start under it or under what was narrowed from it; calls that run under it are ended (or stopped, as
        the profile says). Returns their ids.
        """
        return self._door.revoke(self._core, self._taken_back(grant))

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
        within, max_output = Timeout(timeout), size(max_output)
        decode = decoder(text, encoding, errors)
        given = encoded(input, decode)
        with self._start(
            args,
            grant,
            Streams(PIPE if input is not None else stdin, stdout, stderr, pty=False),
            decode,
            cwd=cwd,
            env=env,
            shell=shell,
            within=within,
        ) as call:
            result = call.complete(given, within, max_output)
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
        decode = decoder(text, encoding, errors)
        call = self._start(
            args,
            grant,
            Streams(stdin, stdout, stderr, pty=pty),
            decode,
            cwd=cwd,
            env=env,
            shell=shell,
            within=Timeout(None),
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
        decode: Decode,
        *,
        cwd: StrPath | None,
        env: Mapping[str, str] | None,
        shell: bool,
        within: Timeout,
        pty: bool = False,
        background: bool = False,
    ) -> Popen:
        try:
            armed = self._armed(grant)
            try:
                ticket = self._ticket(armed, args, grant, cwd=cwd, env=env, shell=shell, pty=pty, background=background)
                ours, theirs = reply_pair()
                with theirs:
                    try:
                        self._deliver(ticket, theirs, streams, within)
                        self._forget_given_up()
                    except BaseException:
                        ours.close()
                        raise
            except BaseException:
                self._core.shared.release(armed)
                raise
        except BaseException:
            streams.close()
            raise
        finally:
            streams.close_theirs()
        return self._handle(Popen, ticket, ours, streams, background=background, decode=decode)

    def _deliver(self, ticket: Ticket, theirs: socket.socket, streams: Streams, within: Timeout) -> None:
        """Send a request. Raises TimeoutExpired: there was no room for it in time, and nothing is started; as ``_send``."""
        flags = 0 if within.given is None else _NEVER_WAIT
        while (pause := self._send(ticket, theirs, streams, flags)) is not None:
            if within.over():
                raise within.expired(ticket.args)
            if pause:
                time.sleep(pause)
                continue
            room = select.poll()
            room.register(ticket.requests.fileno(), select.POLLOUT)
            room.poll(within.milliseconds())
