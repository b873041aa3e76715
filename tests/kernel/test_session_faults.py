"""Faults: whatever dies, fills up or is cut off, a call fails closed, says what happened, and leaves nothing behind."""

from __future__ import annotations

import errno
import marshal
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from remit import (
    DEVNULL,
    STDOUT,
    Error,
    Grant,
    GrantError,
    GrantRevoked,
    LaunchError,
    Session,
    SessionClosed,
    TimeoutExpired,
)
from remit.sandbox.kernel.call import NR
from remit.sandbox.session import base, handle
from remit.sandbox.session import session as session_module
from remit.sandbox.session.call import Popen
from remit.sandbox.session.door import Door
from tests.kernel.run_harness import TIMEOUT, World, descendants, ended
from tests.kernel.session_harness import (
    client,
    comm,
    first_processes,
    gone,
    handles,
    named,
    opened,
    python,
    said,
    stopped,
    until,
    watched,
)

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6)]

UNUSED = 999
"""A descriptor that is not open; the lowest such one would be used at once."""
FOREVER = f"3{os.getpid():08}"
"""Seconds, and a word that no other run of these tests has in its arguments."""


@pytest.fixture
def session(world: World) -> Iterator[Session]:
    with opened(world) as made:
        yield made


ELSEWHERE = ("pytest", "hsperfdata_", "remit-tests.", "remit-demo-", "remit-bench-", "remit-doctor-", "remit-mutate-")
"""What other tests, and the commands that they run, make at the same time below a directory that is everybody's."""


def remains(world: World) -> tuple[int, list[str]]:
    """What a session could leave on the host: mounts, and files in the user's places (records are to stay)."""
    mounts = Path("/proc/self/mountinfo").read_text().count("\n")
    places = [world.base / "runtime", world.workspace, Path("/tmp"), Path("/dev/shm")]
    names = [path for place in places for path in place.iterdir() if "remit" in path.name]
    found = [path for path in names if not path.name.startswith(ELSEWHERE)]
    inside = [below for path in found if path.is_dir() for below in path.rglob("*")]
    return mounts, sorted(str(path) for path in (*found, *inside) if not path.is_dir())


def test_the_first_process_is_killed_during_a_call(world: World) -> None:
    marker = f"{FOREVER}.301"
    nothing = remains(world)
    with opened(world) as other:
        others = first_processes()
        with opened(world) as session:
            (zygote,) = first_processes() - others
            calls = [session.popen(["sh", "-c", f"setsid sleep {marker} & echo ready; wait"]) for _ in range(3)]
            for call in calls:
                assert call.stdout is not None
                assert call.stdout.readline() == b"ready\n"
            left = watched(marker)
            assert len(left) >= 6
            os.kill(zygote, signal.SIGKILL)
            for call in calls:
                with pytest.raises(SessionClosed, match="died"):
                    call.wait()
                call.close()
            assert gone(left)
            with pytest.raises(SessionClosed):
                session.run(["true"])
            with pytest.raises(SessionClosed):
                session.run(["true"], grant=Grant())
            assert other.run(["true"]).returncode == 0
    assert remains(world) == nothing
    with opened(world) as again:
        assert again.run(["true"]).returncode == 0


def test_the_template_is_killed_during_a_call(world: World) -> None:
    code = """
    s = Session("offline", ".")
    call = s.popen(["sh", "-c", "setsid sleep MARKER & echo ready; wait"])
    call.stdout.readline()
    print("ready", flush=True)
    for action in (call.wait, lambda: s.run(["true"]), lambda: s.run(["true"], grant=Grant())):
        try:
            action()
        except SessionClosed as error:
            print("closed", error, flush=True)
    call.close()
    s.close()
    with Session("offline", ".") as again:
        print(again.run(["echo", "again"]).stdout, flush=True)
    """
    marker = f"{FOREVER}.302"
    with client(code.replace("MARKER", marker), world) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.stderr
        (template,) = [pid for pid in descendants(process.pid) if comm(pid) == "remit-template"]
        left = watched(marker) + handles(descendants(template))
        os.kill(template, signal.SIGKILL)
        output, errors = process.communicate(timeout=TIMEOUT)
    assert gone(left)
    assert errors == ""
    assert output.count("closed") == 3
    assert output.endswith("b'again\\n'\n")


