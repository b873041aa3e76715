"""A session's network, made from inside its new namespace: addresses, routes, packet filter, the gateway's sockets.

Runs in the in-child stage, with capabilities in the new user namespace, before Landlock and seccomp. Standard library
only. The sockets go to the launcher, and from there to the gateway: a socket acts in the namespace that it was made in,
whoever holds it. So the gateway needs no privilege, no process inside and no way in.

The namespace has no device but ``lo``. A route makes every address local (``local default dev lo``): packets to anywhere
come back on ``lo``, which is what lets a socket in here take them in the name of any address. The addresses in it are
not loopback ones, because resolvers ask for no addresses of a family that only the loopback has (AI_ADDRCONFIG).
"""

from __future__ import annotations

import marshal
import posix
from errno import EADDRNOTAVAIL, EAFNOSUPPORT

from remit.sandbox.egress import wire
from remit.sandbox.kernel import sockets
from remit.sandbox.kernel.netlink import ACK, CREATE, EXCL, NETFILTER, REQUEST, ROUTE, attribute, message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

BACKLOG = 1024
SOCKETS = "sockets"
"""The kind of the message to the launcher."""

_LO = 1
"""Every namespace's first interface (LOOPBACK_IFINDEX)."""
_NEW_ADDRESS, _NEW_ROUTE = 20, 24
_TABLE_LOCAL, _PROTOCOL_BOOT, _SCOPE_HOST, _TYPE_LOCAL = 255, 3, 254, 2
_NO_DAD = 0x02
_IFA_ADDRESS, _IFA_LOCAL, _RTA_OIF, _RTA_PREFSRC = 1, 2, 4, 7
_SOL_IP, _SOL_IPV6 = 0, 41
_SOL_SOCKET, _SO_REUSEADDR = 1, 2
_IP_PKTINFO, _IP_TRANSPARENT = 8, 19
_IPV6_V6ONLY, _IPV6_RECVPKTINFO, _IPV6_TRANSPARENT = 26, 49, 75
_NO_IPV6 = (EAFNOSUPPORT, EADDRNOTAVAIL)

_V4_LOOPBACK, _V6_LOOPBACK = b"\x7f\0\0\1", bytes(15) + b"\1"
_V4_OWN = bytes([int(part) for part in wire.OWN_V4.split(".")])
_V6_OWN = bytes.fromhex("fd72656d6974000f0000000000000001")


class Sockets:
    """What was made: descriptors, and what each one is for."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []
        self.roles: list[wire.Role] = []

    def add(self, role: str, number: int, descriptor: int) -> None:
        self.descriptors.append(descriptor)
        self.roles.append((role, number))

    def send(self, control: int, *call: Any) -> None:
        """Give them to the launcher, in as many messages as it takes, and keep no copy. ``call``: (number, rules)."""
        while self.descriptors:
            now, self.descriptors = self.descriptors[: wire.MOST_DESCRIPTORS], self.descriptors[wire.MOST_DESCRIPTORS :]
            roles, self.roles = self.roles[: len(now)], self.roles[len(now) :]
            sockets.send(control, marshal.dumps((SOCKETS, tuple(roles), *call)), tuple(now))
            for descriptor in now:
                posix.close(descriptor)

    def close(self) -> None:
        """Give them up: nobody will take them."""
        for descriptor in self.descriptors:
            posix.close(descriptor)
        self.descriptors, self.roles = [], []


def open_way(operation: tuple[Any, ...]) -> Sockets:
    """Do what a plan's ``Egress`` says, in the network namespace of the calling thread. Raises OSError."""
    _, _rules, udp, published, *packet_filters, _variables = operation
    try:
        return make(udp, packet_filters, publish=bool(published))
    except OSError as error:
        raise OSError(error.errno, f"the network's rules could not be set: {error.strerror}") from None


