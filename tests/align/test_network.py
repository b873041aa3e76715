"""The hostile demo's network counterpart: what left, by the servers' own account, against what the records say.

One session under ``audit = "full"``, on an internet of the tests' own. Hostile steps are found in the log by the object that
they were aimed at; what the servers saw is in it as exercised; nothing that was granted was denied. Without the sandbox,
each hostile step reaches its server.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.align.reference import differences
from tests.kernel.internet import HOSTS
from tests.kernel.net_harness import TALK, Internet, internet
from tests.kernel.run_harness import PRELUDE, PYTHON, World

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.needs("ip", "unshare", "nsenter", "openssl", "curl", userns=True, landlock=2),
]

GRANTS = (
    "granted.example.com:8080",
    "granted.example.com:443",
    "rebound.example.com:8080",
    "private.example.com:8080",
    "203.0.113.20:5432",
    "203.0.113.30:9999/udp",
)
TLS = """
def tls(host, name):
    "A TLS connection to host that asks for name."
    import ssl
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, 443), 20) as client:
        with context.wrap_socket(client, server_hostname=name) as secure:
            secure.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            if not secure.recv(100):
                raise OSError(errno.ECONNRESET, "hung up")
"""


@dataclass(frozen=True)
class Step:
    """``object``: what it is aimed at, as an event names it. ``program``: "python" or "curl"."""

    object: str
    action: str
    program: str = "python"
    layer: str = "gateway"


HOSTILE = {
    "a name, by the proxy": Step("other.example.com:8080/tcp", "http://other.example.com:8080/", "curl"),
    "another name, by the proxy": Step("deep.sub.example.net:80/tcp", "http://deep.sub.example.net/", "curl"),
    "a name, asked of the resolver": Step("other.example.com", "talk('other.example.com', 8080)"),
    "an address": Step("203.0.113.20:8080/tcp", "talk('203.0.113.20', 8080)"),
    "an IPv6 address": Step("[2001:db8::20]:8080/tcp", "talk('2001:db8::20', 8080, socket.AF_INET6)"),
    "the granted name's address": Step("203.0.113.10:8080/tcp", "talk('203.0.113.10', 8080)"),
    "another port of the granted name": Step("granted.example.com:5432/tcp", "talk('granted.example.com', 5432)"),
    "a granted name that leads to loopback": Step("rebound.example.com:8080/tcp", "talk('rebound.example.com', 8080)"),
    "a granted name that leads inside": Step("private.example.com:8080/tcp", "talk('private.example.com', 8080)"),
    "another name within TLS": Step("granted.example.com:443/tcp", "tls('granted.example.com', 'other.example.com')"),
    "a datagram": Step("203.0.113.20:4433/udp", "udp('203.0.113.20', 4433)", layer="namespaces"),
    "the host's loopback": Step("127.0.0.1:8080", "talk('127.0.0.1', 8080)", layer="namespaces"),
}
USEFUL = {
    "granted.example.com:8080/tcp": ("http://granted.example.com:8080/", "talk('granted.example.com', 8080)"),
    "203.0.113.20:5432/tcp": ("talk('203.0.113.20', 5432)",),
    "203.0.113.30:9999/udp": ("udp('203.0.113.30', 9999)",),
}


@pytest.fixture
def net(world: World) -> Generator[Internet, None, None]:
    with internet(world) as made:
        yield made


def _command(action: str) -> list[str]:
    if action.startswith("http:"):
        return ["curl", "-sSf", "-m", "20", "-o", "/dev/null", action]
    code = f"{PRELUDE}{TALK}{TLS}\n{action}"
    return [PYTHON, "-I", "-S", "-c", code]


def _profile(world: World) -> str:
    directory = world.home / ".config/remit/profiles"
    directory.mkdir(parents=True)
    (directory / "audited.toml").write_text(
        'format = 1\nname = "audited"\nextends = ["offline"]\n[audit]\nlevel = "full"\n'
    )
    subprocess.run(["chown", "-R", f"--reference={world.home}", str(world.home / ".config")], check=True)
    return "audited"


def _records(world: World) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The actions of the last session as the command shows them, and its report."""
    shown = json.loads(world.remit("audit", "show", "--last", "--json").stdout)
    report = json.loads(world.remit("report", "--last", "--json").stdout)
    return shown["events"], report


