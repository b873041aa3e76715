"""The session's packet filter, as one nfnetlink batch: everything goes to the gateway, and nothing anywhere else.

The rules see names of nothing: what may be reached is the gateway's decision. They only make sure that there is no
other way, for IPv4 and IPv6 alike, and that no program has to know of the gateway.

TCP, where a packet comes back over ``lo`` (every address is local, ``egress.inside``):

    begins a connection to port 53      -> the responder, whatever resolver was meant
    begins one to the own loopback      stays as it is
    begins any other                    -> the gateway's transparent port; a reset, if nobody listens there
    belongs to one                      has its socket

The first packet alone is looked at, and no address is translated: what a connection goes through later costs no more than
the loopback does. A rule for every packet would only find the sockets that the kernel finds anyway.

UDP, as it is sent (NAT, before routing decides):

    to port 53                          -> the responder
    to a granted port                   -> its mapped socket; the address stays as it is (a port alone is translated)

Output (after that): TCP, what goes to the session's own addresses, and what goes to a mapped socket; all else is dropped,
which a program sees as EPERM from sendto(2). Without a loopback of its own, only the gateway's ports are left of it, and TCP at
those that it may listen on.

``without_tproxy``: where the kernel has no ``nft_tproxy``, TCP is translated like UDP, every packet of it.
"""

from __future__ import annotations

from ipaddress import ip_address

from remit.sandbox.egress.wire import DNS_PORT, OWN_V4, OWN_V6, TCP_PORT, UDP_PORTS
from remit.sandbox.kernel import nftables as nft

_LOOPBACK, _LOOPBACK_V6 = b"\x7f", bytes(15) + b"\1"
_LISTENERS = (b"\x7f\0\0\1", _LOOPBACK_V6)
_OWN = (_LOOPBACK, _LOOPBACK_V6, ip_address(OWN_V4).packed, ip_address(OWN_V6).packed)
_TCP, _UDP = nft.protocol(nft.TCP), nft.protocol(nft.UDP)
_ACCEPTED = nft.verdict(nft.ACCEPT)
_PRIVILEGED = 1023
"""The last port where no program inside can bind."""


def program(udp: tuple[int, ...], *, loopback: bool, servers: tuple[int, ...] = ()) -> bytes:
    """The batch. ``udp``: granted ports, the n-th one mapped to ``UDP_PORTS[n]``.

    ``servers``: ports of the own loopback that are open where the rest of it is not.
    """
    arriving = [
        nft.chain("in", "filter", nft.PREROUTING, nft.BEFORE_TRACKING, nft.ACCEPT),
        nft.rule("in", nft.protocol(nft.TCP, other=True), _ACCEPTED),
        nft.rule("in", nft.untracked()),
        nft.rule("in", nft.begins(other=True), _ACCEPTED),
        *[nft.rule("in", nft.destination_port(DNS_PORT), nft.taken(one, DNS_PORT), _ACCEPTED) for one in _LISTENERS],
        *[nft.rule("in", nft.destination(one), _ACCEPTED) for one in (_LOOPBACK, _LOOPBACK_V6)],
        *[nft.rule("in", nft.taken(one, TCP_PORT), _ACCEPTED) for one in _LISTENERS],
        # The gateway has gone, or one program's socket is about to meet another's that poses as the destination.
        nft.rule("in", nft.reset()),
    ]
    sent = [
        nft.chain("raw", "filter", nft.OUTPUT, nft.BEFORE_TRACKING, nft.ACCEPT),
        nft.rule("raw", _TCP, nft.untracked()),
    ]
    elsewhere = [
        nft.rule("out", _TCP, nft.destination(one, other=True), _ACCEPTED) for one in (_LOOPBACK, _LOOPBACK_V6)
    ]
    return nft.batch(*arriving, *sent, *_translated(udp), *_leaving(udp, loopback, servers, *elsewhere))


def without_tproxy(udp: tuple[int, ...], *, loopback: bool, servers: tuple[int, ...] = ()) -> bytes:
    """The batch that does the same by NAT alone. A connection's destination is SO_ORIGINAL_DST, instead of its own address."""
    return nft.batch(*_translated(udp, tcp=True), *_leaving(udp, loopback, servers))


def _translated(udp: tuple[int, ...], *, tcp: bool = False) -> list[bytes]:
    """The chain of NAT: UDP's, and with ``tcp`` that of all that is not for the own loopback."""
    rules = [
        nft.chain("nat", "nat", nft.OUTPUT, nft.DESTINATION_NAT, nft.ACCEPT),
        nft.rule("nat", _UDP, nft.destination_port(DNS_PORT), nft.redirect(DNS_PORT)),
    ]
    if tcp:
        rules.append(nft.rule("nat", _TCP, nft.destination_port(DNS_PORT), nft.redirect(DNS_PORT)))
    rules += [nft.rule("nat", nft.destination(one), _ACCEPTED) for one in (_LOOPBACK, _LOOPBACK_V6)]
    if tcp:
        rules.append(nft.rule("nat", _TCP, nft.redirect(TCP_PORT)))
    for index, port in enumerate(udp):
        rules.append(nft.rule("nat", _UDP, nft.destination_port(port), nft.translate_port(UDP_PORTS[index])))
    return rules


def _leaving(udp: tuple[int, ...], loopback: bool, servers: tuple[int, ...], *tcp: bytes) -> list[bytes]:
    """The chain of what may be sent. ``tcp``: rules for what is the gateway's as it is."""
    rules = [nft.chain("out", "filter", nft.OUTPUT, nft.FILTER, nft.DROP), *tcp]
    if loopback:
        rules += [nft.rule("out", nft.destination(one), _ACCEPTED) for one in _OWN]
    else:
        for port_at_most, port_is in (
            (nft.source_port_at_most, nft.source_port),
            (nft.destination_port_at_most, nft.destination_port),
        ):
            # The gateway's ports and what comes from them.
            rules += [nft.rule("out", one, port_at_most(_PRIVILEGED), _ACCEPTED) for one in (_TCP, _UDP)]
            # Any other address's is the gateway's: this is the own loopback's.
            rules += [nft.rule("out", _TCP, port_is(port), _ACCEPTED) for port in servers]
    if udp:
        ports = nft.destination_ports(UDP_PORTS[0], UDP_PORTS[len(udp) - 1])
        rules.append(nft.rule("out", _UDP, ports, _ACCEPTED))
    return rules
