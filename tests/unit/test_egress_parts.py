"""The gateway's pure parts: decisions, names, DNS, TLS hellos, SOCKS, CONNECT, requests; with noise of every kind."""

from __future__ import annotations

import ssl
import struct
from ipaddress import ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from remit.sandbox.authority import endpoint as algebra
from remit.sandbox.authority.model import Endpoint
from remit.sandbox.authority.parse import ParseError, parse_endpoint
from remit.sandbox.authority.web import HttpRule
from remit.sandbox.egress import config
from remit.sandbox.egress.addresses import LOCAL, canonical, special
from remit.sandbox.egress.decide import Destination, Reason, Rules, decide, destination, smallest_grant
from remit.sandbox.egress.dns import LONGEST, Code, answer
from remit.sandbox.egress.names import FIRST, Names
from remit.sandbox.egress.policy import Web
from remit.sandbox.egress.proxy import SocksError, read_connect, read_greeting, read_socks_request
from remit.sandbox.egress.request import BadRequest, check
from remit.sandbox.egress.sni import Hello, HelloError, looks_like_tls, read_hello
from remit.sandbox.egress.tunnel import looks_like_http

# --- decisions --------------------------------------------------------------------------------------------------------

HOSTS = ["example.com", "api.example.com", "a.b.example.com", "example.net", "com"]
ADDRESSES = [
    "203.0.113.1",
    "10.0.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "169.254.1.1",
    "0.0.0.0",
    "224.0.0.1",
    "2001:db8::1",
    "::1",
    "fd00::1",
    "fe80::1",
    "64:ff9b::a00:1",
]
NETWORKS = [
    "",
    "203.0.113.0/24",
    "10.0.0.0/8",
    "127.0.0.0/8",
    "169.254.169.254/32",
    "0.0.0.0/0",
    "::/0",
    "::1/128",
    "fd00::/8",
]


@st.composite
def endpoints(draw: st.DrawFn) -> Endpoint:
    name = draw(st.sampled_from(["", *HOSTS]))
    wildcard = draw(st.booleans())
    network = draw(st.sampled_from(NETWORKS if name or wildcard else NETWORKS[1:]))
    return Endpoint(name, wildcard, network, draw(st.sampled_from([0, 80, 443])), draw(st.sampled_from(["tcp", "udp"])))


destinations = st.builds(
    Destination,
    st.sampled_from(HOSTS),
    st.sampled_from(ADDRESSES),
    st.sampled_from([80, 443]),
    st.sampled_from(["tcp", "udp"]),
)


@given(st.lists(endpoints(), max_size=6), destinations)
def test_what_is_allowed_is_in_the_set_that_was_granted(rules: list[Endpoint], wanted: Destination) -> None:
    made = decide(Rules(rules), wanted)
    matching = [one for one in rules if algebra.matches(one, wanted.name, wanted.address, wanted.port, wanted.protocol)]
    if made.allowed:
        assert made.rule in matching
    else:
        assert made.rule is None
        # Narrower than the set only for special addresses.
        assert not matching or special(canonical(wanted.address)) is not None


@given(st.lists(endpoints(), max_size=5), st.lists(endpoints(), max_size=3), destinations)
def test_more_rules_never_allow_less(rules: list[Endpoint], more: list[Endpoint], wanted: Destination) -> None:
    if decide(Rules(rules), wanted).allowed:
        assert decide(Rules([*rules, *more]), wanted).allowed


@given(st.lists(endpoints(), max_size=5), st.lists(endpoints(), max_size=5), destinations)
def test_a_call_never_has_more_than_its_session(
    call: list[Endpoint], session: list[Endpoint], wanted: Destination
) -> None:
    above = Rules(session)
    both = decide(Rules(call, above), wanted).allowed
    assert both == (decide(Rules(call), wanted).allowed and decide(above, wanted).allowed)


