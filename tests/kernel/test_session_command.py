"""``remit session`` and ``remit exec``: standing sessions, from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import jsonschema
import pytest

from tests.kernel.run_harness import TIMEOUT, Result, Terminal, World, descendants
from tests.kernel.session_harness import client, cut_off, gone, handles, python

pytestmark = [pytest.mark.kernel, pytest.mark.needs(landlock=6, userns=True)]

NUMBERS = count()
SCHEMAS = Path(__file__).resolve().parents[2] / "cli" / "schemas"


def schema(name: str) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    return loaded


@contextmanager
def standing(world: World, *options: str) -> Generator[str]:
    """A session that stands; stopped at the end if it still does."""
    started = world.remit("session", "start", "-p", world.profile, "-w", str(world.workspace), *options)
    assert started.status == 0, started.stderr
    session = started.stdout.strip()
    try:
        yield session
    finally:
        world.remit("session", "stop", session)


def sockets(world: World) -> list[str]:
    return sorted(path.name for path in (world.base / "runtime" / "remit").iterdir())


@contextmanager
def running(world: World, session: str, *options: str) -> Generator[tuple[subprocess.Popen[str], int]]:
    """A call that waits, and the host's number of its process."""
    script = f"echo up; sleep 600; : {next(NUMBERS)}"
    with subprocess.Popen(
        world.argv("exec", session, *options, "--", "sh", "-c", script),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=world.env(),
        cwd=world.workspace,
    ) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "up\n"
            inside = [
                pid for pid in every_pid() if cwd_of(pid) == world.workspace and command_of(pid) == ["sh", "-c", script]
            ]
            # The shell's child looks the same until it has executed sleep(1).
            yield client, min(inside)
        finally:
            client.kill()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_session_stands_until_it_is_stopped(world: World) -> None:
    (world.workspace / "a").write_text("hello\n")
    with standing(world) as session:
        assert world.remit("session", "list").stdout.count(session) == 1
        first = world.remit("exec", session, "--", "sh", "-c", "cat a; echo made > b; exit 3")
        assert (first.status, first.stdout) == (3, "hello\n")
        assert (world.workspace / "b").read_text() == "made\n"
        with running(world, session) as (_, inside):
            pidfd = os.pidfd_open(parent(parent(inside)))
        assert world.remit("session", "stop", session).status == 0
        assert ended_by_descriptor(pidfd)
        assert session not in world.remit("session", "list").stdout
    assert sockets(world) == []
    again = world.remit("exec", session, "--", "true")
    assert again.status == 125
    assert "no live session" in again.stderr


def ended_by_descriptor(pidfd: int) -> bool:
    import select

    watch = select.poll()
    watch.register(pidfd, select.POLLIN)
    try:
        return bool(watch.poll(30_000))
    finally:
        os.close(pidfd)


def test_the_options_of_exec_are_the_calls_grant(world: World) -> None:
    (world.workspace / "a").write_text("hello\n")
    (world.workspace / "other").write_text("other\n")
    script = "cat a; cat other; echo x > new; true"
    with standing(world) as session:
        whole = world.remit("exec", session, "--", "sh", "-c", script)
        assert whole.stdout == "hello\nother\n"
        assert (world.workspace / "new").exists()
        (world.workspace / "new").unlink()
        narrow = world.remit("exec", session, "--read", "a", "--", "sh", "-c", script)
        assert narrow.stdout == "hello\n"
        assert narrow.stderr.count("Permission denied") == 2
        assert not (world.workspace / "new").exists()


def test_a_grant_beyond_the_session_is_refused_naming_each_object(world: World, secret: Path) -> None:
    with standing(world) as session:
        result = world.remit("exec", session, "--read", str(secret), "--write", "/usr", "--", "true")
    assert result.status == 2
    assert str(secret) in result.stderr
    assert "write /usr" in result.stderr


