"""Every grant option, in two arms: the same action with the grant and without it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.kernel.run_harness import TIMEOUT, World

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=2)]


@pytest.fixture
def other(world: World) -> Path:
    """A directory beside the workspace, with a file and a program in it."""
    path = world.base / "other"
    (path / "below").mkdir(parents=True)
    (path / "file").write_text("content\n")
    (path / "below/file").write_text("deep\n")
    (path / "tool").write_text("#!/bin/sh\necho ran\n")
    (path / "tool").chmod(0o755)
    for each in (path, path / "below"):
        each.chmod(0o777)
    for each in (path / "file", path / "below/file"):
        each.chmod(0o666)
    return path


def actions(path: Path) -> dict[str, str]:
    """What can be tried on the directory."""
    return {
        "read": f"read('{path}/file')",
        "list": f"os.listdir('{path}')",
        "below": f"read('{path}/below/file')",
        "write": f"write('{path}/file')",
        "create": f"write('{path}/new')",
        "mkdir": f"os.mkdir('{path}/dir')",
        "rename": f"os.rename('{path}/below', '{path}/moved')",
        "exec": f"os.posix_spawn('{path}/tool', ['tool'], {{}})",
    }


def test_without_a_grant_nothing_is_there(world: World, other: Path) -> None:
    outside = world.outsides(actions(other))
    inside = world.probes(actions(other))

    assert set(outside.values()) == {"ok"}
    assert set(inside.values()) == {"ENOENT"}
    assert (other / "file").read_text() == "x"  # by the control


def test_read(world: World, other: Path) -> None:
    results = world.probes(actions(other), "--read", str(other))

    assert {name for name, result in results.items() if result == "ok"} == {"read", "list", "below"}
    assert {results[name] for name in ("write", "create", "mkdir", "rename")} <= {"EACCES", "EROFS"}
    assert results["exec"] == "EACCES"
    assert (other / "file").read_text() == "content\n"


def test_write(world: World, other: Path) -> None:
    results = world.probes(actions(other), "--write", str(other))

    assert {name for name, result in results.items() if result != "ok"} == {"exec"}
    assert results["exec"] == "EACCES"
    assert (other / "file").read_text() == "x"
    assert (other / "moved/file").read_text() == "deep\n"


def test_exec(world: World, other: Path) -> None:
    results = world.probes(actions(other), "--exec", str(other))

    assert {name for name, result in results.items() if result == "ok"} == {"read", "list", "below", "exec"}


def test_rights_add_up(world: World, other: Path) -> None:
    results = world.probes(actions(other), "--exec", str(other), "--write", str(other))

    assert set(results.values()) == {"ok"}


def test_a_grant_of_a_file_is_of_that_file(world: World, other: Path) -> None:
    results = world.probes(actions(other), "--write", str(other / "file"))

    assert (results["read"], results["write"]) == ("ok", "ok")
    assert results["below"] == "ENOENT"
    assert results["create"] in ("EACCES", "EROFS")


def test_relative_paths_are_relative_to_the_current_directory(world: World, other: Path) -> None:
    result = world.run("cat", "../other/file", options=("--read", "../other"), cwd=world.workspace)

    assert (result.status, result.stdout) == (0, "content\n")


def test_deny_in_a_write_grant(world: World) -> None:
    for name in ("secret", "open"):
        (world.workspace / name).mkdir()
        (world.workspace / name / "file").write_text("content")
    tries = {
        "list": "os.listdir('{0}')",
        "read": "read('{0}/file')",
        "write": "write('{0}/file')",
        "create": "write('{0}/new')",
        "replace": "os.rename('other-file', '{0}/file')",
        "remove": "os.unlink('{0}/file')",
        "chmod": "os.chmod('{0}/file', 0o600)",
        "move away": "os.rename('{0}', '{0}-moved')",
    }
    (world.workspace / "other-file").write_text("")
    denied = world.probes({name: code.format("secret") for name, code in tries.items()}, "--deny", "secret")
    allowed = world.probes({name: code.format("open") for name, code in tries.items()}, "--deny", "secret")

    assert set(denied.values()) == {"EACCES"}
    assert (world.workspace / "secret/file").read_text() == "content"
    # The control replaced, wrote and removed the file before changing the mode of what is no longer there.
    assert {name: result for name, result in allowed.items() if result != "ok"} == {"chmod": "ENOENT"}


def test_deny_of_a_file(world: World) -> None:
    (world.workspace / "token").write_text("TOKEN=1")
    tries = {"read": "read('token')", "write": "write('token')", "unlink": "os.unlink('token')", "stat": "os.stat('.')"}

    denied = world.probes(tries, "--deny", "token")
    allowed = world.probes({**tries, "unlink": "os.rename('token', 'token')"})

    assert denied == {"read": "EACCES", "write": "EACCES", "unlink": "EACCES", "stat": "ok"}
    assert set(allowed.values()) == {"ok"}


def test_protect_in_a_write_grant(world: World) -> None:
    (world.workspace / "kept").mkdir()
    (world.workspace / "kept/file").write_text("content")
    tries = {
        "read": "read('kept/file')",
        "list": "os.listdir('kept')",
        "write": "write('kept/file', flags=0)",
        "truncate": "os.truncate('kept/file', 0)",
        "create": "write('kept/new')",
        "remove": "os.unlink('kept/file')",
        "move away": "os.rename('kept', 'moved')",
    }

    protected = world.probes(tries, "--protect", "kept")
    assert (world.workspace / "kept/file").read_text() == "content"
    allowed = world.probes(tries)

    assert {name: result for name, result in protected.items() if result == "ok"} == {"read": "ok", "list": "ok"}
    assert {result for result in protected.values() if result != "ok"} <= {"EACCES", "EROFS"}
    assert set(allowed.values()) == {"ok"}


def test_invariant_4_deny_holds_for_names_that_do_not_exist_at_any_depth(world: World) -> None:
    (world.workspace / "a").mkdir()
    tries = {
        "create": "write('secret.pem')",
        "below": "write('a/secret.pem')",
        "mkdir": "os.mkdir('a/secret.pem')",
        "new parent": "(os.makedirs('b/c'), write('b/c/secret.pem'))",
        "rename into": "(write('plain'), os.rename('plain', 'a/secret.pem'))",
        "link into": "(write('plain'), os.link('plain', 'a/secret.pem'))",
        "symlink": "os.symlink('plain', 'a/secret.pem')",
        "fifo": "os.mkfifo('a/secret.pem')",
    }
    denied = world.probes(tries, "--deny", "**/secret.pem")
    found = sorted(path.name for path in world.workspace.rglob("*"))
    allowed = world.probes({"create": tries["create"], "below": tries["below"]})

    assert set(denied.values()) == {"EACCES"}
    # Nothing but what the tries were let do: no stray files.
    assert found == ["a", "b", "c", "plain"]
    assert set(allowed.values()) == {"ok"}


def test_invariant_4_deny_holds_against_renames_of_parents(world: World) -> None:
    (world.workspace / "config/keys").mkdir(parents=True)
    (world.workspace / "config/keys/id").write_text("content")
    tries = {
        "rename the parent": "os.rename('config', 'moved')",
        "read under the new name": "read('moved/keys/id')",
        "build elsewhere": "(os.makedirs('stage/keys'), write('stage/keys/id'))",
        "swap in": "(os.mkdir('x'), os.rename('config', 'x/config'))",
    }

    denied = world.probes(tries, "--deny", "config/keys")

    assert denied["rename the parent"] == "EACCES"
    assert denied["read under the new name"] in ("ENOENT", "EACCES")
    assert denied["build elsewhere"] == "ok"
    assert denied["swap in"] == "EACCES"
    assert (world.workspace / "config/keys/id").read_text() == "content"


def test_deny_wins_over_the_same_grant(world: World, other: Path) -> None:
    results = world.probes({"read": f"read('{other}/file')"}, "--read", str(other), "--deny", str(other / "file"))

    assert results == {"read": "EACCES"}


def test_env_passes_and_sets(world: World) -> None:
    script = 'echo "${PASSED-none} ${SET-none} ${OTHER-none}"'
    caller = {"PASSED": "from the caller", "SET": "from the caller", "OTHER": "from the caller"}

    without = world.shell(script, env=caller)
    granted = world.shell(script, "--env", "PASSED", "--env", "SET=a value", env=caller)

    assert without.stdout == "none none none\n"
    assert granted.stdout == "from the caller a value none\n"


def test_chdir(world: World) -> None:
    (world.workspace / "below").mkdir()

    assert world.shell("pwd").lines == [str(world.workspace)]
    assert world.shell("pwd", "--chdir", str(world.workspace / "below")).lines == [str(world.workspace / "below")]
    assert world.shell("pwd", "--chdir", "/usr/bin").lines == ["/usr/bin"]


def test_chdir_that_is_not_granted_is_a_failure_of_remit(world: World) -> None:
    hidden = world.base / "hidden"
    hidden.mkdir()
    result = world.shell("pwd", "--chdir", str(hidden))

    assert result.status == 125
    assert str(hidden) in result.stderr


@pytest.mark.parametrize(
    ("group", "action", "error"),
    [
        ("keyring", "syscall(248, b'user', b'name', b'x', 1, -2)", "EPERM"),
        ("perf", "syscall(298, 0, 0, -1, -1, 0)", "EPERM"),
        ("personality", "call(libc.personality(0x0400000))", "EPERM"),
        ("io-uring", "syscall(425, 0, 0)", "ENOSYS"),
        ("userfaultfd", "syscall(323, 0x80001)", "EPERM"),
        ("numa", "syscall(239, 0, 0, 0, 0, 0)", "EPERM"),
    ],
)
@pytest.mark.needs(x86_64=True)
def test_allow_syscalls(world: World, group: str, action: str, error: str) -> None:
    denied = world.probe(action)
    allowed = world.probe(action, "--allow-syscalls", group)

    assert denied == error
    # Whatever the kernel says of the arguments, it is the kernel that says it.
    assert allowed == world.outside(action)
    assert allowed != error


def test_allow_syscalls_nested_userns(world: World) -> None:
    action = "call(libc.unshare(0x10000000))"

    assert world.probe(action) == "EPERM"
    assert world.probe(action, "--allow-syscalls", "nested-userns") == "ok"


def test_a_network_grant_that_cannot_be_given_is_refused_and_says_so(world: World) -> None:
    assert world.run("true", options=("--connect", "192.0.2.1:443")).status == 0
    for option in ("192.0.2.1:53/udp", "192.0.2.1:*/udp"):
        result = world.run("true", options=("--connect", option))
        assert result.status == 125, result
        assert "192.0.2.1/32" in result.stderr


def test_purpose_is_recorded(world: World) -> None:
    assert world.run("true", options=("--purpose", "fix the parser")).status == 0

    assert "fix the parser" in (world.records()[-1] / "plan.json").read_text()


# --- limits ----------------------------------------------------------------------------------------------------------


def test_limit_files(world: World) -> None:
    code = """
    def many():
        opened = []
        try:
            for _ in range(100):
                opened.append(os.open("/dev/null", os.O_RDONLY))
        finally:
            for descriptor in opened:
                os.close(descriptor)
            print(len(opened))
    print(attempt(many))
    """

    assert world.python(code).lines == ["100", "ok"]
    # Descriptors 0 to 2 are taken, and 50 is the first that there is not.
    assert world.python(code, "--limit", "files=50").lines == ["47", "EMFILE"]


def test_limit_file_size(world: World) -> None:
    code = "write('big', 'x' * 200_000)"
    before = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"

    assert world.probe(code, before=before) == "ok"
    assert world.probe(code + " or write('big', 'x' * 200_000, os.O_APPEND)", before=before) == "ok"
    limited = world.probe(
        "[write('big', 'x' * 70_000, os.O_APPEND) for _ in range(3)]", "--limit", "file-size=100KiB", before=before
    )
    assert limited == "EFBIG"
    # As without Remit, the signal is not ignored by whoever has not asked for that.
    ended = world.shell("head -c 200000 /dev/zero > big2", "--limit", "file-size=100KiB")
    assert ended.status in (128 + 25, 1), ended


def test_limit_tmp(world: World) -> None:
    script = "head -c 3000000 /dev/zero > /tmp/big && echo written"

    assert world.shell(script).stdout == "written\n"
    limited = world.shell(script, "--limit", "tmp=1MiB")
    assert (limited.status, limited.stdout) == (1, "")
    assert "No space left" in limited.stderr


def test_limit_pids_holds_by_sum(world: World) -> None:
    code = """
    children = []
    def fork():
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        children.append(pid)
    def many():
        try:
            for _ in range(60):
                fork()
        finally:
            for child in children:
                os.kill(child, 9)
                os.waitpid(child, 0)
    print(attempt(many), len(children))
    """

    assert world.python(code).stdout == "ok 60\n"
    limited = world.python(code, "--limit", "pids=30")
    assert limited.stdout.startswith("EAGAIN "), limited
    assert 10 <= int(limited.stdout.split()[1]) < 30


def test_limit_cpu_time(world: World) -> None:
    result = world.shell("while :; do :; done", "--limit", "cpu-time=1s")

    # It is SIGXCPU that ends it, and Remit that says why.
    assert result.status == 128 + 24
    assert "cpu-time limit" in result.stderr


def test_limit_time_ends_everything_inside(world: World) -> None:
    result = world.shell("(trap '' TERM HUP INT; sleep 1000) & wait", "--limit", "time=1s")

    assert result.status == 124


def test_limit_memory_holds_by_sum(world: World) -> None:
    script = textwrap.dedent("""
    import subprocess, sys
    eat = "held = bytearray(b'x' * (40 << 20)); print('eaten', flush=True); input()"
    all = [subprocess.Popen([sys.executable, "-c", eat], stdin=-1, stdout=-1) for _ in range(4)]
    print(*[each.stdout.readline() for each in all], flush=True)
    sys.stdin.read()
    """)
    argv = ("/usr/bin/python3", "-c", script)

    free = world.run(*argv)
    with world.start(*argv, options=("--limit", "memory=100MiB", "--degrade", "limits")) as held:
        # Nobody closes its input: only the limit ends it. Where the kernel holds the limit, one of the four may be
        # all that it kills, and the others are then let go.
        assert held.stdout is not None
        line = held.stdout.readline()
        if line.count("eaten") < 4:
            held.communicate(timeout=TIMEOUT)
        else:
            held.wait(TIMEOUT)

    assert (free.status, free.stdout.count("eaten")) == (0, 4)
    assert held.returncode == 137


def test_a_limit_that_cannot_hold_is_refused_unless_degraded(ordinary_world: World) -> None:
    refused = ordinary_world.run("true", options=("--limit", "cpu=0.5"))
    if refused.status == 0:
        pytest.skip("a control group with the cpu controller is delegated here")

    assert refused.status == 125
    assert "cpu" in refused.stderr
    assert ordinary_world.run("true", options=("--limit", "cpu=0.5", "--degrade", "limits")).status == 0


def test_limit_cpu(world: World) -> None:
    tried = world.run("true", options=("--limit", "cpu=0.2"))
    if tried.status == 125:
        pytest.skip("no control group with the cpu controller here")
    code = """
    start, cpu = time.monotonic(), time.process_time()
    while time.process_time() - cpu < 0.3:
        pass
    print(time.monotonic() - start)
    """

    limited = world.python(code, "--limit", "cpu=0.2")

    assert float(limited.stdout) > 0.9
