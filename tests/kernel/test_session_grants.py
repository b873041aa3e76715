"""Grants: a call has what its grant says and nothing else; a grant ends when it ends; nothing widens one."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch

import pytest

from remit import PIPE, Grant, GrantError, GrantExpired, GrantRevoked, LaunchError, Popen, Session, SessionClosed
from remit.sandbox.session.core import Core
from remit.sandbox.session.door import Door
from remit.sandbox.session.shared import POLICIES
from tests.kernel.run_harness import World
from tests.kernel.session_harness import (
    begun_in_time,
    cut_off,
    gone,
    handles,
    named,
    opened,
    probe,
    probes,
    python,
    said,
    until,
    watched,
)

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6)]

FOREVER = f"2{os.getpid():08}"
"""Seconds, and a word that no other run of these tests has in its arguments."""


def tree(world: World, *names: str) -> None:
    """Files (or, with a slash at the end, directories; ``name -> target``, links) in the workspace, for its owner to write."""
    for name, _, target in (name.partition(" -> ") for name in names):
        path = world.workspace / name
        if target:
            path.symlink_to(target)
            continue
        if name.endswith("/"):
            path.mkdir(mode=0o777)
        else:
            path.write_text(f"content of {name}")
            path.chmod(0o666)
        status = world.workspace.stat()
        os.chown(path, status.st_uid, status.st_gid)


def at_once(action: Callable[[int], None], many: int) -> None:
    """Numbered from 0, each on a thread of its own, until all have ended."""
    threads = [Thread(target=action, args=(number,)) for number in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- narrower, axis by axis: the same action under a grant that has it, and under one that has not --------------------------


FILES = {
    "read": ("read('in/f')", {"read": ["in"]}),
    "read a file": ("read('in/f')", {"read": ["in/f"]}),
    "list": ("os.listdir('in')", {"read": ["in"]}),
    "overwrite": ("write('in/f')", {"write": ["in"]}),
    "overwrite a file": ("write('in/f', flags=0)", {"write": ["in/f"]}),
    "append": ("write('in/f', flags=os.O_APPEND)", {"write": ["in"]}),
    "truncate": ("os.truncate('in/f', 0)", {"write": ["in"]}),
    "create": ("write('in/new', flags=os.O_CREAT | os.O_EXCL)", {"write": ["in"]}),
    "mkdir": ("os.mkdir('in/newdir')", {"write": ["in"]}),
    "symlink": ("os.symlink('f', 'in/link')", {"write": ["in"]}),
    "link": ("os.link('in/f', 'in/second')", {"write": ["in"]}),
    "fifo": ("os.mkfifo('in/fifo')", {"write": ["in"]}),
    "rename": ("os.rename('in/g', 'in/h')", {"write": ["in"]}),
    "remove": ("os.unlink('in/h')", {"write": ["in"]}),
    "rmdir": ("os.rmdir('in/empty')", {"write": ["in"]}),
    "chmod": ("os.chmod('in/f', 0o600)", {"write": ["in"]}),
    "chown": ("os.chown('in/f', -1, -1)", {"write": ["in"]}),
    "times": ("os.utime('in/f', (1, 1))", {"write": ["in"]}),
}


@pytest.mark.parametrize("name", FILES)
def test_files(world: World, name: str) -> None:
    action, has = FILES[name]
    tree(world, "in/", "in/f", "in/g", "in/h", "in/empty/", "other/")
    reads = name not in ("read", "read a file", "list")
    lacks = Grant(read=["."], write=["other"]) if reads else Grant(read=["other"])
    with opened(world) as session:
        assert probe(session, action, lacks) == "EACCES"
        assert probe(session, action, Grant()) == "EACCES"
        assert probe(session, action, Grant(**has)) == "ok"  # type: ignore[arg-type]


def test_execution(world: World) -> None:
    tree(world, "tool", "other/")
    (world.workspace / "tool").write_text("#!/bin/sh\necho ran\n")
    (world.workspace / "tool").chmod(0o777)
    with opened(world) as session:
        assert said(session.run(["./tool"], grant=Grant(exec=["tool"]))) == "ran"
        for grant in (Grant(read=["."]), Grant(write=["."]), Grant(exec=["other"])):
            with pytest.raises(LaunchError, match="not executable, or execution is not granted") as raised:
                session.run(["./tool"], grant=grant)
            assert raised.value.exit_status == 126
            nested = session.run(["sh", "-c", "./tool"], grant=grant)
            assert (nested.returncode, nested.stdout) == (126, b"")
        # A script is data for its interpreter.
        assert said(session.run(["sh", "tool"], grant=Grant(read=["tool"]))) == "ran"


def test_limits(world: World) -> None:
    show = python("import resource as r; print(r.getrlimit(r.RLIMIT_NOFILE)[1], r.getrlimit(r.RLIMIT_FSIZE)[1] >> 20)")
    with opened(world, limits={"files": 200, "file-size": "50MiB"}) as session:
        assert said(session.run(show)) == "200 50"
        assert said(session.run(show, grant=Grant())) == "200 50"
        assert said(session.run(show, grant=Grant(limits={"files": 60, "file-size": "2MiB"}))) == "60 2"
        assert said(session.run(show, grant=Grant(limits={"files": 200}))) == "200 50"
        with pytest.raises(GrantError, match=r"files.*") as raised:
            session.run(show, grant=Grant(limits={"files": 201, "file-size": "51MiB"}))
        assert "file-size" in str(raised.value)


def test_system_calls(world: World) -> None:
    action = "syscall(135, 0x0400000)"  # personality(READ_IMPLIES_EXEC)
    with opened(world, allow_syscalls=["personality"]) as session:
        assert probe(session, action) == "ok"
        assert probe(session, action, Grant(allow_syscalls=["personality"])) == "ok"
        assert probe(session, action, Grant()) == "EPERM"


def listening(world: World) -> str:
    """A profile with a port: of a session's own network, this version can have ports, and no way out."""
    path = world.home / "listening.toml"
    path.write_text('format = 1\nname = "listening"\nextends = ["offline"]\n[network]\nlisten = [3000]\n')
    path.chmod(0o644)
    return str(path)


