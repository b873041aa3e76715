"""The session's packet filter, as one nfnetlink batch: everything goes to the gateway, and nothing anywhere else.

The rules see names of nothing: what may be reached is the gateway's decision. They only make sure that there is no
other way, for IPv4 and IPv6 alike (table family ``inet``), and that no program has to know of the gateway.

Output, nat (before routing decides):

    udp, tcp to port 53                 -> the responder, whatever resolver was meant
    anything to the own loopback        stays as it is
    tcp                                 -> the gateway's transparent port
    udp to a granted port               -> its mapped socket; the address stays as it is (a port alone is translated)

Output, filter (after that): what goes to the session's own addresses or to a mapped socket may go; all else is dropped,
which a program sees as EPERM from sendto(2). Without a loopback of its own, only the gateway's ports are left of it, and TCP at
those that it may listen on.

Sources: ``include/uapi/linux/netfilter/nf_tables.h``, ``nfnetlink.h``.
"""

from __future__ import annotations

from ipaddress import ip_address

from remit.sandbox.egress.wire import DNS_PORT, OWN_V4, OWN_V6, TCP_PORT, UDP_PORTS
from remit.sandbox.kernel.netlink import ACK, APPEND, CREATE, EXCL, REQUEST, attribute, message, nested

_SUBSYSTEM = 10 << 8
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = _SUBSYSTEM | 0, _SUBSYSTEM | 3, _SUBSYSTEM | 6
_INET, _IPV4, _IPV6 = 1, 2, 10
_OUTPUT = 3
_PRIORITY_DESTINATION_NAT, _PRIORITY_FILTER = -100, 0
_ACCEPT, _DROP = 1, 0
_EQUAL, _LESS_OR_EQUAL, _GREATER_OR_EQUAL = 0, 3, 5
_REGISTER, _VERDICT_REGISTER = 1, 0
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_META_NFPROTO, _META_L4PROTO = 15, 16
_TCP, _UDP = 6, 17
_TABLE = b"remit\0"
_SOURCE_NAT, _DESTINATION_NAT = 0, 1


def program(udp: tuple[int, ...], *, loopback: bool, servers: tuple[int, ...] = ()) -> bytes:
    """The batch. It asks for one acknowledgement. ``udp``: granted ports, the n-th one mapped to ``UDP_PORTS[n]``.

    ``servers``: ports of the own loopback that are open where the rest of it is not.
    """
    own_v4, own_v6 = ip_address(OWN_V4).packed, ip_address(OWN_V6).packed
    parts = [_nfnetlink(_BATCH_BEGIN, REQUEST, 0, _SUBSYSTEM >> 8)]
    parts.append(_nfnetlink(_NEW_TABLE, REQUEST | CREATE | EXCL, _INET, 0, attribute(1, _TABLE)))
    parts.append(_chain(b"nat\0", b"nat\0", _PRIORITY_DESTINATION_NAT, _ACCEPT))
    for protocol in (_UDP, _TCP):
        parts.append(_rule(b"nat\0", _protocol(protocol), _destination_port(DNS_PORT), _redirect(DNS_PORT)))
    for local in (_v4(b"\x7f"), _v6(bytes(15) + b"\1")):
        parts.append(_rule(b"nat\0", *local, _verdict(_ACCEPT)))
    parts.append(_rule(b"nat\0", _protocol(_TCP), _redirect(TCP_PORT)))
    for index, port in enumerate(udp):
        parts.append(_rule(b"nat\0", _protocol(_UDP), _destination_port(port), _translate_port(UDP_PORTS[index])))

    parts.append(_chain(b"out\0", b"filter\0", _PRIORITY_FILTER, _DROP))
    if loopback:
        for local in (_v4(b"\x7f"), _v6(bytes(15) + b"\1"), _v4(own_v4), _v6(own_v6)):
            parts.append(_rule(b"out\0", *local, _verdict(_ACCEPT)))
    else:
        # The gateway's ports and what comes from them, below 1024 where no program inside can bind.
        for offset in (0, 2):
            for protocol in (_TCP, _UDP):
                parts.append(_rule(b"out\0", _protocol(protocol), _port_at_most(offset, 1023), _verdict(_ACCEPT)))
            # Any other address's port became the gateway's above: this is the own loopback's.
            for port in servers:
                parts.append(_rule(b"out\0", _protocol(_TCP), _port(offset, port), _verdict(_ACCEPT)))
    if udp:
        ports = _destination_ports(UDP_PORTS[0], UDP_PORTS[len(udp) - 1])
        parts.append(_rule(b"out\0", _protocol(_UDP), ports, _verdict(_ACCEPT)))
    # The last one alone asks for an answer: a complaint about any other comes unasked.
    last = parts.pop()
    parts.append(last[:6] + (int.from_bytes(last[6:8], "little") | ACK).to_bytes(2, "little") + last[8:])
    parts.append(_nfnetlink(_BATCH_END, REQUEST, 0, _SUBSYSTEM >> 8))
    return b"".join(parts)


