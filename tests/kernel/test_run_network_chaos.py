"""Connections by the hundred that reset, read slowly or never, while gateways are killed under them: nothing is left over.

A gateway that dies is not started again (``docs/design.md``): its session has no network from then on, and the next session
has a gateway of its own. So a restart is a session's. ``REMIT_CHAOS_SECONDS=60 REMIT_CHAOS_CONNECTIONS=1000 pytest -s`` of
this file is the whole run, whose figures are in ``docs/performance.md``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.net_harness import Internet, gateway_of
from tests.kernel.run_harness import PYTHON, TIMEOUT, ended, first_line

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.needs("ip", "unshare", "nsenter", "openssl", userns=True, landlock=2),
]

SECONDS = float(os.environ.get("REMIT_CHAOS_SECONDS", "3"))
CONNECTIONS = int(os.environ.get("REMIT_CHAOS_CONNECTIONS", "150"))
KILLED = max(1, int(SECONDS / 10))
"""Sessions whose gateways are killed, before the one that has the seconds."""

NAME, ADDRESS, PORT = "granted.example.com", "203.0.113.10", 7000
PATIENCE = 60.0
"""Seconds that a storm has which ends before, because nothing answers any more."""
PROGRAM = Path(__file__).with_name("chaos.py")


@contextmanager
def server(net: Internet) -> Generator[subprocess.Popen[str], None, None]:
    """The misbehaving server, outside."""
    argv = [*net.world.prefix, sys.executable, "-I", str(PROGRAM), "server", ADDRESS, str(PORT)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert first_line(process) == "up"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def say(process: subprocess.Popen[str], line: str = "") -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def state(process: subprocess.Popen[str]) -> dict[str, int]:
    say(process)
    answer: dict[str, int] = json.loads(first_line(process))
    return answer


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "it never became so"
        time.sleep(0.02)


def memory(pid: int) -> dict[str, int]:
    """MiB that a process has now and had at most, and its descriptors where they may be looked at."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    found = {"now": int(status["VmRSS"].split()[0]) >> 10, "most": int(status["VmHWM"].split()[0]) >> 10}
    if os.geteuid() == 0:  # the gateway lets nobody else look
        found["descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
    return found


def storm(session: subprocess.Popen[str], seconds: float) -> None:
    say(session, str(seconds))


def calm(session: subprocess.Popen[str]) -> dict[str, int]:
    """What the program inside says of itself while it does nothing: after a storm of no length."""
    storm(session, 0)
    told: dict[str, int] = json.loads(first_line(session))
    return told


def over(session: subprocess.Popen[str], outside: subprocess.Popen[str], descriptors: int) -> dict[str, int]:
    """What the program inside says of a storm, when nothing is connected any more at either end.

    Who closes with something unsent keeps the descriptor until the other end has gone too: there are so many again then.
    """
    told: dict[str, int] = json.loads(first_line(session))
    assert told["live"] == 0
    until(lambda: state(outside)["live"] == 0)
    until(lambda: calm(session)["descriptors"] <= descriptors)
    return told


def test_nothing_is_left_of_connections_that_misbehave(net: Internet) -> None:
    program = net.world.workspace / PROGRAM.name
    program.write_bytes(PROGRAM.read_bytes())
    command = (PYTHON, "-I", str(program), "client", NAME, str(PORT), str(CONNECTIONS))
    options = ["--connect", f"{NAME}:{PORT}"]
    with server(net) as outside:
        before = state(outside)
        for _ in range(KILLED):
            with net.world.start(*command, options=options) as session:
                assert first_line(session) == "up"
                own = calm(session)["descriptors"]
                storm(session, PATIENCE)
                until(lambda: state(outside)["live"] >= CONNECTIONS // 4)
                (gateway,) = gateway_of(session)
                os.kill(gateway, signal.SIGKILL)
                assert ended(gateway)
                last = over(session, outside, own)
                accepted = state(outside)["accepted"]
                storm(session, PATIENCE)
                after = over(session, outside, own)
                assert after["opened"] == last["opened"]  # nothing answers any more
                assert state(outside)["accepted"] == accepted
                _, errors = session.communicate(timeout=TIMEOUT)
                assert session.returncode == 0, errors
                assert "the gateway is gone" in errors

        with net.world.start(*command, options=options) as session:
            assert first_line(session) == "up"
            last = calm(session)
            own = last["descriptors"]
            while not last["whole"]:
                storm(session, 0.1)  # the gateway and everybody's buffers come to be
                last = over(session, outside, own)
            (gateway,) = gateway_of(session)
            first = memory(gateway)
            found = [first]
            for _ in range(2):
                storm(session, SECONDS / 2)
                last = over(session, outside, own)
                found.append(_quiet(gateway, first.get("descriptors", 0)))
            assert found[1]["most"] - first["most"] < 32 + CONNECTIONS // 8
            assert found[2]["most"] - found[1]["most"] < 16 + CONNECTIONS // 32  # it grows no more
            _, errors = session.communicate(timeout=TIMEOUT)
            assert session.returncode == 0, errors
            assert "gateway" not in errors
            assert ended(gateway)
        _balanced(net)
        until(lambda: state(outside)["descriptors"] <= before["descriptors"])
        print(f"\n{CONNECTIONS} at a time, {last['opened']} in all; {KILLED} gateways killed before; at rest: {found}")


def _quiet(gateway: int, descriptors: int) -> dict[str, int]:
    """Its memory, when it has no more than so many descriptors."""
    until(lambda: memory(gateway).get("descriptors", 0) <= descriptors)
    return memory(gateway)


def _balanced(net: Internet) -> None:
    """What the gateway says: each connection that was allowed has ended, or was more than its launcher could take."""
    lines = (net.world.records()[-1] / "events.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, lines) if event.get("source") == "gateway"]
    verdicts = [event["verdict"] for event in events]
    counted = [re.match(r"(\d+) events more than the record could take", event.get("reason", "")) for event in events]
    lost = sum([int(found[1]) for found in counted if found])
    unended = verdicts.count("allowed") - verdicts.count("ended")
    assert unended - lost <= 1 <= unended  # the one: that the name was asked for