def test_loopback(world: World) -> None:
    """A call with fewer ports than its session has a network of its own: nobody else's server is in it."""
    serve = """
    s = socket.socket()
    s.bind(('127.0.0.1', 3000))
    s.listen()
    print('ready', flush=True)
    time.sleep(1000)
    """
    action = "socket.create_connection(('127.0.0.1', 3000)).close()"
    with opened(world, listening(world)) as session, session.popen(python(serve)) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        assert probe(session, action) == "ok"
        assert probe(session, action, Grant(listen=[3000])) == "ok"
        assert probe(session, action, Grant()) == "ECONNREFUSED"
        server.kill()


def test_scratch_of_a_call_with_less_network_is_its_own(world: World) -> None:
    with opened(world, listening(world)) as session:
        session.run(["sh", "-c", "echo left > /tmp/left; echo left > /dev/shm/left"])
        for path in ("/tmp/left", "/dev/shm/left"):
            assert said(session.run(["cat", path], grant=Grant(listen=[3000]))) == "left"
            assert probe(session, f"read('{path}')", Grant()) == "ENOENT"


def test_unix_sockets_of_a_call_with_less_network_are_its_own(world: World) -> None:
    serve = "s = socket.socket(socket.AF_UNIX); s.bind('/tmp/sock'); s.listen(); print('ready', flush=True); time.sleep(1000)"
    action = "socket.socket(socket.AF_UNIX).connect('/tmp/sock')"
    with opened(world, listening(world)) as session, session.popen(python(serve)) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        assert probe(session, action, Grant(listen=[3000])) == "ok"
        assert probe(session, action, Grant()) == "ENOENT"
        # Nor by way of a directory that the mediator opened.
        (world.workspace / "a").write_text("x")
        up = "../" * 20
        walk = f"(os.chdir('.'), os.fchdir(os.open('.', os.O_RDONLY)), {action.replace('/tmp/sock', up + 'tmp/sock')})"
        assert probe(session, walk, Grant(read=["."], deny=["a"])) == "ENOENT"
        server.kill()


MOVES = {
    "rename in": "os.rename('theirs/f', 'mine/x')",
    "rename out": "os.rename('mine/f', 'theirs/x')",
    "rename over": "os.rename('mine/f', 'theirs/f')",
    "exchange": "syscall(316, -100, b'mine/f', -100, b'theirs/f', 2)",
    "link in": "os.link('theirs/f', 'mine/x')",
    "link out": "os.link('mine/f', 'theirs/x')",
    "link of a descriptor": "syscall(265, -100, b'/proc/self/fd/%d' % os.open('theirs/f', os.O_PATH), -100, b'mine/x', 0x400)",
}


@pytest.mark.needs(x86_64=True)
def test_nothing_is_moved_or_linked_across_the_edge_of_a_grant(world: World) -> None:
    """The mediator moves and links on the call's behalf, and may itself do both anywhere that the session may."""
    tree(world, "mine/", "theirs/", "mine/f", "theirs/f")
    with opened(world) as session:
        for grant in (Grant(read=["."], write=["mine"]), Grant(write=["mine"])):
            ended = probes(session, MOVES, grant)
            assert all(error in ("EACCES", "EXDEV") for error in ended.values()), ended
        assert sorted(os.listdir(world.workspace / "mine")) == sorted(os.listdir(world.workspace / "theirs")) == ["f"]
        assert (world.workspace / "theirs/f").stat().st_nlink == 1
        both = Grant(write=["mine", "theirs"])
        assert probe(session, MOVES["exchange"], both) == "ok"
        assert probe(session, MOVES["link in"], both) == "ok"
        with_descriptor = MOVES["link of a descriptor"]
        assert probe(session, f"(os.unlink('mine/x'), {with_descriptor})", both) == "ok"
        assert probe(session, f"(os.unlink('mine/x'), {MOVES['rename in']})", both) == "ok"


# --- a grant beyond its session is refused, whole ---------------------------------------------------------------------------


def test_a_wider_grant_is_refused_and_every_object_named(world: World) -> None:
    tree(world, "ro", "rw/", "denied")
    outside = world.base / "outside"
    outside.mkdir()
    asked: dict[str, Any] = {
        "read": [outside],
        "write": ["rw", world.base / "runtime"],
        "exec": [world.home],
        "connect": ["example.org:443"],
        "listen": [4000],
        "unix": [world.base / "sock"],
        "env": ["NOT_PASSED"],
        "limits": {"memory": "900GiB"},
        "allow_syscalls": ["bpf"],
    }
    with socket.socket(socket.AF_UNIX) as server, opened(world) as session:
        server.bind(str(world.base / "sock"))
        mark = ["sh", "-c", "echo ran >> rw/mark"]
        with pytest.raises(GrantError) as raised:
            session.run(mark, grant=Grant(**asked))
        for part in (
            str(outside),
            str(world.base),
            str(world.home),
            "example.org:443",
            "4000",
            "sock",
            "NOT_PASSED",
            "memory",
            "bpf",
        ):
            assert part in str(raised.value), part
        for name, value in asked.items():
            keywords: dict[str, Any] = {"write": ["rw"], name: value}
            with pytest.raises(GrantError):
                session.run(mark, grant=Grant(**keywords))
        assert not (world.workspace / "rw/mark").exists()
        assert session.run(mark, grant=Grant(write=["rw"])).returncode == 0
        assert (world.workspace / "rw/mark").read_text() == "ran\n"


