"""From a profile to authority: placeholders, rights, patterns, the floor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.profiles.errors import ProfileError
from remit.profiles.expand import Context, Expanded, expand
from remit.profiles.model import Profile
from remit.profiles.parse import parse
from remit.sandbox.authority.model import Authority, AutoExec, PathPattern, PathRule, Right
from remit.sandbox.authority.web import Credential, HttpRule

R, W, X = Right.READ, Right.WRITE, Right.EXEC
CONTEXT = Context("/w", "/home/u", "/run/user/1", ("/home/u/tools", "/srv/node"))


def expanded(body: str, context: Context = CONTEXT) -> Expanded:
    text = parse(f'format = 1\nname = "x"\n{body}'.encode(), "x.toml")
    return expand(Profile("x", "", "x.toml", (), text.entries), context)


def rule(path: str, *rights: Right, optional: bool = False) -> PathRule:
    return PathRule(path, frozenset(rights), optional)


def test_nothing_said_is_nothing_granted() -> None:
    result = expanded("")
    assert result.floor == Authority()
    assert result.authority == Authority()
    assert (result.degrade, result.audit, result.audit_on_full, result.on_expiry) == ((), "writes", "deny", "kill")
    assert result.package_index == ()
    assert result.notes == ()


def test_rights() -> None:
    body = """[filesystem]
read = ["/r"]
write = ["/w"]
exec = ["/x"]
read_if_present = ["/ro"]
write_if_present = ["/wo"]
exec_if_present = ["/xo"]
[exec]
allow = ["/bin/tool"]
"""
    assert expanded(body).authority.paths == (
        rule("/r", R),
        rule("/w", R, W),
        rule("/x", R, X),
        rule("/ro", R, optional=True),
        rule("/wo", R, W, optional=True),
        rule("/xo", R, X, optional=True),
        rule("/bin/tool", R, X),
    )


def test_placeholders() -> None:
    body = 'filesystem.read = ["{workspace}", "{workspace}/a//b/", "~", "~/x", "{home}/y", "{runtime}/bus"]\n'
    paths = [one.path for one in expanded(body).authority.paths]
    assert paths == ["/w", "/w/a/b", "/home/u", "/home/u/x", "/home/u/y", "/run/user/1/bus"]


def test_toolchains_are_read_and_executed_and_never_written() -> None:
    for key in ("read", "exec"):
        paths = expanded(f'filesystem.{key} = ["{{toolchains}}"]\nfilesystem.write = ["/w"]\n').authority.paths
        tools = [one for one in paths if one.path != "/w"]
        assert tools == [rule("/home/u/tools", R, X, optional=True), rule("/srv/node", R, X, optional=True)]


def test_a_placeholder_without_a_value_grants_nothing_and_is_noted() -> None:
    result = expanded('[filesystem]\nread = ["{runtime}/x", "/r"]\ndeny = ["~/.ssh"]\n', Context("/w"))
    assert result.authority.paths == (rule("/r", R),)
    assert result.authority.deny == ()
    assert len(result.notes) == 2
    assert result.notes[0].startswith("x.toml:4 filesystem.read: {runtime}/x")


def test_patterns() -> None:
    body = """[filesystem]
deny = ["{workspace}", "{workspace}/.env", "{workspace}/**/.env", "**/id_rsa", "~/a/b", "/x/**/c/d"]
protect = ["{workspace}/.github"]
"""
    authority = expanded(body).authority
    assert authority.deny == (
        PathPattern("/", ("w",)),
        PathPattern("/w", (".env",)),
        PathPattern("/w", (".env",), True),
        PathPattern("/", ("id_rsa",), True),
        PathPattern("/home/u/a", ("b",)),
        PathPattern("/x", ("c", "d"), True),
    )
    assert authority.protect == (PathPattern("/w", (".github",)),)
    assert authority.deny[1].source.line == 4


@given(st.text(alphabet="ab*?[]{}~. ", min_size=1, max_size=12).filter(lambda name: name not in (".", "..")))
def test_no_character_in_a_workspaces_name_means_anything(name: str) -> None:
    body = 'filesystem.write = ["{workspace}/x"]\nfilesystem.deny = ["{workspace}/.env", "{workspace}/**/y"]\n'
    authority = expanded(body, Context(f"/{name}")).authority
    assert authority.paths[0].path == f"/{name}/x"
    assert authority.deny == (PathPattern(f"/{name}", (".env",)), PathPattern(f"/{name}", ("y",), True))


def test_the_root_directory_as_home() -> None:
    result = expanded('filesystem.read = ["~", "~/x"]\nfilesystem.deny = ["~/y"]\n', Context("/w", "/"))
    assert [one.path for one in result.authority.paths] == ["/", "/x"]
    assert result.authority.deny == (PathPattern("/", ("y",)),)
    with pytest.raises(ProfileError, match="root directory"):
        expanded('filesystem.deny = ["~"]\n', Context("/w", "/"))


@pytest.mark.parametrize(
    "context", [Context(""), Context("w"), Context("/w", "home"), Context("/w", "/h", "", ("bin",))]
)
def test_a_context_is_absolute(context: Context) -> None:
    with pytest.raises(ValueError, match=r"absolute|workspace"):
        expanded("", context)


def test_floor_is_apart() -> None:
    body = """[floor]
