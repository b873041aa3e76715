"""HTTP rules and credentials: what a profile says beyond hosts and ports, as values with strict parsers.

An HTTP rule *narrows*: the host has to be granted by ``network.connect`` as well, and where a host has rules, a request
that meets none of them is refused. A credential names where a secret comes from, never the secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from remit.sandbox.authority.model import NOWHERE, Source
from remit.sandbox.authority.parse import ParseError, parse_env_name, parse_host, parse_path

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Methods that a rule can name. CONNECT and TRACE are never passed on; others would mean something to their server only."""

ORIGINS = ("env", "file", "keyring", "command")
"""Where a credential can come from."""

_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_PATH = frozenset("!$&'()*+,-./0123456789:;=@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~")
_FRAMING = frozenset(
    [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)


@dataclass(frozen=True, slots=True)
class HttpRule:
    """Requests to one host: any of ``methods`` on any of ``paths`` (each with everything below it); empty for all."""

    host: str
    wildcard: bool = False
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    source: Source = field(default=NOWHERE, compare=False)

    def holds(self, name: str) -> bool:
        """Whether the rule is about the host ``name`` (canonical)."""
        return name.endswith("." + self.host) if self.wildcard else name == self.host

    def allows(self, method: str, path: str) -> bool:
        """Whether it allows this request; ``path`` without its query, canonical."""
        return (not self.methods or method in self.methods) and (
            not self.paths or any([below(path, one) for one in self.paths])
        )

    def __str__(self) -> str:
        host = f"*.{self.host}" if self.wildcard else self.host
        return f"{'|'.join(self.methods) or 'any method'} {host}{' '.join(self.paths) or '/'}"


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret for one host: put in place of a placeholder in ``header``, or in the query parameter ``query``.

    ``origin`` is ``env``, ``file``, ``keyring`` or ``command``, and ``place`` what follows its colon. ``variable`` is the
    environment variable that holds the placeholder inside. ``header`` and ``template``: see ``parse_header``.
    """

    host: str
    header: str
    query: str
    origin: str
    place: str
    variable: str = ""
    template: str = ""
    source: Source = field(default=NOWHERE, compare=False)

    def __str__(self) -> str:
        where = f"header {self.header}" if self.header else f"query {self.query}"
        shown = self.origin if self.origin == "command" else f"{self.origin}:{self.place}"
        return f"{self.host} {where} from {shown}"


def below(path: str, rule: str) -> bool:
    """Whether ``path`` is ``rule`` or below it; a rule that ends in a slash means only what is below."""
    return path == rule or path.startswith(rule if rule.endswith("/") else rule + "/")


def parse_method(text: str) -> str:
    """One of ``METHODS``.

    Raises:
        ParseError: anything else; methods are case-sensitive (RFC 9110, 9.1).
    """
    if text not in METHODS:
        upper = text.upper()
        hint = f"write {upper}" if upper in METHODS else f"one of: {', '.join(METHODS)}"
        raise ParseError(f"{text[:40]!r} is not a method that a rule can name", hint)
    return text


def parse_http_host(text: str) -> tuple[str, bool]:
    """A host name or ``*.name``, canonical, and whether it was a wildcard.

    Raises:
        ParseError: an address, a port, a URL, and all that ``parse_host`` refuses.
    """
    if "://" in text or "/" in text:
        raise ParseError(f"host {text[:80]!r} is more than a host", "paths go into paths")
    if ":" in text:
        raise ParseError(f"host {text[:80]!r} has a port", "ports are granted by network.connect; write the name alone")
    wildcard = text.startswith("*.")
    return parse_host(text[2:] if wildcard else text), wildcard


def parse_http_path(text: str) -> str:
    """The path of a rule: what it means is itself and everything below it.

    Raises:
        ParseError: not absolute, a query, a pattern, dot segments, anything percent-encoded (rules are compared with
            paths that are decoded once).
    """
    if not text.startswith("/"):
        raise ParseError(f"path {text[:80]!r} does not begin with /", f"write /{text[:80]}")
    if "?" in text or "#" in text:
        raise ParseError(f"path {text[:80]!r} has a query", "a rule is about the path: leave out what follows ?")
    if text.endswith(("/*", "/**")):
        raise ParseError(f"path {text[:80]!r} is a pattern", f"a path takes everything below it: {text.rstrip('*')}")
    for char in text:
        if char not in _PATH or char == "*":
            raise ParseError(f"path {text[:80]!r} contains {char!r}", "write it without percent-encoding or patterns")
    segments = text.split("/")[1:]
    if "." in segments or ".." in segments or "" in segments[:-1]:
        raise ParseError(f"path {text[:80]!r} contains an empty or dot segment", "write it as the server sees it")
    return text


def parse_header(text: str) -> tuple[str, str]:
    """A header's name in lower case, and its template: ``NAME`` (the placeholder in it is replaced) or ``NAME: VALUE``
    with ``{}`` once in the value (the whole value is put in, whatever the program sent).

    Raises:
        ParseError: not a token (RFC 9110, 5.1), a header that belongs to the connection, a template without ``{}``.
    """
    name, colon, template = text.partition(":")
    name, template = name.lower(), template.strip(" ")
    if not name or len(text) > 200 or not _TOKEN.issuperset(name):
        raise ParseError(f"{text[:80]!r} is not a header", "such as x-api-key, or Authorization: Bearer {}")
    if name in _FRAMING:
        raise ParseError(f"header {name!r} belongs to the connection", "such as authorization or x-api-key")
    if not colon:
        return name, ""
    if template.count("{}") != 1:
        raise ParseError(f"header {text[:80]!r} needs {{}} once, for the secret", f"{name}: Bearer {{}}")
    if not template.isascii() or not template.isprintable():
        raise ParseError(f"header {text[:80]!r} has characters that no header can have")
    return name, template


def parse_query_name(text: str) -> str:
    """The name of a query parameter.

    Raises:
        ParseError: characters that would have to be encoded.
    """
    if not text or len(text) > 80 or not _TOKEN.issuperset(text) or set(text) & set("&%+#"):
        raise ParseError(f"{text[:80]!r} is not the name of a query parameter", "such as key or access_token")
    return text


def parse_origin(text: str) -> tuple[str, str]:
    """``env:NAME``, ``file:PATH`` (absolute, ``~/`` or ``{home}/``), ``keyring:SERVICE/USER`` or ``command:COMMAND``.

    Raises:
        ParseError: anything else. The message never shows what follows an unknown word: it may be the secret itself.
    """
    origin, colon, place = text.partition(":")
    if not colon or origin not in ORIGINS:
        raise ParseError(
            "says not where the secret comes from",
            "env:NAME, file:PATH, keyring:SERVICE/USER or command:COMMAND; the secret itself does not belong here",
        )
    if not place or "\0" in place or not place.isprintable():
        raise ParseError(f"{origin}: needs something printable after the colon", f"such as {origin}:{_SAMPLES[origin]}")
    if origin == "env":
        parse_env_name(place)
    elif origin == "file":
        parse_path("/" + place if place.startswith(("~/", "{home}/")) else place)
    elif origin == "keyring" and not all(place.partition("/")):
        raise ParseError(f"keyring:{place} names no user", "keyring:SERVICE/USER")
    return origin, place


_SAMPLES = {"env": "API_TOKEN", "file": "/etc/token", "keyring": "api.example.com/me", "command": "pass show api"}
