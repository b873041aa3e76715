"""Failures: one line a problem, hints, the right status, and never a traceback unless it is asked for."""

from __future__ import annotations

import pytest

from remit.cli import fail, fast, main, options
from remit.profiles.errors import Problem, ProfileError
from remit.sandbox.authority.errors import GrantError, LaunchError, RemitError, Unenforceable, UsageError
from remit.sandbox.session.errors import Several


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("x"), 2),
        (GrantError("x"), 2),
        (ProfileError((Problem("f", 1, "k", "x"),)), 2),
        (Unenforceable("x"), 125),
        (LaunchError("x"), 125),
        (RemitError("x"), 125),
        (RuntimeError("x"), 125),
        (RecursionError(), 125),
        (MemoryError(), 125),
        (KeyboardInterrupt(), 130),
        (SystemExit(3), 3),
        (SystemExit(None), 0),
    ],
)
def test_the_status_of_each_error(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert fail.report(error) == status
    assert "Traceback" not in capsys.readouterr().err


def test_place_message_and_hint(capsys: pytest.CaptureFixture[str]) -> None:
    fail.report(UsageError("no", where="a.toml:3", hint="yes"))
    assert capsys.readouterr().err == "remit: error: a.toml:3: no\nremit: hint: yes\n"


def test_every_problem_of_a_profile_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    fail.report(ProfileError((Problem("f", 1, "k", "one", "h"), Problem("f", 2, "", "two"))))
    assert capsys.readouterr().err == "remit: error: f:1: k: one (h)\nremit: error: f:2: two\n"


def test_several_errors_are_all_printed(capsys: pytest.CaptureFixture[str]) -> None:
    error = Several([UsageError("one", hint="h"), ProfileError((Problem("f", 1, "k", "two"),))])
    assert fail.report(error) == 2
    printed = capsys.readouterr().err
    assert "error: one" in printed
    assert "f:1: k: two" in printed


def test_reasons_come_with_their_fixes(capsys: pytest.CaptureFixture[str]) -> None:
    fail.report(Unenforceable("cannot", reasons=(("no Landlock", "boot with lsm="), ("no cgroup", ""))))
    lines = capsys.readouterr().err.splitlines()
    assert "remit:   - no Landlock" in lines
    assert "remit:     fix: boot with lsm=" in lines


def test_one_reason_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    fail.report(Unenforceable("no Landlock", reasons=(("no Landlock", "boot with lsm="),), hint="boot with lsm="))
    assert capsys.readouterr().err == "remit: error: no Landlock\nremit: hint: boot with lsm=\n"


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (
            ["exec", "x", "--degrade", "x", "--", "true"],
            "it is an option of remit run, remit explain, remit session start",
        ),
        (["explain", "--denials", "text"], "it is an option of remit run, remit exec"),
        (["exec", "x", "--raed", "x", "--", "true"], "did you mean --read?"),
    ],
)
def test_an_option_of_another_command_is_said_to_be_one(
    argv: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(argv) == 2
    assert f"hint: {hint}\n" in capsys.readouterr().err


def test_a_name_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    fail.report(UsageError("bad \x1b[2J\r\x07 \udcff"))
    printed = capsys.readouterr().err
    assert "\x1b" not in printed
    assert "\\x1b[2J" in printed
    assert "\r" not in printed


def test_a_traceback_only_when_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise ValueError("x")

    for asked in ("", "1"):
        monkeypatch.setenv("REMIT_DEBUG", asked)
        with pytest.raises(ValueError, match="x") as caught:
            broken()
        assert fail.report(caught.value) == 125
        printed = capsys.readouterr().err
        assert ("Traceback" in printed) is bool(asked)
        assert "internal error: ValueError: x" in printed


@pytest.mark.parametrize(
    "argv",
    [
        ["nope"],
        ["run"],
        ["run", "--"],
        ["run", "--bogus", "ls"],
        ["run", "--read"],
        ["run", "--read=", "ls"],
        ["run", "--read", "--write", "/x", "ls"],
        ["run", "--status-fd", "x", "ls"],
        ["run", "--status-fd=-3", "ls"],
        ["run", "--accept-suggestion=1", "ls"],
        ["run", "-x", "ls"],
        ["run", "--json", "ls"],
        ["explain", "--status-fd", "3"],
        ["explain", "--bogus"],
        ["explain", "--plan=x"],
        ["doctor", "x"],
        ["doctor", "--bogus"],
        ["profile"],
        ["profile", "nope"],
        ["profile", "show"],
        ["profile", "show", "nope"],
        ["profile", "show", "./nope.toml"],
        ["profile", "show", "/etc/passwd"],
        ["profile", "show", "a", "b"],
        ["profile", "diff", "coding"],
        ["profile", "diff", "coding", "nope"],
        ["profile", "check"],
        ["profile", "check", "nope"],
        ["profile", "check", "/dev/null"],
        ["profile", "check", "/"],
        ["profile", "check", "../../../etc/shadow"],
        ["profile", "check", "\x00"],
        ["profile", "check", ""],
        ["profile", "new"],
        ["profile", "new", "../x"],
        ["profile", "new", "X Y"],
        ["profile", "new", ""],
        ["--bogus"],
        ["-x"],
        ["--version=3"],
    ],
)
def test_bad_input_is_2_with_a_message_and_no_traceback(
    argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main.run(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("remit: error: ")
    assert "Traceback" not in captured.err


def test_every_bad_option_is_listed_with_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "run",
        "--raed",
        "--limit",
        "memory=1GB",
        "--connect",
        "x",
        "--read=",
        "--degrade=all",
        "--listen",
        "-1",
        "ls",
    ]
    assert main.run(argv) == 2
    printed = capsys.readouterr().err
    for part in ("--raed", "--read?", "1GiB", "no port", "--read needs", "unknown layer", "--listen needs"):
        assert part in printed, part


@pytest.mark.parametrize(
    "argv", [["--help"], ["run", "--help"], ["run", "-h"], ["run", "--bogus", "--help"], [], ["profile", "-h"]]
)
def test_help_is_0_on_stdout(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(argv) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Usage: remit")
    assert captured.err == ""


def test_help_shows_every_option_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    main.run(["run", "--help"])
    printed = capsys.readouterr().out
    assert [option.name for option in options.taken("run") if f"--{option.name}" not in printed] == []


def test_a_plain_run_reaches_the_launcher_by_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[options.Invocation] = []

    def start(invocation: options.Invocation) -> int:
        seen.append(invocation)
        return 7

    monkeypatch.setattr(fast, "start", start)
    assert main.run(["run", "-p", "offline", "--", "true"]) == 7
    assert seen == [fast.parse(["-p", "offline", "--", "true"])]
