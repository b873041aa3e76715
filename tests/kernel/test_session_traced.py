"""A command that a process of its own call traces: it is over when its tracer lets go of it, which nobody waits for in vain."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from remit import CompletedCall, Grant, TimeoutExpired
from tests.kernel.run_harness import World
from tests.kernel.session_harness import cut_off, gone, opened, python, said, until, watched

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6)]

TRACED = """
PTRACE_SEIZE, PTRACE_DETACH, PTRACE_O_TRACEEXIT, SET_PTRACER = 0x4206, 17, 0x40, 0x59616D61
libc.prctl(SET_PTRACER, ctypes.c_ulong(-1))  # where Yama is, a child may trace its parent only then
def traced(task, options=0, then="stay"):
    '''By a child, which has none of the streams.'''
    up, says = os.pipe()
    if os.fork():
        os.close(says)
        assert os.read(up, 16) == b'0', 'not traced'
        return
    result = libc.ptrace(PTRACE_SEIZE, ctypes.c_long(task), None, ctypes.c_long(options))
    for stream in range(3):
        os.close(stream)
    os.write(says, b'%d' % result)
    os.close(says)
    if then == "let go":
        # As a tracer does that wants to know how it ended. Whoever waits for it lets it go, which ends the call: the file
        # is made before that.
        assert os.waitid(os.P_PID, task, os.WEXITED | os.WNOWAIT).si_status == 7
        open('let-go', 'w').close()
        assert os.waitpid(task, 0x40000000) == (task, 7 << 8)
    if then == "hold on":
        os.waitid(os.P_PID, task, os.WEXITED | os.WNOWAIT)
        open('over', 'w').close()
    while True:
        signal.pause()
"""

OVER = TRACED + "traced(os.getpid())\nprint('up', flush=True)\nos._exit(7)"
LET_GO = TRACED + "traced(os.getpid(), then='let go')\nos._exit(7)"
HOLDS_ON = TRACED + "traced(os.getpid(), then='hold on')\nos._exit(7)"
# Its other thread alone is traced: the process has ended, and says so to nobody (``delay_group_leader``).
THREAD = (
    TRACED
    + """
import threading, time
tid = []
started, never = threading.Event(), threading.Event()
threading.Thread(target=lambda: (tid.append(threading.get_native_id()), started.set(), never.wait()), daemon=True).start()
started.wait()
traced(tid[0])
print('up', flush=True)
os._exit(7)
"""
)
# Killed, it stops once more, for the tracer to look at it.
STOPS = TRACED + "traced(os.getpid(), PTRACE_O_TRACEEXIT)\nprint('up', flush=True)\nsignal.pause()"


def sound(world: World) -> None:
    """A file for the grants below."""
    (world.workspace / "file").write_text("content")


GRANT = Grant(read=["file"], write=["."])


def test_a_command_whose_child_traces_it_has_its_own_status_and_the_session_goes_on(world: World) -> None:
    sound(world)
    with opened(world) as session:
        for _ in range(2):
            result = session.run(python(OVER), grant=GRANT, timeout=60)
            assert (result.returncode, result.limit) == (7, "")
            assert said(session.run(["echo", "on"], grant=GRANT)) == "on"


def test_a_tracer_that_lets_go_is_not_ended_before(world: World) -> None:
    """As long as it has not, it goes on: what it writes before is there when the call is over."""
    sound(world)
    with opened(world) as session:
        for background in (False, True):
            running = session.popen(python(LET_GO), grant=GRANT, background=background)
            assert running.wait() == 7
            running.close()
            Path(world.workspace, "let-go").unlink()


@pytest.mark.parametrize("code", [OVER, THREAD, STOPS], ids=["over", "a thread", "stops at its end"])
def test_a_time_limit_holds_for_a_traced_command(world: World, code: str) -> None:
    sound(world)
    with opened(world) as session:
        # Of what is over, the tracer has a second to let go, which comes before its time.
        at_once = 10 if code == OVER else 0

        def limited(seconds: float) -> CompletedCall[bytes]:
            grant = Grant(read=["file"], write=["."], limits={"time": f"{seconds + at_once:g}s"})
            result = session.run(python(code), grant=grant, timeout=90)
            assert said(session.run(["echo", "on"], grant=grant)) == "on"
            return result

        result = cut_off(limited, lambda result: result.stdout)
        assert (result.returncode, result.limit) == {OVER: (7, ""), THREAD: (7, "time"), STOPS: (-9, "time")}[code]


@pytest.mark.parametrize("code", [THREAD, STOPS], ids=["a thread", "stops at its end"])
def test_a_timeout_holds_for_a_traced_command(world: World, code: str) -> None:
    sound(world)
    with opened(world) as session:
        with pytest.raises(TimeoutExpired):
            session.run(python(code), grant=GRANT, timeout=2)
        assert said(session.run(["echo", "on"], grant=GRANT)) == "on"


def test_a_background_command_is_over_when_its_tracer_lets_go_or_its_client_does(world: World) -> None:
    sound(world)
    marker = "c-traced-in-the-background"
    with opened(world) as session:
        running = session.popen([*python(HOLDS_ON), marker], grant=GRANT, background=True)
        until(Path(world.workspace, "over").exists)
        handles = watched(marker)
        assert len(handles) == 1  # the tracer: what is over has no arguments
        running.kill()
        assert running.wait() == 7
        assert gone(handles)
        running.close()
        assert said(session.run(["echo", "on"], grant=GRANT)) == "on"


def test_other_calls_go_on_meanwhile(world: World) -> None:
    sound(world)
    with opened(world) as session:
        ended: list[int] = []
        thread = threading.Thread(target=lambda: ended.append(session.run(python(OVER), grant=GRANT).returncode))
        thread.start()
        for _ in range(20):
            assert said(session.run(["echo", "on"], grant=GRANT)) == "on"
        thread.join(60)
        assert ended == [7]
