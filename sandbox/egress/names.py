"""Synthetic addresses for granted names: the number is ours, the name is what it stands for.

Inside a session every granted name has one IPv4 and one IPv6 address from ranges that exist nowhere else. A connection to
such an address says which name was meant, so no real address is needed, and no resolver hears of a name before a program
really connects to it.

The table is bounded, and a wildcard grant lets the confined side ask for names without end: the least recently used name
goes. Numbers are given out in turn over the whole range, so that one is given to another name only after all others. If
it happens all the same, a program that kept the address reaches another *granted* name, and TLS fails on its SNI.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

V4_RANGE = IPv4Network("198.18.0.0/15")
"""For benchmarks of network devices (RFC 2544): on no network that a session could want to reach."""

V6_RANGE = IPv6Network("fd72:656d:6974:f::/64")
"""A unique local network (RFC 4193) of our own."""

FIRST = 256
"""The numbers below it are left for the namespace's own use (its resolver's address)."""

LIMIT = 8192
"""Names at a time; about 400 bytes each."""

_parsed = lru_cache(maxsize=1024)(ip_address)
"""Most programs go to the same few."""


class Names:
    """Names and their synthetic addresses, both ways."""

    def __init__(self, limit: int = LIMIT, v4: IPv4Network = V4_RANGE, v6: IPv6Network = V6_RANGE) -> None:
        self._v4, self._v6 = int(v4.network_address), int(v6.network_address)
        self._ranges = (v4, v6)
        self._end = min(v4.num_addresses, v6.num_addresses) - 1  # not the broadcast address
        self._limit = min(limit, self._end - FIRST)
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._next = FIRST

    def __len__(self) -> int:
        return len(self._numbers)

    def addresses(self, name: str) -> tuple[IPv4Address, IPv6Address]:
        """The addresses that stand for ``name``, from now on its most recent use."""
        number = self._numbers.pop(name, 0)
        if not number:
            number = self._free()
            self._names[number] = name
        self._numbers[name] = number  # dictionaries keep insertion order: the first is the least recently used
        return IPv4Address(self._v4 + number), IPv6Address(self._v6 + number)

    def name(self, address: str) -> str | None:
        """The name that ``address`` stands for, or None: not synthetic, or forgotten.

        Raises:
            ValueError: not an address.
        """
        value = _parsed(address)
        number = int(value) - (self._v4 if value.version == 4 else self._v6)
        found = self._names.get(number)
        if found is not None:
            self._numbers[found] = self._numbers.pop(found)
        return found

    def synthetic(self, address: str) -> bool:
        """Whether ``address`` is in one of the ranges, whatever it stands for.

        Raises:
            ValueError: not an address.
        """
        value = _parsed(address)
        return any([value in one for one in self._ranges])

    def _free(self) -> int:
        if len(self._numbers) >= self._limit:
            oldest = next(iter(self._numbers))
            del self._names[self._numbers.pop(oldest)]
        while self._next in self._names:
            self._advance()
        number = self._next
        self._advance()
        return number

    def _advance(self) -> None:
        self._next = self._next + 1 if self._next + 1 < self._end else FIRST
