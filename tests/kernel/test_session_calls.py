"""Calls: what ``subprocess`` does, a call does; and no call sees, or leaves behind, anything of another's."""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from remit import (
    DEVNULL,
    PIPE,
    STDOUT,
    CalledProcessError,
    Grant,
    GrantError,
    GrantExpired,
    LaunchError,
    Session,
    TimeoutExpired,
)
from remit.sandbox.launch.zygote import MOST
from remit.sandbox.session.call import Popen
from tests.kernel.run_harness import TIMEOUT, World, descendants
from tests.kernel.session_harness import (
    allowing,
    client,
    comm,
    cut_off,
    gone,
    named,
    opened,
    probe,
    probes,
    python,
    said,
    watched,
)
from tests.kernel.test_run_stdio import O_PATH, memory_holds

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6)]

FOREVER = f"1{os.getpid():08}"
"""Seconds, and a word that no other run of these tests has in its arguments."""


@pytest.fixture
def session(world: World) -> Iterator[Session]:
    with opened(world) as made:
        yield made


# --- as subprocess does it -----------------------------------------------------------------------------------------------


def test_output_and_status(session: Session) -> None:
    result = session.run(["sh", "-c", "echo out; echo err >&2; exit 3"])

    assert (result.returncode, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert (result.limit, result.stdout_lost, result.denied) == ("", 0, 0)
    assert result.usage.wall > 0
    assert result.usage.memory_peak > 0
    assert result.grant.id == session.grant.id


@pytest.mark.parametrize("status", [0, 1, 2, 3, 64, 124, 125, 126, 127, 128, 130, 137, 255])
def test_every_exit_status_is_the_commands_own(session: Session, status: int) -> None:
    assert session.run(["sh", "-c", f"exit {status}"]).returncode == status


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "KILL", "SEGV", "ABRT", "PIPE", "XFSZ", "USR1", "ALRM"])
def test_a_signal_ends_a_command_as_outside(session: Session, name: str) -> None:
    command = ["sh", "-c", f"ulimit -c 0; kill -{name} $$; echo lives"]
    outside = subprocess.run(command, capture_output=True, check=False)

    inside = session.run(command)

    assert inside.returncode == outside.returncode == -signal.Signals[f"SIG{name}"]
    assert inside.stdout == b""


@pytest.mark.parametrize("name", ["CHLD", "URG", "WINCH", "CONT"])
def test_a_signal_that_is_ignored_by_default_is_ignored(session: Session, name: str) -> None:
    assert said(session.run(["sh", "-c", f"kill -{name} $$; echo lives"])) == "lives"


def test_abort_and_a_handler_behave_as_outside(session: Session) -> None:
    abort = python("import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()")
    handler = ["sh", "-c", "trap 'echo caught; exit 4' TERM; kill -TERM $$; echo lives"]
    for command in (abort, handler):
        outside = subprocess.run(command, capture_output=True, check=False)
        inside = session.run(command)
        assert (inside.returncode, inside.stdout) == (outside.returncode, outside.stdout)


