"""Where the current directory has been removed: what is named in full works, the rest is an error that says so."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.kernel.run_harness import TIMEOUT, World
from tests.kernel.test_session_command import standing

pytestmark = [pytest.mark.kernel, pytest.mark.needs(landlock=6, userns=True)]
GONE = "the current directory does not exist any more"


def nowhere(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    """``remit`` in a directory that has been removed."""
    place = world.base / "gone"
    place.mkdir()
    script = f'cd {place} && rmdir {place} && exec "$@"'
    return subprocess.run(
        ["sh", "-c", script, "sh", *world.argv(*words)],
        capture_output=True,
        text=True,
        env=world.env(),
        cwd=world.base,
        check=False,
        timeout=TIMEOUT,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["run", "-p", "offline", "--", "true"],
        ["run", "-p", "offline", "-w", "x", "--", "true"],
        ["run", "-p", "offline", "-w", "/usr", "--read", "x", "--", "true"],
        ["run", "-p", "offline", "-w", "/usr", "--deny", "x", "--", "true"],
        ["run", "-p", "./x.toml", "-w", "/usr", "--", "true"],
        ["run", "--read", "x", "--raed", "--", "true"],
        ["session", "start", "-p", "offline"],
        ["explain", "-p", "offline"],
        ["grant", "new", "--read", "x", "-o", "x"],
        ["grant", "new", "-p", "offline", "-o", "/nonexistent/x"],
        ["grant", "show", "x"],
        ["why", "-p", "offline", "./x"],
        ["why", "-p", "offline", "/usr"],
        ["why", "./x"],
        ["bench", "speed", "--json", "x"],
        ["bench", "speed", "--directory", "x"],
    ],
    ids=" ".join,
)
def test_what_is_relative_to_it_is_an_error_with_a_hint(world: World, words: list[str]) -> None:
    result = nowhere(world, *words)
    assert result.returncode == 2, result
    assert GONE in result.stderr
    assert "internal" not in result.stderr
    assert "cd to one that does" in result.stderr


def test_with_everything_named_in_full_it_works(world: World) -> None:
    (world.workspace / "a").write_text("hello\n")
    where = ("-p", world.profile, "-w", str(world.workspace))
    for _ in range(2):  # compiled, and from the cache
        result = nowhere(world, "run", *where, "--read", "/usr", "--", "sh", "-c", "cat a; pwd")
        assert (result.returncode, result.stdout) == (0, f"hello\n{world.workspace}\n"), result
    assert nowhere(world, "explain", *where).returncode == 0
    assert nowhere(world, "why", *where, str(world.workspace / "a")).returncode == 0
    assert nowhere(world, "doctor").returncode in (0, 1)
    file = str(world.home / "one.grant")
    assert nowhere(world, "grant", "new", "--read", str(world.workspace), "-o", file).returncode == 0
    assert nowhere(world, "grant", "verify", file).returncode == 0
    started = nowhere(world, "session", "start", *where, "--json")
    assert started.returncode == 0, started
    session = json.loads(started.stdout)["session"]
    try:
        for grant in ([], ["--read", str(world.workspace)], ["--grant", file]):
            result = nowhere(world, "exec", session, *grant, "--", "cat", "a")
            assert (result.returncode, result.stdout) == (0, "hello\n"), result
        result = nowhere(world, "exec", session, "--read", "a", "--", "cat", "a")
        assert (result.returncode, GONE in result.stderr) == (2, True)
        result = nowhere(world, "exec", session, "--chdir", "a", "--", "cat", "a")
        assert (result.returncode, GONE in result.stderr) == (2, True)
    finally:
        assert nowhere(world, "session", "stop", session).returncode == 0


def test_a_directory_that_is_there_is_what_paths_are_relative_to(world: World) -> None:
    (world.workspace / "src").mkdir()
    with standing(world) as session:
        there = world.remit("exec", session, "--read", "src", "--chdir", "src", "--", "pwd")
    assert there.stdout == f"{world.workspace}/src\n"
    assert Path(there.stdout.strip()).is_dir()
