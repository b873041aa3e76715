"""Ways by which other sandboxes' networks were left, each in two arms, against the kernel and a whole session.

``docs/network.md`` has the list of all ways, and which test tries each. The servers and the resolver of the small internet
say what arrived; the same action without Remit, or with the grant, shows that it would have.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from textwrap import dedent

import pytest

from tests.kernel.net_harness import Internet
from tests.kernel.run_harness import PRELUDE, PYTHON, TIMEOUT, first_line, libc_python

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.needs("ip", "unshare", "nsenter", "openssl", "curl", userns=True, landlock=2),
]

GRANTED, OTHER = "granted.example.com", "other.example.com"
ADDRESS, OTHER_ADDRESS = "203.0.113.10", "203.0.113.20"
TO_GRANTED = ("--connect", f"{GRANTED}:8080", "--connect", f"{GRANTED}:80", "--connect", f"{GRANTED}:443")

PROXY = r"""
import json
def proxy(request, end=b"\r\n"):
    "What the proxy says to these bytes, until ``end`` (or its own)."
    answer = b""
    with socket.create_connection(("127.0.0.1", 880), 20) as client:
        client.sendall(request)
        while end not in answer and (piece := client.recv(65536)):
            answer += piece
    return answer
def status(answer):
    return int(answer.split()[1]) if answer else 0
def connect(target, host=None):
    "The status of a CONNECT."
    return status(proxy(f"CONNECT {target} HTTP/1.1\r\nHost: {host or target}\r\n\r\n".encode("latin-1")))