def test_exit_statuses_are_those_of_run(world: World) -> None:
    with standing(world) as session:
        for command, status in (
            (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
            (["nonesuch"], 127),
            (["/etc/hostname"], 126),
            (["sh", "-c", "exit 255"], 255),
        ):
            assert world.remit("exec", session, "--", *command).status == status, command
        limited = world.remit("exec", session, "--limit", "time=200ms", "--", "sleep", "600")
        assert limited.status == 124
        assert "time limit" in limited.stderr


@pytest.mark.parametrize("size", [20_000, 131_000])
def test_a_name_that_is_too_long_for_a_message_fails_its_own_call_only(world: World, size: int) -> None:
    with standing(world) as session:
        result = world.remit("exec", session, "--", "x" * size)
        assert result.status == 127
        assert "xxx" in result.stderr
        assert "not found" in result.stderr
        assert len(result.stderr) < 1000
        assert world.remit("exec", session, "--", "echo", "on").stdout == "on\n"


@pytest.mark.parametrize(("depth", "count"), [(7, 20), (7, 80), (15, 300)])
def test_exec_reads_the_answer_whatever_its_command_was_denied(world: World, depth: int, count: int) -> None:
    place = Path("deep", *["x" * 250] * depth)
    (world.workspace / place).mkdir(parents=True)
    code = f"for n in range({count}): attempt(lambda: os.open('{place}/%04d' % n, os.O_WRONLY | os.O_CREAT))"
    with standing(world) as session:
        for _ in range(2):
            result = world.remit("exec", session, "--read", ".", "--", *python(code + "\nsys.exit(7)"))
            assert result.status == 7, result
        missing = world.remit("exec", session, "--", "x" * 120_000)
        assert (missing.status, len(missing.stderr) < 10_000) == (127, True)
        missing = world.remit("run", "-p", world.profile, "-w", str(world.workspace), "--", "x" * 120_000)
        assert (missing.status, len(missing.stderr) < 10_000) == (127, True)
        assert world.remit("exec", session, "--", "true").status == 0


def test_status_fd_tells_remits_own_ends_apart(world: World) -> None:
    with standing(world) as session:
        read, write = os.pipe()
        try:
            os.set_inheritable(write, True)
            world.remit("exec", session, "--status-fd", str(write), "--", "sh", "-c", "exit 7", pass_fds=(write,))
            world.remit("exec", session, "--status-fd", str(write), "--", "nonesuch", pass_fds=(write,))
        finally:
            os.close(write)
        with os.fdopen(read) as lines:
            events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == ["started", "exited", "failed"]
    assert events[0]["session"] == session
    assert events[1]["code"] == 7
    assert events[2]["phase"] == "exec"


@pytest.mark.parametrize(("program", "events"), [("true", ["started", "exited"]), ("nonesuch", ["failed"])])
def test_on_a_terminal_too_a_command_has_started_when_it_has(world: World, program: str, events: list[str]) -> None:
    """There it is another process that starts it."""
    read, write = os.pipe()
    with standing(world) as session, os.fdopen(read) as lines:
        os.set_inheritable(write, True)
        words = world.argv("exec", session, "--status-fd", str(write), "--", program)
        call = Terminal(words, world.env(), world.workspace)
        try:
            os.close(write)
            assert call.wait() == (0 if program == "true" else 127)
        finally:
            call.close()
        assert [json.loads(line)["event"] for line in lines] == events


def test_a_command_has_started_while_it_runs(world: World) -> None:
    """Whoever reads the status descriptor is told then, and not at the end."""
    read, write = os.pipe()
    with standing(world) as session, os.fdopen(read) as lines:
        words = world.argv("exec", session, "--status-fd", str(write), "--", "cat")
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, env=world.env(), cwd=world.workspace, pass_fds=(write,)
        ) as call:
            os.close(write)
            assert json.loads(lines.readline())["event"] == "started"
            assert call.poll() is None
            call.communicate(timeout=TIMEOUT)
        assert [json.loads(line)["event"] for line in lines] == ["exited"]