def make(udp: tuple[int, ...], packet_filters: Sequence[bytes], *, publish: bool) -> Sockets:
    """Everything but ``lo`` itself, which is up. ``udp``: granted ports. Of the filters the first one that this kernel takes is
    set. Needs CAP_NET_ADMIN, CAP_NET_BIND_SERVICE.

    Raises OSError. A host without IPv6 gets a session without it; nothing of it can leave then either.
    """
    made = Sockets()
    _listen(made, sockets.AF_INET, _V4_LOOPBACK, udp)
    _route(sockets.AF_INET, _V4_OWN)
    try:
        _listen(made, sockets.AF_INET6, _V6_LOOPBACK, udp)
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise
    else:
        _route(sockets.AF_INET6, _V6_OWN)
    if publish:
        for _ in range(wire.PUBLISH_SOCKETS):
            made.add(wire.PUBLISH, 0, sockets.internet(sockets.AF_INET, sockets.STREAM))
    _set_filter(packet_filters)
    return made


def _set_filter(packet_filters: Sequence[bytes]) -> None:
    """The first of them that can be. Raises OSError as the last one did."""
    *better, last = packet_filters
    for one in better:
        try:
            sockets.netlink(NETFILTER, one, 1)
        except OSError:
            continue
        return
    sockets.netlink(NETFILTER, last, 1)


def _listen(made: Sockets, family: int, loopback: bytes, udp: Iterable[int]) -> None:
    for role, kind, port in (
        (wire.DNS_UDP, sockets.DATAGRAM, wire.DNS_PORT),
        (wire.DNS_TCP, sockets.STREAM, wire.DNS_PORT),
        (wire.PROXY, sockets.STREAM, wire.PROXY_PORT),
        (wire.TCP, sockets.STREAM, wire.TCP_PORT),
    ):
        one = sockets.internet(family, kind)
        if kind == sockets.STREAM:
            # What the packet filter hands to it keeps the address that it was sent to.
            _transparent(one, family)
            sockets.undelayed(one)
        _bind(one, family, loopback, port)
        if kind == sockets.STREAM:
            sockets.listen(one, BACKLOG)
        made.add(role, 0, one)
    for index, port in enumerate(udp):
        one = sockets.internet(family, sockets.DATAGRAM)
        _transparent(one, family)
        if family == sockets.AF_INET:
            sockets.option(one, _SOL_IP, _IP_PKTINFO, 1)
        else:
            sockets.option(one, _SOL_IPV6, _IPV6_RECVPKTINFO, 1)
        _bind(one, family, bytes(len(loopback)), wire.UDP_PORTS[index])
        made.add(wire.UDP, port, one)


def _transparent(one: int, family: int) -> None:
    """It may have any address of its own (``ip(7)`` IP_TRANSPARENT)."""
    if family == sockets.AF_INET:
        sockets.option(one, _SOL_IP, _IP_TRANSPARENT, 1)
    else:
        sockets.option(one, _SOL_IPV6, _IPV6_TRANSPARENT, 1)


def _bind(one: int, family: int, host: bytes, port: int) -> None:
    if family == sockets.AF_INET6:
        sockets.option(one, _SOL_IPV6, _IPV6_V6ONLY, 1)
    sockets.bind(one, family, host, port)


def _route(family: int, own: bytes) -> None:
    """The own address on ``lo``, and every address local."""
    prefix = 8 * len(own)
    head = bytes((family, prefix, _NO_DAD if family == sockets.AF_INET6 else 0, 0)) + _LO.to_bytes(4, "little")
    address = head + attribute(_IFA_LOCAL, own) + attribute(_IFA_ADDRESS, own)
    head = bytes((family, 0, 0, 0, _TABLE_LOCAL, _PROTOCOL_BOOT, _SCOPE_HOST, _TYPE_LOCAL)) + bytes(4)
    route = head + attribute(_RTA_OIF, _LO.to_bytes(4, "little")) + attribute(_RTA_PREFSRC, own)
    flags = REQUEST | ACK | CREATE | EXCL
    sockets.netlink(ROUTE, message(_NEW_ADDRESS, flags, 1, address) + message(_NEW_ROUTE, flags, 2, route), 2)
