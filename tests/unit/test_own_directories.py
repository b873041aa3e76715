"""Remit's own directories where they cannot be: an error that names the place, in a moment."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from remit.sandbox.audit.record import make_parents, state_directory
from remit.sandbox.session import place

PROGRAM = "import sys; from remit.cli.fast import main; main(sys.argv[1:])"


def remit(here: Path, env: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "utf8", "-c", PROGRAM, *words],
        cwd=here,
        env={"PATH": "/usr/bin:/bin", "HOME": str(here), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("path", ["/proc/a", "/proc/a/b/c/d", "", "/nonexistent" * 400])
def test_what_cannot_be_made_is_an_error_of_the_system(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"No such file|too long"):
        make_parents(path)


def test_what_can_be_made_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    for _ in range(2):
        make_parents(f"{tmp_path}/a/b/c")
    assert [os.stat(tmp_path / name).st_mode & 0o777 for name in ("a", "a/b", "a/b/c")] == [0o700] * 3


@pytest.mark.parametrize("variable", ["HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"])
@pytest.mark.parametrize(
    "words",
    [
        ["run", "-p", "offline", "-w", "/usr", "--", "true"],
        ["session", "start", "-p", "offline", "-w", "/proc/nonesuch"],
        ["grant", "new", "--read", "/usr", "-o", "made.grant"],
        ["session", "list", "--all"],
        ["why", "--last"],
        ["profile", "new", "mine"],
        ["grant", "revoke", "0" * 32],
        ["doctor"],
        ["explain", "-p", "offline"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_home_in_which_nothing_can_be_made_is_told(tmp_path: Path, variable: str, words: list[str]) -> None:
    result = remit(tmp_path, {variable: "/proc"}, *words)
    assert result.returncode in (0, 1, 2, 125), result
    assert "internal" not in result.stderr
    assert "Traceback" not in result.stderr
    if result.returncode >= 2:
        assert "error: " in result.stderr


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "relative"}])
def test_without_a_home_in_the_environment_passwd_says_where_records_are(environ: dict[str, str]) -> None:
    own = pwd.getpwuid(os.geteuid()).pw_dir
    found = state_directory({name.encode(): value.encode() for name, value in environ.items()})
    assert found == f"{own}/.local/state/remit"
    assert found in place.own_directories(environ, place.home_directory(environ))
    assert state_directory({b"HOME": b"/home/u/"}) == "/home/u/.local/state/remit"
    assert state_directory({b"HOME": b"/"}) == "/.local/state/remit"
