"""A call's own command is executed without asking the mediator, and recorded as if it had been asked.

The mediator hears of every other exec, of the same program in the same call too.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from remit import Grant, LaunchError, SessionClosed
from remit.sandbox.kernel import notify, process
from remit.sandbox.kernel.call import NR
from remit.sandbox.kernel.exemption import Exemption
from remit.sandbox.kernel.spawn import direct, spawn
from tests.kernel.run_harness import PYTHON, TIMEOUT, World
from tests.kernel.session_harness import opened, python, said
from tests.kernel.test_run_audit import events, record

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6)]

ASKS = b"".join(
    struct.pack("=HBBI", *one)
    for one in ((0x20, 0, 0, 0), (0x15, 0, 1, NR["execve"]), (0x06, 0, 0, 0x7FC00000), (0x06, 0, 0, 0x7FFF0000))
)
"""A filter that asks about execve(2), and lets all else go on."""
REFUSED = 1


def _confined(ours: socket.socket, change: int) -> None:
    exemption = Exemption()
    first, second, third = [word ^ (1 << 40 if index == change else 0) for index, word in enumerate(exemption.words)]
    process.no_new_privileges()
    listener = notify.load_filter(exemption.program + ASKS, listener=True)
    socket.send_fds(ours, [b"listener"], [listener])
    os.close(listener)
    try:
        pid = spawn(b"/bin/true", [b"true"], [], directory=b"/", words=(first, second, third))
        ours.send(b"ran" if os.waitpid(pid, 0)[1] == 0 else b"failed")
    except OSError as error:
        ours.send(b"%d" % (error.errno or 0))


@pytest.mark.parametrize("change", [-1, 0, 1, 2], ids=["none", "fourth argument", "fifth argument", "sixth argument"])
def test_an_exec_whose_words_differ_is_asked_about(change: int) -> None:
    """In one bit of the one that is named."""
    assert direct()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if not child:
        try:
            _confined(theirs, change)
        finally:
            os._exit(0)
    with ours, theirs:
        _, (descriptor,), *_ = socket.recv_fds(ours, 64, 1)
        watch = select.poll()
        watch.register(descriptor, select.POLLIN)
        watch.register(ours, select.POLLIN)
        # Of a filter that nobody is under any more, the listener has only a hangup to tell.
        asked = (descriptor, select.POLLIN) in watch.poll()
        if asked:
            listener = notify.Listener(descriptor)
            notification = listener.receive()
            assert notification is not None
            listener.reply(notification[0], error=REFUSED)
        outcome = ours.recv(64)
    os.close(descriptor)
    os.waitpid(child, 0)
    assert (asked, outcome) == ((False, b"ran") if change < 0 else (True, b"%d" % REFUSED))


def kinds(world: World, call: str) -> list[Any]:
    """What the record has of a call, by its time."""
    return named(sorted([line for line in record(world) if line.get("call") == call], key=lambda line: line["time"]))


def named(lines: list[dict[str, Any]]) -> list[Any]:
    return [(line["right"], Path(line["object"]).name) if line["kind"] == "action" else line["kind"] for line in lines]


def so_far(world: World, call: str) -> list[Any]:
    try:
        return kinds(world, call)
    except ValueError:
        return []  # in the middle of a line


TWICE = """
import os, subprocess, sys
open("made", "w").close()
subprocess.run([sys.executable, "-I", "-S", "-c", "open('made too', 'w').close()"], check=True)
"""


def test_of_one_that_is_over_in_a_moment_all_is_told_at_once_and_in_order(world: World) -> None:
    expected = ["call", ("exec", "touch"), ("write", "made"), "returned"]
    with opened(world) as session:
        calls = [session.run(["touch", "made"]).call for _ in range(20)]
    found = [[line for line in record(world) if line.get("call") == call] for call in calls]
    for lines, call in zip(found, calls, strict=True):
        assert kinds(world, call) == expected
        assert lines[-1]["kind"] == "returned"
        (executed, made) = [line for line in lines if line["kind"] == "action"]
        assert (executed["pid"], executed["pid_start"]) == (made["pid"], made["pid_start"])
    # What took longer than a moment, on a machine that is busy, may have been told in parts.
    assert expected in [named(lines) for lines in found]


def test_it_is_in_the_record_before_what_it_did(world: World) -> None:
    with opened(world) as session:
        result = session.run(python(TWICE))
        said(result)
    name = Path(PYTHON).resolve().name
    assert kinds(world, result.call) == [
        "call",
        ("exec", name),
        ("write", "made"),
        ("exec", name),
        ("write", "made too"),
        "returned",
    ]
    # What the mediator gathered may be told before what the call's thread did.
    own, made, other, _ = sorted(events(world), key=lambda line: line["mono"])
    assert own["object"] == other["object"] == str(Path(PYTHON).resolve())
    assert (own["pid"], own["pid_start"]) == (made["pid"], made["pid_start"]) != (other["pid"], other["pid_start"])
    assert own["grant"] == made["grant"] == other["grant"]
    assert {line["verdict"] for line in (own, other)} == {"allowed"}
    assert own["mono"] < made["mono"] < other["mono"]
    # Its own program executes it: it is nobody's yet.
    assert (own["exe"], other["exe"]) == ("", own["object"])


def test_a_call_that_goes_on_is_in_the_record_while_it_runs(world: World) -> None:
    with opened(world) as session, session.popen(["cat"], stdin=-1) as call:
        while ("exec", "cat") not in so_far(world, call.call):
            pass
        assert kinds(world, call.call) == ["call", ("exec", "cat")]
    assert kinds(world, call.call) == ["call", ("exec", "cat"), "returned"]


REPLACES = """
import os
os.unlink("tool")
os.symlink("/usr/bin/true", "tool")
"""


def test_a_program_cannot_put_another_name_in_its_place(world: World) -> None:
    tool = world.workspace / "tool"
    tool.symlink_to(PYTHON)
    with opened(world) as session:
        said(session.run([str(tool), "-I", "-S", "-c", REPLACES]))
    assert os.readlink(tool) == "/usr/bin/true"
    assert [e["object"] for e in events(world) if e["right"] == "exec"] == [str(Path(PYTHON).resolve())]


@pytest.mark.parametrize("granted", [False, True])
def test_one_that_is_not_granted_is_a_denial(world: World, granted: bool) -> None:
    """It is tried again with the mediator's knowledge."""
    tool = world.base / "elsewhere" / "tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nexit 7\n")
    tool.chmod(0o755)
    how: dict[str, Any] = {"exec": [tool.parent]} if granted else {"read": [tool.parent]}
    with opened(world, **how) as session:
        if granted:
            assert session.run([str(tool)]).returncode == 7
        else:
            with pytest.raises(LaunchError, match="execution is not granted"):
                session.run([str(tool)])
    found = [(e["verdict"], e["errno"]) for e in events(world) if e["object"] == str(tool)]
    assert found == [("allowed", None)] if granted else [("denied", None)]