def test_the_client_is_killed_during_a_call(world: World) -> None:
    code = """
    with Session("offline", ".") as s:
        calls = [s.popen(["sh", "-c", "setsid sleep MARKER & echo ready; wait"], background=n > 1) for n in range(4)]
        for call in calls:
            call.stdout.readline()
        print("ready", flush=True)
        s.run(["sleep", "MARKER"])
    """
    marker = f"{FOREVER}.303"
    nothing = remains(world)
    with client(code.replace("MARKER", marker), world) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        left = handles(descendants(process.pid))
        assert len(named(marker)) >= 8
        process.kill()
        process.wait()
        assert gone(left)
    assert [pid for pid in named(marker) if pid != process.pid] == []
    assert remains(world) == nothing


def test_a_mediator_that_is_stuck_lets_nothing_through(world: World) -> None:
    before = first_processes()
    with opened(world) as session:
        (zygote,) = first_processes() - before
        script = "echo ready; read line; echo x > made"
        with session.popen(["sh", "-c", script], stdin=-1) as call:
            assert call.stdout is not None
            assert call.stdin is not None
            assert call.stdout.readline() == b"ready\n"
            os.kill(zygote, signal.SIGSTOP)
            call.stdin.write(b"\n")
            call.stdin.close()
            (shell,) = [pid for pid in descendants(zygote) if comm(pid) == "sh"]
            while "seccomp" not in Path(f"/proc/{shell}/wchan").read_text():
                pass
            assert not (world.workspace / "made").exists()
            os.kill(zygote, signal.SIGCONT)
            assert call.wait() == 0
        assert (world.workspace / "made").read_text() == "x\n"


def timed_out(session: Session, marker: str, stop: Callable[[], None]) -> None:
    kill = Popen.kill

    def late(call: Popen) -> None:
        if call.returncode is None and not session_ended(session):
            stop()
        kill(call)

    with patch.object(Popen, "kill", late):
        session.run(["sh", "-c", f"setsid sleep {marker} & exec sleep {marker}"], timeout=0.3)


def session_ended(session: Session) -> bool:
    return "closed" in repr(session)


def begun(session: Session, marker: str) -> Popen:
    call = session.popen(["sh", "-c", f"echo ready; exec sleep {marker}"], grant=Grant(read=["."]))
    assert call.stdout is not None
    assert call.stdout.readline() == b"ready\n"
    return call


def waited(session: Session, marker: str, stop: Callable[[], None]) -> None:
    with begun(session, marker) as call:
        stop()
        call.wait(timeout=0.3)


def taken_back(session: Session, marker: str, stop: Callable[[], None]) -> None:
    with begun(session, marker) as call:
        stop()
        assert session.revoke(call) == [call.call]
        call.wait()


def closed(session: Session, marker: str, stop: Callable[[], None]) -> None:
    with begun(session, marker) as call:
        stop()
        session.close()
        call.wait()


STUCK: dict[str, tuple[Callable[[Session, str, Callable[[], None]], None], type[Error], type[Error]]] = {
    "run": (timed_out, TimeoutExpired, SessionClosed),
    "wait": (waited, TimeoutExpired, TimeoutExpired),
    "revoke": (taken_back, GrantRevoked, SessionClosed),
    "close": (closed, SessionClosed, SessionClosed),
}
"""What waits for a session's first process: how, how it ends, and how it ends where nobody answers."""


@pytest.mark.parametrize("way", STUCK)
def test_a_first_process_that_is_stuck_keeps_nobody_waiting(world: World, way: str) -> None:
    """The session is ended, and nothing of it is left; while it answers, the call alone is."""
    wait, well, stuck = STUCK[way]
    marker = f"{FOREVER}.304"
    nothing, before = remains(world), first_processes()
    with opened(world) as other:
        others = first_processes() - before
        for stops, expected in ((False, well), (True, stuck)):
            with patch.object(Door, "PATIENCE", 0.2 if stops else 60.0), opened(world) as session:
                (zygote,) = first_processes() - before - others
                assert session.run(["true"]).returncode == 0
                left = handles([zygote, *descendants(zygote)])
                with pytest.raises(expected):
                    wait(session, marker, partial(stopped, zygote) if stops else lambda: None)
                if stops or way == "close":
                    with pytest.raises(SessionClosed, match=r"closed|did not answer"):
                        session.run(["true"])
                else:
                    assert session.run(["true"]).returncode == 0
            assert gone(left)
            assert named(marker) == []
        assert other.run(["true"]).returncode == 0
    assert remains(world) == nothing


