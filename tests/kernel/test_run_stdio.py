"""Standard descriptors, inherited descriptors, the environment, and what the caller holds in memory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.kernel.run_harness import PYTHON, TIMEOUT, World, descendants, first_line

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=2)]

SECRET = "planted-secret-4711"
O_PATH = getattr(os, "O_PATH", 0o10000000)


def test_stdin_stdout_and_stderr_are_the_commands(world: World) -> None:
    result = world.run("sh", "-c", "cat; echo err >&2", stdin="through\n")

    assert (result.status, result.stdout, result.stderr) == (0, "through\n", "err\n")


@pytest.mark.slow
def test_100_mb_through_stdin_and_stdout_unchanged(world: World) -> None:
    make = (
        "import random, sys\nr = random.Random(1)\nfor _ in range(100): sys.stdout.buffer.write(r.randbytes(1000000))"
    )
    check = (
        "import random, sys\nr = random.Random(1)\n"
        "same = all(sys.stdin.buffer.read(1000000) == r.randbytes(1000000) for _ in range(100))\n"
        "print(same, sys.stdin.buffer.read(1))"
    )
    with (
        subprocess.Popen([PYTHON, "-c", make], stdout=subprocess.PIPE) as source,
        subprocess.Popen(
            world.run_argv(["cat"]), stdin=source.stdout, stdout=subprocess.PIPE, env=world.env(), cwd=world.workspace
        ) as session,
    ):
        checked = subprocess.run(
            [PYTHON, "-c", check], stdin=session.stdout, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )

    assert checked.stdout == "True b''\n"
    assert session.returncode == 0


def test_100_mb_from_a_file_to_a_file(world: World) -> None:
    source, target = world.base / "source", world.base / "target"
    with source.open("wb") as file:
        file.truncate(100_000_000)
    with source.open("rb") as stdin, target.open("wb") as stdout:
        done = subprocess.run(
            world.run_argv(["cat"]), stdin=stdin, stdout=stdout, env=world.env(), cwd=world.workspace, check=False
        )

    assert done.returncode == 0
    assert target.stat().st_size == 100_000_000


def test_a_reader_that_leaves_ends_the_writer_as_without_remit(world: World) -> None:
    script = 'yes | head -n 1; echo "${PIPESTATUS[0]}"'

    assert world.run("bash", "-c", script).lines == ["y", "141"]


def test_invariant_8_a_regular_file_as_stdin_cannot_be_written_or_chmodded(world: World) -> None:
    data = world.home / "data"
    data.write_text("unchanged")
    data.chmod(0o600)
    code = """
    import os, errno
    def attempt(action):
        try: action()
        except OSError as error: return errno.errorcode[error.errno]
        return "ok"
    print(attempt(lambda: os.write(os.open("/proc/self/fd/0", os.O_WRONLY), b"changed")))
    print(attempt(lambda: os.open("/dev/stdin", os.O_RDWR)))
    print(attempt(lambda: os.fchmod(0, 0o777)))
    print(attempt(lambda: os.chmod("/proc/self/fd/0", 0o777)))
    print(attempt(lambda: os.ftruncate(0, 0)))
    print(attempt(lambda: os.link("/proc/self/fd/0", "here", follow_symlinks=True)))
    print(os.read(0, 100).decode())
    """
    import textwrap

    def run(argv: list[str]) -> list[str]:
        with data.open("rb") as stdin:
            done = subprocess.run(
                argv, stdin=stdin, capture_output=True, text=True, env=world.env(), cwd=world.workspace, check=False
            )
        assert done.returncode == 0, done
        return done.stdout.splitlines()

    program = [PYTHON, "-c", textwrap.dedent(code)]
    inside = run(world.run_argv(program))
    content, mode = data.read_text(), data.stat().st_mode & 0o777
    outside = run(program)

    assert inside[-1] == "unchanged"
    assert "ok" not in inside, inside
    assert (content, mode) == ("unchanged", 0o600)
    assert outside[:4] == ["ok"] * 4  # the control: without Remit a read-only descriptor is not read-only


CHANGES = """
import os, errno, sys
which = int(sys.argv[1])
def attempt(action):
    try: action()
    except OSError as error: return errno.errorcode[error.errno]
    return "ok"
name = f"/proc/self/fd/{which}"
with open("seen", "w") as seen:
    print(
        attempt(lambda: os.fchmod(which, 0o666)),
        attempt(lambda: os.chmod(name, 0o666)),
        attempt(lambda: os.utime(which, (1, 1))),
        attempt(lambda: os.utime(name, (1, 1))),
        attempt(lambda: os.setxattr(which, "user.x", b"1")),
        attempt(lambda: os.setxattr(name, "user.x", b"1")),
        attempt(lambda: os.chown(which, os.getuid(), os.getgid())),
        file=seen,
    )
