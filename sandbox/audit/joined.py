"""Connections that a gateway decided on, joined to the programs that asked for them.

The mediator sees who connects, and only to an address; the gateway sees what was meant, and only a socket. Each tells the
record what it knows, on ways of their own, and here a reader puts the two together. A program is named where it is the only
one that it can have been: no guess stands in an event.

A connection that no gateway heard of was refused before it (a datagram to a port that is not granted, say), or was never
sent: where the authority does not allow it, it is a denied attempt.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from remit.sandbox.audit.decide import endpoint, requested, target
from remit.sandbox.events.action import ASKED, DENIED, UNGRANTED
from remit.sandbox.events.event import Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from remit.sandbox.audit.decide import Decider
    from remit.sandbox.events.event import Event

_DNS, _PROXY = 53, 880
"""Where a session's resolver and its proxies are, on its loopback (``egress.wire``)."""
_SYNTHETIC = (ip_network("198.18.0.0/15"), ip_network("fd72:656d:6974:f::/64"))
"""What the resolver answers instead of addresses."""
_RECENT = 2.0
"""Seconds for which one program's connection keeps another's from being mistaken for it."""


def joined(events: Iterable[Event], decider: Callable[[str], Decider]) -> tuple[Event, ...]:
    """The events as a reader needs them: with programs, and without the mediator's half. ``decider``: a call's authority."""
    every = tuple(events)
    asked = [(event, place) for event in every if (place := _asked(event)) is not None]
    answers = [event for event in every if event.source == "gateway" and event.right == "connect"]
    if not asked and not answers:
        return every
    heard = {place for event in answers if (place := _place(event.object)) is not None}
    found: list[Event] = []
    for event in every:
        if event.verdict == ASKED:
            place = _place(event.object)
            if place is not None and not _synthetic(place[0]) and place not in heard:
                found += _refused(event, place, decider)
        elif event.source == "gateway" and not event.exe:
            found.append(_with_program(event, asked))
        else:
            found.append(event)
    return tuple(found)


def _asked(event: Event) -> tuple[str, int] | None:
    """Where the mediator saw a program connect to: outside, or the gateway's own ports inside."""
    if event.source == "gateway" or event.axis != "network" or event.right != "connect":
        return None
    place = _place(event.object)
    if place is None or event.verdict == ASKED:
        return place
    return ("", place[1]) if place[1] in (_DNS, _PROXY) and ip_address(place[0]).is_loopback else None


def _place(name: str) -> tuple[str, int] | None:
    try:
        return target(name)[:2]
    except ValueError:
        return None


def _synthetic(host: str) -> bool:
    return any(ip_address(host) in network for network in _SYNTHETIC)


def _refused(event: Event, place: tuple[str, int], decider: Callable[[str], Decider]) -> list[Event]:
    mine = decider(event.call)
    if any(mine.endpoint(endpoint(*place, protocol)).allowed for protocol in ("tcp", "udp")):
        return []
    # Every TCP connection arrives at the gateway.
    name = endpoint(*place, "udp")
    return [replace(event, object=name, verdict=DENIED, layer="namespaces", rule=Rule(UNGRANTED))]


def _with_program(event: Event, asked: list[tuple[Event, tuple[str, int]]]) -> Event:
    """The one that asked for it: directly, by a name's stand-in, or of the resolver or a proxy."""
    place = requested(event.object)[1:3] if event.right == "request" else _place(event.object)
    if place is None:
        return event
    port = place[1]
    # Calls that have the session's whole network share its gateway, which does not know them apart.
    before = [(one, at) for one, at in asked if event.call in ("", one.call) and one.mono <= event.mono]
    if port:
        groups = [
            [one for one, at in before if at == place],
            [one for one, at in before if at[0] and at[1] == port and _synthetic(at[0])],
            [one for one, at in before if at == ("", _PROXY)],
        ]
    else:
        groups = [[one for one, at in before if at == ("", _DNS)]]
    for group in groups:
        recent = [one for one in group if one.mono > event.mono - _RECENT] or group
        if len({(one.call, one.exe) for one in recent}) == 1:
            last = recent[-1]
            known = replace(event, exe=last.exe, pid=last.pid, pid_start=last.pid_start)
            return known if event.call else replace(known, call=last.call, grant=last.grant)
        if recent:
            break
    return event