@given(st.lists(endpoints(), max_size=6), destinations)
def test_a_name_is_resolved_only_if_it_is_granted(rules: list[Endpoint], wanted: Destination) -> None:
    by_name = Destination(wanted.name, "", wanted.port, wanted.protocol)
    allowed = decide(Rules(rules), by_name).allowed
    usable = [one for one in rules if one.port in (0, wanted.port) and one.protocol == wanted.protocol]
    expected = any(
        (not one.name or wanted.name.endswith("." + one.name)) if one.wildcard else wanted.name == one.name
        for one in usable
    )
    assert allowed == expected
    if not Rules(rules).resolvable(wanted.name):
        assert not allowed


@given(st.lists(endpoints(), max_size=6), destinations)
def test_a_local_address_is_reached_only_by_a_network_of_its_own_kind(
    rules: list[Endpoint], wanted: Destination
) -> None:
    block = special(canonical(wanted.address))
    made = decide(Rules(rules), wanted)
    if made.allowed and block is not None:
        assert made.rule is not None
        assert made.rule.network
        if block.kind in LOCAL:
            assert made.rule.network not in ("0.0.0.0/0", "::/0")


@given(st.lists(endpoints(), max_size=6), destinations)
def test_the_smallest_grant_is_enough(rules: list[Endpoint], wanted: Destination) -> None:
    made = decide(Rules(rules), wanted)
    if not made.allowed and made.reason is not Reason.OTHER_ADDRESS:
        grant = smallest_grant(wanted, made.reason)
        more = decide(Rules([*rules, parse_endpoint(grant)]), wanted)
        if not more.allowed:  # a name was missing, and behind it is a special address: that is a second grant
            assert more.reason is Reason.SPECIAL_ADDRESS
            both = [*rules, parse_endpoint(grant), parse_endpoint(smallest_grant(wanted, more.reason))]
            assert decide(Rules(both), wanted).allowed


@pytest.mark.parametrize(
    ("rules", "wanted", "reason"),
    [
        ([], Destination("example.com", "", 443), Reason.NO_RULE),
        (["example.com:443"], Destination("example.com", "", 80), Reason.OTHER_PORT),
        (["example.com:443/udp"], Destination("example.com", "", 443), Reason.OTHER_PROTOCOL),
        (["example.com:443"], Destination("example.com", "10.0.0.1", 443), Reason.SPECIAL_ADDRESS),
        (["*:443"], Destination("example.com", "", 443), Reason.GRANTED),
        (["*:443"], Destination("com", "203.0.113.1", 443), Reason.GRANTED),
        (["*:443"], Destination("example.com", "", 80), Reason.OTHER_PORT),
        (["*:443"], Destination("example.com", "10.0.0.1", 443), Reason.SPECIAL_ADDRESS),
        (["*:443"], Destination("", "203.0.113.1", 443), Reason.NO_RULE),
        (["0.0.0.0/0:443"], Destination("", "127.0.0.1", 443), Reason.TOO_WIDE),
        (["127.0.0.1:443"], Destination("", "127.0.0.1", 80), Reason.OTHER_PORT),
    ],
)
def test_reasons(rules: list[str], wanted: Destination, reason: Reason) -> None:
    assert decide(Rules([parse_endpoint(one) for one in rules]), wanted).reason is reason


def test_a_name_and_a_network_at_once() -> None:
    both = Endpoint("db.example.com", False, "10.0.0.0/8", 5432)
    for endpoint in (both, Endpoint("x.example", True, "fd00::/8", 0, "udp"), Endpoint("", True, "10.0.0.0/8", 1)):
        assert config.endpoint((str(endpoint), "p.toml:3")) == endpoint
    rules = Rules([both])
    assert decide(rules, Destination("db.example.com", "10.0.0.1", 5432)).allowed
    assert decide(rules, Destination("db.example.com", "203.0.113.1", 5432)).reason is Reason.OTHER_ADDRESS
    assert not decide(rules, Destination("", "10.0.0.1", 5432)).allowed