def test_a_grant_of_what_the_session_takes_away_is_refused(world: World) -> None:
    tree(world, "secret", "kept", "plain")
    deny, protect = [world.workspace / "secret"], [world.workspace / "kept"]
    with opened(world, deny=deny, protect=protect) as session:
        for grant in (Grant(read=["secret"]), Grant(write=["kept"]), Grant(write=["secret"])):
            with pytest.raises(GrantError, match=r"secret|kept"):
                session.run(["true"], grant=grant)
        tries = {
            "secret": "read('secret')",
            "kept": "write('kept')",
            "times": "os.utime('kept')",
            "plain": "write('plain')",
        }
        found = probes(session, tries, Grant(write=["."]))
        assert found["plain"] == "ok"
        assert found["secret"] == "EACCES"
        assert found["kept"] != "ok"
        assert found["times"] != "ok"
        assert probe(session, "read('kept')", Grant(read=["kept"])) == "ok"


def test_what_a_call_denies_itself_is_denied(world: World) -> None:
    tree(world, "a", "b")
    with opened(world) as session:
        tries = {
            "deny": "read('a')",
            "protect": "write('b')",
            "times": "os.utime('b')",
            "attribute": "os.setxattr('b', 'user.x', b'1')",
            "read": "read('b')",
            "make": "write('new')",
        }
        expected = {
            "deny": "EACCES",
            "protect": "EACCES",
            "times": "EACCES",
            "attribute": "EACCES",
            "read": "ok",
            "make": "ok",
        }
        assert probes(session, tries, Grant(write=["."], deny=["a"], protect=["b"])) == expected
        assert set(probes(session, tries, Grant(write=["."])).values()) == {"ok"}


UDP = """
def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(('127.0.0.1', 0))
        one.settimeout(10)
        one.sendto(b'x', one.getsockname())
        one.recv(1)
def stream(port):
    with socket.create_server(('127.0.0.1', port)) as server:
        socket.create_connection(server.getsockname(), 10).close()
"""


@pytest.mark.parametrize("connect", [[], ["192.0.2.1:80"]], ids=["no way out", "a way out"])
def test_a_call_with_a_network_of_its_own_has_no_loopback_that_its_session_has_not(
    world: World, connect: list[str]
) -> None:
    """``loopback = false``: of a call's own network, where less is granted, no more is open than of the session's."""
    tree(world, "file")
    closed = world.home / "closed.toml"
    closed.write_text('format = 1\nname = "closed"\nextends = ["offline"]\n[network]\nloopback = false\n')
    closed.chmod(0o644)
    tries = {"datagram": "datagram()", "granted": "stream(4711)", "other": "stream(4712)"}
    ways = {
        "session": None,
        "nothing": Grant(read=["file"]),
        "port": Grant(read=["file"], listen=[4711]),
        "all": Grant(read=["file"], listen=[4711], connect=connect),
    }
    with opened(world, str(closed), connect=connect, listen=[4711]) as session:
        found = {name: probes(session, tries, grant, UDP) for name, grant in ways.items()}
        worked = {name: {what for what, end in ends.items() if end == "ok"} for name, ends in found.items()}
        # Where there is a way out a packet filter holds the loopback, and it knows UDP.
        whole = {"granted"} if connect else {"granted", "datagram"}
        assert worked == {"session": whole, "nothing": set(), "port": whole, "all": whole}, found
    with opened(world, connect=connect, listen=[4711]) as session:
        assert {*probes(session, tries, Grant(read=["file"]), UDP).values()} == {"ok"}  # the other arm


# --- sub-sessions -----------------------------------------------------------------------------------------------------------


def test_a_narrowed_session_is_a_ceiling(world: World) -> None:
    tree(world, "a", "b", "c/")
    with opened(world) as session:
        part = session.narrow(Grant(read=["a"], write=["c"]), principal="sub-agent")
        tries = {"a": "read('a')", "b": "read('b')", "write a": "write('a')", "write c": "write('c/x')"}
        expected = {"a": "ok", "b": "EACCES", "write a": "EACCES", "write c": "ok"}
        assert probes(part, tries) == expected
        assert probes(part, tries, Grant(read=["a"])) == {**expected, "write c": "EACCES"}
        for wider in (Grant(read=["b"]), Grant(write=["a"]), Grant(write=["."])):
            with pytest.raises(GrantError, match="beyond"):
                part.run(["true"], grant=wider)
            with pytest.raises(GrantError, match="beyond"):
                part.narrow(wider)
        assert (part.grant.principal, part.grant.parent, part.id) == ("sub-agent", session.grant.id, session.id)
        assert set(probes(session, tries).values()) == {"ok"}


def test_what_a_narrowed_session_denies_its_calls_are_denied_whatever_their_grant(world: World) -> None:
    """A grant of the whole tree does not mention what the narrower session takes away from it, nor does a deeper session."""
    tree(world, "d/", "d/secret", "d/kept", "d/open", "through -> d/secret")
    tries = {"secret": "read('d/secret')", "open": "read('d/open')", "kept": "write('d/kept')"}
    wide, taken = dict.fromkeys(tries, "ok"), {"secret": "EACCES", "open": "ok", "kept": "EACCES"}
    with opened(world) as session:
        assert probes(session, tries, Grant(write=["d"])) == wide
        for deny in ("d/secret", "through"):
            part = session.narrow(Grant(write=["d"], deny=[deny], protect=["d/kept"]))
            assert probes(part, tries) == taken
            assert probes(part, tries, Grant(write=["d"])) == taken
            assert probes(part.narrow(Grant(write=["d"])), tries) == taken
            assert probes(part.narrow(Grant(write=["d"])), tries, Grant(write=["d"])) == taken
            with pytest.raises(GrantError, match="denies"):
                part.run(["true"], grant=Grant(read=["d/secret"]))


