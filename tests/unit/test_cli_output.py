"""Standard output that is closed, full, or read by nobody: told once, with a status that means nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

PROGRAM = "import sys; from remit.cli.fast import main; main(sys.argv[1:])"
PRINTS = (
    ["--version"],
    ["--help"],
    ["session", "list", "--all"],
    ["session", "list", "--json"],
    ["explain", "-p", "offline"],
    ["explain", "-p", "offline", "--plan", "--json"],
    ["doctor"],
    ["doctor", "--json"],
    ["why", "-p", "offline", "/etc/hostname"],
    ["profile", "list"],
    ["profile", "show", "offline"],
    ["profile", "diff", "offline", "coding"],
    ["profile", "schema"],
    ["grant", "new", "--read", "/usr", "-o", "made.grant"],
)


def remit(
    words: Sequence[str], place: Path, stdout: int | None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """``stdout``: a descriptor; None for one that is closed."""
    command = [sys.executable, "-X", "utf8", "-c", PROGRAM, *words]
    if stdout is None:
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    return subprocess.run(
        command,
        cwd=place,
        env={"PATH": "/usr/bin:/bin", "HOME": str(place), "TERM": "xterm", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if stdout is None else stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A home, and a working directory, that holds the record of a session."""
    record = tmp_path / ".local/state/remit/sessions/20260101T000000-0000000000"
    record.mkdir(parents=True)
    (record / "events.jsonl").write_text('{"kind":"started","time":1.0,"workspace":"/","argv":["x"]}\n')
    (record / "plan.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("words", PRINTS, ids=" ".join)
def test_what_cannot_be_written_is_said_once(words: list[str], place: Path) -> None:
    with open("/dev/full", "w") as full:
        refused = remit(words, place, full.fileno())
    assert refused.returncode == 125
    assert refused.stderr == "remit: error: standard output: No space left on device\n"


@pytest.mark.parametrize("words", PRINTS, ids=" ".join)
def test_closed_is_not_written_either(words: list[str], place: Path) -> None:
    refused = remit(words, place, None)
    assert refused.returncode == 125
    assert refused.stderr == "remit: error: standard output: Bad file descriptor\n"


@pytest.mark.parametrize("words", PRINTS, ids=" ".join)
def test_a_reader_that_has_gone_is_141_and_no_word(words: list[str], place: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        left = remit(words, place, write)
    finally:
        os.close(write)
    assert (left.returncode, left.stderr) == (141, "")


def test_who_has_nothing_to_say_needs_no_output(place: Path) -> None:
    with open("/dev/full", "w") as full:
        silent = [remit(["session", "list"], place, where) for where in (None, full.fileno())]
        silent.append(remit(["profile", "diff", "offline", "offline"], place, None))
        wrong = remit(["profile", "show", "nonesuch"], place, None)
    assert [(one.returncode, one.stderr) for one in silent] == [(0, "")] * 3
    assert wrong.returncode == 2
    assert "nonesuch" in wrong.stderr


def test_what_is_printed_arrives_whole(place: Path) -> None:
    read, write = os.pipe()
    try:
        assert remit(["profile", "diff", "offline", "coding"], place, write).returncode == 1
    finally:
        os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read().count(b"\n") > 3
