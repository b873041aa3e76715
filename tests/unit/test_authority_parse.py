"""The strict parsers: what each accepts, in one canonical spelling, and the hostile spellings that it refuses."""

# ruff: noqa: RUF001 - characters that look like others are what is tested here
from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.sandbox.authority.model import LIMIT_NAMES, SYSCALL_GROUPS, Endpoint, PathPattern, Source
from remit.sandbox.authority.parse import (
    ParseError,
    parse_duration,
    parse_endpoint,
    parse_env_name,
    parse_group,
    parse_limit,
    parse_path,
    parse_pattern,
    parse_port,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/.", "/"),
        ("/usr", "/usr"),
        ("//usr///lib/", "/usr/lib"),
        ("/./a/./b/.", "/a/b"),
        ("/a b", "/a b"),
        ("/...", "/..."),
        ("/..a", "/..a"),
        ("/naïve/ключ", "/naïve/ключ"),
        ("/a*b[1]?", "/a*b[1]?"),
        ("/raw\udcff", "/raw\udcff"),
        ("/" + "a" * 255, "/" + "a" * 255),
    ],
)
def test_path_accepts(text: str, path: str) -> None:
    assert parse_path(text) == path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("usr", "/usr"),
        ("./usr", "not absolute"),
        ("~/.ssh", "home"),
        (" /usr", "not absolute"),
        ("/a/../b", "such as /b"),
        ("/..", "'..'"),
        ("/a/..", "'..'"),
        ("/a\0b", "control"),
        ("/a\nb", "control"),
        ("/a\x1b[2J", "control"),
        ("/a\x7f", "control"),
        ("/a\x9b", "control"),
        ("/a\u2028b", "separator"),
        ("/\ud800", "surrogate"),
        ("/" + "a" * 256, "255"),
        ("/" + "é" * 128, "255"),
        ("/a" * 2048, "4095"),
    ],
)
def test_path_refuses(text: str, says: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_path(text)
    assert says in f"{caught.value.message} {caught.value.hint}"


def test_path_takes_the_longest_path() -> None:
    longest = "/a" * 2046 + "/bc"
    assert len(longest) == 4095
    assert parse_path(longest) == longest


@given(st.text(alphabet="/.ab~ \0é", max_size=12))
def test_path_is_canonical_and_stable(text: str) -> None:
    try:
        path = parse_path(text)
    except ParseError:
        return
    assert parse_path(path) == path
    assert path == "/" or not {"", ".", ".."} & set(path[1:].split("/"))
    assert [p for p in path.split("/") if p] == [p for p in text.split("/") if p not in ("", ".")]


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("/a", PathPattern("/", ("a",))),
        ("/a/b/", PathPattern("/a", ("b",))),
        ("**/.env", PathPattern("/", (".env",), True)),
        ("/**/.env", PathPattern("/", (".env",), True)),
        ("**/.git/hooks", PathPattern("/", (".git", "hooks"), True)),
        ("/w/**/x/y", PathPattern("/w", ("x", "y"), True)),
    ],
)
def test_pattern_accepts(text: str, pattern: PathPattern) -> None:
    assert parse_pattern(text) == pattern
    assert parse_pattern(str(pattern)) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "**",
        "**/",
        "/a/**",
        "a/**/b",
        ".env",
        "*/.env",
        "/a/*.pem",
        "/a/*",
        "/a/b?",
        "/a/[ab]",
        "/a/**b/c",
        "/a/***/c",
        "/a/**/b/**/c",
        "**/../b",
        "/a/**/..",
        "**/a\0",
        "**.env",
    ],
)
def test_pattern_refuses(text: str) -> None:
    with pytest.raises(ParseError):
        parse_pattern(text)


def test_pattern_says_what_is_possible() -> None:
    with pytest.raises(ParseError) as caught:
        parse_pattern("/a/*.pem")
    assert "/anchor/**/NAME" in caught.value.hint
    with pytest.raises(ParseError) as caught:
        parse_pattern("/a/b/**")
    assert caught.value.hint.endswith("write /a/b")


