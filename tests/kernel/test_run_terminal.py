"""A session on a terminal: job control, keys, signals, resize. Driven from a terminal, by what it shows."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.kernel.run_harness import Terminal, World, terminal
from tests.kernel.session_harness import until

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=2)]


def test_the_command_has_a_terminal_of_its_own(world: World) -> None:
    with terminal(world, "sh", "-c", "tty; test -t 0 && test -t 1 && test -t 2 && echo all; stty size") as session:
        session.expect(r"/dev/pts/0\r\n")
        session.expect(r"all\r\n")
        session.expect(r"24 80\r\n")
        assert session.wait() == 0


def test_keys_reach_the_command(world: World) -> None:
    with terminal(world, "sh", "-c", "echo ready; read line; echo got $line") as session:
        session.expect("ready")
        session.send("hello\r")
        session.expect(r"got hello\r\n")
        assert session.wait() == 0


def test_ctrl_c(world: World) -> None:
    with terminal(
        world, "sh", "-c", "trap 'echo caught; exit 9' INT; echo ready; while :; do read line; done"
    ) as session:
        session.expect("ready")
        session.send("\x03")
        session.expect("caught")
        assert session.wait() == 9


def test_ctrl_c_ends_what_does_not_catch_it(world: World) -> None:
    with terminal(world, "sh", "-c", "echo ready; exec sleep 1000") as session:
        session.expect("ready")
        session.send("\x03")
        assert session.wait() == 128 + signal.SIGINT


def test_ctrl_d_is_the_end_of_input(world: World) -> None:
    with terminal(world, "sh", "-c", "echo ready; cat; echo done") as session:
        session.expect("ready")
        session.send("\x04")
        session.expect("done")
        assert session.wait() == 0


def test_resize(world: World) -> None:
    script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.01; done"
    with terminal(world, "sh", "-c", script) as session:
        session.expect("ready")
        session.resize(33, 101)
        session.expect(r"33 101\r\n")
        assert session.wait() == 0


@pytest.fixture(params=["run", "exec"])
def command(request: pytest.FixtureRequest, world: World) -> Iterator[Callable[[str], list[str]]]:
    """Words that run a script in a session, by either of the commands that have a terminal for it."""
    if request.param == "run":
        yield lambda script: world.run_argv(["sh", "-c", script])
        return
    started = world.remit("session", "start", "-p", world.profile, "-w", str(world.workspace))
    assert started.status == 0, started.stderr
    session = started.stdout.strip()
    yield lambda script: world.argv("exec", session, "--", "sh", "-c", script)
    world.remit("session", "stop", session)


def shell_that_runs(world: World, *words: str) -> Terminal:
    """An interactive shell outside, as users have it, with a command as one of its jobs."""
    opened = Terminal(["bash", "--norc", "--noprofile", "-i"], world.env({"PS1": "@@ "}), world.workspace)
    opened.expect("@@ ")
    opened.send(shlex.join(words) + "\r")
    return opened


def test_ctrl_z_and_fg(world: World, command: Callable[[str], list[str]]) -> None:
    opened = shell_that_runs(world, *command("echo rea''dy; read line; echo got-$line; exit 5"))
    try:
        opened.expect("ready\r\n")
        opened.send("\x1a")
        opened.expect("Stopped")
        opened.expect("@@ ")
        assert reads_lines(opened)
        opened.send("echo outs''ide\r")
        opened.expect("outside\r\n")
        opened.send("fg\r")
        opened.expect("read line")
        opened.send("again\r")
        opened.expect("got-again")
        opened.expect("@@ ")
        opened.send("echo status=$?\r")
        opened.expect(r"status=5\r\n")
    finally:
        opened.close()


BACKGROUND = "echo rea''dy; while ! [ -e go ]; do sleep 0.01; done; echo do''ne; "


def shell_with_job(world: World, *words: str) -> Terminal:
    """An interactive shell outside, with a command in its background whose output goes to a file; past its next prompt."""
    opened = Terminal(["bash", "--norc", "--noprofile", "-i"], world.env({"PS1": "@@ "}), world.workspace)
    opened.expect("@@ ")
    (world.workspace / "log").touch()
    opened.send(shlex.join(words) + " > log 2>&1 &\r")
    opened.expect(r"\[1\] (\d+)")
    opened.expect("@@ ")
    return opened


def logged(world: World, text: str) -> None:
    """Wait until it is there."""
    until(lambda: text in (world.workspace / "log").read_text())


def test_a_job_in_the_background_goes_on(world: World, command: Callable[[str], list[str]]) -> None:
    """It neither takes the shell's terminal nor is stopped for trying to."""
    opened = shell_with_job(world, *command(BACKGROUND))
    try:
        logged(world, "ready")
        opened.send("echo out''side; jobs; stty -a\r")
        opened.expect("outside\r\n")
        assert "Running" in opened.expect(r"\[1\]. +(\w+)")[0]
        shown = opened.expect(r"(?s)speed.*@@ ")[0]
        assert " -icanon" not in shown
        (world.workspace / "go").touch()
        opened.send("wait %1; echo s''tatus=$?\r")
        opened.expect(r"status=0\r\n")
        logged(world, "done")
        opened.send("echo st''ill here\r")
        opened.expect("still here\r\n")
    finally:
        opened.close()


def reads_lines(opened: Terminal) -> bool:
    """Whether the terminal, at a shell's prompt, is as a shell leaves it to its commands: by the line, with an echo."""
    opened.send("stty -a\r")
    shown = opened.expect(r"(?s)speed.*@@ ")[0].replace("\r\n", " ")
    return " -icanon" not in shown and " echo " in shown


