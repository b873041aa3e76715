"""The fast path answers what is beyond question as the kernel would, and leaves everything else untouched."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import socket
import stat
import sys
import time
from collections.abc import Iterator
from errno import EACCES, EEXIST, EISDIR, EMFILE, ENOENT, ENOTDIR, ENOTEMPTY, EPERM
from pathlib import Path
from typing import Any

import pytest

from remit.sandbox.kernel.call import NR
from remit.sandbox.kernel.fastpath import Others
from remit.sandbox.kernel.placement import Placement
from tests.kernel.fastpath_harness import Session, caller

pytestmark = pytest.mark.kernel
_libc = ctypes.CDLL(None, use_errno=True)
_kept: list[mmap.mmap] = []


def raw(name: str, *arguments: Any) -> int:
    """A system call as it is, in the caller."""
    result: int = _libc.syscall(NR[name], *arguments)
    return result if result >= 0 else -ctypes.get_errno()


def write(path: str, flags: int, text: bytes, mode: int = 0o666, at: int | None = None) -> tuple[int, int]:
    """(what fcntl says of the descriptor, how far it is) after writing."""
    import fcntl

    descriptor = os.open(path, flags, mode, dir_fd=at)
    os.write(descriptor, text)
    result = fcntl.fcntl(descriptor, fcntl.F_GETFL), fcntl.fcntl(descriptor, fcntl.F_GETFD)
    os.close(descriptor)
    return result


@pytest.fixture
def top(tmp_path: Path) -> Path:
    root = tmp_path / "w"
    (root / "d" / "e").mkdir(parents=True)
    (root / ".git" / "objects").mkdir(parents=True)
    (root / "f").write_text("old")
    os.symlink("d", root / "to-d")
    os.symlink("f", root / "to-f")
    (tmp_path / "beside").mkdir()
    return root


@pytest.fixture
def placement() -> Placement | None:
    """Of a kernel, or a machine, that does not let choose where a caller wakes up."""
    return None


@pytest.fixture
def session(top: Path, placement: Placement | None) -> Iterator[Session]:
    with caller(top, prepare=lambda: os.umask(0o027)) as process:
        before = os.umask(0o027)
        found = Session(process, top, placement)
        try:
            yield found
        finally:
            os.umask(before)
            found.close()


def names(events: list[Any]) -> list[tuple[int, tuple[bytes, ...]]]:
    return [(errno, paths) for _, _, _, errno, paths, _, _ in events]


@pytest.mark.parametrize("placement", [None, Placement()], ids=["anywhere", "where the mediator is"])
def test_what_is_made_opened_linked_moved_and_removed(session: Session, top: Path) -> None:
    place = os.fsencode(top)
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    done, (flags, kept), events = session.call(write, f"{top}/d/new", new, b"x")
    assert done
    assert names(events) == [(0, (place + b"/d/new",))]
    assert flags & os.O_ACCMODE == os.O_WRONLY
    assert kept == 1
    assert (top / "d/new").read_text() == "x"
    assert stat.S_IMODE((top / "d/new").stat().st_mode) == 0o640
    assert events[0][1] == session.caller.pid

    done, (flags, _), events = session.call(write, "d/new", os.O_RDWR | os.O_APPEND, b"y")  # by its working directory
    assert done
    assert names(events) == [(0, (place + b"/d/new",))]
    assert flags & os.O_APPEND
    assert not flags & os.O_NONBLOCK
    assert (top / "d/new").read_text() == "xy"

    for function, arguments, paths in (
        (os.mkdir, (f"{top}/m", 0o777), [b"/m"]),
        (os.link, (f"{top}/f", "d/e/g"), [b"/d/e/g", b"/f"]),
        (os.rename, (f"{top}/d/e/g", f"{top}/m/h"), [b"/d/e/g", b"/m/h"]),
        (os.unlink, ("m/h",), [b"/m/h"]),
        (os.rmdir, (f"{top}/m",), [b"/m"]),
        (os.truncate, (f"{top}/f", 0), None),  # not one of its calls
    ):
        done, value, events = session.call(function, *arguments)
        assert (done, value) == ((True, None) if paths else (False, -EPERM)), function
        assert names(events) == ([(0, tuple(place + path for path in paths))] if paths else []), function
    assert sorted(os.listdir(top)) == [".git", "d", "f", "to-d", "to-f"]
    assert (top / "f").stat().st_nlink == 1
    assert os.listdir(top / "d/e") == []


def test_by_a_descriptor_of_the_callers(session: Session, top: Path) -> None:
    done, directory, _ = session.call(os.open, f"{top}/d", os.O_RDONLY | os.O_CREAT | os.O_DIRECTORY)
    assert not done
    assert directory == -EPERM
    session.caller.start(os.open, f"{top}/d", os.O_PATH)  # goes to no mediator
    directory = session.caller.result()
    done, _, events = session.call(write, "e/new", os.O_WRONLY | os.O_CREAT, b"", 0o600, directory)
    assert done
    assert names(events) == [(0, (os.fsencode(top) + b"/d/e/new",))]
    assert (top / "d/e/new").exists()


@pytest.mark.parametrize(
    ("function", "arguments", "errno"),
    [
        (os.open, ("f", os.O_WRONLY | os.O_CREAT | os.O_EXCL), EEXIST),
        (os.mkdir, ("d",), EEXIST),
        (os.unlink, ("d/none",), ENOENT),
        (os.rmdir, ("d",), ENOTEMPTY),
        (os.rmdir, ("f",), ENOTDIR),
        (os.link, ("f", "d"), EEXIST),
        (os.rename, ("f", "d/e"), EISDIR),
        (raw, ("unlink", b"d"), EISDIR),
    ],
)
def test_errors_are_the_kernels(session: Session, function: Any, arguments: Any, errno: int) -> None:
    done, value, events = session.call(function, *arguments)
    assert done
    assert value == -errno
    assert [found for found, _ in names(events)] == [errno]


MAKES = os.O_WRONLY | os.O_CREAT
LEAVES = [
    pytest.param(os.open, ("d/secret.txt", MAKES), id="a name that rules end in"),
    pytest.param(os.open, ("d/hooks/x", MAKES), id="below such a name"),
    pytest.param(os.mkdir, ("hooks",), id="making such a name"),
    pytest.param(os.rename, ("f", "hooks"), id="moving to such a name"),
    pytest.param(os.link, ("f", "d/hooks"), id="linking as such a name"),
    pytest.param(os.link, (".git/config", "g"), id="linking what lies below such a name"),
    pytest.param(os.open, (".git/objects/x", MAKES), id="a directory that nobody said is free"),
    pytest.param(os.open, ("d/../f", os.O_WRONLY), id="dot dot"),
    pytest.param(os.open, ("./f", os.O_WRONLY), id="dot"),
    pytest.param(os.open, ("d//f", MAKES), id="two slashes"),
    pytest.param(os.mkdir, ("m/",), id="a slash behind"),
    pytest.param(os.mkdir, ("",), id="no name"),
    pytest.param(os.mkdir, (".",), id="dot alone"),
    pytest.param(os.open, ("to-d/x", MAKES), id="a link on the way"),
    pytest.param(os.open, ("to-f", os.O_WRONLY), id="a link at the end"),
    pytest.param(os.mkdir, ("to-d/x",), id="making behind a link"),
    pytest.param(os.unlink, ("to-d/e",), id="removing behind a link"),
    pytest.param(os.link, ("to-f", "g"), id="linking a link"),
    pytest.param(os.rename, ("to-f", "g"), id="moving a link"),
    pytest.param(os.rename, ("d", "m"), id="moving a directory"),
    pytest.param(os.rename, ("to-d/e", "m"), id="moving from behind a link"),
    pytest.param(os.open, ("../beside/x", MAKES), id="out of the root"),
    pytest.param(os.open, ("{top}/../beside/x", MAKES), id="out of the root by its path"),
    pytest.param(os.open, ("{top}side/x", MAKES), id="a root is no prefix of its neighbour"),
    pytest.param(os.open, ("/proc/self/cwd/x", MAKES), id="a magic link"),
    *[
        pytest.param(raw, ("execve", path, None, None), id=f"executing {path[:20]!r}")
        for path in (
            b"sh",
            b"bin/sh",
            b"/",
            b"",
            b"/bin/",
            b"/bin//sh",
            b"/bin/./sh",
            b"/bin/sh/.",
            b"/bin/../bin/sh",
            b"/bin/s..h",
            b"/proc",
            b"/proc/self/exe",
            b"/" + b"x" * 255,
        )
    ],
    pytest.param(raw, ("execveat", -100, b"/bin/sh", None, None, 0), id="execveat"),
    pytest.param(os.open, ("x", MAKES, 0o4755), id="setuid"),
    pytest.param(os.open, (".", os.O_RDWR | os.O_TMPFILE), id="an unnamed file"),
    pytest.param(os.open, ("f", os.O_WRONLY | os.O_DIRECT), id="a flag that it does not know"),
    pytest.param(os.open, ("f", os.O_RDONLY | os.O_CREAT), id="what is there, to be read"),
    pytest.param(os.rename, ("f", "{top}/f"), id="moving to itself"),
    pytest.param(os.open, ("none/x", MAKES), id="no such directory"),
    pytest.param(os.open, ("d", os.O_WRONLY), id="a directory"),
    pytest.param(os.open, ("x" * 300, MAKES), id="a long name"),
    pytest.param(os.open, ("/".join(["y" * 50] * 5), MAKES), id="a long path"),
    pytest.param(raw, ("mkdir", None, 0o755), id="no address"),
    pytest.param(raw, ("unlink", 1), id="a bad address"),
    pytest.param(raw, ("unlinkat", -100, b"f", 0x1000), id="a flag of unlinkat"),
    pytest.param(raw, ("linkat", -100, b"f", -100, b"g", 0x400), id="a flag of linkat"),
    pytest.param(raw, ("renameat2", -100, b"f", -100, b"d", 2), id="exchange"),
    pytest.param(raw, ("mkdirat", 77, b"m", 0o755), id="no such descriptor"),
    pytest.param(raw, ("mkdirat", -3, b"m", 0o755), id="no descriptor"),
    pytest.param(raw, ("symlink", b"f", b"g"), id="a symbolic link"),
]


def seen(directory: Path) -> list[tuple[str, int, int]]:
    return sorted(
        (str(path), status.st_mode, status.st_nlink) for path in directory.rglob("*") for status in [path.lstat()]
    )


@pytest.mark.parametrize(("function", "arguments"), LEAVES)
def test_what_is_in_question_is_left_with_nothing_done(
    session: Session, top: Path, function: Any, arguments: Any
) -> None:
    (top / ".git/config").write_text("")
    filled = [part.format(top=top) if isinstance(part, str) else part for part in arguments]
    before = seen(top.parent)
    assert session.call(function, *filled) == (False, -EPERM, [])
    assert seen(top.parent) == before


def test_the_same_is_answered_where_it_is_no_question(session: Session, top: Path) -> None:
    """The other arm: said to be free, an extraordinary name is on the way like any other."""
    session.allow(top / ".git")
    assert session.call(os.open, ".git/objects/x", MAKES)[0]
    assert not session.call(os.open, ".git/hooks", MAKES)[0]
    session.allow(top / ".git/hooks")
    (top / ".git/hooks").mkdir()
    assert session.call(os.open, ".git/hooks/x", MAKES)[0]


def test_who_is_not_known_is_introduced_once(session: Session, top: Path) -> None:
    pid = session.caller.pid
    start = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    for forget in (session.fast.forget_all, lambda: session.fast.forget(pid), lambda: session.fast.know(pid + 64)):
        forget()
        done, _, events = session.call(os.mkdir, "m")
        assert done
        assert [(who, started) for *_, who, started in events] == [
            (os.fsencode(os.path.realpath(sys.executable)), start)
        ]
        done, _, events = session.call(os.rmdir, "m")
        assert done
        assert [(who, started) for *_, who, started in events] == [(b"", 0)]


@pytest.fixture
def elsewhere(session: Session, tmp_path: Path) -> Iterator[Path]:
    """A directory that is no place of the mediator's, with a link into its root, and one to a directory in itself."""
    place = tmp_path / "elsewhere"
    (place / "sub").mkdir(parents=True)
    (place / "old").touch()
    os.symlink(session.root, place / "into")
    os.symlink(session.root / "f", place / "to-f")
    os.symlink("sub", place / "to-sub")
    anchor = os.open(place, os.O_PATH)
    session.fast.allow(os.fsencode(place), anchor, len(os.fsencode(place)) + 1, elsewhere=True)
    yield place
    os.close(anchor)