def test_streams_are_the_callers(world: World) -> None:
    data = "line\n" * 200_000
    with standing(world) as session:
        assert world.remit("exec", session, "--", "cat", stdin=data).stdout == data
        file = world.base / "input"
        file.write_text("from a file\n")
        with file.open() as opened:
            result = subprocess.run(
                world.argv("exec", session, "--", "sh", "-c", "cat; echo x > /proc/self/fd/0"),
                stdin=opened,
                capture_output=True,
                text=True,
                env=world.env(),
                cwd=world.workspace,
                check=False,
            )
        assert result.stdout == "from a file\n"
        assert file.read_text() == "from a file\n"


@pytest.mark.parametrize("flags", [0, getattr(os, "O_PATH", 0)])
def test_no_stream_is_a_way_into_the_host(world: World, secret: Path, flags: int) -> None:
    opened = os.open(secret.parent, os.O_RDONLY | flags)
    code = "import os; print(os.fstat(0).st_rdev == os.makedev(1, 3)); open('made', 'w')"
    try:
        with standing(world) as session:
            argv = world.argv("exec", session, "--", "/usr/bin/python3", "-c", code)
            for which in range(3):
                streams = [subprocess.DEVNULL, subprocess.PIPE, subprocess.PIPE]
                streams[which] = opened
                with subprocess.Popen(
                    argv, stdin=streams[0], stdout=streams[1], stderr=streams[2], env=world.env(), cwd=world.workspace
                ) as process:
                    output, errors = process.communicate(timeout=TIMEOUT)
                made = world.workspace / "made"
                if which == 0:
                    assert (process.returncode, output) == (0, b"True\n")
                    made.unlink()
                else:
                    assert (process.returncode, made.exists()) == (125, False)
                    assert which == 2 or b"remit: error: " in errors
    finally:
        os.close(opened)


def test_a_killed_exec_takes_its_command_along(world: World) -> None:
    with standing(world) as session:
        with running(world, session) as (client, inside):
            pidfd = os.pidfd_open(inside)
            client.kill()
            assert ended_by_descriptor(pidfd)
        assert world.remit("exec", session, "--", "true").status == 0


def every_pid() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []


def cwd_of(pid: int) -> Path | None:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None


STARTER = """
from unittest.mock import patch
import signal, threading
from remit.sandbox.session import standing
from remit.sandbox.session.opening import Wanted
def halted(*_, **__):
    print("halted", flush=True)
    threading.Event().wait()
signal.pthread_sigmask(signal.SIG_SETMASK, ())
with patch(WHERE, halted):
    standing.start(Wanted(profile="offline", workspace="."), os.environ)
"""


@contextmanager
def halted(world: World, where: str) -> Generator[subprocess.Popen[str]]:
    """A start that stands still where it calls this."""
    with client(STARTER.replace("WHERE", repr(f"remit.sandbox.session.{where}")), world) as starter:
        try:
            assert starter.stdout is not None
            assert starter.stdout.readline() == "halted\n"
            yield starter
        finally:
            starter.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("where", ["standing.open_session", "standing._keep_context", "standing.os.rename"])
def test_an_interrupted_start_leaves_nothing(world: World, where: str, number: signal.Signals) -> None:
    """Wherever it is: nobody could find the session, and nobody stop it. What its starter left in a directory goes too."""
    with standing(world) as other:
        with halted(world, where) as starter:
            left = handles(descendants(starter.pid))
            assert len(left) >= (1 if where.endswith("open_session") else 2)
            starter.send_signal(number)
        assert gone(left)
        listed = json.loads(world.remit("session", "list", "--json").stdout)
        assert [one["id"] for one in listed["sessions"]] == [other]
        assert sockets(world) == [f"{other}.sock"]


def test_a_start_that_was_interrupted_after_it_had_a_name_leaves_nothing(world: World) -> None:
    """The name is there, and its session was not confirmed."""
    with halted(world, "link.Link.keep") as starter:
        (session,) = [name.removesuffix(".sock") for name in sockets(world)]
        assert world.remit("exec", session, "--", "echo", "on").stdout == "on\n"
        left = handles(descendants(starter.pid))
        assert len(left) >= 2
        starter.kill()
    assert gone(left)
    assert world.remit("session", "list").stdout == ""
    assert sockets(world) == []


