"""The network axis: a namespace of its own with nothing in it but a loopback interface, and at most one way out.

Where something may be connected to, or a port is published, the plan has one ``Egress``: a gateway on the host's side
decides every connection by name, address, port and protocol. Where nothing is granted there is no gateway and no way.

Landlock's TCP rights know ports and no addresses. With the session's own loopback allowed they cannot deny anything
that the namespace does not; without it, they leave the granted ports and the gateway's own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from remit.sandbox.authority.model import Authority, Endpoint
from remit.sandbox.authority.web import WebRules
from remit.sandbox.compile import packets, web
from remit.sandbox.compile.landlock import BIND_TCP, CONNECT_TCP
from remit.sandbox.compile.plan import Egress, Line
from remit.sandbox.egress.wire import DNS_PORT, PROXY_PORT, RESOLVER, UDP_PORTS

_PROXY = f"http://{RESOLVER}:{PROXY_PORT}"
VARIABLES: tuple[tuple[str, str], ...] = tuple(
    (spelling, value)
    for name, value in (
        ("HTTP_PROXY", _PROXY),
        ("HTTPS_PROXY", _PROXY),
        # HTTP and not SOCKS, which the same port speaks too: several libraries fail on a SOCKS proxy unless an extra one
        # is installed, and all of them take this.
        ("ALL_PROXY", _PROXY),
        ("NO_PROXY", "localhost,127.0.0.1,::1"),
    )
    for spelling in (name, name.lower())
)
"""For programs that know proxies. Those that do not, or are told not to, arrive at the same gateway by redirection."""

FILES: tuple[tuple[str, str], ...] = (
    ("/etc/resolv.conf", f"# Written by Remit: names that were granted, and no others.\nnameserver {RESOLVER}\n"),
    # The host's own would say addresses for names, and an address is not what was granted.
    ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {hostname}\n"),
)


NO_RULES = WebRules()


@dataclass(frozen=True, slots=True)
class Report:
    reasons: tuple[tuple[str, str], ...] = ()
    granted: tuple[Line, ...] = ()
    deficit: tuple[Line, ...] = ()
    slack: tuple[Line, ...] = ()
    notes: tuple[str, ...] = ()


def egress(authority: Authority, *, own_namespace: bool) -> Egress | None:
    """The way out, if anything needs one."""
    if not own_namespace or not (authority.connect or authority.publish):
        return None
    held = [one for one in authority.connect if not _unheld(one, authority)]
    udp = tuple(sorted({one.port for one in held if one.protocol == "udp"}))
    rules = tuple((str(one), str(one.source)) for one in held)
    published = tuple(_published(text) for text in authority.publish)
    if not rules and not published:
        return None
    servers = tuple(sorted({*authority.listen, *[inner for _, _, inner in published]}))
    return Egress(rules, udp, published, *_filters(authority, udp, servers))


def dead_end(authority: Authority) -> Egress:
    """A way out that leads nowhere, for the rules that are in its network: of a loopback that is closed, the ``listen`` ports are
    open for TCP, and nothing is for UDP."""
    return Egress((), (), (), *_filters(authority, (), tuple(sorted(authority.listen))))


def _filters(authority: Authority, udp: tuple[int, ...], servers: tuple[int, ...]) -> tuple[bytes, bytes]:
    made = [
        make(udp, loopback=authority.loopback, servers=servers) for make in (packets.program, packets.without_tproxy)
    ]
    return made[0], made[1]


def has_loopback(authority: Authority, *, own_namespace: bool) -> bool:
    """Whether ``lo`` is up: it is what everything in the namespace goes over."""
    return authority.loopback or bool(authority.listen) or egress(authority, own_namespace=own_namespace) is not None


def variables(authority: Authority, degrade: Collection[str]) -> dict[str, str]:
    """What programs under ``authority`` are told of a way out, if they have one."""
    own = not {"network", "namespaces"} & set(degrade)
    return dict(VARIABLES) if egress(authority, own_namespace=own) is not None else {}


def _published(text: str) -> tuple[str, int, int]:
    rest, _, inner = text.rpartition(":")
    host, _, port = rest.rpartition(":")
    return host.strip("[]"), int(port), int(inner)


def _unheld(one: Endpoint, authority: Authority) -> str:
    """Why an endpoint cannot be given, or ""."""
    if one.port == DNS_PORT:
        return "port 53 inside is the session's own resolver, which answers for granted names"
    if one.protocol != "udp":
        return ""
    if not one.port:
        return "UDP is granted port by port: each one is a socket"
    ports = sorted(
        {each.port for each in authority.connect if each.protocol == "udp" and each.port not in (0, DNS_PORT)}
    )
    if ports.index(one.port) >= len(UDP_PORTS):
        return f"more than {len(UDP_PORTS)} UDP ports"
    return ""


def landlock_tcp(authority: Authority, *, own_namespace: bool) -> tuple[int, tuple[tuple[int, int], ...]]:
    """The TCP rights that Landlock can deny here, and (port, rights) for what it must not."""
    if not own_namespace:
        return (0, ()) if authority.connect or authority.listen else (BIND_TCP | CONNECT_TCP, ())
    if authority.loopback:
        return 0, ()
    ports = dict.fromkeys(authority.listen, BIND_TCP | CONNECT_TCP)
    if egress(authority, own_namespace=True) is None:
        return BIND_TCP | CONNECT_TCP, tuple(sorted(ports.items()))
    reach = {one.port for one in authority.connect if one.protocol == "tcp"} | {DNS_PORT, PROXY_PORT}
    if 0 in reach:
        return BIND_TCP, tuple(sorted((port, BIND_TCP) for port in ports))
    for port in reach:
        ports[port] = ports.get(port, 0) | CONNECT_TCP
    return BIND_TCP | CONNECT_TCP, tuple(sorted(ports.items()))


def lower(authority: Authority, explicit: Authority, rules: WebRules = NO_RULES, *, own_namespace: bool) -> Report:
    """What becomes of connect, listen, publish and loopback, and of HTTP rules and credentials. ``explicit``: the part that
    the command line asked for."""
    if not own_namespace:
        slack = Line("network", "the host's network", "use", "no network namespace: UDP and the host's loopback")
        unread, unused = web.unheld(rules)
        lines = [
            Line("network", text, "publish", "the host's network is the session's own") for text in authority.publish
        ]
        return Report(deficit=(*lines, *unused), slack=(slack, *unread))
    reasons: list[tuple[str, str]] = []
    granted: list[Line] = []
    deficit: list[Line] = []
    asked = frozenset(map(str, explicit.connect))
    for one in authority.connect:
        why = _unheld(one, authority)
        if not why:
            by = ("namespaces", "gateway")
            granted.append(Line("network", str(one), "connect", "", by, str(one.source)))
        elif str(one) in asked:
            reasons.append((f"connect {one}: {why}", "name other ports, or leave it out"))
        else:
            deficit.append(Line("network", str(one), "connect", why, (), str(one.source)))
    bound = ("namespaces",) if authority.loopback else ("namespaces", "landlock")
    granted += [Line("network", str(port), "listen", "inside the session only", bound) for port in authority.listen]
    granted += [Line("network", text, "publish", "", ("gateway",)) for text in authority.publish]
    slack_lines = _fronting(authority, rules)
    notes = _notes(authority)
    if rules:
        granted += web.granted(rules)
        deficit += web.deficit(rules, authority)
        slack_lines += web.slack(rules, authority)
        notes += web.notes(rules, authority)
    return Report(tuple(reasons), tuple(granted), tuple(deficit), slack_lines, notes)


def _fronting(authority: Authority, rules: WebRules) -> tuple[Line, ...]:
    tcp = (one for one in authority.connect if one.protocol == "tcp" and not _unheld(one, authority))
    if all([rules.read(one.name, wildcard=one.wildcard) for one in tcp if one.name or one.wildcard]):
        return ()
    note = "inside TLS another host of the same server can be asked for (fronting): only the outer name is seen"
    return (Line("network", "granted names", "connect", note),)


def _notes(authority: Authority) -> tuple[str, ...]:
    if not authority.loopback and egress(authority, own_namespace=True) is not None:
        return ("network: of its own loopback only TCP at the ports in `listen`",)
    if not authority.loopback and authority.listen:
        return ("network: of its own loopback only the ports in `listen`; UDP there is one layer",)
    if not authority.loopback:
        return ("network: no loopback either",)
    ports = "; any port can be listened on there" if authority.listen else ""
    return (f"network: one layer (the session's own loopback is allowed{ports})",)
