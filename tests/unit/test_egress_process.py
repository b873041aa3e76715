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
from remit.sandbox.authority.web import Credential
from remit.sandbox.egress import wire
from remit.sandbox.egress.secrets import SecretError
from remit.sandbox.egress.web import placeholders, secrets_file
from tests.unit.egress_world import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cret-f0r-the-tests-only"


class Process:
    """A gateway in a process of its own, with an echo server outside."""

    def __init__(self, options: dict[str, Any], file: int = -1) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(PATIENCE)
        sites = site_directories(sys.executable, sys.base_prefix)
        argv = [sys.executable, "-I", "-S", "-X", "utf8", "-c", wire.GATEWAY, str(ROOT / "src"), str(theirs.fileno())]
        self.process = subprocess.Popen(
            [*argv, *sites], env={}, pass_fds=[theirs.fileno()], cwd="/", stdin=subprocess.DEVNULL
        )
        theirs.close()
        self.say((wire.CONFIG, "s1", options), *([file] if file >= 0 else []))

    def say(self, message: tuple[Any, ...], *sockets: socket.socket | int) -> None:
        numbers = array.array("i", [one if isinstance(one, int) else one.fileno() for one in sockets])
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers.tobytes())] if sockets else []
        self.control.sendmsg([marshal.dumps(message)], control)
        for one in sockets:
            if not isinstance(one, int):
                one.close()

    def hear(self) -> tuple[Any, ...]:
        data = self.control.recv(wire.MESSAGE_SIZE)
        message: tuple[Any, ...] = marshal.loads(data) if data else ()
        return message

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.control.close()
        try:
            assert self.process.wait(PATIENCE) in (0, -signal.SIGKILL)
        finally:
            self.process.kill()
            self.process.wait()


def connect(port: int, target: str) -> tuple[bytes, socket.socket]:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.settimeout(PATIENCE)
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
        assert gateway.hear() == (wire.READY, b"")
        listener, port = proxy_socket()
        gateway.say((wire.LISTEN, "", (), ((wire.PROXY, 0),), ()), listener)
        answer, sock = connect(port, target)
        assert answer.startswith(b"HTTP/1.1 200")
        peer, _ = server.accept()
        peer.sendall(b"hello")
        assert sock.recv(100) == b"hello"
        refusal, other = connect(port, "127.0.0.1:1")
        other.close()
        assert refusal.startswith(b"HTTP/1.1 403")
        (allowed,), (denied,) = gateway.hear()[1], gateway.hear()[1]
        assert allowed[:7] == (
            "", "connect", f"{target}/tcp", "allowed", "127.0.0.1", "p.toml:3 network.connect", "connect",
        )  # fmt: skip
        assert denied[3:6] == ("denied", "the host is granted, but not on this port (1)", "")
        assert denied[10] == "127.0.0.1:1"

        # No signal of the terminal ends it.
        os.kill(gateway.process.pid, signal.SIGINT)
        peer.sendall(b"still")
        assert sock.recv(100) == b"still"

        gateway.control.shutdown(socket.SHUT_WR)  # the launcher ends it, and listens to its last words
        ((ended,),) = gateway.hear()[1:]
        assert ended[1:4] == ("connect", f"{target}/tcp", "ended")
        assert ended[8] == 10
        assert gateway.hear() == ()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        peer.close()
        sock.close()
        assert gateway.process.wait(PATIENCE) == 0


def test_a_killed_gateway_leaves_no_way_out() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    target = f"127.0.0.1:{server.getsockname()[1]}"
    with server, Process({"rules": ((f"{target}/tcp", "p"),)}) as gateway:
        assert gateway.hear() == (wire.READY, b"")
        listener, port = proxy_socket()
        gateway.say((wire.LISTEN, "", (), ((wire.PROXY, 0),), ()), listener)
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
        {"credentials": (("*.example.com", "header", "x", "p", SECRET, "p", ""),)},
    ],
)
def test_a_config_that_is_not_understood_is_a_failure(options: dict[str, Any]) -> None:
    with Process(options) as gateway:
        failed = gateway.hear()
        assert failed[0] == wire.FAILED
        assert SECRET not in repr(failed)
        assert gateway.hear() == ()


def test_what_is_prepared_goes_two_ways() -> None:
    """What stands for the secrets inside, and the file that only the gateway reads; the key is the gateway's own."""
    credentials = [
        Credential("api.example.com", "authorization", "", "env", "TOKEN", "TOKEN", "Bearer {}"),
        Credential("x.wild.example", "", "key", "env", "TOKEN", "TOKEN"),
        Credential("other.example", "x-api-key", "", "env", "OTHER", "OTHER"),
    ]
    holders = placeholders(credentials)
    assert set(holders) == {"TOKEN", "OTHER"}
    assert len(set(holders.values())) == 2
    file = secrets_file(credentials, holders, {"TOKEN": SECRET, "OTHER": "other-s3cret"}, "/home/u")
    made = marshal.loads(os.pread(file, 1 << 16, 0))
    assert made["credentials"][0] == (
        "api.example.com", "header", "authorization: Bearer {}", holders["TOKEN"], SECRET, "", "TOKEN",
    )  # fmt: skip
    with pytest.raises(OSError, match="Operation not permitted"):
        os.write(file, b"x")
    http = (("*.wild.example", (), (), "p.toml:3"), ("api.example.com", (), ("/v1",), "p.toml:4"))
    with Process({"http": http}, file) as gateway:
        kind, certificate = gateway.hear()
        assert kind == wire.READY
        assert certificate.startswith(b"-----BEGIN CERTIFICATE-----")
        assert b"PRIVATE KEY" not in certificate
    os.close(file)
    with pytest.raises(SecretError, match="env:OTHER: is not set"):
        secrets_file(credentials, holders, {"TOKEN": SECRET}, "/home/u")
