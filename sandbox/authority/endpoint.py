"""The algebra of network atoms: matching, inclusion in a union, intersection, the canonical form of a union.

An endpoint denotes a set of (name or none, address or none, port, protocol). A part that is not given asks for nothing;
a part that is given is not met by "none". Labels and ports are taken as unbounded, so that no finite set of names is a
wildcard, no finite set of wildcards is every name, and no finite set of ports is ``*``. That makes inclusion on names and
ports pairwise (a label or port that nothing mentions is the witness); only networks have to be united first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from remit.sandbox.authority.model import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Network, IPv6Network

    Network: TypeAlias = IPv4Network | IPv6Network

ANY = ""
"""A network that is not given: any address, and none."""


def matches(endpoint: Endpoint, name: str | None, address: str | None, port: int, protocol: str) -> bool:
    """Whether a connection meets every part of the endpoint. An IPv4-mapped IPv6 address counts as its IPv4 address.

    Raises:
        ValueError: ``address`` is not an address.
    """
    if endpoint.protocol != protocol or endpoint.port not in (0, port):
        return False
    if (endpoint.name or endpoint.wildcard) and not (name and _name_holds(endpoint, Endpoint(name))):
        return False
    return not endpoint.network or (bool(address) and _inside(_host(address or ""), _network(endpoint.network)))


def uncovered(endpoints: Iterable[Endpoint], by: Iterable[Endpoint]) -> list[Endpoint]:
    """The endpoints that the union ``by`` does not hold whole."""
    others = list(by)
    return [one for one in endpoints if not _networks_hold(_networks(one, others), one.network)]


def intersection(one: Endpoint, other: Endpoint) -> Endpoint | None:
    """The endpoint that asks for every part of both, or None where nothing meets both."""
    if one.protocol != other.protocol or (one.port and other.port and one.port != other.port):
        return None
    if _name_holds(other, one):
        named = one
    elif _name_holds(one, other):
        named = other
    else:
        return None
    network = one.network or other.network
    if one.network and other.network:
        first, second = _network(one.network), _network(other.network)
        if _inside(second, first):
            network = other.network
        elif not _inside(first, second):
            return None
    source = one.source if one.source.file else other.source
    return Endpoint(named.name, named.wildcard, network, one.port or other.port, one.protocol, source)


def canonical(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """The one list for what a union of endpoints denotes: per name, port and protocol, the widest networks that the
    union allows there, without those that a wider name or port allows already. Sources are dropped."""
    given = list(endpoints)
    made: set[Endpoint] = set()
    for key in {Endpoint(one.name, one.wildcard, ANY, one.port, one.protocol) for one in given}:
        wider = [one for one in given if not _same_key(one, key)]
        beside = _networks(key, wider)
        for network in _united(_networks(key, given)):
            if not _networks_hold(beside, network):
                made.add(Endpoint(key.name, key.wildcard, network, key.port, key.protocol))
    return sorted(made)


def _same_key(one: Endpoint, key: Endpoint) -> bool:
    return (one.name, one.wildcard, one.port, one.protocol) == (key.name, key.wildcard, key.port, key.protocol)


def _name_holds(one: Endpoint, other: Endpoint) -> bool:
    """Whether the name part of ``one`` holds for everything that the name part of ``other`` stands for."""
    if not one.name:
        return not one.wildcard or bool(other.name) or other.wildcard
    if not one.wildcard:
        return not other.wildcard and other.name == one.name
    return other.name.endswith("." + one.name) or (other.wildcard and other.name == one.name)


def _networks(one: Endpoint, others: Iterable[Endpoint]) -> list[str]:
    """The networks that ``others`` allow for every name and port of ``one``."""
    return [
        other.network
        for other in others
        if other.protocol == one.protocol and other.port in (0, one.port) and _name_holds(other, one)
    ]


def _networks_hold(networks: list[str], one: str) -> bool:
    if ANY in networks or one in networks:
        return True
    if one == ANY or not networks:
        return False
    inner = _network(one)
    return any(_inside(inner, _network(outer)) for outer in _united(networks))


def _united(networks: list[str]) -> list[str]:
    """The fewest networks for the same addresses."""
    if ANY in networks:
        return [ANY]
    from ipaddress import IPv4Network, collapse_addresses

    parsed = [_network(text) for text in networks]
    v4 = [network for network in parsed if isinstance(network, IPv4Network)]
    v6 = [network for network in parsed if not isinstance(network, IPv4Network)]
    return [*map(str, collapse_addresses(v4)), *map(str, collapse_addresses(v6))]


def _network(text: str) -> Network:
    from ipaddress import ip_network

    return ip_network(text)


def _host(text: str) -> Network:
    from ipaddress import IPv6Address, ip_address

    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return _network(str(address))


def _inside(inner: Network, outer: Network) -> bool:
    from ipaddress import IPv4Network

    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return not isinstance(outer, IPv4Network) and inner.subnet_of(outer)
