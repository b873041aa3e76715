"""``remit why`` over made-up records: what decided each denial, what would allow it, and records that are not whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from remit.cli import main
from remit.sandbox.audit import log, network, why
from remit.sandbox.audit.decide import Decider
from remit.sandbox.audit.record import Record, keep_plan
from remit.sandbox.authority import codec
from remit.sandbox.authority.errors import UsageError
from remit.sandbox.authority.model import Authority, PathPattern, Source
from remit.sandbox.kernel.call import NR

SCHEMA = Path(main.__file__).parent / "schemas" / "why.schema.json"
AUTHORITY = Authority(
    deny=(
        PathPattern("/home/u", (".ssh",), source=Source("/p/readonly.toml", 19, "filesystem.deny")),
        PathPattern("/", ("secret",), True, Source("command line", 0, "--deny")),
    ),
    protect=(PathPattern("/w", (".github",), source=Source("/p/coding.toml", 46, "filesystem.protect")),),
)
PLAN = {
    "grant": {"authority": codec.to_json(AUTHORITY)},
    "plan": {
        "operations": [
            {"op": "bind", "layer": "namespaces"},
            {"op": "landlock", "layer": "landlock"},
            {"op": "mediate", "layer": "mediation"},
        ]
    },
}
Action = tuple[object, ...]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made = str(tmp_path / "remit")
    keep_plan(made, "d", json.dumps(PLAN))
    return made


def denial(
    object_: str,
    rule: str,
    *,
    call: str = "openat",
    right: str = "write",
    errno: int = 13,
    verdict: str = "denied",
    certainty: str = "denied",
) -> Action:
    name = object_.encode("utf-8", "surrogateescape")
    if rule == "nothing grants it":
        errno = 0  # the kernel's to choose
    return (1.0, 3, 7, b"/usr/bin/sh", NR.get(call, 9999), name, right, verdict, certainty, "mediation", errno, rule)


def refused(call: str, rule: str = "system call 1 is refused") -> Action:
    return denial("", rule, call=call, right="call", errno=1)


def session(state: str, *actions: Action, ended: bool = True) -> Record:
    record = Record(state, "d", {"argv": ["sh", "-c", "true"]})
    for action in actions:
        record.actions([action])
    if ended:
        record.ended({"status": 1})
    return record


def json_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main.run(["why", *argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    return found


def one(state: str, event: Action, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found = json_of([session(state, event).identifier], capsys)["denials"]
    assert len(found) == 1
    only: dict[str, Any] = found[0]
    return only


def test_a_deny_names_its_line_and_no_grant(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = one(state, denial("/home/u/.ssh/id", "/home/u/.ssh", right="read"), capsys)
    assert (found["kind"], found["source"], found["grant"]) == ("deny", "/p/readonly.toml:19 filesystem.deny", [])
    assert (found["call"], found["errno"], found["layers"]) == ("openat", "EACCES", ["mediation"])
    assert "editing the line" in found["note"]


def test_an_option_that_denies_is_left_out(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = one(state, denial("/w/a/secret", "/**/secret"), capsys)
    assert (found["source"], found["grant"]) == ("command line --deny", [])
    assert "leave that option out" in found["note"]


def test_a_protect_names_its_line(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = one(state, denial("/w/.github/x", "/w/.github"), capsys)
    assert (found["kind"], found["source"]) == ("protect", "/p/coding.toml:46 filesystem.protect")
    assert found["grant"] == []


@pytest.mark.parametrize(
    ("name", "rule", "opens"),
    [
        (".envrc", "auto_exec .envrc", True),
        (".git/hooks/pre-commit", "auto_exec git hook pre-commit", True),
        (".git/config", "auto_exec git config: core.pager", False),
    ],
)
def test_auto_executed_files_are_granted_by_their_own_name_once_they_are_there(
    state: str, tmp_path: Path, name: str, rule: str, opens: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--write`` of what is not there would be refused: the file is to be made first. And as ``why -p`` says, so say all."""
    path = tmp_path / name
    for there in (False, True):
        if there:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        found = one(state, denial(str(path), rule), capsys)
        assert (found["kind"], found["source"]) == ("auto-exec", None)
        assert found["grant"] == (["--write", str(path)] if there and opens else [])
        assert found["note"].startswith("protected as auto-executed")
        assert (f"make it, then --write {path}" in found["note"]) is (opens and not there)
        assert (f"make it, then --write {path}" in found["message"]) is (opens and not there)
        if name == ".git/config":
            continue  # what is written to it decides, which only a record knows
        assert main.run(["why", "-p", "coding", "-w", str(tmp_path), str(path), "--json"]) == 0
        would = json.loads(capsys.readouterr().out)["answers"][1]
        assert (would["kind"], would["grant"], would["note"]) == ("auto-exec", found["grant"], found["note"])


