"""What the session's packet filter does with TCP, with ``nft_tproxy`` and without: judged by the listener's side.

In network namespaces of the tests' own, where every address is local and nothing leads anywhere. No gateway runs: this is about
who is handed a connection, not about what becomes of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from textwrap import dedent
from typing import Any

import pytest

from tests.kernel.net_harness import Internet

pytestmark = [pytest.mark.kernel, pytest.mark.needs("ip", "unshare", userns=True)]

HEAD = """
import errno, json, socket, subprocess, sys
from remit.sandbox.compile import packets
from remit.sandbox.egress import inside, serve, wire
from remit.sandbox.kernel import nftables
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
def made(*filters):
    "The way's sockets, by role and family."
    way = inside.make((), filters, publish=False)
    sockets = [socket.socket(fileno=one) for one in way.descriptors]
    return {(role, one.family): one for (role, _), one in zip(way.roles, sockets)}
def attempt(action):
    try:
        return action()
    except TimeoutError:
        return "nothing"
    except OSError as error:
        return errno.errorcode[error.errno]
    except ValueError as error:
        return str(error)
"""


def alone(code: str) -> Any:
    """What the program printed, as JSON, in a network namespace of its own."""
    become = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    argv = ["unshare", *become, "--net", sys.executable, "-c", HEAD + dedent(code)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


WHO = """
ways = made({batch})
found = {{}}
for family, host, port in (
    (socket.AF_INET, "203.0.113.10", 443),
    (socket.AF_INET, wire.OWN_V4, 8080),
    (socket.AF_INET, "127.0.0.1", wire.TCP_PORT),
    (socket.AF_INET, "203.0.113.10", wire.TCP_PORT),
    (socket.AF_INET6, "2001:db8::10", 443),
    (socket.AF_INET6, wire.OWN_V6, 8080),
    (socket.AF_INET6, "::1", wire.TCP_PORT),
):
    with socket.create_connection((host, port), 10) as client:
        accepted, _ = ways[wire.TCP, family].accept()
        accepted.sendall(b"hello")
        assert client.recv(10) == b"hello" and client.getpeername()[:2] == (host, port)
        found[host, port] = attempt(lambda: serve.original_destination(accepted))
for host, family in (("203.0.113.53", socket.AF_INET), ("127.0.0.53", socket.AF_INET), ("2001:db8::53", socket.AF_INET6)):
    with socket.create_connection((host, 53), 10):
        found[host, 53] = ways[wire.DNS_TCP, family].accept()[0].family == family
server = socket.create_server(("0.0.0.0", 3000))
with socket.create_connection(("203.0.113.10", 3000), 10):
    found["203.0.113.10", 3000] = serve.original_destination(ways[wire.TCP, socket.AF_INET].accept()[0])
found["127.0.0.1", 3000] = attempt(lambda: socket.create_connection(("127.0.0.1", 3000), 0.5).getpeername())
print(json.dumps({{f"{{host}} {{port}}": what for (host, port), what in found.items()}}))
"""


@pytest.mark.parametrize("loopback", [True, False])
@pytest.mark.parametrize("program", ["program", "without_tproxy"])
def test_who_is_handed_a_connection_and_where_it_was_going(program: str, loopback: bool) -> None:
    own = "a connection to the gateway's own socket"
    assert alone(WHO.format(batch=f"packets.{program}((), loopback={loopback})")) == {
        "203.0.113.10 443": ["203.0.113.10", 443],
        "198.18.0.1 8080": ["198.18.0.1", 8080],
        "127.0.0.1 881": own,
        "203.0.113.10 881": ["203.0.113.10", 881],
        "2001:db8::10 443": ["2001:db8::10", 443],
        "fd72:656d:6974:f::1 8080": ["fd72:656d:6974:f::1", 8080],
        "::1 881": own,
        "203.0.113.53 53": True,
        "127.0.0.53 53": True,
        "2001:db8::53 53": True,
        # Whoever serves at every address serves at none but the own loopback's.
        "203.0.113.10 3000": ["203.0.113.10", 3000],
        "127.0.0.1 3000": ["127.0.0.1", 3000] if loopback else "nothing",
    }


POSING = """
{before}
ways = made(packets.program((), loopback=True))
# A server whose queue is full answers nobody: whoever connects to it goes on trying.
place = ("127.0.0.1", 40000)
full = socket.socket()
full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
full.bind(place)
full.listen(0)
waiting = []
while len(waiting) < 8:
    one = socket.socket()
    if len(waiting) == 7:
        one.bind(("203.0.113.10", 8080))
    one.setblocking(False)
    one.connect_ex(place)
    waiting.append(one)
