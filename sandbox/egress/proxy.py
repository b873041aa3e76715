"""The proxy that programs inside find in ``HTTP_PROXY`` and its kin: HTTP and SOCKS5 on one port.

The first byte tells them apart (5 is SOCKS5). All three ways of naming a destination end in ``Gate.meant``, the same
strict parser as everywhere, and then in the same tunnel as a transparent connection. The SOCKS parsers are pure.
"""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

import h11

from remit.sandbox.authority.parse import ParseError
from remit.sandbox.egress.decide import Destination
from remit.sandbox.egress.denial import Denial
from remit.sandbox.egress.exchange import HEAD, Exchange
from remit.sandbox.egress.gate import Gate, denied
from remit.sandbox.egress.request import BadRequest, parse_authority
from remit.sandbox.egress.stream import Plain, linger
from remit.sandbox.egress.tunnel import Tunnel

if TYPE_CHECKING:
    from remit.sandbox.egress.policy import Source

CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"

_NO_AUTHENTICATION = b"\x05\x00"
_NO_METHOD = b"\x05\xff"
_SUCCEEDED, _FAILURE, _NOT_ALLOWED, _UNREACHABLE, _NO_COMMAND, _NO_ADDRESS_TYPE = 0, 1, 2, 4, 7, 8
_SOCKS_LONGEST = 512
"""Bytes that a greeting (257) or a request (262) can have, and what an impatient client sends behind it."""


class SocksError(Exception):
    """A request that is refused for its form; ``code`` is the reply's (RFC 1928, 6)."""

    def __init__(self, message: str, code: int = _FAILURE) -> None:
        super().__init__(message)
        self.code = code


class SocksRequest(NamedTuple):
    """Where to, as it was written, and the bytes it took."""

    host: str
    port: int
    length: int


def socks_reply(code: int) -> bytes:
    """A reply. The address in it is where the proxy would be seen from, which is nobody's business inside."""
    return bytes((5, code, 0, 1)) + bytes(6)


def read_greeting(data: bytes) -> int | None:
    """The length of the greeting at the start of ``data``; None where more is needed.

    Raises:
        SocksError: not version 5, or no method is "none".
    """
    if data[:1] not in (b"", b"\x05"):
        raise SocksError("not SOCKS 5")
    if len(data) < 2 or len(data) < 2 + data[1]:
        return None
    if 0 not in data[2 : 2 + data[1]]:
        raise SocksError("no way without authentication", 0xFF)
    return 2 + data[1]


def read_socks_request(data: bytes) -> SocksRequest | None:
    """The request at the start of ``data``; None where more is needed. The host is not checked here but for its bytes.

    Raises:
        SocksError: not a CONNECT of a known address type, or a name that is not ASCII.
    """
    if data[:1] not in (b"", b"\x05") or data[2:3] not in (b"", b"\0"):
        raise SocksError("not a SOCKS 5 request")
    if data[1:2] not in (b"", b"\x01"):
        raise SocksError("a command other than CONNECT", _NO_COMMAND)
    if len(data) < 5:
        return None
    kind = data[3]
    start = 5 if kind == 3 else 4
    size = {1: 4, 3: data[4], 4: 16}.get(kind)
    if size is None:
        raise SocksError("an unknown type of address", _NO_ADDRESS_TYPE)
    end = start + size
    if len(data) < end + 2:
        return None
    raw, port = data[start:end], int.from_bytes(data[end : end + 2], "big")
    if kind == 1:
        host = str(IPv4Address(raw))
    elif kind == 4:
        host = str(IPv6Address(raw))
    else:
        try:
            host = raw.decode("ascii")
        except UnicodeDecodeError:
            raise SocksError("a host that is not ASCII") from None
    if not port:
        raise SocksError("port 0")
    return SocksRequest(host, port, end + 2)


