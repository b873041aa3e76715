"""What a template is told can be no message at all: that ends the session, or the client, that it comes from, and nobody else."""

from __future__ import annotations

import marshal
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest

from remit.sandbox.audit.record import Record, keep_plan
from remit.sandbox.launch import envelope
from remit.sandbox.launch.template import Running, Template


def packets() -> tuple[socket.socket, socket.socket]:
    """A pair that takes messages larger than any receiver's buffer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return ours, theirs


class Child:
    """A first process, as far as its template looks at it."""

    way = None

    def __init__(self) -> None:
        self.mouth, ear = packets()
        self.control = ear.detach()

    def out_of_memory(self) -> bool:
        return False

    def kill(self) -> None:
        self.mouth.close()

    def close(self) -> int:
        os.close(self.control)
        return 0


class World:
    """A template with a client and two sessions."""

    def __init__(self, state: Path) -> None:
        self.client, theirs = packets()
        self.template = Template(theirs.detach(), -1, cast("Any", None))
        self.sessions: list[Running] = []
        keep_plan(str(state), "digest", "{}")
        inside = cast("Any", self.template)
        for number in (1, 2):
            running = Running(Record(str(state), "digest", {}), cast("Any", Child()), -1, number, cast("Any", None))
            self.sessions.append(running)
            inside._sessions[running.child.control] = running
            inside._poll.register(running.child.control)

    def say(self, data: bytes, descriptors: tuple[int, ...] = ()) -> None:
        """The first session's first process says it, and the template hears it."""
        running = self.sessions[0]
        mouth = cast("Any", running.child).mouth
        socket.send_fds(mouth, [data], descriptors)
        cast("Any", self.template)._from_session(running)

    def live(self) -> list[Running]:
        return [*cast("Any", self.template)._sessions.values()]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    # Nobody is behind the socket who would end when told to.
    with patch("remit.sandbox.launch.template._SILENCE_MS", 0):
        yield made
    for running in made.live():
        cast("Any", running.child).kill()
        running.child.close()
    made.client.close()


NONSENSE: dict[str, Callable[[], bytes]] = {
    "no message": lambda: b"\xff",
    "half of one": lambda: marshal.dumps(("actions", ["x" * 100]))[:-50],
    "no tuple": lambda: marshal.dumps(5),
    "nothing in it": lambda: marshal.dumps(()),
    "of no kind": lambda: marshal.dumps(("nonesuch", 1)),
    "with too little": lambda: marshal.dumps(("refused", "call")),
    "with the wrong things": lambda: marshal.dumps(("actions", [5])),
    "longer than the buffer": lambda: marshal.dumps(("refused", "call", "exec", "x" * (1 << 17), "", 127)),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_a_report_that_makes_no_sense_ends_its_own_session(world: World, what: str) -> None:
    world.say(NONSENSE[what]())
    assert world.live() == world.sessions[1:]
    assert '"why":"what its first process said cannot be understood"' in text(world.sessions[0])
    assert '"ended"' not in text(world.sessions[1])


def test_a_report_that_makes_sense_is_written_down(world: World) -> None:
    world.say(marshal.dumps(("refused", "call", "exec", "x" * 2000, "", 127)))
    assert world.live() == world.sessions
    assert "x" * 2000 in text(world.sessions[0])


def test_an_envelope_of_nonsense(world: World) -> None:
    message, (descriptor,) = envelope.enclosed(b"\xff" * 10_000)
    try:
        world.say(message, (descriptor,))
    finally:
        os.close(descriptor)
    assert world.live() == world.sessions[1:]


def test_nonsense_among_its_last_words(world: World) -> None:
    mouth = cast("Any", world.sessions[0].child).mouth
    mouth.send(marshal.dumps(("refused", "call", "exec", "why", "", 127)))
    mouth.send(b"\xff")
    cast("Any", world.template)._close(world.sessions[0], "stopped")
    assert world.live() == world.sessions[1:]
    assert '"message":"why"' in text(world.sessions[0])
    assert '"why":"stopped"' in text(world.sessions[0])


@pytest.mark.parametrize("what", ["no message", "half of one", "no tuple", "nothing in it", "longer than the buffer"])
def test_a_client_that_makes_no_sense_is_left(world: World, what: str) -> None:
    """Another one than the owner, who may be talking to the template of a session that stands."""
    ours, theirs = packets()
    inside, number = cast("Any", world.template), theirs.detach()
    inside._clients.add(number)
    inside._poll.register(number)
    with ours:
        ours.send(NONSENSE[what]())
        inside._from_client(number)
        assert number not in inside._clients
    assert world.live() == world.sessions


def text(running: Running) -> str:
    return Path(running.record.path, "events.jsonl").read_text()
