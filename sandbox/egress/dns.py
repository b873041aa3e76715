"""The session's resolver: answers granted names with synthetic addresses, everything else with "no such name".

It asks nobody. So no query can carry data out, no answer can carry an address in, and there is nothing to poison. What a
granted name means is found out by the gateway, when a program connects.

The parser takes what stub resolvers send: one question, at most an OPT record after it, no compression (there is nothing
before the question to point at). Answers never exceed 512 bytes, so none is ever cut (RFC 1035, 4.2.1). HTTPS and SVCB
records (RFC 9460) do not exist here: their hints would be real addresses and their ``ech`` would hide the name that the
gateway has to see. An empty one would make programs turn ``http:`` into ``https:``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from remit.sandbox.authority.parse import ParseError, parse_host

if TYPE_CHECKING:
    from remit.sandbox.egress.decide import Rules
    from remit.sandbox.egress.names import Names

LONGEST = 4096
"""Bytes of a query that is looked at at all."""

TTL = 30
"""Seconds. Short, because a name's number can go to another name (``names``)."""

_A, _AAAA, _OPT, _ANY = 1, 28, 41, 255
_IN = 1
_HEADER = 12


class Code(IntEnum):
    """Response codes (RFC 1035, 4.1.1; BADVERS: RFC 6891)."""

    NOERROR = 0
    FORMERR = 1
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


@dataclass(frozen=True, slots=True)
class Reply:
    """What to send, and what was asked. ``data`` is empty for what deserves no answer. ``name``: "" where none was read."""

    data: bytes
    code: Code
    name: str = ""
    kind: int = 0


class Malformed(Exception):
    """A query that is not one."""


def answer(query: bytes, rules: Rules, names: Names, *, ipv6: bool = True) -> Reply:
    """The reply to one DNS message. Never raises, whatever the bytes."""
    if len(query) < _HEADER or len(query) > LONGEST or query[2] & 0x80:
        return Reply(b"", Code.FORMERR)  # too short to answer, or an answer: answering answers makes loops
    if query[2] >> 3 & 15:
        return Reply(_message(query, Code.NOTIMP), Code.NOTIMP)
    try:
        labels, kind, group, end = _question(query)
        edns = _additional(query, end)
    except Malformed:
        return Reply(_message(query, Code.FORMERR), Code.FORMERR)
    question = query[_HEADER:end]
    shown = _shown(labels)

    def reply(code: Code, *records: bytes) -> Reply:
        return Reply(_message(query, code, question, records, edns=edns is not None), code, shown, kind)

    if edns:
        return reply(Code.BADVERS)
    if group != _IN:
        return reply(Code.REFUSED)
    try:
        name = parse_host(shown)
    except ParseError:
        return reply(Code.NXDOMAIN)  # no grant can name it
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, 6.3: it means the session's own
        return reply(Code.NOERROR, *_records(kind, IPv4Address("127.0.0.1"), IPv6Address("::1"), ipv6=ipv6))
    if not rules.resolvable(name):
        return reply(Code.NXDOMAIN)
    return reply(Code.NOERROR, *_records(kind, *names.addresses(name), ipv6=ipv6))


def _question(query: bytes) -> tuple[list[bytes], int, int, int]:
    """The labels, type and class of the only question, and the offset behind it."""
    if query[4:10] != b"\0\1\0\0\0\0":
        raise Malformed("not one question and nothing else")
    labels: list[bytes] = []
    at = _HEADER
    while True:
        if at >= len(query):
            raise Malformed("the name has no end")
        length = query[at]
        at += 1
        if not length:
            break
        if length > 63:
            raise Malformed("a pointer or an unknown label type")
        labels.append(query[at : at + length])
        at += length
        if at - _HEADER > 254:
            raise Malformed("the name is longer than 255 bytes")
    if at + 4 > len(query):
        raise Malformed("the question is cut")
    kind, group = int.from_bytes(query[at : at + 2], "big"), int.from_bytes(query[at + 2 : at + 4], "big")
    return labels, kind, group, at + 4


def _additional(query: bytes, at: int) -> int | None:
    """The EDNS version of the OPT record behind the question, None where there is none."""
    count = int.from_bytes(query[10:12], "big")
    if count == 0:
        if at != len(query):
            raise Malformed("bytes behind the question")
        return None
    if count > 1 or query[at : at + 3] != b"\0\0\x29" or len(query) < at + 11:
        raise Malformed("something else than one OPT record")
    length = int.from_bytes(query[at + 9 : at + 11], "big")
    if at + 11 + length != len(query):
        raise Malformed("the OPT record is cut, or something follows it")
    return query[at + 6]


def _shown(labels: list[bytes]) -> str:
    """The name as text. Bytes that no host name has are escaped: a dot *within* a label must not become a boundary."""
    plain = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    return ".".join(
        "".join([chr(byte) if byte in plain else f"\\{byte:03d}" for byte in label]) for label in labels
    ).lower()


def _records(kind: int, v4: IPv4Address, v6: IPv6Address, *, ipv6: bool) -> list[bytes]:
    records: list[bytes] = []
    if kind in (_A, _ANY):
        records.append(_record(_A, v4.packed))
    if kind in (_AAAA, _ANY) and ipv6:
        records.append(_record(_AAAA, v6.packed))
    return records


def _record(kind: int, data: bytes) -> bytes:
    """One record for the name of the question (a pointer to offset 12)."""
    parts = (b"\xc0\x0c", kind.to_bytes(2, "big"), b"\0\1", TTL.to_bytes(4, "big"), len(data).to_bytes(2, "big"), data)
    return b"".join(parts)


def _message(
    query: bytes, code: Code, question: bytes = b"", records: tuple[bytes, ...] = (), *, edns: bool = False
) -> bytes:
    opcode_and_rd = query[2] & 0x79
    flags = bytes((0x84 | opcode_and_rd, 0x80 | code & 15))  # an answer, authoritative; recursion "available"
    counts = (bool(question), len(records), 0, int(edns))
    # UDP size 1232 (as DNS flag day 2020 has it); the upper bits of the code are the first byte of the OPT record's TTL.
    opt = b"\0\0\x29\x04\xd0" + bytes((code >> 4, 0, 0, 0, 0, 0)) if edns else b""
    return query[:2] + flags + b"".join([n.to_bytes(2, "big") for n in counts]) + question + b"".join(records) + opt
