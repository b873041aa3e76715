"""HTTP rules and credentials: what of a granted host is granted, by which requests; and the secret that never comes inside.

The host is on an internet of the tests' own (``internet``); what a server was asked, the server says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.kernel.internet import TRUSTED
from tests.kernel.net_harness import Internet, internet
from tests.kernel.run_harness import PRELUDE, PYTHON, TIMEOUT, Result, descendants, finished, first_line, libc_python

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not os.path.exists(TRUSTED), reason="the host has no list of certificates where Debian has it"),
    pytest.mark.needs("ip", "unshare", "nsenter", "openssl", "curl", userns=True, landlock=2),
]

GRANTED = "granted.example.com"
OTHER = "other.example.com"
SECRET = "s3cr3t-0f-the-tests-only-9471"
RULES = f"""
format = 1
name = "web"
extends = ["offline"]

[network]
connect = ["{GRANTED}:443", "{GRANTED}:80", "{GRANTED}:8080", "{OTHER}:443"]

[[network.http]]
host = "{GRANTED}"
methods = ["GET", "HEAD"]
paths = ["/v1", "/to"]
"""
CREDENTIALS = f"""
[[credentials]]
host = "{GRANTED}"
header = "Authorization: Bearer {{}}"
from = "env:API_TOKEN"
"""


@pytest.fixture
def net(world: Any) -> Generator[Internet, None, None]:
    """The world with an internet."""
    with internet(world) as made:
        yield made


def profile(net: Internet, text: str) -> str:
    """A profile of the user's, outside the workspace."""
    path = net.world.base / "web.toml"
    path.write_text(text)
    return str(path)


def run(net: Internet, text: str, command: Sequence[str], *options: str, env: dict[str, str] | None = None) -> Result:
    """``remit run`` under a profile of this text."""
    argv = net.world.argv("run", "-p", profile(net, text), "-w", str(net.world.workspace), *options, "--", *command)
    return finished(argv, env=net.world.env(env), cwd=net.world.workspace)


def shell(net: Internet, text: str, script: str, *options: str, env: dict[str, str] | None = None) -> Result:
    """A shell script under a profile of this text."""
    return run(net, text, ["sh", "-c", script], *options, env=env)


def said(net: Internet) -> list[str]:
    """The request lines that arrived anywhere, with the server they arrived at."""
    return [what for kind, what in net.seen() if kind == "said"]


def heads(net: Internet) -> str:
    """Everything that servers were told."""
    return "\n".join(what for kind, what in net.seen() if kind == "head")