def test_a_timeout_holds_while_there_is_no_room_for_a_request(world: World) -> None:
    """Requests wait in the socket of a session whose first process stands still, until it is full."""
    before = first_processes()
    calls: list[Popen] = []
    nothing: dict[str, Any] = {"stdin": DEVNULL, "stdout": DEVNULL, "stderr": DEVNULL}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with opened(world) as session:
        (zygote,) = first_processes() - before
        assert session.run(["true"]).returncode == 0
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        stopped(zygote)
        late = threading.Timer(
            TIMEOUT / 10, os.kill, (zygote, signal.SIGCONT)
        )  # whoever waits until then finds that out
        filling = threading.Thread(
            target=lambda: calls.extend([session.popen(["true", "x" * 2000], **nothing) for _ in range(150)])
        )
        try:
            late.start()
            filling.start()
            assert filling.native_id is not None
            place = Path(f"/proc/self/task/{filling.native_id}/syscall")
            until(lambda: place.read_text().split()[0] == str(NR["sendmsg"]))  # it sleeps there
            with pytest.raises(TimeoutExpired) as slow:
                session.run(["touch", "begun"], timeout=0.2, **nothing)
            assert (slow.value.cmd, slow.value.timeout) == (["touch", "begun"], 0.2)
            assert filling.is_alive()
        finally:
            late.cancel()
            os.kill(zygote, signal.SIGCONT)
            filling.join()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [call.wait() for call in calls] == [0] * 150
        for call in calls:
            call.close()
        assert not (world.workspace / "begun").exists()


def test_a_template_that_is_stuck_keeps_nobody_waiting(world: World) -> None:
    code = """
    from remit.sandbox.session.link import Link
    Link.PATIENCE = 0.5
    s, other = Session("offline", "."), Session("offline", ".")
    call = s.popen(["sleep", "MARKER"])
    print("ready", flush=True)
    sys.stdin.readline()
    s.close()
    for action in (call.wait, lambda: other.run(["true"])):
        try:
            action()
        except SessionClosed as error:
            print("closed", error, flush=True)
    call.close()
    other.close()
    with Session("offline", ".") as again:
        print(again.run(["echo", "again"]).stdout, flush=True)
    """
    marker = f"{FOREVER}.305"
    with client(code.replace("MARKER", marker), world) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.stderr
        (template,) = [pid for pid in descendants(process.pid) if comm(pid) == "remit-template"]
        left = handles([template, *descendants(template)])
        stopped(template)
        output, errors = process.communicate("\n", timeout=TIMEOUT)
    assert gone(left)
    assert errors == ""
    assert [line.split()[0] for line in output.splitlines()] == ["closed", "closed", "b'again\\n'"]


# --- what the caller is short of -----------------------------------------------------------------------------------------


LAYERS = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
attributes = ctypes.create_string_buffer(struct.pack('QQQ', 1 << 12, 0, 0), 24)
for _ in range(COUNT):
    ruleset = libc.syscall(444, attributes, 8, 0)
    assert ruleset >= 0
    assert libc.syscall(446, ruleset, 0) == 0, ctypes.get_errno()
    os.close(ruleset)
try:
    with Session("offline", ".") as s:
        print("started", s.run(["echo", "ran"]).stdout)
except Error as error:
    print(type(error).__name__, error.phase, error)
"""


@pytest.mark.parametrize("count", [0, 1, 14, 15, 16])
def test_a_caller_that_is_confined_by_landlock_already(world: World, count: int) -> None:
    """Landlock forbids mounting, however little it denies: no session there, and a sentence that says so."""
    with client(LAYERS.replace("COUNT", str(count)), world) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
    assert errors == ""
    if count == 0:
        assert output == "started b'ran\\n'\n"
    else:
        assert output.startswith("Unenforceable compile no user namespaces here"), output


FULL = """
import resource
with Session("offline", ".") as s:
    s.run(["true"])
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    while True:
        try:
            held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            break
    for free in range(0, 12):
        try:
            print(free, s.run(["sh", "-c", "echo ran >> mark"]).returncode)
        except Error as error:
            print(free, type(error).__name__, error)
        except OSError as error:
            print(free, "OSError", error.errno)
        if held:
            os.close(held.pop())
    for descriptor in held:
        os.close(descriptor)
    before = len(os.listdir("/proc/self/fd"))
    print("after", s.run(["echo", "fine"]).stdout, len(os.listdir("/proc/self/fd")) == before)
