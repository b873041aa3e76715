"""What the launcher says, as values: from ``wire``'s tuples to rules, web rules and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remit.sandbox.authority.model import Endpoint, Source
from remit.sandbox.authority.parse import ParseError, parse_endpoint
from remit.sandbox.authority.web import (
    HttpRule,
    parse_header,
    parse_http_host,
    parse_http_path,
    parse_method,
    parse_query_name,
)
from remit.sandbox.egress.gate import Limits
from remit.sandbox.egress.policy import Web
from remit.sandbox.egress.secrets import Exchange, Secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from remit.sandbox.egress import wire


def endpoint(rule: wire.Rule) -> Endpoint:
    """An endpoint as ``str(Endpoint)`` spells it.

    Raises:
        ParseError: it is none.
    """
    text, where = rule
    source = Source(where)
    if "&" not in text:
        return parse_endpoint(text, source)
    # A name and a network at once has no spelling that people write, and so none that the parser takes.
    host, colon, rest = text.rpartition(":")
    name, _, network = host.removeprefix("[").removesuffix("]").partition("&")
    v6 = f"[{network}]" if ":" in network else network
    one, other = parse_endpoint(f"{name}{colon}{rest}", source), parse_endpoint(f"{v6}{colon}{rest}", source)
    return Endpoint(one.name, one.wildcard, other.network, one.port, one.protocol, source)


def endpoints(rules: Iterable[wire.Rule]) -> list[Endpoint]:
    """All of them. Raises ``ParseError``."""
    return [endpoint(rule) for rule in rules]


def web(options: Mapping[str, Any]) -> Web:
    """The HTTP rules and credentials of a config's options. Raises ``ParseError``, which shows no secret."""
    rules: list[HttpRule] = []
    given: tuple[wire.HttpRule, ...] = options.get("http", ())
    for host, methods, paths, where in given:
        name, wildcard = parse_http_host(host)
        rules.append(
            HttpRule(
                name,
                wildcard,
                tuple([parse_method(method) for method in methods]),
                tuple([parse_http_path(path) for path in paths]),
                Source(where),
            )
        )
    exchanges: list[Exchange] = []
    credentials: tuple[wire.Credential, ...] = options.get("credentials", ())
    for host, kind, name, placeholder, secret, _, variable in credentials:
        target, wildcard = parse_http_host(host)
        if wildcard:
            raise ParseError(f"a credential for {host!r}: a secret goes to one host")
        hidden = Secret(secret.encode("utf-8", "surrogateescape"))
        if kind == "query":
            exchanges.append(Exchange(target, "", parse_query_name(name), "", placeholder, hidden, variable))
        else:
            header, template = parse_header(name)
            exchanges.append(Exchange(target, header, "", template, placeholder, hidden, variable))
    return Web(tuple(rules), tuple(exchanges))


def limits(options: Mapping[str, Any]) -> Limits:
    """The limits of a config's options."""
    given: Mapping[str, int] = options.get("limits", {})
    usual = Limits()
    return Limits(
        connections=given.get("connections", 0) or usual.connections,
        bytes=given.get("bytes", 0),
        time=given.get("time", 0) / 1000,
        idle=given.get("idle", 0) / 1000 or usual.idle,
        first=given.get("first", 0) / 1000 or usual.first,
    )
