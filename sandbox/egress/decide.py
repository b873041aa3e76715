"""The one decision: may this destination be reached under these rules? Pure.

A ``Destination`` is made by one strict parser from whatever a program said (a DNS answer's address, a CONNECT line, a
SOCKS request). The same value is decided on, resolved and connected: nothing is ever parsed a second time, by somebody
who reads it differently.

A connection by name is decided twice: once for the name (``address`` is empty; only then may it be resolved), and once
for each address that came back. What the second adds is that a granted *name* does not grant the addresses behind it:
whoever controls its records could otherwise point it at the host's loopback, its neighbours or a cloud's metadata.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, ip_network
from typing import TYPE_CHECKING

from remit.sandbox.authority.model import Endpoint
from remit.sandbox.authority.parse import ParseError, parse_endpoint
from remit.sandbox.egress.addresses import LOCAL, Address, Block, Network, canonical, special, within
from remit.sandbox.events import action

if TYPE_CHECKING:
    from collections.abc import Iterable


class Reason(StrEnum):
    """Why a decision is what it is."""

    GRANTED = "granted"
    NO_RULE = action.NO_RULE
    OTHER_PORT = action.OTHER_PORT
    OTHER_PROTOCOL = action.OTHER_PROTOCOL
    OTHER_ADDRESS = "the name is granted only at other addresses"
    SPECIAL_ADDRESS = "the name is granted, but the address behind it is not of the internet"
    TOO_WIDE = "a network this wide does not mean local addresses"
    CEILING = "the session does not grant it"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a connection goes, in canonical form. ``name`` "" for an address alone, ``address`` "" for a name alone."""

    name: str
    address: str
    port: int
    protocol: str = "tcp"

    def at(self, address: str) -> Destination:
        """The same destination at one of the addresses that its name resolved to, made canonical.

        Raises:
            ValueError: not an address.
        """
        return replace(self, address=str(canonical(address)))

    def __str__(self) -> str:
        host = self.name or self.address
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Decision:
    """``rule`` is what granted it, or None. ``by_address``: granted as an address, whatever the name."""

    allowed: bool
    rule: Endpoint | None
    reason: Reason
    by_address: bool = False
    detail: str = ""


@lru_cache(maxsize=1024)
def destination(host: str, port: int, protocol: str = "tcp") -> Destination:
    """What a program asked for, as one canonical value. ``host`` is a name or an address, IPv6 with or without brackets.

    Raises:
        ParseError: neither, or a spelling that two readers could take for two things.
    """
    if "/" in host:
        raise ParseError(f"host {host!r} contains '/'")
    literal = ":" in host and not host.startswith("[")
    endpoint = parse_endpoint(f"[{host}]:{port}/{protocol}" if literal else f"{host}:{port}/{protocol}")
    if endpoint.wildcard:
        raise ParseError(f"host {host!r} is a pattern, not a name")
    return Destination(endpoint.name, endpoint.network.partition("/")[0], endpoint.port, protocol)


class Rules:
    """The endpoints of a grant, found by name without reading them all. ``ceiling``: what must allow it as well.

    The ceiling is the session's rules where these are a call's. A grant is checked against its session when it is given;
    checking each connection again keeps that true where the decision is finer than the sets are.
    """

    def __init__(self, endpoints: Iterable[Endpoint], ceiling: Rules | None = None) -> None:
        self.endpoints = tuple(endpoints)
        self.ceiling = ceiling
        self._exact: dict[str, list[Endpoint]] = {}
        self._below: dict[str, list[Endpoint]] = {}
        self._networks: list[tuple[Network, Endpoint]] = []
        for one in self.endpoints:
            if one.name or one.wildcard:
                (self._below if one.wildcard else self._exact).setdefault(one.name, []).append(one)
            elif one.network:
                self._networks.append((ip_network(one.network), one))

    def named(self, name: str) -> list[Endpoint]:
        """The rules whose name part holds for ``name``, the most exact first."""
        found = list(self._exact.get(name, ()))
        above = name
        while self._below:
            _, dot, above = above.partition(".")
            if not dot:
                break
            found += self._below.get(above, ())
        return found + self._below.get("", [])

    def addressed(self, address: Address) -> list[tuple[Network, Endpoint]]:
        """The rules without a name whose network holds ``address``."""
        return [(network, one) for network, one in self._networks if _in(address, network)]

    def resolvable(self, name: str) -> bool:
        """Whether ``name`` is granted at all, on some port: only then does it exist inside."""
        return bool(self.named(name)) and (self.ceiling is None or self.ceiling.resolvable(name))


