"""``remit bench speed`` as an installed command: what it measures, what it says of what it cannot, and what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from remit.cli.bench import audit, lone, network, speed, syscalls, traffic, workloads
from tests.kernel.run_harness import PATH

COMMAND = str(Path(sys.executable).parent / "remit")
SCHEMA: dict[str, Any] = json.loads(
    (Path(speed.__file__).parents[1] / "schemas" / "bench.schema.json").read_text(encoding="utf-8")
)

pytestmark = [pytest.mark.kernel, pytest.mark.needs("bwrap", userns=True, landlock=2)]
if os.geteuid() == 0:
    # Elsewhere, root has no workspace here that `remit run` takes: a row that is not measured.
    pytestmark.append(pytest.mark.needs(idmap=True))


def bench(tmp_path: Path, *words: str, path: str = PATH) -> dict[str, Any]:
    """The document of a run of two rounds, which has to be as its schema says and leave nothing behind."""
    directory, output = tmp_path / "here", tmp_path / "bench.json"
    directory.mkdir(exist_ok=True)
    done = subprocess.run(
        [COMMAND, "bench", "speed", "--rounds", "2", "--directory", str(directory), "--json", str(output), *words],
        env={"PATH": path, "HOME": str(tmp_path), "LANG": "C.UTF-8"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(directory.iterdir()) == []
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    jsonschema.validate(found, SCHEMA)
    return found


def named(document: dict[str, Any], group: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of a group by name and variant."""
    return {(row["name"], row["variant"]): row for row in document["rows"] if row["group"] == group}