def _nfnetlink(kind: int, flags: int, family: int, resource: int, body: bytes = b"") -> bytes:
    return message(kind, flags, 0, bytes((family, 0)) + resource.to_bytes(2, "big") + body)


def _chain(name: bytes, kind: bytes, priority: int, policy: int) -> bytes:
    hook = nested(4, attribute(1, _u32(_OUTPUT)), attribute(2, priority.to_bytes(4, "big", signed=True)))
    body = attribute(1, _TABLE) + attribute(3, name) + hook + attribute(5, _u32(policy)) + attribute(7, kind)
    return _nfnetlink(_NEW_CHAIN, REQUEST | CREATE, _INET, 0, body)


def _rule(chain: bytes, *expressions: bytes) -> bytes:
    body = attribute(1, _TABLE) + attribute(2, chain) + nested(4, *expressions)
    return _nfnetlink(_NEW_RULE, REQUEST | CREATE | APPEND, _INET, 0, body)


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _expression(name: bytes, *attributes: bytes) -> bytes:
    return nested(1, attribute(1, name + b"\0"), nested(2, *attributes))


def _meta(key: int) -> bytes:
    return _expression(b"meta", attribute(1, _u32(_REGISTER)), attribute(2, _u32(key)))


def _compare(operation: int, value: bytes) -> bytes:
    return _expression(
        b"cmp", attribute(1, _u32(_REGISTER)), attribute(2, _u32(operation)), nested(3, attribute(1, value))
    )


def _payload(base: int, offset: int, length: int) -> bytes:
    places = (_REGISTER, base, offset, length)
    return _expression(b"payload", *[attribute(index + 1, _u32(value)) for index, value in enumerate(places)])


def _protocol(number: int) -> bytes:
    return _meta(_META_L4PROTO) + _compare(_EQUAL, bytes((number,)))


def _v4(address: bytes) -> tuple[bytes, ...]:
    """Destination: an IPv4 address, or all that begin with fewer bytes."""
    return (
        _meta(_META_NFPROTO),
        _compare(_EQUAL, bytes((_IPV4,))),
        _payload(_NETWORK_HEADER, 16, len(address)),
        _compare(_EQUAL, address),
    )


def _v6(address: bytes) -> tuple[bytes, ...]:
    return (
        _meta(_META_NFPROTO),
        _compare(_EQUAL, bytes((_IPV6,))),
        _payload(_NETWORK_HEADER, 24, 16),
        _compare(_EQUAL, address),
    )


def _destination_port(port: int) -> bytes:
    return _port(2, port)


def _port(offset: int, port: int) -> bytes:
    """The source's port at offset 0, the destination's at 2."""
    return _payload(_TRANSPORT_HEADER, offset, 2) + _compare(_EQUAL, port.to_bytes(2, "big"))


def _destination_ports(first: int, last: int) -> bytes:
    load_port = _payload(_TRANSPORT_HEADER, 2, 2)
    above = _compare(_GREATER_OR_EQUAL, first.to_bytes(2, "big"))
    return load_port + above + _compare(_LESS_OR_EQUAL, last.to_bytes(2, "big"))


def _port_at_most(offset: int, last: int) -> bytes:
    return _payload(_TRANSPORT_HEADER, offset, 2) + _compare(_LESS_OR_EQUAL, last.to_bytes(2, "big"))


def _immediate_port(port: int) -> bytes:
    value = nested(2, attribute(1, port.to_bytes(2, "big")))
    return _expression(b"immediate", attribute(1, _u32(_REGISTER)), value)


def _redirect(port: int) -> bytes:
    """To the own loopback's ``port``."""
    return _immediate_port(port) + _expression(b"redir", attribute(1, _u32(_REGISTER)))


def _translate_port(port: int) -> bytes:
    """Destination NAT of the port alone: the address, which says what was meant, stays."""
    kind, family, port_register = (1, _DESTINATION_NAT), (2, _INET), (5, _REGISTER)
    attributes = [attribute(key, _u32(value)) for key, value in (kind, family, port_register)]
    return _immediate_port(port) + _expression(b"nat", *attributes)


def _verdict(code: int) -> bytes:
    value = nested(2, nested(2, attribute(1, _u32(code))))
    return _expression(b"immediate", attribute(1, _u32(_VERDICT_REGISTER)), value)