def test_a_start_that_goes_on_keeps_its_socket(world: World) -> None:
    """The list takes away what nobody will listen on any more, and not what somebody is only about to."""
    directory = world.base / "runtime" / "remit"
    with halted(world, "standing.spawn") as starter:
        (directory / ".1-deadbeef").touch()
        names = sockets(world)
        assert len(names) == 2
        assert world.remit("session", "list").stdout == ""
        assert sockets(world) == names  # the second is no socket of a process that has gone
        starter.kill()
    (directory / ".1-deadbeef").unlink()
    assert world.remit("session", "list").stdout == ""
    assert sockets(world) == []


def test_without_its_template_a_session_ends(world: World) -> None:
    with standing(world) as session, running(world, session) as (client, inside):
        template, watched = parent(parent(inside)), os.pidfd_open(inside)
        os.kill(template, signal.SIGKILL)
        _, stderr = client.communicate()
        assert client.returncode == 125
        assert "ended during the call" in stderr
        assert ended_by_descriptor(watched)


def test_json_has_its_schemas(world: World) -> None:
    started = world.remit("session", "start", "-p", "offline", "-w", str(world.workspace), "--json")
    document = json.loads(started.stdout)
    jsonschema.validate(document, schema("session-start"))
    session = document["session"]
    world.remit("exec", session, "--", "sh", "-c", "exit 4")
    listed = json.loads(world.remit("session", "list", "--json").stdout)
    jsonschema.validate(listed, schema("session-list"))
    assert [one["id"] for one in listed["sessions"]] == [session]
    calls: list[tuple[str, str]] = []
    while not calls or calls[0][1] == "running":  # it is in the record a moment after it is over
        shown = json.loads(world.remit("session", "show", session, "--json").stdout)
        jsonschema.validate(shown, schema("session"))
        calls = [(call["command"], call["result"]) for call in shown["calls"]]
    assert calls == [("sh -c 'exit 4'", "4")]
    world.remit("session", "stop", session)
    every = json.loads(world.remit("session", "list", "--all", "--json").stdout)
    jsonschema.validate(every, schema("session-list"))
    assert every["sessions"][-1]["state"] == "ended"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["exec"], "a session is expected"),
        (["exec", "--", "true"], "a session is expected"),
        (["exec", "nonesuch", "--", "true"], "no live session"),
        (["exec", "../../etc", "--", "true"], "no live session"),
        (["exec", "x"], "nothing to run"),
        (["exec", "x", "--nonesuch", "--", "true"], "no such option"),
        (["session", "start", "--", "true"], "starts without a command"),
        (["session", "start", "-p", "nonesuch"], "nonesuch"),
        (["session", "show", "nonesuch"], "no record"),
        (["session", "show", "../.."], "no record"),
        (["session", "stop", "nonesuch"], "no live session"),
        (["session", "nonesuch"], "no such command"),
    ],
)
def test_bad_words_are_told_in_a_line(world: World, words: list[str], said: str) -> None:
    result = world.remit(*words)
    assert result.status in (2, 125)
    assert said.lower() in result.stderr.lower()
    assert "Traceback" not in result.stderr


def test_a_runtime_directory_that_others_can_enter_is_refused(world: World) -> None:
    place = world.base / "runtime" / "remit"
    place.mkdir(mode=0o755)
    place.chmod(0o755)
    result = world.remit("session", "start", "-p", "offline", "-w", str(world.workspace))
    assert result.status == 125
    assert "not this user's alone" in result.stderr
    place.chmod(0o700)
    with standing(world) as session:
        assert session


def test_a_grant_file_is_a_calls_grant_for_as_often_as_it_says(world: World) -> None:
    (world.workspace / "a").write_text("hello\n")
    file = world.base / "home" / "reading.grant"
    made = world.remit("grant", "new", "--read", "a", "--uses", "1", "-o", str(file))
    assert made.status == 0, made.stderr
    with standing(world) as session:
        first = world.remit("exec", session, "--grant", str(file), "--", "sh", "-c", "cat a; echo x > b")
        assert first.stdout == "hello\n"
        assert "Permission denied" in first.stderr
        assert not (world.workspace / "b").exists()
        second = world.remit("exec", session, "--grant", str(file), "--", "cat", "a")
        assert second.status == 2
        assert second.stdout == ""
        assert "use" in second.stderr