def events(net: Internet) -> list[dict[str, Any]]:
    """The record of the session that ran last."""
    lines = (net.world.records()[-1] / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# --- rules -------------------------------------------------------------------------------------------------------------

CLIENTS = {
    "curl": "curl -sS -m 20 URL",
    "curl without proxies": "curl -sS -m 20 --noproxy '*' URL",
    "python": f"""{PYTHON} -I -S -c '
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())
except urllib.error.HTTPError as error:
    print(error.read().decode())
' URL""",
    "node": "node -e 'fetch(process.argv[1]).then(a => a.text()).then(t => console.log(t))' URL",
    "wget": "wget -q -T 20 -O - --content-on-error --no-proxy URL; true",
}
CLIENTS["java"] = "java Fetch.java URL"
FETCH = """
import java.net.*;
public class Fetch {
    public static void main(String[] words) throws Exception {
        HttpURLConnection made = (HttpURLConnection) new URI(words[0]).toURL().openConnection();
        java.io.InputStream said = made.getResponseCode() < 400 ? made.getInputStream() : made.getErrorStream();
        System.out.println(new String(said.readAllBytes()));
    }
}
"""
PROGRAMS = {"python": PYTHON, "node": "node", "wget": "wget", "java": "java"}


def have(name: str) -> bool:
    """Whether a client is there, and can fetch: Node has ``fetch`` from 18 on, Java trusts what Debian's keystore has."""
    program = PROGRAMS.get(name, "curl")
    probe = [program, "-e", "fetch"] if name == "node" else [program, "--version"]
    if name == "java" and not Path("/etc/ssl/certs/java/cacerts").exists():
        return False
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("name", CLIENTS)
def test_unmodified_clients_do_what_the_rules_allow(net: Internet, name: str) -> None:
    if not have(name):
        pytest.skip(f"no {name}")
    script = "; ".join(CLIENTS[name].replace("URL", f"https://{GRANTED}{path}") for path in ("/v1/models", "/v2"))
    (net.world.workspace / "Fetch.java").write_text(FETCH)
    result = shell(net, RULES, script)
    allowed, denied = [line for line in result.lines if line]
    assert allowed.startswith("served by"), result
    document = json.loads(denied)
    assert document["schema"] == "remit.denied/1"
    assert document["object"] == f"GET https://{GRANTED}/v2"
    assert document["missing"] == {
        "key": "network.http",
        "value": f'host = "{GRANTED}", methods = ["GET"], paths = ["/v2"]',
    }
    assert [line.split(" ", 2)[2] for line in said(net)] == ["GET /v1/models HTTP/1.1"]


def test_methods_hosts_redirects_and_plain_http(net: Internet) -> None:
    curl = "curl -sS -m 20 -o /dev/null -w '%{http_code}\\n'"
    script = f"""
    {curl} -X POST -d x https://{GRANTED}/v1/models
    {curl} -I https://{GRANTED}/v1/models
    {curl} http://{GRANTED}/v1/models
    {curl} http://{GRANTED}/v2
    {curl} http://{GRANTED}:8080/v2
    {curl} --noproxy '*' http://{GRANTED}:8080/v2
    {curl} -H 'Host: {OTHER}' https://{GRANTED}/v1/models
    {curl} -L https://{GRANTED}/to/{OTHER}:8080/
    {curl} https://{OTHER}/anything
    """
    result = shell(net, RULES.replace(f', "{OTHER}:443"', ""), script)
    # The redirect leads to a host that is not granted: the proxy says so.
    assert result.lines == ["403", "200", "200", "403", "403", "403", "403", "403", "000"], result
    assert all(OTHER not in line for line in net.reached())
    assert [line.split(" ", 2)[2] for line in said(net)] == [
        "HEAD /v1/models HTTP/1.1",
        "GET /v1/models HTTP/1.1",
        f"GET /to/{OTHER}:8080/ HTTP/1.1",
    ]


RAW = """
import json, re, ssl
context = ssl.create_default_context()
def ask(data, host="granted.example.com", alpn=None):
    "What one TLS connection answers to these bytes: the status, or how it ended."
    if alpn:
        context.set_alpn_protocols(alpn)
    with socket.create_connection((host, 443), 20) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=host) as secure:
                secure.sendall(data)
                answer = b""
                while piece := secure.recv(65536):
                    answer += piece
                return [status.decode() for status in re.findall(rb"HTTP/1\\.1 (\\d+)", answer)]
        except OSError as error:
            return type(error).__name__
"""
GOOD = b"GET /v1 HTTP/1.1\r\nHost: granted.example.com\r\n"
EVIL = b"GET /evil HTTP/1.1\r\nHost: granted.example.com\r\n\r\n"
SMUGGLED: dict[str, bytes] = {
    "two framings": GOOD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "two lengths": GOOD + b"Content-Length: 0\r\nContent-Length: 60\r\n\r\n" + EVIL,
    "a folded header": GOOD + b"X: 1\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "a bare line feed": GOOD + b"X: 1\nContent-Length: 5\r\n\r\nhello" + EVIL,
    "a bare carriage return": GOOD + b"X: 1\rY: 2\r\n\r\n" + EVIL,
    "a space before the colon": GOOD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "another coding": GOOD + b"Transfer-Encoding: xchunked\r\n\r\n" + EVIL,
    "a negative length": GOOD + b"Content-Length: -1\r\n\r\n" + EVIL,
    "two hosts": GOOD + b"Host: other.example.com\r\n\r\n" + EVIL,
    "a NUL": GOOD + b"X: \0\r\n\r\n" + EVIL,
    "dot segments": b"GET /v1/../evil HTTP/1.1\r\nHost: granted.example.com\r\n\r\n",
    "encoded dot segments": b"GET /v1/%2e%2e/evil HTTP/1.1\r\nHost: granted.example.com\r\n\r\n",
    "an overriding header": GOOD + b"X-HTTP-Method-Override: DELETE\r\n\r\n",
    "a second request": GOOD + b"\r\n" + EVIL,
    "an upgrade to h2c": GOOD
    + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    + EVIL,
    "HTTP/2 itself": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
}


def test_nothing_is_smuggled_past_the_rules(net: Internet) -> None:
    code = PRELUDE + RAW + f"print(json.dumps({{name: ask(data) for name, data in {SMUGGLED!r}.items()}}))"
    result = run(net, RULES, [PYTHON, "-I", "-S", "-c", code])
    answers = json.loads(result.stdout)
    passed = {
        # Read in one way, and written in that way: a header of two lines as one, a line's end as the usual one.
        "a folded header": ["200", "400"],
        "a bare line feed": ["200", "403"],
        "a second request": ["200", "403"],
        "an upgrade to h2c": ["200", "403"],
    }
    for name, answer in answers.items():
        assert answer == passed[name] if name in passed else answer in (["400"], ["403"]), (name, answer)
    text = heads(net)
    assert "evil" not in text
    assert "upgrade" not in text.lower()
    # The control: without rules the very same bytes arrive (and some of their connections wait for more).
    (net.world.workspace / "ca.pem").write_bytes(net.authority.read_bytes())
    control = code.replace("create_default_context()", "create_default_context(cafile='ca.pem')").replace(
        "443), 20)", "443), 2)"
    )
    assert run(net, RULES.partition("[[")[0], [PYTHON, "-I", "-S", "-c", control]).status == 0
    assert "evil" in heads(net)


def test_another_name_inside_our_own_tls_is_refused(net: Internet) -> None:
    """Fronting: TLS for the granted name, the request for another one."""
    code = (
        PRELUDE
        + RAW
        + dedent(f"""
    print(json.dumps(ask(b"GET /v1 HTTP/1.1\\r\\nHost: {OTHER}\\r\\n\\r\\n")))
    print(json.dumps(ask(b"GET /v1 HTTP/1.1\\r\\nHost: {GRANTED}\\r\\nConnection: close\\r\\n\\r\\n")))
    context.check_hostname = False
    with socket.create_connection(("{GRANTED}", 443), 20) as plain:
        print(attempt(lambda: context.wrap_socket(plain, server_hostname="{OTHER}")))
    """)
    )
    result = run(net, RULES, [PYTHON, "-I", "-S", "-c", code])
    assert result.lines == ['["403"]', '["200"]', "ECONNRESET"], result
    assert len(said(net)) == 1


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["h3"], "None")]
)
def test_clients_are_offered_the_http_that_is_read(net: Internet, offered: list[str], chosen: str) -> None:
    code = (
        PRELUDE
        + RAW
        + dedent(f"""
    context.set_alpn_protocols({offered!r})
    with socket.create_connection(("{GRANTED}", 443), 20) as plain:
        with context.wrap_socket(plain, server_hostname="{GRANTED}") as secure:
            print(secure.selected_alpn_protocol())
    """)
    )
    assert run(net, RULES, [PYTHON, "-I", "-S", "-c", code]).lines == [chosen]