def test_what_left_and_what_the_records_say(net: Internet) -> None:
    inside = net.world
    steps = [*(step.action for step in HOSTILE.values()), *(one for some in USEFUL.values() for one in some)]
    runner = f"""
        import json, subprocess
        for command in json.loads({json.dumps([_command(one) for one in steps])!r}):
            done = subprocess.run(command, capture_output=True, text=True)
            print(json.dumps([done.returncode, done.stderr[-300:]]), flush=True)
    """
    options = ["-p", _profile(inside), *(word for one in GRANTS for word in ("--connect", one))]
    done = inside.python(runner, *options)
    ended = [json.loads(line) for line in done.lines]
    results = dict(zip(steps, ended, strict=True))
    reached, asked = net.reached(), net.asked()

    events, report = _records(inside)
    programs = {"python": os.path.realpath(PYTHON), "curl": os.path.realpath(shutil.which("curl") or "")}
    for name, step in HOSTILE.items():
        assert results[step.action][0] != 0, (name, results[step.action])
        found = [event for event in events if event["object"] == step.object and event["verdict"] == "denied"]
        assert found, (name, [event["object"] for event in events if event["axis"] == "network"])
        for event in found:
            seen = (event["right"], event["syscall"], event["exe"], event["layer"])
            assert seen == ("connect", "connect", programs[step.program], step.layer), name
    for thing, actions in USEFUL.items():
        assert [results[action] for action in actions] == [[0, ""]] * len(actions)
        assert [event["verdict"] for event in events if event["object"] == thing] == ["allowed"] * len(actions)

    # The servers' own account: all that arrived is in the log as exercised, and nothing that was not granted arrived.
    exercised = {
        event["object"] for event in events if event["verdict"] == "allowed" and event["certainty"] == "exercised"
    }
    meant = {"203.0.113.20 5432", "203.0.113.30 9999"}
    meant |= {f"{address} 8080" for address in HOSTS["granted.example.com"]}
    assert reached <= meant | {f"{address} 443" for address in HOSTS["granted.example.com"]}
    for address, port in (one.split() for one in reached):
        names = [name for name, addresses in HOSTS.items() if address in addresses]
        assert {f"{host}:{port}/{kind}" for host in (address, *names) for kind in ("tcp", "udp")} & exercised
    assert "other.example.com" not in asked
    assert "deep.sub.example.net" not in asked

    totals = report["totals"]
    assert (totals["leaked"], totals["false_denials"], totals["prevention_rate"], totals["attributed"]) == (0, 0, 1, 1)
    assert differences(report) == []
    lines = {line["object"]: line["used"] for line in report["grant_lines"] if line["axis"] == "network"}
    assert lines["granted.example.com:8080/tcp"] is True
    assert lines["203.0.113.30/32:9999/udp"] is True


def test_without_remit_every_hostile_step_reaches_somebody(net: Internet, tmp_path: Path) -> None:
    for name, step in HOSTILE.items():
        before = len(net.seen())
        done = subprocess.run(
            [*net.world.prefix, *_command(step.action)],
            env=net.world.env(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (name, done.stderr)
        assert any(kind in ("tcp", "udp") for kind, _ in net.seen()[before:]), name


def test_calls_of_a_session_are_told_what_the_gateway_refused(net: Internet) -> None:
    """A call with a network of its own, and calls that share the session's: each hears of its own denials."""
    inside = net.world
    started = inside.remit(
        "session", "start", "-p", "offline", "-w", str(inside.workspace), "--connect", "203.0.113.20:8080"
    )
    session = started.stdout.strip()
    assert started.status == 0, started.stderr
    try:
        narrow = ["--read", str(inside.workspace), "--connect", "203.0.113.20:8080"]
        for grant, thing in (
            (narrow, "203.0.113.20:5432"),
            ([], "203.0.113.30:80"),
            (narrow[:2], "203.0.113.20:8080"),
        ):
            command = _command(f"talk({thing.split(':')[0]!r}, {thing.split(':')[1]})")
            told = inside.remit("exec", session, "--denials=json", *grant, "--", *command)
            made = json.loads(told.stderr.splitlines()[-1])
            denied = [(one["object"].removesuffix("/tcp"), one["program"], one["grant"]) for one in made["denials"]]
            assert denied == [(thing, os.path.realpath(PYTHON), ["--connect", thing])], (grant, told.stderr)
        good = inside.remit("exec", session, "--denials=text", "--", *_command("talk('203.0.113.20', 8080)"))
        assert (good.status, good.stderr) == (0, "")
    finally:
        inside.remit("session", "stop", session)
