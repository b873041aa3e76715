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

CERTIFICATE_VARIABLES = (
    "SSL_CERT_FILE",  # OpenSSL, Python's ssl, Go, Ruby
    "REQUESTS_CA_BUNDLE",  # Python's requests
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "NPM_CONFIG_CAFILE",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "DENO_CERT",
)
"""Variables that name a file of certificates, for the programs that read one."""

SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Arch, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",
)
"""Where distributions keep the certificates that they trust, as one file."""

SYSTEM_KEYSTORES = ("/etc/ssl/certs/java/cacerts", "/etc/pki/java/cacerts", "/etc/pki/ca-trust/extracted/java/cacerts")
"""Where distributions keep the same certificates for Java, which reads no variable and no list."""

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

    @property
    def pattern(self) -> str:
        """The host as it is written."""
        return f"*.{self.host}" if self.wildcard else self.host

    def __str__(self) -> str:
        return f"{'|'.join(self.methods) or 'any method'} {self.pattern}{' '.join(self.paths) or '/'}"


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

    def path(self, home: str) -> str:
        """Of ``file:``, the file's absolute path."""
        for prefix in ("~/", "{home}/"):
            if self.place.startswith(prefix):
                return f"{home.rstrip('/')}/{self.place.removeprefix(prefix)}"
        return self.place

    @property
    def put(self) -> str:
        """Where in a request it goes."""
        if self.query:
            return f"query {self.query}"
        return f"header {self.header}: {self.template}" if self.template else f"header {self.header}"

    @property
    def shown(self) -> str:
        """Where it comes from, for people and records. A command line may hold what nobody should read."""
        return self.origin if self.origin == "command" else f"{self.origin}:{self.place}"

    def __str__(self) -> str:
        return f"{self.host} {self.put} from {self.shown}"


@dataclass(frozen=True, slots=True)
class WebRules:
    """Everything that a profile says beyond names and ports. False where it says nothing."""

    http: tuple[HttpRule, ...] = ()
    credentials: tuple[Credential, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.http or self.credentials)

    @property
    def variables(self) -> frozenset[str]:
        """The variables that hold placeholders inside."""
        return frozenset(one.variable for one in self.credentials if one.variable)

    @property
    def secret_variables(self) -> frozenset[str]:
        """The caller's variables that hold secrets: never passed inside."""
        return frozenset(one.place for one in self.credentials if one.origin == "env")

    def read(self, name: str, *, wildcard: bool = False) -> bool:
        """Whether every request to the host (``wildcard``: to everything below it) is read."""
        for rule in self.http:
            if rule.holds(name) if not wildcard else rule.wildcard and f".{name}".endswith(f".{rule.host}"):
                return True
        return not wildcard and any([one.host == name for one in self.credentials])


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
