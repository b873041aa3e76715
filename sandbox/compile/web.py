"""HTTP rules and credentials in a plan: what the gateway is told of them, what programs inside see, and what is said of it.

They hold at the gateway, and only there: without a network of the session's own there is nobody to hold them.
"""

from __future__ import annotations

from collections.abc import Mapping

from remit.sandbox.authority.model import Authority, Endpoint
from remit.sandbox.authority.web import CERTIFICATE_VARIABLES, SYSTEM_BUNDLES, SYSTEM_KEYSTORES, WebRules
from remit.sandbox.compile import mounts
from remit.sandbox.compile.mounts import Tree
from remit.sandbox.compile.plan import Certificates, Line, Web
from remit.sandbox.resolve.binding import Kind, Named

LISTS = (*SYSTEM_BUNDLES, *SYSTEM_KEYSTORES)
"""Names that have to be resolved for ``place``."""

BUNDLE = "/.remit/certificates.pem"
"""Where the certificates are inside: on the new root itself, which nothing of the host's can hide."""

_HTTP_PORTS = (0, 80, 443)


def operation(rules: WebRules) -> Web:
    """What a plan says of the rules."""
    return Web(
        tuple((rule.pattern, rule.methods, rule.paths, str(rule.source)) for rule in rules.http),
        tuple((one.host, one.put, one.shown, one.variable, str(one.source)) for one in rules.credentials),
    )


def variables() -> dict[str, str]:
    """What makes programs inside trust the session's certificates."""
    return dict.fromkeys(CERTIFICATE_VARIABLES, BUNDLE)


def place(tree: Tree, names: Mapping[str, Named]) -> None:
    """Put the certificates where the variables say, and over the host's own bundles, for programs that read no variable."""
    bundles, stores = (
        [names[path].canonical for path in paths if names[path].kind is Kind.FILE]
        for paths in (SYSTEM_BUNDLES, SYSTEM_KEYSTORES)
    )
    for shown in dict.fromkeys((*bundles, *stores)):
        if mounts.visible(tree, shown):
            tree.entries[shown] = Certificates(shown, shown)
    tree.place(BUNDLE, Certificates(bundles[0] if bundles else "", BUNDLE))


def granted(rules: WebRules) -> tuple[Line, ...]:
    """The lines for what the gateway holds."""
    lines = [Line("network", str(rule), "request", "", ("gateway",), str(rule.source)) for rule in rules.http]
    for one in rules.credentials:
        inside = f"; {one.variable} holds a placeholder" if one.variable else ""
        note = f"{one.put}, from {one.shown}{inside}"
        lines.append(Line("network", one.host, "credential", note, ("gateway",), str(one.source)))
    return tuple(lines)


def slack(rules: WebRules, authority: Authority) -> tuple[Line, ...]:
    """Where requests can go past the rules, and where a secret can come back."""
    lines: list[Line] = []
    addresses = [one for one in authority.connect if not one.name and not one.wildcard]
    wide = [one for one in addresses if one.protocol == "tcp" and one.port in _HTTP_PORTS]
    for host in dict.fromkeys(rule.pattern for rule in rules.http):
        for one in wide:
            note = f"not read where it is reached by an address: {one} is granted"
            lines.append(Line("network", host, "request", note))
    for host in dict.fromkeys(one.host for one in rules.credentials):
        lines.append(
            Line("network", host, "credential", "answers are not searched: a server that echoes shows the secret")
        )
    return tuple(lines)


def deficit(rules: WebRules, authority: Authority) -> tuple[Line, ...]:
    """Credentials that no request can carry; variables that are granted, and hold secrets."""
    lines: list[Line] = []
    for one in rules.credentials:
        if not any([_reaches(end, one.host) for end in authority.connect]):
            note = "network.connect does not grant the host"
            lines.append(Line("network", one.host, "credential", note, (), str(one.source)))
    for name, value in sorted(authority.environment, key=lambda pair: pair[0]):
        if value is None and name in rules.secret_variables - rules.variables:
            lines.append(Line("environment", name, "pass", "a credential comes from it: it stays outside"))
    return tuple(lines)


def notes(rules: WebRules, authority: Authority) -> tuple[str, ...]:
    """What people should know of the rules and certificates."""
    found = [
        f"{rule.source}: {rule.pattern} is not granted by network.connect: this allows nothing by itself"
        for rule in rules.http
        if not any([_reaches(end, rule.host, below=rule.wildcard) for end in authority.connect])
    ]
    hosts = sorted({rule.pattern for rule in rules.http} | {one.host for one in rules.credentials})
    found.append(f"requests to {', '.join(hosts)} are read, with certificates that hold inside the session only")
    return tuple(found)


def unheld(rules: WebRules) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
    """(slack, deficit) without a network of the session's own: nobody reads requests, and nobody has secrets to put in."""
    wider = [
        Line("network", str(rule), "request", "any request: no gateway", (), str(rule.source)) for rule in rules.http
    ]
    narrower = [
        Line("network", one.host, "credential", "no gateway puts it in", (), str(one.source))
        for one in rules.credentials
    ]
    return tuple(wider), tuple(narrower)


def _reaches(end: Endpoint, host: str, *, below: bool = False) -> bool:
    if not end.name or end.protocol != "tcp":
        return end.wildcard and end.protocol == "tcp"
    dotted = f".{host}"
    return (
        end.name == host or (end.wildcard and dotted.endswith(f".{end.name}")) or (below and end.name.endswith(dotted))
    )