def test_a_name_means_to_a_narrowed_session_what_it_led_to_when_that_was_made(world: World) -> None:
    """Who may move a link inside must not move the ceiling with it."""
    tree(world, "one/", "one/f", "two/", "two/f", "link -> one")
    tries = {"one": "read('one/f')", "two": "read('two/f')", "link": "read('link/f')"}
    with opened(world) as session:
        part = session.narrow(Grant(read=["link"]))
        assert probes(part, tries, Grant(read=["link"])) == {"one": "ok", "two": "EACCES", "link": "ok"}
        moved = said(
            session.run(python("os.symlink('two', 'new'); os.rename('new', 'link'); print(os.readlink('link'))"))
        )
        assert moved == "two"
        # The object, which another name leads to now: of a name that the session had not seen when it began.
        expected = {"one": "ok", "two": "EACCES", "link": "EACCES"}
        assert probes(part, tries) == expected
        assert probes(part, tries, Grant(read=["link"])) == expected
        assert probes(part, tries, Grant(read=["one"])) == expected
        for grant in (Grant(read=["two"]), Grant(read=["link/f", "two/f"])):
            with pytest.raises(GrantError, match="beyond"):
                part.run(["true"], grant=grant)
        assert probes(session, tries, Grant(read=["two"]))["two"] == "ok"


def test_what_a_narrowed_session_has_not_its_calls_have_not_by_any_way(world: World) -> None:
    """Its calls without a grant: limits, metadata and sockets are the narrower session's, not those of the one around it."""
    tree(world, "mine/", "mine/f", "other/", "other/f")
    limit = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    tries = {name: f"os.utime('{name}/f', (1, 1))" for name in ("mine", "other")}
    listen = "server = socket.socket(socket.AF_UNIX)\nserver.bind(chr(0) + 'remit-narrow')\nserver.listen()"
    with opened(world, connect=["192.0.2.1:80"]) as session:
        part = session.narrow(Grant(write=["mine"], limits={"files": "64"}))
        assert said(part.run(python(limit))) == "64"
        assert said(session.run(python(limit))) != "64"
        assert probes(part, tries) == {"mine": "ok", "other": "EACCES"}
        assert probes(session, tries) == {"mine": "ok", "other": "ok"}
        waiting = session.popen(python(listen + "\nprint('up', flush=True)\nsys.stdin.read()"), stdin=PIPE)
        with waiting:
            assert waiting.stdout is not None
            assert waiting.stdout.readline() == b"up\n"
            connect = "socket.socket(socket.AF_UNIX).connect(chr(0) + 'remit-narrow')"
            assert probe(part, connect) == "ECONNREFUSED"


def test_eight_times_is_as_deep_as_it_goes(world: World) -> None:
    with opened(world) as session:
        deep = session
        for _ in range(8):
            deep = deep.narrow(Grant(read=["."]))
        assert deep.run(["true"]).returncode == 0
        with pytest.raises(GrantError, match="8"):
            deep.narrow(Grant(read=["."]))


def test_closing_a_narrowed_session_takes_its_grant_back(world: World) -> None:
    marker = f"{FOREVER}.201"
    with opened(world) as session:
        part = session.narrow(Grant(read=["."]))
        below = part.narrow(Grant(read=["."]))
        running = below.popen(["sh", "-c", f"setsid sleep {marker} & echo ready; wait"])
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        with session.popen(["cat"], stdin=PIPE) as mine:
            part.close()
            with pytest.raises(GrantRevoked):
                running.wait()
            running.close()
            for closed in (part, below):
                with pytest.raises(GrantRevoked):
                    closed.run(["true"])
                with pytest.raises(GrantRevoked):
                    closed.narrow(Grant())
            assert named(marker) == []
            assert mine.communicate(b"alive")[0] == b"alive"
        part.close()
        assert session.run(["true"]).returncode == 0


# --- a grant ends -----------------------------------------------------------------------------------------------------------


def test_a_call_ends_with_its_grant(world: World) -> None:
    marker = f"{FOREVER}.202"
    with opened(world) as session:
        grant = Grant(read=["."], expires="500ms")
        with pytest.raises(GrantExpired):
            session.run(["sh", "-c", f"setsid sleep {marker} & exec sleep {marker}"], grant=grant)
        assert named(marker) == []
        # The same object: its time has begun. Before a call, it is refused.
        with pytest.raises(GrantExpired):
            session.run(["sh", "-c", "echo ran > mark"], grant=grant)
        assert not (world.workspace / "mark").exists()
        assert session.run(["true"], grant=Grant(read=["."], expires="1h")).returncode == 0


def test_a_narrowed_session_ends_with_its_grant_and_takes_its_calls_along(world: World) -> None:
    with opened(world) as session:
        part = session.narrow(Grant(read=["."], expires=0.5))
        with pytest.raises(GrantExpired):
            part.run(["sleep", FOREVER], grant=Grant(expires="1h"))
        with pytest.raises(GrantExpired):
            part.run(["true"])
        assert session.run(["true"]).returncode == 0


def freezing(world: World) -> str:
    path = world.home / "freezing.toml"
    path.write_text('format = 1\nname = "freezing"\nextends = ["offline"]\n[enforcement]\non_expiry = "freeze"\n')
    path.chmod(0o644)
    return str(path)


@pytest.mark.parametrize("end", ["expiry", "revocation"])
def test_with_freeze_a_call_stops_where_it_stands(world: World, end: str) -> None:
    marker = f"{FOREVER}.203"
    with opened(world, freezing(world)) as session:
        script = ["sh", "-c", f"sleep {marker} & setsid sleep {marker} & echo ready; wait"]
        if end == "expiry":
            call = frozen_in_time(session, script)
        else:
            call = session.popen(script, grant=Grant(read=["."]))
            assert call.stdout is not None
            assert call.stdout.readline() == b"ready\n"
            assert session.revoke(call) == [call.call]
            with pytest.raises(GrantRevoked):
                call.wait()
        processes = watched(marker)
        until(lambda: {state(pid) for pid in named(marker)} == {"T"})
        assert len(named(marker)) == 3
        assert session.run(["true"]).returncode == 0  # the session goes on
        call.close()
        assert gone(processes)


