"""What one call can do to another one's through the mediator, which serves them all and sees more than each of them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from remit import Grant
from tests.kernel.run_harness import World
from tests.kernel.session_harness import opened, probe, probes, python, said

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6)]

ELSEWHERE = ["192.0.2.1:80"]
"""What the session has to connect to; a call without it has a network, and scratch places, of its own."""
PLACES = ["/tmp", "/var/tmp", "/dev/shm", "/run"]


# --- scratch places of a call's own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_a_link_of_another_call_in_its_scratch_leads_nobody_astray(world: World, place: str) -> None:
    """Planted by a call that may not write at all, where another call has a place of its own."""
    build = world.workspace / "build"
    build.mkdir()
    (build / "precious").write_text("precious")
    with opened(world, connect=ELSEWHERE) as session:
        planter = Grant(read=["."], connect=ELSEWHERE)
        writer = Grant(write=["build"])
        act = f"echo scratch > {place}/out; mkdir {place}/d/planted; echo scratch > {place}/d/file"
        plant = f"ln -s {build}/precious {place}/out; ln -s {build} {place}/d; ls {place}"
        assert said(session.run(["sh", "-c", plant], grant=planter)).split()[:2] == ["d", "out"]
        assert probe(session, f"open('{build}/precious', 'w')", planter) == "EACCES"

        session.run(["sh", "-c", act], grant=writer)
        assert (build / "precious").read_text() == "precious"
        assert os.listdir(build) == ["precious"]

        # The other arm: links of its own lead where it may write.
        its = f"ln -s {build}/precious {place}/out; ln -s {build} {place}/d; {act}"
        assert session.run(["sh", "-c", its], grant=writer).returncode == 0
        assert (build / "precious").read_text() == "scratch\n"
        assert sorted(os.listdir(build)) == ["file", "planted", "precious"]


def test_a_link_in_the_workspace_that_leads_into_scratch_leads_into_the_calls_own(world: World) -> None:
    (world.workspace / "build").mkdir()
    (world.workspace / "build" / "precious").write_text("precious")
    with opened(world, connect=ELSEWHERE) as session:
        assert (
            session.run(["sh", "-c", "ln -s /tmp/out build/link; ln -s $PWD/build/precious /tmp/out"]).returncode == 0
        )
        session.run(["sh", "-c", "echo scratch > build/link"], grant=Grant(write=["build"]))
        assert (world.workspace / "build" / "precious").read_text() == "precious"
        assert session.run(["sh", "-c", "echo through > build/link"]).returncode == 0  # the other arm
        assert (world.workspace / "build" / "precious").read_text() == "through\n"


CHANGES = {
    "chmod": ("os.chmod('{}/file', 0o640)", "oct(os.stat('{}/file').st_mode)"),
    "utime": ("os.utime('{}/file', (5, 5))", "os.stat('{}/file').st_mtime"),
    "setxattr": ("os.setxattr('{}/file', 'user.name', b'value')", "os.listxattr('{}/file')"),
    "chmod of the place": ("os.chmod('{}', 0o700)", "oct(os.stat('{}').st_mode)"),
}


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_in_scratch_is_the_calls_own(world: World, place: str, change: str) -> None:
    (world.workspace / "src").mkdir()
    act, look = (text.format(place) for text in CHANGES[change])
    with opened(world, connect=ELSEWHERE) as session:
        grant = Grant(read=["src"])
        session.run(["sh", "-c", f"echo x > {place}/file"])
        before = said(session.run(python(f"print({look})")))
        # What is not there cannot be changed, and what is there is changed: of its own, all of it.
        missing = probe(session, act, grant)
        assert missing == ("ok" if change == "chmod of the place" else "ENOENT")
        its = f"open('{place}/file', 'w').close(); was = {look}; print(attempt(lambda: {act}), was != {look})"
        assert said(session.run(python(its), grant=grant)) == "ok True"
        assert said(session.run(python(f"print({look})"))) == before


# --- sockets -----------------------------------------------------------------------------------------------------------------

SERVE = """
s = socket.socket(socket.AF_UNIX)
s.bind('build/sock')
s.listen()
print('up', flush=True)
while True:
    try:
        c, _ = s.accept()
        c.sendmsg([b'hello'], [(1, 1, __import__('array').array('i', [os.open('secret', 0)]).tobytes())])
    except OSError:
        pass