def test_the_signal_mask_and_dispositions_are_a_fresh_processs(session: Session) -> None:
    command = ["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]
    outside = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert said(session.run(command)) == outside.rstrip("\n")


def test_only_the_writer_of_the_record_stands_back(session: Session) -> None:
    """What it forks, and what a call runs, is scheduled as usual."""
    policy = said(session.run(python("print(os.sched_getscheduler(0))")))
    below: dict[str, int] = {}
    for pid in descendants(os.getpid()):
        with suppress(ProcessLookupError):  # what the call left behind is ending
            below[comm(pid)] = os.sched_getscheduler(pid)

    assert int(policy) == os.sched_getscheduler(0) == os.SCHED_OTHER
    assert below["remit-template"] == os.SCHED_BATCH
    assert below["remit-init"] == os.SCHED_OTHER


def test_streams_as_subprocess_has_them(session: Session, world: World) -> None:
    both = ["sh", "-c", "echo 1; echo 2 >&2; echo 3"]
    assert session.run(both, stderr=STDOUT).stdout == b"1\n2\n3\n"
    assert session.run(both, stderr=STDOUT).stderr is None
    nowhere = session.run(both, stdout=DEVNULL, stderr=DEVNULL)
    assert (nowhere.stdout, nowhere.stderr) == (None, None)
    target = world.base / "output"
    with target.open("wb") as file:
        assert session.run(both, stdout=file).stdout is None
    assert target.read_bytes() == b"1\n3\n"
    assert said(session.run(["cat"])) == ""  # no input, rather than the caller's
    assert said(session.run(["cat"], input=b"given")) == "given"
    with target.open("rb") as file:
        assert said(session.run(["cat"], stdin=file)) == "1\n3"


def test_text(session: Session) -> None:
    result = session.run(["cat"], input="grüße\r\n", text=True)
    assert result.stdout == "grüße\n"
    assert session.run(["cat"], input="\xe9", encoding="latin-1").stdout == "\xe9"
    undecodable = session.run(["printf", r"\351"], text=True, errors="replace")
    assert undecodable.stdout == "\ufffd"


def test_text_that_remit_has_cut_is_text(session: Session) -> None:
    """At the end, where it ends the call; in the middle, where it keeps no more."""
    half, on = "printf 'a\\303'; ", f"sleep {FOREVER}"

    def timed_out(script: str) -> Any:
        def run(seconds: float) -> Any:
            with pytest.raises(TimeoutExpired) as raised:
                session.run(script, shell=True, text=True, timeout=seconds)
            return raised.value.output

        return cut_off(run, bool)

    assert timed_out(half + on) == "a"
    assert timed_out(f"printf 'a\\303b\n'; {on}") == "a\ufffdb\n"
    with session.popen(f"{half}echo go >&2; {on}", shell=True, text=True) as call:

        def heard(seconds: float) -> TimeoutExpired:
            with pytest.raises(TimeoutExpired) as raised:
                call.communicate(timeout=seconds)
            return raised.value

        assert cut_off(heard, lambda so_far: so_far.stderr).output == "a"
        call.kill()
    limited = cut_off(
        lambda seconds: session.run(half + on, shell=True, text=True, grant=Grant(limits={"time": f"{seconds:g}s"})),
        lambda limited: limited.stdout,
    )
    assert (limited.limit, limited.stdout) == ("time", "a")
    with pytest.raises(GrantExpired):
        session.run(half + f"echo b; sleep {FOREVER}", shell=True, text=True, grant=Grant(expires=1))
    for most in range(21):
        kept = session.run(["printf", "é" * 10], text=True, max_output=most)
        assert kept.stdout is not None
        assert set(kept.stdout) <= {"é"}
        assert len(kept.stdout.encode()) + kept.stdout_lost == 20
        assert len(kept.stdout.encode()) >= most - 3
    for binary in ("\\351", "\\303"):  # the command's own: as subprocess has it
        with pytest.raises(UnicodeDecodeError):
            session.run(["printf", binary], text=True)
        assert session.run(["printf", binary], text=True, errors="replace").stdout == "\ufffd"


def test_what_cannot_be_encoded_starts_nothing(session: Session, world: World) -> None:
    make: Any = partial(session.run, ["touch", "made"])
    for keywords, kind in (
        ({"encoding": "no-such"}, LookupError),
        ({"errors": "no-such"}, LookupError),
        ({"input": "é", "encoding": "ascii"}, UnicodeEncodeError),
        ({"input": 5}, TypeError),
    ):
        with pytest.raises(kind):
            make(**keywords)
    assert not (world.workspace / "made").exists()


def test_the_working_directory(session: Session, world: World) -> None:
    (world.workspace / "below").mkdir(mode=0o755)
    assert said(session.run(["pwd"])) == str(world.workspace)
    assert said(session.run(["pwd"], cwd="below")) == str(world.workspace / "below")
    assert said(session.run(["pwd"], cwd=world.workspace / "below")) == str(world.workspace / "below")
    with pytest.raises(LaunchError, match="nowhere"):
        session.run(["pwd"], cwd="nowhere")
    assert said(session.run(["pwd"])) == str(world.workspace)  # it stayed that call's


def test_the_environment(world: World) -> None:
    with opened(world, env=["COLOUR", "SIZE=4"], environ={"COLOUR": "red", "OTHER": "x"}) as session:
        show = ["sh", "-c", 'echo "$COLOUR $SIZE ${OTHER-unset}"']
        assert said(session.run(show)) == "red 4 unset"
        assert said(session.run(show, grant=Grant())) == "  unset"
        assert said(session.run(show, grant=Grant(env=["COLOUR"]))) == "red  unset"
        assert said(session.run(["/usr/bin/env"], env={"COLOUR": "blue"})) == "COLOUR=blue"
        with pytest.raises(GrantError, match="OTHER"):
            session.run(show, env={"OTHER": "y"})


def test_check_shell_and_a_string(session: Session) -> None:
    assert session.run("true", check=True).returncode == 0
    assert said(session.run("echo $((1 + 1))", shell=True)) == "2"
    with pytest.raises(subprocess.CalledProcessError) as raised:
        session.run(["sh", "-c", "echo why; exit 5"], check=True)
    assert isinstance(raised.value, CalledProcessError)
    assert (raised.value.returncode, raised.value.stdout) == (5, b"why\n")


def test_a_timeout_ends_everything_and_keeps_what_was_said(session: Session, world: World) -> None:
    marker = f"{FOREVER}.101"

    def timed_out(seconds: float) -> Any:
        with pytest.raises(subprocess.TimeoutExpired) as raised:
            session.run(["sh", "-c", f"echo begun; setsid sleep {marker} & exec sleep {marker}"], timeout=seconds)
        assert isinstance(raised.value, TimeoutExpired)
        assert named(marker) == []
        return raised.value.output

    assert cut_off(timed_out, bool) == b"begun\n"
    assert said(session.run(["echo", "next"])) == "next"


def test_a_running_call_is_handled_as_a_popen(session: Session) -> None:
    with session.popen(["sh", "-c", "while read line; do echo got $line; done; exit 7"], stdin=PIPE, text=True) as call:
        assert call.stdin is not None
        assert call.stdout is not None
        for word in ("one", "two"):
            print(word, file=call.stdin, flush=True)
            assert call.stdout.readline() == f"got {word}\n"
        assert call.poll() is None
        with pytest.raises(TimeoutExpired):
            call.wait(timeout=0)
        call.stdin.close()
        assert call.wait() == 7
        assert (call.poll(), call.returncode) == (7, 7)
        assert call.result().returncode == 7
    with session.popen(["cat"], stdin=PIPE) as call:
        assert call.communicate(b"all of it") == (b"all of it", b"")
    for stop, status in (("terminate", -15), ("kill", -9)):
        with session.popen(["sleep", FOREVER]) as call:
            getattr(call, stop)()
            assert call.wait() == status
    with session.popen(["sh", "-c", "trap 'echo usr; exit' USR1; echo ready; while :; do sleep 0.01; done"]) as call:
        assert call.stdout is not None
        assert call.stdout.readline() == b"ready\n"
        call.send_signal(signal.SIGUSR1)
        assert call.stdout.read() == b"usr\n"


def test_an_error_in_the_callers_block_ends_the_call(session: Session) -> None:
    marker = f"{FOREVER}.102"
    with pytest.raises(KeyError), session.popen(["sleep", marker]):
        raise KeyError
    assert gone(watched(marker))


def test_output_is_bounded_and_the_middle_is_what_is_lost(session: Session) -> None:
    size, limit = 100 << 20, 1 << 20
    code = (
        f"os.write(1, b'H' * 10); [os.write(1, b'm' * (1 << 20)) for _ in range({size >> 20})]; os.write(1, b'T' * 10)"
    )

    result = session.run(python(code), max_output=limit)

    assert result.stdout is not None
    assert (len(result.stdout), result.stdout_lost) == (limit, size + 20 - limit)
    assert result.stdout[:11] == b"H" * 10 + b"m"
    assert result.stdout[-11:] == b"m" + b"T" * 10
    odd = session.run(["printf", "0123456789"], max_output=5)
    assert (odd.stdout, odd.stdout_lost) == (b"01289", 5)


def test_a_hundred_megabytes_go_through(session: Session) -> None:
    block = bytes(range(256)) * 4096
    given = block * 100

    result = session.run(["cat"], input=given, max_output=200 << 20)

    assert (result.returncode, result.stdout_lost) == (0, 0)
    assert result.stdout == given


def test_a_command_that_reads_nothing_does_not_hang_its_caller(session: Session) -> None:
    assert session.run(["true"], input=b"x" * (8 << 20)).returncode == 0


def test_a_terminal(session: Session) -> None:
    script = "tty; stty size; stty -echo; trap 'stty size' WINCH; while read line; do echo got $line; done"
    with session.popen(["sh", "-c", script], pty=True) as call:
        call.wait_started()
        assert _until(call.terminal, b"24 80").startswith(b"/dev/pts/")
        os.write(call.terminal, b"word\n")
        _until(call.terminal, b"got word")
        call.resize(40, 100)
        os.write(call.terminal, b"more\n")
        _until(call.terminal, b"40 100")
        os.write(call.terminal, b"\x04")
        assert call.wait() == 0


def test_keys_of_a_terminal_are_signals_for_its_foreground(session: Session) -> None:
    with session.popen(["sh", "-c", f"echo ready; exec sleep {FOREVER}"], pty=True) as call:
        call.wait_started()
        _until(call.terminal, b"ready")
        os.write(call.terminal, b"\x03")
        assert call.wait() == -signal.SIGINT


def _until(terminal: int, what: bytes) -> bytes:
    read = b""
    while what not in read:
        assert select.select([terminal], [], [], TIMEOUT)[0], read
        read += os.read(terminal, 4096)
    return read


def test_a_call_is_recorded_with_its_grant_and_its_denials(session: Session, world: World) -> None:
    (world.workspace / "data").write_text("x")
    first = session.run(["sh", "-c", "cat data; echo y > data"], grant=Grant(read=["data"], purpose="look"))

    assert first.stdout == b"x"
    assert [(one.object, one.right, one.errno) for one in first.denials] == [
        (str(world.workspace / "data"), "write", 13)
    ]
    assert (first.denied, first.grant.purpose, first.grant.parent) == (1, "look", session.grant.id)
    assert first.grant.id != session.run(["true"], grant=Grant(read=["data"])).grant.id


def test_a_refused_request_is_the_calls_denial_and_others_are_none(session: Session) -> None:
    """btrfs's: one that makes a subvolume, and FICLONE, which the kernel answers."""
    code = """
    here, buffer = os.open('.', os.O_RDONLY), ctypes.create_string_buffer(4096)
    for request in sys.argv[1:]:
        print(attempt(lambda: call(libc.ioctl(here, ctypes.c_ulong(int(request)), buffer))))
    """
    refused = session.run([*python(code), str(0x5000940E)])
    asked = session.run([*python(code), str(0x40049409)])

    assert (said(refused), refused.denied) == ("EPERM", 1)
    assert said(asked) != "EPERM"
    assert asked.denied == 0


def test_a_denial_says_what_a_model_should_read(session: Session, world: World) -> None:
    (world.workspace / "data").write_text("x")
    script = "echo y > data; echo y > data; unshare -U true; mkdir /nonexistent/x"
    denied = session.run(["sh", "-c", script], grant=Grant(read=["."]))

    # What is not there outside either was not denied.
    assert [one.right for one in denied.denials] == ["write", "write", "call"]
    assert denied.denied == 3
    first, _, last = map(str, denied.denials)
    assert first.splitlines()[0] == (
        f"Denied by the sandbox: write {world.workspace}/data by {os.path.realpath('/bin/sh')}: nothing grants it."
    )
    assert "trying again" in first.splitlines()[1]
    assert first.splitlines()[2] == f"If the task needs it, ask the user to grant: --write {world.workspace}/data"
    assert len(first.splitlines()) == len(last.splitlines()) == 3
    assert denied.denials[0].missing == ("--write", f"{world.workspace}/data")
    assert denied.denials[2].missing == ("--allow-syscalls", "nested-userns")
    told = denied.explain().splitlines()
    assert told[0] == first.splitlines()[0].replace(": nothing grants", " (2 times): nothing grants")
    assert (told[2], told[3:]) == (first.splitlines()[2], last.splitlines())
    assert pickle.loads(pickle.dumps(denied.denials)) == denied.denials
    # The grant that it names is the one that does.
    assert session.run(["sh", "-c", "echo y > data"], grant=Grant(write=["data"])).explain() == ""
    assert session.run(["false"], grant=Grant(read=["."])).explain().startswith("Not Remit")


# --- a call is alone -----------------------------------------------------------------------------------------------------


def test_the_command_is_process_2_and_sees_its_own_processes_only(session: Session) -> None:
    with session.popen(["sh", "-c", f"echo ready; exec sleep {FOREVER}.103"]) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        seen = said(
            session.run(["sh", "-c", "echo $$; ls /proc | grep -E '^[0-9]+$'; cat /proc/*/cmdline | tr '\\0' ' '"])
        )
        other.kill()

    words = seen.split("\n")
    assert words[0] == "2"
    assert {"1", "2"} <= set(words[1:])
    assert len([word for word in words[1:] if word.isdecimal()]) <= 6
    assert FOREVER not in seen
    assert "remit-init" not in seen


PID_IS_A_CHILD = "pid = os.fork() or (time.sleep(1000), os._exit(0))"
NOSY = {
    "signal 0": "os.kill(pid, 0)",
    "ptrace": "syscall(101, 0x4206, pid, 0, 0)",
    "read memory": "open(f'/proc/{pid}/mem', 'rb').close()",
    "read another way": "syscall(310, pid, io, 1, io, 1, 0)",
    "environ": "open(f'/proc/{pid}/environ', 'rb').close()",
    "descriptors": "os.readlink(f'/proc/{pid}/fd/0')",
    "root": "os.listdir(f'/proc/{pid}/root/')",
    "prlimit": "syscall(302, pid, 7, None, buffer)",
    "pidfd_getfd": "syscall(438, os.pidfd_open(pid), 0, 0)",
    "signal 9": "os.kill(pid, 9)",
}
BUFFERS = """
buffer = ctypes.create_string_buffer(16)
io = struct.pack('QQ', ctypes.addressof(buffer), 16)
"""


def test_nothing_outside_the_call_can_be_touched(session: Session) -> None:
    """PID 1 of the call, and every number that a process of the session or of another call has on any level."""
    with session.popen(["sh", "-c", f"echo ready; exec sleep {FOREVER}.104"]) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        outside = named(f"{FOREVER}.104")
        child = probes(session, NOSY, before=BUFFERS + PID_IS_A_CHILD)
        first = probes(session, NOSY, before=BUFFERS + "pid = 1")
        others = [probes(session, NOSY, before=f"{BUFFERS}pid = {pid}") for pid in outside]
        # Its own number is not known: a call may come after others in the same namespace.
        everybody = "n for n in range(2, 40000) if n != os.getpid()"
        sweep = f"[{everybody} and attempt(lambda n=n: os.kill(n, 9)) != 'ESRCH']"
        numbers = said(session.run(python(f"print({sweep}, attempt(lambda: os.kill(-1, 9)))")))
        alive = other.poll() is None
        other.kill()

    assert alive
    assert outside
    assert child == {**dict.fromkeys(NOSY, "ok"), "pidfd_getfd": "EPERM"}
    by_ids = ("signal 0", "ptrace", "read another way", "prlimit", "pidfd_getfd", "signal 9")
    assert first == {**dict.fromkeys(NOSY, "EACCES"), **dict.fromkeys(by_ids, "EPERM")}
    assert {error for found in others for error in found.values()} == {"ESRCH", "ENOENT"}
    assert numbers == "[] ESRCH"


@pytest.mark.needs(x86_64=True)
def test_a_calls_process_changes_its_own_limits_by_number_and_no_others(session: Session) -> None:
    """A number is its own in the call's namespace, and another one's in the mediator's."""
    limits = "limits = (ctypes.c_ulong * 2)(64, 64)\n"
    tries = {
        "own": "syscall(302, os.getpid(), 7, ctypes.byref(limits), None)",
        "a child's": "syscall(302, pid, 7, ctypes.byref(limits), None)",
        "PID 1's": "syscall(302, 1, 7, ctypes.byref(limits), None)",
    }
    assert probes(session, tries, before=limits + PID_IS_A_CHILD) == {
        "own": "ok",
        "a child's": "EPERM",
        "PID 1's": "EPERM",
    }


def test_a_call_leaves_its_session_and_others_alive_whatever_it_tries(session: Session) -> None:
    with session.popen(["sh", "-c", "echo ready; read line; echo lived"], stdin=PIPE) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"ready\n"
        storm = "[attempt(lambda n=n, s=s: os.kill(n, s)) for n in [-1, 1, *range(3, 400)] for s in (9, 15, 19)]"
        session.run(python(storm))
        other.stdin.write(b"\n")
        other.stdin.close()
        assert other.stdout.read() == b"lived\n"
    assert said(session.run(["echo", "next"])) == "next"


def test_abstract_sockets_do_not_lead_from_call_to_call(session: Session) -> None:
    listen = "s = socket.socket(socket.AF_UNIX); s.bind(chr(0) + 'remit-test'); s.listen(); print('ready', flush=True)"
    connect = "socket.socket(socket.AF_UNIX).connect(chr(0) + 'remit-test')"
    with session.popen(python(f"{listen}; time.sleep(1000)")) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        assert probe(session, connect) == "EPERM"
        other.kill()
    assert probe(session, connect, before=listen) == "ok"


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("kind", ["STREAM", "DGRAM"])
def test_a_server_of_the_calls_own_is_not_taken_for_the_hosts(world: World, kind: str, private: bool) -> None:
    """The same port, in the host's network and in the call's; a narrower call has a network of its own."""
    with socket.create_server(("127.0.0.1", 0)) as outside:
        place = outside.getsockname()
        code = f"""
        import socket
        place = {place!r}
        with socket.socket(socket.AF_INET, socket.SOCK_{kind}) as server, socket.socket(socket.AF_INET, server.type) as end:
            if sys.argv[1:]:
                server.bind(place)
                if server.type == socket.SOCK_STREAM:
                    server.listen()
            print(end.connect_ex(place))
        """
        with opened(world, connect=["granted.example.com:443"]) as session:
            grant = Grant(read=["."]) if private else None
            own = session.run([*python(code), "own"], grant=grant)
            others = session.run(python(code), grant=grant)
    assert (said(own), own.denied) == ("0", 0), own
    assert others.denied == 1
    assert others.denials[0].object == f"127.0.0.1:{place[1]}"


def test_orphans_are_reaped(session: Session) -> None:
    code = """
    for _ in range(50):
        if os.fork() == 0:
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
        os.wait()
    def states():
        found = []
        for name in os.listdir('/proc'):
            if name.isdecimal():
                try:
                    found.append(open(f'/proc/{name}/stat').read().rpartition(')')[2].split()[0])
                except OSError:
                    pass
        return found
    deadline = time.monotonic() + 30
    while len(states()) > 2 and time.monotonic() < deadline:
        pass
    print(len(states()), states().count('Z'))
    """
    assert said(session.run(python(code))) == "2 0"


def test_a_child_that_nobody_waits_for_is_a_zombie_as_outside(session: Session) -> None:
    code = """
    child = os.fork() or os._exit(3)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    print(open(f'/proc/{child}/stat').read().rpartition(')')[2].split()[0], os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    outside = subprocess.run(python(code), capture_output=True, text=True, check=True).stdout

    assert said(session.run(python(code))) == outside.rstrip("\n") == "Z 3"


DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        print('daemon', flush=True)
        os.execvp('sleep', ['sleep', '{marker}'])
    os._exit(0)
os.wait()
def has_begun():
    for name in os.listdir('/proc'):
        if name.isdecimal() and int(name) > 2:
            words = open(f'/proc/{{name}}/cmdline', 'rb').read()
            if words.startswith(b'sleep') and b'{marker}' in words:
                return True
while not has_begun():
    pass
"""


def test_what_a_call_left_behind_is_gone_when_it_returns(session: Session) -> None:
    marker = f"{FOREVER}.105"

    result = session.run(python(DAEMON.format(marker=marker)))

    assert result.stdout == b"daemon\n"
    assert named(marker) == []


CLONE_PARENT = 0x8000
CLONE = "syscall(56, {flags} | signal.SIGCHLD, 0, 0, 0, 0)"
SIBLING = f"child = {CLONE.format(flags=CLONE_PARENT)}"
STAYS = """
if child == 0:
    os.setsid()
    os.closerange(0, 3)
    while True:
        signal.pause()
"""
ENDS = """
if child == 0:
    os._exit(0)
while open(f'/proc/{child}/stat').read().rpartition(')')[2].split()[0] != 'Z':
    pass
"""
ORPHAN = """
if os.fork() == 0:
    os.setsid()
    os.closerange(0, 3)
    while True:
        signal.pause()
"""


@pytest.mark.needs(x86_64=True)
def test_a_process_cannot_be_given_the_callers_parent(session: Session) -> None:
    """Its parent would be outside of the call, where nothing that the call left behind is looked for."""
    tries = {
        "own": CLONE.format(flags=0) + " or os._exit(0)",
        "parent's": CLONE.format(flags=CLONE_PARENT) + " or os._exit(0)",
        "a bit above": CLONE.format(flags=CLONE_PARENT | 1 << 32) + " or os._exit(0)",
    }
    assert probes(session, tries) == {"own": "ok", "parent's": "EPERM", "a bit above": "EPERM"}


@pytest.mark.needs(x86_64=True)
@pytest.mark.parametrize("left", [STAYS, ENDS, ENDS + ORPHAN], ids=["lives", "zombie", "zombie and orphan"])
def test_a_child_of_the_commands_parent_ends_with_its_call_too(world: World, left: str) -> None:
    """The second layer, with the filter's row off: the thread that starts the command looks at its own children, and reaps
    them where the cell ends, whose PID 1 cannot end before that."""
    marker = f"{FOREVER}.111"
    with allowing("clone", 0, CLONE_PARENT), opened(world) as session:
        result = session.run(python(f"{SIBLING}{left}print(os.getpid()) # {marker}"), timeout=TIMEOUT)
        assert named(marker) == []
        assert said(result) == "2"
        # Its cell is nobody's any more: the next command is the first of its own.
        assert said(session.run(python("print(os.getpid())"), timeout=TIMEOUT)) == "2"
        # The other arm: one that is left with nothing in it serves again, if not the very next call.
        assert max(int(said(session.run(python("print(os.getpid())"), timeout=TIMEOUT))) for _ in range(8)) > 2


@pytest.mark.needs(x86_64=True)
def test_a_background_call_lasts_while_a_child_of_the_commands_parent_does(world: World) -> None:
    marker = f"{FOREVER}.112"
    with allowing("clone", 0, CLONE_PARENT), opened(world) as session:
        call = session.popen(python(f"{SIBLING}{STAYS}# {marker}"), background=True)
        assert call.wait() == 0
        left = watched(marker)
        assert left
        call.close()
        assert gone(left)


def test_a_background_call_lives_until_its_handle_is_closed(session: Session) -> None:
    marker = f"{FOREVER}.106"
    call = session.popen(python(DAEMON.format(marker=marker)), background=True)
    assert call.wait() == 0
    left = watched(marker)
    assert left
    assert session.run(["true"]).returncode == 0
    assert [pid for pid in named(marker) if "sleep" in Path(f"/proc/{pid}/comm").read_text()]

    call.close()

    assert gone(left)


def test_a_background_call_that_is_killed_ends(session: Session) -> None:
    marker = f"{FOREVER}.107"
    with session.popen(python(DAEMON.format(marker=marker)), background=True) as call:
        assert call.wait() == 0
        left = watched(marker)
        assert left
        call.kill()
        assert gone(left)


def test_the_session_ends_its_background_calls(world: World) -> None:
    marker = f"{FOREVER}.108"
    with opened(world) as session:
        call = session.popen(["sleep", marker], background=True)
        call.grant.digest()
        while not (left := watched(marker)):
            assert call.poll() is None
    assert gone(left)
    call.close()


# --- more calls than run at a time ---------------------------------------------------------------------------------------


@contextmanager
def crowded(session: Session, marker: str) -> Generator[list[Popen]]:
    """As many background calls under the session's own authority as run at a time: a further one waits."""
    held: list[Popen] = []
    try:
        for _ in range(MOST):
            held.append(session.popen(["sh", "-c", f"sleep {marker} & exit 0"], background=True))
        for call in held:
            assert call.wait() == 0
        yield held
    finally:
        for call in held:
            call.close()


@pytest.mark.parametrize("how", ["timeout", "timeout of wait", "kill and close", "close", "kill", "signal and kill"])
def test_a_call_that_waits_for_others_and_is_given_up_never_starts(session: Session, world: World, how: str) -> None:
    """And nothing happens to the others; one that waits and is not given up has its turn."""
    marker = f"{FOREVER}.109"
    script = ["sh", "-c", 'echo x > "$0"']
    assert session.run([*script, "before"], timeout=TIMEOUT).returncode == 0
    with crowded(session, marker) as held:
        if how == "timeout":
            with pytest.raises(TimeoutExpired):
                session.run([*script, "made"], timeout=0.2)
        killed = None if how == "timeout" else session.popen([*script, "made"])
        if killed is not None:
            if how == "timeout of wait":
                with pytest.raises(TimeoutExpired), killed:
                    killed.wait(timeout=0.2)
            if how == "signal and kill":
                killed.send_signal(signal.SIGUSR1)
            if "kill" in how:
                killed.kill()
            if "close" in how:
                killed.close()
        kept = session.popen([*script, "kept"])
        assert kept.poll() is None
        # The same under another authority does not wait.
        assert session.run(["true"], grant=Grant(read=["."]), timeout=TIMEOUT).returncode == 0
        assert len(named(marker)) == MOST
        held.pop().close()
        assert kept.wait(timeout=TIMEOUT) == 0
        if killed is not None and how in ("kill", "signal and kill"):
            assert killed.wait(timeout=TIMEOUT) == -9
            killed.close()
        kept.close()
        assert len(named(marker)) == MOST - 1
    assert session.run([*script, "after"], timeout=TIMEOUT).returncode == 0
    assert sorted(path.name for path in world.workspace.iterdir()) == ["after", "before", "kept"]


def test_what_a_call_is_told_while_it_waits_it_hears_when_it_starts(session: Session) -> None:
    with crowded(session, f"{FOREVER}.110") as held, session.popen(["sleep", FOREVER]) as call:
        call.terminate()
        held.pop().close()
        assert call.wait(timeout=TIMEOUT) == -15


# --- descriptors ---------------------------------------------------------------------------------------------------------


OWN = "print(sorted(os.listdir('/proc/self/fd'), key=int), flush=True)"


def test_a_call_has_three_descriptors(session: Session, world: World) -> None:
    """Whatever the caller has open, and however many calls run or wait beside it."""
    extra = os.open(world.workspace, os.O_RDONLY)
    os.set_inheritable(extra, True)
    try:
        others = [session.popen(["sleep", FOREVER], grant=Grant(read=["."]) if n % 2 else None) for n in range(4)]
        try:
            plain = said(session.run(python(OWN)))
            fed = said(session.run(python(OWN), input=b"x" * 10000))
            narrow = said(session.run(python(OWN), grant=Grant()))
        finally:
            for call in others:
                call.kill()
                call.wait()
                call.close()
        with session.popen(python(OWN), pty=True) as call:
            call.wait_started()
            terminal = _until(call.terminal, b"]").decode().strip()
    finally:
        os.close(extra)
    assert {plain, fed, narrow, terminal} == {"['0', '1', '2', '3']"}  # the last one is the listing's own


def _asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() == "sleep\n" and "nanosleep" in Path(f"/proc/{pid}/wchan").read_text()


def test_no_descriptor_of_a_call_appears_in_another(session: Session) -> None:
    """From outside: two calls, a pipe given to each; nothing of the one is in any table of the other's."""
    markers = [f"{FOREVER}.11{n}" for n in range(2)]
    pipes = [os.pipe() for _ in markers]
    calls = [session.popen(["sleep", marker], stdin=read) for marker, (read, _) in zip(markers, pipes, strict=True)]
    try:
        tables: list[set[str]] = []
        for marker, call in zip(markers, calls, strict=True):
            # Asleep, and so done with the files that its loader opens.
            while not (pids := [pid for pid in named(marker) if _asleep(pid)]):
                assert call.poll() is None
            tables.append({os.readlink(f"/proc/{pids[0]}/fd/{fd}") for fd in os.listdir(f"/proc/{pids[0]}/fd")})
        own = [f"pipe:[{os.fstat(read).st_ino}]" for read, _ in pipes]
    finally:
        for call in calls:
            call.kill()
            call.wait()
            call.close()
        for descriptor in (descriptor for pipe in pipes for descriptor in pipe):
            os.close(descriptor)
    assert [len(table) for table in tables] == [3, 3]
    assert own[0] in tables[0]
    assert own[1] in tables[1]
    assert not tables[0] & tables[1]


def test_a_regular_file_as_stdin_cannot_be_written_through(session: Session, world: World) -> None:
    source = world.base / "input"
    source.write_text("content")
    again = {
        "write": "write('/proc/self/fd/0', 'x', 0)",
        "chmod": "os.fchmod(0, 0o777)",
        "truncate": "os.ftruncate(0, 0)",
    }
    with source.open("r+") as file:
        ended = probes(session, again, stdin=file)
    assert ended["write"] != "ok"
    assert ended["truncate"] != "ok"
    assert (source.read_text(), oct(source.stat().st_mode & 0o777)) == ("content", oct(0o644 & ~_umask() | 0o600))


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("kind", ["directory", "place", "path", "pipe", "own"])
def test_no_stream_is_a_way_into_the_host(session: Session, world: World, secret: Path, kind: str, name: str) -> None:
    """A directory would be one, and so would a descriptor that only stands for a place (O_PATH): reopened, it is a file.

    The client refuses it by itself. Where it does not, what runs the call does.
    """
    where = {"path": secret, "pipe": world.base / "fifo", "own": world.workspace}.get(kind, secret.parent)
    if kind == "pipe":
        os.mkfifo(where)
    opened = os.open(where, os.O_RDONLY if kind in ("directory", "own") else O_PATH)
    streams: dict[str, Any] = {name: opened}
    try:
        with pytest.raises(LaunchError, match=name) as raised:
            session.run(["true"], **streams)
        assert raised.value.hint
        number = ["stdin", "stdout", "stderr"].index(name)
        streams_module = "remit.sandbox.session.streams"
        unchecked = (
            patch(f"{streams_module}.refuse_place"),
            patch(f"{streams_module}.copy_of_regular", return_value=-1),
        )
        with unchecked[0], unchecked[1]:
            with pytest.raises(LaunchError, match=r"standard (input|output|error) is a") as raised:
                session.run(python(f"write('made', str(os.listdir({number})))"), **streams)
            assert raised.value.exit_status == 125
    finally:
        os.close(opened)
    assert not (world.workspace / "made").exists()
    assert session.run(["true"]).returncode == 0


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_file_as_an_output_keeps_its_mode_and_times(session: Session, world: World, name: str) -> None:
    """It is the host's, on no mount of the session's. In the workspace, it is the session's too."""
    number = {"stdout": 1, "stderr": 2}[name]
    tries = {
        "fchmod": f"os.fchmod({number}, 0o666)",
        "chmod": f"os.chmod('/proc/self/fd/{number}', 0o666)",
        "name": f"os.chmod('/dev/{name}', 0o666)",
        "times": f"os.utime({number}, (1, 1))",
        "attribute": f"os.setxattr({number}, 'user.x', b'1')",
        "owner": f"os.chown({number}, os.getuid(), os.getgid())",
    }
    body = "\n".join(f"print({key!r}, attempt(lambda: {action}), file=seen)" for key, action in tries.items())
    for place, ended in ((world.base, "EROFS"), (world.workspace, "ok")):
        data = place / "output"
        data.write_text("")
        data.chmod(0o600)
        os.chown(data, world.workspace.stat().st_uid, world.workspace.stat().st_gid)
        (world.workspace / "below").mkdir(exist_ok=True)
        os.chown(world.workspace / "below", data.stat().st_uid, data.stat().st_gid)
        for grant in (None, Grant(read=["."], write=["below"])):
            with data.open("r+b") as file:
                streams: dict[str, Any] = {name: file}
                session.run(python(f"seen = open('below/seen', 'w')\n{body}"), grant=grant, **streams)
            seen = dict(line.split() for line in (world.workspace / "below/seen").read_text().splitlines())
            (world.workspace / "below/seen").unlink()
            if grant is None:
                # Who may write a file may set its times and attributes: they are asked about only where a call may write
                # less than its session (``compile.syscalls``).
                # Through the host's own mount of it, root's file is not that of who the session runs as.
                unasked = {"times": "ok", "attribute": "ok"}
                if os.geteuid() == 0:
                    unasked = {
                        "times": "EPERM",
                        "attribute": "EACCES" if ended != "ok" else "ok",
                    }  # anybody may by then
                assert seen == dict.fromkeys(tries, ended) | unasked
            else:
                assert seen == dict.fromkeys(tries, "EROFS" if place == world.base else "EACCES")
        assert oct(data.stat().st_mode & 0o777) == ("0o600" if place == world.base else "0o666")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# --- secrets -------------------------------------------------------------------------------------------------------------

SECRET = "".join(("pl", "anted-7f3a9c")) * 2


@pytest.mark.needs(root=True)
def test_invariant_8_no_process_of_a_session_holds_a_secret_of_the_caller(world: World) -> None:
    """In the caller's heap and environment, before the template, between sessions and calls; looked for from outside."""
    code = """
    kept = [os.environ["PLANTED"] * n for n in range(1, 50)]
    with Session("offline", ".") as session:
        kept.append(os.environ["PLANTED"].upper())
        session.run(["true"])
        session.run(["true"], grant=Grant(read=["."]))
        call = session.popen(["sh", "-c", "echo ready; read line"], stdin=PIPE)
        call.stdout.readline()
        print("ready", flush=True)
        sys.stdin.readline()
        call.kill()
        call.wait()
        call.close()
    """
    with client(code, world, environ={"PLANTED": SECRET}) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()
            family: list[int] = []
            found: dict[int, bool] = {}
            environments: list[bytes] = []
            for pid in descendants(process.pid):
                with suppress(FileNotFoundError, ProcessLookupError):  # of a call that is over: it has just gone
                    found[pid] = memory_holds(pid, SECRET.encode())
                    environments.append(Path(f"/proc/{pid}/environ").read_bytes())
                    family.append(pid)
            control = memory_holds(process.pid, SECRET.encode())
        finally:
            process.communicate("\n", timeout=TIMEOUT)

    assert len(family) >= 4  # the template, the session's first process, the calls' own, the command
    assert not any(found.values()), found
    assert not any(SECRET.encode() in environment for environment in environments)
    assert control


def test_invariant_8_no_secret_of_the_caller_is_in_reach_of_a_call(world: World) -> None:
    with opened(world, environ={"PLANTED": SECRET}) as session:
        look = "grep -l -a -s -F -e planted-7f3a9c /proc/*/environ /proc/*/cmdline /proc/*/task/*/environ; env"
        result = session.run(["sh", "-c", look.replace("planted", "plan''ted")])
    assert b"planted" not in (result.stdout or b"")
