"""What the launcher, the in-child stage and the gateway say to each other: plain values, and sockets.

The gateway is one process on the host's side, ``python -I -S -c ...`` with an empty environment. It is given one end of a
``SOCK_SEQPACKET`` pair (its *control* socket) and nothing else. Every message is one packet of at most ``MESSAGE_SIZE``
bytes: ``marshal`` of a tuple whose first item is the kind. Both ends are the same interpreter's, started by the same
launcher, so ``marshal`` is one format here; nothing that a confined process wrote is ever unmarshalled.

    launcher -> gateway     ("config", session, options) [+ descriptor]     once, first
                            ("listen", call, rules, roles, variables) + descriptors
                                                                            a source: what may leave through these sockets
                            ("close", call)                                 the call is over: its sockets and connections end
    gateway -> launcher     ("ready", certificate)                          once, when the config has been read: the
                                                                            certificate (PEM) of the authority by which the
                                                                            requests of some hosts are read, or b""
                            ("events", (EVENT fields, ...))                 see EVENT
                            ("failed", message, hint)                       the gateway ends itself

A config's descriptor is of a file in memory (``kernel.memfd``) with more options, ``marshal``led: the secrets. Whoever
passes it on need not read it, and nothing of it is in the memory of what the session is forked from. The key of the
certificates is made in the gateway and never leaves it.

The gateway ends when its control socket reads end-of-file. The launcher takes the end of the socket as the gateway's
death: no network from then on, which the record says. Connections that a program makes before the gateway is up wait in
the listening sockets' backlogs; once it is dead they are reset, because nobody else holds those sockets.

**Sources.** A source is a (session, call) pair with its own network namespace, or the session's own (call ""). Every
socket belongs to exactly one, so a decision always knows whose connection it is. A call's rules are decided on together
with the session's (``options["rules"]``): what a call may reach, the session must allow as well. HTTP rules are the
session's, for every call. ``variables`` are the placeholders (by the variable that holds them) which a call was given:
credentials that have a variable are put in for no other.

Imported by the launcher and by the stage, so: no imports of its own.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Rule: TypeAlias = tuple[str, str]
    """(an endpoint as ``str(Endpoint)`` spells it, which ``parse_endpoint`` reads back, where it stands: FILE:LINE KEY)."""

    HttpRule: TypeAlias = tuple[str, tuple[str, ...], tuple[str, ...], str]
    """(host, methods, path patterns, where it stands). A host with an HTTP rule is reached by HTTP only."""

    Credential: TypeAlias = tuple[str, str, str, str, str, str, str]
    """(host, "header" or "query", its name, the placeholder that programs inside see, the secret, where it stands, the
    variable that holds the placeholder or "")."""

    Role: TypeAlias = tuple[str, int]
    """(what the socket is for, a number that goes with it): see ROLES."""

    Config: TypeAlias = tuple[str, str, dict[str, Any]]
    Listen: TypeAlias = tuple[str, str, tuple[Rule, ...], tuple[Role, ...], tuple[str, ...]]

MESSAGE_SIZE = 1 << 17
"""The greatest packet. (``net.core.wmem_max`` is 208 KiB where nobody changed it, and a packet has to fit in it.)"""

MOST_DESCRIPTORS = 253
"""In one message: SCM_MAX_FD of ``unix(7)``. A source with more sockets comes in several messages of one call."""

CONFIG, LISTEN, CLOSE = "config", "listen", "close"
READY, EVENTS, FAILED = "ready", "events", "failed"

OPTIONS = ("rules", "http", "credentials", "limits")
"""Keys of a config's options, each of which may be missing:

``rules``: tuple of Rule, the session's endpoints. ``http``: tuple of HttpRule. ``credentials``: tuple of Credential.
``limits``: dict of ``connections`` (at a time), ``bytes`` (both ways, in all), ``time`` (milliseconds of one connection).
Only ``credentials`` are in the file that comes with a config.
"""

TCP, DNS_UDP, DNS_TCP, PROXY, UDP, PUBLISH, PUBLISHED = (
    "tcp",
    "dns-udp",
    "dns-tcp",
    "proxy",
    "udp",
    "publish",
    "published",
)

ROLES = (TCP, DNS_UDP, DNS_TCP, PROXY, UDP, PUBLISH, PUBLISHED)
"""What a socket is for, and its number. A role comes once for IPv4 and once for IPv6 where the host has it; the socket
itself says which (``SO_DOMAIN``). All are non-blocking; those that listen for TCP have TCP_NODELAY, for what is accepted. All but
``published`` belong to the session's namespace.

