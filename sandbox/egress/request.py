"""One HTTP request, checked before anything of it leaves. Pure: from what the parser read to what may be sent, or why not.

h11 reads and writes the framing; what is checked here is what it lets pass and servers differ on: two framings at once
(RFC 9112, 6.3: "ought to be handled as an error"), a Host that is not where the connection goes, paths that a server may
decode into others, headers that make a server answer as if the method or the path were another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.sandbox.authority.parse import ParseError, parse_port
from remit.sandbox.egress.decide import Destination, destination

if TYPE_CHECKING:
    from remit.sandbox.egress.policy import Web

Headers = list[tuple[bytes, bytes]]

_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
        b"http2-settings",
    }
)
_OVERRIDES = frozenset(
    {
        b"x-http-method-override",
        b"x-http-method",
        b"x-method-override",
        b"x-original-url",
        b"x-rewrite-url",
        b"x-original-method",
    }
)
_HEX = frozenset(b"0123456789abcdefABCDEF")
_PORTS = {b"http": 80, b"https": 443}


class BadRequest(Exception):
    """A request that is refused for its form. ``status`` is 400, or 403 where a rule would have to be known."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is well formed and goes where its connection goes. ``headers`` are those to send on."""

    method: str
    wanted: Destination
    target: bytes
    path: str
    headers: Headers
    websocket: bool


def parse_authority(raw: bytes, default: int, protocol: str = "tcp") -> Destination:
    """``HOST`` or ``HOST:PORT`` of a request line or a Host header.

    Raises:
        BadRequest: user information, a port that is none, a host that the strict parser refuses.
    """
    try:
        text = raw.decode("ascii")
        host, port = text, default
        inner, bracket, after = text.partition("]")
        if bracket:
            host = inner + bracket
            if after:
                if after[0] != ":":
                    raise ParseError("bytes behind the address")
                port = parse_port(after[1:])
        elif ":" in text:
            host, _, digits = text.rpartition(":")
            if ":" in host:
                raise ParseError("IPv6 is written in brackets")
            port = parse_port(digits)
        if not port:
            raise ParseError("no port")
        return destination(host, port, protocol)
    except UnicodeDecodeError:
        raise BadRequest("a host that is not ASCII") from None
    except ParseError as error:
        raise BadRequest(error.message) from None


def check(
    method: bytes, target: bytes, headers: Headers, version: bytes, fixed: Destination | None, web: Web
) -> Request:
    """What to send on for a request. ``fixed``: where the connection goes; None for a proxy's, whose target says it.

    Raises:
        BadRequest: whatever two readers could read in two ways.
    """
    if version not in (b"1.1", b"1.0"):
        raise BadRequest("not HTTP/1.1 or 1.0")
    if not method.isalpha() or not method.isupper() or method in (b"CONNECT", b"TRACE", b"PRI"):
        raise BadRequest(f"method {method[:20]!r} is not passed on")
    by_name = {name: [v for n, v in headers if n == name] for name, _ in headers}
    _framing(by_name, version)
    if fixed is None:
        wanted, target = _absolute(target)
    else:
        wanted = fixed
    default = 443 if fixed is not None and fixed.port == 443 else 80
    named = by_name.get(b"host", [])
    if len(named) != 1:
        raise BadRequest("not one Host")
    said = parse_authority(named[0].strip(), default)
    same_host = (said.name or said.address) == (wanted.name or wanted.address)
    # Without a port, Host means the scheme's; a client on another port that leaves it out means the connection's.
    if not same_host or (b":" in named[0].rpartition(b"]")[2] and said.port != wanted.port):
        raise BadRequest(f"Host is {said}, and the connection goes to {wanted}", 403)
    rules = web.rules_of(wanted.name)
    if rules and _OVERRIDES & by_name.keys():
        raise BadRequest("a header that asks the server to take another method or path", 403)
    path = _path(target, strict=any([rule.paths for rule in rules]), method=method)
    websocket = _websocket(by_name)
    kept = _end_to_end(headers, by_name, [one.header.encode() for one in web.exchanges_of(wanted.name) if one.header])
    if websocket:
        kept += [(b"connection", b"upgrade"), (b"upgrade", b"websocket")]
    return Request(method.decode(), wanted, target, path, kept, websocket)


