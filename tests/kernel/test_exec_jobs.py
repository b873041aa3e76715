"""``remit exec`` as a job: it stops when its command does, and goes on with it. Seen by whoever waits for it, as a shell does."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import pytest

from tests.kernel.run_harness import TIMEOUT, Terminal, World, ended, first_line
from tests.kernel.session_harness import until

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6)]

STOPS = ["STOP", "TSTP", "TTIN", "TTOU"]
Words = Callable[..., list[str]]


@pytest.fixture
def session(world: World) -> Iterator[str]:
    """A session that stands."""
    started = world.remit("session", "start", "-p", world.profile, "-w", str(world.workspace))
    assert started.status == 0, started.stderr
    yield started.stdout.strip()
    world.remit("session", "stop", started.stdout.strip())


@contextmanager
def job(world: World, session: str, script: str, *options: str) -> Generator[subprocess.Popen[str]]:
    """A call in the session, its standard descriptors pipes."""
    with subprocess.Popen(
        world.argv("exec", session, *options, "--", "sh", "-c", script),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=world.env(),
        cwd=world.workspace,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def stopped(process: subprocess.Popen[str]) -> bool:
    """Wait until a child has stopped, and not ended."""
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    return os.WIFSTOPPED(status)


def marked(mark: str) -> list[int]:
    """Processes that have a word on their command line, by the host's numbers."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
            except OSError:
                continue
            if any(word.endswith(b": " + mark.encode()) for word in words) and words[:1] == [b"sh"]:
                found.append(int(name))
    return found


def parent(pid: int) -> int:
    """A process's parent, by the host's numbers."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("name", STOPS)
def test_a_command_that_stops_itself_stops_exec(world: World, session: str, name: str) -> None:
    """And goes on with it. Its whole group does."""
    script = f"sh -c 'kill -{name} 0; echo child'; echo on; exit 5"
    with job(world, session, script) as process:
        assert stopped(process)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=TIMEOUT)

    assert (process.returncode, output) == (5, "child\non\n")


def test_exec_that_is_told_to_stop_asks_its_command(world: World, session: str) -> None:
    """Which may have something to do first."""
    script = "trap 'echo asked; kill -STOP $$; echo on; exit 3' TSTP; echo ready; while :; do read line; done"
    with job(world, session, script) as process:
        assert first_line(process) == "ready"
        process.send_signal(signal.SIGTSTP)
        assert stopped(process)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=TIMEOUT)

    assert (process.returncode, output) == (3, "asked\non\n")


def test_again_and_again(world: World, session: str) -> None:
    with job(world, session, "for i in 1 2 3 4 5; do kill -TSTP $$; echo $i; done") as process:
        for number in range(1, 6):
            assert stopped(process)
            process.send_signal(signal.SIGCONT)
            assert first_line(process) == str(number)
        assert process.wait(TIMEOUT) == 0


def test_one_that_goes_on_by_itself_and_ends(world: World, session: str) -> None:
    """Its status is its own, also where nobody let it go on."""
    script = "(until grep -q '^State:.T' /proc/$$/status; do :; done; kill -CONT $$) & kill -STOP $$; exit 7"
    with job(world, session, script) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            process.send_signal(signal.SIGCONT)
            _, status = os.waitpid(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)

    assert process.returncode == 7


def test_others_go_on(world: World, session: str) -> None:
    with job(world, session, "kill -STOP $$") as process:
        assert stopped(process)
        assert world.remit("exec", session, "--", "echo", "on").stdout == "on\n"
        process.send_signal(signal.SIGCONT)
        assert process.wait(TIMEOUT) == 0


def test_a_killed_exec_takes_its_stopped_command_along(world: World, session: str) -> None:
    with job(world, session, f"kill -STOP $$; : {session}-killed") as process:
        assert stopped(process)
        assert marked(f"{session}-killed")
        process.kill()
        until(lambda: not marked(f"{session}-killed"))


def test_a_stopped_commands_time_is_limited(world: World, session: str) -> None:
    with job(world, session, f"kill -STOP $$; : {session}-timed", "--limit", "time=4s") as process:
        assert stopped(process)
        until(lambda: not marked(f"{session}-timed"))
        process.send_signal(signal.SIGCONT)
        assert process.wait(TIMEOUT) == 124


def test_a_stopped_command_ends_with_its_grant(world: World, session: str) -> None:
    with job(world, session, f"kill -STOP $$; : {session}-expired", "--read", ".", "--expires", "4s") as process:
        assert stopped(process)
        until(lambda: not marked(f"{session}-expired"))
        process.send_signal(signal.SIGCONT)
        assert process.wait(TIMEOUT) == 124


def test_a_stopped_command_takes_a_kill(world: World, session: str) -> None:
    """As a shell's ``kill %1`` sends it."""
    with job(world, session, "kill -STOP $$; sleep 600") as process:
        assert stopped(process)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        assert process.wait(TIMEOUT) == 128 + signal.SIGTERM


