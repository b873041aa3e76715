"""What only the session's own client can say, said by nobody it should come from: forged, twice, or as nonsense.

The door and the sockets of requests are the client's alone; nothing inside a call has them. What comes through them is
held to the session's ceiling by the kernel, whatever the client decided or did not; and what makes no sense ends the
session, or the one call.
"""

from __future__ import annotations

import json
import marshal
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from remit import Error, Grant, GrantError, Session, SessionClosed
from remit.sandbox.session.core import Core, Ticket
from tests.kernel.run_harness import TIMEOUT, World
from tests.kernel.session_harness import first_processes, gone, named, opened, probe, probes, python, said, watched

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6)]

FOREVER = f"4{os.getpid():08}"


@pytest.fixture
def tree(world: World) -> Path:
    """Two directories beside the workspace, for the workspace's owner to write."""
    owner = world.workspace.stat()
    for name in ("seen", "hidden"):
        path = world.base / name
        path.mkdir()
        (path / "f").write_text(name)
        for one in (path, path / "f"):
            one.chmod(0o777)
            os.chown(one, owner.st_uid, owner.st_gid)
    return world.base


def test_a_grant_beyond_its_session_that_nobody_refused_is_held_by_the_kernel(world: World, tree: Path) -> None:
    """The client's own check is taken away: what it would have refused is not there, or not to be written, inside."""
    (world.workspace / "secret").write_text("secret")
    seen, hidden, secret = tree / "seen", tree / "hidden", world.workspace / "secret"
    tries = {"write": f"write('{seen}/f')", "make": f"write('{seen}/g')", "read": f"read('{seen}/f')"}
    denied = {"denied": f"read('{secret}')"}
    with opened(world, read=[seen], deny=[secret]) as session:
        asked = Grant(read=["."], write=[seen])
        with pytest.raises(GrantError, match="beyond"):
            session.run(["true"], grant=asked)
        with patch("remit.sandbox.session.inside.outside", return_value=()):
            assert probes(session, tries, asked) == {"write": "EROFS", "make": "EROFS", "read": "ok"}
            assert probe(session, denied["denied"], Grant(read=[secret])) == "EACCES"
            with pytest.raises(Error):
                session.run(["cat", str(hidden / "f")], grant=Grant(read=[hidden]))
    assert not (seen / "g").exists()
    with opened(world, write=[seen], read=[hidden]) as session:
        assert set(probes(session, {**tries, **denied}, Grant(read=["."], write=[seen])).values()) == {"ok"}
        assert said(session.run(["cat", str(hidden / "f")], grant=Grant(read=[hidden]))) == "hidden"


def replayed(session: Session, ticket: Ticket, workspace: Path) -> str:
    """Send a request again, byte for byte: "ran", or why not."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(os.devnull, "r+b") as null:
        socket.send_fds(ticket.requests, [ticket.data], [theirs.fileno()] + [null.fileno()] * 3)
        theirs.close()
        assert select.select([ours], [], [], TIMEOUT)[0]
        data = ours.recv(1 << 16)
    answer: tuple[Any, ...] = marshal.loads(data)
    return "ran" if answer[0] == "exited" else str(answer[2])


@pytest.fixture
def tickets() -> Iterator[list[Ticket]]:
    """Every request that is sent, as it was decided."""
    kept: list[Ticket] = []
    made = Core.ticket

    def keep(core: Core, *arguments: Any, **keywords: Any) -> Ticket:
        kept.append(made(core, *arguments, **keywords))
        return kept[-1]

    with patch.object(Core, "ticket", keep):
        yield kept


def test_a_request_that_is_sent_again_runs_under_what_is_left_of_its_grant(world: World, tickets: list[Ticket]) -> None:
    """While that is in force, it is the client's to send. When it has expired, or was taken back, nothing starts."""
    mark = ["sh", "-c", "echo ran >> mark"]
    with opened(world) as session:
        part = session.narrow(Grant(write=["."]))
        for owner, grant in ((part, None), (session, Grant(write=["."], expires=4.0))):
            assert owner.run(mark, grant=grant).returncode == 0
            assert replayed(session, tickets[-1], world.workspace) == "ran"
        assert (world.workspace / "mark").read_text() == "ran\n" * 4
        part.close()
        assert "revoked" in replayed(session, tickets[0], world.workspace)
        while (last := replayed(session, tickets[1], world.workspace)) == "ran":
            pass
        assert "expired" in last
        count = (world.workspace / "mark").read_text().count("ran")
        for ticket in tickets:
            assert replayed(session, ticket, world.workspace) != "ran"
        assert (world.workspace / "mark").read_text().count("ran") == count
        assert session.run(["true"]).returncode == 0


