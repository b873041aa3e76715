"""Cells that serve again: for the next call under a grant, and under another one, where nothing of the last call is left.

A process of a call is told from one of a later call in the same cell by its number, which goes on; in a new cell the command
is number 2.
"""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import pytest

from remit import PIPE, Grant, LaunchError, Session
from remit.sandbox.session import shared
from tests.kernel.run_harness import World
from tests.kernel.session_harness import at_rest, first_processes, opened, probes, python, said, until

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6)]

IPC = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); "
LEFT = {
    "a file in /tmp": ("open('/tmp/left', 'w').close()", "os.listdir('/tmp')"),
    "a file in /dev/shm": ("open('/dev/shm/left', 'w').close()", "os.listdir('/dev/shm')"),
    "a file that is gone again": ("open('/tmp/left', 'w').close(); os.unlink('/tmp/left')", "os.listdir('/tmp')"),
    "shared memory": (
        IPC + "assert libc.shmget(7, 4096, 0o1600) >= 0",
        IPC + "[] if libc.shmget(7, 0, 0) < 0 else ['shm']",
    ),
    "a message queue": (IPC + "assert libc.msgget(7, 0o1600) >= 0", IPC + "[] if libc.msgget(7, 0) < 0 else ['msg']"),
    "semaphores": (IPC + "assert libc.semget(7, 1, 0o1600) >= 0", IPC + "[] if libc.semget(7, 0, 0) < 0 else ['sem']"),
    # Landlock lets nobody open it; but it is there, and its name is taken.
    "a POSIX message queue": (
        IPC + "assert libc.mq_open(b'/left', os.O_CREAT | os.O_RDWR, 0o600, None) < 0",
        IPC + "['mq'] if libc.mq_unlink(b'/left') == 0 else []",
    ),
    "a connection that lingers": (
        "server = socket.create_server(('127.0.0.1', 4711)); client = socket.create_connection(('127.0.0.1', 4711)); "
        "server.accept()[0].close(); client.recv(1); client.close(); server.close()",
        "[line for line in open('/proc/net/tcp').readlines()[1:] if line.split()[3] != '0A']",
    ),
    # No packet is sent for it. It stays for a while, with 16 bytes of the call's own choice.
    "an IPv6 flow label": (
        "one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); one.setsockopt(socket.IPPROTO_IPV6, 32, "
        "socket.inet_pton(socket.AF_INET6, '2001:db8::1') "
        "+ struct.pack('!I', 0x101) + struct.pack('=BBHHHI', 0, 255, 1, 150, 150, 0))",
        "open('/proc/net/ip6_flowlabel').readlines()[1:]",
    ),
    "what could not be sent": (
        "one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        "[attempt(lambda: one.connect(('198.51.100.1', 9))) for _ in range(5)]",
        "rows = [line.split() for line in open('/proc/net/snmp')]; "
        "[value for name, value in zip(rows[0], rows[1]) if name == 'OutNoRoutes' and value != '0']",
    ),
    "what could not be sent over IPv6": (
        "one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); "
        "[attempt(lambda: one.connect(('2001:db8::1', 9))) for _ in range(5)]",
        "[line.split()[1] for line in open('/proc/net/snmp6') if 'Ip6OutNoRoutes' in line and line.split()[1] != '0']",
    ),
    "datagrams": (
        "one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); one.bind(('127.0.0.1', 0)); one.sendto(b'x', one.getsockname())",
        "[line.split()[1] for line in open('/proc/net/dev') if 'lo:' in line and line.split()[1] != '0']",
    ),
}
"""What a call may leave in a private cell: how, and what of it can be seen by who comes after."""


HOW = (
    "os.getpriority(os.PRIO_PROCESS, 1), os.sched_getscheduler(1), "
    "len(os.sched_getaffinity(1)), libc.syscall(IOPRIO_GET, 1, 1), "
    "read('/proc/1/oom_score_adj').strip().decode(), read('/proc/1/coredump_filter').strip().decode()"
)
SCHEDULED = {
    "niceness": "os.setpriority(os.PRIO_PROCESS, 1, 13)",
    "niceness of all": "os.setpriority(os.PRIO_USER, 0, 13)",
    "policy": "os.sched_setscheduler(1, os.SCHED_BATCH, os.sched_param(0))",
    "processors": "os.sched_setaffinity(1, {min(os.sched_getaffinity(1))})",
    "who is killed first": "write('/proc/1/oom_score_adj', '500', 0)",
    "what is dumped": "write('/proc/1/coredump_filter', '0x7f', 0)",
    "input and output": "call(libc.syscall(IOPRIO_SET, 1, 1, 3 << 13))",
}
"""What a call may do with the cell's PID 1, which has its uid."""


def number(session: Session, grant: Grant, code: str = "pass") -> int:
    """The process's number in its cell, after it did what ``code`` says."""
    return int(said(session.run(python(f"{code}\nprint(os.getpid())"), grant=grant)))


def seen(session: Session, grant: Grant, expression: str) -> str:
    setup, _, value = expression.rpartition("; ")
    return said(session.run(python(f"{setup}\nprint({value})"), grant=grant))


