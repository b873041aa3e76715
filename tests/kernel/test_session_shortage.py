"""What the processes of a session run short of: a call is refused with the reason, what runs goes on, and nothing is left.

The limits are put on from outside (``prlimit(2)``), one step at a time: whatever the shortage meets first, it ends well.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial

import pytest

from remit import PIPE, Error, Grant, LaunchError
from tests.kernel.run_harness import World, descendants
from tests.kernel.session_harness import at_rest, comm, first_processes, opened, said

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6)]


@contextmanager
def limited(pid: int, what: int, most: int) -> Generator[None]:
    """With this soft limit for a process."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (most, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, what, before)


def outcome(action: Callable[[], object]) -> str:
    """ "ran", or the reason; what is no refusal is raised."""
    try:
        action()
    except LaunchError as error:
        return str(error)
    return "ran"


@pytest.mark.needs(ordinary=True)
def test_no_process_or_thread_can_be_started_in_a_session(world: World) -> None:
    """Root's processes are not counted."""
    before = first_processes()
    with opened(world) as session, session.popen(["sh", "-c", "echo up; exec cat"], stdin=PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"up\n"
        (zygote,) = first_processes() - before
        found: list[str] = []
        for most in range(1, 15):
            with limited(zygote, resource.RLIMIT_NPROC, most):
                for grant in (None, Grant(write=["."], limits={"files": 100 + most})):
                    found.append(outcome(partial(session.run, ["/bin/true"], grant=grant, timeout=60)))
        short = [one for one in found if one != "ran"]
        assert len(short) >= 8
        assert all("no process could be started" in one or "temporarily unavailable" in one for one in short), short
        # An authority that nobody could be armed for says so to the next who asks, if it was not heard before; once.
        assert outcome(lambda: session.run(["true"])) in ("ran", *short)
        assert session.run(["true"]).returncode == 0
        assert session.run(["true"], grant=Grant(write=["."])).returncode == 0
        assert running.communicate(b"alive")[0] == b"alive"
    assert first_processes() <= before  # one of an earlier test may have been about to go


@pytest.mark.needs(root=True)
@pytest.mark.parametrize("connect", [[], ["192.0.2.1:80"]], ids=["shared", "private"])
@pytest.mark.parametrize("room", [2, 4, 5, 6, 7, 8, 10, 12])
def test_an_authority_that_nobody_could_be_armed_for_keeps_nothing(world: World, room: int, connect: list[str]) -> None:
    """No room for the authority's objects, or for a thread's cell. Root alone sees the first process's descriptors."""
    before = first_processes()
    with opened(world, connect=connect) as session:
        assert session.run(["true"]).returncode == 0
        (zygote,) = first_processes() - before
        found: list[str] = []
        held: list[tuple[int, int]] = []
        # More than it keeps for grants that it knows.
        for number in range(40):
            at_rest(zygote)
            fds = len(os.listdir(f"/proc/{zygote}/fd"))
            with limited(zygote, resource.RLIMIT_NOFILE, fds + room):
                grant = Grant(read=["."], limits={"files": 100 + number})
                found.append(outcome(partial(session.run, ["true"], grant=grant, timeout=60)))
            at_rest(zygote)
            held.append((len(os.listdir(f"/proc/{zygote}/fd")), len(descendants(zygote))))
        assert room > 2 or "ran" not in found
        # What ran keeps its authority, a thread and a cell; from the first shortage on, nothing is kept for later.
        ran = found[4:].count("ran")
        if found[:4].count("ran") < 4:
            assert held[-1][0] <= held[3][0] + 3 + 5 * ran, (held, found)
            assert held[-1][1] <= held[3][1] + 1 + ran, (held, found)
        assert [one for one in found if one != "ran" and "descriptors" not in one] == []
        assert session.run(["true"], grant=Grant(read=["."])).returncode == 0


def test_a_full_descriptor_table_of_the_templates(world: World) -> None:
    """No further session begins; those that run, run."""
    with opened(world) as session, session.popen(["sh", "-c", "echo up; exec cat"], stdin=PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"up\n"
        (template,) = [pid for pid in descendants(os.getpid()) if comm(pid) == "remit-template"]
        sessions, held = first_processes(), os.listdir(f"/proc/{os.getpid()}/fd")

        def another() -> None:
            with opened(world) as one:
                one.run(["true"])

        found: list[str] = []
        for most in range(4, 29, 2):
            with limited(template, resource.RLIMIT_NOFILE, most):
                try:
                    another()
                    found.append("ran")
                except Error as error:
                    found.append(str(error))
                assert said(session.run(["echo", "on"])) == "on"
        assert found.count("ran") < len(found)
        assert [one for one in found if "Too many open files" in one]
        another()
        assert running.communicate(b"alive")[0] == b"alive"
        assert first_processes() <= sessions  # one of an earlier test may have been about to go
        assert len(os.listdir(f"/proc/{os.getpid()}/fd")) <= len(held)
        assert all('"kind":"ended"' in (record / "events.jsonl").read_text() for record in world.records()[1:])