# --- on a terminal -------------------------------------------------------------------------------------------------------


def shell(world: World, *words: str) -> Terminal:
    """An interactive shell, as users have it, that runs a command."""
    opened = Terminal(["bash", "--norc", "--noprofile", "-i"], world.env({"PS1": "@@ "}), world.workspace)
    opened.expect("@@ ")
    opened.send(shlex.join(words) + "\r")
    return opened


def test_stopped_by_itself_on_a_terminal(world: World, session: str) -> None:
    """The shell has its terminal back, as it was."""
    script = "echo rea''dy; kill -STOP $$; read line; echo got-$line; exit 5"
    opened = shell(world, *world.argv("exec", session, "--", "sh", "-c", script))
    try:
        opened.expect("ready\r\n")
        opened.expect("Stopped")
        opened.expect("@@ ")
        opened.send("stty -a\r")
        shown = opened.expect(r"(?s)speed.*@@ ")[0].replace("\r\n", " ")
        assert " -icanon" not in shown
        assert " echo " in shown
        opened.send("fg\r")
        opened.expect("read line")
        opened.send("again\r")
        opened.expect("got-again")
        opened.expect("@@ ")
        opened.send("echo status=$?\r")
        opened.expect(r"status=5\r\n")
    finally:
        opened.close()


@contextmanager
def on_terminal(world: World, session: str, script: str, *options: str) -> Generator[Terminal]:
    """A call on a terminal, seen by the process that waits for it."""
    argv = world.argv("exec", session, *options, "--", "sh", "-c", script)
    opened = Terminal(argv, world.env(), world.workspace)
    try:
        yield opened
    finally:
        opened.close()


def test_statuses_on_a_terminal(world: World, session: str) -> None:
    for words, expected in (("exit 3", 3), ("kill -USR1 $$", 138), ("nonesuch", 127), ("exec /etc/passwd", 126)):
        with on_terminal(world, session, words) as opened:
            assert opened.wait() == expected, words
    for name, expected in (("nonesuch", 127), ("/etc/passwd", 126)):
        opened = Terminal(world.argv("exec", session, "--", name), world.env(), world.workspace)
        try:
            assert opened.wait() == expected, name
        finally:
            opened.close()


def test_the_commands_place_on_a_terminal(world: World, session: str) -> None:
    """In the foreground, in a group of its own, whose parent leads the session: so that it can be stopped."""
    code = """
import os
print(os.getpgrp() == os.getpid() == os.tcgetpgrp(0), os.getsid(0) == os.getppid() == os.getpgid(os.getppid()), "place")
print(open("/dev/tty").isatty(), "tty")
"""
    (world.workspace / "place.py").write_text(code)
    with on_terminal(world, session, "exec /usr/bin/python3 place.py") as opened:
        opened.expect("True True place\r\nTrue tty")
        assert opened.wait() == 0