def test_a_grant_of_a_project_is_no_advice_for_what_is_protected_in_it(
    state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".git/hooks").mkdir(parents=True)
    found = one(state, denial(str(tmp_path / ".envrc"), "nothing grants it"), capsys)
    assert (found["grant"], f"make it, then --write {tmp_path}/.envrc" in found["note"]) == ([], True)
    found = one(state, denial(str(tmp_path / ".git/hooks/pre-commit"), "nothing grants it"), capsys)
    assert found["grant"] == ["--write", f"{tmp_path}/.git/hooks"]
    found = one(state, denial(str(tmp_path / "other"), "nothing grants it"), capsys)
    assert found["grant"] == ["--write", str(tmp_path)]


def test_what_nothing_grants_can_be_granted(state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there"
    there.touch()
    found = one(state, denial(str(there), "nothing grants it"), capsys)
    assert (found["kind"], found["grant"]) == ("ungranted", ["--write", str(there)])
    assert (found["layers"], found["errno"]) == (["namespaces", "landlock"], None)
    found = one(state, denial(str(there), "nothing grants it", call="execve", right="exec"), capsys)
    assert found["grant"] == ["--exec", str(there)]
    found = one(state, denial(str(tmp_path / "absent"), "nothing grants it"), capsys)
    assert found["grant"] == ["--write", str(tmp_path)]
    found = one(state, denial(str(tmp_path / "a" / "b c"), "nothing grants it"), capsys)
    assert found["grant"] == []
    assert f"--write '{tmp_path}/a/b c'" in found["note"]


@pytest.mark.parametrize(
    ("object_", "right", "note"),
    [
        ("/home/u/.ssh/new", "write", "deny wins"),
        ("/x/secret/y", "exec", "deny wins"),
        ("/w/.github", "write", "protect wins"),
        ("/tmp/x/.vscode/settings.json/x", "write", "a grant would not do"),
        ("/proc/sys/kernel/hostname", "write", "not grantable"),
        ("127.0.0.1:80", "connect", "a loopback of its own"),
        ("/run/x.sock", "connect", "make it, then --unix /run/x.sock"),
        ("//odd", "write", "not grantable by that name"),
        ("/absent", "write", "make it, then --write /absent"),
    ],
)
def test_no_grant_is_offered_that_would_not_do(
    state: str, object_: str, right: str, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = one(state, denial(object_, "nothing grants it", right=right), capsys)
    assert (found["kind"], found["grant"]) == ("ungranted", [])
    assert note in found["note"]


@pytest.mark.parametrize(
    ("object_", "endpoint"),
    [
        ("192.0.2.1:80", "192.0.2.1:80"),
        ("[2001:db8:0:0:0:0:0:1]:443", "[2001:db8::1]:443"),
        ("[0:0:0:0:0:ffff:c000:201]:443", "192.0.2.1:443"),
    ],
)
def test_a_connection_can_be_granted(
    state: str, object_: str, endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = one(state, denial(object_, "nothing grants it", call="connect", right="connect"), capsys)
    assert (found["kind"], found["grant"]) == ("ungranted", ["--connect", endpoint])
    assert found["toml"] == f'[network]\nconnect = ["{endpoint}"]'


def heard(name: str, verdict: str, reason: str, grant: str, call: str = "") -> tuple[object, ...]:
    """What a gateway reports."""
    right = "request" if "://" in name else "connect" if ":" in name else "resolve"
    return (call, right, name, verdict, reason, "", "transparent", 0, 0, 0, grant)


@pytest.mark.parametrize(
    ("event", "kind", "grant", "note"),
    [
        (heard("h.example:443/tcp", "denied", "no rule grants it", "h.example:443"), "ungranted", "h.example:443", ""),
        (heard("h.example", "denied", "no rule grants the name", ""), "ungranted", "", "--connect h.example:PORT"),
        (
            heard("h.example:80/tcp", "denied", "not of the internet (10.0.0.5 is private)", "10.0.0.5:80"),
            "refused",
            "10.0.0.5:80",
            "",
        ),
        (heard("h.example:443/tcp", "denied", "another SNI", ""), "refused", "", "not grantable"),
        (
            heard("GET https://h.example/x", "denied", "no HTTP rule allows it", 'host = "h"'),
            "ungranted",
            "",
            "HTTP rule",
        ),
    ],
)
def test_what_the_gateway_refused(
    state: str, event: tuple[object, ...], kind: str, grant: str, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record(state, "d", {"argv": ["x"]})
    record.lines([network.line(event, "1", record.identifier, 1.0, 1.0)])
    record.ended({"status": 1})
    (found,) = json_of([record.identifier], capsys)["denials"]
    assert (found["kind"], found["layers"]) == (kind, ["gateway"])
    assert found["grant"] == (["--connect", grant] if grant else [])
    assert note in found["note"]
    assert (found["toml"] or "").endswith('http = [{ host = "h" }]') == ("HTTP" in note)


def test_protect_does_not_stand_in_the_way_of_exec(state: str) -> None:
    identifier = session(state, denial("/w/.github/run", "nothing grants it", call="execve", right="exec")).identifier
    read = log.read(state, identifier)
    (equal,) = why.grouped(read.events)

    def exists(_: str) -> bool:
        return True

    assert why.explain(equal, Decider.of_plan(read.plan), frozenset(), exists).grant == ("--exec", "/w/.github/run")


@pytest.mark.parametrize(
    ("call", "rule", "grant"),
    [
        ("unshare", "system call 272 is refused", ["--allow-syscalls", "nested-userns"]),
        ("clone", "system call 56 is refused", ["--allow-syscalls", "nested-userns"]),
        ("keyctl", "system call 250 is refused", ["--allow-syscalls", "keyring"]),
        ("mount", "system call 165 is refused", []),
        ("openat", "system call 257 is refused", []),
        ("unshare", "system call 272 is not mediated", []),
        ("no such call", "system call 9999 is refused", []),
    ],
)
def test_refused_calls(state: str, call: str, rule: str, grant: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = one(state, refused(call, rule), capsys)
    assert (found["kind"], found["grant"], found["layers"], found["errno"]) == ("call", grant, ["seccomp"], "EPERM")
    assert found["note"] == ("" if grant else "not grantable")
    assert found["call"] == (call if call in NR else "9999")


def test_setuid_modes_and_the_mediators_own_faults(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = one(state, denial("/w/x", "setuid and setgid modes are refused", call="fchmodat", right="setuid"), capsys)
    assert (found["kind"], found["grant"], found["note"]) == ("refused", [], "not grantable")
    found = one(state, denial("", "KeyError: 1", right="", verdict="error"), capsys)
    assert (found["kind"], found["grant"]) == ("error", [])


def test_equal_denials_are_one_with_a_count(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = session(state, refused("mount"), denial("/w/.github", "/w/.github"), refused("mount"))
    found = json_of([record.identifier], capsys)
    assert [entry["count"] for entry in found["denials"]] == [2, 1]
    assert found["denials"][0]["events"] == [f"{record.identifier}:2", f"{record.identifier}:4"]
    assert (found["command"], found["ended"], found["torn"]) == (["sh", "-c", "true"], True, False)
    assert main.run(["why", record.identifier]) == 0
    printed = capsys.readouterr().out
    assert "mount (2 times)" in printed
    assert "/p/coding.toml:46" in printed


def test_one_event_by_its_number(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = session(state, refused("mount"), refused("mount"))
    found = json_of([f"{record.identifier}:3"], capsys)
    assert [entry["events"] for entry in found["denials"]] == [[f"{record.identifier}:3"]]
    assert main.run(["why", f"{record.identifier}:1"]) == 2
    assert f"hint: remit why {record.identifier}" in capsys.readouterr().err


def test_last_is_the_one_that_started_last(
    state: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = iter(["20260101T000000-ffffffffff", "20260102T000000-bbbbbbbbbb", "20260102T000000-aaaaaaaaaa"])
    monkeypatch.setattr("remit.sandbox.audit.record.new_identifier", lambda: next(names))
    for _ in range(3):
        session(state)
    os.mkdir(f"{state}/sessions/zzz")
    assert json_of(["--last"], capsys)["session"] == "20260102T000000-aaaaaaaaaa"


def test_no_denials_is_no_error(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    session(state)
    assert main.run(["why", "--last"]) == 0
    assert "nothing was denied" in capsys.readouterr().out


def test_a_torn_last_line_is_tolerated_and_said(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = session(state, refused("mount"), ended=False)
    with open(f"{record.path}/events.jsonl", "ab") as file:
        file.write(b'{"id":"x","kind":"den\xc3')
    found = json_of([record.identifier], capsys)
    assert (found["torn"], found["ended"], len(found["denials"])) == (True, False, 1)
    assert main.run(["why", record.identifier]) == 0
    assert "last line is not whole" in capsys.readouterr().out


def test_a_killed_session_is_said(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    session(state, ended=False)
    assert main.run(["why", "--last"]) == 0
    assert "no end" in capsys.readouterr().out


def test_names_cannot_forge_lines(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = session(state, denial("/w/.github/\x1b[2J\n  grant    --write /\udcff", "/w/.github"))
    assert json_of([record.identifier], capsys)["denials"][0]["object"].endswith("\udcff")
    assert main.run(["why", record.identifier]) == 0
    printed = capsys.readouterr().out
    assert "\x1b[2J" not in printed
    assert [line.strip() for line in printed.splitlines() if line.strip().startswith("grant")] == ["grant    none"]


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--last", "20260101T000000-aaaaaaaaaa"],
        ["20260101T000000-aaaaaaaaaa"],
        ["20260101T000000-aaaaaaaaaa:0"],
        ["20260101T000000-aaaaaaaaaa:x"],
        ["20260101T000000-aaaaaaaaa"],
        ["example.com"],
        [""],
    ],
)
def test_bad_arguments_exit_2_with_the_hint(state: str, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["why", *argv]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "hint: remit why --last" in told.err or "hint: remit session list --all" in told.err


@pytest.mark.parametrize(
    "words", [["src/a.py"], ["a.py"], ["./a.py"], ["src/absent"], ["src"], ["h/443"], ["h:443/icmp"]]
)
def test_paths_are_relative_to_where_one_is(
    state: str, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "src").mkdir()
    for name in ("src/a.py", "a.py"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    session(state, denial(str(tmp_path / os.path.normpath(words[0])), "/**/secret"))
    assert main.run(["why", *words]) == 0
    assert f"write {tmp_path}/{os.path.normpath(words[0])}" in capsys.readouterr().out
    assert main.run(["why", "-p", "offline", *words]) == 0
    assert f"{tmp_path}/{os.path.normpath(words[0])} under profile offline" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["absent"], ["example.com"], ["h h:443"], ["h:0"], ["h:99999"], [":443"]])
def test_what_is_neither_a_path_nor_an_endpoint_is_said_so(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["why", "-p", "offline", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "internal" not in told.err
    assert "hint: " in told.err


def test_an_id_may_be_abbreviated_wherever_a_session_is_named(
    state: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    names = iter(["20260101T000000-aaaaaaaaab", "20260101T000001-aaaaaaaaac"])
    monkeypatch.setattr("remit.sandbox.audit.record.new_identifier", lambda: next(names))
    one, other = (session(state, denial("/w/a/secret", "/**/secret")).identifier for _ in range(2))
    for short in (one[-10:], "aab", "20260101T000000", one):
        for words in (
            ["why"],
            ["report"],
            ["audit", "show"],
            ["audit", "verify"],
            ["audit", "export"],
            ["session", "show"],
        ):
            assert main.run([*words, short]) in (0, 1), words
            printed = capsys.readouterr().out
            assert one in printed
            assert other not in printed
    assert main.run(["why", f"{one[-10:]}:2"]) == 0
    assert one in capsys.readouterr().out
    for words in (["why"], ["report"], ["audit", "show"], ["session", "show"]):
        assert main.run([*words, "20260101T0"]) == 2
        assert f"could be {one}, {other}" in capsys.readouterr().err
        assert main.run([*words, "ffff"]) == 2
        assert "hint: remit session list --all" in capsys.readouterr().err


def test_last_without_any_session(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["why", "--last"]) == 2
    assert "no session is recorded" in capsys.readouterr().err
    with pytest.raises(UsageError):
        log.latest(state)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "{",
        "{}",
        '{"kind":"action"}',
        '{"kind":"action","id":"x:y"}',
        '{"kind":"started","argv":1}',
        "[" * 9999,
    ],
)
def test_a_malformed_record_is_an_error_with_its_place(
    state: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = session(state)
    with open(f"{record.path}/events.jsonl", "a") as file:
        file.write(line + "\n")
    assert main.run(["why", record.identifier]) == 125
    told = capsys.readouterr().err
    assert f"{record.path}/events.jsonl" in told
    assert "internal error" not in told


@pytest.mark.parametrize("text", ["", "{}", "[]", "[" * 9999, '{"grant":{"authority":{"deny":[{}],"protect":[]}}}'])
def test_a_malformed_plan_is_an_error_with_its_place(state: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = session(state)
    Path(f"{record.path}/plan.json").write_text(text)
    assert main.run(["why", record.identifier]) == 125
    told = capsys.readouterr().err
    assert f"{record.path}/plan.json" in told
    assert "internal error" not in told


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--axis", "foo"], "one of: filesystem, network, exec, ipc, syscalls"),
        (["--axis", ""], "one of: filesystem"),
        (["--call", "zzz"], "one of: 1"),
        (["--call", "2"], "one of: 1"),
    ],
)
def test_events_of_what_there_is_not_are_not_none(
    state: str, words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = session(state, denial("/w/a/secret", "/**/secret"))
    assert main.run(["audit", "show", record.identifier, *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert f"hint: {hint}" in told.err
    for right in (["--axis", "network"], ["--call", "1"], ["--axis", "filesystem"]):
        assert main.run(["audit", "show", record.identifier, *right, "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["events"]) == (right[1] != "network")