@given(endpoints())
def test_rules_come_over_the_wire_as_they_are(endpoint: Endpoint) -> None:
    assert config.endpoint((str(endpoint), "where")) == endpoint


@given(st.text(max_size=80), st.integers(1, 65535))
@example("a\0b", 1)
@example("[::1]", 1)
@example("1.2.3.4/8", 1)
def test_a_host_has_one_reading_or_none(host: str, port: int) -> None:
    try:
        made = destination(host, port)
    except ParseError:
        return
    assert bool(made.name) != bool(made.address)
    assert destination(made.name or made.address, port) == made


# --- names ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 60).map("n{}.example".format), max_size=200), st.integers(1, 20))
def test_an_address_stands_for_one_name(asked: list[str], limit: int) -> None:
    names = Names(limit)
    last: dict[str, str] = {}
    for name in asked:
        v4, v6 = map(str, names.addresses(name))
        assert names.synthetic(v4)
        assert names.synthetic(v6)
        assert names.name(v4) == names.name(v6) == name
        last[name] = v4
    assert len(names) <= limit
    live = [address for name, address in last.items() if names.name(address) == name]
    assert len(live) == len(set(live)) == len(names)


def test_numbers_come_round_and_skip_the_living() -> None:
    from ipaddress import IPv4Network

    names = Names(8, v4=IPv4Network("198.18.0.0/23"))  # 255 numbers
    kept = names.addresses("kept.example")[0]
    for index in range(2000):
        names.addresses(f"n{index}.example")
        assert names.addresses("kept.example")[0] == kept
    assert int(kept) - int(ip_address("198.18.0.0")) >= FIRST
    assert names.name("198.18.0.53") is None
    assert names.name("203.0.113.1") is None


# --- DNS --------------------------------------------------------------------------------------------------------------

RULES = Rules([parse_endpoint("api.example.com:443"), parse_endpoint("*.wild.example:443")])


def query(
    labels: list[bytes],
    kind: int = 1,
    *,
    flags: int = 0x0100,
    tail: bytes = b"",
    counts: tuple[int, ...] = (1, 0, 0, 0),
) -> bytes:
    name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    return struct.pack("!6H", 0xABCD, flags, *counts) + name + struct.pack("!2H", kind, 1) + tail


