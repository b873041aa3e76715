"""What the template hears of a gateway, and when: a call's denials are in the record before its end."""

from __future__ import annotations

import marshal
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
        self.way = Way([egress], who, lambda event: self.record.append(str(event[2])))
        self.way._control = theirs.detach()  # pyright: ignore[reportPrivateUsage]

    def say(self, *fields: Any) -> None:
        self.ours.send(marshal.dumps((wire.EVENT_KIND, *fields)))

    def finished(self) -> None:
        """The template hears that the call has ended."""

        def event(fields: dict[str, object]) -> None:
            self.record.append(str(fields["kind"]))

        record = SimpleNamespace(event=event)
        running = SimpleNamespace(child=SimpleNamespace(way=self.way), record=record)
        Template._on_finished(  # pyright: ignore[reportPrivateUsage]
            cast("Any", None), cast("Any", running), "a-1", 256, "", 0.0, 0, 0
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