if sys.argv[2:]:
    raise SystemExit
with open("seen", "a") as seen:
    private = os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.fchmod(private, 0o644)
    path = "/tmp/own"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    os.chmod(path, 0o604)
    kept = os.open(path, os.O_RDONLY)
    os.fchmod(kept, 0o640)
    os.link(path, path + "2")
    os.unlink(path)
    os.fchmod(kept, 0o644)
    os.mkdir("/tmp/d")
    inner = os.open("/tmp/d/f", os.O_CREAT | os.O_WRONLY, 0o600)
    os.symlink("f", "/tmp/d/l")
    os.utime("/tmp/d/l", (1, 1), follow_symlinks=False)
    os.chmod("/tmp/d", 0)
    os.fchmod(inner, 0o644)
    for end in os.pipe():
        os.fchmod(end, 0o600)
    print("own", file=seen)
os.write(1, b"x")
"""


@pytest.mark.parametrize("how", ["rb", "r+b"])
@pytest.mark.parametrize("which", [1, 2])
def test_invariant_8_a_file_as_an_output_keeps_its_mode_and_times(world: World, which: int, how: str) -> None:
    """It is the host's, on no mount of the session's. What is the session's own is changed as without Remit."""
    data = world.home / "data"
    data.write_text("unchanged")
    data.chmod(0o600)
    os.utime(data, (1000, 1000))
    before = data.stat()

    def run(argv: list[str]) -> list[str]:
        with data.open(how) as file, open(os.devnull, "r+b") as null:
            out, err = (file, null) if which == 1 else (null, file)
            subprocess.run(
                argv, stdin=null, stdout=out, stderr=err, env=world.env(), cwd=world.workspace, check=how == "r+b"
            )
        return (world.workspace / "seen").read_text().split()

    program = [PYTHON, "-c", CHANGES, str(which)]
    inside = run(world.run_argv(program))
    after = data.stat()
    # Who may write a file may set its times and attributes: those are not asked about (``compile.syscalls``).
    others = ["EROFS"] * 4
    if how == "r+b":
        # Through the host's own mount of it, root's file is not that of who the session runs as.
        others = ["EPERM", "EPERM", "EACCES", "EACCES"] if os.geteuid() == 0 else ["ok"] * 4
    assert inside == ["EROFS", "EROFS", *others, "EROFS", "own"]
    assert after.st_mode == before.st_mode
    if how == "rb":
        assert (after.st_mtime, os.listxattr(data), data.read_text()) == (before.st_mtime, [], "unchanged")
    assert run([*program, "outside"])[0] == "ok"  # the control


@pytest.mark.parametrize("kind", ["directory", "place", "path"])
def test_invariant_8_no_standard_descriptor_is_a_way_into_the_host(world: World, secret: Path, kind: str) -> None:
    """A directory would be one, and so would a descriptor that only stands for a place (O_PATH): reopened, it is a file."""
    flags = os.O_RDONLY if kind == "directory" else O_PATH
    where = secret if kind == "path" else secret.parent
    code = "import os; open('seen', 'w').write(str(os.fstat(0).st_rdev == os.makedev(1, 3)))"
    program = world.run_argv([PYTHON, "-I", "-S", "-c", code])
    opened = os.open(where, flags)
    try:
        for which in (0, 1, 2):
            streams: list[int] = [subprocess.DEVNULL, subprocess.PIPE, subprocess.PIPE]
            streams[which] = opened
            with subprocess.Popen(
                program, stdin=streams[0], stdout=streams[1], stderr=streams[2], env=world.env(), cwd=world.workspace
            ) as process:
                errors = process.communicate(timeout=TIMEOUT)[1]
            seen = world.workspace / "seen"
            if which == 0:
                assert process.returncode == 0, errors
                assert (process.returncode, seen.read_text()) == (0, "True"), errors
                seen.unlink()
            else:
                assert (process.returncode, seen.exists()) == (125, False)
                assert which == 2 or b"standard output" in errors
    finally:
        os.close(opened)


