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

from tests.kernel.run_harness import TIMEOUT, Result, World, all_ended, descendants, first_line

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
    told, tell = os.pipe()
    wait, go = os.pipe()
    if os.fork() == 0:
        pid = os.fork()
        if pid == 0:
            os.read(wait, 1)
            os._exit(0)
        os.write(tell, pid.to_bytes(4, "little"))
        os._exit(0)
    os.wait()
    orphan = int.from_bytes(os.read(told, 4), "little")
    handle = os.pidfd_open(orphan)
    print(open(f"/proc/{orphan}/stat").read().split()[3])
    os.write(go, b"x")
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


def test_invariant_10_a_first_process_that_is_stopped_ends_with_its_launcher(world: World, subreaper: None) -> None:
    with world.start("sh", "-c", f"setsid sleep {os.getpid()}9 & echo ready; wait") as session:
        assert first_line(session) == "ready"
        inside = descendants(session.pid)
        handles = opened_all(inside)
        (first,) = [pid for pid in inside if Path(f"/proc/{pid}/comm").read_text() == "remit-init\n"]
        os.kill(first, signal.SIGSTOP)
        session.kill()
        session.wait(TIMEOUT)
        gone = all_ended(handles)
    for handle in handles:
        os.close(handle)

    assert len(inside) >= 3
    assert gone


def test_invariant_10_daemons_end_with_the_command(world: World, subreaper: None) -> None:
    # Who made the daemon has gone when the command is ready.
    with world.start("/usr/bin/python3", "-c", DAEMON + "print('ready', flush=True)\ninput()") as session:
        assert {first_line(session), first_line(session)} == {"daemon", "ready"}
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
    """What sessions could leave on the host: children of this process, mounts, files."""
    shared = (Path("/tmp"), Path("/dev/shm"), Path("/run"))
    own = (world.base, world.base / "runtime", world.workspace, world.home)
    files = {str(path) for directory in own for path in directory.iterdir()}
    files |= {str(path) for directory in shared for path in directory.iterdir() if world.base.name in path.name}
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return {
        "processes": {str(pid) for pid in descendants(os.getpid())},
        "mounts": {line for line in mounts if world.base.name in line},
        "files": files,
    }


def groups_of(launchers: set[int]) -> list[str]:
    """The control groups that these launchers made and that are still there."""
    names = tuple(f"remit-{pid}-" for pid in launchers)
    return [
        f"{root}/{name}"
        for root, directories, _ in os.walk("/sys/fs/cgroup")
        for name in directories
        if name.startswith(names)
    ]


def run_and_tell(world: World, script: str) -> tuple[int, int]:
    """The launcher's pid and exit status."""
    with world.start("sh", "-c", script) as session:
        session.communicate(timeout=TIMEOUT)
    return session.pid, session.returncode


@pytest.mark.slow
def test_invariant_10_200_runs_leave_nothing(world: World, subreaper: None) -> None:
    others = traces(world)["processes"]  # such as the template of sessions that other tests had in this process
    assert world.run("true").status == 0
    before = settled(world, {"processes": others})
    descriptors = len(os.listdir("/proc/self/fd"))

    def one(number: int) -> tuple[int, int]:
        return run_and_tell(world, f"(sleep 1000 &) ; exit {number % 256}")

    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(one, range(200)))

    assert [status for _, status in runs] == [number % 256 for number in range(200)]
    after = settled(world, before)
    assert before["processes"] <= others
    assert after["processes"] <= before["processes"]  # those may go by themselves
    assert {**after, "processes": set()} == {**before, "processes": set()}
    assert groups_of({pid for pid, _ in runs}) == []
    assert len(os.listdir("/proc/self/fd")) <= descriptors  # of other tests' some may be collected meanwhile
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
    """In a user namespace that may have so many of each kind, forty starts only work if none is kept.

    The kernel takes one back when it comes to it, a network after milliseconds or after seconds: nearly all of them may be on
    their way at once, and one that each start kept would still be too many.
    Every detached mount counts as a mount namespace while it has no place yet, and a start makes one for each grant.
    """
    script = """
    for kind in user pid net ipc uts cgroup; do echo 35 > /proc/sys/user/max_${kind}_namespaces || exit 90; done
    echo 400 > /proc/sys/user/max_mnt_namespaces || exit 90
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
    def one(number: int) -> Result:
        return world.shell(f"echo {number} > file-{number}; cat file-{number}")

    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(one, range(50)))

    assert [(result.status, result.stdout, result.stderr) for result in results] == [
        (0, f"{n}\n", "") for n in range(50)
    ]
    assert len(list(world.workspace.iterdir())) == 50


def test_invariant_10_a_killed_launcher_leaves_no_group(world: World, subreaper: None) -> None:
    with world.start("sh", "-c", "echo ready; sleep 1000") as session:
        assert first_line(session) == "ready"
        made = groups_of({session.pid})
        left = opened_all(descendants(session.pid))
        session.kill()
        session.wait(TIMEOUT)
        assert all_ended(left)
    for handle in left:
        os.close(handle)

    assert groups_of({session.pid}) == []
    if os.geteuid() == 0 and os.path.isdir("/sys/fs/cgroup/memory"):
        assert made  # on such a host there was something to remove