"""


def test_a_full_descriptor_table_of_the_caller(world: World) -> None:
    with client(FULL, world) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
    assert errors == ""
    lines = output.splitlines()
    assert lines[-1] == "after b'fine\\n' True"
    results = [line.split(" ", 1)[1] for line in lines[:-1]]
    failed = [result for result in results if result != "0"]
    assert failed
    assert all("LaunchError" in result and "descriptors" in result for result in failed), results
    assert results[-1] == "0"
    ran = (world.workspace / "mark").read_text().count("ran")
    assert ran == results.count("0")


def test_a_small_descriptor_table_of_the_sessions(world: World) -> None:
    """A call that it has no room for is refused, or the session says that it has ended; what ran goes on or is ended too.

    What waits for further calls under the authorities of before keeps its room.
    """
    code = """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (48, 4096))
    s = Session("offline", ".")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    results, calls = [], []
    for n in range(24):
        try:
            call = s.popen(["cat"], stdin=PIPE, grant=Grant(read=["."], env=[], limits={"files": 100 + n}))
            try:
                call.stdin.write(b"x")
                call.stdin.flush()
            except BrokenPipeError:
                pass
            if call.stdout.read(1) == b"x":
                calls.append(call)
                continue
            with call:
                call.wait()
        except Error as error:
            results.append(type(error).__name__ + " " + str(error))
    for call in calls:
        with call:
            try:
                assert call.communicate()[0] == b""
                assert call.returncode == 0
            except Error as error:
                results.append(type(error).__name__)
    print(len(calls), len(results), sorted(set(results)), flush=True)
    try:
        print(s.run(["echo", "fine"]).stdout)
    except SessionClosed as error:
        print("closed", error)
    except Error as error:
        print("refused", error, error.hint)
    s.close()
    """
    with client(code, world) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
    assert errors == ""
    first, last = output.splitlines()
    refused = "refused no more descriptors: Too many open files raise 'ulimit -n', or run fewer at a time"
    assert last in ("b'fine\\n'", refused) or last.startswith("closed "), last
    assert int(first.split()[0]) >= 1
    assert int(first.split()[1]) >= 1


@pytest.mark.needs(ordinary=True)
def test_no_process_can_be_started(world: World) -> None:
    code = """
    import resource
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    try:
        Session("offline", ".")
    except Error as error:
        print(type(error).__name__, error)
    """
    with client(code, world) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
    assert errors == ""
    assert output.startswith("LaunchError"), output


# --- limits, from the first instruction ----------------------------------------------------------------------------------


def test_limits_are_in_force_before_the_first_instruction(session: Session) -> None:
    shown = ["sh", "-c", "ulimit -n; ulimit -f; ulimit -t; ulimit -p"]
    given = Grant(limits={"files": 33, "file-size": "1MiB", "cpu-time": "7s", "pids": 41})
    outside = session.run(shown).stdout
    for _ in range(3):
        assert said(session.run(shown, grant=given)) == "33\n2048\n7\n41"
    assert session.run(shown).stdout == outside  # no other call has them


def test_each_limit_ends_or_refuses(session: Session) -> None:
    files = "import resource; [os.dup(0) for _ in range(100)]"
    failed = session.run(python(files), grant=Grant(limits={"files": 50}))
    assert b"Too many open files" in (failed.stderr or b"")
    assert session.run(python(files), grant=Grant(limits={"files": 500})).returncode == 0

    size = ["sh", "-c", "head -c 2000000 /dev/zero > /tmp/big"]
    assert session.run(size, grant=Grant(limits={"file-size": "1MiB"})).returncode != 0
    assert session.run(size, grant=Grant(limits={"file-size": "3MiB"})).returncode == 0

    spin = ["sh", "-c", "while :; do :; done"]
    assert session.run(spin, grant=Grant(limits={"cpu-time": "1s"})).returncode in (-signal.SIGXCPU, -signal.SIGKILL)

    slow = session.run(["sleep", FOREVER], grant=Grant(limits={"time": "300ms"}))
    assert (slow.returncode, slow.limit) == (-9, "time")

    eat = "x = bytearray(300 << 20); x[::4096] = b'1' * len(x[::4096]); time.sleep(1000)"
    fed = session.run(python(eat), grant=Grant(limits={"memory": "100MiB"}))
    assert (fed.returncode, fed.limit) == (-9, "memory")

    forks = python("for _ in range(200): os.fork() or time.sleep(1000)")
    bounded = session.run(forks, grant=Grant(limits={"pids": 60}))
    assert b"Resource temporarily unavailable" in (bounded.stderr or b"")
    assert session.run(["true"]).returncode == 0


# --- forks and threads of the caller -------------------------------------------------------------------------------------


def test_a_forked_child_shares_nothing_with_its_parent(world: World) -> None:
    code = """
    s = Session("offline", ".")
    call = s.popen(["cat"], stdin=PIPE)
    child = os.fork()
    if child == 0:
        for action in (lambda: s.run(["true"]), lambda: s.narrow(Grant()).run(["true"]), lambda: s.run(["true"], grant=Grant())):
            try:
                action()
                print("ran", flush=True)
            except SessionClosed:
                print("closed", flush=True)
        s.close()
        with Session("offline", ".") as own:
            print(own.run(["echo", "own"]).stdout, flush=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    print(call.communicate(b"alive")[0], s.run(["echo", "parent"]).stdout, flush=True)
    call.close()
    s.close()
    """
    with client(code, world) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
    assert errors == ""
    assert output.splitlines() == ["closed"] * 3 + ["b'own\\n'", "0", "b'alive' b'parent\\n'"]


def test_a_forked_child_ends_no_call_of_its_parents_and_waits_for_none(world: World) -> None:
    code = """
    s = Session("offline", ".")
    heard, told = os.pipe()
    handles = [s.popen(["cat"], stdin=PIPE), s.popen(["cat"], stdin=PIPE, background=True), s.popen(["cat"], pty=True)]
    handles[2].wait_started()
    handles[0].stdin.write(b"buffered ")
    child = os.fork()
    if child == 0:
        for call in handles:
            for name, action in {
                "wait": call.wait, "timeout": lambda: call.wait(timeout=1), "result": call.result, "poll": call.poll,
                "communicate": call.communicate, "started": lambda: (call.wait_started(), call.result()),
            }.items():
                try:
                    print(name, action(), flush=True)
                except SessionClosed as error:
                    assert "forked" in str(error), error
            call.terminate()
            call.kill()
        try:
            with handles[0]:
                pass
        except SessionClosed:
            print("left", flush=True)
        with handles[0], handles[1], handles[2]:
            sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), [call.poll() for call in handles], flush=True)
    print(handles[0].communicate(b"alive")[0], handles[1].communicate(b"alive")[0], flush=True)
    os.write(handles[2].terminal, b"alive\\n\\4")
    print(handles[2].wait(), s.run(["echo", "parent"]).stdout, flush=True)
    for call in handles:
        call.close()
    s.close()
    """
    with client(code, world) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
    assert errors == ""
    assert output.splitlines() == [
        "left",
        "7 [None, None, None]",
        "b'buffered alive' b'alive'",
        "0 b'parent\\n'",
    ]


@pytest.mark.parametrize("way", ["background", "stdin", "terminal", "killed"])
def test_a_forked_child_that_is_merely_there_keeps_nothing_of_its_parents_calls(world: World, way: str) -> None:
    marker = f"{FOREVER}.210"
    start = {
        "background": "s.popen(['sh', '-c', f'sleep {marker} & echo up'], background=True)",
        "stdin": "s.popen(['sh', '-c', f'echo up; read line; exec 3<&0; : {marker}'], stdin=PIPE)",
        "terminal": "s.popen(['sh', '-c', f'echo up; read line; read line; : {marker}'], pty=True)",
        "killed": "s.popen(['sh', '-c', f'echo up; exec sleep {marker}'])",
    }[way]
    code = f"""
    marker = os.environ["MARKER"]  # not among this program's arguments
    s = Session("offline", ".")
    call = {start}
    if call.stdout is not None:
        call.stdout.readline()
    else:
        call.wait_started()  # which its terminal is before its command
        os.read(call.terminal, 1)
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        os.read(heard, 1)
        os._exit(0)
    os.close(heard)
    print("forked", flush=True)
    sys.stdin.readline()
    if "{way}" == "stdin":
        call.stdin.close()
        call.wait(timeout={TIMEOUT})
    else:
        call.close()
    print("ended", flush=True)
    sys.stdin.readline()
    """
    with client(code, world, environ={"MARKER": marker}) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        inside = watched(marker)
        assert inside
        if way == "killed":
            process.kill()
        else:
            print("go on", file=process.stdin, flush=True)
            assert process.stdout.readline() == "ended\n"
        assert gone(inside)
        process.kill()


def test_many_threads_at_once(session: Session) -> None:
    """Every answer is its own call's, under every grant."""
    grants = [None, Grant(), Grant(read=["."]), Grant(write=["."], limits={"files": 99})]
    wrong: list[object] = []

    def work(thread: int) -> None:
        for turn in range(50):
            word = f"{thread}-{turn}".encode()
            try:
                result = session.run(
                    ["sh", "-c", "cat; exit 7"], input=word, grant=grants[(thread + turn) % len(grants)]
                )
                if (result.returncode, result.stdout, result.stderr) != (7, word, b""):
                    wrong.append(result)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- what cannot be told -------------------------------------------------------------------------------------------------


