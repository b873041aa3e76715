"""What is carried between two terminals where a command stops."""

from __future__ import annotations

import os
import pty
import tty
from collections.abc import Iterator
from typing import Any, cast

import pytest

from remit.sandbox.launch import terminal
from remit.sandbox.launch.signals import SIGSTOP


class Ends:
    """A relay from a command's terminal to a pipe, without a terminal of the caller's."""

    def __init__(self) -> None:
        self.master, self.command = pty.openpty()
        tty.setraw(self.command)
        os.set_blocking(self.master, False)
        self.read, sink = os.pipe()
        os.set_blocking(self.read, False)
        self.relay = cast("Any", object.__new__(terminal.Relay))
        self.relay.master, self.relay.source, self.relay._sink = self.master, -1, sink
        self.relay._saved, self.relay._raw = None, False
        self.all = (self.master, self.command, self.read, sink)

    def shown(self) -> bytes:
        try:
            return os.read(self.read, 1 << 20)
        except BlockingIOError:
            return b""


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    for descriptor in made.all:
        os.close(descriptor)


def nothing(relay: terminal.Relay) -> None:
    """There is no window."""


def test_what_a_command_wrote_before_it_stopped_is_shown_before_its_client_stops(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[bytes] = []

    def kill(pid: int, signal: int) -> None:
        assert (pid, signal) == (os.getpid(), SIGSTOP)
        shown.append(ends.shown())

    monkeypatch.setattr("posix.kill", kill)
    monkeypatch.setattr(terminal.Relay, "resize", nothing)
    os.write(ends.command, b"last words")
    terminal.stop(ends.relay)
    assert shown == [b"last words"]


def test_whoever_goes_on_writing_keeps_no_client_from_stopping(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[int] = []
    output = terminal.Relay.output

    def and_more(relay: terminal.Relay) -> bool:
        went_on = output(relay)
        ends.shown()
        os.write(ends.command, b"more")
        return went_on

    def kill(pid: int, signal: int) -> None:
        stopped.append(signal)

    monkeypatch.setattr("posix.kill", kill)
    monkeypatch.setattr(terminal.Relay, "output", and_more)
    monkeypatch.setattr(terminal.Relay, "resize", nothing)
    os.write(ends.command, b"more")
    terminal.stop(ends.relay)
    assert stopped == [SIGSTOP]
