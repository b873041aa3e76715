"""Grant options become authority through the profiles' own parsers; every error is found, and none is guessed away."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remit.sandbox.authority.errors import GrantError, RemitError
from remit.sandbox.authority.grant import Grant
from remit.sandbox.authority.model import Authority, PathRule, Right
from remit.sandbox.authority.proof import Chain, dump
from remit.sandbox.session import grantfile, keys
from remit.sandbox.session.granted import Granted, granted
from remit.sandbox.session.keys import Own
from remit.sandbox.session.ledger import Ledger
from tests.unit.grants import BOB, reads

READ = frozenset({Right.READ})
CWD = "/home/u/project"

BAD = [
    ("read", "", "empty path"),
    ("write", "", "empty path"),
    ("deny", "", "empty path"),
    ("unix", "", "empty path"),
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


def write_grant(path: Path, *, key: Own | None = None, **more: Any) -> Chain:
    """A signed grant to read /data in ``path``; signed by the user's own key, or by ``key``."""
    fields: dict[str, Any] = {"authority": reads("/data"), "grantor": "me", "principal": "agent", "purpose": "given"}
    fields |= more
    made = (key or keys.own({}, str(path.parent))).add(Grant(**fields))
    path.write_bytes(dump(made))
    path.chmod(0o600)
    return made


@pytest.fixture
def private(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def ask(private: Path, *files: str, now: float = 1000.0) -> tuple[Granted, list[RemitError]]:
    """``--grant FILE...`` at the time ``now``, in the directory that is also the home."""
    options = tuple(("grant", file) for file in files or ("g.json",))
    return granted(options, str(private), now=now, environ={"HOME": str(private)})


def refused(private: Path, *files: str, now: float = 1000.0) -> str:
    """Why ``--grant`` is refused, in one error that has a hint and grants nothing."""
    result, errors = ask(private, *files, now=now)
    assert len(errors) == 1
    assert errors[0].exit_status == 2
    assert errors[0].hint
    assert result.authority == Authority()
    assert result.chains == ()
    return str(errors[0])


def test_a_grant_file_adds_what_it_grants(private: Path) -> None:
    made = write_grant(private / "g.json", expires=1060.0, uses=2)
    result, errors = ask(private)
    assert errors == []
    assert [rule.path for rule in result.authority.paths] == ["/data"]
    assert (result.purpose, result.expires, result.files) == ("given", 60_000, (str(private / "g.json"),))
    assert result.chains == (made,)
    assert Ledger(grantfile.state({}, str(private))).used(made.leaf.id) == 0


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_of_a_limit_the_least_holds(private: Path, order: tuple[str, str]) -> None:
    """Whatever the order of the files, and of the options beside them."""
    write_grant(private / "a", authority=replace(reads("/data"), limits=(("files", 20), ("pids", 7))))
    write_grant(private / "b", authority=replace(reads("/more"), limits=(("files", 500), ("memory", 1 << 30))))
    given = tuple(("grant", name) for name in order)
    for options, files in (
        (given, 20),
        ((("limit", "files=10"), *given), 10),
        ((*given, ("limit", "files=10")), 10),
        ((("limit", "files=300"), *given), 20),
        ((*given, ("limit", "files=300")), 20),
    ):
        result, errors = granted(options, str(private), now=1000.0, environ={"HOME": str(private)})
        assert errors == []
        assert dict(result.authority.limits) == {"files": files, "pids": 7, "memory": 1 << 30}
        assert [rule.path for rule in result.authority.paths] == ["/data", "/more"]


def test_the_same_file_twice_is_one_grant(private: Path) -> None:
    write_grant(private / "g.json")
    assert len(ask(private, "g.json", "./g.json")[0].chains) == 1


def test_a_grant_that_ended_or_has_not_begun_is_refused(private: Path) -> None:
    write_grant(private / "g.json", not_before=900.0, expires=999.0)
    assert ask(private, now=950.0)[1] == []
    assert "expired" in refused(private, now=1000.0)
    assert "not in force before" in refused(private, now=899.0)


def test_a_grant_that_is_not_signed_is_refused(private: Path) -> None:
    made = write_grant(private / "g.json")
    assert ask(private)[1] == []
    (private / "g.json").write_text(json.dumps(made.leaf.to_json()))
    assert "not signed" in refused(private)


def test_a_grant_by_an_unknown_key_is_refused(private: Path) -> None:
    write_grant(private / "g.json", key=BOB)
    assert "is not known here" in refused(private)
    trusted = private / ".config/remit/keys/trusted"
    trusted.mkdir(parents=True, mode=0o700)
    (trusted / "bob.pub").write_text(f"ed25519 {BOB.public}\n")
    (trusted / "bob.pub").chmod(0o600)
    for directory in (trusted, trusted.parent):
        directory.chmod(0o700)
    assert ask(private)[1] == []


def test_a_grant_to_another_user_is_refused(private: Path) -> None:
    write_grant(private / "g.json", principal=f"uid:{os.geteuid() + 1}")
    assert "given to" in refused(private)
    write_grant(private / "g.json", principal=f"uid:{os.geteuid()}")
    assert ask(private)[1] == []


def test_a_grant_to_a_keys_holder_is_the_holders(private: Path) -> None:
    write_grant(private / "g.json", principal=f"key:{BOB.public}")
    assert "given to" in refused(private)
    write_grant(private / "g.json", principal=f"key:{keys.own_public({}, str(private))}")
    assert ask(private)[1] == []


def test_a_grant_of_another_session_is_refused(private: Path) -> None:
    write_grant(private / "g.json", session="s1")
    assert "belongs to session s1" in refused(private)
    path, home = str(private / "g.json"), {"HOME": str(private)}
    assert grantfile.load_grant_file(path, home, session="s1").leaf.session == "s1"
    with pytest.raises(GrantError, match="belongs to session s1, not to session s2"):
        grantfile.load_grant_file(path, home, session="s2")


def test_a_grant_to_a_name_is_whoevers_a_session_says_it_is(private: Path) -> None:
    write_grant(private / "g.json", principal="tool")
    path, home = str(private / "g.json"), {"HOME": str(private)}
    assert grantfile.load_grant_file(path, home, principal="tool").leaf.principal == "tool"
    assert grantfile.load_grant_file(path, home).leaf.principal == "tool"
    with pytest.raises(GrantError, match="given to 'tool', not to 'other'"):
        grantfile.load_grant_file(path, home, principal="other")


def test_a_revoked_grant_is_refused(private: Path) -> None:
    made = write_grant(private / "g.json")
    assert ask(private)[1] == []
    Ledger(grantfile.state({}, str(private))).revoke(made.leaf.id)
    assert "revoked" in refused(private)


def test_a_grant_file_that_others_can_write_is_refused(private: Path) -> None:
    write_grant(private / "g.json")
    assert ask(private)[1] == []
    (private / "g.json").chmod(0o666)
    assert "everybody" in refused(private)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000, "\xff", '{"schema": "remit.grant-file/2"}'])
def test_what_is_no_grant_is_refused(private: Path, text: str) -> None:
    path = private / "g.json"
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)
    _, errors = ask(private)
    assert len(errors) == 1
    assert errors[0].exit_status == 2