def test_what_is_elsewhere_the_kernel_performs(session: Session, elsewhere: Path) -> None:
    """With the caller's own umask: it does not matter whether the mediator knows that."""
    place = os.fsencode(elsewhere)
    new = os.O_RDWR | os.O_CREAT | os.O_EXCL
    for function, arguments, paths in (
        (write, (f"{elsewhere}/new", new, b"x"), [b"/new"]),
        (write, (f"{elsewhere}/new", os.O_WRONLY, b"y"), [b"/new"]),
        (write, (f"{elsewhere}/sub/new", new, b"x"), [b"/sub/new"]),
        (os.mkdir, (f"{elsewhere}/m",), [b"/m"]),
        (os.rename, (f"{elsewhere}/new", f"{elsewhere}/m/to"), [b"/new", b"/m/to"]),
        (os.unlink, (f"{elsewhere}/m/to",), [b"/m/to"]),
        (os.unlink, (f"{elsewhere}/to-f",), [b"/to-f"]),
        (os.rmdir, (f"{elsewhere}/m",), [b"/m"]),
    ):
        done, value, events = session.call(function, *arguments, as_started=False)
        assert done, function
        assert not isinstance(value, int) or value >= 0
        assert names(events) == [(-1, tuple(place + path for path in paths))]
    assert sorted(os.listdir(elsewhere)) == ["into", "old", "sub", "to-sub"]
    assert (elsewhere / "sub/new").read_text() == "x"
    assert session.call(os.rmdir, f"{elsewhere}/none")[:2] == (True, -ENOENT)


