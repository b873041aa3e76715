"""Programs as people have them, unmodified: each reaches the name that was granted, and no other.

With proxy variables and without, all in one session each; outside, the same programs reach the other name. They trust the
tests' authority by variables that are granted in. The servers say who came.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.kernel.net_harness import Internet
from tests.kernel.run_harness import PRELUDE, PYTHON, World, finished

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.needs("ip", "unshare", "nsenter", "openssl", userns=True, landlock=2),
]

GRANTED, OTHER = "granted.example.com", "other.example.com"
DATABASE, OTHER_DATABASE = "203.0.113.20", "203.0.113.10"
GRANTS = tuple(
    word
    for endpoint in (f"{GRANTED}:443", f"{GRANTED}:22", f"{DATABASE}/32:5432", f"{DATABASE}/32:6379")
    for word in ("--connect", endpoint)
)
LIBRARIES = ("requests", "httpx", "aiohttp")

RUNNER = """
import json, os, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
environment = dict(os.environ)
if sys.argv[1] == "without":
    environment = {name: value for name, value in environment.items() if not name.lower().endswith("_proxy")}
def run(step):
    name, argv = step
    with tempfile.TemporaryDirectory() as place:
        arguments = dict(stdin=subprocess.DEVNULL, capture_output=True, cwd=place, env=environment, timeout=60)
        try:
            done = subprocess.run(argv, **arguments)
        except subprocess.TimeoutExpired as error:
            return name, [-1, "", f"hangs: {error.stdout} {error.stderr}"]
    return name, [done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")]
with ThreadPoolExecutor(3) as pool:
    print(json.dumps(dict(pool.map(run, json.load(sys.stdin)))))
"""
"""Runs what standard input names, with proxy variables or without."""

URLLIB = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=30).read().decode())
"""
REQUESTS = """
import sys, requests
print(requests.get(sys.argv[1], timeout=30).text)
"""
HTTPX = """
import sys, httpx
print(httpx.get(sys.argv[1], timeout=30).text)
"""
AIOHTTP = """
import asyncio, sys, aiohttp
async def main():
    async with aiohttp.ClientSession(trust_env=True) as session, session.get(sys.argv[1]) as response:
        print(await response.text())
asyncio.run(main())
"""
NODE = """
fetch(process.argv[1]).then(answer => answer.text()).then(text => console.log(text),
    error => { console.error(error.cause || error); process.exit(1) })
"""
NODE_HTTPS = """
require("https").get(process.argv[1], answer => answer.pipe(process.stdout)).on("error",
    error => { console.error(error); process.exit(1) })
"""
POSTGRES = """
with socket.create_connection((sys.argv[1], 5432), 30) as client:
    client.sendall(struct.pack(">II", 8, 80877103))
    assert client.recv(1) == b"N"
    client.sendall(struct.pack(">II", 21, 196608) + b"user\\0probe\\0\\0")
    print(client.recv(1000))
"""
REDIS = """
with socket.create_connection((sys.argv[1], 6379), 30) as client:
    client.sendall(b"*1\\r\\n$4\\r\\nPING\\r\\n")
    print(client.recv(1000))
"""


def https(host: str, proxy: str) -> dict[str, list[str]]:
    """By name: programs that fetch something over HTTPS from ``host`` and print it. ``proxy``: s_client knows no variable."""
    url, at = f"https://{host}/", f"{host}:443"
    python = [PYTHON, "-c"]
    pip = f"{PYTHON} -m pip --disable-pip-version-check --no-input --retries 0 -q install --no-cache-dir --target there"
    npm = "npm install --prefix there --fetch-retries=0 --no-audit --no-fund --no-update-notifier --loglevel=error"
    hello = f"printf 'GET / HTTP/1.0\\r\\nHost: {host}\\r\\n\\r\\n'"
    return {
        "curl": ["curl", "-sS", "-m", "30", url],
        "wget": ["wget", "-nv", "-t1", "-T30", "-O-", url],
        "openssl": [
            "sh",
            "-c",
            f"{hello} | openssl s_client -quiet -verify_return_error {proxy} -connect {at} -servername {host}",
        ],
        "git": ["sh", "-c", f"git clone -q {url}repo.git there && cat there/file"],
        "pip": ["sh", "-c", f"{pip} --index-url {url}simple/ remit-probe && cat there/remit_probe.py"],
        "npm": ["sh", "-c", f"{npm} --registry {url}npm/ remit-probe && cat there/node_modules/remit-probe/index.js"],
        "node fetch": ["node", "-e", NODE, url],
        "node https": ["node", "-e", NODE_HTTPS, url],
        "urllib": [*python, URLLIB, url],
        "requests": [*python, REQUESTS, url],
        "httpx": [*python, HTTPX, url],
        "aiohttp": [*python, AIOHTTP, url],
    }


def others(host: str, database: str) -> dict[str, list[str]]:
    """By name: programs that speak other protocols. SSH with a host, databases with an address."""
    known = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes")
    raw = [PYTHON, "-I", "-S", "-c"]
    return {
        "ssh": ["ssh", "-F/dev/null", *known, f"probe@{host}"],
        "psql": ["psql", "-w", f"host={database} user=probe dbname=probe gssencmode=disable connect_timeout=30"],
        "redis-cli": ["redis-cli", "-h", database, "PING"],
        "PostgreSQL": [*raw, PRELUDE + POSTGRES, database],
        "Redis": [*raw, PRELUDE + REDIS, database],
    }


@cache
def lacking(name: str) -> bool:
    """Whether a program is not installed here: then another test of its protocol has to do."""
    program = {"node fetch": "node", "node https": "node"}.get(name, name)
    if program in LIBRARIES:
        if importlib.util.find_spec(program) is None:
            assert not os.environ.get("CI"), f"{program} is not installed (dependency group demo)"
            return True
        return False
    if program in ("curl", "wget", "git", "npm", "node", "ssh", "psql", "redis-cli"):
        return all(not os.access(f"{place}/{program}", os.X_OK) for place in ("/usr/local/bin", "/usr/bin", "/bin"))
    return False


@pytest.fixture(scope="module")
def market(online: Internet) -> Internet:
    """The internet with a package index of each kind, and a repository."""
    site = online.site
    wheel = site / "simple/remit-probe/remit_probe-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("remit_probe.py", "served\n")
        information = "remit_probe-1.0.dist-info"
        archive.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: remit-probe\nVersion: 1.0\n")
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')

    package = {"name": "remit-probe", "version": "1.0.0", "dist": {"tarball": "https://HOST/npm/remit-probe.tgz"}}
    document = {"name": "remit-probe", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": package}}
    (site / "npm").mkdir()
    (site / "npm/remit-probe").write_text(json.dumps(document))
    with tarfile.open(site / "npm/remit-probe.tgz", "w:gz") as tar:
        files = {"package.json": json.dumps({"name": "remit-probe", "version": "1.0.0"}), "index.js": "served\n"}
        for name, text in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))

    source = online.world.base / "source"
    source.mkdir()
    (source / "file").write_text("served\n")
    who = ("-c", "user.name=probe", "-c", "user.email=probe@example.com")
    script = f"git init -q . && git add file && git {' '.join(who)} commit -qm served && git clone -q --bare . {site}/repo.git"
    subprocess.run(["sh", "-c", script], check=True, env=online.world.env(), cwd=source)

    authority = online.world.workspace / "ca.pem"
    authority.write_bytes(online.authority.read_bytes())
    (online.world.workspace / "wgetrc").write_text(f"ca_certificate = {authority}\n")
    return online


