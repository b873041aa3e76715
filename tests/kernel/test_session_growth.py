"""Growth: thousands of calls in one session, and a hundred sessions at once, and nothing of theirs piles up.

``REMIT_GROWTH_CALLS``: calls in the one session (2,000). Figures are printed.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from remit import Grant, Session
from tests.kernel.run_harness import World, descendants
from tests.kernel.session_harness import at_rest, comm, first_processes, opened

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.needs(userns=True, landlock=6)]

CALLS = int(os.environ.get("REMIT_GROWTH_CALLS", "2000"))
SESSIONS = int(os.environ.get("REMIT_GROWTH_SESSIONS", "100"))
ROOM = 768
"""KiB that a count of samples may differ by: what one allocation more or less makes of an arena. An authority that is given
up and not forgotten is 100, and each half of the calls has a hundred of them."""


@dataclass(frozen=True)
class Figures:
    """What the kernel says of a process: its own memory in KiB, descriptors, threads, mounts, children.

    Its own: anonymous, in proportion. Of the pages of files, its part is the larger the fewer others have them, whoever they are.
    """

    memory: int
    descriptors: int
    threads: int
    mounts: int
    children: int


def figures(pid: int) -> Figures:
    at_rest(pid)
    place = Path(f"/proc/{pid}")
    return Figures(
        memory=memory(pid),
        descriptors=len(os.listdir(place / "fd")) if os.geteuid() == 0 else 0,
        threads=len(os.listdir(place / "task")),
        mounts=len(lines(place / "mountinfo")) if os.geteuid() == 0 else 0,
        children=len(descendants(pid)),
    )


def memory(pid: int) -> int:
    found = lines(Path(f"/proc/{pid}/smaps_rollup"))
    return next((int(line.split()[1]) for line in found if line.startswith("Pss_Anon:")), 0)


def lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # a first process is nobody's to look into, but root's
        return []


def templates() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if comm(pid) == "remit-template"]


def cgroups() -> list[str]:
    """Groups that a process of ours is in, or that are called after a session of ours."""
    return sorted({Path(f"/proc/{pid}/cgroup").read_text() for pid in (os.getpid(), *templates())})


def use(session: Session, calls: int) -> None:
    grants = [None, Grant(), Grant(read=["."]), Grant(write=["."])]

    def work(first: int) -> None:
        for number in range(calls // 2):
            grant = grants[number % len(grants)]
            if number % 20 == 10:
                # An authority of its own: more of them than are kept armed, so that each is given up again.
                grant = Grant(write=["."], limits={"files": first + number % 1000})
            assert session.run(["/bin/true"], grant=grant).returncode == 0

    threads = [threading.Thread(target=work, args=(first,)) for first in (100, 2100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_calls_leave_nothing_in_their_session(world: World) -> None:
    before = first_processes()
    with opened(world) as session:
        (zygote,) = first_processes() - before
        (template,) = templates()
        use(session, CALLS // 2)
        own, host = len(os.listdir("/proc/self/fd")), cgroups()
        halfway = figures(zygote), figures(template)
        use(session, CALLS // 2)
        end = figures(zygote), figures(template)
        print(f"after {CALLS // 2} calls: {halfway}\nafter {CALLS} calls: {end}")
        for first, last in zip(halfway, end, strict=True):
            assert last.memory <= first.memory + ROOM
            assert last.mounts == first.mounts
            # Idle threads come and go: as many as were ever busy at once, for each authority that is kept.
            assert last.threads <= first.threads + 8
            assert last.descriptors <= first.descriptors + 40
            assert last.children <= first.children + 8
        assert len(os.listdir("/proc/self/fd")) <= own + 8
        assert cgroups() == host


def test_a_hundred_sessions_at_once_and_all_gone_again(world: World) -> None:
    with opened(world):
        pass
    (template,) = templates()
    zygotes = len(first_processes())
    host, own = cgroups(), len(os.listdir("/proc/self/fd"))

    def round_of(count: int) -> int:
        with ExitStack() as stack:
            sessions = [stack.enter_context(opened(world)) for _ in range(count)]
            for session in sessions:
                assert session.run(["/bin/true"]).returncode == 0
            each = [memory(pid) for pid in first_processes()]
            print(f"{count} sessions: {sum(each) / max(1, len(each)):.0f} KiB each (0: not to be seen)")
            return len(each) - zygotes

    # As many at once both times: a heap that held them has room for as many again.
    assert round_of(SESSIONS) == SESSIONS
    first = figures(template)
    assert round_of(SESSIONS) == SESSIONS
    last = figures(template)
    print(f"the template, after {SESSIONS} sessions and after {SESSIONS} more: {first} {last}")
    assert last.memory <= first.memory + ROOM * 4
    assert last.children <= first.children + 8  # zombies too
    assert (last.descriptors, last.mounts, last.threads) == (first.descriptors, first.mounts, first.threads)
    assert len(first_processes()) == zygotes
    assert len(os.listdir("/proc/self/fd")) <= own + 1
    assert cgroups() == host