def decide(rules: Rules, wanted: Destination) -> Decision:
    """Whether ``wanted`` may be reached: with no address, whether its name may be resolved in order to.

    Raises:
        ValueError: ``wanted`` has neither a name nor an address, or an address that is not one.
    """
    made = _decide(rules, wanted)
    if made.allowed and rules.ceiling is not None:
        above = decide(rules.ceiling, wanted)
        if not above.allowed:
            return Decision(False, None, Reason.CEILING, detail=above.reason)
        return replace(made, by_address=made.by_address and above.by_address)
    return made


def smallest_grant(wanted: Destination, reason: Reason = Reason.NO_RULE) -> str:
    """The endpoint that would have allowed it, as a person writes it."""
    host = wanted.address if reason is Reason.SPECIAL_ADDRESS and wanted.address else wanted.name or wanted.address
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{wanted.port}" + ("" if wanted.protocol == "tcp" else f"/{wanted.protocol}")


def _decide(rules: Rules, wanted: Destination) -> Decision:
    if not wanted.name and not wanted.address:
        raise ValueError("a destination needs a name or an address")
    address = canonical(wanted.address) if wanted.address else None
    block = special(address) if address is not None else None
    by_address = rules.addressed(address) if address is not None else []
    for network, one in by_address:
        if _meets(one, wanted) and not _too_wide(network, block):
            return Decision(True, one, Reason.GRANTED, by_address=True)
    named = rules.named(wanted.name) if wanted.name else []
    usable = [one for one in named if _meets(one, wanted)]
    for one in usable:
        if address is None:
            return Decision(True, one, Reason.GRANTED)
        if one.network:
            network = ip_network(one.network)
            if _in(address, network) and not _too_wide(network, block):
                return Decision(True, one, Reason.GRANTED)
        elif block is None:
            return Decision(True, one, Reason.GRANTED)
    return _refused(wanted, usable, named or [one for _, one in by_address], block)


def _refused(wanted: Destination, usable: list[Endpoint], near: list[Endpoint], block: Block | None) -> Decision:
    if block is not None and not wanted.name and any([_meets(one, wanted) for one in near]):
        return Decision(False, None, Reason.TOO_WIDE, detail=f"{wanted.address} is {block.kind}")
    if block is not None and any([not one.network for one in usable]):
        return Decision(False, None, Reason.SPECIAL_ADDRESS, detail=f"{wanted.address} is {block.kind}")
    if usable:
        return Decision(False, None, Reason.OTHER_ADDRESS, detail=wanted.address)
    if any([one.port in (0, wanted.port) for one in near]):
        return Decision(False, None, Reason.OTHER_PROTOCOL, detail=wanted.protocol)
    if near:
        return Decision(False, None, Reason.OTHER_PORT, detail=str(wanted.port))
    return Decision(False, None, Reason.NO_RULE)


def _meets(one: Endpoint, wanted: Destination) -> bool:
    return one.protocol == wanted.protocol and one.port in (0, wanted.port)


def _too_wide(network: Network, block: Block | None) -> bool:
    """Whether ``network`` holds a local address only because it holds so much: see ``addresses.LOCAL``."""
    return block is not None and block.kind in LOCAL and not within(network, block)


def _in(address: Address, network: Network) -> bool:
    return isinstance(address, IPv4Address) == (network.version == 4) and address in network