def test_curl_speaks_http2_and_the_rules_are_the_same(net: Internet) -> None:
    if "HTTP2" not in subprocess.run(["curl", "-V"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("a curl without HTTP/2")
    curl = "curl -sS -m 20 -o /dev/null -w '%{http_version} %{http_code}\\n'"
    script = f"""
    {curl} --http2 https://{GRANTED}/v1/models https://{GRANTED}/v2 -o /dev/null https://{GRANTED}/v1/models -o /dev/null
    {curl} --http2 -X DELETE https://{GRANTED}/v1/models
    {curl} --http2 -H 'Host: {OTHER}' https://{GRANTED}/v1/models
    {curl} --http1.1 https://{GRANTED}/v1/models
    {curl} --noproxy '*' --http2-prior-knowledge http://{GRANTED}/v1/models
    """
    result = shell(net, RULES, script)
    assert result.lines[:5] == ["2 200", "2 403", "2 200", "2 403", "2 403"], result
    assert result.lines[5] == "1.1 200"
    assert result.lines[6].endswith(" 000"), result
    assert [line.split(" ", 2)[2] for line in said(net)] == ["GET /v1/models HTTP/1.1"] * 3


@pytest.mark.needs("openssl")
def test_the_sessions_certificates_stand_for_its_hosts_only(net: Internet) -> None:
    """Whoever had the authority's key could certify the hosts that are read, and no other: openssl's word, on a leaf that
    is signed by the same rules with a key of the test's own."""
    script = f"""
    echo | openssl s_client -connect {GRANTED}:443 -servername {GRANTED} -showcerts -verify_return_error 2>/dev/null
    cat /.remit/certificates.pem
    """
    result = shell(net, RULES, script)
    assert "Verify return code: 0 (ok)" in result.stdout
    chain = result.stdout.split("-----BEGIN CERTIFICATE-----")
    assert len(chain) == 5  # leaf and authority as shown, then the bundle: the host's and the session's
    session = net.world.base / "session.pem"
    session.write_text("-----BEGIN CERTIFICATE-----" + chain[4])
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-text", "-in", session], capture_output=True, text=True, check=True
    )
    assert "X509v3 Name Constraints: critical" in shown.stdout
    assert f"DNS:{GRANTED}" in shown.stdout
    assert OTHER not in shown.stdout
    assert "CA:TRUE, pathlen:0" in shown.stdout
    # The other host is still reached with its own certificate.
    assert shell(net, RULES, f"curl -sS https://{OTHER}/").stdout.startswith("served by")


def test_a_host_that_is_read_is_read_on_every_port_and_protocol(net: Internet) -> None:
    text = RULES.replace(f'"{GRANTED}:8080"', f'"{GRANTED}:8080", "{GRANTED}:5432", "{GRANTED}:4433/udp"')
    code = PRELUDE + dedent(f"""
    def talk(port, data):
        with socket.create_connection(("{GRANTED}", port), 20) as client:
            client.sendall(data)
            return client.recv(1000)[:12]
    print(talk(5432, b"GET /v1 HTTP/1.1\\r\\nHost: {GRANTED}:5432\\r\\n\\r\\n"))
    print(talk(5432, b"GET /v2 HTTP/1.1\\r\\nHost: {GRANTED}:5432\\r\\n\\r\\n"))
    print(talk(5432, b"\\0\\1\\2 not HTTP\\r\\n\\r\\n"))
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect(("{GRANTED}", 4433))
        client.settimeout(3)
        client.send(b"x")
        try:
            print(client.recv(100))
        except TimeoutError:
            print("nothing")
    """)
    result = run(net, text, [PYTHON, "-I", "-S", "-c", code])
    assert result.lines == ["b'HTTP/1.1 200'", "b'HTTP/1.1 403'", "b'HTTP/1.1 400'", "nothing"], result
    assert not any(kind == "udp" for kind, _ in net.seen())


def test_what_was_decided_of_requests_is_recorded_and_explained(net: Internet) -> None:
    shell(
        net,
        RULES,
        f"curl -sS https://{GRANTED}/v1/x?key=querysecret; curl -sS https://{GRANTED}/v2; curl -sS https://no.example.org/",
    )
    found = events(net)
    requests = [event for event in found if event.get("right") == "request"]
    assert [(one["axis"], one["object"], one["verdict"], one["layer"]) for one in requests] == [
        ("network", f"GET https://{GRANTED}/v1/x", "allowed", ""),
        ("network", f"GET https://{GRANTED}/v2", "denied", "gateway"),
    ]
    line = RULES[: RULES.index("[[network")].count("\n") + 1
    for one in requests:
        assert (one["rule"]["file"], one["rule"]["line"]) == (str(net.world.base / "web.toml"), line)
    assert requests[1]["missing"] == f'host = "{GRANTED}", methods = ["GET"], paths = ["/v2"]'
    assert "querysecret" not in json.dumps([event for event in found if event.get("source") == "gateway"])
    assert found[-1]["denials"] == 2
    why = net.world.remit("why", "--last", "--json")
    request, connection = json.loads(why.stdout)["denials"]
    assert request["toml"].startswith("[network]\nhttp = [{ host = ")
    assert request["layers"] == ["gateway"]
    assert connection["grant"] == ["--connect", "no.example.org:443"]
    asked = net.world.remit("why", f"{GRANTED}:443")
    assert "/v2" in asked.stdout, asked
    report = json.loads(net.world.remit("report", "--last", "--format", "json").stdout)
    assert report["totals"]["leaked"] == 0
    assert report["totals"]["false_denials"] == 0
    assert [one["used"] for one in report["grant_lines"] if one["right"] == "request"] == [True]


def test_a_session_whose_gateway_cannot_start_does_not_start(net: Internet) -> None:
    """A credential that is not there."""
    result = shell(net, RULES + CREDENTIALS, "echo started")
    assert (result.status, result.stdout) == (125, "")
    assert "env:API_TOKEN: is not set" in result.stderr


def test_without_a_network_of_its_own_nothing_is_read_and_that_is_said(net: Internet) -> None:
    token = {"API_TOKEN": SECRET}
    result = shell(net, RULES + CREDENTIALS, "env", "--degrade", "network", env=token)
    assert result.status == 0, result
    assert "API_TOKEN" not in result.stdout
    assert SECRET not in result.stdout
    where = ("-p", profile(net, RULES + CREDENTIALS), "-w", str(net.world.workspace))
    shown = net.world.remit("explain", *where, "--degrade", "network", "--json")
    lowering = json.loads(shown.stdout)["lowering"]
    assert any(one["right"] == "request" for one in lowering["slack"])
    assert any(one["right"] == "credential" for one in lowering["deficit"])


def test_what_explain_says(net: Internet) -> None:
    text = (RULES + CREDENTIALS).replace(f'"{OTHER}:443"', f'"{OTHER}:443", "203.0.113.0/24:443"')
    where = ("-p", profile(net, text), "-w", str(net.world.workspace))
    result = net.world.remit("explain", *where, "--plan", env={"API_TOKEN": SECRET})
    assert result.status == 0, result
    assert SECRET not in result.stdout
    for words in (
        f"GET|HEAD {GRANTED}/v1 /to",
        "header authorization: Bearer {}, from env:API_TOKEN; API_TOKEN holds a placeholder",
        "203.0.113.0/24:443/tcp is granted",
        "answers are not searched",
        "inside TLS another host",
    ):
        assert words in result.stdout, (words, result.stdout)


# --- limits ------------------------------------------------------------------------------------------------------------


LIMITED = f"""
format = 1
name = "limited"
extends = ["offline"]
network.connect = ["{GRANTED}:22", "{GRANTED}:8080"]
"""
SSH = f"""
def ssh():
    client = socket.create_connection(("{GRANTED}", 22), 20)
    client.recv(100)
    return client
"""


def limited(net: Internet, limit: str, code: str) -> list[str]:
    """What a program prints in a session with this limit."""
    result = run(net, LIMITED + limit, [PYTHON, "-I", "-S", "-c", PRELUDE + SSH + dedent(code)])
    assert result.status == 0, result
    return result.lines


def test_the_limit_on_connections_at_a_time(net: Internet) -> None:
    code = """
    kept = [ssh(), ssh()]
    print(attempt(ssh))
    kept.append(attempt(ssh))
    """
    assert limited(net, "limits.connections = 2", code) == ["ECONNRESET"]
    assert limited(net, "limits.connections = 3", code) == ["ok"]


def test_the_limit_on_the_time_of_a_connection(net: Internet) -> None:
    # It may be over before the server has said who it is.
    code = "print(attempt(lambda: ssh().recv(100)))"
    assert limited(net, 'limits.connection-time = "200ms"', code) == ["ECONNRESET"]
    code = "client = ssh(); client.settimeout(1); print(attempt(lambda: client.recv(100)))"
    assert limited(net, 'limits.connection-time = "1h"', code) == ["None"]  # nothing came, and no end


def test_the_limit_on_traffic_is_of_all_connections(net: Internet) -> None:
    code = f"""
    request = b"GET / HTTP/1.1\\r\\nHost: {GRANTED}:8080\\r\\nX: " + b"x" * 1000 + b"\\r\\n\\r\\n"
    def ask():
        with socket.create_connection(("{GRANTED}", 8080), 20) as client:
            client.sendall(request)
            if b"200" not in client.recv(1000):
                raise OSError(errno.EACCES, "")
    print([attempt(ask) == "ok" for _ in range(20)])
    """
    answers = json.loads(limited(net, 'limits.traffic = "8KiB"', code)[0].lower())
    assert answers[:5] == [True] * 5
    assert answers[8:] == [False] * 12
    assert json.loads(limited(net, 'limits.traffic = "80KiB"', code)[0].lower()) == [True] * 20


def test_why_can_be_asked_beside_the_certificates(net: Internet) -> None:
    """They are in the directory that the name is in."""
    result = shell(net, RULES, "ls /.remit; echo x > /etc/nope; cat <>/.remit/why; echo x > /.remit/other")
    assert result.lines[0] == "certificates.pem"
    assert result.lines[1].startswith("Denied by the sandbox: write /etc/nope by ")
    assert "cannot create /.remit/other: Read-only file system" in result.stderr


# --- the secret --------------------------------------------------------------------------------------------------------

SEARCH = """
import glob, itertools
wanted = sys.argv[1].encode()[::-1]
def needle():
    return wanted[::-1]
found = []
def look(name, data):
    if needle() in data:
        found.append(name)
for name, value in os.environ.items():
    look("environment", value.encode())
PLACES = [path for path in glob.glob("/*") + glob.glob("/.*") if path not in ("/proc", "/usr", "/sys")]
for top in PLACES:
    for directory, below, names in os.walk(top):
        below[:] = [name for name in below if not os.path.islink(os.path.join(directory, name))]
        for name in names:
            path = os.path.join(directory, name)
            try:
                status = os.stat(path)
                if stat.S_ISREG(status.st_mode) and status.st_size < 1 << 22:
                    with open(path, "rb") as file:
                        look(path, file.read())
            except OSError:
                pass
for process in glob.glob("/proc/[0-9]*"):
    for name in ("environ", "cmdline", "maps", "status"):
        try:
            look(f"{process}/{name}", open(f"{process}/{name}", "rb").read())
        except OSError:
            pass
    try:
        maps = open(f"{process}/maps").read().splitlines()
        memory = open(f"{process}/mem", "rb", 0)
    except OSError:
        continue
    for line in maps:
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if " r" in line and end - start < 1 << 28 and "[v" not in line:
            try:
                memory.seek(start)
                data = memory.read(end - start)
            except OSError:
                continue
            if process == f"/proc/{os.getpid()}":
                # What this program reads goes through its own memory, and its arguments name what it looks for.
                continue
            look(f"{process}/mem", data)
print(sorted(set(found)))
"""


def search(secret_reversed: str) -> list[str]:
    """A program that looks for a text everywhere it can, without having it in its own arguments."""
    return libc_python(SEARCH.replace("sys.argv[1].encode()[::-1]", f"{secret_reversed!r}.encode()"))


def everywhere(root: Path, ignored: Sequence[Path] = ()) -> list[str]:
    """The files below ``root`` that hold the secret."""
    found: list[str] = []
    for path in root.rglob("*"):
        if path.is_file() and path not in ignored and SECRET.encode() in path.read_bytes():
            found.append(str(path))
    return found


def memory_of(pid: int) -> bytes:
    """A process's memory, from outside, as root."""
    data: list[bytes] = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if " rw" in line and "[v" not in line:
                try:
                    memory.seek(start)
                    data.append(memory.read(end - start))
                except OSError:
                    continue
    return b"".join(data)


ORIGINS = ("env", "file", "command")


@pytest.mark.parametrize("origin", ORIGINS)
def test_the_request_has_the_secret_and_nothing_inside_does(net: Internet, origin: str) -> None:
    world = net.world
    token = world.workspace / "token"  # in what is granted, of all places
    if origin != "env":
        world.give(token).write_text(SECRET + "\n")
    where = {"env": "env:API_TOKEN", "file": f"file:{token}", "command": f"command:cat {token}"}[origin]
    if origin == "command":
        token = world.home / "token"
        (world.workspace / "token").rename(token)
        where = f"command:cat {token}"
    text = RULES + CREDENTIALS.replace("env:API_TOKEN", where).rstrip() + '\nvariable = "API_TOKEN"\n'
    env = {"API_TOKEN": SECRET} if origin == "env" else {}
    script = f"""
    curl -sS -m 20 -H "Authorization: Bearer $API_TOKEN" https://{GRANTED}/v1/models
    curl -sS -m 20 --noproxy '*' https://{GRANTED}/v1/models
    curl -sS -m 20 -H "X: $API_TOKEN" https://{GRANTED}/v2
    curl -sS -m 20 --cacert /etc/ssl/certs/ca-certificates.crt -H "Authorization: Bearer $API_TOKEN" https://{OTHER}/
    sleep 1000 & search
    """
    words = search(SECRET[::-1])
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    result = shell(net, text, script.replace("search", quoted), env=env)
    assert result.status == 0, result
    assert [line.startswith("served by") for line in result.lines] == [True, True, False, True, False], result
    assert result.lines[-1] == "[]"
    assert SECRET not in result.stdout + result.stderr

    told = [what for kind, what in net.seen() if kind == "head"]
    assert [f"authorization: bearer {SECRET}" in one.lower() for one in told] == [True, True, False]
    assert "remit-placeholder-" in told[2]  # another host was told what the program knew

    # The control: the same search finds what is there.
    planted = world.give(world.workspace / "planted")
    planted.write_text("x" + SECRET)
    control = shell(
        net, RULES.partition("[[")[0], f"sleep 1000 & {quoted}", "--env", "PLANTED", env={"PLANTED": SECRET}
    )
    found = control.lines[-1]
    assert str(planted) in found, control
    assert "environment" in found
    assert "/environ" in found
    assert "/mem" in found
    planted.unlink()

    assert everywhere(world.base, [token]) == []
    for command in (
        ["why", "--last"],
        ["audit", "show", "--last"],
        ["report", "--last"],
        ["explain", "-p", profile(net, text)],
    ):
        shown = world.remit(*command, env=env)
        assert SECRET not in shown.stdout + shown.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="looks into the memory of others")
