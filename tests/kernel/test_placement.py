"""Where callers and their mediator wake up: nobody may come to see, or to hand down, the CPUs that they are held to meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest

from remit.sandbox.kernel.placement import Placement
from tests.kernel.run_harness import World
from tests.kernel.session_harness import opened, python, said, until

OPENS = """
import json, os
{before}
own = os.sched_getaffinity(0)
seen = set()
for i in range(1000):
    descriptor = os.open("file", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    seen.add(tuple(sorted(os.sched_getaffinity(0))))
    os.close(descriptor)
    if not i % 50:
        os.open("file", os.O_WRONLY)
        child = os.fork()
        if not child:
            os._exit(os.sched_getaffinity(0) != own)
        seen.add(("child", os.waitpid(child, 0)[1]))
print(json.dumps(sorted(seen, key=str)))
"""


@pytest.fixture(autouse=True)
def own_cpus() -> Generator[None, None, None]:
    """What fails here may not hold the tests after it to one CPU."""
    everywhere = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, everywhere)


@contextmanager
def waiting() -> Generator[int, None, None]:
    """The kernel's number of a thread that does nothing meanwhile."""
    number: list[int] = []
    ready, over = threading.Event(), threading.Event()

    def wait() -> None:
        number.append(threading.get_native_id())
        ready.set()
        over.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    try:
        yield number[0]
    finally:
        over.set()
        thread.join()


def test_two_threads_are_held_to_one_cpu_and_let_go() -> None:
    everywhere = os.sched_getaffinity(0)
    placement = Placement()
    assert placement.usable == (len(everywhere) > 1)
    with waiting() as thread:
        assert placement.together(thread)
        held = os.sched_getaffinity(0)
        assert len(held) == 1
        assert os.sched_getaffinity(thread) == held
        placement.apart(thread)

        assert os.sched_getaffinity(0) == os.sched_getaffinity(thread) == everywhere


def test_a_thread_whose_cpus_were_chosen_keeps_them() -> None:
    everywhere = os.sched_getaffinity(0)
    if len(everywhere) < 2:
        pytest.skip("one CPU leaves no choice")
    placement = Placement()
    with waiting() as thread:
        os.sched_setaffinity(thread, {max(everywhere)})

        assert not placement.together(thread)

        assert os.sched_getaffinity(thread) == {max(everywhere)}
        assert os.sched_getaffinity(0) == everywhere


def test_a_caller_that_is_gone_changes_nothing() -> None:
    """A process: a thread that was joined is the interpreter's no more, and the kernel's for a little longer."""
    everywhere = os.sched_getaffinity(0)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        placement = Placement()
        assert placement.together(process.pid)
    placement.apart(process.pid)
    assert os.sched_getaffinity(0) == everywhere

    assert not placement.together(process.pid)

    assert os.sched_getaffinity(0) == everywhere


@contextmanager
def another_runs() -> Generator[None, None, None]:
    """A process that always wants a CPU."""
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        try:
            yield
        finally:
            busy.kill()


def test_who_else_runs_is_seen() -> None:
    placement = Placement()
    with another_runs():
        # A machine that shares its CPUs out by quota has moments in which nobody runs.
        until(lambda: not placement.alone())


@pytest.mark.kernel
@pytest.mark.needs(userns=True, landlock=6)
@pytest.mark.parametrize("beside", [nullcontext, another_runs], ids=["alone", "beside another"])
def test_a_caller_sees_its_own_cpus_and_hands_them_down(
    world: World, beside: Callable[[], AbstractContextManager[None]]
) -> None:
    everywhere = [[*sorted(os.sched_getaffinity(0))], ["child", 0]]
    with beside(), opened(world) as session:
        assert json.loads(said(session.run(python(OPENS.format(before=""))))) == sorted(everywhere, key=str)
        one = [[max(os.sched_getaffinity(0))], ["child", 0]]
        chosen = OPENS.format(before="os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})")
        assert json.loads(said(session.run(python(chosen)))) == sorted(one, key=str)
