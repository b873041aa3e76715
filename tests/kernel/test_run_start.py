"""Starts: fail closed, what is proven and recorded, what a swap or a poisoned file can and cannot do, what protects Remit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.run_harness import PYTHON, TIMEOUT, World

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=2)]


def record(world: World) -> dict[str, Any]:
    """The newest session's record: the fields of its start, its proof and its end together."""
    loaded: dict[str, Any] = {}
    for line in (world.records()[-1] / "events.jsonl").read_text().splitlines():
        event: dict[str, Any] = json.loads(line)
        loaded |= event if event["kind"] in ("started", "enforced") else {event["kind"]: event}
    return loaded


# --- invariant 1: fail closed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("format = 1\nname = 'x'\n[filesystem]\nread = ['relative']\n", 2),
        ("format = 1\nname = 'x'\n[filesytem]\nread = []\n", 2),
        ("format = 2\nname = 'x'\n", 2),
        ("not toml", 2),
        ("", 2),
    ],
)
def test_invariant_1_a_bad_profile_starts_nothing(world: World, text: str, status: int) -> None:
    profile = world.home / "x.toml"
    profile.write_text(text)

    result = world.remit("run", "-p", str(profile), "--", "sh", "-c", "echo ran")

    assert (result.status, result.stdout) == (status, "")
    assert "x.toml" in result.stderr


def test_invariant_1_a_profile_that_somebody_else_can_write_is_refused(world: World) -> None:
    profile = world.home / "x.toml"
    profile.write_text("format = 1\nname = 'x'\nextends = ['offline']\n")
    assert world.remit("run", "-p", str(profile), "--", "true").status == 0
    profile.chmod(0o666)

    result = world.remit("run", "-p", str(profile), "--", "sh", "-c", "echo ran")

    assert (result.status, result.stdout) == (2, "")