def test_what_leads_back_from_there_is_left(session: Session, elsewhere: Path, top: Path) -> None:
    before = seen(top.parent)
    for function, arguments in (
        (os.open, (f"{elsewhere}/to-f", os.O_WRONLY)),
        (os.open, (f"{elsewhere}/into/x", MAKES)),
        (os.open, (f"{elsewhere}/to-sub/x", MAKES)),
        (os.mkdir, (f"{elsewhere}/into/m",)),
        (os.unlink, (f"{elsewhere}/into/f",)),
        (os.rename, (f"{elsewhere}/old", f"{top}/g")),
        (os.rename, (f"{top}/f", f"{elsewhere}/f")),
        (os.rename, (f"{elsewhere}/old", f"{elsewhere}/into/g")),
        (os.rename, (f"{elsewhere}/into/f", f"{elsewhere}/g")),
        (os.link, (f"{elsewhere}/old", f"{top}/g")),
        (os.link, (f"{top}/f", f"{elsewhere}/g")),
        (os.link, (f"{elsewhere}/old", f"{elsewhere}/g")),
        (os.open, (f"{elsewhere}/../w/f", os.O_WRONLY)),
        (os.open, (f"{elsewhere}/none/x", MAKES)),
    ):
        assert session.call(function, *arguments) == (False, -EPERM, []), (function, arguments)
    assert seen(top.parent) == before


