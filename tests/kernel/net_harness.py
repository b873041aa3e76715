"""A world whose host is on a small internet of its own (``internet``), in namespaces that nothing can leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.kernel.run_harness import World, descendants

NAMES = ("granted.example.com", "other.example.com", "deep.sub.example.net", "rebound.example.com")
TALK = """
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
"""What programs inside talk with."""


@dataclass(frozen=True)
class Internet:
    """A running one. ``authority``: the certificate that its TLS servers' are signed by. ``site``: what they serve."""

    process: subprocess.Popen[str]
    world: World
    authority: Path
    site: Path

    def seen(self) -> list[tuple[str, str]]:
        """Everything that arrived until now: ("dns", name), ("tcp" | "udp", "ADDRESS PORT"), ("said", ...)."""
        return self._ask("")

    def forget(self) -> None:
        """Nothing has been seen: another test begins."""
        self._ask("forget")

    def _ask(self, what: str) -> list[tuple[str, str]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return [(kind, what) for kind, what in json.loads(self.process.stdout.readline())]

    def asked(self) -> set[str]:
        """The names that its resolver was asked for."""
        return {what for kind, what in self.seen() if kind == "dns"}

    def reached(self) -> set[str]:
        """The servers that something arrived at: "ADDRESS PORT"."""
        return {what for kind, what in self.seen() if kind in ("tcp", "udp")}


@contextmanager
def internet(world: World) -> Generator[Internet, None, None]:
    """The world, its host's network replaced. Its commands run where the small internet is."""
    directory = world.base / "internet"
    site = directory / "site"
    site.mkdir(parents=True)
    authority, certificate, key = _certificates(directory)
    become = [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    script = str(Path(__file__).with_name("internet.py"))
    argv = [
        "unshare",
        *become,
        "--net",
        "--mount",
        sys.executable,
        "-I",
        script,
        *map(str, (directory, certificate, key)),
    ]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            enter = ["nsenter", f"--target={process.pid}", "--net", "--mount"]
            enter += [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
            yield Internet(process, replace(world, prefix=(*enter, "--")), authority, site)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def gateway_of(process: subprocess.Popen[str]) -> list[int]:
    """The gateways of a running session: processes below it."""
    found: list[int] = []
    for pid in descendants(process.pid):
        try:
            if b"remit.sandbox.egress.gateway" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _certificates(directory: Path) -> tuple[Path, Path, Path]:
    """A certificate authority's certificate; a server's certificate for every name of the internet, and its key."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=directory)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority")
    openssl("req", *curve, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=server")
    (directory / "names").write_text("subjectAltName=" + ",".join(f"DNS:{name}" for name in NAMES) + "\n")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    openssl("x509", "-req", "-in", "request.pem", *signing, "-out", "server.pem")
    return directory / "ca.pem", directory / "server.pem", directory / "key.pem"
