"""``remit exec``: one call in a standing session, with the caller's own streams, signals and terminal."""

from __future__ import annotations

import errno
import os
import posix
import select
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from remit.sandbox.authority.errors import RemitError
from remit.sandbox.kernel import process
from remit.sandbox.launch import terminal
from remit.sandbox.launch.signals import FORWARDED, SIGCONT, SIGWINCH
from remit.sandbox.launch.stdio import is_place
from remit.sandbox.session import standing
from remit.sandbox.session.door import Door
from remit.sandbox.session.link import descriptors, message, receive, send
from remit.sandbox.session.oneshot import REVOKED_STATUS, TIME_LIMIT_STATUS
from remit.sandbox.session.result import CompletedCall, GrantExpired, GrantRevoked
from remit.sandbox.session.streams import copy_of_regular, refuse_place

if TYPE_CHECKING:
    from remit.sandbox.launch.request import Terminal
    from remit.sandbox.session.asked import Grant
    from remit.sandbox.session.core import Core, Ticket

_REPLY = 1 << 17
_SIGINFO_SIZE = 128
_GROUP = frozenset([2, 3, 18, 20])
"""SIGINT, SIGQUIT, SIGCONT, SIGTSTP: what a terminal sends goes to the whole group."""


class Ended(RemitError):
    """A call that had started, and that the end of its grant ended, or stopped where it stood. ``limit`` and the exit status are
    what ``remit run`` says of the same; ``denied``: how many of its actions were outside the grant."""

    phase = "grant"

    def __init__(self, error: GrantExpired | GrantRevoked, denied: int) -> None:
        super().__init__(str(error), hint=error.hint)
        expired = isinstance(error, GrantExpired)
        self.limit = "time" if expired else "revoked"
        self.exit_status = TIME_LIMIT_STATUS if expired else REVOKED_STATUS
        self.denied = denied


def run(
    session: str,
    argv: tuple[str, ...],
    grant: Grant | None,
    environ: Mapping[str, str],
    directory: str,
    on_start: Callable[[str], None],
) -> CompletedCall[Any]:
    """One call, to its end, on descriptors 0 to 2. Raises Ended; another RemitError where the command never ran.

    ``on_start`` hears the call's id when the command has begun.
    """
    core = standing.core_of(session, environ)
    with standing.connected(session, environ) as link:
        door = Door(link.attach(session), link)
        try:
            return _Running(core, door, argv, grant, directory, on_start).wait()
        finally:
            door.close()


class _Running:
    def __init__(
        self,
        core: Core,
        door: Door,
        argv: tuple[str, ...],
        grant: Grant | None,
        directory: str,
        on_start: Callable[[str], None],
    ) -> None:
        self._core = core
        self._door = door
        self._terminal: Terminal | None = terminal.wanted()
        self._relay: terminal.Relay | None = None
        self._answer: tuple[Any, ...] | None = None
        self._on_start = on_start
        process.block_signals(FORWARDED)
        self._signals = process.signalfd(FORWARDED)
        armed, definition = core.armed(grant, socketpair)
        if definition is not None:
            door.define(*definition)
        wanted = None if self._terminal is None else (self._terminal.size, self._terminal.replaces)
        self._ticket: Ticket = core.ticket(
            armed, grant, list(argv), cwd=directory or None, env=None, terminal=wanted, background=False, jobs=True
        )
        files = core.files(grant)
        if files:
            door.watch(files)
        self._reply, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        streams = [_stdin(), 1, 2]
        for number, name in ((1, "stdout"), (2, "stderr")):
            with suppress(OSError):  # closed: whoever sends it says so
                refuse_place(number, name)
        try:
            send(armed.requests, self._ticket.data, [theirs.fileno(), *streams])
        except OSError:
            door.drain(core, armed.identifier)
            raise core.failure(self._ticket) from None
        finally:
            theirs.close()

    def wait(self) -> CompletedCall[Any]:
        """Relay, forward and listen until the command has ended."""
        watch = select.poll()
        watch.register(self._reply, select.POLLIN)
        watch.register(self._signals, select.POLLIN)
        try:
            while self._answer is None:
                relay = self._relay
                for descriptor, events in watch.poll(relay.watch(watch) if relay is not None else None):
                    if descriptor == self._reply.fileno():
                        self._listen(watch)
                    elif descriptor == self._signals:
                        self._forward()
                    elif relay is not None and descriptor == relay.master:
                        if events & select.POLLOUT:
                            relay.flush()
                        if events & (select.POLLIN | select.POLLHUP) and not relay.output():
                            watch.unregister(relay.master)
                            self._end_relay(watch)
                    elif relay is not None and descriptor == relay.source and not relay.keys():
                        watch.unregister(descriptor)
        finally:
            if self._relay is not None:
                self._relay.drain()
                self._relay.suspend()
        try:
            return self._core.completed(self._ticket, self._answer, None, None)
        except (GrantExpired, GrantRevoked) as error:
            raise Ended(error, self._answer[5]) from None

    def _listen(self, watch: select.poll) -> None:
        try:
            # A signal that was sent as the command ended may be unread.
            data, ancillary = receive(self._reply, _REPLY, 64)
        except OSError:
            data, ancillary = b"", []
        heard = message(data)
        if heard[0] == "terminal" and self._terminal is not None:
            master = descriptors(ancillary)[0]
            self._relay = terminal.Relay(self._terminal, master)
            if self._terminal.attributes is not None:
                import termios

                termios.tcsetattr(master, termios.TCSANOW, self._terminal.attributes)  # type: ignore[arg-type]
        elif heard[0] == "began":
            self._on_start(self._ticket.call)
        elif heard[0] == "stopped":
            terminal.stop(self._relay)  # to let the command go on is for whoever lets this process go on (``_forward``)
        elif heard[0] == "exited":
            self._answer = heard
        elif heard[0] == "frozen":
            try:
                self._core.raise_ended(self._ticket, heard[1], "the call is stopped where it stood")
            except (GrantExpired, GrantRevoked) as error:
                raise Ended(error, 0) from None
        else:
            if heard[0] == "lost":
                self._door.drain(self._core, self._ticket.armed.identifier)
            raise self._core.failure(self._ticket, heard)

    def _end_relay(self, watch: select.poll) -> None:
        relay = self._relay
        if relay is not None:
            relay.leave(watch)
            self._relay = None

    def _forward(self) -> None:
        try:
            data = posix.read(self._signals, _SIGINFO_SIZE * 16)
        except BlockingIOError:
            return
        for start in range(0, len(data), _SIGINFO_SIZE):
            number = int.from_bytes(data[start : start + 4], "little")
            if number == SIGWINCH:
                if self._relay is not None:
                    self._relay.resize()
                continue
            if number == SIGCONT and self._relay is not None:
                self._relay.resume()
            kind = b"g" if number in _GROUP else b"s"
            try:
                self._reply.send(kind + number.to_bytes(4, "little"))
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                    raise


def socketpair() -> tuple[socket.socket, socket.socket]:
    """A socket for requests: ours and the session's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ours, theirs


def _stdin() -> int:
    try:
        if not is_place(0):
            copied = copy_of_regular(0, "pass it through a pipe: cat FILE | remit exec ...")
            return 0 if copied < 0 else copied
    except OSError:
        pass  # closed
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