def test_a_full_table_still_knows_what_is_elsewhere(session: Session, elsewhere: Path, top: Path) -> None:
    for number in range(100):
        session.allow(top / f"d{number}")
    assert session.call(os.mkdir, f"{elsewhere}/m")[0]
    assert names(session.call(os.rmdir, f"{elsewhere}/m")[2])[0][0] == -1


def executes(*argv: str) -> int:
    """The status of a child that executes it."""
    pid = os.fork()
    if not pid:
        try:
            os.execv(argv[0], argv)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("placement", [None, Placement()], ids=["anywhere", "where the mediator is"])
def test_what_is_executed_goes_on_and_is_told(session: Session, tmp_path: Path) -> None:
    tool = tmp_path / ".hidden"
    os.symlink("/bin/sh", tool)
    done, status, events = session.call(executes, str(tool), "-c", "exit 7")
    assert (done, status) == (True, 7)
    ((when, pid, nr, errno, paths, program, start),) = events
    assert (nr, errno, paths) == (NR["execve"], -1, (os.fsencode(os.path.realpath("/bin/sh")),))
    assert pid != session.caller.pid
    # Who executes it: the child, while it was what it is a copy of.
    assert program == os.fsencode(os.path.realpath(sys.executable))
    parents = int(Path(f"/proc/{session.caller.pid}/stat").read_text().rpartition(")")[2].split()[19])
    assert parents <= start <= time.clock_gettime(time.CLOCK_BOOTTIME) * 100
    assert 0 < time.monotonic() - when < 60


