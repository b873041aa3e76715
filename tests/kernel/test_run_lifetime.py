"""Signals, ends, and what is left behind: nothing."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernel.run_harness import TIMEOUT, World, all_ended, descendants, first_line

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=2)]

_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def subreaper() -> Iterator[None]:
    """Whatever a launcher leaves behind becomes a child of this process, where it can be seen and counted."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def opened_all(pids: list[int]) -> list[int]:
    """A pidfd for each process: ids may be used again, descriptors are not."""
    return [os.pidfd_open(pid) for pid in pids]


# --- signals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "ALRM"])
def test_signals_are_forwarded(world: World, name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    script = f"trap 'echo caught; exit 11' {name}; echo ready; while :; do read line || sleep 0.05; done"
    with world.start("sh", "-c", script) as session:
        assert first_line(session) == "ready"
        session.send_signal(number)
        output, _ = session.communicate(timeout=TIMEOUT)

    assert (session.returncode, output) == (11, "caught\n")


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "ALRM"])
def test_default_actions_are_as_without_remit(world: World, name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    with world.start("sh", "-c", "echo ready; exec sleep 1000") as session:
        assert first_line(session) == "ready"
        session.send_signal(number)
        session.communicate(timeout=TIMEOUT)

    assert session.returncode == 128 + number


def test_stop_and_continue(world: World) -> None:
    with world.start("sh", "-c", "echo ready; while read line; do echo $line; done") as session:
        assert first_line(session) == "ready"
        session.send_signal(signal.SIGTSTP)
        os.waitpid(session.pid, os.WUNTRACED)
        session.send_signal(signal.SIGCONT)
        output, _ = session.communicate("on\n", timeout=TIMEOUT)

    assert (session.returncode, output) == (0, "on\n")


def test_no_signal_is_blocked_or_ignored_inside(world: World) -> None:
    status = dict(line.split(":\t", 1) for line in world.shell("exec cat /proc/self/status").lines if ":\t" in line)

    assert int(status["SigBlk"], 16) == 0
    assert int(status["SigIgn"], 16) == 0


def test_the_command_is_not_pid_1_and_orphans_are_reaped(world: World) -> None:
    code = """
    print(os.getpid() != 1)
    read, write_end = os.pipe()
    if os.fork() == 0:
        pid = os.fork()
        if pid == 0:
            os.read(read, 1)
            os._exit(0)
        os.write(write_end, pid.to_bytes(4, "little"))
        os._exit(0)
    os.wait()
    orphan = int.from_bytes(os.read(read, 4), "little")
    handle = os.pidfd_open(orphan)
    print(open(f"/proc/{orphan}/stat").read().split()[3])
    os.write(write_end, b"x")
    import select
    select.select([handle], [], [])
    while os.path.exists(f"/proc/{orphan}"):
        pass
    print("reaped")
    """

    assert world.python(code).lines == ["True", "1", "reaped"]


# --- ends ----------------------------------------------------------------------------------------------------------------

DAEMON = """
import os, signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (1, 2, 3, 13, 15): signal.signal(number, signal.SIG_IGN)
        print("daemon", flush=True)
        signal.pause()
    os._exit(0)
os.wait()
"""


def test_invariant_10_sigkill_of_the_launcher_ends_everything_inside(world: World, subreaper: None) -> None:
    script = DAEMON + "print('ready', flush=True)\nsignal.pause()"
    with world.start("/usr/bin/python3", "-c", script) as session:
        assert {first_line(session), first_line(session)} == {"daemon", "ready"}
        inside = descendants(session.pid)
        handles = opened_all(inside)
        session.kill()
        session.wait(TIMEOUT)
        gone = all_ended(handles)
    for handle in handles:
        os.close(handle)

    assert len(inside) >= 3  # the session's first process, the command, the daemon
    assert gone


def test_invariant_10_daemons_end_with_the_command(world: World, subreaper: None) -> None:
    with world.start("/usr/bin/python3", "-c", DAEMON + "input()") as session:
        assert first_line(session) == "daemon"
        handles = opened_all(descendants(session.pid))
        assert session.stdin is not None
        session.stdin.write("\n")
        session.stdin.flush()
        assert session.wait(TIMEOUT) == 0
        assert all_ended(handles)
    for handle in handles:
        os.close(handle)


def test_invariant_10_the_launchers_parent_may_die_first(world: World, subreaper: None) -> None:
    argv = world.run_argv(["sh", "-c", "echo $PPID ready; read line; echo still here"])
    # The shell leaves: the launcher lives on with its descriptors, as any program does.
    with subprocess.Popen(
        ["sh", "-c", '"$@" <&3 & exec 3<&-', "sh", *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=world.env(),
        cwd=world.workspace,
        preexec_fn=lambda: os.dup2(0, 3),
        pass_fds=(3,),
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdin is not None
        assert "ready" in shell.stdout.readline()
        shell.stdin.write("\n")
        shell.stdin.flush()
        assert shell.stdout.readline() == "still here\n"


# --- nothing stays behind ------------------------------------------------------------------------------------------------


def traces(world: World) -> dict[str, set[str]]:
    """What sessions could leave on the host: children of this process, mounts, groups, files."""
    groups = {
        path
        for root, directories, _ in os.walk("/sys/fs/cgroup")
        for path in (f"{root}/{name}" for name in directories)
        if "remit-" in path
    }
    temporary = {
        str(path)
        for directory in (
            Path("/tmp"),
            Path("/dev/shm"),
            Path("/run"),
            world.base,
            world.base / "runtime",
            world.workspace,
        )
        for path in directory.iterdir()
        if directory not in (Path("/tmp"), Path("/dev/shm"), Path("/run")) or "remit" in path.name
    }
    mine = {str(pid) for pid in descendants(os.getpid())}
    mounts = {
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(world.base) in line or "remit" in line
    }
    return {"processes": mine, "mounts": mounts, "groups": groups, "files": temporary}


@pytest.mark.slow
def test_invariant_10_200_runs_leave_nothing(world: World, subreaper: None) -> None:
    assert world.run("true").status == 0
    before = traces(world)
    descriptors = len(os.listdir("/proc/self/fd"))

    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda number: world.shell(f"(sleep 1000 &) ; exit {number % 256}").status, range(200)))

    assert ended == [number % 256 for number in range(200)]
    while True:  # what was left to this process is waited for; a live one would be seen below
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            break
    after = settled(world, before)
    assert after == before
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert len(world.records()) == 201
    assert not list(world.state.rglob("canary"))


def settled(world: World, expected: dict[str, set[str]]) -> dict[str, set[str]]:
    """The traces, once what ends by itself has ended: every process that is not expected is waited for."""
    extra = [int(pid) for pid in traces(world)["processes"] - expected["processes"]]
    handles: list[int] = []
    for pid in extra:
        try:
            handles.append(os.pidfd_open(pid))
        except ProcessLookupError:
            continue
    all_ended(handles, 20)
    for handle in handles:
        os.close(handle)
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            break
    return traces(world)


@pytest.mark.slow
@pytest.mark.needs(ordinary=True)
def test_invariant_10_namespaces_are_given_back_to_the_kernel(world: World) -> None:
    """In a user namespace that may have ten of each kind, forty starts only work if none is kept."""
    limits = "user mnt pid net ipc uts cgroup"
    script = f"""
    for kind in {limits}; do echo 10 > /proc/sys/user/max_${{kind}}_namespaces || exit 90; done
    for n in $(seq 40); do
        setpriv --ambient-caps=-all --inh-caps=-all -- "$@" || exit 91
    done
    """
    argv = [
        "unshare",
        "--user",
        "--map-current-user",
        "--keep-caps",
        "--",
        "sh",
        "-c",
        script,
        "sh",
        *world.run_argv(["true"]),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, env=world.env(), cwd=world.workspace, check=False)

    if done.returncode == 90:
        pytest.skip(f"limits cannot be set here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done


@pytest.mark.slow
def test_50_at_once(world: World) -> None:
    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(lambda n: world.shell(f"echo {n} > file-{n}; cat file-{n}"), range(50)))

    assert [(result.status, result.stdout, result.stderr) for result in results] == [
        (0, f"{n}\n", "") for n in range(50)
    ]
    assert len(list(world.workspace.iterdir())) == 50


def test_invariant_10_a_killed_launcher_leaves_no_group(world: World, subreaper: None) -> None:
    before = traces(world)["groups"]
    with world.start("sh", "-c", "echo ready; sleep 1000") as session:
        assert first_line(session) == "ready"
        janitors = opened_all(descendants(session.pid))
        session.kill()
        session.wait(TIMEOUT)
        assert all_ended(janitors)

    assert traces(world)["groups"] == before