def test_no_process_of_a_session_holds_the_secret_but_its_gateway(net: Internet) -> None:
    code = "print('up', flush=True); sys.stdin.readline()"
    argv = net.world.argv(
        "run", "-p", profile(net, RULES + CREDENTIALS), "-w", str(net.world.workspace), "--", *libc_python(code)
    )
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=net.world.env({"API_TOKEN": SECRET})
    ) as process:
        try:
            assert first_line(process) == "up"
            found: dict[str, list[bool]] = {}
            for pid in descendants(process.pid):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                kind = "gateway" if b"egress.gateway" in command else "inside"
                assert os.sched_getscheduler(pid) == os.SCHED_OTHER
                found.setdefault(kind, []).append(SECRET.encode() in memory_of(pid))
                if kind == "gateway":
                    assert Path(f"/proc/{pid}/environ").read_bytes().strip(b"\0") == b""
                    assert SECRET.encode() not in command
                    status = Path(f"/proc/{pid}/status").read_text()
                    assert "\nNoNewPrivs:\t1" in status
                    # Not dumpable: its files in /proc are root's, whoever it runs as.
                    assert os.stat(f"/proc/{pid}/environ").st_uid == 0
                    assert "\nUid:\t0\t" not in status
            assert os.sched_getscheduler(process.pid) == os.SCHED_BATCH  # it writes down what the gateway says
            assert found["gateway"] == [True]
            assert len(found["inside"]) >= 2
            assert not any(found["inside"])
        finally:
            process.communicate("\n", timeout=TIMEOUT)