def test_what_is_not_there_is_executed_by_nobody(session: Session, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    for there, result in ((False, ENOENT), (True, EACCES)):
        done, value, events = session.call(raw, "execve", os.fsencode(tool), None, None)
        assert (done, value) == (True, -result)
        assert names(events) == [(-1, (os.fsencode(tool) if there else b"",))]
        tool.touch(mode=0o644)
        # It may have become another program: its next call says which.
        done, _, events = session.call(os.mkdir, "m")
        assert [program for *_, program, _ in events] == [os.fsencode(os.path.realpath(sys.executable))]
        assert session.call(os.rmdir, "m")[2][0][5] == b""


@pytest.mark.needs(ordinary=True)
def test_what_may_not_be_seen_is_told_by_its_spelling(session: Session, tmp_path: Path) -> None:
    """It counts as a denial where nothing grants it."""
    tool = tmp_path / "closed" / "tool"
    tool.parent.mkdir(mode=0)
    done, value, events = session.call(raw, "execve", os.fsencode(tool), None, None)
    assert (done, value) == (True, -EACCES)
    assert names(events) == [(-1, (os.fsencode(tool),))]


def test_devices_are_the_kernels_and_nobody_hears_of_them(session: Session) -> None:
    session.fast.forget_all()
    assert session.call(write, "/dev/null", os.O_WRONLY, b"x")[::2] == (True, [])
    assert session.call(write, "/dev/zero", os.O_WRONLY, b"x") == (False, -EPERM, [])
    assert session.call(os.unlink, "/dev/null") == (False, -EPERM, [])  # nothing but opening it
    assert session.call(os.mkdir, "m")[2][0][5]  # still not introduced


def test_whose_umask_is_another_is_left_where_something_would_be_made(session: Session, top: Path) -> None:
    pid = session.caller.pid
    calls: list[tuple[Any, tuple[Any, ...]]] = [(os.mkdir, ("m",)), (os.open, ("x", MAKES)), (os.open, ("f", MAKES))]
    for function, arguments in calls:
        assert session.call(function, *arguments, as_started=False) == (False, -EPERM, [])
    assert session.call(os.open, "f", os.O_WRONLY, as_started=False)[0]
    session.fast.know_umask(pid)
    assert session.call(os.mkdir, "m", as_started=False)[0]
    assert stat.S_IMODE((top / "m").stat().st_mode) == 0o750
    session.fast.forget_umasks()
    assert not session.call(os.mkdir, "n", as_started=False)[0]
    assert session.call(os.rmdir, "m", as_started=False)[0]  # still known


def test_a_full_table_of_descriptors_leaves_no_file(top: Path) -> None:
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        while True:
            try:
                os.dup(2)
            except OSError:
                os.close(63)  # the filter's listener passes through here
                return

    with caller(top, prepare=fill) as process:
        process.start(os.dup, 2)
        process.result()
        session = Session(process, top)
        try:
            done, value, events = session.call(os.open, "x", MAKES)
            assert done
            assert value == -EMFILE
            assert names(events) == [(EMFILE, (os.fsencode(top) + b"/x",))]
            assert not (top / "x").exists()
            assert session.call(os.open, "f", os.O_WRONLY)[1] == -EMFILE
            assert (top / "f").exists()
        finally:
            session.close()


def test_a_fifo_is_left(session: Session, top: Path) -> None:
    os.mkfifo(top / "p")
    assert session.call(os.open, "p", os.O_WRONLY) == (False, -EPERM, [])


def at_the_end_of_a_page(beyond: int, terminated: bool) -> int:
    """mkdir of a name that ends so many bytes beyond a page, after which nothing is mapped."""
    size = 4096
    memory = mmap.mmap(-1, 3 * size)
    _kept.append(memory)  # freed, it would take with it whatever came into the hole
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    last = address + (2 * size if beyond > 0 else size)
    assert raw("munmap", ctypes.c_void_p(last), ctypes.c_size_t(address + 3 * size - last)) == 0
    text = b"d/page" + (b"\0" if terminated else b"")
    where = address + size + beyond - len(text)
    ctypes.memmove(where, text, len(text))
    return raw("mkdir", ctypes.c_void_p(where), 0o755)


def test_names_at_the_end_of_a_page(session: Session, top: Path) -> None:
    for beyond, terminated, answered in ((0, True, True), (3, True, True), (0, False, False)):
        done, value, _ = session.call(at_the_end_of_a_page, beyond, terminated)
        assert (done, value) == ((True, 0) if answered else (False, -EPERM))
        assert (top / "d/page").is_dir() == answered
        if answered:
            (top / "d/page").rmdir()


def many(count: int) -> list[int]:
    """Errors of making and removing, and at the end of what is left."""
    found: list[int] = []
    for i in range(count):
        for function in (os.mkdir, os.rmdir):
            try:
                function(f"d/{i}")
            except OSError as error:
                found.append(error.errno or 0)
    try:
        os.mkdir("hooks")
    except OSError as error:
        found.append(error.errno or 0)
    return found


def test_it_goes_on_until_there_is_something_else(session: Session) -> None:
    mine, other = socket.socketpair()
    with mine, other:
        others = Others([mine.fileno()])
        session.caller.start(many, 20)
        fd = session.caller.listener.fd
        answers = [session.fast.step(fd, others, as_started=True)]
        events = [*session.fast.events()]
        # Whatever interrupts it, the events come in order, each once.
        while answers[-1] == 1:
            answers.append(session.fast.step(fd, others, as_started=True))
            events += session.fast.events()
        assert answers[-1] == 0
        assert len(answers) < 41  # how often depends on who else is there: some step answered two calls
        session.caller.listener.reply(session.fast.notification()[0], error=EPERM)
        assert session.caller.result() == [EPERM]
        assert [path.rpartition(b"/")[2] for event in events for path in event[4]] == [
            b"%d" % i for i in range(20) for _ in range(2)
        ]
        assert [event[0] for event in events] == sorted(event[0] for event in events)
        # Something to read elsewhere: after one call it comes back.
        other.send(b"x")
        session.caller.start(many, 1)
        assert session.fast.step(fd, others, as_started=True) == 1
        assert len([*session.fast.events()]) == 1
        assert session.fast.step(fd, others, as_started=True) == 1
        assert session.fast.step(fd, None, as_started=True) == 0
        session.caller.listener.reply(session.fast.notification()[0], error=EPERM)
        session.caller.result()


def test_it_stops_where_events_would_be_lost(session: Session) -> None:
    others = Others([])
    session.caller.start(many, 200)
    fd = session.caller.listener.fd
    told = 0
    while session.fast.step(fd, others, as_started=True) == 1:
        found = len([*session.fast.events()])
        assert 0 < found <= 32
        told += found
    told += len([*session.fast.events()])
    session.caller.listener.reply(session.fast.notification()[0], error=EPERM)
    assert session.caller.result() == [EPERM]
    assert told == 400


def test_more_directories_than_it_remembers(session: Session, top: Path) -> None:
    for i in range(100):
        (top / f"hooks/{i}").mkdir(parents=True)
        session.allow(top / f"hooks/{i}")
    assert session.fast.allowed(os.fsencode(top / "hooks/99"))
    assert not session.fast.allowed(os.fsencode(top))
    assert session.call(os.mkdir, "hooks/99/m")[0]
    assert not session.call(os.mkdir, "m")[0]  # forgotten: nothing but slow
    session.allow(top)
    assert session.call(os.mkdir, "m")[0]
    session.allow(top / ("z" * 240))  # too long for the table
    assert not session.fast.allowed(os.fsencode(top / ("z" * 240)))