def test_of_a_limit_in_several_grant_files_the_least_holds(world: World) -> None:
    files: list[str] = []
    for most in ("90", "500"):
        files.append(str(world.base / "home" / f"{most}.grant"))
        made = world.remit("grant", "new", "--read", ".", "--limit", f"files={most}", "-o", files[-1])
        assert made.status == 0, made.stderr
    given = [["--grant", file] for file in files]
    for words, most in (
        ([*given[0], *given[1]], "90"),
        ([*given[1], *given[0]], "90"),
        ([*given[0], "--limit", "files=60"], "60"),
        ([*given[0], "--limit", "files=300"], "90"),
        (given[1], "500"),
    ):
        command = ["--", "sh", "-c", "ulimit -n"]
        once = world.remit("run", "-p", world.profile, "-w", str(world.workspace), *words, *command)
        assert once.stdout == f"{most}\n", once.stderr
        with standing(world) as session:
            assert world.remit("exec", session, *words, *command).stdout == f"{most}\n"


def test_a_grant_file_that_is_revoked_ends_what_runs_under_it(world: World) -> None:
    """A call under it, with all its children; then a whole session's calls. What is not under it goes on."""
    files = [world.base / "home" / f"{name}.grant" for name in ("call", "session")]
    for file in files:
        assert world.remit("grant", "new", "--read", ".", "-o", str(file)).status == 0
    with (
        standing(world) as other,
        standing(world, "--grant", str(files[1])) as session,
        running(world, session, "--grant", str(files[0])) as (call, inside),
        running(world, session) as (kept, own),
        running(world, other) as (elsewhere, _),
    ):
        ended = [os.pidfd_open(pid) for pid in (inside, own)]
        assert world.remit("grant", "revoke", str(files[0])).status == 0
        _, stderr = call.communicate(timeout=TIMEOUT)
        assert call.returncode == 125
        assert "was revoked" in stderr
        assert ended_by_descriptor(ended[0])
        assert kept.poll() is None
        assert world.remit("exec", session, "--", "true").status == 0
        assert world.remit("grant", "revoke", str(files[1])).status == 0
        _, stderr = kept.communicate(timeout=TIMEOUT)
        assert "was revoked" in stderr
        assert ended_by_descriptor(ended[1])
        refused = world.remit("exec", session, "--", "true")
        assert refused.status == 2
        assert "revoked" in refused.stderr
        assert elsewhere.poll() is None


def test_a_grant_file_for_another_session_is_refused(world: World) -> None:
    file = world.base / "home" / "bound.grant"
    with standing(world) as session, standing(world) as other:
        made = world.remit("grant", "new", "--read", ".", "--session", session, "-o", str(file))
        assert made.status == 0, made.stderr
        assert world.remit("exec", session, "--grant", str(file), "--", "true").status == 0
        refused = world.remit("exec", other, "--grant", str(file), "--", "true")
        assert refused.status == 2
        assert session in refused.stderr


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_session_whose_id_cannot_be_told_does_not_stand(world: World, form: list[str]) -> None:
    words = world.argv("session", "start", "-p", world.profile, "-w", str(world.workspace), *form)
    read, gone = os.pipe()
    os.close(read)
    with open("/dev/full", "w") as full:
        shell = ["sh", "-c", 'exec "$@" >&-', "sh"]
        for command, output, why in (
            (words, full.fileno(), "No space left on device"),
            (words, gone, "Broken pipe"),
            ([*shell, *words], subprocess.DEVNULL, "Bad file descriptor"),
        ):
            result = subprocess.run(
                command, stdout=output, stderr=subprocess.PIPE, text=True, env=world.env(), check=False, timeout=TIMEOUT
            )
            assert result.returncode == 125, result
            assert f"standard output: {why}" in result.stderr
            assert "Traceback" not in result.stderr
            assert world.remit("session", "list").stdout == ""
    os.close(gone)
    assert sockets(world) == []
    states = [one["state"] for one in json.loads(world.remit("session", "list", "--all", "--json").stdout)["sessions"]]
    assert states == ["ended"] * 3