DENIED_MANY = """
place = '{place}'
for number in range({count}):
    attempt(lambda: os.open(f'{{place}}/{{number:04}}', os.O_WRONLY | os.O_CREAT))
print('done', flush=True)
"""


def denied_many(world: World, depth: int, count: int) -> list[str]:
    """A program that is denied ``count`` names below a directory ``depth`` names of 250 bytes deep."""
    place = Path("deep", *["x" * 250] * depth)
    (world.workspace / place).mkdir(parents=True)
    return python(DENIED_MANY.format(place=place, count=count))


@pytest.mark.parametrize(("depth", "count"), [(7, 20), (7, 60), (7, 80), (15, 300)])
def test_no_call_makes_its_answer_larger_than_anybody_reads(world: World, depth: int, count: int) -> None:
    """An answer names what fits, and counts everything; the record has it all."""
    grant = Grant(read=["."])
    program = denied_many(world, depth, count)
    with opened(world) as session:
        for _ in range(2):
            result = session.run(program, grant=grant, timeout=TIMEOUT)
            assert said(result) == "done"
            assert result.denied == count
            named_in_it = [one.object for one in result.denials]
            assert named_in_it == [
                str(world.workspace / "deep" / Path(*["x" * 250] * depth, f"{number:04}"))
                for number in range(len(named_in_it))
            ]
            assert len(named_in_it) >= min(count, 16)
            assert len(named_in_it) == count or count > 20
    (record,) = world.records()
    lines = (record / "events.jsonl").read_text().splitlines()
    assert len([line for line in lines if '"denied"' in line and "/deep/" in line]) == 2 * count


