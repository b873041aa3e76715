"""Connections that a gateway decided on, joined to the programs that asked for them.

The mediator sees who connects, and only to an address; the gateway sees what was meant, and only a socket. Each tells the
record what it knows, on ways of their own, and here a reader puts the two together. A program is named where it is the only
one that it can have been: no guess stands in an event.

A connection that no gateway heard of was refused before it (a datagram to a port that is not granted, say), or was never
sent: where the authority does not allow it, it is a denied attempt.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, TypeAlias

from remit.sandbox.audit.decide import endpoint, requested, target
from remit.sandbox.events.action import ASKED, DENIED, UNGRANTED
from remit.sandbox.events.event import Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from remit.sandbox.audit.decide import Decider
    from remit.sandbox.events.event import Event

    _Place: TypeAlias = tuple[str, int]
    """(host, port)."""

_DNS, _PROXY = 53, 880
"""Where a session's resolver and its proxies are, on its loopback (``egress.wire``)."""
_SYNTHETIC = (ip_network("198.18.0.0/15"), ip_network("fd72:656d:6974:f::/64"))
"""What the resolver answers instead of addresses."""
_STAND_IN = "*"
_RECENT = 2.0
"""Seconds for which one program's connection keeps another's from being mistaken for it."""


def joined(events: Iterable[Event], decider: Callable[[str], Decider]) -> tuple[Event, ...]:
    """The events as a reader needs them: with programs, and without the mediator's half. ``decider``: a call's authority."""
    every = tuple(events)
    answers = [event for event in every if event.source == "gateway" and event.right == "connect"]
    asked = _Asked(every)
    if not asked.any and not answers:
        return every
    heard = {place for event in answers if (place := _place(event.object)) is not None}
    found: list[Event] = []
    for event in every:
        if event.verdict == ASKED:
            place = _place(event.object)
            if place is not None and not _synthetic(place[0]) and place not in heard:
                found += _refused(event, place, decider)
        elif event.source == "gateway" and not event.exe:
            found.append(asked.with_program(event))
        else:
            found.append(event)
    return tuple(found)


class _Asked:
    """Who connected where, as the mediator saw it, in order: found by place, and by (call, place)."""

    def __init__(self, events: Iterable[Event]) -> None:
        self._found: dict[tuple[str, _Place], list[Event]] = {}
        self._others: dict[tuple[str, _Place], list[bool]] = {}
        """Beside ``_found``: whether any up to here is another program's than the first."""
        seen = [(event, place) for event in events if (place := _asked(event)) is not None]
        self.any = bool(seen)
        for event, place in sorted(seen, key=lambda one: one[0].mono):
            # A name's stand-in says no more than its port: which name it stands for, only the gateway knows.
            key = (_STAND_IN, place[1]) if place[0] and _synthetic(place[0]) else place
            # Calls that have the session's whole network share its gateway, which does not know them apart.
            for call in {event.call, ""}:
                held = self._found.setdefault((call, key), [])
                others = self._others.setdefault((call, key), [])
                others.append(bool(held) and (others[-1] or _who(held[0]) != _who(event)))
                held.append(event)

    def with_program(self, event: Event) -> Event:
        """The one that asked for it: directly, by a name's stand-in, or of the resolver or a proxy."""
        place = requested(event.object)[1:3] if event.right == "request" else _place(event.object)
        if place is None:
            return event
        ways = (place, (_STAND_IN, place[1]), ("", _PROXY)) if place[1] else (("", _DNS),)
        for way in ways:
            held = self._found.get((event.call, way), ())
            end = bisect_right(held, event.mono, key=_mono)
            if end:
                last = held[end - 1]
                begin = bisect_right(held, event.mono - _RECENT, 0, end, key=_mono)
                alone = len({_who(one) for one in held[begin:end]}) == 1
                if not (alone if begin < end else not self._others[event.call, way][end - 1]):
                    return event
                known = replace(event, exe=last.exe, pid=last.pid, pid_start=last.pid_start)
                return known if event.call else replace(known, call=last.call, grant=last.grant)
        return event


def _who(event: Event) -> tuple[str, str]:
    return event.call, event.exe


def _mono(event: Event) -> float:
    return event.mono


def _asked(event: Event) -> _Place | None:
    """Where the mediator saw a program connect to: outside, or the gateway's own ports inside."""
    if event.source == "gateway" or event.axis != "network" or event.right != "connect":
        return None
    place = _place(event.object)
    if place is None or event.verdict == ASKED:
        return place
    return ("", place[1]) if place[1] in (_DNS, _PROXY) and ip_address(place[0]).is_loopback else None


@lru_cache(4096)
def _place(name: str) -> _Place | None:
    try:
        return target(name)[:2]
    except ValueError:
        return None


@lru_cache(4096)
def _synthetic(host: str) -> bool:
    return any(ip_address(host) in network for network in _SYNTHETIC)


def _refused(event: Event, place: _Place, decider: Callable[[str], Decider]) -> list[Event]:
    mine = decider(event.call)
    if any(mine.endpoint(endpoint(*place, protocol)).allowed for protocol in ("tcp", "udp")):
        return []
    # Every TCP connection arrives at the gateway.
    name = endpoint(*place, "udp")
    return [replace(event, object=name, verdict=DENIED, layer="namespaces", rule=Rule(UNGRANTED))]
