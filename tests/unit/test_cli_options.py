"""The option table: one grammar for the hot path's parser and for click."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.cli import fast, main, options
from remit.cli.command import GrantCommand
from remit.sandbox.authority.model import LIMIT_NAMES

VALUED = [option for option in options.taken("run") if option.metavar]
WORDS = st.sampled_from(
    ["a", "./b", "/c d", "x=y", "-", "--", "-q", "--read", "-p", "-w", "", "é", "\udcff", "ls", "=", "-1"]
)
NAMES = st.sampled_from(
    [f"--{option.name}" for option in options.taken("run")] + ["-p", "-w", "-pX", "--bogus", "--help"]
)
TOKEN = st.one_of(NAMES, WORDS, st.tuples(NAMES, WORDS).map("=".join))


def through_click(verb: str, argv: list[str]) -> options.Invocation:
    seen: list[options.Invocation] = []

    def keep(invocation: options.Invocation) -> int:
        seen.append(invocation)
        return 0

    command = GrantCommand(verb, keep, help="", required=verb == "run")
    command.main(args=argv, standalone_mode=False)
    return seen[0]


@settings(max_examples=400, deadline=None)
@given(st.lists(TOKEN, max_size=8))
def test_whatever_the_hot_path_accepts_click_parses_identically(argv: list[str]) -> None:
    parsed = fast.parse(argv)
    if parsed is not None:
        assert through_click("run", argv) == parsed


@st.composite
def well_formed(draw: st.DrawFn) -> list[str]:
    argv: list[str] = []
    for option in draw(st.lists(st.sampled_from(VALUED), max_size=6)):
        value = {"status-fd": "3", "denials": "json"}.get(option.name) or draw(st.sampled_from(["a", "/b", "x=y", "é"]))
        names = [f"--{option.name}"] + ([f"-{option.short}"] if option.short else [])
        name = draw(st.sampled_from(names))
        argv += [f"{name}={value}"] if name.startswith("--") and draw(st.booleans()) else [name, value]
    argv += ["--"] * draw(st.integers(0, 1))
    return [*argv, "cmd", *draw(st.lists(WORDS, max_size=3))]


@settings(max_examples=200, deadline=None)
@given(well_formed())
def test_every_well_formed_line_stays_on_the_hot_path_and_agrees(argv: list[str]) -> None:
    parsed = fast.parse(argv)
    assert parsed is not None
    assert through_click("run", argv) == parsed


def test_options_after_the_command_belong_to_it() -> None:
    parsed = fast.parse(["-p", "offline", "ls", "--read", "/x", "--", "-p", "y"])
    assert parsed is not None
    assert parsed.command == ("ls", "--read", "/x", "--", "-p", "y")
    assert parsed.grants == ()
    assert parsed.profile == "offline"


def test_double_dash_ends_the_options_once() -> None:
    parsed = fast.parse(["--read", "/x", "--", "--", "a"])
    assert parsed is not None
    assert parsed.command == ("--", "a")


def test_attached_and_separate_values_are_the_same() -> None:
    assert fast.parse(["--read=/x", "--limit=pids=4", "c"]) == fast.parse(["--read", "/x", "--limit", "pids=4", "c"])


def test_the_last_one_wins_where_an_option_is_not_repeatable() -> None:
    parsed = fast.parse(["-p", "a", "--profile=b", "--purpose", "x", "--purpose", "y", "c"])
    assert parsed is not None
    assert parsed.profile == "b"
    assert parsed.grants == (("purpose", "y"),)


def test_repeated_options_keep_their_order() -> None:
    parsed = fast.parse(["--read", "b", "--deny", "d", "--read", "a", "c"])
    assert parsed is not None
    assert parsed.grants == (("read", "b"), ("read", "a"), ("deny", "d"))


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["-h"],
        ["--bogus", "ls"],
        ["--read"],
        ["--read", "--write", "x", "ls"],
        ["--read", "--", "ls"],
        ["--read=", "ls"],
        ["--accept-suggestion=yes", "ls"],
        ["--status-fd", "x", "ls"],
        ["--status-fd=-1", "ls"],
        ["--status-fd=³", "ls"],
        ["--json", "ls"],
        ["-x", "ls"],
        ["--plan", "ls"],
        [],
        ["--"],
        ["-p", "offline"],
    ],
)
def test_anything_unusual_is_left_to_click(argv: list[str]) -> None:
    assert fast.parse(argv) is None


def test_every_error_is_found() -> None:
    _, errors = options.parse("run", ["--bogus", "--read=", "--status-fd", "x", "--read", "--nope"])
    assert len(errors) == 6
    assert [error for error in errors if "bogus" in error]
    assert [error for error in errors if "nope" in error]


def test_the_cache_key_has_everything_but_what_cannot_change_the_plan() -> None:
    one = fast.parse(["--read", "/x", "--status-fd", "3", "ls"])
    two = fast.parse(["--read", "/x", "cat", "/etc/passwd"])
    other = fast.parse(["--write", "/x", "ls"])
    assert one is not None
    assert two is not None
    assert other is not None
    assert one.key() == two.key() != other.key()
    assert one != two


def test_help_names_the_limits_that_the_command_takes(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "explain"):
        assert main.run([command, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert [name for name in LIMIT_NAMES if name not in shown.partition("--limit")[2]] == []
    assert main.run(["exec", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "NAME=VALUE memory, pids, cpu-time, time, files or file- size:" in shown