def frozen_in_time(session: Session, script: list[str]) -> Popen:
    """A call that had said ``ready`` when its grant's end froze it."""

    def expired(seconds: float) -> tuple[Popen, bool]:
        call = session.popen(script, grant=Grant(read=["."], expires=seconds))
        with pytest.raises(GrantExpired):
            call.wait()
        assert call.stdout is not None
        spoke = bool(select.select([call.stdout], [], [], 0)[0]) and call.stdout.readline() == b"ready\n"
        if not spoke:
            call.close()
        return call, spoke

    return cut_off(expired, lambda ended: ended[1])[0]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_revocation_ends_a_call_with_all_its_children(world: World) -> None:
    marker = f"{FOREVER}.204"
    script = f"for n in 1 2 3; do setsid sh -c 'trap \"\" TERM HUP; sleep {marker}' & done; echo ready; wait"
    with opened(world) as session:
        taken = session.popen(["sh", "-c", script], grant=Grant(read=["."]))
        kept = session.popen(["cat"], stdin=PIPE, grant=Grant(read=["."]))
        assert taken.stdout is not None
        assert taken.stdout.readline() == b"ready\n"
        assert len(named(marker)) >= 3
        assert session.revoke(taken) == [taken.call]
        with pytest.raises(GrantRevoked):
            taken.wait()
        assert named(marker) == []
        taken.close()
        assert kept.communicate(b"alive")[0] == b"alive"  # the same authority, another grant
        kept.close()
        assert session.revoke(taken) == []


@pytest.mark.parametrize("end", ["expiry", "revocation", "revocation of a file", "time", "memory"])
def test_what_a_background_call_left_behind_ends_with_its_authority(world: World, end: str) -> None:
    """Its command has long ended; its handle is open. Another one's goes on."""
    marker = f"{FOREVER}.206"
    eats = """
    while os.getppid() != 1:
        pass
    print('ready', flush=True)
    x = bytearray(300 << 20)
    x[::4096] = b'1' * len(x[::4096])
    time.sleep(1000)
    """
    with opened(world) as session:
        grant = Grant(read=["."], limits={"memory": "200MiB"} if end == "memory" else None)
        file = world.home / "g.json"
        if end == "revocation of a file":
            made = world.remit("grant", "new", "--read", ".", "-o", str(file))
            assert made.status == 0, made.stderr
            with patch.dict(os.environ, world.env(), clear=True):
                grant = Grant.from_options((("grant", str(file)),), str(world.workspace))
        script = f"setsid sleep {marker} & echo ready"
        kept = session.popen(["sh", "-c", script.replace(marker, f"{marker}9")], background=True)
        if end == "memory":
            code = f"os.fork() or os.execv('/usr/bin/python3', {[*python(eats), marker]!r})"
            call = session.popen(python(code), grant=grant, background=True)
        elif end in ("time", "expiry"):
            call = begun_in_time(
                lambda seconds: session.popen(["sh", "-c", script], grant=ending(end, seconds), background=True)
            )
        else:
            call = session.popen(["sh", "-c", script], grant=grant, background=True)
        for one in (kept, call):
            assert one.stdout is not None
            if one is kept or end not in ("time", "expiry"):
                assert one.stdout.readline() == b"ready\n"
            if one is kept or end not in ("time", "expiry", "memory"):
                assert one.wait() == 0
        left = watched(marker)
        if end.startswith("revocation"):
            assert len([pid for pid in named(marker) if pid not in named(f"{marker}9")]) == 1
        if end == "revocation":
            session.revoke(call)
        elif end == "revocation of a file":
            with patch.dict(os.environ, world.env(), clear=True):
                assert world.remit("grant", "revoke", str(file)).status == 0
        until(lambda: named(marker) == named(f"{marker}9"))
        assert len(named(f"{marker}9")) == 1
        assert session.run(["true"]).returncode == 0
        call.close()
        kept.close()
        assert gone(left)


def ending(how: str, seconds: float) -> Grant:
    """A grant that ends, or whose calls do, after so many seconds."""
    if how == "expiry":
        return Grant(read=["."], expires=seconds)
    return Grant(read=["."], limits={"time": f"{seconds:g}s"})


SLEEP = "time.sleep(1000)"
HELD_BACK = """
if os.fork() == 0:
    {first}
    print('ready', flush=True)
    {then}
{goes_on}
"""
"""A command that goes on, and its child, which does something more."""


@pytest.mark.parametrize("end", ["expiry", "revocation", "closing", "time", "memory", "memory after kill"])
def test_a_background_call_whose_command_still_runs_ends_with_its_authority(world: World, end: str) -> None:
    """Its children as well as its command. Another one's go on, and so does the child where the command alone was killed."""
    marker = f"{FOREVER}.207"
    grows = "os.read(0, 1); x = bytearray(300 << 20); x[::4096] = b'1' * len(x[::4096]); time.sleep(1000)"
    fed = end.startswith("memory")
    code = [*python(HELD_BACK.format(first="pass", then=grows if fed else SLEEP, goes_on=SLEEP)), marker]
    grant = Grant(read=["."], limits={"memory": "200MiB"} if fed else None)
    with opened(world) as session:
        part = session.narrow(Grant(read=["."])) if end == "closing" else session
        kept = session.popen(
            [*python(HELD_BACK.format(first="pass", then=SLEEP, goes_on=SLEEP)), f"{marker}9"], background=True
        )
        assert kept.stdout is not None
        assert kept.stdout.readline() == b"ready\n"
        if end in ("expiry", "time"):
            call = begun_in_time(lambda seconds: part.popen(code, grant=ending(end, seconds), background=True))
        else:
            call = part.popen(code, grant=grant, stdin=PIPE, background=True)
            assert call.stdout is not None
            assert call.stdout.readline() == b"ready\n"
            assert len(named(marker)) == 4
        kept.kill()
        assert kept.wait() == -9
        survivor = named(f"{marker}9")
        left = [pid for pid in named(marker) if pid not in survivor]
        ended = handles(left)
        if end == "memory after kill":
            call.kill()
            assert call.wait() == -9
            assert len(named(marker)) == 2
        if end.startswith("memory"):
            assert call.stdin is not None
            call.stdin.write(b"x")
            call.stdin.flush()
        elif end == "revocation":
            assert session.revoke(call) == [call.call]
        elif end == "closing":
            part.close()
        if end in ("expiry", "revocation", "closing"):
            with pytest.raises(GrantExpired if end == "expiry" else GrantRevoked):
                call.wait()
        elif end != "memory after kill":
            assert call.result().limit == end
        if end != "memory after kill":
            assert [pid for pid in named(marker) if pid not in survivor] == []  # before its answer
        assert gone(ended)
        assert named(f"{marker}9") == survivor
        assert len(survivor) == 1
        assert session.run(["true"]).returncode == 0
        call.close()
        kept.close()


