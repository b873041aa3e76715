"""nf_tables as netlink messages: chains, rules and the expressions that rules are made of, as bytes.

Everything is in one table of family ``inet`` (IPv4 and IPv6 alike). Registers: 1 for what is compared, 0 for verdicts, and 2
where a statement takes a second value. Sources: ``include/uapi/linux/netfilter/nf_tables.h``, ``nfnetlink.h``, and the ``init``
of each expression in ``net/netfilter/nft_*.c``.
"""

from __future__ import annotations

from remit.sandbox.kernel.netlink import ACK, APPEND, CREATE, EXCL, REQUEST, attribute, message, nested

PREROUTING, OUTPUT = 0, 3
"""Hooks: packets that came in (over ``lo`` too), and packets that a socket sent."""
BEFORE_TRACKING, DESTINATION_NAT, FILTER = -300, -100, 0
"""Priorities (``NF_IP_PRI_RAW`` and so on): connection tracking is at -200."""
ACCEPT, DROP = 1, 0
TCP, UDP = 6, 17

_SUBSYSTEM = 10 << 8
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = _SUBSYSTEM | 0, _SUBSYSTEM | 3, _SUBSYSTEM | 6
_INET, _IPV4, _IPV6 = 1, 2, 10
_EQUAL, _NOT_EQUAL, _LESS_OR_EQUAL, _GREATER_OR_EQUAL = 0, 1, 3, 5
_REGISTER, _SECOND_REGISTER, _VERDICT_REGISTER = 1, 2, 0
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_META_NFPROTO, _META_L4PROTO = 15, 16
_TABLE = b"remit\0"
_DESTINATION_NAT = 1
_SYN, _ACK = 0x02, 0x10
_TCP_RESET = 1


def batch(*messages: bytes) -> bytes:
    """A transaction of chains and rules, in a new table: all of it or none. It asks for one acknowledgement."""
    table = _nfnetlink(_NEW_TABLE, REQUEST | CREATE | EXCL, _INET, 0, attribute(1, _TABLE))
    # The last one alone asks for an answer: a complaint about any other comes unasked.
    *others, last = messages
    last = last[:6] + (int.from_bytes(last[6:8], "little") | ACK).to_bytes(2, "little") + last[8:]
    begin, end = (_nfnetlink(kind, REQUEST, 0, _SUBSYSTEM >> 8) for kind in (_BATCH_BEGIN, _BATCH_END))
    return b"".join((begin, table, *others, last, end))


def chain(name: str, kind: str, hook: int, priority: int, policy: int) -> bytes:
    """A base chain. ``kind``: ``filter`` or ``nat``."""
    place = nested(4, attribute(1, _u32(hook)), attribute(2, priority.to_bytes(4, "big", signed=True)))
    body = attribute(1, _TABLE) + attribute(3, _text(name)) + place
    return _nfnetlink(
        _NEW_CHAIN, REQUEST | CREATE, _INET, 0, body + attribute(5, _u32(policy)) + attribute(7, _text(kind))
    )


def rule(name: str, *expressions: bytes) -> bytes:
    """One more rule at the end of the chain of this name."""
    body = attribute(1, _TABLE) + attribute(2, _text(name)) + nested(4, *expressions)
    return _nfnetlink(_NEW_RULE, REQUEST | CREATE | APPEND, _INET, 0, body)


# --- what a packet is -------------------------------------------------------------------------------------------------


def protocol(number: int, *, other: bool = False) -> bytes:
    """It is TCP or UDP; with ``other``, it is anything else."""
    return _meta(_META_L4PROTO) + _compare(_NOT_EQUAL if other else _EQUAL, bytes((number,)))


def destination(address: bytes, *, other: bool = False) -> bytes:
    """Its destination is an IPv6 address (16 bytes), an IPv4 one, or one of those that begin with fewer bytes; with ``other``,
    it is of that family and its destination is none of these."""
    family, offset = (_IPV6, 24) if len(address) == 16 else (_IPV4, 16)
    compared = _compare(_NOT_EQUAL if other else _EQUAL, address)
    head = _meta(_META_NFPROTO) + _compare(_EQUAL, bytes((family,)))
    return head + _payload(_NETWORK_HEADER, offset, len(address)) + compared


def source_port(port: int) -> bytes:
    return _payload(_TRANSPORT_HEADER, 0, 2) + _compare(_EQUAL, _port(port))


