"""The private interface of ``_ctypes`` that the kernel room rests on, on the running interpreter."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from remit.sandbox.kernel import call, files, memory
from remit.sandbox.kernel import spawn as spawning
from remit.sandbox.kernel.code import executable
from remit.sandbox.kernel.spawn import spawn


def test_result_and_errno() -> None:
    assert call.call(call.NR["getpid"]) == os.getpid()
    with pytest.raises(OSError, match="system call") as caught:
        call.call(call.NR["close"], 1 << 20)
    assert caught.value.errno == errno.EBADF


def test_seventh_argument_is_not_left_to_chance() -> None:
    text = b"a string in this very process\0"
    for _ in range(200):
        assert memory.read(os.getpid(), call.address(text), 8) == b"a string"


def test_strings_stop_at_their_end_and_at_the_limit() -> None:
    text = b"x" * 5000 + b"\0"
    assert memory.read_string(os.getpid(), call.address(text), 6000) == text[:-1]
    with pytest.raises(OSError, match="path") as caught:
        memory.read_string(os.getpid(), call.address(text))
    assert caught.value.errno == errno.ENAMETOOLONG
    with pytest.raises(OSError, match="system call") as caught:
        memory.read_string(os.getpid(), 8)
    assert caught.value.errno == errno.EFAULT


def test_buffers_are_written_by_the_kernel() -> None:
    buffer = call.Buffer(8)
    read, write = os.pipe()
    os.write(write, b"12345678")
    assert call.call(call.NR["read"], read, buffer.address, 8) == 8
    assert bytes(buffer.view) == b"12345678"
    os.close(read)
    os.close(write)


def test_a_missing_libc_function_is_an_error_not_a_crash() -> None:
    assert not call.has_libc("no_such_function_in_any_libc")
    with pytest.raises(OSError, match="no_such_function"):
        call.libc_call("no_such_function_in_any_libc")


def test_openat2_refuses_links_on_request(tmp_path: os.PathLike[str]) -> None:
    target, link = os.fspath(tmp_path) + "/target", os.fspath(tmp_path) + "/link"
    with open(target, "w") as file:
        file.write("x")
    os.symlink(target, link)
    os.close(files.openat2(call.AT_FDCWD, link.encode(), os.O_RDONLY | os.O_CLOEXEC))
    with pytest.raises(OSError, match="system call") as caught:
        files.openat2(call.AT_FDCWD, link.encode(), os.O_RDONLY | os.O_CLOEXEC, 0, files.RESOLVE_NO_SYMLINKS)
    assert caught.value.errno == errno.ELOOP


@pytest.fixture(params=["our own", "libc's"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to start a program."""
    if request.param == "our own":
        assert executable(spawning.CODE.get(call.MACHINE, b"")) is not None
    else:
        monkeypatch.setattr(spawning, "_machine", [None])
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_spawn_has_a_directory_an_environment_a_group_and_default_signals(tmp_path: os.PathLike[str]) -> None:
    read, write = os.pipe()
    script = b'pwd; echo "$A"; ps -o pgid= -p $$ 2>/dev/null || echo $$; kill -PIPE $$; echo not reached'
    previous = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        pid = spawn(
            b"/bin/sh",
            [b"sh", b"-c", script],
            [b"A=b c", b"PATH=/usr/bin:/bin"],
            directory=os.fsencode(tmp_path),
            descriptors=(0, write, 2),
            new_group=True,
        )
    finally:
        signal.signal(signal.SIGPIPE, previous)
    os.close(write)
    _, status = os.waitpid(pid, 0)
    lines = os.read(read, 4096).decode().splitlines()
    os.close(read)
    assert lines[:2] == [os.path.realpath(tmp_path), "b c"]
    assert int(lines[2]) == pid
    assert len(lines) == 3
    assert os.WTERMSIG(status) == signal.SIGPIPE