exec_if_present = ["/usr"]
read = ["/etc/hosts"]
pass = ["PATH", "TMP"]
devices = ["null"]
[floor.set]
TMPDIR = "/tmp"
LANG = "C"
[environment]
set = { TMPDIR = "{workspace}/tmp" }
pass = ["LANG"]
"""
    result = expanded(body)
    assert result.floor.paths == (rule("/usr", R, X, optional=True), rule("/etc/hosts", R))
    assert result.floor.devices == ("null",)
    # One value for a variable that both name, whichever is asked.
    assert result.floor.environment == (("LANG", None), ("PATH", None), ("TMP", None), ("TMPDIR", "/w/tmp"))
    assert result.authority.environment == (("LANG", None), ("TMPDIR", "/w/tmp"))
    assert result.authority.paths == ()


def test_braces_in_a_value_are_text_but_for_placeholders() -> None:
    body = 'environment.set = { A = "{workspace}:{home}/b", B = "{\\"x\\": {}}", C = "{toolchains}" }\n'
    assert dict(expanded(body).authority.environment) == {"A": "/w:/home/u/b", "B": '{"x": {}}', "C": "{toolchains}"}


def test_the_other_tables() -> None:
    body = """[filesystem]
auto_exec = "allow"
[network]
connect = ["{package_index}", "*.Example.com:443", "{package_index:pip}", "10.0.0.0/8:5432/udp"]
listen = [3000, "8080"]
loopback = false
[limits]
memory = "1GiB"
cpu = 1.5
time = "1h30m"
pids = 12
[ipc]
unix = ["{runtime}/bus"]
[syscalls]
allow = ["perf", "bpf"]
[devices]
allow = ["kvm"]
[audit]
level = "full"
on_full = "stop"
[enforcement]
on_expiry = "freeze"
degrade = ["limits", "canary"]
"""
    result = expanded(body)
    authority = result.authority
    assert authority.auto_exec is AutoExec.ALLOW
    assert [str(one) for one in authority.connect] == ["*.example.com:443/tcp", "10.0.0.0/8:5432/udp"]
    assert [entry.value for entry in result.package_index] == ["{package_index}", "{package_index:pip}"]
    assert authority.listen == (3000, 8080)
    assert authority.loopback is False
    assert dict(authority.limits) == {"memory": 1 << 30, "cpu": 1500, "time": 5_400_000, "pids": 12}
    assert authority.unix == ("/run/user/1/bus",)
    assert authority.syscalls == ("bpf", "perf")
    assert authority.devices == ("kvm",)
    assert (result.audit, result.audit_on_full, result.degrade) == ("full", "stop", ("canary", "limits"))
    assert result.on_expiry == "freeze"


def test_http_rules_and_credentials() -> None:
    body = """[network]
connect = ["api.example.com:443", "*.wild.example:443"]
[[network.http]]
host = "API.example.com"
methods = ["GET", "HEAD", "GET"]
paths = ["/v1"]
[[network.http]]
host = "*.wild.example"
[[network.http]]
host = "other.example"
[[credentials]]
host = "api.example.com"
header = "Authorization: Bearer {}"
from = "env:API_TOKEN"
[[credentials]]
host = "x.wild.example"
query = "key"
from = "file:~/token"
variable = "KEY"
"""
    result = expanded(body)
    assert result.http == (
        HttpRule("api.example.com", methods=("GET", "HEAD"), paths=("/v1",)),
        HttpRule("wild.example", wildcard=True),
        HttpRule("other.example"),
    )
    assert result.credentials == (
        Credential("api.example.com", "authorization", "", "env", "API_TOKEN", "API_TOKEN", "Bearer {}"),
        Credential("x.wild.example", "", "key", "file", "~/token", "KEY"),
    )
    assert [str(rule.source) for rule in result.http] == [
        "x.toml:5 network.http",
        "x.toml:9 network.http",
        "x.toml:11 network.http",
    ]
    assert len(result.notes) == 1
    assert "other.example is not granted by network.connect" in result.notes[0]
    assert "s3cret" not in repr(result.credentials)