@pytest.mark.parametrize("how", ["kill", "signal 9", "close"])
def test_a_call_that_stands_frozen_ends_as_a_whole(world: World, how: str) -> None:
    """Also what the kernel wakes when the leader of its process group ends: nothing of it goes on for a moment more."""
    marker = f"{FOREVER}.208"
    ticks = "exec(\"while True: open('ticks', 'a').write('x'); time.sleep(0.001)\")"
    code = python(
        HELD_BACK.format(
            first="signal.signal(signal.SIGHUP, signal.SIG_IGN); os.setpgid(0, 0)", then=ticks, goes_on=ticks
        )
    )
    with opened(world, freezing(world)) as session:
        call = session.popen([*code, marker], grant=Grant(write=["."]), background=True)
        assert call.stdout is not None
        assert call.stdout.readline() == b"ready\n"
        made = world.workspace / "ticks"
        until(lambda: made.exists() and made.stat().st_size > 3)
        processes = watched(marker)
        assert len(processes) == 2
        assert session.revoke(call) == [call.call]
        with pytest.raises(GrantRevoked):
            call.wait()
        until(lambda: {state(pid) for pid in named(marker)} == {"T"})
        count = made.stat().st_size
        # What would wake it, does not.
        call.send_signal(signal.SIGCONT)
        assert session.run(["true"]).returncode == 0
        if how == "kill":
            call.kill()
        elif how == "signal 9":
            call.send_signal(signal.SIGKILL)
        else:
            call.close()
        assert gone(processes)
        assert made.stat().st_size == count
        assert session.run(["true"]).returncode == 0
        call.close()


def test_nothing_starts_under_a_grant_that_was_taken_back_meanwhile(world: World) -> None:
    """The decision was made before the revocation, the request arrives after it."""
    with opened(world) as session:
        part = session.narrow(Grant(write=["."]))
        part.run(["true"])
        made = Core.ticket

        def late(core: Core, *arguments: Any, **keywords: Any) -> Any:
            ticket = made(core, *arguments, **keywords)
            part.close()
            return ticket

        with patch.object(Core, "ticket", late), pytest.raises(GrantRevoked):
            part.run(["sh", "-c", "echo ran > mark"])
        assert not (world.workspace / "mark").exists()
        assert session.run(["sh", "-c", "echo ran > mark"]).returncode == 0


def test_the_sessions_own_end_refuses_and_ends(world: World) -> None:
    marker = f"{FOREVER}.205"
    with opened(world) as session:
        part = session.narrow(Grant(read=["."]))
        call = session.popen(["sh", "-c", f"echo ready; exec sleep {marker}"])
        assert call.stdout is not None
        assert call.stdout.readline() == b"ready\n"
        left = watched(marker)
    assert gone(left)
    for closed in (session, part):
        with pytest.raises(SessionClosed):
            closed.run(["true"])
        closed.close()
    with pytest.raises(SessionClosed):
        call.wait()
    call.close()


# --- uses ---------------------------------------------------------------------------------------------------------------------


def test_uses_are_counted_once_whoever_calls(world: World) -> None:
    grant = Grant(write=["."], uses=5)
    outcomes: list[str] = []

    def use(number: int) -> None:
        try:
            session.run(["sh", "-c", f": > used-{number}"], grant=grant)
        except GrantError as error:
            outcomes.append(str(error))
        else:
            outcomes.append("ran")

    with opened(world) as session:
        at_once(use, 16)
        assert outcomes.count("ran") == 5
        assert len([outcome for outcome in outcomes if "good for 5 uses" in outcome]) == 11
        assert len([name for name in os.listdir(world.workspace) if name.startswith("used-")]) == 5
        other = Grant(write=["."], uses=1)  # equal or not: another object is another grant
        assert session.run(["true"], grant=other).returncode == 0
        with pytest.raises(GrantError, match="1 use"):
            session.run(["true"], grant=other)


def test_a_spent_grant_cannot_be_had_again_through_a_narrowed_session(world: World) -> None:
    with opened(world) as session:
        grant = Grant(read=["."], uses=1)
        part = session.narrow(Grant(read=["."]))
        assert part.run(["true"], grant=grant).returncode == 0
        for one in (part, session):
            with pytest.raises(GrantError, match="1 use"):
                one.run(["true"], grant=grant)