def test_the_leader_is_closed_to_its_command(world: World, session: str) -> None:
    """It is as confined as the command, and has nothing that the command could reach; the shell beside it is the control."""
    script = (
        "look() { for f in mem environ maps; do cat /proc/$1/$f > /dev/null 2>&1 && echo $2-$f; done;"
        " ls /proc/$1/fd > /dev/null 2>&1 && echo $2-fd; grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/$1/status;"
        " tr -d '\\0' < /proc/$1/cmdline | wc -c; };"
        f" look $PPID leader; look $$ own; echo done; read line; : {session}-leader"
    )
    with on_terminal(world, session, script) as opened:
        shown = opened.expect("(?s)(.*)done")[1]
        assert "leader-" not in shown
        assert "own-environ" in shown
        assert "own-fd" in shown
        assert (
            shown.count("Seccomp:\t2") == shown.count("NoNewPrivs:\t1") == shown.count("CapEff:\t0000000000000000") == 2
        )
        leader, _, own = shown.partition("own-")
        assert leader.split()[-1] == "0"
        assert own.split()[-1] != "0"
        if os.geteuid() == 0:  # nobody else can look at it from outside either
            [command] = marked(f"{session}-leader")
            descriptors = f"/proc/{parent(command)}/fd"
            held = sorted(os.readlink(f"{descriptors}/{name}") for name in os.listdir(descriptors))
            # And the command's pidfd, and the way back.
            assert held[:3] == ["/dev/null"] * 3
            assert [kind.partition(":")[0] for kind in held[3:]] == [
                "anon_inode",
                "socket",
            ]
        opened.send("\r")
        assert opened.wait() == 0


@pytest.mark.parametrize("end", ["limit", "client"])
@pytest.mark.parametrize("name", ["STOP", "KILL"])
def test_a_command_that_turns_on_its_leader(world: World, session: str, name: str, end: str) -> None:
    """It ends as any other, and the session goes on."""
    mark = f"{session}-{name}-{end}"
    options = ("--read", ".", "--limit", "time=4s") if end == "limit" else ()
    with on_terminal(world, session, f"echo rea''dy; kill -{name} $PPID; sleep 600; : {mark}", *options) as opened:
        opened.expect("ready")
        if end == "client":
            os.kill(opened.pid, signal.SIGKILL)
        status = opened.wait()
        if end == "limit":
            assert status == (124 if name == "STOP" else 137)
    until(lambda: not marked(mark))
    assert world.remit("exec", session, "--", "echo", "on").stdout == "on\n"


@pytest.mark.parametrize("how", ["time", "expiry", "kill", "client"])
def test_a_stopped_command_ends_on_a_terminal(world: World, session: str, how: str) -> None:
    mark = f"{session}-{how}"
    options = {"time": ("--limit", "time=4s"), "expiry": ("--expires", "4s")}.get(how, ())
    with on_terminal(world, session, f"kill -TSTP $$; sleep 600; : {mark}", "--read", ".", *options) as opened:
        _, status = os.waitpid(opened.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        if how == "client":
            os.kill(opened.pid, signal.SIGKILL)
        elif how == "kill":  # as a shell's does it to a job that is stopped
            os.kill(opened.pid, signal.SIGTERM)
            os.kill(opened.pid, signal.SIGCONT)
        until(lambda: not marked(mark))
        if how != "client":
            os.kill(opened.pid, signal.SIGCONT)
            assert opened.wait() == (128 + signal.SIGTERM if how == "kill" else 124)


def test_nothing_is_left_of_a_call_on_a_terminal(world: World, session: str) -> None:
    mark = f"{session}-left"
    with on_terminal(world, session, f"kill -TSTP $$; exit 4; : {mark}") as opened:
        _, status = os.waitpid(opened.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        [command] = marked(mark)
        leader = parent(command)
        os.kill(opened.pid, signal.SIGCONT)
        assert opened.wait() == 4
    assert ended(leader)
    assert ended(command)
