"""A gateway's decisions joined to the programs that asked: named where there was one, and never guessed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from remit.sandbox.audit.decide import Decider, target
from remit.sandbox.audit.joined import joined
from remit.sandbox.authority.model import Authority, Endpoint
from remit.sandbox.egress.decide import Reason
from remit.sandbox.events.action import ASKED, BY_AUTHORITY, DENIED, PRIVATE, RELAYED, UNGRANTED
from remit.sandbox.events.event import Event, Rule

DECIDER = Decider(Authority(connect=(Endpoint("g.example", port=443), Endpoint(network="192.0.2.1/32", port=80))), {})
BASE = Event(
    *("s:1", "c", "g", 0.0, 1.0, 3, 7, "", "connect", "network", "connect", "", "allowed", "attempted", ""),
    *(Rule(""), "", "mediator"),
)


def asked(name: str, exe: str, mono: float = 1.0, call: str = "c") -> Event:
    own = name.startswith("127.")
    verdict, rule = ("allowed", PRIVATE) if own else (ASKED, RELAYED)
    return replace(BASE, object=name, exe=exe, mono=mono, verdict=verdict, rule=Rule(rule), call=call)


def answered(name: str, mono: float = 2.0, call: str = "c") -> Event:
    return replace(
        BASE, object=name, source="gateway", verdict=DENIED, mono=mono, rule=Rule(BY_AUTHORITY[0]), call=call
    )


def programs(*events: Event) -> list[tuple[str, str]]:
    """Of the gateway's events: what, and by whom."""
    made = joined(events, lambda _: DECIDER)
    assert not [one for one in made if one.verdict == ASKED]
    return [(one.object, one.exe) for one in made if one.source == "gateway"]


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("203.0.113.1:443/tcp", "203.0.113.1:443"),
        ("[2001:db8::1]:443/tcp", "[2001:db8:0:0:0:0:0:1]:443"),
        ("203.0.113.1:443/tcp", "[0:0:0:0:0:ffff:cb00:7101]:443"),
        ("h.example:443/tcp", "198.18.1.7:443"),
        ("h.example:443/tcp", "[fd72:656d:6974:f:0:0:0:107]:443"),
        ("h.example:443/tcp", "127.0.0.1:880"),
        ("h.example", "127.0.0.1:53"),
    ],
)
def test_the_program_that_asked_is_named(name: str, by: str) -> None:
    assert programs(asked(by, "/bin/a"), answered(name)) == [(name, "/bin/a")]
    # Not one that asked later, for something else, or in another call.
    for other in (asked(by, "/bin/b", 3.0), asked("203.0.113.9:1", "/bin/b"), asked(by, "/bin/b", call="d")):
        assert programs(asked(by, "/bin/a"), other, answered(name)) == [(name, "/bin/a")]
        assert programs(other, answered(name)) == [(name, "")]


def test_of_two_that_it_can_have_been_none_is() -> None:
    both = asked("127.0.0.1:880", "/bin/a", 1.0), asked("127.0.0.1:880", "/bin/b", 1.5)
    assert programs(*both, answered("h.example:443/tcp")) == [("h.example:443/tcp", "")]
    # What asked for that very address is not mistaken for what asked a proxy.
    direct = asked("203.0.113.1:443", "/bin/c")
    assert programs(*both, direct, answered("203.0.113.1:443/tcp")) == [("203.0.113.1:443/tcp", "/bin/c")]
    # One that did long ago is not in the way of one that did just now.
    early, late = asked("127.0.0.1:880", "/bin/a", 1.0), asked("127.0.0.1:880", "/bin/b", 9.0)
    assert programs(early, late, answered("h.example:443/tcp", 9.5)) == [("h.example:443/tcp", "/bin/b")]


def test_a_shared_gateways_event_is_the_calls_that_asked() -> None:
    events = joined(
        [asked("203.0.113.1:443", "/bin/a", call="d"), answered("203.0.113.1:443/tcp", call="")], lambda _: DECIDER
    )
    assert [(one.call, one.exe) for one in events] == [("d", "/bin/a")]


def test_what_no_gateway_heard_of_is_denied_if_nothing_grants_it() -> None:
    events = joined(
        [
            asked("203.0.113.1:99", "/bin/a"),
            asked("192.0.2.1:80", "/bin/a"),  # granted: nothing was sent there
            asked("198.18.1.7:99", "/bin/a"),  # a name's stand-in: only the gateway knows which
            asked("203.0.113.2:99", "/bin/a"),
            answered("203.0.113.2:99/tcp"),
        ],
        lambda _: DECIDER,
    )
    assert [(one.object, one.verdict, one.layer, one.rule.text) for one in events if one.source == "mediator"] == [
        ("203.0.113.1:99/udp", DENIED, "namespaces", UNGRANTED)
    ]


def test_events_without_a_network_stay_what_they_are() -> None:
    events = (replace(BASE, axis="filesystem", right="read", object="/x"), asked("127.0.0.1:80", "/bin/a"))
    assert joined(events, lambda _: DECIDER) == events


@pytest.mark.parametrize(
    ("name", "allowed", "line"),
    [
        ("g.example:443/tcp", True, "g.example:443/tcp"),
        ("g.example:443", True, "g.example:443/tcp"),
        ("g.example", True, "g.example:443/tcp"),
        ("g.example:443/udp", False, ""),
        ("g.example:80", False, ""),
        ("h.example", False, ""),
        ("192.0.2.1:80", True, "192.0.2.1/32:80/tcp"),
        ("[0:0:0:0:0:ffff:c000:201]:80", True, "192.0.2.1/32:80/tcp"),
        ("192.0.2.2:80/tcp", False, ""),
        ("proxy", False, ""),
        ("h:x", False, ""),
        ("[:80", False, ""),
    ],
)
def test_what_an_authority_says_of_a_connection(name: str, allowed: bool, line: str) -> None:
    made = DECIDER.endpoint(name)
    assert (made.allowed, made.line if allowed else "") == (allowed, line)


def test_what_only_the_gateway_could_know_stands() -> None:
    refused = replace(answered("g.example:443/tcp"), rule=Rule("the name is granted, but another SNI was sent"))
    assert DECIDER.event(refused).kind == "refused"
    # What follows from the authority is decided again, so that a gateway that errs shows.
    assert DECIDER.event(answered("g.example:443/tcp")).allowed
    assert target("h:1/udp") == ("h", 1, "udp")
    assert set(BY_AUTHORITY) > {Reason.NO_RULE, Reason.OTHER_PORT, Reason.OTHER_PROTOCOL}