def private(world: World) -> list[str]:
    """What the session has to connect to, and its calls have less of: so they have a network of their own."""
    for name in ("file", "other"):
        (world.workspace / name).write_text("content")
    return ["192.0.2.1:80", "192.0.2.2:80"]


WAYS: dict[str, list[str]] = {"no way out": [], "a narrower way out": ["192.0.2.1:80"]}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@ways
def test_a_private_cell_in_which_nothing_is_left_serves_again(world: World, way: list[str]) -> None:
    with opened(world, connect=private(world)) as session:
        grant = Grant(read=["file"], connect=way)
        numbers = [number(session, grant) for _ in range(16)]
        # A few threads, each in a cell of its own, in which processes go on being counted.
        assert numbers[0] == 2
        assert numbers.count(2) <= 6
        assert max(numbers) >= 4
        assert probes(session, {"yes": "read('file')", "no": "read('other')"}, grant) == {"yes": "ok", "no": "EACCES"}


@ways
@pytest.mark.parametrize("left", LEFT)
def test_what_a_call_leaves_in_a_private_cell_is_nobody_elses(world: World, left: str, way: list[str]) -> None:
    act, look = LEFT[left]
    setup, _, value = look.rpartition("; ")
    with opened(world, connect=private(world)) as session:
        grant = Grant(read=["file"], connect=way)
        assert max(number(session, grant) for _ in range(8)) > 2  # the other arm: cells serve again
        there = said(session.run(python(f"{act}\n{setup}\nprint({value})"), grant=grant))
        # Where there is a way out, everything has a route.
        assert (
            there != "[]" or left == "a file that is gone again" or (way and left.startswith("what could not be sent"))
        )
        for _ in range(3):
            number(session, grant, act)
            assert [seen(session, grant, look) for _ in range(3)] == ["[]"] * 3


def test_what_was_asked_of_the_gateway_is_one_calls_and_recorded_as_its_own(world: World) -> None:
    """Refused: the gateway connects to nothing here. Calls before and after it have used no network, and share a cell."""
    refused = "attempt(lambda: socket.create_connection(('192.0.2.2', 80), timeout=30).recv(1))"
    with opened(world, connect=private(world)) as session:
        grant = Grant(read=["file"], connect=WAYS["a narrower way out"])
        for _ in range(3):
            assert max(number(session, grant) for _ in range(8)) > 2
            results = [session.run(python(f"print({code})"), grant=grant) for code in ("1", refused, "1", "1")]
            assert results[1].stdout not in (b"ok\n", b"1\n")
            assert [len(result.denials) for result in results] == [0, 1, 0, 0]
            assert [said(result) for result in results[2:]] == ["1", "1"]


def test_a_cell_that_is_left_serves_under_another_grant_which_is_that_ones_own(world: World) -> None:
    for name in ("one", "two"):
        (world.workspace / name).write_text(name)
    with patch.object(shared, "POLICIES", 1):
        for connect in ([], private(world)):
            with opened(world, connect=connect) as session:
                numbers: list[int] = []
                # The first thread has ended, and left its cell, by the time of some later grant.
                while len(numbers) < 6 or max(numbers) == 2:
                    turn = len(numbers)
                    assert turn < 200, (connect, numbers)
                    mine, other = ("one", "two") if turn % 2 else ("two", "one")
                    grant = Grant(read=[mine], limits={"files": 100 + turn})
                    code = f"print(os.getpid(), attempt(lambda: read('{mine}')), attempt(lambda: read('{other}')))"
                    pid, own, others = said(session.run(python(code), grant=grant)).split()
                    assert (own, others) == ("ok", "EACCES")
                    numbers.append(int(pid))


def test_a_cell_with_something_in_it_is_left_to_nobody(world: World) -> None:
    with patch.object(shared, "POLICIES", 1), opened(world, connect=private(world)) as session:
        for turn in range(6):
            grant = Grant(read=["file"], limits={"files": 100 + turn})
            assert seen(session, grant, "os.listdir('/tmp')") == "[]"
            number(session, grant, "open('/tmp/left', 'w').close()")


def threads(pid: int) -> int:
    return sum(
        int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "Threads:" in line
    )


def test_a_grant_has_one_thread_for_calls_in_turn_and_more_for_calls_at_once(world: World) -> None:
    before = first_processes()
    (world.workspace / "file").write_text("content")
    with opened(world) as session:
        (zygote,) = first_processes() - before
        assert session.run(["true"]).returncode == 0
        at_rest(zygote)
        alone = threads(zygote)
        grants = [Grant(read=["file"], limits={"files": 100 + turn}) for turn in range(8)]
        for _ in range(3):
            for grant in grants:
                assert session.run(["true"], grant=grant).returncode == 0
                at_rest(zygote)  # its thread waits for the next one
        assert threads(zygote) == alone + len(grants)
        running = [session.popen(["cat"], grant=grants[0], stdin=PIPE) for _ in range(3)]
        for call in running:
            assert call.stdin is not None
            assert call.stdout is not None
            call.stdin.write(b"x")
            call.stdin.flush()
            assert call.stdout.read(1) == b"x"  # none of them waits for another's end
        until(lambda: threads(zygote) >= alone + len(grants) + 2)
        for call in running:
            assert call.communicate()[0] == b""
            call.close()
        assert session.run(["true"], grant=grants[0]).returncode == 0


