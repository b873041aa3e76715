"""Addresses that are not the internet: what must not be reached because some public name points there.

A table of our own, from the IANA special-purpose registries (RFC 6890 and its updates), and not ``is_global``: what that
says has changed between Python versions (CVE-2024-4032), and it does not say *why*, which a denial has to.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network


class Kind(StrEnum):
    """What a special address is. ``LOCAL`` ones mean the host itself or its nearest neighbours."""

    UNSPECIFIED = "unspecified"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    METADATA = "cloud metadata"
    MULTICAST = "multicast"
    PRIVATE = "private"
    SHARED = "carrier-grade NAT"
    TRANSITION = "an IPv4 address in IPv6 clothes"
    RESERVED = "reserved"


LOCAL = frozenset({Kind.UNSPECIFIED, Kind.LOOPBACK, Kind.LINK_LOCAL, Kind.METADATA, Kind.MULTICAST})
"""Kinds that a wide network (``0.0.0.0/0``, which people write for "the internet") does not mean: they are reached only
by a network that lies within their own block."""


@dataclass(frozen=True, slots=True)
class Block:
    """One special block and its kind."""

    network: Network
    kind: Kind


def _block(text: str, kind: Kind) -> Block:
    return Block(ip_network(text), kind)


# The first block that holds an address is the one that counts: single addresses stand before their networks.
# Not here: the documentation networks (RFC 5737, RFC 3849), which lead nowhere.
_V4: tuple[Block, ...] = (
    _block("169.254.169.254/32", Kind.METADATA),
    _block("100.100.100.200/32", Kind.METADATA),  # Alibaba Cloud
    _block("168.63.129.16/32", Kind.METADATA),  # Azure's host
    _block("0.0.0.0/8", Kind.UNSPECIFIED),  # Linux connects 0.0.0.0 to itself
    _block("127.0.0.0/8", Kind.LOOPBACK),
    _block("169.254.0.0/16", Kind.LINK_LOCAL),
    _block("224.0.0.0/4", Kind.MULTICAST),
    _block("255.255.255.255/32", Kind.MULTICAST),
    _block("10.0.0.0/8", Kind.PRIVATE),
    _block("172.16.0.0/12", Kind.PRIVATE),
    _block("192.168.0.0/16", Kind.PRIVATE),
    _block("100.64.0.0/10", Kind.SHARED),
    _block("192.0.0.0/24", Kind.RESERVED),
    _block("192.88.99.0/24", Kind.RESERVED),  # 6to4 relays
    _block("198.18.0.0/15", Kind.RESERVED),  # benchmarks, and our own synthetic addresses
    _block("240.0.0.0/4", Kind.RESERVED),
)
_V6: tuple[Block, ...] = (
    _block("fd00:ec2::254/128", Kind.METADATA),
    _block("fd20:ce::254/128", Kind.METADATA),  # Google
    _block("::/128", Kind.UNSPECIFIED),
    _block("::1/128", Kind.LOOPBACK),
    _block("fe80::/10", Kind.LINK_LOCAL),
    _block("ff00::/8", Kind.MULTICAST),
    _block("fc00::/7", Kind.PRIVATE),
    _block("fec0::/10", Kind.PRIVATE),
    _block("::/96", Kind.TRANSITION),
    _block("::ffff:0:0/96", Kind.TRANSITION),
    _block("::ffff:0:0:0/96", Kind.TRANSITION),
    _block("64:ff9b::/96", Kind.TRANSITION),
    _block("64:ff9b:1::/48", Kind.TRANSITION),
    _block("2002::/16", Kind.TRANSITION),
    _block("2001::/23", Kind.RESERVED),  # Teredo, ORCHID and other protocols' own
    _block("100::/64", Kind.RESERVED),
    _block("5f00::/16", Kind.RESERVED),
)
_NAT64 = IPv6Network("64:ff9b::/96")


@lru_cache(4096)
def canonical(text: str) -> Address:
    """The address that the kernel would connect to: an IPv4-mapped one is its IPv4 address (RFC 4291, 2.5.5.2).

    Raises:
        ValueError: not an address; a zone is refused, being local to one host.
    """
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"address {text!r} has a zone")
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
    return address


@lru_cache(4096)
def special(address: Address) -> Block | None:
    """The special block that ``address`` is in, or None for an address of the internet.

    An address behind NAT64's well-known prefix counts as the IPv4 address in it: on networks with IPv6 only, every name
    with only an A record is answered so (RFC 6147), and only public addresses may be (RFC 6052, 3.1).
    """
    if isinstance(address, IPv4Address):
        return next((block for block in _V4 if address in block.network), None)
    if address in _NAT64 and special(IPv4Address(int(address) & 0xFFFFFFFF)) is None:
        return None
    return next((block for block in _V6 if address in block.network), None)


def within(network: Network, block: Block) -> bool:
    """Whether all of ``network`` lies in ``block``."""
    outer = block.network
    if isinstance(network, IPv4Network):
        return isinstance(outer, IPv4Network) and network.subnet_of(outer)
    return isinstance(outer, IPv6Network) and network.subnet_of(outer)