``tcp``: listening; every TCP connection that a program makes to anything but its own loopback arrives here, under the address
    that it was made to (TPROXY): a synthetic address of the gateway's own DNS, a granted address, or anything else. Where that
    is the socket's own, the kernel has no TPROXY and ``SO_ORIGINAL_DST`` (SOL_IP, 80) or ``IP6T_SO_ORIGINAL_DST`` (SOL_IPV6, 80)
    says what was meant; or it was made to the socket's own address, and is refused.
``proxy``: listening; HTTP CONNECT, absolute-form HTTP and SOCKS5, told apart by the first byte.
``dns-udp``, ``dns-tcp``: the responder. Bound to 127.0.0.1:53 and [::1]:53; queries to any other resolver arrive here too.
``udp``: bound to every address; the number is the granted port. Datagrams to that port arrive here with their own
    destination address (IP_PKTINFO, IPV6_RECVPKTINFO; both are set already), whatever address that is: a synthetic one of
    the DNS, a granted one, or one to refuse. A reply is sent with IP_PKTINFO's ``ipi_spec_dst`` (IPV6_PKTINFO's address)
    set to the address that the datagram went to: the socket may speak as any (IP_TRANSPARENT), and the kernel puts the
    granted port back.
``publish``: not connected, not bound: stream sockets *of the session's namespace*. ``connect(2)`` acts in the namespace
    that a socket was made in, so the gateway reaches a server inside by connecting one of these to 127.0.0.1:PORT; after
    use it is taken back by ``connect`` with AF_UNSPEC, which disconnects it. Their count is how many published
    connections there can be at a time. The number is 0.
``published``: listening *on the host*; the number is the port inside to which its connections are relayed.
"""

EVENT = ("call", "right", "object", "verdict", "reason", "rule", "via", "sent", "received", "duration", "grant")
"""Fields of one of ``events``, in order:

``call`` (str, "" for the session's own), ``right`` (``connect``, ``request``, ``resolve``, ``publish``), ``object``
(HOST:PORT/PROTOCOL as the program meant it, canonical; for ``request`` METHOD URL, without a query; for ``resolve`` the name
asked for), ``verdict`` (``allowed`` when a connection is made and again as ``ended`` when it is over, ``denied``, ``failed``
where it was allowed and the network said no), ``reason`` (one line for people, no secret in it), ``rule`` (where the rule
stands that allowed it or, for a denied request, the first one about its host; or ""), ``via`` (``transparent``, ``connect``,
``http``, ``socks``, ``dns``, ``udp``, ``published``), ``sent`` and ``received`` (bytes from and to the session), ``duration``
(milliseconds), ``grant`` (of a denial, the smallest grant that would have allowed it: an endpoint, or the lines of an
``[[network.http]]`` entry; or "").
"""

# --- addresses inside, which both halves have to know -----------------------------------------------------------------

RESOLVER = "127.0.0.1"
"""``nameserver`` of the session's /etc/resolv.conf."""

DNS_PORT, PROXY_PORT, TCP_PORT = 53, 880, 881
"""Below 1024: a program inside has no right to bind there, so that its own servers cannot be in the way, nor pose as these."""

UDP_PORTS = range(900, 1024)
"""Where ``udp`` sockets are bound, one a granted port; no more ports than that can be granted for UDP."""

OWN_V4, OWN_V6 = "198.18.0.1", "fd72:656d:6974:f::1"
"""The session's own addresses, on ``lo``: what connections come from. The DNS responder's synthetic addresses are in the
same networks, 198.18.0.0/15 and fd72:656d:6974:f::/64, from number 256 on."""

PUBLISH_SOCKETS = 64
"""How many ``publish`` sockets a session has: how many connections can be relayed into it at a time."""

GATEWAY = (
    "import sys; sys.path.append(sys.argv[1]); from remit.sandbox.egress.gateway import main; main(int(sys.argv[2]))"
)
"""What ``python -I -S -X utf8 -c`` runs: the directory that holds ``remit``, the number of the control socket. ``main``
never returns normally before the control socket's end; libraries beside the standard one are its own to find
(``remit.cli.boot`` is above it: the site directories are ``sys.argv[3:]``)."""