def test_each_call_of_a_narrowed_session_is_a_use_of_what_it_was_narrowed_by(world: World) -> None:
    """Once, whatever else it runs under; from however many sessions and threads."""
    with opened(world) as session:
        grant = Grant(write=["."], uses=6)
        part, other = session.narrow(grant), session.narrow(grant)
        below = part.narrow(Grant(read=["."]))
        assert session.run(["true"], grant=grant).returncode == 0
        outcomes: list[str] = []

        def use(number: int) -> None:
            try:
                one = (part, other, below)[number % 3]
                one.run(["true"], grant=Grant(read=["."]) if number % 2 else None)
            except GrantError as error:
                outcomes.append(str(error))
            else:
                outcomes.append("ran")

        at_once(use, 12)
        assert outcomes.count("ran") == 5
        assert len([outcome for outcome in outcomes if "good for 6 uses" in outcome]) == 7
        for attempt in (
            lambda: part.run(["true"], grant=grant),
            lambda: session.run(["true"], grant=grant),
            lambda: session.narrow(grant),
            lambda: part.narrow(Grant(read=["."])),
            lambda: below.run(["true"]),
        ):
            with pytest.raises(GrantError, match="6 uses"):
                attempt()
        assert session.run(["true"]).returncode == 0


def test_a_call_under_what_its_session_was_narrowed_by_is_one_use(world: World) -> None:
    with opened(world) as session:
        grant = Grant(read=["."], uses=2)
        part = session.narrow(grant)
        assert [part.run(["true"], grant=grant).returncode for _ in range(2)] == [0, 0]
        with pytest.raises(GrantError, match="2 uses"):
            part.run(["true"], grant=grant)


def test_a_session_narrowed_by_a_grant_in_a_file_holds_it(world: World) -> None:
    """Its calls count in the ledger, and end when the file's grant is revoked."""
    marker = f"{FOREVER}.207"
    file = world.workspace / "some.grant"
    with opened(world) as session, patch.dict(os.environ, world.env(), clear=True):
        made = world.remit("grant", "new", "--read", str(world.workspace), "--uses", "2", "-o", str(file))
        assert made.status == 0, made
        given = Grant.from_options((("grant", str(file)),), str(world.workspace))
        part = session.narrow(given)
        assert part.run(["true"]).returncode == 0
        call = part.popen(["sh", "-c", f"echo ready; exec sleep {marker}"])
        assert call.stdout is not None
        assert call.stdout.readline() == b"ready\n"
        with pytest.raises(GrantError, match="use"):
            part.run(["true"])
        again = session.narrow(Grant.from_options((("grant", str(file)),), str(world.workspace)))
        with pytest.raises(GrantError, match="use"):
            again.run(["true"], grant=Grant(read=["."]))
        left = watched(marker)
        assert len(left) == 1
        assert world.remit("grant", "revoke", str(file)).status == 0
        with pytest.raises(GrantRevoked):
            call.wait(timeout=60)
        call.close()
        assert gone(left)
        assert session.run(["true"]).returncode == 0


# --- objects, not strings -----------------------------------------------------------------------------------------------------


def replace_outside(world: World, name: str) -> None:
    (world.workspace / "new").write_text("NEW")
    (world.workspace / "new").chmod(0o666)
    os.rename(world.workspace / "new", world.workspace / name)


def test_a_granted_file_is_that_file_and_not_its_name(world: World) -> None:
    tree(world, "data", "other")
    with opened(world) as session:
        grant = Grant(read=["data"])
        assert said(session.run(["cat", "data"], grant=grant)) == "content of data"
        replace_outside(world, "data")
        for _ in range(3):
            assert session.run(["cat", "data"], grant=grant).stdout == b""
        assert probe(session, "read('data')", grant) == "EACCES"
        assert said(session.run(["cat", "data"], grant=Grant(read=["."]))) == "NEW"


def test_a_file_that_is_replaced_between_decision_and_start_is_not_granted(world: World) -> None:
    tree(world, "data")
    define = Door.define

    def late(door: Door, *arguments: Any) -> None:
        replace_outside(world, "data")
        define(door, *arguments)

    with opened(world) as session:
        with patch.object(Door, "define", late), pytest.raises(LaunchError, match="not the object that was granted"):
            session.run(["cat", "data"], grant=Grant(read=["data"]))
        assert session.run(["true"]).returncode == 0


def test_a_link_is_granted_as_what_it_leads_to(world: World) -> None:
    tree(world, "data", "other")
    (world.workspace / "link").symlink_to("data")
    with opened(world) as session:
        grant = Grant(read=["link"])
        assert said(session.run(["cat", "link"], grant=grant)) == "content of data"
        (world.workspace / "link").unlink()
        (world.workspace / "link").symlink_to("other")
        assert probe(session, "read('link')", grant) == "EACCES"


# --- metadata -----------------------------------------------------------------------------------------------------------------


METADATA = {
    "chmod": "os.chmod('{d}/f', 0o640)",
    "fchmod": "on('{d}/f', lambda fd: os.fchmod(fd, 0o640))",
    "chown": "os.chown('{d}/f', -1, -1)",
    "lchown": "os.lchown('{d}/f', -1, -1)",
    "fchown": "on('{d}/f', lambda fd: os.fchown(fd, -1, -1))",
    "utimensat": "os.utime('{d}/f')",
    "utimensat at times": "os.utime('{d}/f', (5, 6))",
    "utimensat of a link": "os.utime('{d}/link', (5, 6), follow_symlinks=False)",
    "utimensat of a descriptor": "on('{d}/f', lambda fd: os.utime(fd, (7, 8)))",
    "utimensat relative": "on('{d}', lambda fd: os.utime('f', (9, 10), dir_fd=fd))",
    "utime": "syscall(132, b'{d}/f', None)",
    "utimes": "syscall(235, b'{d}/f', struct.pack('4q', 1, 2, 3, 4))",
    "futimesat": "syscall(261, -100, b'{d}/f', None)",
    "setxattr": "os.setxattr('{d}/f', 'user.a', b'1')",
    "lsetxattr": "os.setxattr('{d}/f', 'user.b', b'2', follow_symlinks=False)",
    "fsetxattr": "on('{d}/f', lambda fd: os.setxattr(fd, 'user.c', b'3'))",
    "through a link": "os.setxattr('{d}/link', 'user.d', b'4')",
    "replace": "os.setxattr('{d}/f', 'user.a', b'x' * 300, os.XATTR_REPLACE)",
    "removexattr": "os.removexattr('{d}/f', 'user.a')",
    "lremovexattr": "os.removexattr('{d}/f', 'user.b', follow_symlinks=False)",
    "fremovexattr": "on('{d}/f', lambda fd: os.removexattr(fd, 'user.c'))",
}
ON = """
def on(path, action):
    fd = os.open(path, os.O_RDONLY)
    try:
        return action(fd)
    finally:
        os.close(fd)
"""