@pytest.fixture
def net(market: Internet) -> Internet:
    """The market, with nothing seen yet."""
    market.forget()
    return market


def trust(world: World) -> dict[str, str]:
    """What makes each program trust the tests' authority, and Python find the libraries of this installation."""
    names = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "REQUESTS_CA_BUNDLE")
    more = ("NODE_EXTRA_CA_CERTS", "npm_config_cafile")
    return {
        **dict.fromkeys((*names, *more), str(world.workspace / "ca.pem")),
        "WGETRC": str(world.workspace / "wgetrc"),
        "PYTHONPATH": str(libraries()),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def libraries() -> Path:
    """Where this installation's packages are: pip is one of them."""
    found = importlib.util.find_spec("pip")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parents[1]


Answers = dict[str, tuple[int, str, str]]


def run_inside(net: Internet, steps: Mapping[str, list[str]], how: str) -> Answers:
    """How each program ended in one session: status, output, errors."""
    granted = [f"--env={name}={value}" for name, value in trust(net.world).items()]
    options = (*GRANTS, *granted, "--read", str(libraries()))
    argv = (PYTHON, "-I", "-S", "-c", RUNNER, how)
    done = net.world.run(*argv, options=options, stdin=json.dumps(list(steps.items())))
    assert done.status == 0, done.stderr
    answers: Answers = json.loads(done.lines[-1])
    return answers


def run_outside(net: Internet, steps: Mapping[str, list[str]]) -> Answers:
    """The same without Remit, on the same internet."""
    argv = [*net.world.prefix, PYTHON, "-I", "-S", "-c", RUNNER, "without"]
    environment = net.world.env(trust(net.world))
    done = finished(argv, stdin=json.dumps(list(steps.items())), env=environment, cwd=net.world.workspace)
    assert done.status == 0, done.stderr
    answers: Answers = json.loads(done.lines[-1])
    return answers


def prefixed(label: str, steps: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Those that are installed here."""
    return {f"{label} {name}": argv for name, argv in steps.items() if not lacking(name)}


def reached(answers: Answers) -> set[str]:
    """The programs that got an answer. A database's is an error, and an SSH server's none: the server says who came."""
    return {name for name, (_, output, errors) in answers.items() if "served" in output + errors}


@pytest.mark.parametrize("how", ["with", "without"])
def test_each_client_reaches_what_was_granted_and_nothing_else(net: Internet, how: str) -> None:
    proxy = "-proxy 127.0.0.1:880" if how == "with" else ""
    good = prefixed("granted", {**https(GRANTED, proxy), **others(GRANTED, DATABASE)})
    bad = prefixed("denied", {**https(OTHER, proxy), **others(OTHER, OTHER_DATABASE)})
    answers = run_inside(net, {**good, **bad}, how)
    assert reached(answers) | {"granted ssh"} == set(good), answers
    for name in bad:
        assert answers[name][0] != 0, name

    told = net.seen()
    assert {name for kind, name in told if kind == "dns"} == {GRANTED}
    ssh = [what for kind, what in told if kind == "said" and "SSH-2.0-" in what]
    assert len(ssh) == 1
    addresses = {"203.0.113.10", "2001:db8::10"}
    places = {tuple(what.split()) for kind, what in told if kind == "tcp"}
    expected = {(one, port) for one in addresses for port in ("22", "443")} | {(DATABASE, "5432"), (DATABASE, "6379")}
    assert places <= expected
    assert {port for _, port in places} == {"22", "443", "5432", "6379"}


def test_outside_the_same_clients_reach_the_other_name(net: Internet) -> None:
    """The control: nothing but Remit is in the way."""
    steps = prefixed("other", {**https(OTHER, ""), **others(OTHER, OTHER_DATABASE)})
    answers = run_outside(net, steps)
    assert reached(answers) | {"other ssh"} == set(steps), answers
    assert any(what.startswith(("203.0.113.20 22 SSH-2.0-", "2001:db8::20 22 SSH-2.0-")) for _, what in net.seen())