def test_an_id_is_whole_on_a_narrow_terminal(world: World) -> None:
    with standing(world) as session:
        shown = Terminal(world.argv("session", "list"), world.env({"TERM": "dumb", "COLUMNS": "60"}), world.workspace)
        try:
            shown.expect(session)
            assert shown.wait() == 0
        finally:
            shown.close()


@pytest.mark.parametrize(("kind", "bold"), [("dumb", False), ("xterm", True)])
def test_a_heading_is_bold_where_the_terminal_can(world: World, kind: str, bold: bool) -> None:
    shown = Terminal(world.argv("explain", "-p", "offline"), world.env({"TERM": kind}), world.workspace)
    try:
        assert ("\x1b[1m" in shown.expect("[^\n]*Granted[^\n]*")[0]) is bold
        shown.wait()
    finally:
        shown.close()


# More than it may have, and no more than that: where nobody looks for a while, a machine has little else.
HOG = "import time; held = bytearray(300 << 20); held[::4096] = b'x' * (300 << 8); time.sleep(600)"


@pytest.mark.parametrize(
    ("options", "command", "status", "exited"),
    [
        (["--limit", "time=300ms"], ["sleep", "600"], 124, {"code": 124, "limit": "time"}),
        (["--expires", "{:g}s"], ["sleep", "600"], 124, {"code": 124, "limit": "time"}),
        (["--limit", "memory=64MiB"], ["/usr/bin/python3", "-c", HOG], 137, {"code": 137, "limit": "memory"}),
        ([], ["sh", "-c", "kill -KILL $$"], 137, {"signal": 9, "limit": None}),
        ([], ["sh", "-c", "exit 3"], 3, {"code": 3, "limit": None}),
    ],
)
def test_a_command_that_had_started_ends_for_exec_as_for_run(
    world: World, options: list[str], command: list[str], status: int, exited: dict[str, object]
) -> None:
    # Without a delegated control group the limit is watched, and that has to be allowed.
    start = ["--degrade", "limits"] if "memory=64MiB" in options else []
    reading = ["--read", "."] if options else []
    with standing(world, *start) as session:
        ways = (["exec", session, *reading], ["run", "-p", world.profile, "-w", str(world.workspace), *start])
        for words in ways:

            def ends(seconds: float, words: list[str] = words) -> tuple[Result, list[dict[str, object]]]:
                return told(world, words, [*[word.format(seconds) for word in options], "--", *command])

            # A grant may be over before anything has started under it.
            result, events = cut_off(ends, lambda end: end[1][-1]["event"] == "exited")
            assert result.status == status, result
            assert [event["event"] for event in events] == ["started", "exited"]
            end = {name: events[1][name] for name in ("code", "signal", "limit") if name in events[1]}
            assert end == exited, words


def told(world: World, words: list[str], rest: list[str]) -> tuple[Result, list[dict[str, object]]]:
    """A command with --status-fd, and what that said."""
    read, write = os.pipe()
    try:
        result = world.remit(*words, "--status-fd", str(write), *rest, pass_fds=(write,))
    finally:
        os.close(write)
    with os.fdopen(read) as lines:
        return result, [json.loads(line) for line in lines]


