"""What the exit status of ``remit run`` says: the command's own, or, never to be mistaken for it, Remit's."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kernel.run_harness import Result, World

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=2)]


def with_status(
    world: World, command: Sequence[str], options: Sequence[str] = ()
) -> tuple[Result, list[dict[str, object]]]:
    """A run and the events that it wrote to --status-fd."""
    read, write = os.pipe()
    try:
        result = world.run(*command, options=("--status-fd", str(write), *options), pass_fds=(write,))
    finally:
        os.close(write)
    with os.fdopen(read) as lines:
        return result, [json.loads(line) for line in lines]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 42, 77, 99, 124, 125, 126, 127, 128, 130, 137, 143, 200, 254, 255])
def test_exit_code_passes_through(world: World, code: int) -> None:
    result = world.shell(f"exit {code}")

    assert (result.status, result.stderr) == (code, "")


@pytest.mark.parametrize(
    "name", ["HUP", "INT", "QUIT", "ILL", "ABRT", "FPE", "KILL", "SEGV", "PIPE", "ALRM", "TERM", "USR1"]
)
def test_a_signal_that_ends_the_command_is_128_and_its_number(world: World, name: str) -> None:
    result = world.shell(f"kill -{name} $$; echo survived")

    assert (result.status, result.stdout) == (128 + signal.Signals[f"SIG{name}"], "")


def test_abort_is_134(world: World) -> None:
    assert world.python("os.abort()").status == 128 + signal.SIGABRT


def test_a_command_that_is_not_there_is_127(world: World) -> None:
    result = world.run("no-such-program")

    assert result.status == 127
    assert "no-such-program: not found" in result.stderr


@pytest.mark.parametrize(
    ("name", "status", "why"), [("x", 127, "not found"), ("x/", 126, "File name too long")], ids=["name", "path"]
)
@pytest.mark.parametrize("size", [10_000, 100_000])
def test_a_name_that_is_too_long_for_a_message(world: World, name: str, status: int, why: str, size: int) -> None:
    result = world.run(name * (size // len(name)))

    assert result.status == status
    assert why in result.stderr
    assert "xx" in result.stderr or "x/x/" in result.stderr
    assert len(result.stderr) < 1000


def test_a_command_that_is_there_and_not_granted_is_127_and_says_so(world: World) -> None:
    program = world.home / "tool"
    program.write_text("#!/bin/sh\necho ran\n")
    program.chmod(0o755)

    result = world.run(str(program))

    assert (result.status, result.stdout) == (127, "")
    assert "exists on the host, not granted" in result.stderr
    assert world.run(str(program), options=("--exec", str(program))).stdout == "ran\n"


def test_a_file_that_is_not_executable_is_126(world: World) -> None:
    (world.workspace / "data").write_text("#!/bin/sh\n")

    result = world.run("./data")

    assert result.status == 126
    assert "not executable" in result.stderr


def test_a_program_whose_execution_is_not_granted_is_126(world: World) -> None:
    directory = world.home / "tools"
    directory.mkdir()
    program = directory / "tool"
    program.write_text("#!/bin/sh\necho ran\n")
    program.chmod(0o755)

    denied = world.run(str(program), options=("--read", str(directory)))
    granted = world.run(str(program), options=("--exec", str(directory)))

    assert (denied.status, denied.stdout) == (126, "")
    assert (granted.status, granted.stdout) == (0, "ran\n")


def test_a_script_without_an_interpreter_line_is_run_by_a_shell(world: World) -> None:
    script = world.workspace / "script"
    script.write_text("echo ran $1\n")
    script.chmod(0o755)

    assert world.run("./script", "it").stdout == "ran it\n"


def test_the_time_limit_is_124(world: World) -> None:
    result = world.run("sleep", "1000", options=("--limit", "time=1s"))

    assert result.status == 124
    assert result.stderr.count("\n") == 1
    assert "time limit" in result.stderr


def test_the_memory_limit_is_137_with_one_line(world: World) -> None:
    result = world.run(
        "/usr/bin/python3",
        "-c",
        "import sys; print('started', flush=True)\nheld = []\nwhile True: held.append(bytearray(b'x' * (1 << 20)))",
        options=("--limit", "memory=64MiB", "--degrade", "limits"),
    )

    assert result.status == 137
    assert result.stdout == "started\n"
    assert result.stderr.count("memory limit") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ("run",),
        ("run", "--no-such-option", "--", "true"),
        ("run", "-p", "no-such-profile", "--", "true"),
        ("run", "-w", "/no/such/directory", "--", "true"),
        ("run", "--limit", "memory=lots", "--", "true"),
        ("run", "--limit", "colour=3", "--", "true"),
        ("run", "--connect", "no port", "--", "true"),
        ("run", "--env", "1=2", "--", "true"),
        ("run", "--degrade", "everything", "--", "true"),
        ("run", "--allow-syscalls", "all", "--", "true"),
        ("run", "--status-fd", "77", "--", "true"),
        ("run", "--status-fd", "x", "--", "true"),
        ("run", "--read", "", "--", "true"),
        ("run", "--read", "~/x", "--", "true"),
        ("no-such-command",),
    ],
    ids=lambda argv: " ".join(argv),
)
def test_bad_usage_is_2_with_a_message_and_no_traceback(world: World, argv: tuple[str, ...]) -> None:
    result = world.remit(*argv)

    assert result.status == 2, result
    assert result.stdout == ""
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr


def test_every_bad_option_is_reported_at_once(world: World) -> None:
    result = world.remit("run", "--limit", "memory=lots", "--env", "1=2", "--degrade", "everything", "--", "true")

    assert result.status == 2
    for mistake in ("lots", "1", "everything"):
        assert mistake in result.stderr


def test_invariant_9_every_status_of_remit_is_told_apart_from_the_commands(world: World) -> None:
    own, own_events = with_status(world, ["sh", "-c", "exit 125"])
    (world.base / "hidden").mkdir()
    remits, remits_events = with_status(world, ["true"], ("--chdir", str(world.base / "hidden")))

    assert (own.status, remits.status) == (125, 125)
    assert [event["event"] for event in own_events] == ["started", "exited"]
    assert own_events[-1]["code"] == 125
    assert [event["event"] for event in remits_events] == ["failed"]


@pytest.mark.parametrize("status", [126, 127])
def test_invariant_9_a_command_that_did_not_start_has_no_exited_event(world: World, status: int) -> None:
    (world.workspace / "data").write_text("")
    name = {126: "./data", 127: "no-such-program"}[status]

    result, events = with_status(world, [name])

    assert result.status == status
    assert [event["event"] for event in events] == ["failed"]
    assert set(events[0]) >= {"phase", "message", "hint"}


def test_status_of_an_exit(world: World) -> None:
    result, events = with_status(world, ["sh", "-c", "echo out; exit 3"])

    assert (result.status, result.stdout) == (3, "out\n")
    assert [event["event"] for event in events] == ["started", "exited"]
    assert events[0]["session"] == world.records()[-1].name
    assert isinstance(events[0]["plan"], str)
    assert (events[1]["code"], events[1]["limit"]) == (3, None)


def test_status_of_a_signal(world: World) -> None:
    _, events = with_status(world, ["sh", "-c", "kill -TERM $$"])

    assert events[-1]["signal"] == signal.SIGTERM
    assert "code" not in events[-1]


def test_status_of_a_limit(world: World) -> None:
    _, events = with_status(world, ["sleep", "1000"], ("--limit", "time=1s"))

    assert (events[-1]["event"], events[-1]["limit"]) == ("exited", "time")


def test_status_counts_denials(world: World) -> None:
    _, events = with_status(world, ["sh", "-c", "mkdir -p .git/hooks; echo x > .git/hooks/pre-commit"])

    assert isinstance(events[-1]["denials"], int)
    assert events[-1]["denials"] >= 1


def test_the_command_does_not_have_the_status_descriptor(world: World) -> None:
    read, write = os.pipe()
    code = "import os\nprint(sorted(int(f) for f in os.listdir('/proc/self/fd')))"
    with os.fdopen(read), os.fdopen(write, "w"):
        result = world.run("/usr/bin/python3", "-c", code, options=("--status-fd", str(write)), pass_fds=(write,))

    # The last one is that of the listing itself.
    assert result.stdout == "[0, 1, 2, 3]\n"


def test_options_after_the_command_are_the_commands(world: World) -> None:
    result = world.remit("run", "-p", "offline", "echo", "--read", "-w", "--", "x")

    assert result.stdout == "--read -w -- x\n"


def test_the_default_profile_works(world: World) -> None:
    result = world.remit("run", "--", "sh", "-c", "echo hello > here; cat here")

    assert (result.status, result.stdout) == (0, "hello\n")
    assert (world.workspace / "here").read_text() == "hello\n"


def test_arguments_arrive_as_they_were_given(world: World) -> None:
    words = ["", " ", "a b", "$HOME", "*", "\n", "\\", "'", '"', "é", "--", "x" * 5000]
    result = world.run("/usr/bin/python3", "-c", "import sys, json; print(json.dumps(sys.argv[1:]))", *words)

    assert json.loads(result.stdout) == words


def test_explain_runs_nothing(world: World) -> None:
    result = world.remit("explain", "-p", "offline", "-w", str(world.workspace))

    assert result.status == 0, result
    assert str(world.workspace) in result.stdout
    assert not (Path(world.state) / "sessions").exists()


def test_doctor_agrees_with_run(world: World) -> None:
    doctor = world.remit("doctor")
    ran = world.run("true")

    assert (doctor.status == 0) == (ran.status == 0), (doctor, ran)