def test_a_job_comes_to_the_foreground(world: World, command: Callable[[str], list[str]]) -> None:
    """Then the keys are its own, on a terminal that is as it was before the shell began to read a line there."""
    opened = shell_with_job(world, *command(BACKGROUND + "read line; echo got-$line; exit 5"))
    try:
        logged(world, "ready")
        (world.workspace / "go").touch()
        logged(world, "done")
        opened.send("fg\r")
        opened.expect("> log 2>&1")
        opened.send("keys\r")
        opened.expect("@@ ")
        logged(world, "got-keys")
        opened.send("echo status=$?\r")
        opened.expect(r"status=5\r\n")
        opened.expect("@@ ")
        assert reads_lines(opened)
    finally:
        opened.close()


def test_a_job_is_continued_in_the_background(world: World, command: Callable[[str], list[str]]) -> None:
    (world.workspace / "log").touch()
    # It starts no program: a shell that does cannot stop before that one's exec (see ``test_job_control_inside``).
    waits = BACKGROUND.replace("rea''dy", "rea''dy; exec > log").replace("sleep 0.01", ":")
    opened = shell_that_runs(world, *command(waits))
    try:
        opened.expect("ready\r\n")
        opened.send("\x1a")
        opened.expect("Stopped")
        opened.expect("@@ ")
        opened.send("bg\r")
        opened.expect("@@ ")
        (world.workspace / "go").touch()
        opened.send("wait %1; echo s''tatus=$?\r")
        opened.expect(r"status=0\r\n")
        logged(world, "done")
    finally:
        opened.close()


def test_one_that_has_something_to_do_before_it_stops(world: World, command: Callable[[str], list[str]]) -> None:
    """As editors do: they catch the signal, and stop their whole group by it when they are ready."""
    (world.workspace / "editor.py").write_text(
        "import os, signal\n"
        "def stop(*_):\n"
        "    os.write(1, b'saved\\n')\n"
        "    signal.signal(signal.SIGTSTP, signal.SIG_DFL)\n"
        "    os.kill(0, signal.SIGTSTP)\n"
        "    os.write(1, b'again\\n')\n"
        "    os._exit(6)\n"
        "signal.signal(signal.SIGTSTP, stop)\n"
        "os.write(1, b'started\\n')\n"
        "while True: signal.pause()\n"
    )
    opened = shell_that_runs(world, *command("exec /usr/bin/python3 editor.py"))
    try:
        opened.expect("started\r\n")
        opened.send("\x1a")
        opened.expect("saved\r\n")
        opened.expect("Stopped")
        opened.expect("@@ ")
        opened.send("fg\r")
        opened.expect("again\r\n")
        opened.expect("@@ ")
        opened.send("echo status=$?\r")
        opened.expect(r"status=6\r\n")
    finally:
        opened.close()


def test_the_terminal_is_given_back_as_it_was(world: World, command: Callable[[str], list[str]]) -> None:
    opened = shell_that_runs(world, *command("stty -echo -icanon; kill -KILL $$"))
    try:
        opened.expect("@@ ")
        assert reads_lines(opened)
    finally:
        opened.close()


def test_job_control_inside(world: World) -> None:
    # No shell as the job: dash starts programs with vfork(2), and one that is stopped before its exec stops its parent
    # in a wait that nothing but SIGKILL ends, with Remit or without.
    (world.workspace / "job.py").write_text(
        "import os, signal\n"
        "signal.signal(signal.SIGCONT, lambda *_: os.write(1, b'continued\\n'))\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "os.write(1, b'started\\n')\n"
        "while True: signal.pause()\n"
    )
    with terminal(world, "bash", "--norc", "--noprofile", "-i") as session:
        session.expect(r"\$ ")
        # Each step is waited for by what the job itself says: a key pressed before bash has given the terminal away is
        # bash's own.
        session.send("/usr/bin/python3 job.py\r")
        session.expect("started\r\n")
        session.send("\x1a")
        session.expect("Stopped")
        session.expect(r"\$ ")
        session.send("fg\r")
        session.expect("continued\r\n")
        session.send("\x03")
        session.expect(r"\$ ")
        session.send("echo s''tatus $?\r")
        session.expect(r"status 130")
        session.send("exit 4\r")
        assert session.wait() == 4


def test_the_session_has_no_descriptor_of_the_callers_terminal(world: World) -> None:
    code = "import os; print(*(os.readlink(f'/proc/self/fd/{n}') for n in range(3)), os.fstat(0).st_rdev)"
    with terminal(world, "/usr/bin/python3", "-c", code) as session:
        shown = session.expect(r"/dev/pts/0 /dev/pts/0 /dev/pts/0 (\d+)")
        assert session.wait() == 0
        assert int(shown[1]) == os.makedev(136, 0)


def test_only_what_was_a_terminal_is_replaced(world: World) -> None:
    with terminal(world, "sh", "-c", "test -t 1 || echo no terminal on 1") as session:
        assert session.wait() == 0
        assert "no terminal" not in session.output
    outside = world.run("sh", "-c", "test -t 0 || test -t 1 || test -t 2 || echo none")
    assert outside.stdout == "none\n"


def test_denials_are_told_on_a_terminal(world: World) -> None:
    with terminal(world, "sh", "-c", "mkdir -p .git/hooks; echo x > .git/hooks/pre-commit") as session:
        session.expect(r"remit: \d+ actions? w(as|ere) outside the grant")
        assert session.wait() != 0


def test_a_hangup_ends_the_session(world: World) -> None:
    opened = Terminal(world.run_argv(["sh", "-c", "echo ready; exec sleep 1000"]), world.env(), world.workspace)
    opened.expect("ready")
    os.close(opened.master)
    _, status = os.waitpid(opened.pid, 0)

    assert os.waitstatus_to_exitcode(status) in (128 + signal.SIGHUP, -signal.SIGHUP)
