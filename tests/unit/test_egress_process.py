"""The gateway as the process that it is: isolated, with an empty environment, told everything over its control socket."""

from __future__ import annotations

import array
import marshal
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remit.cli.boot import site_directories
from remit.sandbox.authority.web import Credential, HttpRule
from remit.sandbox.egress import ca, wire
from remit.sandbox.egress.secrets import SecretError
from remit.sandbox.egress.web import certificate_variables, prepare

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cret-f0r-the-tests-only"


class Process:
    """A gateway in a process of its own, with an echo server outside."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(20)
        sites = site_directories(sys.executable, sys.base_prefix)
        argv = [sys.executable, "-I", "-S", "-X", "utf8", "-c", wire.GATEWAY, str(ROOT / "src"), str(theirs.fileno())]
        self.process = subprocess.Popen(
            [*argv, *sites], env={}, pass_fds=[theirs.fileno()], cwd="/", stdin=subprocess.DEVNULL
        )
        theirs.close()
        self.say((wire.CONFIG, "s1", options))

    def say(self, message: tuple[Any, ...], *sockets: socket.socket) -> None:
        numbers = array.array("i", [sock.fileno() for sock in sockets])
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers.tobytes())] if sockets else []
        self.control.sendmsg([marshal.dumps(message)], control)
        for sock in sockets:
            sock.close()

    def hear(self) -> tuple[Any, ...]:
        data = self.control.recv(wire.MESSAGE_SIZE)
        message: tuple[Any, ...] = marshal.loads(data) if data else ()
        return message

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.control.close()
        try:
            assert self.process.wait(20) in (0, -signal.SIGKILL)
        finally:
            self.process.kill()
            self.process.wait()


def connect(port: int, target: str) -> tuple[bytes, socket.socket]:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.settimeout(20)
    sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = sock.recv(1000)
        if not more:
            break
        answer += more
    return answer, sock


def proxy_socket() -> tuple[socket.socket, int]:
    sock = socket.create_server(("127.0.0.1", 0))
    return sock, sock.getsockname()[1]


def test_it_serves_says_what_happened_and_ends_with_its_launcher() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    target = f"127.0.0.1:{server.getsockname()[1]}"
    with server, Process({"rules": ((f"{target}/tcp", "p.toml:3 network.connect"),)}) as gateway:
        assert gateway.hear() == (wire.READY,)
        listener, port = proxy_socket()
        gateway.say((wire.LISTEN, "", (), ((wire.PROXY, 0),)), listener)
        answer, sock = connect(port, target)
        assert answer.startswith(b"HTTP/1.1 200")
        peer, _ = server.accept()
        peer.sendall(b"hello")
        assert sock.recv(100) == b"hello"
        refusal, other = connect(port, "127.0.0.1:1")
        other.close()
        assert refusal.startswith(b"HTTP/1.1 403")
        allowed, denied = gateway.hear(), gateway.hear()
        assert allowed[:8] == (
            "event", "", "connect", f"{target}/tcp", "allowed", "127.0.0.1", "p.toml:3 network.connect", "connect",
        )  # fmt: skip
        assert denied[4:7] == ("denied", "the host is granted, but not on this port (1)", "127.0.0.1:1")

        # No signal of the terminal ends it.
        os.kill(gateway.process.pid, signal.SIGINT)
        peer.sendall(b"still")
        assert sock.recv(100) == b"still"

        gateway.control.shutdown(socket.SHUT_WR)  # the launcher ends it, and listens to its last words
        ended = gateway.hear()
        assert ended[2:5] == ("connect", f"{target}/tcp", "ended")
        assert ended[9] == 10
        assert gateway.hear() == ()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        peer.close()
        sock.close()
        assert gateway.process.wait(20) == 0


def test_a_killed_gateway_leaves_no_way_out() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    target = f"127.0.0.1:{server.getsockname()[1]}"
    with server, Process({"rules": ((f"{target}/tcp", "p"),)}) as gateway:
        assert gateway.hear() == (wire.READY,)
        listener, port = proxy_socket()
        gateway.say((wire.LISTEN, "", (), ((wire.PROXY, 0),)), listener)
        answer, sock = connect(port, target)
        assert answer.startswith(b"HTTP/1.1 200")
        gateway.process.kill()
        gateway.process.wait()
        while gateway.hear():
            pass
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:
            pass
        sock.close()
        with pytest.raises(ConnectionRefusedError):
            connect(port, target)


@pytest.mark.parametrize(
    "options",
    [
        {"rules": (("not an endpoint", "p"),)},
        {"rules": (("evil.example", "p"),)},
        {"http": (("a b", (), (), "p"),)},
        {"credentials": (("*.example.com", "header", "x", "p", SECRET, "p"),)},
        {"authority": ("no certificate", "no key")},
    ],
)
def test_a_config_that_is_not_understood_is_a_failure(options: dict[str, Any]) -> None:
    with Process(options) as gateway:
        failed = gateway.hear()
        assert failed[0] == wire.FAILED
        assert SECRET not in repr(failed)
        assert gateway.hear() == ()


def test_what_is_prepared_goes_two_ways() -> None:
    http = [HttpRule("api.example.com", paths=("/v1",)), HttpRule("wild.example", wildcard=True)]
    credentials = [
        Credential("api.example.com", "authorization", "", "env", "TOKEN", "TOKEN", "Bearer {}"),
        Credential("x.wild.example", "", "key", "env", "TOKEN", "TOKEN"),
        Credential("other.example", "x-api-key", "", "env", "OTHER", "OTHER"),
    ]
    made = prepare("s1", http, credentials, {"TOKEN": SECRET, "OTHER": "other-s3cret"}, "/home/u")
    assert set(made.environment) == {"TOKEN", "OTHER"}
    assert len(set(made.environment.values())) == 2
    for inside in (repr(made), repr(made.environment), repr(made.bundle)):
        assert SECRET not in inside
        assert "PRIVATE KEY" not in inside
    assert made.bundle.endswith(made.options["authority"][0])
    assert made.options["http"][1] == ("*.wild.example", (), (), "")
    assert made.options["credentials"][0][:5] == (
        "api.example.com", "header", "authorization: Bearer {}", made.environment["TOKEN"], SECRET,
    )  # fmt: skip
    assert set(certificate_variables("/x").values()) == {"/x"}
    assert "SSL_CERT_FILE" in ca.VARIABLES
    with Process(made.options) as gateway:
        assert gateway.hear() == (wire.READY,)
    with pytest.raises(SecretError, match="env:OTHER: is not set"):
        prepare("s1", http, credentials, {"TOKEN": SECRET}, "/home/u")
    assert prepare("s1", [], [], {}, "/home/u").options == {}
