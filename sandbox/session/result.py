"""What a call gives back, and the errors that are about calls."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from remit.sandbox.authority.errors import GrantError, RemitError
from remit.sandbox.authority.grant import Grant

if TYPE_CHECKING:
    from remit.sandbox.audit.context import Context
    from remit.sandbox.audit.why import Explanation
    from remit.sandbox.events.event import Event

Output = TypeVar("Output", bytes, str)
REPORTED = 128
"""So many denials come with a call's answer (``launch.jail``)."""
CAPTURE_LIMIT = 64 << 20
"""Bytes of each stream that a result keeps: the first half of it and the last half of it. Reading never stops, so that a
command is not blocked by its own output; ``stdout_lost`` and ``stderr_lost`` say how much is missing in the middle."""


class SessionClosed(RemitError):
    """The session has ended, or was never this process's."""

    phase = "session"


class TimeoutExpired(RemitError, subprocess.TimeoutExpired):
    """The call took longer than its ``timeout`` and was ended, with everything that it had started."""

    phase = "timeout"

    def __init__(self, cmd: Any, timeout: float, output: Any = None, stderr: Any = None) -> None:
        RemitError.__init__(self, f"{cmd!r} timed out after {timeout} seconds")
        subprocess.TimeoutExpired.__init__(self, cmd, timeout, output, stderr)

    def __str__(self) -> str:
        return self.message


class CalledProcessError(RemitError, subprocess.CalledProcessError):
    """``check=True``, and the command failed. ``result`` is the whole result."""

    phase = "call"

    def __init__(self, result: CompletedCall[Any]) -> None:
        RemitError.__init__(self, f"{result.args!r} returned {result.returncode}")
        subprocess.CalledProcessError.__init__(self, result.returncode, result.args, result.stdout, result.stderr)
        self.result = result

    def __str__(self) -> str:
        return self.message


class GrantExpired(GrantError):
    """The grant ended before the call did; the call was ended or, with ``freeze``, stopped."""


class GrantRevoked(GrantError):
    """The grant was taken back before the call ended; the call was ended or, with ``freeze``, stopped."""


@dataclass(frozen=True, slots=True)
class Denial:
    """One action outside the grant, as the mediator saw it. ``object`` is canonical; ``rule`` says what refused it.

    ``str()`` of it is what a model should read, in at most three lines: what was denied, that trying again is pointless,
    what is missing and whom to ask.
    """

    object: str
    right: str
    errno: int
    rule: str
    pid: int = 0
    event: Event | None = field(default=None, repr=False, compare=False)
    context: Context | None = field(default=None, repr=False, compare=False)

    @property
    def missing(self) -> tuple[str, ...]:
        """The smallest grant that would have allowed it, as words of the command line; none where nothing would."""
        found = self._explained()
        return () if found is None else found.grant

    @property
    def message(self) -> str:
        """As ``str()``."""
        found = self._explained()
        if found is None:
            return f"Denied by the sandbox: {self.right} {self.object}: {self.rule}."
        from remit.sandbox.audit import message

        return message.text(found)

    def _explained(self) -> Explanation | None:
        return None if self.event is None or self.context is None else self.context.explain(self.event)

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class OfNetwork:
    """Where a call's denials are that its answer does not bring: the gateway is in another process, and tells the record.

    ``directory``: the record's. ``begin``: how long it was before the call. ``context``: what they are explained by.
    """

    directory: str
    begin: int
    context: Context

    def read(self, call: str) -> tuple[Denial, ...]:
        """As soon as the record tells of the call's end. Raises RecordError."""
        from remit.sandbox.audit import denials

        decider = self.context.decider()
        events = denials.of_network(self.directory, self.begin, call, lambda _: decider)
        return tuple(
            Denial(event.object, event.right, 0, event.rule.text, event.pid, event, self.context) for event in events
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call used: ``cpu`` (user and system, of the command and the children that it waited for) and ``wall`` in
    seconds, ``memory_peak`` in bytes. ``memory_is_sum`` false: the largest single process's (``getrusage(2)``)."""

    cpu: float
    wall: float
    memory_peak: int
    memory_is_sum: bool = False


@dataclass(frozen=True, slots=True)
class CompletedCall(Generic[Output]):
    """As ``subprocess.CompletedProcess``, with what a sandbox knows besides.

    ``returncode`` is negative for a signal. ``limit`` names what ended the command where it was not its own doing
    (``time``, ``memory``), else "". ``record`` is the directory of the session's record.
    """

    args: Sequence[Any]
    returncode: int
    stdout: Output | None
    stderr: Output | None
    usage: Usage
    grant: Grant = field(repr=False)
    call: str = ""
    limit: str = ""
    stdout_lost: int = 0
    stderr_lost: int = 0
    record: str = field(default="", repr=False)
    answered: tuple[Denial, ...] = field(default=(), repr=False)
    """``denials``, without the network's."""
    counted: int = field(default=0, repr=False)
    """``denied``, without the network's."""
    network: OfNetwork | None = field(default=None, repr=False, compare=False)
    _heard: list[tuple[Denial, ...]] = field(
        default_factory=list[tuple[Denial, ...]], init=False, repr=False, compare=False
    )

    @property
    def denials(self) -> tuple[Denial, ...]:
        """Actions outside the grant: at most 128 of those that the mediator stopped, and all that the network refused.

        Where the session has a way out, the first look at this reads the record, and waits until the call's end is in it
        (ten seconds at most, where its writer is stuck). Raises RecordError where it cannot be read.
        """
        if self.network is None:
            return self.answered
        if not self._heard:
            self._heard.append(self.network.read(self.call))
        return self.answered + self._heard[0]

    @property
    def denied(self) -> int:
        """How many there were. Raises RecordError, as ``denials``."""
        return self.counted + len(self.denials) - len(self.answered)

    def explain(self) -> str:
        """What a model should read: the distinct denials; for a failure without one, that it was not the sandbox's. Empty
        where the command succeeded and nothing was denied. Raises RemitError where the record cannot be read."""
        from remit.sandbox.audit import denials

        state, _, session = self.record.rpartition("/sessions/")
        return "\n".join(denials.of_call(state, session, self.call).text(self.returncode))

    def check_returncode(self) -> None:
        """Raises CalledProcessError unless the command returned 0."""
        if self.returncode:
            raise CalledProcessError(self)


@dataclass(slots=True)
class Capture:
    """A bounded record of a stream: its first half and its last half."""

    limit: int = CAPTURE_LIMIT
    _head: bytearray = field(default_factory=bytearray)
    _tail: bytearray = field(default_factory=bytearray)
    total: int = 0

    def add(self, data: bytes) -> None:
        """More of the stream."""
        self.total += len(data)
        room = self.limit - self.limit // 2 - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail += data
            excess = len(self._tail) - self.limit // 2
            # Not at every byte: the rest is moved each time.
            if excess > self.limit // 2:
                del self._tail[:excess]

    def halves(self) -> tuple[bytes, bytes]:
        """What was kept: the first half, and what comes ``lost`` bytes after it."""
        half = self.limit // 2
        return bytes(self._head), bytes(self._tail[-half:] if half else b"")

    @property
    def lost(self) -> int:
        """Bytes that are missing between the two halves."""
        return max(0, self.total - self.limit)