def missing(document: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Why what was not measured was not."""
    return {(one["group"], one["name"]): one["reason"] for one in document["not_measured"]}


def test_starts_are_measured_and_absent_peers_are_said_to_be(tmp_path: Path) -> None:
    found = bench(tmp_path, "--only", "start")

    rows = named(found, "start")
    assert {("bare", ""), ("bubblewrap + seccomp", ""), ("remit run", "")} <= rows.keys(), missing(found)
    assert {("remit run, with a way out", ""), ("remit run, plan not in the cache", "")} <= rows.keys()
    assert {row["group"] for row in found["rows"]} == {"start"}
    for row in rows.values():
        assert row["n"] in (1, 2)
        assert 0 < row["minimum"] <= row["median"] <= row["p99"]
        assert row["ratio"] == pytest.approx(row["median"] / rows["bare", ""]["median"])
    reasons = missing(found)
    for name, program in (("nsjail", "nsjail"), ("codex sandbox", "codex")):
        measured = (name, "") in rows
        assert measured or ("start", name) in reasons, program


def test_a_peer_that_fails_is_not_measured_and_says_why(tmp_path: Path) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "bwrap").write_text("#!/bin/sh\necho broken today >&2\nexit 3\n")
    (fake / "bwrap").chmod(0o755)
    found = bench(tmp_path, "--only", "start", path=f"{fake}:{PATH}")

    assert ("bubblewrap + seccomp", "") not in named(found, "start")
    assert missing(found)["start", "bubblewrap + seccomp"] == "bwrap: exit status 3: broken today"
    assert ("remit run", "") in named(found, "start")


def test_peers_are_told_to_confine(tmp_path: Path) -> None:
    """A peer's invocation is seen by a program that stands in its place: no network, and the workspace to write."""
    fake = tmp_path / "bin"
    fake.mkdir()
    for name in ("firejail", "nsjail", "minijail0", "crun", "runc", "srt", "codex"):
        (fake / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/{name}.argv\n')
        (fake / name).chmod(0o755)
    found = bench(tmp_path, "--only", "start", path=f"{fake}:{PATH}")

    assert {("firejail", ""), ("crun", ""), ("srt", ""), ("codex sandbox", "")} <= named(found, "start").keys()
    argv = {path.stem: path.read_text().splitlines() for path in tmp_path.glob("*.argv")}
    assert "--net=none" in argv["firejail"]
    assert 'sandbox_mode="workspace-write"' in argv["codex"]
    assert "-e" in argv["minijail0"]
    assert argv["nsjail"][-1].endswith("/true")
    assert argv["crun"][0] == "--cgroup-manager=disabled"
    assert "-s" in argv["srt"]


def test_the_network_beside_a_relay_that_asks_nothing(tmp_path: Path) -> None:
    found = bench(tmp_path, "--only", "network")

    rows = named(found, "network")
    units = {
        "throughput of one connection": "MB/s",
        "connections a second, one after the other": "1/s",
        "round trip of 64 bytes": "µs",
    }
    # What srt needs is not what these tests do.
    peer = () if ("network", lone.SRT) in missing(found) else (lone.SRT,)
    assert bool(peer) == all(shutil.which(name, path=PATH) for name in ("srt", "bwrap", "socat", "rg"))
    ways = ("bare", lone.RELAY, "remit run", *peer)
    added = (network.ADDED, "remit run")
    assert rows.keys() == {added, *[(name, way) for name in units for way in ways]}, missing(found)
    for (name, way), row in rows.items():
        if (name, way) != added:
            assert (row["n"], row["unit"]) == (2, units[name])
            assert 0 < row["minimum"] <= row["median"] <= row["p99"]
            assert row["ratio"] == pytest.approx(row["median"] / rows[name, lone.RELAY]["median"])
    assert (rows[added]["n"], rows[added]["unit"], rows[added]["ratio"]) == (10, "ms", None)
    assert missing(found).keys() == (set() if peer else {("network", lone.SRT)})


def test_a_session_that_reaches_nothing_is_not_measured_and_the_relay_is(tmp_path: Path) -> None:
    """What goes through Remit does go through it: another server than the one that is granted is not reached."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    shutil.copy(traffic.__file__, workspace)
    interpreter = ["/usr/bin/python3", "-I", "-S"]
    for granted, reached in ((lone.PLACE, True), ("203.0.113.9:80", False)):
        settings = {
            "python": interpreter,
            "own": interpreter,
            "script": str(workspace / "traffic.py"),
            "workspace": str(workspace),
            "remit": [COMMAND, "run", "-p", "offline", "-w", str(workspace), "--connect", granted, "--"],
            "srt": [],
            "errors": str(tmp_path / "errors"),
        }
        requests = ({"do": "open"}, {"do": "sample", "measure": "connections", "number": 1, "rounds": 1})
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from remit.cli.bench.lone import main; main(sys.argv[1])",
                json.dumps(settings),
            ],
            input="".join(json.dumps(request) + "\n" for request in requests),
            env={"PATH": PATH, "HOME": str(tmp_path), "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=True,
        )
        opened, sampled = map(json.loads, done.stdout.splitlines())
        assert opened == {}
        assert {"bare", lone.RELAY} <= sampled["samples"].keys()
        assert ("remit run" in sampled["samples"]) is reached, sampled
        if not reached:
            assert "ConnectionResetError" in sampled["failed"]["remit run"]


@pytest.mark.slow
@pytest.mark.needs(ordinary=True)  # a minute: once is enough
def test_the_other_groups(tmp_path: Path) -> None:
    wanted = [word for group in ("session", "warm", "syscall") for word in ("--only", group)]
    found = bench(tmp_path, *wanted, "--only", "git status")

    assert {"first session of a program", "later session of a program"} <= {name for name, _ in named(found, "session")}
    warm = named(found, "warm")
    for output in ("output to /dev/null", "output captured"):
        assert warm[output, "subprocess.run"]["ratio"] == 1
        assert warm[output, "bubblewrap + seccomp"]["n"] == 10
        for way in ("call in a session", "call, narrower grant", "call, narrower grant, new each"):
            assert (output, f"remit, {way}") in warm, missing(found)
    if os.access("/usr/bin/gcc", os.X_OK):
        calls = named(found, "syscall")
        assert {name for name, _ in calls} >= {"connect to a closed port of the own loopback", "getppid", "rename"}
        assert {("rename", "remit run"), ("rename", "remit, call in a session")} <= calls.keys()
    (name,) = [name for name in workloads.WORKLOADS if name.startswith("git status")]
    work = named(found, "workload")
    assert {(name, "remit run"), (name, "remit, call in a session")} <= work.keys(), missing(found)
    assert {name for name, _ in named(found, "workload")} == {name}


@pytest.mark.needs(ordinary=True)  # half a minute: once is enough
def test_calls_a_second(tmp_path: Path) -> None:
    found = bench(tmp_path, "--only", "rate")

    rates = named(found, "rate")
    for shape in ("2 threads of one program", "2 programs", "16 threads of one program", "16 programs"):
        assert {
            (shape, "bare"),
            (shape, "remit, call in a session"),
            (shape, "bubblewrap + seccomp"),
        } <= rates.keys(), missing(found)


def test_what_is_kept_in_memory(tmp_path: Path) -> None:
    found = bench(tmp_path, "--only", "memory")

    held = named(found, "memory")
    assert held["bubblewrap + seccomp", ""]["extra"]["processes"] == 2
    for sessions in ("remit, 1 idle session, each", "remit, 10 idle sessions, each"):
        # Nothing may trace a session's process: an ordinary user is told so, and root gets the figure.
        if os.geteuid() == 0:
            assert held[sessions, ""]["median"] > 0
        else:
            assert "show their PSS to root only" in missing(found)["memory", sessions]


@pytest.mark.slow
@pytest.mark.needs(ordinary=True)  # a minute: once is enough
def test_what_the_record_costs(tmp_path: Path) -> None:
    found = bench(tmp_path, "--only", "audit", "--rounds", "1")

    rows = named(found, "audit")
    assert {row["group"] for row in found["rows"]} == {"audit"}
    ways = ("subprocess.run", "call, not audited", "call, audited")
    assert {(audit.TRUE, way) for way in ways} <= rows.keys(), missing(found)
    assert rows[audit.TRUE, "subprocess.run"]["ratio"] == 1
    compared = [audit.WORK[1]]
    if os.access("/usr/bin/gcc", os.X_OK):
        compared += [audit.WORK[0], *[syscalls.NAMES[call] for call in audit.CALLS]]
    for name in compared:
        assert {(name, variant) for variant in ("bare", *audit.LEVELS)} <= rows.keys(), missing(found)
        assert (rows[name, "bare"]["ratio"], rows[name, audit.OFF]["ratio"]) == (None, 1)
        full, off = rows[name, audit.FULL], rows[name, audit.OFF]
        assert full["extra"]["over_off"] == pytest.approx(full["median"] - off["median"])
    for name, variant in ((audit.MADE, audit.WRITES), (audit.READ, audit.FULL)):
        counts = rows[name, variant]["extra"]
        assert counts["recorded"] > 0
        # Who acts faster than the record takes it waits: this does not depend on how fast the machine is.
        assert (counts["lost"], counts["missing"]) == (0, 0)


def test_without_a_compiler_it_says_so(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("sh", "true", "cat"):
        (bare / name).symlink_to(f"/bin/{name}")
    found = bench(tmp_path, "--only", "syscall", path=str(bare))

    assert found["rows"] == []
    assert missing(found) == {("syscall", "system calls"): "no C compiler"}