API = [b"api", b"example", b"com"]
OPT = b"\0\0\x29\x10\0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("data", "code", "answers"),
    [
        (query(API), Code.NOERROR, 1),
        (query(API, 28), Code.NOERROR, 1),
        (query(API, 255), Code.NOERROR, 2),
        (query(API, 65), Code.NOERROR, 0),  # HTTPS: nothing to strip where nothing is told
        (query(API, 64), Code.NOERROR, 0),  # SVCB
        (query(API, 16), Code.NOERROR, 0),
        (query(API, 12), Code.NOERROR, 0),
        (query([b"API", b"Example", b"COM"]), Code.NOERROR, 1),
        (query([b"x", b"wild", b"example"]), Code.NOERROR, 1),
        (query([b"localhost"]), Code.NOERROR, 1),
        (query([b"x.wild", b"example"]), Code.NXDOMAIN, 0),  # a dot within a label
        (query([b"api\0", b"example", b"com"]), Code.NXDOMAIN, 0),
        (query([b"evil", b"example"]), Code.NXDOMAIN, 0),
        (query([b"api", b"example", b"com", b"evil"]), Code.NXDOMAIN, 0),
        (query([b"_443", b"_tcp", *API]), Code.NXDOMAIN, 0),
        (query([b"use-application-dns", b"net"]), Code.NXDOMAIN, 0),
        (query([b"_dns", b"resolver", b"arpa"], 64), Code.NXDOMAIN, 0),
        (query([b"1", b"0", b"18", b"198", b"in-addr", b"arpa"], 12), Code.NXDOMAIN, 0),
        (query([b"xn--api-"]), Code.NXDOMAIN, 0),
        (query([]), Code.NXDOMAIN, 0),
        (query([b"a" * 63] * 3 + [b"a" * 61]), Code.NXDOMAIN, 0),
        (query([b"a" * 63] * 3 + [b"a" * 62]), Code.FORMERR, 0),
        (query(API, tail=OPT, counts=(1, 0, 0, 1)), Code.NOERROR, 1),
        (query(API, tail=OPT.replace(b"\0\0\0\0\0\0\0", b"\0\0\1\0\0\0\0"), counts=(1, 0, 0, 1)), Code.BADVERS, 0),
        (query(API, tail=OPT + b"x", counts=(1, 0, 0, 1)), Code.FORMERR, 0),
        (query(API, tail=b"x"), Code.FORMERR, 0),
        (query(API, counts=(2, 0, 0, 0)), Code.FORMERR, 0),
        (query(API, counts=(0, 0, 0, 0)), Code.FORMERR, 0),
        (query(API, flags=0x0900), Code.NOTIMP, 0),
        (struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", Code.FORMERR, 0),  # a name that is itself
        (struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + b"\x03api\xc0\x0c\0\1\0\1", Code.FORMERR, 0),
        (struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + b"\x03ap", Code.FORMERR, 0),
    ],
)
def test_dns(data: bytes, code: Code, answers: int) -> None:
    reply = answer(data, RULES, Names())
    assert reply.code is code
    assert reply.data[:2] == data[:2]
    assert reply.data[2] & 0x80
    assert reply.data[3] & 15 == code & 15
    assert int.from_bytes(reply.data[6:8], "big") == answers
    assert len(reply.data) <= 512
    if code is Code.NOERROR:
        question = data[12:].removesuffix(OPT)
        assert reply.data[12:].startswith(question)  # as it was asked, in its own case


@pytest.mark.parametrize("data", [b"", b"x" * 11, query(API, flags=0x8100), b"\0" * (LONGEST + 1)])
def test_dns_says_nothing_to_what_is_no_question(data: bytes) -> None:
    assert answer(data, RULES, Names()).data == b""


@given(st.binary(max_size=600) | st.binary(max_size=40).map(lambda tail: query(API)[:-4] + tail))
def test_dns_answers_noise(data: bytes) -> None:
    names = Names(4)
    reply = answer(data, RULES, names)
    assert len(reply.data) <= 600
    assert len(names) <= 1
    if reply.data:
        assert reply.data[2] & 0x80
        assert answer(reply.data, RULES, names).data == b""


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=6))
def test_dns_grants_no_name_by_its_bytes(labels: list[bytes]) -> None:
    reply = answer(query(labels), RULES, Names())
    plain = b".".join(labels).lower()
    if plain != b"api.example.com" and not plain.endswith(b".wild.example") and not plain.endswith(b"localhost"):
        assert reply.code is not Code.NOERROR


# --- TLS --------------------------------------------------------------------------------------------------------------


def hello(name: str | None, protocols: list[str] | None = None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if protocols:
        context.set_alpn_protocols(protocols)
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


HELLO = hello("api.example.com", ["h2", "http/1.1"])


def in_records(data: bytes, size: int) -> bytes:
    body = data[5:]
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def with_extension(data: bytes, kind: int, content: bytes) -> bytes:
    """A hello with one more extension at its end."""
    body = bytearray(data[9:])
    at = 2 + 32
    at += 1 + body[at]
    at += 2 + int.from_bytes(body[at : at + 2], "big")
    at += 1 + body[at]
    length = int.from_bytes(body[at : at + 2], "big")
    more = kind.to_bytes(2, "big") + len(content).to_bytes(2, "big") + content
    body[at : at + 2] = (length + len(more)).to_bytes(2, "big")
    body += more
    handshake = b"\x01" + len(body).to_bytes(3, "big") + bytes(body)
    return b"\x16\x03\x01" + len(handshake).to_bytes(2, "big") + handshake


def sni_of(*names: bytes, kind: int = 0) -> bytes:
    listed = b"".join(bytes((kind,)) + len(name).to_bytes(2, "big") + name for name in names)
    return len(listed).to_bytes(2, "big") + listed


NAMELESS = hello(None)


def test_a_real_hello() -> None:
    assert read_hello(HELLO) == Hello("api.example.com", (b"h2", b"http/1.1"), False, len(HELLO))
    assert read_hello(NAMELESS) == Hello("", (), False, len(NAMELESS))
    assert looks_like_tls(HELLO)
    for end in range(len(HELLO)):
        assert read_hello(HELLO[:end]) is None


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 100, 511])
def test_a_hello_in_many_records(size: int) -> None:
    cut = in_records(HELLO, size)
    found = read_hello(cut)
    assert found is not None
    assert found.name == "api.example.com"
    for end in range(0, len(cut), 13):
        assert read_hello(cut[:end]) is None