def destination_port(port: int) -> bytes:
    return _payload(_TRANSPORT_HEADER, 2, 2) + _compare(_EQUAL, _port(port))


def source_port_at_most(last: int) -> bytes:
    return _payload(_TRANSPORT_HEADER, 0, 2) + _compare(_LESS_OR_EQUAL, _port(last))


def destination_port_at_most(last: int) -> bytes:
    return _payload(_TRANSPORT_HEADER, 2, 2) + _compare(_LESS_OR_EQUAL, _port(last))


def destination_ports(first: int, last: int) -> bytes:
    load = _payload(_TRANSPORT_HEADER, 2, 2)
    return load + _compare(_GREATER_OR_EQUAL, _port(first)) + _compare(_LESS_OR_EQUAL, _port(last))


def begins(*, other: bool = False) -> bytes:
    """It begins a TCP connection (SYN without ACK, of ``tcp flags``); with ``other``, it does not. TCP only."""
    places = (_REGISTER, _REGISTER, 1)
    masked = _expression(
        "bitwise",
        *[attribute(index + 1, _u32(value)) for index, value in enumerate(places)],
        nested(4, attribute(1, bytes((_SYN | _ACK,)))),
        nested(5, attribute(1, bytes(1))),
    )
    return _payload(_TRANSPORT_HEADER, 13, 1) + masked + _compare(_NOT_EQUAL if other else _EQUAL, bytes((_SYN,)))


# --- what becomes of it -----------------------------------------------------------------------------------------------


def verdict(code: int) -> bytes:
    value = nested(2, nested(2, attribute(1, _u32(code))))
    return _expression("immediate", attribute(1, _u32(_VERDICT_REGISTER)), value)


def redirect(port: int) -> bytes:
    """To the own loopback's ``port``, by NAT."""
    return _immediate(_REGISTER, _port(port)) + _expression("redir", attribute(1, _u32(_REGISTER)))


def translate_port(port: int) -> bytes:
    """Destination NAT of the port alone: the address, which says what was meant, stays."""
    kind, family, register = (1, _DESTINATION_NAT), (2, _INET), (5, _REGISTER)
    attributes = [attribute(key, _u32(value)) for key, value in (kind, family, register)]
    return _immediate(_REGISTER, _port(port)) + _expression("nat", *attributes)


def untracked() -> bytes:
    """No connection tracking for it, and so no NAT. Before tracking only."""
    return _expression("notrack")


def taken(address: bytes, port: int) -> bytes:
    """Given, as it is, to the transparent socket that is bound there (``Documentation/networking/tproxy.rst``). Prerouting only.

    The rule goes no further where there is none, or where a socket that is not transparent has this very connection.
    """
    family = _IPV6 if len(address) == 16 else _IPV4
    places = (family, _REGISTER, _SECOND_REGISTER)
    attributes = [attribute(index + 1, _u32(value)) for index, value in enumerate(places)]
    # A register has 16 bytes, whatever is put into it.
    load = _immediate(_REGISTER, address) + _immediate(_SECOND_REGISTER, _port(port))
    return load + _expression("tproxy", *attributes)


def reset() -> bytes:
    """Answered with a reset. TCP only."""
    return _expression("reject", attribute(1, _u32(_TCP_RESET)))


def _nfnetlink(kind: int, flags: int, family: int, resource: int, body: bytes = b"") -> bytes:
    return message(kind, flags, 0, bytes((family, 0)) + resource.to_bytes(2, "big") + body)


def _text(name: str) -> bytes:
    return name.encode() + b"\0"


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _port(number: int) -> bytes:
    return number.to_bytes(2, "big")


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, attribute(1, _text(name)), nested(2, *attributes))


def _meta(key: int) -> bytes:
    return _expression("meta", attribute(1, _u32(_REGISTER)), attribute(2, _u32(key)))


def _compare(operation: int, value: bytes) -> bytes:
    return _expression(
        "cmp", attribute(1, _u32(_REGISTER)), attribute(2, _u32(operation)), nested(3, attribute(1, value))
    )


def _payload(base: int, offset: int, length: int) -> bytes:
    places = (_REGISTER, base, offset, length)
    return _expression("payload", *[attribute(index + 1, _u32(value)) for index, value in enumerate(places)])


def _immediate(register: int, value: bytes) -> bytes:
    return _expression("immediate", attribute(1, _u32(register)), nested(2, attribute(1, value)))