@pytest.mark.parametrize("first", ["", "#!/bin/sh\n"], ids=["asked about", "not asked about"])
def test_both_ways_of_starting_have_the_limits(world: World, first: str) -> None:
    """A file without a format is a shell's script to execvp(3), and not to the kernel: so it is tried with the mediator."""
    tool = world.base / "elsewhere" / "tool"
    tool.parent.mkdir()
    tool.write_text(f"{first}ulimit -n\n")
    tool.chmod(0o755)
    with opened(world, exec=[tool.parent]) as session:
        assert said(session.run([str(tool)], grant=Grant(exec=[tool.parent], limits={"files": 77}))) == "77"


def test_all_of_a_call_is_in_the_record_of_a_session_that_is_closed_at_once(world: World) -> None:
    for _ in range(40):
        with opened(world) as session:
            result = session.run(["true"])
        assert kinds(world, result.call) == ["call", ("exec", "true"), "returned"]


def returned(world: World) -> int:
    """How many calls are over, as the record has it so far."""
    try:
        return len([line for line in record(world) if line["kind"] == "returned"])
    except ValueError:
        return 0  # in the middle of a line


EATS = """
import time
x = bytearray(300 << 20)
x[::4096] = b"1" * len(x[::4096])
time.sleep(1000)
"""


@pytest.mark.parametrize("whose", ["call", "session"])
def test_what_a_call_uses_is_looked_at_though_the_mediator_sleeps(world: World, whose: str) -> None:
    """It has heard of nothing since the last call, and of this one's command it is not asked."""
    limits = {"memory": "100MiB"}
    how: dict[str, Any] = {"limits": limits} if whose == "session" else {}
    grant = Grant(limits=limits) if whose == "call" else None
    with opened(world, **how) as session:
        for _ in range(4):
            said(session.run(["true"], grant=grant))
        while returned(world) < 4:
            pass
        try:
            result = session.run(python(EATS), grant=grant, timeout=TIMEOUT)
        except SessionClosed:
            # Where no control group holds it, a session's limit ends the session.
            assert whose == "session"
        else:
            assert (result.returncode, result.limit) == (-9, "memory" if whose == "call" else "")