@pytest.mark.usefixtures("way")
def test_spawn_places_descriptors_and_leaves_the_masked_signals_behind() -> None:
    """The same number twice, one that stays, and one that is closed on exec elsewhere."""
    read, write = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    script = b"grep -E '^Sig(Blk|Ign)' /proc/self/status; test /dev/fd/1 -ef /dev/fd/2 && echo same; ps -o sid= -p $$"
    try:
        pid = spawn(
            b"/bin/sh",
            [b"sh", b"-c", script],
            [b"PATH=/usr/bin:/bin"],
            directory=b"/",
            descriptors=(0, write, write),
            new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(write)
    os.waitpid(pid, 0)
    with open(read) as file:
        lines = file.read().split("\n")
    assert [int(line.split()[1], 16) for line in lines[:2]] == [0, 0]
    assert lines[2:] == ["same", lines[3], ""]
    assert int(lines[3]) == pid


@pytest.mark.usefixtures("way")
def test_spawn_gives_a_new_session_its_terminal() -> None:
    ours, theirs = os.openpty()
    name = os.ttyname(theirs).encode()
    pid = spawn(
        b"/bin/sh",
        [b"sh", b"-c", b"ps -o tty=,tpgid= -p $$"],
        [b"PATH=/usr/bin:/bin"],
        directory=b"/",
        descriptors=(theirs, theirs, theirs),
        new_session=True,
        terminal=name,
    )
    os.waitpid(pid, 0)
    os.close(theirs)
    tty, group = os.read(ours, 4096).split()
    os.close(ours)
    assert (b"/dev/" + tty, int(group)) == (name, pid)


@pytest.mark.usefixtures("way")
def test_spawn_reports_what_stopped_it() -> None:
    with pytest.raises(OSError, match="spawn") as caught:
        spawn(b"/no/such/program", [b"x"], [], directory=b"/")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(OSError, match="spawn") as caught:
        spawn(b"/etc/passwd", [b"x"], [], directory=b"/")
    assert caught.value.errno == errno.EACCES


def test_quick_passes_what_fits_a_c_int_whole(tmp_path: Path) -> None:
    """Negative numbers too: -100 is AT_FDCWD, and half a register of it would be another descriptor."""
    made = call.quick(call.NR["openat"], call.AT_FDCWD, f"{tmp_path}/made".encode(), os.O_CREAT | os.O_WRONLY, 0o640)
    os.close(made)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o640
    with pytest.raises(OSError, match="system call") as caught:
        call.quick(call.NR["openat"], -1, b"made", os.O_RDONLY, 0)
    assert caught.value.errno == errno.EBADF


def test_a_string_longer_than_the_first_look_is_read_whole() -> None:
    for length in (0, 255, 256, 257, 4094, 4095):
        text = b"x" * length
        assert memory.read_string(os.getpid(), call.address(text)) == text
    with pytest.raises(OSError, match="path") as caught:
        memory.read_string(os.getpid(), call.address(b"x" * 4096))
    assert caught.value.errno == errno.ENAMETOOLONG


def test_a_start_keeps_the_memory_that_it_frees() -> None:
    """Two arms: a block of 8 MiB goes back to the kernel, or stays."""
    code = """
import sys
sys.path.append(sys.argv[1])
from remit.sandbox.kernel import call, files
resident = lambda: int(files.read("/proc/self/statm").split()[1])
if len(sys.argv) > 2:
    call.keep_memory()
before = resident()
block = b"x" * (8 << 20)
del block
print((resident() - before) * 4096 > 4 << 20)
"""
    root = str(Path(call.__file__).parents[3])
    argv = [sys.executable, "-I", "-S", "-c", code, root]
    said = [
        subprocess.run([*argv, *more], capture_output=True, text=True, check=True).stdout for more in ([], ["keep"])
    ]
    assert said == ["False\n", "True\n" if call.has_libc("mallopt") else "False\n"]