# --- sessions ----------------------------------------------------------------------------------------------------------

CALLS = """
import json, os, sys
from remit import Grant, Session
profile, script = sys.argv[1:]
with Session(profile=profile, workspace=os.environ["WORK"]) as running:
    connect = ["granted.example.com:443"]
    for grant in (
        None,
        Grant(read=["."], connect=connect),
        Grant(read=["."], connect=connect, env=["API_TOKEN"]),
        Grant(read=["."]),
        Grant(read=["."], connect=[f"granted.example.com:{port}" for port in (443, 80, 8080)] + ["other.example.com:443"]),
    ):
        result = running.run(["sh", "-c", script], grant=grant, timeout=60)
        print(json.dumps([result.stdout.decode(), result.stderr.decode()]), flush=True)
    refused = None
    try:
        running.run(["true"], grant=Grant(env=["OTHER_TOKEN"]))
    except Exception as error:
        refused = type(error).__name__
    print(json.dumps([refused]))
"""
ASK = """
env | grep -c API_TOKEN=remit-placeholder
curl -sS -m 20 -o /dev/null -w '%{http_code} ' https://granted.example.com/v1/models || true
curl -sS -m 20 -o /dev/null -w '%{http_code} ' https://granted.example.com/v2 || true
curl -sS -m 20 -o /dev/null -w '%{http_code}' https://other.example.com/ || true
"""