def _framing(by_name: dict[bytes, list[bytes]], version: bytes) -> None:
    codings = by_name.get(b"transfer-encoding", [])
    lengths = by_name.get(b"content-length", [])
    if codings and lengths:
        raise BadRequest("Content-Length and Transfer-Encoding at once")
    if len(lengths) > 1 or (lengths and not lengths[0].isdigit()):
        raise BadRequest("a Content-Length that is not one number")
    if codings and (len(codings) > 1 or codings[0].strip().lower() != b"chunked" or version == b"1.0"):
        raise BadRequest("a Transfer-Encoding other than chunked")


def _absolute(target: bytes) -> tuple[Destination, bytes]:
    """Where an absolute-form target goes, and its origin form."""
    scheme, found, rest = target.partition(b"://")
    if not found or scheme.lower() != b"http":
        raise BadRequest("a proxy takes http:// targets and CONNECT")
    ends = [rest.index(mark) for mark in (b"/", b"?", b"#") if mark in rest]
    end = min(ends, default=len(rest))
    origin = rest[end:]
    if b"@" in rest[:end]:
        raise BadRequest("user information in the target")
    if not origin.startswith(b"/"):
        origin = b"/" + origin
    return parse_authority(rest[:end], _PORTS[b"http"]), origin


def _path(target: bytes, *, strict: bool, method: bytes) -> str:
    """The path that rules are compared with: decoded once, and refused where decoding or joining could make another."""
    raw = target.partition(b"?")[0]
    if raw == b"*" and method == b"OPTIONS" and not strict:
        return "*"
    if not raw.startswith(b"/") or b"#" in target or b"\\" in raw:
        raise BadRequest("a target that is no path")
    decoded = bytearray()
    at = 0
    while at < len(raw):
        byte = raw[at]
        if byte == 0x25:
            digits = raw[at + 1 : at + 3]
            if len(digits) != 2 or not _HEX.issuperset(digits):
                raise BadRequest("a path with a broken escape")
            byte = int(digits, 16)
            at += 2
            if strict and (byte < 0x20 or byte == 0x7F or byte in b"/\\%.;?#"):
                raise BadRequest("a path that a server may decode into another", 403)
        decoded.append(byte)
        at += 1
    path = decoded.decode("latin-1")
    if strict:
        segments = [segment.partition(";")[0].strip() for segment in path.split("/")[1:]]
        if "." in segments or ".." in segments or "" in segments[:-1]:
            raise BadRequest("a path with empty or dot segments", 403)
    return path


def _websocket(by_name: dict[bytes, list[bytes]]) -> bool:
    """Whether the request asks for a WebSocket. Any other upgrade (``h2c`` above all) is not asked for on its behalf:
    what follows it could not be read. RFC 9110, 7.8 lets a server ignore it, and that is what the program sees."""
    upgrades = [value.strip().lower() for value in by_name.get(b"upgrade", [])]
    return upgrades == [b"websocket"] and any([b"upgrade" in value.lower() for value in by_name.get(b"connection", [])])


def _end_to_end(headers: Headers, by_name: dict[bytes, list[bytes]], kept: list[bytes]) -> Headers:
    """Without what belongs to this connection. What ``Connection`` names goes too, but not what is looked at here."""
    listed = b",".join(by_name.get(b"connection", []))
    named = {token.strip().lower() for token in listed.split(b",")} - {b""}
    if named & {b"host", b"content-length", b"transfer-encoding", b"authorization", b"cookie", *kept}:
        raise BadRequest("Connection names a header that is not the connection's")
    dropped = _HOP | named
    return [(name, value) for name, value in headers if name not in dropped]