def test_a_revoked_grant_ends_a_call_as_it_ends_a_run(world: World) -> None:
    file = world.base / "home" / "call.grant"
    assert world.remit("grant", "new", "--read", ".", "-o", str(file)).status == 0
    read, write = os.pipe()
    with standing(world) as session, os.fdopen(read) as lines:
        os.set_inheritable(write, True)
        words = world.argv("exec", session, "--grant", str(file), "--status-fd", str(write), "--", "sh", "-c")
        with subprocess.Popen(
            [*words, "echo up; sleep 600"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=world.env(),
            cwd=world.workspace,
            pass_fds=(write,),
        ) as call:
            os.close(write)
            assert call.stdout is not None
            assert call.stdout.readline() == "up\n"
            assert world.remit("grant", "revoke", str(file)).status == 0
            _, stderr = call.communicate(timeout=TIMEOUT)
        assert call.returncode == 125
        assert "was revoked; the call was ended" in stderr
        last = [json.loads(line) for line in lines][-1]
        assert (last["event"], last["code"], last["limit"]) == ("exited", 125, "revoked")
        result, events = told(world, ["exec", session], ["--grant", str(file), "--", "true"])
        assert result.status == 2  # nothing was started
        assert [event["event"] for event in events] == ["failed"]


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_a_status_descriptor_that_cannot_be_used(world: World, verb: str) -> None:
    """Refused before anything starts where that can be known; else the command's end is no success."""
    made = world.workspace / "made"
    with standing(world) as session:
        words = {"exec": ["exec", session], "run": ["run", "-p", world.profile, "-w", str(world.workspace)]}[verb]
        rest = ["--", "sh", "-c", "echo x > made; exit 3"]
        with open("/dev/null") as reading, open("/dev/full", "w") as full:
            number = str(reading.fileno())
            refused = world.remit(*words, "--status-fd", number, *rest, pass_fds=(reading.fileno(),))
            assert refused.status == 2
            assert f"--status-fd: descriptor {number} is not open for writing" in refused.stderr
            assert not made.exists()
            number = str(full.fileno())
            late = world.remit(*words, "--status-fd", number, *rest, pass_fds=(full.fileno(),))
            assert late.status == 125
            assert late.stderr.count("No space left on device") == 1
            assert made.exists()
            failed = world.remit(*words, "--status-fd", number, "--", "nonesuch", pass_fds=(full.fileno(),))
            assert failed.status == 127
            assert "No space" not in failed.stderr
        closed = world.remit(*words, "--status-fd", "77", *rest)
        assert closed.status == 2
        assert "descriptor 77 is not open" in closed.stderr


def test_an_empty_name_is_no_program(world: World) -> None:
    with standing(world) as session:
        ways = (["exec", session], ["run", "-p", world.profile, "-w", str(world.workspace)])
        results = [world.remit(*words, "--", "") for words in ways]
    assert [one.status for one in results] == [127, 127]
    assert [one.stderr.splitlines()[0] for one in results] == ["remit: error: '': not found"] * 2


def shell(world: World, script: str, *words: str) -> Result:
    """A script in the workspace; its parameters are the words."""
    command = ["sh", "-c", script, "sh", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, env=world.env(), cwd=world.workspace, check=False, timeout=TIMEOUT
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_a_command_does_not_take_the_input_of_the_loop_that_it_is_in(world: World, verb: str) -> None:
    """A file is given as a copy of what is left of it: it is read from there on, and whoever has it open goes on."""
    (world.workspace / "list").write_text("one\ntwo\nthree\n")
    with standing(world) as session:
        words = world.argv(*{"exec": ["exec", session], "run": ["run", "-p", world.profile]}[verb])
        looped = shell(world, 'while read x; do "$@" -- true; echo $x; done < list', *words)
        assert looped.stdout == "one\ntwo\nthree\n", looped
        rest = shell(world, '{ read x; "$@" -- cat; } < list', *words)
        assert rest.stdout == "two\nthree\n", rest


def test_a_file_that_is_too_large_for_a_copy_is_to_be_piped(world: World) -> None:
    with open(world.workspace / "large", "wb") as file:
        file.truncate((64 << 20) + 1)
    with standing(world) as session:
        words = world.argv("exec", session, "--", "wc", "-c")
        refused = shell(world, '"$@" < large', *words)
        assert refused.status == 125
        assert "hint: pass it through a pipe: cat FILE | remit exec ..." in refused.stderr
        assert shell(world, 'cat large | "$@"', *words).stdout.strip() == str((64 << 20) + 1)
        os.truncate(world.workspace / "large", 64 << 20)
        assert shell(world, '"$@" < large', *words).stdout.strip() == str(64 << 20)