def _metadata(session: Session, directory: str, grant: Grant | None) -> dict[str, str]:
    return probes(session, {name: code.format(d=directory) for name, code in METADATA.items()}, grant, before=ON)


@pytest.mark.needs(x86_64=True)
def test_metadata_below_what_only_the_session_may_write(world: World) -> None:
    tree(world, "ro/", "ro/f", "rw/", "rw/f")
    for name in ("ro", "rw"):
        (world.workspace / name / "link").symlink_to("f")
    grant = Grant(read=["."], write=["rw"])
    with opened(world) as session:
        if os.geteuid() == 0:
            session.run(
                [
                    "sh",
                    "-c",
                    "cp rw/f rw/g; mv rw/g rw/f; cp ro/f ro/g; mv ro/g ro/f; rm */link; ln -s f ro/link; ln -s f rw/link",
                ]
            )
        before = seen(world.workspace / "ro/f")
        denied = _metadata(session, "ro", grant)
        assert denied == {**dict.fromkeys(METADATA, "EACCES")}
        assert seen(world.workspace / "ro/f") == before
        assert set(_metadata(session, "rw", grant).values()) == {"ok"}
        assert set(_metadata(session, "ro", None).values()) == {"ok"}
        assert seen(world.workspace / "rw/f") == seen(world.workspace / "ro/f")
        counted = session.run(["touch", "ro/f"], grant=grant)
        assert [(one.object, one.right) for one in counted.denials] == [
            (str(world.workspace / "ro/f"), "write")
        ] * counted.denied
        assert counted.denied >= 1
        young = {
            "setxattrat": "syscall(463, -100, b'rw/f', 0, None, None, 0)",
            "file_setattr": "syscall(469, -100, b'rw/f', None, 0, 0)",
        }
        assert set(probes(session, young, grant).values()) == {"ENOSYS"}
        flags = "on('rw/f', lambda fd: fcntl.ioctl(fd, 0x40086602, struct.pack('l', 0x40)))"
        assert probe(session, flags, grant, before=ON) == "EPERM"
        assert probe(session, flags, None, before=ON) != "EPERM"


def seen(path: Path) -> tuple[object, ...]:
    status = path.stat()
    return (status.st_mode, status.st_size, sorted(os.listxattr(path)))


def test_metadata_of_protected_names_in_a_narrower_call(world: World) -> None:
    tree(world, "rw/", "rw/kept", "rw/plain", "other/")
    (world.workspace / "rw/.git").mkdir()
    (world.workspace / "rw/.git/config").write_text("")
    tries = {name: f"os.utime('rw/{name}', (1, 1))" for name in ("plain", "kept", ".git/config")} | {
        "attribute": "os.setxattr('rw/kept', 'user.a', b'1')"
    }
    with opened(world) as session:
        found = probes(session, tries, Grant(write=["rw"], protect=["rw/kept"]))
        assert found["plain"] == "ok"
        assert (found["kept"], found["attribute"]) == ("EACCES", "EACCES")


def test_a_call_never_runs_under_another_calls_authority(world: World) -> None:
    """More grants in turn than are kept armed, from several threads: authorities are given up while threads are armed for
    them, and descriptors change hands. Each call reads its own file and no other."""
    count, threads = 60, 4
    for number in range(count):
        (world.workspace / f"f{number}").write_text(str(number))
    wrong: list[str] = []

    def calls(session: Session, first: int) -> None:
        for number in range(first, count, threads):
            result = session.run(["sh", "-c", script], grant=Grant(read=[f"f{number}"]), text=True, timeout=60)
            if result.stdout != str(number):
                wrong.append(f"{number}: {result.stdout!r} {result.stderr!r}")

    script = "for f in " + " ".join(f"f{number}" for number in range(count)) + "; do cat $f 2>/dev/null; done; true"
    with opened(world) as session:
        for _ in range(2):
            workers = [Thread(target=calls, args=(session, first)) for first in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
    assert wrong == []


def test_a_session_takes_any_number_of_grants_in_turn(world: World) -> None:
    """Far more than its first process could tell its client about, if the client read nothing."""
    for number in range(400):
        (world.workspace / f"d{number}").mkdir()
    with opened(world) as session:
        for number in range(400):
            assert session.run(["/bin/true"], grant=Grant(read=[f"d{number}"]), timeout=60).returncode == 0


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("let_go", ["wait", "nothing"])
def test_handles_that_are_dropped_hold_no_authority(world: World, let_go: str) -> None:
    with opened(world) as session:
        shared = session._core.shared  # pyright: ignore[reportPrivateUsage]
        for number in range(POLICIES + 8):
            (world.workspace / f"q{number}").mkdir()
            call = session.popen(["true"], grant=Grant(read=[f"q{number}"]), pty=number % 2 == 0)
            if let_go == "wait":
                call.wait()
            del call
        session.run(["true"], grant=Grant(read=["."]))
        assert len(shared.policies) <= POLICIES
        assert [armed.held for armed in shared.policies.values()] == [0] * len(shared.policies)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_handle_is_dropped_by_whoever_happens_to_whatever_he_holds(world: World) -> None:
    with opened(world) as session:
        shared = session._core.shared  # pyright: ignore[reportPrivateUsage]
        call = session.popen(["sleep", "1000"], background=True)
        with shared.lock:  # where a garbage collection may set in
            del call
        session.run(["true"])
        assert [armed.held for armed in shared.policies.values()] == [0]