"""
CONNECT = "(c := socket.socket(socket.AF_UNIX)).connect('{}/build/sock')"


@pytest.mark.parametrize(
    ("connect", "grant", "outcome"),
    [
        ([], None, "ok"),
        ([], Grant(write=["build"]), "ok"),
        ([], Grant(read=["build"]), "EACCES"),
        ([], Grant(read=["other"]), "EACCES"),
        (ELSEWHERE, None, "ok"),
        (ELSEWHERE, Grant(read=["other"]), "EACCES"),
        (ELSEWHERE, Grant(write=["build"]), "EACCES"),
        (ELSEWHERE, Grant(read=["other"], connect=ELSEWHERE), "EACCES"),
        (ELSEWHERE, Grant(write=["build"], connect=ELSEWHERE), "ok"),
    ],
)
def test_a_socket_of_the_sessions_is_reached_by_whom_its_directory_is_granted(
    world: World, connect: list[str], grant: Grant | None, outcome: str
) -> None:
    """And by nobody whose network is another one, which has fewer sockets than the session."""
    for name in ("build", "other"):
        (world.workspace / name).mkdir()
    (world.workspace / "secret").write_text("secret")
    with opened(world, connect=connect) as session, session.popen(python(SERVE), background=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        result = session.run(
            python(f"print(attempt(lambda: {CONNECT.format(world.workspace)}))"), grant=grant, text=True
        )
        assert result.stdout == outcome + "\n"
        assert [(one.right, one.object) for one in result.denials] == (
            [("connect", f"{world.workspace}/build/sock")] if outcome != "ok" else []
        )


@pytest.mark.parametrize("grant", [None, Grant(write=["build"])], ids=["shared", "private"])
def test_a_socket_that_a_call_binds_is_its_own_in_every_spelling(world: World, grant: Grant | None) -> None:
    (world.workspace / "build").mkdir()
    (world.workspace / "link").symlink_to("build")
    long = "n" * 60
    code = f"""
    os.umask(0o027)
    os.makedirs('build/{long}')
    for path in ('build/one', '{world.workspace}/build/two', './build/../build/three', 'link/four', '/tmp/five'):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            one = socket.socket(socket.AF_UNIX, kind)
            one.bind(path)
            print(one.getsockname(), oct(os.stat(path).st_mode), attempt(lambda: one.bind(path + '2')), end=' ')
            other = socket.socket(socket.AF_UNIX, kind)
            print(attempt(lambda: other.bind(path)), end=' ')
            if kind == socket.SOCK_STREAM:
                one.listen()
            other.connect(path)
            print('through')
            os.unlink(path)
    os.chdir('build/{long}')
    one.close()
    one = socket.socket(socket.AF_UNIX)
    one.bind('{long[:40]}')
    print(one.getsockname() == '{long[:40]}', os.getcwd() == '{world.workspace}/build/{long}')
    print(attempt(lambda: socket.socket(socket.AF_UNIX).bind('no/such')))
    print(attempt(lambda: socket.socket(socket.AF_INET).bind(('127.0.0.1', 0))))
    """
    build = f"{world.workspace}/build"
    mode = "0o140750"
    with opened(world, connect=ELSEWHERE) as session:
        lines = said(session.run(python(code), grant=grant)).splitlines()
        named = ["build/one", f"{build}/two", None, f"{build}/four", "/tmp/five"]
        for index, line in enumerate(lines[:10]):
            name, *rest = line.split()
            assert rest == [mode, "EINVAL", "EADDRINUSE", "through"], line
            assert name == (named[index // 2] or f"{build}/three"), line
        assert lines[10:] == ["True True", "ENOENT", "ok"]


RACE = """
import ctypes, threading
libc = ctypes.CDLL(None, use_errno=True)
address = ctypes.create_string_buffer(110)
address[0:2] = (1).to_bytes(2, 'little')
name = b'x/refs'
address[2:2 + len(name)] = name
last = 2 + len(name) - 1
over = False
def flip():
    while not over:
        address[last] = b's'
        address[last] = b'z'
thread = threading.Thread(target=flip)
thread.start()
won = 0
for turn in range(3000):
    one = socket.socket(socket.AF_UNIX)
    libc.bind(one.fileno(), address, 2 + len(name))
    one.close()
    if os.path.lexists('x/refs'):
        won = turn + 1
        break
    if os.path.lexists('x/refz'):
        os.unlink('x/refz')
