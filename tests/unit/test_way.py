"""What the template hears of a gateway, and when: a call's denials are in the record before its end."""

from __future__ import annotations

import marshal
import select
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remit.sandbox.egress import wire
from remit.sandbox.launch.request import Identity
from remit.sandbox.launch.template import Template
from remit.sandbox.launch.way import Way

EVENT = ("3", "connect", "203.0.113.9:80/tcp", "denied", "no rule", "", "transparent", 0, 0, 0, "203.0.113.9:80")


class _Heard:
    """A session's way, with a gateway that is this test, and the record as a list of words."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.record: list[str] = []
        egress = ("egress", (), (), (), (), ())
        who = Identity(0, 0, self_map=True, idmapped={})

        def hear(events: list[tuple[object, ...]] | str) -> None:
            self.record += [events] if isinstance(events, str) else [str(event[2]) for event in events]

        self.way = Way([egress], who, hear)
        self.way._control = theirs.detach()  # pyright: ignore[reportPrivateUsage]

    def say(self, *fields: Any) -> None:
        self.ours.send(marshal.dumps((wire.EVENTS, [fields])))

    def finished(self) -> None:
        """The template hears that the call has ended."""

        def event(fields: dict[str, object]) -> None:
            self.record.append(str(fields["kind"]))

        def whole(begun: object, actions: object, ended: dict[str, object]) -> None:
            event(ended)

        record = SimpleNamespace(whole=whole, lost=0)
        running = SimpleNamespace(child=SimpleNamespace(way=self.way), record=record)
        Template._on_finished(  # pyright: ignore[reportPrivateUsage]
            cast("Any", None), cast("Any", running), [], (), "a-1", 256, "", 0.0, 0, 0
        )


@pytest.fixture
def heard() -> Iterator[_Heard]:
    made = _Heard()
    yield made
    made.ours.close()
    made.way.close()


def test_what_the_gateway_said_before_a_calls_end_is_recorded_before_it(heard: _Heard) -> None:
    heard.say(*EVENT)
    heard.say(*EVENT[:2], "203.0.113.10:80/tcp", *EVENT[3:])
    heard.finished()
    heard.say(*EVENT)
    assert heard.record == ["203.0.113.9:80/tcp", "203.0.113.10:80/tcp", "returned"]
    assert heard.way.denials == 2


def test_a_gateway_that_says_nothing_keeps_nobody_waiting(heard: _Heard) -> None:
    heard.finished()
    assert heard.record == ["returned"]


def test_a_dead_gateways_end_is_left_to_the_loop(heard: _Heard) -> None:
    heard.say(*EVENT)
    heard.ours.close()
    heard.finished()
    assert heard.record == ["203.0.113.9:80/tcp", "returned"]
    heard.finished()
    assert heard.record[2:] == ["returned"]


def test_several_connections_are_heard_of_together_and_an_idle_gateway_at_once(heard: _Heard) -> None:
    poll = select.poll()
    heard.way.watch(poll)

    def turn(milliseconds: int = 20_000) -> list[int]:
        ready = [descriptor for descriptor, _ in poll.poll(milliseconds)]
        for descriptor in ready:
            assert heard.way.owns(descriptor)
            heard.way.ready(descriptor, poll)
        return ready

    control = heard.way._control  # pyright: ignore[reportPrivateUsage]
    heard.say(*EVENT)
    assert turn() == [control]
    for number in range(5):
        heard.say(*EVENT[:2], str(number), *EVENT[3:])
    (timer,) = turn()  # not the socket, although it can be read
    assert timer != control
    assert heard.record[1:] == ["0", "1", "2", "3", "4"]
    assert turn() == [timer]  # nothing came: the socket is listened to again
    heard.say(*EVENT)
    assert turn() == [control]
    heard.ours.close()
    assert turn() == [timer]
    assert heard.record[-1] == "it ended by itself"
    assert turn(0) == []
    assert heard.way.denials == 7


def test_leaving_while_it_waits(heard: _Heard) -> None:
    poll = select.poll()
    heard.way.watch(poll)
    heard.say(*EVENT)
    for descriptor, _ in poll.poll(20_000):
        heard.way.ready(descriptor, poll)
    heard.say(*EVENT)
    heard.way.leave(poll)
    assert poll.poll(20) == []
    heard.finished()
    assert len(heard.record) == 3
