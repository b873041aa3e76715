"""The name in a TLS ClientHello (RFC 8446, 4.1.2; RFC 6066, 3), read strictly and without more than a bounded buffer.

A hello may be cut into records at any byte and records into packets at any byte; what is checked here is the whole. What
TLS libraries disagree on (two server_name extensions, two names in one, bytes behind the hello, lengths that do not add
up) is refused: a server that reads it differently would be told another name than the one that was checked.
"""

from __future__ import annotations

from dataclasses import dataclass

from remit.sandbox.authority.parse import ParseError, parse_host

LONGEST = 1 << 16
"""Bytes of records that a hello may take. Those with post-quantum keys have about two thousand."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_RECORD = 1 << 14
_SERVER_NAME, _ALPN, _ECH, _ESNI = 0, 16, 0xFE0D, 0xFFCE


class HelloError(Exception):
    """Not a ClientHello, or one that two readers could read in two ways."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a ClientHello says. ``name`` is canonical, "" where none is given. ``length``: bytes of records it took.

    ``encrypted`` says that an encrypted ClientHello is inside (or the noise that browsers send in its place: the two
    cannot be told apart); then ``name`` is only the outer one.
    """

    name: str
    protocols: tuple[bytes, ...]
    encrypted: bool
    length: int


def looks_like_tls(first: bytes) -> bool:
    """Whether a connection that begins with ``first`` (one byte or more) is TLS: handshake record, major version 3."""
    return first[:1] == b"\x16" and first[1:2] in (b"", b"\x03")


def read_hello(data: bytes | bytearray) -> Hello | None:
    """The hello at the start of ``data``, or None where more bytes are needed.

    Raises:
        HelloError: no further byte would make it a hello that is understood.
    """
    handshake = bytearray()
    at = 0
    while True:
        body = _record(data, at)
        if body is None:
            if len(data) >= LONGEST:
                raise HelloError(f"longer than {LONGEST} bytes")
            return None
        handshake += body
        at += 5 + len(body)
        if handshake[0] != _CLIENT_HELLO:
            raise HelloError("the first message is no ClientHello")
        if len(handshake) >= 4:
            wanted = 4 + int.from_bytes(handshake[1:4], "big")
            if wanted > LONGEST:
                raise HelloError(f"longer than {LONGEST} bytes")
            if len(handshake) > wanted:
                raise HelloError("something follows the hello in its record")
            if len(handshake) == wanted:
                return _hello(bytes(handshake[4:]), at)


def _record(data: bytes | bytearray, at: int) -> bytes | None:
    """The body of the handshake record at ``at``, None where it is not all there."""
    header = bytes(data[at : at + 5])
    if header[:1] not in (b"", bytes((_HANDSHAKE,))):
        raise HelloError("not a handshake record")
    if header[1:2] not in (b"", b"\x03") or (len(header) > 2 and header[2] > 4):
        raise HelloError("not TLS 1.0 to 1.3")
    if len(header) < 5:
        return None
    length = int.from_bytes(header[3:5], "big")
    if not 1 <= length <= _RECORD:
        raise HelloError(f"a handshake record of {length} bytes")
    body = bytes(data[at + 5 : at + 5 + length])
    return body if len(body) == length else None


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if len(taken) != count:
            raise HelloError("cut short")
        self.at += count
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))

    def done(self) -> bool:
        return self.at == len(self.data)


def _hello(body: bytes, length: int) -> Hello:
    reader = _Reader(body)
    if not 0x0301 <= reader.number(2) <= 0x0303:
        raise HelloError("not TLS 1.0 to 1.3")
    reader.take(32)
    if len(reader.vector(1)) > 32:
        raise HelloError("a session id of more than 32 bytes")
    suites = reader.vector(2)
    if not suites or len(suites) % 2:
        raise HelloError("malformed cipher suites")
    if not reader.vector(1):
        raise HelloError("no compression methods")
    extensions: dict[int, bytes] = {}
    if not reader.done():
        inner = _Reader(reader.vector(2))
        if not reader.done():
            raise HelloError("bytes behind the extensions")
        while not inner.done():
            kind = inner.number(2)
            if kind in extensions:
                raise HelloError(f"extension {kind} twice")
            extensions[kind] = inner.vector(2)
    name = _name(extensions[_SERVER_NAME]) if _SERVER_NAME in extensions else ""
    protocols = _protocols(extensions[_ALPN]) if _ALPN in extensions else ()
    return Hello(name, protocols, _ECH in extensions or _ESNI in extensions, length)


def _name(data: bytes) -> str:
    reader = _Reader(data)
    listed = _Reader(reader.vector(2))
    if listed.number(1) != 0:
        raise HelloError("a server name that is no host name")
    raw = listed.vector(2)
    if not listed.done() or not reader.done():
        raise HelloError("more than one server name")
    try:
        text = raw.decode("ascii")
        name = parse_host(text)
    except (UnicodeDecodeError, ParseError):
        raise HelloError(f"server name {raw[:64]!r} is no host name") from None
    if text.endswith("."):
        raise HelloError("a server name with a trailing dot")  # RFC 6066, 3
    return name


def _protocols(data: bytes) -> tuple[bytes, ...]:
    reader = _Reader(data)
    listed = _Reader(reader.vector(2))
    found: list[bytes] = []
    while not listed.done():
        one = listed.vector(1)
        if not one:
            raise HelloError("an empty protocol name")
        found.append(one)
    if not reader.done() or not found:
        raise HelloError("malformed protocol names")
    return tuple(found)