def read_connect(data: bytes) -> tuple[Destination, int] | None:
    """Where the CONNECT request at the start of ``data`` goes, and its length; None where more is needed.

    Raises:
        BadRequest: malformed, with a body, no port, or a Host that is not the target.
    """
    conn = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD)
    conn.receive_data(data)
    try:
        event = conn.next_event()
    except h11.RemoteProtocolError as error:
        raise BadRequest(str(error)) from None
    if event is h11.NEED_DATA:
        return None
    if not isinstance(event, h11.Request) or event.method != b"CONNECT":
        raise BadRequest("not a CONNECT request")
    headers = list(event.headers)
    if any([name in (b"content-length", b"transfer-encoding") for name, _ in headers]):
        raise BadRequest("a CONNECT with a body")
    wanted = parse_authority(event.target, 0)
    named = [value for name, value in headers if name == b"host"]
    if len(named) > 1:
        raise BadRequest("more than one Host")
    if named:
        said = parse_authority(named[0].strip(), wanted.port)
        if (said.name, said.address) != (wanted.name, wanted.address) or said.port not in (wanted.port, 80, 443):
            raise BadRequest(f"Host is {said}, and CONNECT goes to {wanted}", 403)
    return wanted, len(data) - len(conn.trailing_data[0])


async def serve(gate: Gate, source: Source, inside: Plain) -> None:
    """One connection to the proxy, to its end. Closes ``inside``, but for a relay that goes on by itself."""
    try:
        async with asyncio.timeout(gate.limits.first):
            while len(inside.first) < 8 and not inside.first.startswith(b"\x05"):
                if not await inside.more(HEAD):
                    break
        if inside.first.startswith(b"\x05"):
            await _socks(gate, source, inside)
        elif inside.first.startswith(b"CONNECT "):
            await _connect(gate, source, inside)
        elif inside.first[:1].isalpha():
            await Exchange(gate, source, inside, None, secure=False, via="http").run()
        else:
            inside.close()
    except (OSError, TimeoutError):
        inside.close()
    except BaseException:
        inside.close()
        raise


async def _connect(gate: Gate, source: Source, inside: Plain) -> None:
    try:
        async with asyncio.timeout(gate.limits.first):
            while (read := read_connect(inside.first)) is None:
                if not await inside.more(HEAD):
                    raise BadRequest("the request is too long, or was not finished")
        wanted, length = read
        # A synthetic address that a program resolved itself is the name it stands for.
        meant = gate.meant(wanted.name or wanted.address, wanted.port)
    except (BadRequest, ParseError) as error:
        status = error.status if isinstance(error, BadRequest) else 400
        denial = Denial(status, "proxy", str(error))
        gate.ledger.note(denied(source.call, "connect", "connect", denial))
        await inside.write(denial.message())
        await linger(inside)
        return
    inside.first = inside.first[length:]
    await Tunnel(gate, source, inside, meant, "connect", CONNECTED, lambda denial: denial.message()).run()


async def _socks(gate: Gate, source: Source, inside: Plain) -> None:
    text = "proxy"
    try:
        async with asyncio.timeout(gate.limits.first):
            while (greeting := read_greeting(inside.first)) is None:
                if not await inside.more(_SOCKS_LONGEST):
                    raise SocksError("the greeting was not finished")
            inside.first = inside.first[greeting:]
            await inside.write(_NO_AUTHENTICATION)
            while (request := read_socks_request(inside.first)) is None:
                if not await inside.more(_SOCKS_LONGEST):
                    raise SocksError("the request was not finished")
        text = f"{request.host}:{request.port}"
        meant = gate.meant(request.host, request.port)
    except SocksError as error:
        gate.ledger.note(denied(source.call, "connect", "socks", Denial(400, "proxy", str(error))))
        await inside.write(_NO_METHOD if error.code == 0xFF else socks_reply(error.code))
        await linger(inside)
        return
    except ParseError as error:
        shown = "".join([char if char.isprintable() else repr(char)[1:-1] for char in text[:300]])
        gate.ledger.note(denied(source.call, "connect", "socks", Denial(403, shown, error.message)))
        await inside.write(socks_reply(_NOT_ALLOWED))
        await linger(inside)
        return
    inside.first = inside.first[request.length :]
    await Tunnel(gate, source, inside, meant, "socks", socks_reply(_SUCCEEDED), _told).run()


def _told(denial: Denial) -> bytes:
    return socks_reply(_NOT_ALLOWED if denial.status == 403 else _UNREACHABLE)