def test_source_is_carried() -> None:
    source = Source("coding.toml", 7, "filesystem.deny")
    assert parse_pattern("/a", source).source is source
    assert parse_endpoint("a.example:1", source).source is source


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("example.com:443", Endpoint("example.com", port=443)),
        ("EXAMPLE.com.:443/tcp", Endpoint("example.com", port=443)),
        ("example.com:*", Endpoint("example.com")),
        ("ns.example.com:53/udp", Endpoint("ns.example.com", port=53, protocol="udp")),
        ("localhost:3000", Endpoint("localhost", port=3000)),
        ("*.example.com:443", Endpoint("example.com", True, port=443)),
        ("r3---sn-x.example:443", Endpoint("r3---sn-x.example", port=443)),
        ("3com.com:80", Endpoint("3com.com", port=80)),
        ("0x7f.example:80", Endpoint("0x7f.example", port=80)),
        ("bücher.example:443", Endpoint("xn--bcher-kva.example", port=443)),
        ("BÜCHER.example:443", Endpoint("xn--bcher-kva.example", port=443)),
        ("bu\u0308cher.example:443", Endpoint("xn--bcher-kva.example", port=443)),
        ("xn--bcher-kva.example:443", Endpoint("xn--bcher-kva.example", port=443)),
        ("XN--BCHER-KVA.example:443", Endpoint("xn--bcher-kva.example", port=443)),
        ("xn--strae-oqa.example:443", Endpoint("xn--strae-oqa.example", port=443)),
        ("例え.テスト:443", Endpoint("xn--r8jz45g.xn--zckzah", port=443)),
        ("пример.example:443", Endpoint("xn--e1afmkfd.example", port=443)),
        ("10.0.0.1:80", Endpoint(network="10.0.0.1/32", port=80)),
        ("0.0.0.0/0:*", Endpoint(network="0.0.0.0/0")),
        ("10.1.0.0/16:5432", Endpoint(network="10.1.0.0/16", port=5432)),
        ("10.1.0.0/16:5432/udp", Endpoint(network="10.1.0.0/16", port=5432, protocol="udp")),
        ("[2001:DB8:0::1]:443", Endpoint(network="2001:db8::1/128", port=443)),
        ("[::]:1", Endpoint(network="::/128", port=1)),
        ("[2001:db8::/32]:443", Endpoint(network="2001:db8::/32", port=443)),
        ("[2001:db8::]/32:443", Endpoint(network="2001:db8::/32", port=443)),
        ("[::/0]:443", Endpoint(network="::/0", port=443)),
        ("[::ffff:10.0.0.1]:80", Endpoint(network="10.0.0.1/32", port=80)),
        ("[::ffff:a00:1]:80", Endpoint(network="10.0.0.1/32", port=80)),
        ("[::ffff:10.0.0.0/104]:80", Endpoint(network="10.0.0.0/8", port=80)),
        ("a" * 63 + ".example:1", Endpoint("a" * 63 + ".example", port=1)),
    ],
)
def test_endpoint_accepts(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint
    assert parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        # shape
        ("", "empty"),
        ("example.com", "example.com:443"),
        (":443", "empty host"),
        (".:443", "empty host"),
        ("example.com:", "port"),
        ("https://example.com", "example.com:443"),
        ("https://example.com:8443/x", "write HOST:PORT: example.com:8443"),
        ("user@example.com:443", "user information"),
        ("user:pw@example.com:443", "user information"),
        ("example.com/path:443", "'/'"),
        ("example.com:443/path", "protocol"),
        ("example.com:443/", "protocol"),
        ("example.com:443/tpc", "did you mean tcp?"),
        ("example.com:443/TCP", "protocol"),
        ("a:b:443", "colon"),
        ("2001:db8::1:443", "brackets"),
        ("example.com:443#x", "port"),
        ("example.com?x:443", "'?'"),
        ("exam%70le.com:443", "'%'"),
        ("example.com\\@evil.com:443", "user information"),
        ("example.com\\.evil.com:443", "'\\\\'"),
        # bytes that cut or hide
        ("example.com\0.evil.com:443", "control"),
        ("example.com\r\nHost:443", "control"),
        ("example.com :443", "space"),
        (" example.com:443", "space"),
        ("exam\u00a0ple.com:443", "space"),
        ("exam\u200bple.com:443", ""),
        ("exam\u00adple.com:443", ""),
        ("exam\u200dple.com:443", "IDNA"),
        ("\u202eexample.com:443", ""),
        # ports
        ("example.com:0", "1 to 65535"),
        ("example.com:65536", "1 to 65535"),
        ("example.com:+443", "1 to 65535"),
        ("example.com:-1", "1 to 65535"),
        ("example.com:0443", "write 443"),
        ("example.com:4_43", "1 to 65535"),
        ("example.com:４４３", "1 to 65535"),
        ("example.com:0x1bb", "1 to 65535"),
        ("example.com:https", "1 to 65535"),
        ("example.com:**", "1 to 65535"),
        ("example.com:80-90", "1 to 65535"),
        ("example.com:" + "9" * 5000, "1 to 65535"),
        # names
        ("example..com:443", "empty label"),
        ("example.com..:443", "empty label"),
        (".example.com:443", "empty label"),
        ("-a.example:443", "hyphen"),
        ("a-.example:443", "hyphen"),
        ("my_service:80", "'_'"),
        ("a" * 64 + ".example:443", "63"),
        (".".join(["a" * 62] * 5) + ":443", "253"),
        # wildcards
        ("*", "no port"),
        ("**:443", "leading label"),
        ("[*]:443", "IPv6"),
        ("*.:443", "empty host"),
        ("*.*.example.com:443", "leading label"),
        ("a.*.example.com:443", "leading label"),
        ("*example.com:443", "leading label"),
        ("w*.example.com:443", "leading label"),
        ("**.example.com:443", "leading label"),
        ("*.10.0.0.1:443", "number"),
        # homographs and disguises
        ("ｅxample.com:443", "write example"),
        ("exampleE\u0301.com:443\0", "control"),
        ("example。com:443", "plain dot"),
        ("example．com:443", "plain dot"),
        ("example｡com:443", "plain dot"),
        ("pаypal.com:443", "mixes scripts"),
        ("ⅼocalhost:80", "write localhost"),
        ("①②⑦.0.0.1:80", ""),
        ("١٢٧.0.0.1:80", ""),
        ("straße.example:443", "xn--"),
        ("βόλος.example:443", "xn--"),
        ("xn--:443", "hyphen"),
        ("xn--a.example:443", "A-label"),
        ("xn--example-.example:443", "hyphen"),
        ("xn--zzzzzzzzzzzzzzzz99999999.example:443", "A-label"),
        ("xn--" + "9" * 59 + ".example:443", "A-label"),
        # IPv4 in other spellings
        ("2130706433:80", "write 127.0.0.1"),
        ("0x7f000001:80", "write 127.0.0.1"),
        ("017700000001:80", "write 127.0.0.1"),
        ("127.1:80", "write 127.0.0.1"),
        ("127.0.1:80", "write 127.0.0.1"),
        ("0177.0.0.1:80", "write 127.0.0.1"),
        ("0x7f.0.0.1:80", "write 127.0.0.1"),
        ("0X7F.1:80", "write 127.0.0.1"),
        ("127.0.0.01:80", "write 127.0.0.1"),
        ("010.8.8.8:80", "write 8.8.8.8"),
        ("127.0.0.1.:80", "write 127.0.0.1"),
        ("0:80", "write 0.0.0.0"),
        ("0x:80", "write 0.0.0.0"),
        ("256.0.0.1:80", "neither"),
        ("1.2.3.4.5:80", "neither"),
        ("4294967296:80", "neither"),
        ("1..2:80", "neither"),
        ("foo.1:80", "neither"),
        ("foo.0x1:80", "neither"),
        # IPv6
        ("[::1:80", "closing bracket"),
        ("[::1]80", "no port"),
        ("[::1]", "no port"),
        ("[]:80", "brackets"),
        ("[10.0.0.1]:80", "write 10.0.0.1:80"),
        ("[example.com]:80", "brackets"),
        ("[fe80::1%eth0]:80", "zone"),
        ("[1::2::3]:80", "not an IPv6"),
        ("[::ffff:010.0.0.1]:80", "not an IPv6"),
        ("[12345::]:80", "not an IPv6"),
        # networks
        ("10.1.2.3/16:80", "write 10.1.0.0/16"),
        ("[2001:db8::1/32]:80", "write 2001:db8::/32"),
        ("10.0.0.0/33:80", "prefix length"),
        ("10.0.0.0/:80", "prefix length"),
        ("10.0.0.0/08:80", "prefix length"),
        ("10.0.0.0/255.0.0.0:80", "prefix length"),
        ("10.0.0.0/-1:80", "prefix length"),
        ("10.0/16:80", "write 10.0.0.0"),
        ("[::/129]:80", "prefix length"),
        ("[::ffff:10.0.0.1/104]:80", "write 10.0.0.0/8"),
        ("10.0.0.0/8/8:80", "prefix length"),
        ("*.10.0.0.0/8:80", ""),
    ],
)
def test_endpoint_refuses(text: str, says: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_endpoint(text)
    assert says in f"{caught.value.message} {caught.value.hint}"


@given(st.text(alphabet="aA1.0x*:/[]-@ä例ß。\0\u200d%", max_size=16).map(lambda host: host + ":443"))
def test_endpoint_is_canonical_or_refused(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except ParseError:
        return
    # "*": every name, which is a wildcard of no name.
    assert endpoint.wildcard if not endpoint.name and not endpoint.network else not (endpoint.name and endpoint.network)
    assert endpoint.name == endpoint.name.lower()
    assert set(endpoint.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
    assert endpoint.network == "" or str(ipaddress.ip_network(endpoint.network)) == endpoint.network
    assert parse_endpoint(str(endpoint)) == endpoint


@given(st.integers(0, (1 << 32) - 1), st.sampled_from(["{}", "0x{:x}", "0{:o}"]))
def test_an_integer_is_never_a_host_and_the_hint_shows_the_address(number: int, form: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_endpoint(form.format(number) + ":80")
    assert f"write {ipaddress.IPv4Address(number)}," in caught.value.hint


@given(st.integers(0, (1 << 32) - 1))
def test_an_ipv4_address_has_one_spelling(number: int) -> None:
    address = str(ipaddress.IPv4Address(number))
    assert parse_endpoint(f"{address}:80") == parse_endpoint(f"[::ffff:{address}]:80")
    assert parse_endpoint(f"{address}:80").network == f"{address}/32"


@pytest.mark.parametrize("text", ["1", "443", "65535"])
def test_port_accepts(text: str) -> None:
    assert parse_port(text) == int(text)


@pytest.mark.parametrize(
    "text", ["", "0", "65536", "-1", "+1", " 1", "1 ", "1_0", "0x1", "01", "¹", "*", "http", "1\0"]
)
def test_port_refuses(text: str) -> None:
    with pytest.raises(ParseError):
        parse_port(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("65536", 65536),
        ("10B", 10),
        ("10KiB", 10240),
        ("512MiB", 512 << 20),
        ("4GiB", 4 << 30),
        ("1TiB", 1 << 40),
    ],
)
def test_size_accepts(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("4GB", "write 4GiB"),
        ("4KB", "write 4KiB"),
        ("4G", "write 4GiB"),
        ("512m", "write 512MiB"),
        ("4gib", "write 4GiB"),
        ("4 GiB", "write 4GiB"),
        ("1.5GiB", "1536MiB"),
        ("GiB", "whole number"),
        ("-1", "whole number"),
        ("+1", "whole number"),
        ("1e9", "unit"),
        ("0x10", "unit"),
        ("1_000", "unit"),
        ("٤GiB", "whole number"),
        ("9999999TiB", "too large"),
        ("9" * 5000, "whole number"),
        ("1\0", "control"),
    ],
)
def test_size_refuses(text: str, says: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_size(text)
    assert says in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("30s", 30_000),
        ("5m", 300_000),
        ("1h", 3_600_000),
        ("1h30m", 5_400_000),
        ("250ms", 250),
        ("1h2m3s4ms", 3_723_004),
        ("1m500ms", 60_500),
        ("90m", 5_400_000),
        ("0h1s", 1_000),
    ],
)
def test_duration_accepts(text: str, milliseconds: int) -> None:
    assert parse_duration(text) == milliseconds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("30", "write 30s"),
        ("1h30", "no unit"),
        ("0s", "zero"),
        ("1.5h", "fraction"),
        ("2d", "write 48h"),
        ("30sec", "write 30s"),
        ("5min", "write 5m"),
        ("1H", "write 1h"),
        ("5M", "write 5m"),
        ("1m1h", "order"),
        ("1s1s", "repeat"),
        ("-1s", "whole number"),
        ("1 s", "unit"),
        ("s", "whole number"),
        ("1h 30m", "whole number"),
        ("9999999999999999999h", "too long"),
        ("1s\n", "control"),
    ],
)
def test_duration_refuses(text: str, says: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_duration(text)
    assert says in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("memory", "4GiB", 4 << 30),
        ("memory", 4096, 4096),
        ("file-size", "1KiB", 1024),
        ("tmp", "64MiB", 64 << 20),
        ("pids", "512", 512),
        ("pids", 512, 512),
        ("files", "1024", 1024),
        ("cpu", "1.5", 1500),
        ("cpu", "2", 2000),
        ("cpu", 2, 2000),
        ("cpu", 0.25, 250),
        ("cpu", "0.001", 1),
        ("cpu-time", "10s", 10_000),
        ("time", "1h", 3_600_000),
    ],
)
def test_limit_accepts(name: str, value: str | int | float, limit: int) -> None:
    assert parse_limit(name, value) == limit


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("memroy", "1", "did you mean memory?"),
        ("Memory", "1", "did you mean memory?"),
        ("", "1", "one of"),
        ("memory", "4GB", "limit memory"),
        ("memory", 0, "zero"),
        ("memory", -1, "whole number"),
        ("memory", 1.5, "whole number"),
        ("memory", True, "whole number"),
        ("pids", "1KiB", "whole number"),
        ("pids", "0", "zero"),
        ("pids", "-5", "whole number"),
        ("pids", "9" * 20, "whole number"),
        ("time", 60, "write 60s"),
        ("time", "60", "write 60s"),
        ("cpu", "1.2345", "three decimals"),
        ("cpu", "1.", "three decimals"),
        ("cpu", ".5", "three decimals"),
        ("cpu", "0", "zero"),
        ("cpu", "0.000", "zero"),
        ("cpu", "nan", "CPUs"),
        ("cpu", float("inf"), "CPUs"),
        ("cpu", "1e3", "CPUs"),
    ],
)
def test_limit_refuses(name: str, value: str | int | float, says: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_limit(name, value)
    assert says in f"{caught.value.message} {caught.value.hint}"


def test_every_limit_name_is_known() -> None:
    values = {"cpu": "1", "time": "1s", "cpu-time": "1s", "connection-time": "1s"}
    assert all(parse_limit(name, values.get(name, "1")) > 0 for name in LIMIT_NAMES)


@pytest.mark.parametrize("text", ["PATH", "_", "a1_B"])
def test_env_name_accepts(text: str) -> None:
    assert parse_env_name(text) == text


@pytest.mark.parametrize("text", ["", "1A", "A-B", "A B", "A=1", "=", "A\0", "Ä", "A.B", "BASH_FUNC_x%%", "A\n"])
def test_env_name_refuses(text: str) -> None:
    with pytest.raises(ParseError):
        parse_env_name(text)


def test_env_name_error_does_not_show_the_value() -> None:
    with pytest.raises(ParseError) as caught:
        parse_env_name("TOKEN=hunter2")
    assert "hunter2" not in f"{caught.value} {caught.value.message} {caught.value.hint}"


def test_group() -> None:
    assert [parse_group(name) for name in SYSCALL_GROUPS] == list(SYSCALL_GROUPS)
    with pytest.raises(ParseError) as caught:
        parse_group("io_uring")
    assert caught.value.hint == "did you mean io-uring?"
    with pytest.raises(ParseError) as caught:
        parse_group("everything-at-all")
    assert caught.value.hint.startswith("one of: ptrace-any")