over = True
thread.join()
print('won' if won else 'lost')
"""


def test_a_name_that_changes_under_bind_makes_no_repository(world: World) -> None:
    """git takes a socket for the ``refs`` that make a git directory; what lies beside it would be run outside."""
    prepare = "mkdir -p x/objects x/hooks; echo 'ref: refs/heads/main' > x/HEAD; echo '[core]' > x/config; "
    prepare += "printf '\\tfsmonitor = \"touch pwned; false\"\\n' >> x/config"
    with opened(world) as session:
        assert session.run(["sh", "-c", prepare]).returncode == 0
        direct = "socket.socket(socket.AF_UNIX).bind('x/refs')"
        found = probes(
            session, {"mkdir": "os.mkdir('x/refs')", "bind": direct, "other": direct.replace("refs", "refz")}
        )
        assert found == {"mkdir": "EACCES", "bind": "EACCES", "other": "ok"}
        assert said(session.run(python("os.unlink('x/refz')\n" + RACE), timeout=120)) == "lost"
    assert sorted(os.listdir(world.workspace / "x")) in (
        ["HEAD", "config", "hooks", "objects"],
        ["HEAD", "config", "hooks", "objects", "refz"],
    )


def test_a_socket_of_a_host_program_is_still_not_reached(world: World) -> None:
    (world.workspace / "build").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(world.workspace / "build" / "sock"))
        server.listen()
        os.chmod(world.workspace / "build" / "sock", 0o777)
        with opened(world) as session:
            assert probe(session, CONNECT.format(world.workspace)) == "EACCES"


# --- an interpreter that another call may write ------------------------------------------------------------------------------


def test_an_interpreter_is_none_where_another_call_may_write_it(world: World) -> None:
    for name in ("venv/bin", "evil"):
        (world.workspace / name).mkdir(parents=True)
    with opened(world) as session:
        assert session.run(["sh", "-c", "printf '#!/bin/sh\\n' > evil/python; chmod +x evil/python"]).returncode == 0
        link = "os.symlink('../../evil/python', 'venv/bin/python')"
        assert probe(session, link) == "EACCES"
        assert probe(session, link, Grant(write=["venv"], read=["."])) == "EACCES"
        # The other arm: what nobody in here can write.
        assert probe(session, "os.symlink('/usr/bin/python3', 'venv/bin/python')", Grant(write=["venv"])) == "ok"
    assert Path(os.readlink(world.workspace / "venv/bin/python")) == Path("/usr/bin/python3")


# --- a granted directory that has another name by now ------------------------------------------------------------------------

ACTIONS = {
    "write": "open('{}/there', 'w')",
    "truncate": "os.truncate('{}/there', 0)",
    "chmod": "os.chmod('{}/there', 0o600)",
    "utime": "os.utime('{}/there', (5, 5))",
    "make": "open('{}/new', 'w').close()",
    "mkdir": "os.mkdir('{}/made')",
    "link": "os.link('{}/there', '{}/linked')",
    "rename": "os.rename('{}/there', '{}/moved')",
    "unlink": "os.unlink('{}/moved')",
    "rmdir": "os.rmdir('{}/made')",
}


@pytest.mark.parametrize("spelling", ["src/./../src", "link"])
def test_what_has_a_granted_directorys_name_by_now_is_not_granted(world: World, spelling: str) -> None:
    """Moved by a call of wider authority. Spellings that are the kernel's to find out go by name, and not by the directory."""
    for name in ("src", "other"):
        (world.workspace / name).mkdir()
        (world.workspace / name / "there").write_text(name)
    (world.workspace / "link").symlink_to("src")
    act = {name: action.replace("{}", spelling) for name, action in ACTIONS.items()}
    with opened(world) as session:
        grant = Grant(write=["src"])
        assert set(probes(session, act, grant).values()) == {"ok"}  # the other arm
        (world.workspace / "src" / "there").write_text("src")
        assert session.run(["sh", "-c", "mv src old; mv other src"]).returncode == 0
        (world.workspace / "src" / "moved").write_text("other")
        (world.workspace / "src" / "made").mkdir()
        found = probes(session, {**act, "mkdir": act["mkdir"].replace("made", "more")}, grant)
        assert {name: outcome for name, outcome in found.items() if outcome != "EACCES"} == {}
    names = {path.name: path.stat() for path in (world.workspace / "src").iterdir()}
    assert sorted(names) == ["made", "moved", "there"]
    assert (world.workspace / "src" / "there").read_text() == "other"
    assert names["there"].st_mode & 0o777 == 0o644
    assert names["there"].st_mtime != 5
    assert names["there"].st_nlink == 1
