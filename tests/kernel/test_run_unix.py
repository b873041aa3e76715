"""Unix sockets of the host's and of the session's own."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.kernel.run_harness import World

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=2)]


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
    assert (result.status, result.stderr.count("no such socket")) == (2, 1)
    result = world.run("true", options=["--unix", str(world.home)])
    assert (result.status, result.stderr.count("not a socket")) == (2, 1)
    both = world.remit("explain", "--unix", str(world.home), "--unix", str(world.base / "none"))
    assert (both.status, both.stderr.count("error: unix ")) == (2, 2)