def all_reaped() -> bool:
    """Whether no command that has ended waits for whoever started it, which the cell's PID 1 would wait for in turn; waiting for
    it. Whoever started it is a thread, whose place another call may take."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        with suppress(OSError):
            below = [Path(f"/proc/{pid}/stat").read_text() for pid in descendants(os.getpid())]
            if not any("(python" in one and one.rpartition(")")[2].split()[0] == "Z" for one in below):
                return True
    return False


def test_an_answer_that_cannot_be_sent_ends_that_call_only(world: World) -> None:
    """Its command is reaped, its cell ended, and its thread's place is another call's."""
    made = base.reply_pair

    def small() -> tuple[socket.socket, socket.socket]:
        ours, theirs = made()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        return ours, theirs

    grant = Grant(read=["."])
    marker = f"{FOREVER}.306"
    program = [*denied_many(world, 7, 16), marker]
    with opened(world) as session:
        first = session.run(program, grant=grant)
        for script in (program, ["sh", "-c", f'setsid sleep {marker} & exec "$@"', "sh", *program]):
            with (
                patch.object(session_module, "reply_pair", small),
                pytest.raises(LaunchError, match="Message too long"),
            ):
                session.run(script, grant=grant, timeout=TIMEOUT)
            assert gone(watched(marker))
            assert all_reaped()
            again = session.run(program, grant=grant, timeout=TIMEOUT)
            assert (again.returncode, again.denied) == (0, first.denied)


@pytest.mark.parametrize("size", [5_000, 70_000, 150_000, 250_000])
def test_a_name_that_is_too_long_for_a_program_is_told_in_a_line(session: Session, size: int) -> None:
    for words, directory in ((["x" * size], None), (["./" + "x/" * (size // 2)], None), (["true"], "x" * size)):
        with pytest.raises(LaunchError) as raised:
            session.run(words, cwd=directory, timeout=TIMEOUT)
        assert len(f"{raised.value} {raised.value.hint}") < 10_000
        assert session.run(["true"], timeout=TIMEOUT).returncode == 0


@pytest.mark.parametrize(
    "data", [b"", b"(", b"x", marshal.dumps(("exited", 0, "", 0.0, 0, 0, ["x" * 100]))[:-7], marshal.dumps(7)]
)
def test_an_answer_that_nobody_can_read_is_a_failure_of_remits(session: Session, data: bytes) -> None:
    with patch.object(handle, "receive", return_value=(data, [])), pytest.raises((LaunchError, SessionClosed)):
        session.run(["true"], timeout=TIMEOUT)


# --- what cannot be started ----------------------------------------------------------------------------------------------


def test_a_program_that_is_not_there_or_no_program(session: Session, world: World) -> None:
    files = {"plain": "text", "script": "#!/no/such/interpreter\n", "text": "echo by the shell\n"}
    for name, content in files.items():
        (world.workspace / name).write_text(content)
        (world.workspace / name).chmod(0o755 if name != "plain" else 0o644)
    for words, status in (
        (["no-such-program"], 127),
        (["./nowhere/x"], 127),
        (["./plain"], 126),
        (["/usr"], 126),
        (["./script"], 127),
    ):
        with pytest.raises(LaunchError) as raised:
            session.run(words, grant=Grant(exec=["."]))
        assert raised.value.exit_status == status, words
        assert words[0] in str(raised.value)
    assert said(session.run(["./text"], grant=Grant(exec=["."]))) == "by the shell"


def test_a_descriptor_that_cannot_be_a_stream_is_refused_and_the_session_goes_on(session: Session) -> None:
    run: Any = session.run
    for name in ("stdin", "stdout", "stderr"):
        for number in (UNUSED, -7, 1 << 40):
            with pytest.raises(OSError, match=name) as raised:
                run(["true"], **{name: number})
            assert raised.value.errno == errno.EBADF
        with pytest.raises(TypeError, match=name):
            run(["true"], **{name: "a name"})
    for name in ("stdin", "stdout"):
        with pytest.raises(ValueError, match="stderr"):
            run(["true"], **{name: STDOUT})
    assert session.run(["true"]).returncode == 0


def test_a_descriptor_that_is_closed_before_it_is_sent_ends_no_session(session: Session) -> None:
    """By another thread, after it was looked at."""
    run: Any = session.run
    with patch("os.fstat", return_value=os.stat("/dev/null")):
        for name in ("stdin", "stdout", "stderr"):
            with pytest.raises(OSError, match="descriptor"):
                run(["true"], **{name: UNUSED})
    assert session.run(["true"]).returncode == 0


def test_arguments_that_make_no_call_are_told_as_what_they_are(session: Session) -> None:
    run: Any = session.run
    for keywords, kind in (
        ({"cwd": "a\0b"}, LaunchError),
        ({"cwd": ""}, LaunchError),
        ({"cwd": b"src"}, TypeError),
        ({"grant": "src"}, TypeError),
        ({"grant": session.grant}, TypeError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "5"}, TypeError),
        ({"max_output": -1}, ValueError),
    ):
        with pytest.raises(kind, match=next(iter(keywords)) if kind is not LaunchError else "path"):
            run(["true"], **keywords)
    narrow: Any = session.narrow
    for grant in (None, "src"):
        with pytest.raises(TypeError, match="grant"):
            narrow(grant)
    for timeout in (0, -1):  # as subprocess has it
        with pytest.raises(TimeoutExpired):
            session.run(["sleep", FOREVER], timeout=timeout)
    assert session.run(["true"], timeout=float("inf")).returncode == 0
    with session.popen(["sleep", FOREVER]) as call:
        send: Any = call.send_signal
        for number, wrong in ((-1, ValueError), (1 << 40, ValueError), ("9", TypeError)):
            with pytest.raises(wrong):
                send(number)
        with pytest.raises(ValueError, match="NaN"):
            call.wait(float("nan"))
        with pytest.raises(ValueError, match="NaN"):
            call.communicate(timeout=float("nan"))
        call.send_signal(signal.SIGTERM)
    assert call.returncode == -signal.SIGTERM


@pytest.mark.parametrize("words", [[], [""], ["true", "a\0b"], ["tr\0ue"]])
def test_words_that_no_program_can_have(session: Session, words: list[str]) -> None:
    with pytest.raises(Error):
        session.run(words)
    assert session.run(["true"]).returncode == 0


def test_variables_that_no_program_can_have(world: World) -> None:
    with opened(world, env=["A"]) as session:
        for value in ("x\0y", "\0"):
            with pytest.raises(Error):
                session.run(["true"], env={"A": value})
        assert said(session.run(["/usr/bin/env"], env={"A": "é=\n\t'"})) == "A=é=\n\t'"


def test_bytes_pass_as_they_are(session: Session) -> None:
    garbage = bytes(byte for byte in range(1, 256))
    word = os.fsdecode(garbage)
    assert session.run(["printf", "%s", word]).stdout == garbage


@pytest.mark.parametrize("size", [100_000, 130_000, 131_072, 250_000, 1_000_000, 4_000_000])
def test_long_arguments_run_or_are_refused(session: Session, size: int) -> None:
    """The kernel's limit is 128 KiB for one word and a quarter of the stack for all."""
    refused: list[tuple[int, str]] = []
    for words in (["x" * size], ["x" * 1000] * (size // 1000)):
        try:
            result = session.run(["sh", "-c", 'printf %s "$*" | wc -c', "sh", *words])
        except LaunchError as error:
            refused.append((size, str(error)))
        else:
            assert int(said(result)) == len(" ".join(words))
    assert all(size > 100_000 and ("too long" in why or "bytes" in why) for size, why in refused), refused
    assert session.run(["true"]).returncode == 0


@pytest.mark.parametrize("size", [5_000, 20_000, 100_000, 131_071, 200_000])
def test_a_name_that_is_too_long_for_a_message_fails_its_own_call_only(world: World, size: int) -> None:
    """It is told in every message about the failure, which is to say where it begins and no more."""
    with opened(world) as session, opened(world) as other:
        (template,) = [pid for pid in descendants(os.getpid()) if comm(pid) == "remit-template"]
        for words, directory in ((["x" * size], ""), (["/" + "y/" * (size // 2)], ""), (["true"], "/" + "z/" * size)):
            with pytest.raises(LaunchError) as raised:
                session.run(words, cwd=directory or None)
            assert len(f"{raised.value} {raised.value.hint}") < 1000
            if size < 131_072:  # more than that, the client refuses by itself
                assert raised.value.exit_status == (125 if directory else 127 if words[0][0] == "x" else 126)
                assert (directory or words[0])[:50] in str(raised.value)
        assert [one.run(["true"]).returncode for one in (session, other)] == [0, 0]
        assert comm(template) == "remit-template"


def test_a_grant_of_very_many_things(session: Session, world: World) -> None:
    names = [f"f{number}" for number in range(3000)]
    for name in names:
        (world.workspace / name).touch()
    try:
        result = session.run(["true"], grant=Grant(read=names))
    except (LaunchError, GrantError) as error:
        why = str(error)
    else:
        why = f"grant: {result.returncode}"
    assert why == "grant: 0" or "the grant" in why, why
    assert session.run(["true"]).returncode == 0


def test_nothing_is_left_of_many_sessions(world: World) -> None:
    nothing = remains(world)
    before = set(descendants(os.getpid()))
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with opened(world) as session:
            session.run(["sh", "-c", "setsid sleep 1000 & : > /tmp/x"])
            inside = handles(pid for pid in set(descendants(os.getpid())) - before if comm(pid) == "remit-init")
            assert inside
        assert gone(inside)
    after = [pid for pid in set(descendants(os.getpid())) - before if comm(pid) != "remit-template"]
    assert all(ended(pid) for pid in after)
    assert (
        len(os.listdir("/proc/self/fd")) <= descriptors + 1
    )  # the socket to the template, where this is the first session
    assert remains(world) == nothing