def test_calls_of_a_session(net: Internet) -> None:
    """The session's rules hold for every call; a credential serves the calls that were granted its variable."""
    environment = net.world.env({"WORK": str(net.world.workspace), "API_TOKEN": SECRET})
    done = subprocess.run(
        [*net.world.prefix, sys.executable, "-c", CALLS, profile(net, RULES + CREDENTIALS), ASK],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers[0][0] == "1\n200 403 200", answers
    assert answers[1][0] == "0\n200 403 000", answers
    assert answers[2][0] == "1\n200 403 000", answers
    assert answers[3][0] == "0\n000 000 000", answers
    assert answers[4][0] == "0\n200 403 200", answers  # all of the session's network, and not its credential
    assert answers[5] == ["GrantError"]
    told = [what.lower() for kind, what in net.seen() if kind == "head" and "/v1/models" in what]
    assert [f"authorization: bearer {SECRET}" in one for one in told] == [True, False, True, False]
    assert everywhere(net.world.base) == []


def test_a_standing_session(net: Internet) -> None:
    world = net.world
    token = {"API_TOKEN": SECRET}
    started = world.remit(
        "session", "start", "-p", profile(net, RULES + CREDENTIALS), "-w", str(world.workspace), "--json", env=token
    )
    assert started.status == 0, started
    session = json.loads(started.stdout)["session"]
    try:
        # Whoever asks later has no secret, and needs none.
        first = world.remit("exec", session, "--", "sh", "-c", ASK)
        assert first.stdout == "1\n200 403 200", first
        options = ["--connect", f"{GRANTED}:443", "--read", str(world.workspace)]
        assert world.remit("exec", session, *options, "--", "sh", "-c", ASK).stdout == "0\n200 403 000"
        assert (
            world.remit("exec", session, *options, "--env", "API_TOKEN", "--", "sh", "-c", ASK, env=token).stdout
            == "1\n200 403 000"
        )
    finally:
        world.remit("session", "stop", session)
    told = [what.lower() for kind, what in net.seen() if kind == "head" and "/v1/models" in what]
    assert [f"authorization: bearer {SECRET}" in one for one in told] == [True, False, True]
    assert everywhere(world.base) == []
