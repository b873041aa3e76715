"""What a sandbox keeps in memory while nothing happens in it.

PSS: each page divided by the number of processes that hold it. The command inside is not counted, nor the program that
asked for a session; whatever else was started for it is.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from remit.cli.bench import peers
from remit.cli.bench.client import Client
from remit.cli.bench.measure import RUN, BenchError, Command, Line, NotMeasured, row, spawn, tail
from remit.cli.bench.setting import Setting

GROUP = "memory"
SESSIONS = (1, 10)
_PATIENCE = 20.0
_PAUSE = 0.02
_SETTLE = 0.5
"""Seconds between the last thing that can be waited for and looking: what starts in the background has started then."""


@dataclass(frozen=True)
class Held:
    """What processes hold, in KiB. ``unread`` of them let nobody but root see their PSS."""

    pss: int
    rss: int
    processes: int
    unread: int


def measure(setting: Setting, rounds: int) -> list[Line]:
    """The rows of the group: sessions without a call, and sandboxes around a command that sleeps."""
    workspace = setting.directory("memory")
    lines: list[Line] = []
    for number in SESSIONS:
        name = f"remit, {number} idle session{'s' if number > 1 else ''}, each"
        lines.append(_line(setting, name, number, _idle(setting, workspace, number), rounds))
    found, missing = peers.find(setting)
    sleep = (setting.program("sleep") or "/bin/sleep", "1000")
    commands = {RUN: setting.command(workspace, *setting.confined(workspace, *sleep))}
    commands |= {name: wrap(workspace, sleep) for name, wrap in found.items()}
    for name, command in commands.items():
        lines.append(_line(setting, name, 1, _around_sleep(command, setting.errors), rounds))
    return [*lines, *[NotMeasured(GROUP, name, reason) for name, reason in missing.items()]]


def _line(setting: Setting, name: str, share: int, look: Callable[[], Held], rounds: int) -> Line:
    setting.tell(f"memory, {name}")
    try:
        held = [look() for _ in range(rounds)]
    except BenchError as error:
        return NotMeasured(GROUP, name, str(error))
    last = held[-1]
    if any([one.unread for one in held]):
        most = max([one.rss for one in held]) / share
        reason = f"{last.unread} of {last.processes} processes show their PSS to root only"
        return NotMeasured(GROUP, name, f"{reason}; RSS, an upper bound: {most:,.0f} KiB")
    extra = {"rss": last.rss / share, "processes": last.processes / share}
    return row(GROUP, name, "", "KiB", [one.pss / share for one in held], None, extra)


def _idle(setting: Setting, workspace: str, number: int) -> Callable[[], Held]:
    def look() -> Held:
        with Client(setting, workspace) as client:
            client.ask(do="open", sessions=number)
            time.sleep(_SETTLE)
            held = _held(descendants(client.pid))
            client.ask(do="close")
        return held

    return look


def _around_sleep(command: Command, errors: str) -> Callable[[], Held]:
    def look() -> Held:
        pid = spawn(command, errors)
        handle = os.pidfd_open(pid)
        everything: dict[int, int] = {}
        try:
            asleep = _sleeper(pid, errors)
            time.sleep(_SETTLE)
            everything = {one: os.pidfd_open(one) for one in descendants(pid)}
            held = _held([pid, *[one for one in everything if one != asleep]])
            _kill(everything.get(asleep, handle), signal.SIGKILL)
            _wait(handle)
            return held
        finally:
            # Whatever did not end with its command. A peer that is root's ends by itself.
            for one in (handle, *everything.values()):
                _kill(one, signal.SIGKILL)
                os.close(one)
            os.waitpid(pid, 0)

    return look


def _sleeper(pid: int, errors: str) -> int:
    """The command, once it runs inside. BenchError where it does not."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            raise BenchError(f"it ended: {tail(errors)}")
        for one in descendants(pid):
            if _read(one, "comm").strip() == "sleep":
                return one
        time.sleep(_PAUSE)
    raise BenchError(f"nothing slept inside within {_PATIENCE:.0f} s: {tail(errors)}")


def _wait(handle: int) -> None:
    end = time.monotonic() + _PATIENCE / 4
    while time.monotonic() < end and not _ended(handle):
        time.sleep(_PAUSE)


def _ended(handle: int) -> bool:
    return os.waitid(os.P_PIDFD, handle, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill(handle: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(handle, number)
    except (ProcessLookupError, PermissionError):
        return


def descendants(pid: int) -> list[int]:
    """The children of a process, theirs, and so on, in no order."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _read(int(name), "stat").rpartition(")")[2].split()
            if fields:
                children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    todo = [pid]
    while todo:
        more = children.get(todo.pop(), [])
        found += more
        todo += more
    return found


def _held(pids: list[int]) -> Held:
    pss = rss = unread = 0
    for pid in pids:
        rss += _kibibytes(_read(pid, "status"), "VmRSS:") or 0
        one = _kibibytes(_read(pid, "smaps_rollup"), "Pss:")
        if one is None:
            unread += 1
        else:
            pss += one
    return Held(pss, rss, len(pids), unread)


def _kibibytes(text: str, key: str) -> int | None:
    for line in text.splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    return None


def _read(pid: int, name: str) -> str:
    """A file of a process; empty where it may not be read, or the process has ended."""
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
