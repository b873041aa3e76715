"""A finite universe and an oracle that decides membership in it by definition, sharing no code with the implementation.

Rules and patterns are made of the names ``a`` and ``b``; the universe also has ``z``, which stands for every other
name. Paths in rules have up to 2 components, anchors and tails up to 2, so that a path of 5 reaches past every one of
them (anchor, ``z``, tail).
"""

from __future__ import annotations

import functools
import itertools
import re
import socket

from hypothesis import strategies as st

from remit.sandbox.authority.model import Authority, AutoExec, Endpoint, PathPattern, PathRule, Right

PATHS = ["/", *("/" + "/".join(names) for depth in range(1, 6) for names in itertools.product("abz", repeat=depth))]
NAMES = [None, "x", "a.x", "b.a.x", "z.x", "z.a.x", "z.b.a.x", "y", "z.y", "ax"]
ADDRESSES = [None, *(f"10.0.0.{i}" for i in range(9)), "2001:db8::", "2001:db8::1", "2001:db8::2"]
CONNECTIONS = list(itertools.product(NAMES, ADDRESSES, [1, 2, 9], ["tcp", "udp"]))
MOST = 4

Atom = tuple[object, ...]


def pattern_regex(pattern: PathPattern) -> re.Pattern[str]:
    base = re.escape("" if pattern.anchor == "/" else pattern.anchor)
    between = "(?:/[^/]+)*" if pattern.any_depth else ""
    return re.compile(base + between + "/" + re.escape("/".join(pattern.tail)) + "(?:/.*)?")


def path_atoms(a: Authority) -> set[Atom]:
    deny = [pattern_regex(p) for p in a.deny]
    protect = [pattern_regex(p) for p in a.protect]
    atoms: set[Atom] = set()
    for path in PATHS:
        held: set[str] = set()
        for rule in a.paths:
            if path == rule.path or path.startswith(rule.path.rstrip("/") + "/"):
                held |= {str(r) for r in rule.rights}
                if rule.rights:
                    held.add("read")
        if any(r.fullmatch(path) for r in deny):
            held = set()
        if any(r.fullmatch(path) for r in protect):
            held.discard("write")
        atoms |= {("path", path, right) for right in held}
    return atoms


@functools.cache
def contains(network: str, address: str) -> bool:
    """Whether the address, as bits, begins with the network's prefix."""
    start, _, length = network.partition("/")
    family = socket.AF_INET6 if ":" in start else socket.AF_INET
    if (":" in address) != (":" in start):
        return False
    bits = [
        "".join(f"{byte:08b}" for byte in socket.inet_pton(family, text))[: int(length)] for text in (start, address)
    ]
    return bits[0] == bits[1]


@functools.cache
def connections(one: Endpoint) -> frozenset[Atom]:
    """Every connection of the universe that the endpoint allows."""
    return frozenset(("connect", *c) for c in CONNECTIONS if connects(one, *c))


def connects(one: Endpoint, name: str | None, address: str | None, port: int, protocol: str) -> bool:
    if one.name or one.wildcard:
        if name is None:
            return False
        if one.name and one.wildcard and not re.fullmatch(r".+\." + re.escape(one.name), name):
            return False
        if not one.wildcard and name != one.name:
            return False
    if one.network:
        if address is None:
            return False
        if not contains(one.network, address):
            return False
    return one.port in (0, port) and one.protocol == protocol


def denotes(a: Authority) -> set[Atom]:
    """Every atom of the universe that the authority denotes."""
    atoms = path_atoms(a)
    for endpoint in a.connect:
        atoms |= connections(endpoint)
    atoms |= {("opened", n) for n in ("g", "h", "other") if a.auto_exec is AutoExec.ALLOW or n in a.opened}
    if a.auto_exec is AutoExec.ALLOW:
        atoms.add(("auto", "everything"))
    atoms |= {("listen", port) for port in a.listen}
    atoms |= {("loopback",)} if a.loopback else set()
    atoms |= {("publish", port) for port in a.publish}
    atoms |= {("unix", path) for path in a.unix}
    atoms |= {("syscalls", name) for name in a.syscalls}
    atoms |= {("devices", path) for path in a.devices}
    atoms |= {("environment", *last) for last in {name: (name, value) for name, value in a.environment}.values()}
    for name in ("memory", "pids"):
        maxima = [most for limited, most in a.limits if limited == name]
        atoms |= {("limit", name, amount) for amount in range(MOST + 1) if all(amount <= most for most in maxima)}
    return atoms


def _paths(most: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from("ab"), max_size=most).map(lambda names: "/" + "/".join(names))


rules = st.builds(PathRule, _paths(2), st.frozensets(st.sampled_from(list(Right)), max_size=2), st.booleans())
patterns = st.builds(
    PathPattern, _paths(2), st.lists(st.sampled_from("ab"), min_size=1, max_size=2).map(tuple), st.booleans()
)
_named = st.sampled_from(["", "x", "a.x", "b.a.x", "y"])
_networks = st.sampled_from(
    [
        "",
        "0.0.0.0/0",
        "10.0.0.0/29",
        "10.0.0.0/30",
        "10.0.0.4/30",
        "10.0.0.0/31",
        "10.0.0.2/31",
        "10.0.0.3/32",
        "::/0",
        "2001:db8::/127",
        "2001:db8::1/128",
    ]
)
endpoints = st.builds(
    Endpoint, _named, st.booleans(), _networks, st.sampled_from([0, 1, 2]), st.sampled_from(["tcp", "tcp", "udp"])
).filter(lambda e: bool(e.name or e.network or e.wildcard))


def _some(many: st.SearchStrategy[object], most: int) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(many, max_size=most).map(tuple)


filesystems = st.builds(Authority, paths=_some(rules, 4), deny=_some(patterns, 3), protect=_some(patterns, 3))
networks = st.builds(Authority, connect=_some(endpoints, 5))
others = st.builds(
    Authority,
    auto_exec=st.sampled_from(AutoExec),
    opened=_some(st.sampled_from("gh"), 3),
    listen=_some(st.sampled_from([1, 2]), 3),
    publish=_some(st.sampled_from(["127.0.0.1:1:2", "127.0.0.1:2:2"]), 3),
    loopback=st.booleans(),
    unix=_some(st.sampled_from(["/s", "/t"]), 3),
    syscalls=_some(st.sampled_from(["perf", "bpf"]), 3),
    devices=_some(st.sampled_from(["kvm", "fuse"]), 3),
    environment=_some(st.tuples(st.sampled_from("EF"), st.sampled_from([None, "", "1"])), 3),
    limits=_some(st.tuples(st.sampled_from(["memory", "pids"]), st.integers(1, MOST - 1)), 3),
)