@pytest.mark.needs(ordinary=True)
def test_invariant_1_an_unreadable_profile_starts_nothing(world: World) -> None:
    profile = world.home / "x.toml"
    profile.write_text("format = 1\nname = 'x'\nextends = ['offline']\n")
    profile.chmod(0)

    result = world.remit("run", "-p", str(profile), "--", "sh", "-c", "echo ran")

    assert (result.status, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


@pytest.mark.needs(ordinary=True)
def test_invariant_1_no_record_no_start(world: World) -> None:
    world.state.mkdir(parents=True)
    assert world.run("true").status == 0
    (world.state / "sessions").chmod(0o500)

    result = world.run("sh", "-c", "echo ran")

    assert (result.status, result.stdout) == (125, "")
    assert "record" in result.stderr


def test_invariant_1_a_full_disk_is_no_record_and_no_start(world: World) -> None:
    result = world.run("sh", "-c", "echo ran", env={"XDG_STATE_HOME": "/dev/full"})

    assert (result.status, result.stdout) == (125, "")


def test_invariant_1_weakening_is_never_the_default(world: World) -> None:
    assert world.run("true").status == 0

    degraded = record(world)["degraded"]
    # The one exception that shipped profiles make, by name.
    assert degraded in ([], ["limits"])


def test_invariant_1_a_dead_mediator_is_an_end_not_a_permission(world: World) -> None:
    """Without the session's first process nothing inside goes on: not even what it was granted."""
    with world.start("sh", "-c", "echo alive > log; echo ready; while :; do echo alive >> log; done") as session:
        assert session.stdout is not None
        assert session.stdout.readline() == "ready\n"
        init = next(
            int(pid)
            for task in os.listdir(f"/proc/{session.pid}/task")
            for pid in Path(f"/proc/{session.pid}/task/{task}/children").read_text().split()
            if Path(f"/proc/{pid}/comm").read_text() == "remit-init\n"
        )
        os.kill(init, 9)
        session.communicate(timeout=TIMEOUT)

    assert session.returncode == 125
    before = (world.workspace / "log").stat().st_size
    assert (world.workspace / "log").stat().st_size == before


# --- invariant 3: grants never come from inside ------------------------------------------------------------------------


def test_invariant_3_a_suggestion_in_the_workspace_grants_nothing(world: World) -> None:
    file = world.home / "plain" / "file"
    file.parent.mkdir()
    file.write_text("x")
    suggestion = f"format = 1\nname = 'wishes'\n[filesystem]\nread = ['{file.parent}']\n"
    (world.workspace / "remit.toml").write_text(suggestion)

    assert world.probe(f"read('{file}')") == "ENOENT"
    assert world.probe(f"read('{file}')", "--accept-suggestion") == "ok"


def test_invariant_3_variables_of_the_command_change_nothing(world: World, secret: Path) -> None:
    code = f"read('{secret}')"
    before = "os.environ.update(REMIT_DEGRADE='all', REMIT_DEBUG='1', REMIT_PROFILE='none')"

    assert world.probe(code, before=before) == "ENOENT"
    result = world.shell(f"cat {secret}", env={"REMIT_DEGRADE": "namespaces,landlock", "REMIT_OFF": "1"})
    assert result.status == 1


# --- invariant 6: Remit protects itself ----------------------------------------------------------------------------------


def test_invariant_6_remits_own_files_are_never_writable(world: World) -> None:
    own = [world.home / ".config/remit", world.state, world.cache]
    assert world.run("true").status == 0
    (world.home / ".config/remit/profiles").mkdir(parents=True)
    tries: dict[str, str] = {"elsewhere": f"write('{world.home}/mine')"}
    for path in own:
        tries[f"create in {path.name} of {path.parent.name}"] = f"write('{path}/planted')"
        tries[f"list {path}"] = f"os.listdir('{path}')"
        tries[f"move {path}"] = f"os.rename('{path}', '{world.home}/moved')"
        tries[f"move the parent of {path}"] = f"os.rename('{path.parent}', '{world.home}/moved')"

    results = world.probes(tries, "--write", str(world.home))

    assert results.pop("elsewhere") == "ok"
    assert "ok" not in results.values(), results
    assert not list(world.home.rglob("planted"))


def test_invariant_6_names_that_are_not_there_yet_cannot_be_planted(world: World) -> None:
    code = f"(os.makedirs('{world.home}/.config/remit/profiles'), write('{world.home}/.config/remit/profiles/offline.toml'))"

    assert world.probe(code, "--write", str(world.home)) == "EACCES"


def test_invariant_6_the_code_that_runs_is_never_writable(world: World) -> None:
    environment = Path(world.command).parent.parent
    tries = {
        "command": f"write('{environment}/bin/planted')",
        "site": f"write('{environment}/lib/planted')",
        "replace": f"os.rename('{environment}/bin/remit', '{environment}/bin/old')",
    }

    results = world.probes(tries, "--write", str(environment))

    assert "ok" not in results.values(), results
    assert world.run("true").status == 0


# --- invariant 11: enforcement is a value ----------------------------------------------------------------------------------


def test_invariant_11_each_layer_is_proven_and_recorded(world: World) -> None:
    assert world.run("true").status == 0

    enforcement: dict[str, str] = record(world)["enforcement"]
    assert set(enforcement) >= {"namespaces", "landlock", "seccomp"}
    assert all(proof.startswith("canary: ") for proof in enforcement.values()), enforcement


def test_invariant_11_a_layer_that_is_off_is_not_recorded_as_proven(world: World) -> None:
    assert world.run("true", options=("--degrade", "seccomp", "--degrade", "mediation")).status == 0

    enforcement: dict[str, str] = record(world)["enforcement"]
    assert enforcement["seccomp"] == "degraded"
    assert enforcement["landlock"].startswith("canary: ")


def test_invariant_12_what_was_denied_is_in_the_log(world: World) -> None:
    result = world.shell("mkdir -p .git/hooks; echo x > .git/hooks/pre-commit")

    assert result.status != 0
    assert not (world.workspace / ".git/hooks/pre-commit").exists()  # the second witness
    events = [json.loads(line) for line in (world.records()[-1] / "events.jsonl").read_text().splitlines()]
    denied = [event for event in events if event.get("object", "").endswith(".git/hooks/pre-commit")]
    assert len(denied) == 1
    assert denied[0]["verdict"] == "denied"
    assert denied[0]["id"].startswith(world.records()[-1].name)


def test_records_are_the_users_alone(world: World) -> None:
    assert world.run("true").status == 0

    found = list(world.state.rglob("*"))
    assert found
    assert [str(path) for path in found if path.stat().st_mode & 0o077] == []


# --- the cache ---------------------------------------------------------------------------------------------------------


def test_a_poisoned_plan_is_not_used(world: World, secret: Path) -> None:
    code = f"read('{secret}')"
    assert world.probe(code) == "ENOENT"
    entries = [path for path in world.cache.rglob("*") if path.is_file()]
    assert entries
    for entry in entries:
        content = bytearray(entry.read_bytes())
        content[len(content) // 2] ^= 0xFF
        entry.write_bytes(content)

    assert world.probe(code) == "ENOENT"


@pytest.mark.parametrize("content", [b"", b"garbage", b"\0" * 100_000])
def test_a_broken_cache_is_made_anew(world: World, content: bytes) -> None:
    assert world.run("true").status == 0
    for entry in [path for path in world.cache.rglob("*") if path.is_file()]:
        entry.write_bytes(content)

    assert world.run("echo", "ran").stdout == "ran\n"


def test_a_cache_that_others_can_write_is_not_used(world: World) -> None:
    assert world.run("true").status == 0
    for path in [world.cache, *world.cache.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)

    result = world.run("echo", "ran")

    assert result.stdout in ("ran\n", "")
    assert (result.status, result.stdout) in ((0, "ran\n"), (125, ""))


def test_a_plan_is_not_used_for_what_has_changed(world: World) -> None:
    """A path that becomes another kind of thing, or a link that leads elsewhere, is resolved again."""
    link = world.base / "link"
    for name in ("one", "two"):
        (world.base / name).mkdir()
        (world.base / name / "file").write_text(name)
    link.symlink_to("one")
    first = world.shell(f"cat {link}/file", "--read", str(link))
    link.unlink()
    link.symlink_to("two")
    second = world.shell(f"cat {link}/file; ls {world.base}", "--read", str(link))

    assert first.stdout == "one"
    assert second.stdout.startswith("two")
    assert "one" not in second.stdout


# --- the start-up race ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_granted_directory_swapped_for_a_link_never_grants_what_it_points_to(world: World, secret: Path) -> None:
    """Somebody swaps a granted directory for a link to a secret, and back, as fast as they can, for 40 starts."""
    granted = world.workspace / "granted"
    granted.mkdir()
    (granted / "id_ed25519").write_text("harmless")
    flip = (
        "import os, sys\n"
        "granted, away, target = sys.argv[1:]\n"
        "print('going', flush=True)\n"
        "while True:\n"
        "    os.rename(granted, away); os.symlink(target, granted)\n"
        "    os.unlink(granted); os.rename(away, granted)\n"
    )
    away = world.workspace / "away"
    argv = [PYTHON, "-c", flip, str(granted), str(away), str(secret.parent)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout is not None
        swapper.stdout.readline()
        try:
            results = [
                world.shell(
                    f"cat {granted}/id_ed25519 {secret} 2>/dev/null; echo end",
                    *("--read", str(granted), "--purpose", f"start {number}"),
                )
                for number in range(40)
            ]
        finally:
            swapper.kill()

    assert not [result for result in results if "SECRET" in result.stdout]
    assert {result.status for result in results} <= {0, 2, 125}
    # The control: a reader without a sandbox sees the secret through the same name.
    if granted.is_symlink():
        granted.unlink()
    else:
        shutil.rmtree(granted, ignore_errors=True)
    granted.symlink_to(secret.parent)
    assert "SECRET" in (granted / "id_ed25519").read_text()


def test_an_explicit_link_is_followed_to_what_it_is_now(world: World, secret: Path) -> None:
    """The person at the command line who names a link means what it leads to."""
    link = world.base / "link"
    link.symlink_to(secret.parent)

    result = world.shell(f"cat {link}/id_ed25519", "--read", str(link))

    assert result.status in (0, 1)
    assert world.shell(f"cat {link}/id_ed25519").status == 1


# --- the cold path -------------------------------------------------------------------------------------------------------


def test_the_interpreter_is_isolated(world: World) -> None:
    text = Path(world.command).read_text()

    assert " -I " in text
    assert sys.executable not in text.splitlines()[0]


# --- the first process, which starts before its plan ---------------------------------------------------------------------


@pytest.mark.needs("strace", ordinary=True)
def test_an_ordinary_users_first_process_starts_before_the_plan_is_read(world: World) -> None:
    assert world.run("true").status == 0  # the plan is in the cache
    trace = world.home / "trace"
    command = ["strace", "-f", "-o", str(trace), "-e", "trace=clone3,openat", *world.run_argv(["true"])]
    subprocess.run(command, env=world.env(), cwd=world.workspace, check=True, capture_output=True)

    lines = trace.read_text().splitlines()
    (started,) = [number for number, line in enumerate(lines) if "CLONE_NEWUSER" in line]
    (read,) = [number for number, line in enumerate(lines) if "/remit/plans" in line and "openat" in line]
    assert started < read


def test_a_request_that_is_too_large_for_one_message_starts_all_the_same(world: World) -> None:
    large = [option for name in "ABC" for option in ("--env", f"{name}={name * 100_000}")]

    result = world.shell('echo "${#A} ${#B} ${#C}"', *large)

    assert (result.status, result.stdout) == (0, "100000 100000 100000\n"), result.stderr


def test_a_plan_that_wants_other_namespaces_starts_all_the_same(world: World) -> None:
    result = world.shell("echo ran", "--degrade", "network")

    assert (result.status, result.stdout) == (0, "ran\n"), result.stderr


def test_nothing_is_left_of_a_first_process_that_nobody_wanted(world: World) -> None:
    """It would hold standard output open: this would wait for its end."""
    assert world.remit("run", "--bogus").status == 2
    assert world.remit("run", "-p", "none", "--", "true").status == 2
    assert world.remit("run", "--help").status == 0


@pytest.mark.needs(ordinary=True)
@pytest.mark.parametrize(
    ("most", "status", "said"),
    [(9, 0, ""), (0, 125, "remit: error: no new namespaces: No space left on device\n")],
)
def test_invariant_1_a_namespace_that_its_first_process_cannot_make_is_no_start(
    world: World, most: int, status: int, said: str
) -> None:
    without = 'exec setpriv --ambient-caps=-all --inh-caps=-all -- "$@"'
    limited = f"echo {most} > /proc/sys/user/max_net_namespaces || exit 90; {without}"
    around = ["unshare", "--user", "--map-current-user", "--keep-caps", "--", "sh", "-c", limited, "sh"]
    argv = [*around, *world.run_argv(["sh", "-c", "echo ran > here"])]
    done = subprocess.run(argv, capture_output=True, text=True, env=world.env(), cwd=world.workspace, check=False)

    if done.returncode == 90:
        pytest.skip(f"limits cannot be set here: {done.stderr.strip().splitlines()[-1]}")
    assert (done.returncode, done.stderr.partition("remit: hint")[0]) == (status, said)
    assert (world.workspace / "here").exists() == (status == 0)


@pytest.mark.needs(ordinary=True)
@pytest.mark.parametrize("most", ["1", "4000"])
def test_a_start_without_a_first_process_is_in_the_record(world: World, most: str) -> None:
    assert world.shell("true").status == 0  # so that the plan is there already
    before = {one.name for one in (world.state / "sessions").iterdir()}
    argv = ["prlimit", f"--nproc={most}", *world.run_argv(["sh", "-c", "echo ran > here"])]
    done = subprocess.run(argv, capture_output=True, text=True, env=world.env(), cwd=world.workspace, check=False)

    (session,) = {one.name for one in (world.state / "sessions").iterdir()} - before
    last = json.loads((world.state / "sessions" / session / "events.jsonl").read_text().splitlines()[-1])
    if most == "1":
        assert done.returncode == 125
        assert (last["phase"], last["failed"]) == ("launch", "no new namespaces: Resource temporarily unavailable")
    else:
        assert (done.returncode, last["status"]) == (0, 0)
    assert (world.workspace / "here").exists() == (most != "1")