@pytest.mark.parametrize("connect", [[], ["192.0.2.1:80"]], ids=["shared", "private"])
def test_a_call_does_not_wait_for_what_runs_in_the_background(world: World, connect: list[str]) -> None:
    """Its command has ended, its thread stays with what it left behind."""
    (world.workspace / "file").write_text("content")
    with opened(world, connect=connect) as session:
        grant = Grant(read=["file"])
        for _ in range(3):
            left = session.popen(["sh", "-c", "cat > /dev/null & echo up"], grant=grant, background=True)
            assert left.stdout is not None
            assert left.stdout.readline() == b"up\n"
            assert left.wait() == 0
            assert session.run(["true"], grant=grant, timeout=60).returncode == 0
            left.close()


@pytest.mark.parametrize("connect", [[], ["192.0.2.1:80"]], ids=["shared", "private"])
def test_a_terminal_that_is_still_held_is_no_later_calls(world: World, connect: list[str]) -> None:
    """Its command has ended, and its client has not let go of it: what is typed there is not for the next call to read."""
    for name in ("file", "other"):
        (world.workspace / name).write_text("content")
    terminals = "print(sorted(os.listdir('/dev/pts')))"
    with patch.object(shared, "POLICIES", 1), opened(world, connect=connect) as session:
        grants = [Grant(read=["file"]), Grant(read=["other"])]
        for turn in range(4):
            grant = grants[turn % 2]
            held = session.popen(python(terminals), grant=grant, pty=True)
            held.wait_started()
            assert held.wait() == 0
            assert b"'0', 'ptmx'" in os.read(held.terminal, 4096)  # the other arm: it is there for its own call
            for later in (grant, grants[1 - turn % 2], grant):
                assert said(session.run(python(terminals), grant=later)) == "['ptmx']"
            held.close()


@pytest.mark.parametrize("connect", [[], ["192.0.2.1:80"]], ids=["shared", "private"])
def test_a_terminal_of_a_call_that_could_not_be_started_is_no_later_calls(world: World, connect: list[str]) -> None:
    (world.workspace / "file").write_text("content")
    terminals = "print(sorted(os.listdir('/dev/pts')))"
    with opened(world, connect=connect) as session:
        grant = Grant(read=["file"])
        assert said(session.run(python(terminals), grant=grant)) == "['ptmx']"
        held = session.popen(["no-such-program"], grant=grant, pty=True)
        with pytest.raises(LaunchError, match="not found"):
            held.wait()
        assert held.terminal >= 0  # it is still there, and its client's
        for _ in range(3):
            assert said(session.run(python(terminals), grant=grant)) == "['ptmx']"
        held.close()


@pytest.mark.parametrize("connect", [[], ["192.0.2.1:80"]], ids=["shared", "private"])
@pytest.mark.parametrize("how", SCHEDULED)
def test_how_a_cells_first_process_is_scheduled_is_not_said_to_a_later_call(
    world: World, how: str, connect: list[str]
) -> None:
    numbers = "IOPRIO_SET, IOPRIO_GET = (251, 252) if os.uname().machine == 'x86_64' else (30, 31)"
    for name in ("file", "other"):
        (world.workspace / name).write_text("content")
    with patch.object(shared, "POLICIES", 1), opened(world, connect=connect) as session:
        grants = [Grant(read=["file"]), Grant(read=["other"])]
        (usual,) = {said(session.run(python(f"{numbers}\nprint({HOW})"), grant=grant)) for grant in grants * 3}
        for turn in range(4):
            own = said(session.run(python(f"{numbers}\n{SCHEDULED[how]}\nprint({HOW})"), grant=grants[turn % 2]))
            assert own != usual  # the other arm: nothing refuses it
            for later in (grants[turn % 2], grants[1 - turn % 2], grants[turn % 2]):
                assert said(session.run(python(f"{numbers}\nprint({HOW})"), grant=later)) == usual


@ways
def test_how_many_objects_a_call_had_is_not_said_by_the_next_ones_number(world: World, way: list[str]) -> None:
    """System V numbers its objects one after the other, those that are gone included."""
    many = IPC + "[libc.{0}ctl(libc.{0}get(0, {1}0o600), 0, {2}None) for _ in range(77)]"
    kinds = (("shm", "1, ", ""), ("msg", "", ""), ("sem", "1, ", "0, "))
    own = IPC + "print(max(libc.shmget(0, 1, 0o600), libc.msgget(0, 0o600), libc.semget(0, 1, 0o600)))"
    with opened(world, connect=private(world)) as session:
        grant = Grant(read=["file"], connect=way)
        assert max(number(session, grant) for _ in range(8)) > 2  # the other arm: cells serve again
        for kind in kinds:
            msgctl = kind if kind[0] != "msg" else ("msg", "", "")
            number(session, grant, many.format(*msgctl))
            for _ in range(3):
                assert int(said(session.run(python(own), grant=grant))) < 32