def test_an_encrypted_hello_is_seen() -> None:
    for kind in (0xFE0D, 0xFFCE):
        found = read_hello(with_extension(HELLO, kind, b"\0" * 40))
        assert found is not None
        assert (found.name, found.encrypted) == ("api.example.com", True)


@pytest.mark.parametrize(
    "data",
    [
        with_extension(HELLO, 0, sni_of(b"evil.example")),  # a second server_name
        with_extension(NAMELESS, 0, sni_of(b"api.example.com", b"evil.example")),
        with_extension(NAMELESS, 0, sni_of(b"api.example.com\0.evil.example")),
        with_extension(NAMELESS, 0, sni_of(b"api.example.com.")),
        with_extension(NAMELESS, 0, sni_of(b"127.0.0.1")),
        with_extension(NAMELESS, 0, sni_of("api.exämple.com".encode())),
        with_extension(NAMELESS, 0, sni_of(b"*.example.com")),
        with_extension(NAMELESS, 0, sni_of(b"")),
        with_extension(NAMELESS, 0, sni_of(b"api.example.com", kind=1)),
        with_extension(NAMELESS, 0, sni_of(b"api.example.com") + b"x"),
        with_extension(NAMELESS, 0, b""),
        with_extension(NAMELESS, 16, b"\0\0"),
        with_extension(NAMELESS, 16, b"\0\1\0"),
        HELLO[:5] + b"\x02" + HELLO[6:],
        b"\x17" + HELLO[1:],
        b"\x16\x02" + HELLO[2:],
        b"\x16\x03\x05" + HELLO[3:],
        b"\x16\x03\x01\x00\x00" + HELLO,
        b"\x16\x03\x01\xff\xff",
        HELLO[:3] + (len(HELLO) - 4).to_bytes(2, "big") + HELLO[5:] + b"x",
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
        in_records(HELLO, 50)[:110] + b"\x17\x03\x01\x00\x01x",
        b"\x80\x2e\x01\x03\x01",
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_hellos_that_are_refused(data: bytes) -> None:
    with pytest.raises(HelloError):
        read_hello(data)


@given(st.integers(0, len(HELLO) - 1), st.binary(min_size=1, max_size=4))
def test_a_damaged_hello_says_this_name_or_nothing_wrong(at: int, noise: bytes) -> None:
    damaged = HELLO[:at] + noise + HELLO[at + len(noise) :]
    try:
        found = read_hello(damaged)
    except HelloError:
        return
    assert found is None or found.length <= len(damaged)


@given(st.binary(max_size=2000) | st.binary(max_size=300).map(lambda tail: b"\x16\x03\x01" + tail))
def test_noise_is_no_hello(data: bytes) -> None:
    try:
        read_hello(data)
    except HelloError:
        pass


def test_a_hello_without_end_is_refused() -> None:
    with pytest.raises(HelloError):
        read_hello(
            b"\x16\x03\x01\x40\x00"
            + b"\x01\x00\xff\xff"
            + b"\0" * 16380
            + (b"\x16\x03\x01\x40\x00" + b"\0" * 16384) * 4
        )


# --- SOCKS, CONNECT, HTTP ---------------------------------------------------------------------------------------------


@given(st.binary(max_size=600) | st.binary(max_size=300).map(lambda tail: b"\x05" + tail))
def test_socks_noise(data: bytes) -> None:
    for read in (read_greeting, read_socks_request):
        try:
            found = read(data)
        except SocksError:
            continue
        if found is not None:
            length = found if isinstance(found, int) else found.length
            assert 0 < length <= len(data)


def test_socks_pieces() -> None:
    whole = b"\x05\x01\x00\x03\x0fapi.example.com\x01\xbb"
    for end in range(len(whole)):
        assert read_socks_request(whole[:end]) is None
    found = read_socks_request(whole + b"more")
    assert found is not None
    assert (found.host, found.port, found.length) == ("api.example.com", 443, len(whole))
    for wrong in (
        b"\x04\x01\x00\x01",
        b"\x05\x02\x00\x01",
        b"\x05\x03\x00\x01",
        b"\x05\x01\x01\x01",
        b"\x05\x01\x00\x02xx",
    ):
        with pytest.raises(SocksError):
            read_socks_request(wrong + b"\0" * 20)
    with pytest.raises(SocksError):
        read_greeting(b"\x05\x01\x02")


@given(
    st.binary(max_size=400)
    | st.binary(max_size=200).map(lambda tail: b"CONNECT " + tail)
    | st.text("abc.:[]@0123 ", max_size=30).map(lambda t: f"CONNECT {t} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
)
def test_connect_noise(data: bytes) -> None:
    try:
        found = read_connect(data)
    except BadRequest:
        return
    if found is not None:
        assert 0 < found[1] <= len(data)


tokens = st.sampled_from(
    [b"host", b"connection", b"upgrade", b"content-length", b"transfer-encoding", b"authorization", b"x", b"te"]
)
values = st.binary(max_size=20) | st.sampled_from(
    [b"api.example.com", b"chunked", b"5", b"upgrade", b"websocket", b"host, close"]
)


@given(
    st.sampled_from([b"GET", b"POST", b"get", b"TRACE", b"PRI", b""]) | st.binary(max_size=8),
    st.sampled_from([b"/", b"/a/../b", b"*", b"http://api.example.com/", b"http://x@y/"]) | st.binary(max_size=40),
    st.lists(st.tuples(tokens, values), max_size=6),
    st.booleans(),
)
def test_request_noise(method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], fixed: bool) -> None:
    wanted = Destination("api.example.com", "", 443) if fixed else None
    web = Web((HttpRule("api.example.com", paths=("/a",)),))
    try:
        made = check(method, target, headers, b"1.1", wanted, web)
    except BadRequest:
        return
    assert made.wanted.name == "api.example.com" if fixed else made.wanted.name or made.wanted.address
    names = [name for name, _ in made.headers]
    assert names.count(b"host") == 1
    assert not {b"te", b"keep-alive", b"proxy-authorization"} & set(names)
    assert (b"transfer-encoding" in names) + (b"content-length" in names) <= 1
    assert ".." not in made.path.split("/") or not web.rules_of(made.wanted.name)


@pytest.mark.parametrize(
    ("first", "is_http"),
    [
        (b"G", None),
        (b"GET", None),
        (b"GET ", None),
        (b"GET /", True),
        (b"GET http://", True),
        (b"GET key", False),
        (b"OPTIONS *", True),
        (b"PRI * HTTP/2.0", True),
        (b"*3\r\n$3\r\nGET", False),
        (b"SSH-2.0", False),
        (b"\0\0\0\x08", False),
        (b"get /", False),
    ],
)
def test_what_looks_like_http(first: bytes, is_http: bool | None) -> None:
    assert looks_like_http(first) is is_http