def test_invariant_8_inherited_descriptors_are_closed(world: World, secret: Path) -> None:
    directory = os.open(secret.parent, os.O_RDONLY)
    file = os.open(secret, os.O_RDONLY)
    code = "import os; print(sorted(int(f) for f in os.listdir('/proc/self/fd')))"
    try:
        result = world.run(PYTHON, "-c", code, pass_fds=(directory, file))
    finally:
        os.close(directory)
        os.close(file)

    assert result.stdout == "[0, 1, 2, 3]\n"  # 3 is the listing's own


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_descriptor_gives_nothing_of_remits(world: World, closed: str) -> None:
    code = "import os; open('seen', 'w').write(' '.join(os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)))"
    argv = world.run_argv([PYTHON, "-I", "-S", "-c", code])
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=world.env(),
        cwd=world.workspace,
        check=False,
    )

    assert done.returncode == 0
    assert (world.workspace / "seen").read_text() == "/dev/null /dev/null /dev/null"


def test_closed_standard_descriptors(world: World) -> None:
    argv = world.run_argv(["sh", "-c", "echo alive > made"])
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *argv], env=world.env(), cwd=world.workspace, check=False
    )

    assert done.returncode == 0
    assert (world.workspace / "made").read_text() == "alive\n"


def test_invariant_8_only_the_granted_environment_everywhere(world: World) -> None:
    planted = {
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "SSH_AUTH_SOCK": "/x",
        "LD_PRELOAD": "",
        "PYTHONPATH": "/x",
        "BASH_ENV": "/x",
    }
    result = world.run("sh", "-c", "tr '\\0' '\\n' < /proc/self/environ; env", env=planted)
    init = world.run("cat", "/proc/1/environ", env=planted)
    every = world.run("sh", "-c", "cat /proc/*/environ /proc/*/cmdline", env=planted)

    names = {line.partition("=")[0] for line in result.lines}
    assert not names & set(planted), names
    assert {"PATH", "HOME", "LANG", "TERM", "TMPDIR"} <= names
    assert SECRET not in init.stdout
    assert SECRET not in every.stdout


@pytest.mark.needs(root=True)
def test_invariant_8_no_process_inside_holds_a_secret_of_the_caller_in_memory(world: World) -> None:
    with world.start("sh", "-c", "echo ready; read line", env={"PLANTED": SECRET}) as session:
        try:
            assert first_line(session) == "ready"
            inside = [pid for pid in descendants(session.pid) if _other_namespace(pid)]
            found = {pid: memory_holds(pid, SECRET.encode()) for pid in inside}
            control = memory_holds(session.pid, SECRET.encode())
        finally:
            session.communicate("\n", timeout=TIMEOUT)

    assert len(inside) >= 2
    assert not any(found.values()), found
    assert control  # it can be found where it is


def _other_namespace(pid: int) -> bool:
    return os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")


def memory_holds(pid: int, what: bytes) -> bool:
    """Whether any readable page of a process has these bytes. As root, from outside."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            area, permissions = line.split()[:2]
            if not permissions.startswith("r") or line.rstrip().endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            first, last = (int(edge, 16) for edge in area.split("-"))
            try:
                memory.seek(first)
                if what in memory.read(last - first):
                    return True
            except OSError:
                continue
    return False


def test_invariant_6_planted_modules_do_not_run_outside(world: World) -> None:
    planted = world.base / "planted"
    planted.mkdir()
    marker = world.base / "marker"
    body = f"open({str(marker)!r}, 'w').close()\n"
    names = (
        "sitecustomize",
        "usercustomize",
        "json",
        "posix",
        "select",
        "click",
        "remit",
        "marshal",
        "tomli",
        "typing",
        "enum",
    )
    for directory in (planted, world.workspace):
        for name in names:
            (directory / f"{name}.py").write_text(body)
    (planted / "x.pth").write_text(f"import sys; exec({body!r})\n")
    user_site = world.home / ".local/lib/python3.11/site-packages"
    user_site.mkdir(parents=True)
    (user_site / "usercustomize.py").write_text(body)
    (user_site / "x.pth").write_text(f"import sys; exec({body!r})\n")
    startup = {
        "PYTHONPATH": str(planted),
        "PYTHONSTARTUP": str(planted / "json.py"),
        "PYTHONHOME": "",
        "PYTHONUSERBASE": str(world.home / ".local"),
        "PYTHONINSPECT": "1",
        "PYTHONBREAKPOINT": "json.x",
    }

    for verb in (
        ("run", "-p", "offline", "--", "true"),
        ("doctor",),
        ("explain", "-p", "offline"),
        ("profile", "list"),
    ):
        result = world.remit(*verb, env=startup, cwd=world.workspace)
        assert "Traceback" not in result.stderr, (verb, result)

    assert not marker.exists()
    control = subprocess.run([PYTHON, "-c", "pass"], env={"PYTHONPATH": str(planted)}, cwd=planted, check=False)
    assert control.returncode == 0
    assert marker.exists()