# The last one has the destination's address. Its peer has to be what it connects to.
victim = socket.socket()
victim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
victim.bind(place)
victim.settimeout(10)
found = [attempt(lambda: victim.connect(("203.0.113.10", 8080)))]
if found == [None]:
    waiting[-1].sendall(b"posing")
    found.append(victim.recv(10).decode())
ways[wire.TCP, socket.AF_INET].settimeout(0.1)
found.append(attempt(lambda: serve.original_destination(ways[wire.TCP, socket.AF_INET].accept()[0])))
print(json.dumps(found))
"""


def test_a_program_that_waits_at_the_destinations_address_is_not_the_destination() -> None:
    """Both connect to each other at once (RFC 9293, 3.5): what the filter hands to nobody is reset."""
    assert alone(POSING.format(before="nftables.reset = lambda: nftables.verdict(nftables.ACCEPT)")) == [
        None,
        "posing",
        "nothing",
    ]
    assert alone(POSING.format(before="")) == ["ECONNREFUSED", "nothing"]


def test_nobody_listens_any_more() -> None:
    code = """
    ways = made(packets.program((), loopback=True))
    for one in ways.values():
        one.close()
    places = ("203.0.113.10", 443), ("2001:db8::10", 443), ("203.0.113.10", 53)
    print(json.dumps([attempt(lambda: socket.create_connection(place, 10)) for place in places]))
    """
    assert alone(code) == ["ECONNREFUSED"] * 3


SESSION = """
import os, sys
from remit import Session
from remit.sandbox.compile import packets
def without(batch, expression):
    "As on a kernel that does not know this expression."
    whole = getattr(packets, batch)
    setattr(packets, batch, lambda *a, **k: whole(*a, **k).replace(expression + b"\\0", expression[:-1] + b"?\\0"))
{before}
with Session("offline", os.environ["WORK"], connect=["granted.example.com:8080", "203.0.113.20:8080"]) as running:
    for place in ("http://granted.example.com:8080/", "http://203.0.113.20:8080/", "http://203.0.113.30:8080/"):
        done = running.run(["curl", "-sS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{{http_code}}", place])
        print(done.stdout.decode())
"""
BROKEN = {
    "none": ("", True),
    "no nft_tproxy": ("without('program', b'tproxy')", True),
    "with it the other is not looked at": ("without('without_tproxy', b'immediate')", True),
    "neither": ("without('program', b'tproxy'); without('without_tproxy', b'redir')", False),
}


@pytest.mark.needs("nsenter", "openssl", "curl", landlock=2)
@pytest.mark.parametrize(("before", "works"), BROKEN.values(), ids=BROKEN)
def test_a_session_takes_the_filter_that_its_kernel_has(net: Internet, before: str, works: bool) -> None:
    done = subprocess.run(
        [*net.world.prefix, sys.executable, "-c", SESSION.format(before=before)],
        env=net.world.env({"WORK": str(net.world.workspace)}),
        capture_output=True,
        text=True,
        check=False,
    )
    if works:
        assert done.stdout.splitlines() == ["200", "200", "000"], done.stderr
    else:
        assert "the network's rules could not be set" in done.stderr
