"""Grant options become authority through the profiles' own parsers; every error is found, and none is guessed away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remit.sandbox.authority.grant import Grant
from remit.sandbox.authority.model import Authority, PathRule, Right
from remit.sandbox.session.granted import granted

READ = frozenset({Right.READ})
CWD = "/home/u/project"

BAD = [
    ("read", "a/../b", "'..'"),
    ("read", "/a/../b", "'..'"),
    ("deny", "~/.ssh", "did not expand"),
    ("read", "~", "did not expand"),
    ("read", "a\nb", "control character"),
    ("read", "/" + "x" * 300, "longer than"),
    ("read", "/" + "x/" * 3000, "longer than"),
    ("write", "/tmp/\x1b[2J", "control character"),
    ("exec", "\x00", "control character"),
    ("deny", "/", "everything away"),
    ("deny", "*.pem", "glob"),
    ("deny", "/a/**", "ends in"),
    ("deny", "**/a/**/b", "more than once"),
    ("protect", "/x[ab]", "glob"),
    ("protect", "../..//../../", "everything away"),
    ("connect", "example.com", "no port"),
    ("connect", "https://example.com/x", "URL"),
    ("connect", "u@example.com:443", "user information"),
    ("connect", "example.com:0", "port"),
    ("connect", "example.com:99999", "port"),
    ("connect", "example.com:https", "port"),
    ("connect", "example.com:443/sctp", "protocol"),
    ("connect", "a.*.com:443", "'*'"),
    ("connect", "0x7f.1:80", "0x7f.1"),
    ("connect", "::1:80", "colon"),
    ("connect", "ex ample.com:80", "space"),
    ("connect", "10.0.0.0/33:80", "10.0.0.0/33"),
    ("listen", "0", "port"),
    ("listen", "-1", "port"),
    ("listen", "70000", "port"),
    ("listen", "http", "port"),
    ("listen", "080", "leading zeros"),
    ("unix", "a/../b", "'..'"),
    ("env", "1A=x", "malformed"),
    ("env", "=x", "empty"),
    ("env", "A-B", "malformed"),
    ("limit", "memory", "no value"),
    ("limit", "mem=1GiB", "unknown limit"),
    ("limit", "memory=1GB", "unit"),
    ("limit", "memory=", "empty"),
    ("limit", "memory=0", "zero"),
    ("limit", "pids=many", "whole number"),
    ("limit", "time=5", "no unit"),
    ("limit", "time=-5s", "whole number"),
    ("limit", "cpu=1.2345", "decimals"),
    ("allow-syscalls", "ptrace", "unknown group"),
    ("expires", "tomorrow", "duration"),
    ("expires", "0s", "zero"),
    ("expires", "1d", "unit"),
    ("degrade", "everything", "unknown layer"),
    ("degrade", "Landlock", "unknown layer"),
    ("grant", "/nonexistent/grant.json", "no such"),
]


@pytest.mark.parametrize(("option", "value", "says"), BAD)
def test_a_bad_value_is_one_error_with_its_option_or_file(option: str, value: str, says: str) -> None:
    result, errors = granted(((option, value),), CWD)
    assert len(errors) == 1
    assert errors[0].exit_status == 2
    assert says.lower() in str(errors[0]).lower()
    assert errors[0].where == f"--{option}" or option == "grant"
    assert result.authority == Authority()


def test_every_error_is_found_at_once() -> None:
    _, errors = granted(tuple((option, value) for option, value, _ in BAD), CWD)
    assert len(errors) == len(BAD)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a", "/home/u/project/a"),
        (".", "/home/u/project"),
        ("./a//b/", "/home/u/project/a/b"),
        ("..", "/home/u"),
        ("../other", "/home/u/other"),
        ("../../../../..", "/"),
        ("../../../../../etc", "/etc"),
        ("/x/./y", "/x/y"),
        ("-a", "/home/u/project/-a"),
        ("a b", "/home/u/project/a b"),
        ("./~/x", "/home/u/project/~/x"),
    ],
)
def test_paths_are_relative_to_the_current_directory(text: str, path: str) -> None:
    result, errors = granted((("read", text),), CWD)
    assert errors == []
    assert result.authority.paths == (PathRule(path, READ),)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (".env", "/home/u/project/.env"),
        ("**/.env", "/**/.env"),
        ("src/**/secret", "/home/u/project/src/**/secret"),
        ("/x/**/a/b", "/x/**/a/b"),
        ("../**/k", "/home/u/**/k"),
    ],
)
def test_patterns_are_relative_but_for_a_leading_double_star(text: str, shown: str) -> None:
    result, errors = granted((("deny", text), ("protect", text)), CWD)
    assert errors == []
    assert [str(one) for one in result.authority.deny] == [shown]


def test_each_option_says_where_it_came_from() -> None:
    result, _ = granted((("read", "/x"), ("deny", "/y"), ("connect", "a.example:443")), CWD)
    assert str(result.authority.paths[0].source) == "command line --read"
    assert str(result.authority.deny[0].source) == "command line --deny"
    assert str(result.authority.connect[0].source) == "command line --connect"


def test_values_that_are_not_paths() -> None:
    options = (
        ("env", "A"),
        ("env", "B=x=y"),
        ("env", "C="),
        ("limit", "memory=1GiB"),
        ("limit", "memory=2GiB"),
        ("limit", "time=1h30m"),
        ("listen", "3000"),
        ("allow-syscalls", "perf"),
        ("degrade", "limits"),
        ("degrade", "limits"),
        ("expires", "90s"),
        ("purpose", "fix the bug"),
    )
    result, errors = granted(options, CWD)
    assert errors == []
    assert dict(result.authority.environment) == {"A": None, "B": "x=y", "C": ""}
    assert dict(result.authority.limits) == {"memory": 2 << 30, "time": 5_400_000}
    assert result.authority.listen == (3000,)
    assert result.authority.syscalls == ("perf",)
    assert (result.degrade, result.expires, result.purpose) == (("limits",), 90_000, "fix the bug")


def write_grant(path: Path, *, expires: float | None = None, uses: int | None = None) -> Path:
    grant = Grant(
        authority=Authority(paths=(PathRule("/data", READ),)),
        grantor="me",
        principal="agent",
        purpose="given",
        expires=expires,
        uses=uses,
    )
    path.write_text(json.dumps(grant.to_json()))
    path.chmod(0o600)
    return path


@pytest.fixture
def private(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def test_a_grant_file_adds_what_it_grants(private: Path) -> None:
    path = write_grant(private / "g.json", expires=1060.0)
    result, errors = granted((("grant", "g.json"),), str(private), now=1000.0)
    assert errors == []
    assert [rule.path for rule in result.authority.paths] == ["/data"]
    assert (result.purpose, result.expires, result.files) == ("given", 60_000, (str(path),))


def test_a_grant_that_ended_or_has_not_begun_is_refused(private: Path) -> None:
    write_grant(private / "g.json", expires=999.0)
    _, errors = granted((("grant", "g.json"),), str(private), now=1000.0)
    assert "not in force" in str(errors[0])


def test_a_grant_that_counts_uses_is_refused(private: Path) -> None:
    write_grant(private / "g.json", uses=1)
    result, errors = granted((("grant", "g.json"),), str(private), now=1000.0)
    assert "counts uses" in str(errors[0])
    assert result.authority == Authority()


def test_a_grant_file_that_others_can_write_is_refused(private: Path) -> None:
    write_grant(private / "g.json").chmod(0o666)
    result, errors = granted((("grant", "g.json"),), str(private), now=1000.0)
    assert "everybody" in str(errors[0])
    assert errors[0].exit_status == 2
    assert result.authority == Authority()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000, "\xff", '{"schema": "remit.grant/2"}'])
def test_what_is_no_grant_is_refused(private: Path, text: str) -> None:
    path = private / "g.json"
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)
    _, errors = granted((("grant", "g.json"),), str(private), now=1000.0)
    assert len(errors) == 1
    assert errors[0].exit_status == 2