def fetch(target, host):
    "The status of a request for a whole URL."
    return status(proxy(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1")))
def socks(host, port, kind=3):
    "The reply's code of a SOCKS request; -1 where there is none."
    with socket.create_connection(("127.0.0.1", 880), 20) as client:
        client.sendall(b"\x05\x01\x00")
        client.recv(2)
        client.sendall(bytes((5, 1, 0, kind)) + (bytes((len(host),)) if kind == 3 else b"") + host + port.to_bytes(2, "big"))
        answer = client.recv(10)
    return answer[1] if len(answer) > 1 else -1
"""

LIKE_THE_GRANTED_ONE = [
    f"{OTHER}\0.{GRANTED}",
    f"{OTHER}\0{GRANTED}",
    f"{GRANTED}\0",
    f"{GRANTED}.attacker.example.org",
    f"{GRANTED}.{OTHER}",
    f"x{GRANTED}",
    f"x.{GRANTED}",
    "example.com",
    f"{OTHER}@{GRANTED}",
    f"{GRANTED}@{OTHER}",
    f"{OTHER}#{GRANTED}",
    f"{OTHER}/{GRANTED}",
    f"{OTHER}?{GRANTED}",
    f"{OTHER}\\{GRANTED}",
    f"{OTHER} {GRANTED}",
    f"{OTHER}\t.{GRANTED}",
    f"{OTHER}%00.{GRANTED}",
    f"{OTHER}:8080:{GRANTED}",
    "gr\u0430nted.ex\u0430mple.com".encode().decode("latin-1"),  # Cyrillic, as the bytes that a program sends
    "xn--grnted-3nf.example.com",
    "granted\u3002example\u3002com".encode().decode("latin-1"),  # ideographic full stops
    f"{GRANTED}..",
    f".{GRANTED}",
    "granted..example.com",
    "*.example.com",
    "*",
    "",
]
ADDRESSES = [
    ADDRESS,  # of the granted name, and not granted itself
    OTHER_ADDRESS,
    "0313.0.0161.024",
    "0xcb.0x00.0x71.0x14",
    "0xcb007114",
    "3405803796",
    "203.0.28948",
    "[::ffff:203.0.113.20]",
    "[::ffff:cb00:7114]",
    "[::203.0.113.20]",
    "[64:ff9b::203.0.113.20]",
    "[2002:cb00:7114::1]",
    "[2001:db8::20]",
    "127.0.0.1",
    "127.1",
    "0",
    "0.0.0.0",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[fe80::1%lo]",
    "169.254.169.254",
    "localhost",
    "localhost.",
    "x.localhost",
]


def asked(net: Internet, code: str, *options: str) -> dict[str, int]:
    """What a program inside found out: its last line is a JSON object."""
    result = net.world.python(PROXY + dedent(code), *options)
    assert result.status == 0, result.stderr
    answer: dict[str, int] = json.loads(result.lines[-1])
    return answer


def test_names_that_only_look_like_the_granted_one(net: Internet) -> None:
    """CVE-2026-24052, the NUL byte in SOCKS names, and their kin."""
    code = f"""
    names = {LIKE_THE_GRANTED_ONE!r}
    answers = {{}}
    for name in names:
        answers["socks " + name] = socks(name.encode("latin-1"), 8080)
        answers["connect " + name] = connect(name + ":8080")
        answers["both " + name] = connect(name + ":8080", {f"{GRANTED}:8080"!r})
        answers["url " + name] = fetch("http://" + name + ":8080/", {f"{GRANTED}:8080"!r})
    print(json.dumps(answers))
    """
    answers = asked(net, code, *TO_GRANTED)
    assert {name: answer for name, answer in answers.items() if answer not in (-1, 0, 1, 2, 400, 403)} == {}
    # A slash, a question mark or a number sign ends a URL's host, which is then another one's.
    assert all(answers[f"socks {name}"] in (1, 2) for name in LIKE_THE_GRANTED_ONE)
    assert net.seen() == []

    good = f"""
    spellings = ({GRANTED!r}, {GRANTED.upper()!r}, {GRANTED + "."!r}, "Granted.Example.Com.")
    print(json.dumps({{
        **{{"socks " + name: socks(name.encode(), 8080) for name in spellings}},
        **{{"connect " + name: connect(name + ":8080") - 200 for name in spellings}},
        **{{"url " + name: fetch("http://" + name + ":8080/", name + ":8080") - 200 for name in spellings}},
    }}))
    """
    assert set(asked(net, good, *TO_GRANTED).values()) == {0}
    assert {name for kind, name in net.seen() if kind == "dns"} == {GRANTED}
    assert {what for kind, what in net.seen() if kind == "tcp"} <= {f"{ADDRESS} 8080", "2001:db8::10 8080"}


def test_addresses_in_every_spelling(net: Internet) -> None:
    code = f"""
    answers = {{}}
    for host in {ADDRESSES!r}:
        answers["connect " + host] = connect(host + ":8080")
        answers["url " + host] = fetch("http://" + host + ":8080/", host + ":8080")
        answers["socks " + host] = socks(host.strip("[]").encode(), 8080)
    for packed in ("203.0.113.10", "203.0.113.20", "127.0.0.1", "0.0.0.0"):
        answers["packed " + packed] = socks(socket.inet_aton(packed), 8080, kind=1)
    for packed in ("2001:db8::20", "::ffff:203.0.113.20", "::1", "::", "::ffff:127.0.0.1"):
        answers["packed " + packed] = socks(socket.inet_pton(socket.AF_INET6, packed), 8080, kind=4)
    print(json.dumps(answers))
    """
    answers = asked(net, code, *TO_GRANTED)
    assert {name: answer for name, answer in answers.items() if answer not in (1, 2, 400, 403)} == {}
    assert net.seen() == []
    granted = asked(net, code, *TO_GRANTED, "--connect", f"{OTHER_ADDRESS}:8080")
    worked = {name for name, answer in granted.items() if answer in (0, 200)}
    # An IPv4 address in IPv6's form is that address; what only some programs read as one is none.
    mapped = {"203.0.113.20", "[::ffff:203.0.113.20]", "[::ffff:cb00:7114]"}
    expected = {f"{how} {host}" for how in ("connect", "url", "socks") for host in mapped}
    assert worked == expected | {"packed 203.0.113.20", "packed ::ffff:203.0.113.20"}
    assert net.reached() == {f"{OTHER_ADDRESS} 8080"}


def test_an_empty_list_with_a_gateway_behind_it(net: Internet) -> None:
    """CVE-2025-66479: nothing granted is nothing allowed, where a published port makes a gateway all the same."""
    code = f"""
    def direct():
        with socket.create_connection(({ADDRESS!r}, 8080), 20) as client:
            client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            if not client.recv(100):
                raise OSError(errno.ECONNRESET, "")
    print(json.dumps({{
        "connect": connect({f"{GRANTED}:8080"!r}),
        "url": fetch({f"http://{GRANTED}:8080/"!r}, {f"{GRANTED}:8080"!r}),
        "socks": socks({GRANTED!r}.encode(), 8080),
        "direct": attempt(direct),
        "name": attempt(lambda: socket.getaddrinfo({GRANTED!r}, 8080)),
    }}))
    """
    publish = ("--publish", "127.0.0.1:18081:3000")
    denied = {"connect": 403, "url": 403, "socks": 2, "direct": "ECONNRESET", "name": "EAI"}
    assert asked(net, code, *publish) == denied
    assert net.seen() == []
    allowed = asked(net, code, *publish, *TO_GRANTED, "--connect", f"{ADDRESS}:8080")
    assert allowed == {"connect": 200, "url": 200, "socks": 0, "direct": "ok", "name": "ok"}


def test_ports_that_were_not_granted(net: Internet) -> None:
    code = f"""
    ports = (1, 22, 25, 53, 853, 880, 881, 5432, 6379, 8443, 65535)
    print(json.dumps({{
        **{{f"connect {{port}}": connect(f"{GRANTED}:{{port}}") for port in ports}},
        **{{f"url {{port}}": fetch(f"http://{GRANTED}:{{port}}/", f"{GRANTED}:{{port}}") for port in ports}},
        **{{f"socks {{port}}": socks({GRANTED!r}.encode(), port) + 401 for port in ports}},
        "no port": connect({GRANTED!r}) + 3,
        "port 0": connect("{GRANTED}:0") + 3,
        "too great": connect("{GRANTED}:73616") + 3,
        "spaces": connect("{GRANTED}: 8080") + 3,
        "sign": connect("{GRANTED}:+8080") + 3,
    }}))
    """
    assert set(asked(net, code, *TO_GRANTED).values()) == {403}
    assert net.seen() == []
    assert asked(net, f'print(json.dumps(dict(it=connect("{GRANTED}:22"))))', "--connect", f"{GRANTED}:*") == {
        "it": 200
    }


def test_host_and_server_name_are_the_destinations(net: Internet) -> None:
    """CONNECT, SNI and Host, each of another name than the others."""
    (net.world.workspace / "ca.pem").write_bytes(net.authority.read_bytes())
    tls = "openssl s_client -CAfile ca.pem -proxy 127.0.0.1:880"

    def session(connect: str, name: str) -> str:
        return f"echo | {tls} -connect {connect}:443 {name} 2>/dev/null | grep -c 'BEGIN CERT'"

    curl = "curl -sS -m 20 -o /dev/null -w '%{http_code}\\n'"
    script = "\n".join(
        (
            session(GRANTED, f"-servername {GRANTED}"),
            session(GRANTED, f"-servername {OTHER}"),
            session(GRANTED, "-noservername"),
            session(OTHER, f"-servername {GRANTED}"),
            f"{curl} -H 'Host: {GRANTED}' http://{GRANTED}/",
            f"{curl} -H 'Host: {OTHER}' http://{GRANTED}/",
            f"{curl} --noproxy '*' -H 'Host: {OTHER}' http://{GRANTED}/",
            f"{curl} --noproxy '*' -H 'Host: {OTHER}' http://{GRANTED}:8080/",
            f"{curl} --proxytunnel -H 'Host: {OTHER}' http://{GRANTED}:8080/",
            f"{curl} --proxytunnel --proxy-header 'Host: {OTHER}' http://{GRANTED}:8080/ 2>/dev/null",
            f"{curl} --noproxy '*' --http2-prior-knowledge http://{GRANTED}:8080/ 2>/dev/null",
        )
    )
    result = net.world.shell(script, *TO_GRANTED)
    assert result.lines == ["1", "0", "0", "0", "200", "403", "403", "403", "403", "000", "000"], result.stderr
    said = [what for kind, what in net.seen() if kind == "said" and "GET" in what]
    assert len(said) == 1
    assert {name for kind, name in net.seen() if kind == "dns"} == {GRANTED}
    assert net.reached() <= {f"{one} {port}" for one in (ADDRESS, "2001:db8::10") for port in (80, 443, 8080)}


def test_a_redirect_is_another_destination(net: Internet) -> None:
    curl = "curl -sS -m 20 -L -o /dev/null -w '%{http_code} %{num_redirects}\\n'"
    url = f"http://{GRANTED}:8080/to/{OTHER}:8080/"
    script = f"{curl} {url}; {curl} --noproxy '*' {url}; {curl} {url.replace(OTHER, OTHER_ADDRESS)}"
    assert net.world.shell(script, *TO_GRANTED).lines == ["403 1", "302 1", "403 1"]
    assert not {what for what in net.reached() if what.startswith((OTHER_ADDRESS, "2001:db8::20"))}
    assert {name for kind, name in net.seen() if kind == "dns"} == {GRANTED}
    assert net.world.shell(script, *TO_GRANTED, "--connect", f"{OTHER}:8080").lines == ["200 1", "200 1", "403 1"]


SOCKETS = """
def talk(sock, address):
    sock.settimeout(20)
    sock.connect(address)
    sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    if not sock.recv(100):
        raise OSError(errno.ECONNRESET, "hung up")
def tcp(address, *options, family=socket.AF_INET, protocol=0):
    with socket.socket(family, socket.SOCK_STREAM, protocol) as sock:
        for option in options:
            sock.setsockopt(*option)
        talk(sock, address)
def udp(address, *options, family=socket.AF_INET, protocol=0):
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        for option in options:
            sock.setsockopt(*option)
        sock.settimeout(20)
        sock.sendto(b"ping", address)
        sock.recv(100)
LSRR = bytes((131, 7, 4)) + socket.inet_aton("203.0.113.20") + bytes(1)
"""
HOST = "('203.0.113.20', 8080)"
HOST_UDP = "('203.0.113.20', 9999)"
ODD_SOCKETS = {
    "fast open, as an option": f"tcp({HOST}, (socket.IPPROTO_TCP, 30, 1))",
    "source route": f"tcp({HOST}, (socket.IPPROTO_IP, 4, LSRR))",
    "bound to lo": f"tcp({HOST}, (socket.SOL_SOCKET, 25, b'lo'))",
    "IPv4-mapped": "tcp(('::ffff:203.0.113.20', 8080), family=socket.AF_INET6)",
    "MPTCP": f"tcp({HOST}, protocol=262)",
    "MPTCP over IPv6": "tcp(('2001:db8::20', 8080), family=socket.AF_INET6, protocol=262)",
    "UDP": f"udp({HOST_UDP})",
    "UDP, IPv4-mapped": "udp(('::ffff:203.0.113.20', 9999), family=socket.AF_INET6)",
    "UDP, source route": f"udp({HOST_UDP}, (socket.IPPROTO_IP, 4, LSRR))",
    "UDP, bound to lo": f"udp({HOST_UDP}, (socket.SOL_SOCKET, 25, b'lo'))",
    "broadcast": "udp(('255.255.255.255', 9999), (socket.SOL_SOCKET, socket.SO_BROADCAST, 1))",
    "multicast": "udp(('224.0.0.251', 5353))",
    "UDP-Lite": f"udp({HOST_UDP}, protocol=136)",
    "DNS over TLS": "tcp(('203.0.113.53', 853))",
    "gateway's socket": "tcp(('127.0.0.1', 881))",
    "gateway's socket over IPv6": "tcp(('::1', 881), family=socket.AF_INET6)",
    "own address": "tcp(('198.18.0.1', 880))",
    "address without a name": "tcp(('198.18.200.9', 8080))",
    "other network namespace": "call(libc.unshare(0x40000000))",
    "transparent": f"tcp({HOST}, (socket.IPPROTO_IP, 19, 1))",
    "mark": f"tcp({HOST}, (socket.SOL_SOCKET, 36, 1))",
    "DCCP": "socket.socket(socket.AF_INET, 6, 33)",
    "SMC": "socket.socket(43, socket.SOCK_STREAM, 0)",
    "TIPC": "socket.socket(30, socket.SOCK_STREAM, 0)",
    "CAN": "socket.socket(29, socket.SOCK_RAW, 1)",
    "Bluetooth": "socket.socket(31, socket.SOCK_RAW, 1)",
    "XDP": "socket.socket(44, socket.SOCK_RAW, 0)",
    "tunnel device": "write('/dev/net/tun', flags=0)",
}
WORK_OUTSIDE = ("fast open, as an option", "bound to lo", "IPv4-mapped", "UDP", "UDP, IPv4-mapped", "UDP, bound to lo")
FAMILIES = ("DCCP", "SMC", "TIPC", "CAN", "Bluetooth", "XDP")


def test_odd_sockets_reach_nothing(net: Internet) -> None:
    """Options, protocols and families that other sandboxes' filters did not know."""
    works = {name: ODD_SOCKETS[name] for name in WORK_OUTSIDE}
    assert set(net.world.outsides(works, before=SOCKETS).values()) == {"ok"}
    granted = ("--connect", f"{OTHER_ADDRESS}:8080", "--connect", f"{OTHER_ADDRESS}:9999/udp")
    assert set(net.world.probes(works, *granted, before=SOCKETS).values()) == {"ok"}
    net.forget()
    results = net.world.probes(ODD_SOCKETS, *TO_GRANTED, before=SOCKETS)
    refused = ("EAFNOSUPPORT", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT")
    assert all(results.pop(family) in refused for family in FAMILIES)
    for name, error in {"MPTCP": refused[2], "MPTCP over IPv6": refused[2], "tunnel device": "ENOENT"}.items():
        assert results.pop(name) == error, name
    reset = {name for name, error in results.items() if error == "ECONNRESET"}
    assert reset == {
        "fast open, as an option",
        "bound to lo",
        "IPv4-mapped",
        "DNS over TLS",
        "gateway's socket",
        "gateway's socket over IPv6",
        "own address",
        "address without a name",
    }
    assert {error for name, error in results.items() if name not in reset} == {"EPERM"}
    assert net.seen() == []


# --- descriptors -------------------------------------------------------------------------------------------------------

AGAIN = """
import subprocess
def again(descriptor):
    "Turn a connected socket to another server."
    call(libc.connect(descriptor, bytes(16), 16))
    sock = socket.socket(fileno=descriptor)
    try:
        sock.settimeout(20)
        sock.connect(("203.0.113.20", 8080 if sock.type == socket.SOCK_STREAM else 9999))
        sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        sock.recv(1000)
    finally:
        sock.detach()
"""
CALLER = """
import json, subprocess
standard = ("stdin", "stdout", "stderr")
results = {}
for number, name in enumerate((*standard, "fourth")):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.connect(("203.0.113.10", 8080 if kind == socket.SOCK_STREAM else 9999))
            streams = dict(zip(standard, [subprocess.DEVNULL, subprocess.PIPE, subprocess.PIPE]))
            streams |= {name: sock} if name in standard else {"pass_fds": [os.dup2(sock.fileno(), 3)]}
            done = subprocess.run([*json.loads(sys.argv[1]), str(number)], **streams)
            results[f"{name} {kind}"] = [done.returncode, (done.stderr or b"").decode()]
print(json.dumps(results))
"""


def test_a_socket_of_the_callers_is_not_a_way_out(net: Internet) -> None:
    """A socket acts in the network it was made in: a connected one that is inherited can be disconnected, and connected
    to anything. As a standard descriptor it is refused; another is not there."""
    code = PRELUDE + AGAIN + "raise SystemExit({'ok': 0, 'EBADF': 9}.get(attempt(lambda: again(int(sys.argv[1]))), 1))"
    inside = net.world.run_argv([PYTHON, "-I", "-S", "-c", code], TO_GRANTED)

    def caller(argv: list[str]) -> dict[str, tuple[int, str]]:
        program = [*net.world.prefix, PYTHON, "-I", "-S", "-c", PRELUDE + CALLER, json.dumps(argv)]
        done = subprocess.run(
            program, capture_output=True, text=True, check=True, env=net.world.env(), cwd=net.world.workspace
        )
        results: dict[str, tuple[int, str]] = json.loads(done.stdout.splitlines()[-1])
        return results

    kinds = [f"{name} {int(kind)}" for name in ("stdin", "stdout", "stderr", "fourth") for kind in (1, 2)]
    outside = caller([PYTHON, "-I", "-S", "-c", code])
    assert {name: status for name, (status, _) in outside.items()} == dict.fromkeys(kinds, 0)
    assert f"{OTHER_ADDRESS} 8080" in net.reached()
    net.forget()
    results = caller(inside[len(net.world.prefix) :])
    assert {name: status for name, (status, _) in results.items()} == {
        name: 9 if name.startswith("fourth") else 125 for name in kinds
    }
    assert "standard input is a socket of the host's network" in results["stdin 1"][1]
    assert f"{OTHER_ADDRESS} 8080" not in net.reached()


def test_pairs_of_unix_sockets_are_ordinary_streams(net: Internet) -> None:
    """What Node.js and ssh give their children."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = net.world.run_argv(["cat"])
        with subprocess.Popen(
            argv, stdin=theirs.fileno(), stdout=theirs.fileno(), env=net.world.env(), cwd=net.world.workspace
        ):
            theirs.close()
            ours.sendall(b"hello")
            ours.shutdown(socket.SHUT_WR)
            assert ours.recv(100) == b"hello"


CALLS = """
import json, os, socket, sys
from remit import Session
with Session(profile="offline", workspace=os.environ["WORK"]) as running:
    with socket.create_connection(("203.0.113.10", 8080)) as sock:
        for name in ("stdin", "stdout", "stderr"):
            try:
                running.run(["true"], **{name: sock})
            except Exception as error:
                print(type(error).__name__, error)
        print(running.run(["true"]).returncode)
"""


def test_nor_is_it_for_a_call(net: Internet) -> None:
    done = subprocess.run(
        [*net.world.prefix, sys.executable, "-c", CALLS],
        env=net.world.env({"WORK": str(net.world.workspace)}),
        capture_output=True,
        text=True,
        check=False,
    )
    names = ("standard input", "standard output", "standard error")
    expected = [f"LaunchError {name} is a socket of the host's network" for name in names]
    lines = done.stdout.splitlines()
    assert [line.partition(",")[0] for line in lines] == [*expected, "0"], done


def test_another_sessions_socket_in_a_shared_workspace(net: Internet) -> None:
    """A session with a network is no way out for one without: not by a socket of its own in the workspace that both have,
    over which descriptors could be passed."""
    server = """
    server = socket.socket(socket.AF_UNIX)
    server.bind("shared.sock")
    server.listen()
    print(attempt(lambda: socket.socket(socket.AF_UNIX).connect("shared.sock")), flush=True)
    sys.stdin.read()
    """
    path = net.world.workspace / "shared.sock"
    try:
        with net.world.start(*libc_python(server), options=TO_GRANTED) as process:
            assert first_line(process) == "ok"
            connect = "socket.socket(socket.AF_UNIX).connect('shared.sock')"
            assert net.world.probe(connect) == "EACCES"
            assert net.world.probe(connect, "--unix", str(path)) == "ok"
            process.communicate(timeout=TIMEOUT)
    finally:
        path.unlink(missing_ok=True)
