"""Sessions through the Python API, in a world of their own; what they did is read by other witnesses than Remit's."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from remit import CompletedCall, Grant, Popen, Session
from remit.sandbox.compile import seccomp, syscalls
from tests.kernel.run_harness import PRELUDE, PYTHON, TIMEOUT, World, all_ended, descendants, parsed
from tests.kernel.run_harness import Result as Ended

Cut = TypeVar("Cut")
_LONGER = (1.0, 8.0, 60.0)
"""Seconds that are given to what is to be ended by a clock once it has begun."""
_ATTEMPTS = "results = {{}}\n{body}\nimport json\nprint(json.dumps(results))"


@contextmanager
def opened(world: World, profile: str = "offline", **keywords: Any) -> Generator[Session, None, None]:
    """A session in the world's workspace, of a process whose environment is the world's."""
    extra: Mapping[str, str] = keywords.pop("environ", {})
    with patch.dict(os.environ, world.env(extra), clear=True):
        session = Session(profile, world.workspace, **keywords)
    with session:
        yield session


@contextmanager
def allowing(call: str, argument: int, value: int) -> Generator[None, None, None]:
    """Filters that are made meanwhile do not refuse this value of a call's argument: the layer off, for what lies behind it."""

    def off(row: syscalls.Row) -> bool:
        return row.call == call and any(c.argument == argument and c.value == value for c in row.conditions)

    kept: Any = seccomp

    def forget() -> None:
        kept._program.cache_clear()
        syscalls.refused.cache_clear()

    forget()
    try:
        with patch.object(syscalls, "TABLE", tuple(row for row in syscalls.TABLE if not off(row))):
            yield
    finally:
        forget()


def python(code: str) -> list[str]:
    """The argument vector of a Python program, after ``PRELUDE``."""
    return [PYTHON, "-I", "-S", "-c", PRELUDE + textwrap.dedent(code)]


def said(result: CompletedCall[bytes]) -> str:
    """What a call that succeeded wrote, without the last newline."""
    assert result.returncode == 0, result
    assert result.stdout is not None
    return result.stdout.decode().rstrip("\n")


def probes(
    session: Session, actions: Mapping[str, str], grant: Grant | None = None, before: str = "", **keywords: Any
) -> dict[str, str]:
    """By name: how each action (a Python expression) ended, all in one call, in order: an error's name, or ``"ok"``."""
    body = [textwrap.dedent(before)]
    body += [f"results[{name!r}] = attempt(lambda: {action})" for name, action in actions.items()]
    result = session.run(python(_ATTEMPTS.format(body="\n".join(body))), grant=grant, text=True, **keywords)
    assert result.stdout is not None
    assert result.stderr is not None
    return parsed(Ended(result.returncode, result.stdout, result.stderr))


def probe(session: Session, action: str, grant: Grant | None = None, before: str = "") -> str:
    """How one action ended."""
    return probes(session, {"it": action}, grant, before)["it"]


def named(marker: str) -> list[int]:
    """The processes of the host whose arguments hold ``marker``: the witness is the kernel's list."""
    found: list[int] = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) != os.getpid():
            with suppress(OSError):
                if marker.encode() in _arguments(Path("/proc", entry)):
                    found.append(int(entry))
    return found


def _arguments(process: Path) -> bytes:
    """A process's arguments; none of a zombie's and a kernel's thread, which have no memory.

    In the middle of an exec a process's memory is there already, its arguments not yet (``get_mm_cmdline``): the list is empty
    until it goes on, and is read again. Whoever sleeps from one look to the next has none.
    """
    before = ""
    while True:
        words = (process / "cmdline").read_bytes()
        status = (process / "status").read_text()
        if words or "\nVmSize:" not in status:
            return words
        if status == before and status.partition("\nState:\t")[2][:1] not in ("R", "D"):
            return words
        before = status


def watched(marker: str) -> list[int]:
    """Descriptors (pidfd) of those processes."""
    return handles(named(marker))


def handles(pids: Iterable[int]) -> list[int]:
    """Descriptors (pidfd) of these processes, but for what ended meanwhile: a command's, after its answer."""
    found: list[int] = []
    for pid in pids:
        with suppress(ProcessLookupError):
            found.append(os.pidfd_open(pid))
    return found


def gone(pidfds: list[int]) -> bool:
    """Whether they have all ended, waiting for it; closes them."""
    try:
        return all_ended(pidfds)
    finally:
        for descriptor in pidfds:
            os.close(descriptor)


def first_processes() -> set[int]:
    """The first processes of this process's sessions, below its child, the template.

    What a first process has just forked bears its name too, until it takes one of its own: another process of its namespace,
    or the first one of a call's.
    """
    children = [pid for pid in descendants(os.getpid()) if comm(pid) == "remit-template"]
    below = {pid for template in children for pid in descendants(template)}
    depth = len(numbers(os.getpid()))
    return {pid for pid in below if comm(pid) == "remit-init" and numbers(pid)[depth:] == [1]}


def numbers(pid: int) -> list[int]:
    """A process's numbers, from this PID namespace inwards; none where it has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return []
    return [int(word) for word in status.partition("\nNSpid:")[2].partition("\n")[0].split()]


def until(condition: Callable[[], bool]) -> None:
    """Wait for it, looking: as often as it takes, some looks cost nothing."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "it never happened"


def comm(pid: int) -> str:
    """A process's name; empty where it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def at_rest(pid: int) -> None:
    """Until every thread of a process sleeps, and none has run between two looks: what it does after an answer is done."""
    before: dict[str, list[str]] = {}

    def same() -> bool:
        nonlocal before
        now: dict[str, list[str]] = {}
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # it has just ended
                lines = (task / "status").read_text().splitlines()
                now[task.name] = [line for line in lines if line.startswith(("State:", "voluntary_", "nonvoluntary_"))]
        then, before = before, now
        return now == then and all(lines[0].split()[1] == "S" for lines in now.values())

    until(same)


def begun_in_time(start: Callable[[float], Popen]) -> Popen:
    """A call that said ``ready`` before its time was over, which ``start`` begins with so many seconds: more, where it takes
    longer here to come to that."""
    for seconds in _LONGER:
        call = start(seconds)
        assert call.stdout is not None
        if call.stdout.readline() == b"ready\n":
            return call
        call.close()
    raise AssertionError("it never began")


def cut_off(run: Callable[[float], Cut], said: Callable[[Cut], object]) -> Cut:
    """What is left of a call that is ended by a clock, after it had ``said`` something: with more seconds, where it takes longer
    here to come to that."""
    for seconds in _LONGER:
        cut = run(seconds)
        if said(cut):
            return cut
    raise AssertionError("it never spoke")


def stopped(pid: int) -> None:
    """SIGSTOP, until every thread of it stands still."""
    os.kill(pid, signal.SIGSTOP)
    while {
        (task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()
    } != {"T"}:
        pass


def client(code: str, world: World, **keywords: Any) -> subprocess.Popen[str]:
    """A program that uses the API, as a process of its own, with pipes; ``world`` is its environment."""
    import sys

    head = "import os, sys, threading\nfrom remit import DEVNULL, PIPE, Error, Grant, Session, SessionClosed\n"
    environment = world.env(keywords.pop("environ", {}))
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=world.workspace,
        **keywords,
    )