def test_a_request_that_makes_no_sense_is_refused_and_the_next_one_served(world: World, tickets: list[Ticket]) -> None:
    with opened(world) as session:
        assert session.run(["true"]).returncode == 0
        requests = tickets[-1].requests
        call, chain, words, *rest = marshal.loads(tickets[-1].data)
        for data in (
            b"",
            b"nonsense",
            marshal.dumps(7),
            marshal.dumps((call, chain, words)),
            marshal.dumps((call, chain, 7, *rest)),
            marshal.dumps((call, chain, ["true"], *rest)),  # text, where there should be bytes
        ):
            if data:
                requests.send(data)  # with no descriptors: nobody to answer
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours:
                with theirs:
                    socket.send_fds(requests, [data or b"x"], [theirs.fileno()])
                assert select.select([ours], [], [], TIMEOUT)[0]
                answer = ours.recv(1 << 16)
                assert not answer or marshal.loads(answer)[0] == "failed", data
            assert said(session.run(["echo", "next"], timeout=60)) == "next"


DOOR = {
    "no message": b"x",
    "a number": marshal.dumps(5),
    "a policy of nothing": marshal.dumps(("policy",)),
    "large, and not there": b"large",
    "unknown": marshal.dumps(("unknown", 1)),
}


@pytest.mark.parametrize("name", DOOR)
def test_a_mediator_that_fails_during_a_call_takes_the_session_along(world: World, name: str) -> None:
    """The mediator is a thread of the session's first process: what it cannot go on from, nobody does. No action that was
    waiting for it is done."""
    marker = f"{FOREVER}.401"
    before = first_processes()
    ends = name not in ("large, and not there", "unknown")
    with opened(world) as other:
        others = first_processes() - before
        with opened(world) as session:
            (zygote,) = first_processes() - before - others
            script = f"setsid sleep {marker} & echo ready; read line; echo made > made; exec sleep {marker}"
            call = session.popen(["sh", "-c", script], stdin=-1)
            assert call.stdout is not None
            assert call.stdin is not None
            assert call.stdout.readline() == b"ready\n"
            left = [*watched(marker), os.pidfd_open(zygote)]
            session._door._socket.send(DOOR[name])  # pyright: ignore[reportPrivateUsage]
            if ends:
                with pytest.raises(SessionClosed):
                    call.wait()
                assert gone(left)
                assert named(marker) == []
                with pytest.raises(SessionClosed):
                    session.run(["true"])
                assert not (world.workspace / "made").exists()
            else:
                assert said(session.run(["echo", "on"])) == "on"
            call.close()
        if ends:
            (record,) = [path for path in world.records() if path.name == session.id]
            told = [json.loads(line) for line in (record / "events.jsonl").read_text().splitlines()]
            assert [one["phase"] for one in told if one["kind"] == "failed"] == ["launch"]
            assert told[-1]["kind"] == "ended"
        assert other.run(["true"]).returncode == 0
    if not ends:
        assert gone(left)


def test_nothing_inside_has_a_way_to_the_door(world: World) -> None:
    """Neither a descriptor of it, nor a name: every socket that a call's processes have is one of its own streams."""
    look = """
    found = []
    for pid in os.listdir('/proc'):
        for fd in os.listdir(f'/proc/{pid}/fd') if pid == str(os.getpid()) else range(64) if pid.isdecimal() else ():
            attempt(lambda: found.append(os.readlink(f'/proc/{pid}/fd/{fd}')))
    named = [line.split()[7:] for line in open('/proc/net/unix').readlines()[1:]]
    print(sum(one.startswith('socket:') for one in found), len([name for name in named if name]))
    """
    with opened(world) as session:
        streams = socket.socketpair()
        try:
            assert said(session.run(python(look))) == "0 0"
            # The control: a socket that is given to it is seen.
            assert said(session.run(python(look), stdin=streams[0].fileno())).split()[0] == "1"
        finally:
            for one in streams:
                one.close()
