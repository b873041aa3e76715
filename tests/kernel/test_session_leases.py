"""A file with a lease on it (``fcntl(2)``, F_SETLEASE): who opens it for writing waits for the holder, and nobody else does."""

from __future__ import annotations

import pytest

from remit import Grant
from tests.kernel.run_harness import World
from tests.kernel.session_harness import opened, python, said

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6)]

HELD = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
write('leased', 'content')
write('another')  # the mediator has closed its own copy of the first one, with which there is no lease
held = os.open('leased', os.O_RDONLY)
fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_RDLCK)
def child(action):
    said, says = os.pipe()
    pid = os.fork()
    if pid:
        os.close(says)
        return said
    os.close(held)
    os.write(says, attempt(action).encode())
    os._exit(0)
"""
"""The lease of a process that hears of its being broken (SIGIO), and another process that tries something meanwhile."""

WAITS = {
    "open": "write('leased', 'new', 0)",
    "open and truncate": "write('leased', 'new', os.O_TRUNC)",
    "open or create": "write('leased', 'new', os.O_CREAT)",
    "open, no link": "write('leased', 'new', os.O_NOFOLLOW)",
    "through a link": "write('link', 'new', 0)",
    "truncate": "os.truncate('leased', 3)",
}


@pytest.mark.parametrize("waits", WAITS)
def test_who_writes_a_leased_file_waits_for_its_holder_and_nobody_else_does(world: World, waits: str) -> None:
    code = f"""
        {HELD.strip().replace(chr(10), chr(10) + " " * 8)}
        os.path.lexists('link') or os.symlink('leased', 'link')
        said = child(lambda: {WAITS[waits]})
        signal.sigwait([signal.SIGIO])
        write('meanwhile')  # the mediator answers
        print(os.stat('leased').st_size, read('leased').decode())
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        print(os.read(said, 64).decode(), read('leased').decode()[:3], os.stat('meanwhile').st_size)
    """
    with opened(world) as session:
        for _ in range(3):  # at first the mediator's own code opens, then the fast path
            lines = said(session.run(python(code), grant=Grant(write=["."]))).splitlines()
            assert lines == ["7 content", f"ok {'con' if waits == 'truncate' else 'new'} 1"]


def test_who_does_not_want_to_wait_for_a_lease_is_told_so(world: World) -> None:
    code = f"""
        {HELD.strip().replace(chr(10), chr(10) + " " * 8)}
        print(attempt(lambda: write('leased', 'new', os.O_NONBLOCK)), read('leased').decode())
        print(attempt(lambda: os.close(os.open('leased', os.O_RDONLY))))
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        print(attempt(lambda: write('leased', 'new', os.O_NONBLOCK)), read('leased').decode()[:3])
    """
    with opened(world) as session:
        assert said(session.run(python(code), grant=Grant(write=["."]))).splitlines() == [
            "EAGAIN content",
            "ok",
            "ok new",
        ]


def test_a_signal_ends_the_wait_for_a_lease(world: World) -> None:
    code = f"""
        {HELD.strip().replace(chr(10), chr(10) + " " * 8)}
        class Heard(Exception):
            pass
        def heard(*_):
            raise Heard
        def interrupted(action):
            signal.signal(signal.SIGUSR1, heard)
            try:
                action()
            except Heard:
                raise OSError(errno.EINTR, "") from None
        for action in (lambda: write('leased', 'new', 0), lambda: os.truncate('leased', 3)):
            up, says_up = os.pipe()
            said, says = os.pipe()
            pid = os.fork()
            if not pid:
                os.close(held)
                os.write(says, attempt(lambda: interrupted(action)).encode())
                os._exit(0)
            signal.sigwait([signal.SIGIO])
            os.kill(pid, signal.SIGUSR1)
            print(os.read(said, 64).decode(), read('leased').decode())
            # Broken by now: another one, for the next turn.
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    """
    with opened(world) as session:
        lines = said(session.run(python(code), grant=Grant(write=["."]))).splitlines()
        assert lines == ["EINTR content", "EINTR content"]


@pytest.mark.parametrize(
    ("action", "errno"),
    [
        ("os.truncate('directory', 0)", "EISDIR"),
        ("os.truncate('fifo', 0)", "EINVAL"),
        ("os.truncate('directory', -1)", "EINVAL"),
        ("os.truncate('file', -1)", "EINVAL"),
        ("os.truncate('none', 0)", "ENOENT"),
        ("os.truncate('read-only', 0)", "EACCES"),
        ("os.truncate('other/file', 0)", "EACCES"),
        ("os.truncate('file', 5)", "ok"),
    ],
)
def test_truncate_says_what_the_kernel_would(world: World, action: str, errno: str) -> None:
    (world.workspace / "other").mkdir()
    (world.workspace / "mine").mkdir()
    (world.workspace / "other" / "file").write_text("content")
    code = f"""
        os.chdir('mine')
        os.path.lexists('other') or os.symlink('../other', 'other')
        os.mkdir('directory')
        os.mkfifo('fifo')
        write('file')
        write('read-only')
        os.chmod('read-only', 0o444)
        print(attempt(lambda: {action}), os.stat('file').st_size)
    """
    with opened(world) as session:
        size = 5 if errno == "ok" else 1
        assert said(session.run(python(code), grant=Grant(write=["mine"]))) == f"{errno} {size}"
