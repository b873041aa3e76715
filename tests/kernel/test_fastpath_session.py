"""What the fast path answers in a session is recorded like everything else, and made like everything else."""

from __future__ import annotations

import os
from errno import EACCES, ENOENT
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from remit import Session
from remit.sandbox.events.action import PRIVATE
from tests.kernel.run_harness import PYTHON, World
from tests.kernel.session_harness import opened, python, said
from tests.kernel.test_run_audit import events, profile

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6)]

WORK = """
import os
os.mkdir("d")
for i in range(100):
    open(f"d/{i}", "w").close()
    os.rename(f"d/{i}", f"d/to-{i}")
    os.unlink(f"d/to-{i}")
    if i % 10 == 9:
        try:
            open("kept", "w")
        except PermissionError:
            pass
        try:
            os.rmdir("d/none")
        except FileNotFoundError:
            pass
open("last", "w").close()
"""


def expected(workspace: str) -> list[tuple[str, str, str]]:
    found = [("write", f"{workspace}/d", "allowed")]
    for i in range(100):
        found += [
            ("write", f"{workspace}/d/{i}", "allowed"),
            ("remove", f"{workspace}/d/{i}", "allowed"),
            ("write", f"{workspace}/d/to-{i}", "allowed"),
            ("remove", f"{workspace}/d/to-{i}", "allowed"),
        ]
        if i % 10 == 9:
            found += [("write", f"{workspace}/kept", "denied"), ("remove", f"{workspace}/d/none", "moot")]
    return [*found, ("write", f"{workspace}/last", "allowed")]


def check(lines: list[dict[str, Any]], workspace: str) -> None:
    changes = [line for line in lines if line["right"] in ("write", "remove")]
    assert [(line["right"], line["object"], line["verdict"]) for line in changes] == expected(workspace)
    assert {line["certainty"] for line in changes if line["verdict"] == "allowed"} == {"exercised"}
    assert len({(line["pid"], line["exe"]) for line in changes}) == 1
    assert changes[0]["exe"].rpartition("/")[2].startswith("python3")
    # Each batch is brought to the wall clock's time by itself, which moves it by less than a microsecond.
    times = [line["time"] for line in changes]
    assert all(later - earlier > -1e-5 for earlier, later in pairwise(times))


def test_every_call_of_a_run_is_recorded_once_and_in_order(world: World) -> None:
    (world.workspace / "kept").write_text("")
    done = world.run(PYTHON, "-I", "-S", "-c", WORK, options=["--protect", "kept"])
    assert done.status == 0, done
    check(events(world), str(world.workspace))


def test_every_call_of_a_sessions_call_is_recorded_once_and_in_order(world: World) -> None:
    (world.workspace / "kept").write_text("")
    with opened(world, protect=[str(world.workspace / "kept")]) as session:
        for _ in range(2):
            result = session.run([PYTHON, "-I", "-S", "-c", WORK])
            assert result.returncode == 0, result
            # All of it is known when the call is over: nothing waits to be told.
            assert [denial.object for denial in result.denials] == [str(world.workspace / "kept")] * 10
            (world.workspace / "d").rmdir()
    lines = events(world)
    calls = sorted({line["call"] for line in lines}, key=[line["call"] for line in lines].index)
    assert len(calls) == 2
    for call in calls:
        check([line for line in lines if line["call"] == call], str(world.workspace))


EXECUTES = """
import os
def run(path, *more):
    pid = os.fork()
    if not pid:
        try:
            os.execv(path, [path, *more])
        except OSError as error:
            os._exit(error.errno)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
for i in range(12):
    script = f"echo > kept; echo > made-{{i}}; exec /bin/true"
    print(run("/bin/true"), run("/bin/none"), run({tool!r}), run("/bin/sh", "-c", script))
"""
"""The first four are the mediator's."""


@pytest.mark.parametrize("level", ["off", "writes"])
def test_what_is_executed_is_recorded_and_counted_like_the_first(world: World, level: str) -> None:
    tool = world.base / "elsewhere" / "tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    (world.workspace / "kept").touch()
    how: dict[str, Any] = {"read": [tool.parent], "protect": [str(world.workspace / "kept")]}
    with opened(world, profile=profile(world, level), **how) as session:
        result = session.run([PYTHON, "-I", "-S", "-c", EXECUTES.format(tool=str(tool))])
    assert said(result).splitlines() == [f"0 {ENOENT} {EACCES} 0"] * 12
    assert result.denied == 24
    if level == "off":
        return
    python, sh, true = (str(Path(path).resolve()) for path in (PYTHON, "/bin/sh", "/bin/true"))
    # What the mediator gathered may be told before what the call's thread did.
    first, *found = sorted(events(world), key=lambda line: line["mono"])
    assert (first["exe"], first["object"]) == ("", python)
    assert [(line["exe"], line["right"], line["object"], line["verdict"], line["layer"]) for line in found] == [
        line
        for i in range(12)
        for line in (
            (python, "exec", true, "allowed", ""),
            (python, "exec", str(tool), "denied", "landlock"),
            (python, "exec", sh, "allowed", ""),
            (sh, "write", f"{world.workspace}/kept", "denied", "mediation"),
            (sh, "write", f"{world.workspace}/made-{i}", "allowed", ""),
            (sh, "exec", true, "allowed", ""),
        )
    ]
    assert {line["certainty"] for line in found if line["right"] == "exec"} == {"attempted"}
    assert {line["syscall"] for line in found if line["right"] == "exec"} == {"execve"}
    starts = {line["pid"]: line["pid_start"] for line in found}
    assert all((line["pid"], line["pid_start"]) in starts.items() for line in found)
    assert len(starts) == 12 * 3
    assert all(starts.values())


SCRATCH = """
import os, sys, tempfile
place, other = sys.argv[1:]
os.makedirs(f"{place}/below")
for i in range(12):
    descriptor, name = tempfile.mkstemp(dir=place)
    os.close(descriptor)
    os.rename(name, f"{place}/below/{i}")
    os.unlink(f"{place}/below/{i}")
    os.mkdir(f"{other}/{i}")
    os.symlink(os.getcwd(), f"{place}/to-{i}")
    open(f"{place}/to-{i}/made-{i}", "w").close()
"""


def test_what_is_made_for_a_moment_is_recorded_like_the_first(world: World) -> None:
    with opened(world) as session:
        said(session.run([PYTHON, "-I", "-S", "-c", SCRATCH, "/tmp/place", "/var/tmp"]))
    found = [line for line in events(world) if line["right"] in ("write", "remove")][2:]
    assert [(line["right"], line["object"]) for line in found if "/tmp/place/tmp" not in line["object"]] == [
        line
        for i in range(12)
        for line in (
            ("write", f"/tmp/place/below/{i}"),
            ("remove", f"/tmp/place/below/{i}"),
            ("write", f"/tmp/{i}"),  # /var/tmp leads there
            ("write", f"/tmp/place/to-{i}"),
            # By a link back into the workspace: its own name, and made by the mediator.
            ("write", f"{world.workspace}/made-{i}"),
        )
    ]
    there = [line for line in found if line["object"].startswith("/tmp/")]
    assert {(line["verdict"], line["certainty"], line["rule"]["text"]) for line in there} == {
        ("allowed", "attempted", PRIVATE)
    }
    assert len({(line["pid"], line["pid_start"], line["exe"]) for line in found}) == 1
    assert len(list(world.workspace.glob("made-*"))) == 12


def test_a_workspace_in_the_scratch_directory_is_none(tmp_path: Path, world: World) -> None:
    """Its own names are the mediator's, and made outside."""
    workspace = tmp_path / "w"
    workspace.mkdir()
    (workspace / "kept").touch()
    other = tmp_path / "other"
    other.mkdir()
    with patch.dict(os.environ, world.env(), clear=True):
        session = Session("offline", workspace, protect=[workspace / "kept"], write=[other])
    with session:
        place = str(workspace / "place")
        said(session.run([PYTHON, "-I", "-S", "-c", SCRATCH, place, place]))
        # Nobody has been there yet.
        said(session.run(["touch", str(other / "made")]))
        for _ in range(2):
            result = session.run(["sh", "-c", "for i in 1 2 3 4 5 6; do echo > kept; done"])
            assert result.denied == 6
    assert sorted(os.listdir(workspace / "place")) == sorted(
        [str(i) for i in range(12)] + [f"to-{i}" for i in range(12)] + ["below"]
    )
    assert len(list(workspace.glob("made-*"))) == 12


UMASKS = """
import os
os.mkdir("d")
for i in range(40):
    mask = (0o022, 0o077, 0)[i % 3]
    os.umask(mask)
    for k in range(5):
        os.close(os.open(f"d/{i}-{k}", os.O_WRONLY | os.O_CREAT, 0o666))
        os.mkdir(f"d/{i}-{k}-d")
for name in os.listdir("d"):
    mask = (0o022, 0o077, 0)[int(name.split("-")[0]) % 3]
    wanted = (0o777 if name.endswith("d") else 0o666) & ~mask
    assert os.stat(f"d/{name}").st_mode & 0o7777 == wanted, name
"""


def test_what_is_made_has_the_umask_of_its_maker(world: World) -> None:
    with opened(world) as session:
        result = session.run(python(UMASKS))
        assert result.returncode == 0, result
    assert len(list((world.workspace / "d").iterdir())) == 400
