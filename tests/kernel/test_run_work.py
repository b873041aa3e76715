"""Real work inside: what an agent does all day works, with the programs that people use."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.kernel.run_harness import PYTHON, Result, World

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.needs(userns=True, landlock=2)]

GIT = "-c user.name=t -c user.email=t@example.com -c commit.gpgsign=false -c init.defaultBranch=main"


def ok(result: Result) -> Result:
    """A result that must be a success."""
    assert result.status == 0, result
    return result


@pytest.mark.needs("git")
def test_git(world: World) -> None:
    script = f"""
    set -e
    alias git='git {GIT}'
    git init -q origin
    cd origin
    echo one > file; git add file; git commit -qm one
    git checkout -qb work; echo two >> file; git commit -qam two
    git checkout -q main; git merge -q work
    mkdir -p a/b; git mv file a/b/file; git commit -qm moved
    git tag v1; git stash list; git gc -q
    cd ..
    git clone -q origin copy
    cd copy
    git worktree add -q ../tree -b other; cd ../tree
    echo three > three; git add three; git commit -qm three
    cd ../copy; git merge -q other; git log --oneline | wc -l; git status --short
    git remote add second ../origin; git fetch -q second; git config user.name x
    git push -q origin HEAD:refs/heads/pushed
    cat a/b/file three
    """

    assert ok(world.shell(script)).lines == ["4", "one", "two", "three"]


@pytest.mark.needs("git")
def test_invariant_5_git_hooks_and_dangerous_settings_are_not_planted(world: World) -> None:
    ok(world.shell(f"git {GIT} init -q repository && git -C repository config core.bare"))
    tries = {
        "hook": "write('repository/.git/hooks/pre-commit')",
        "hook of a new repository": "(os.makedirs('new/.git/hooks'), write('new/.git/hooks/pre-commit'))",
        "renamed into": "(write('x'), os.rename('x', 'repository/.git/hooks/post-checkout'))",
        "editor task": "(os.makedirs('.vscode', exist_ok=True), write('.vscode/tasks.json'))",
        "shell file": "write('.bashrc')",
        "envrc": "write('.envrc')",
        "harmless": "write('repository/file')",
    }

    results = world.probes(tries)
    fsmonitor = world.shell("git -C repository config core.fsmonitor 'touch /tmp/x'")
    hooks_path = world.shell("git -C repository config core.hooksPath ../hooks")

    assert results.pop("harmless") == "ok"
    assert set(results.values()) == {"EACCES"}, results
    assert fsmonitor.status != 0
    assert hooks_path.status != 0
    text = (world.workspace / "repository/.git/config").read_text()
    assert "fsmonitor" not in text
    assert "hookspath" not in text.lower()


@pytest.mark.needs("git")
def test_invariant_5_a_name_that_is_granted_opens_the_catalogue_for_it(world: World) -> None:
    hooks = world.workspace / ".git/hooks"
    hooks.mkdir(parents=True)

    assert world.probe("write('.git/hooks/pre-commit')") == "EACCES"
    assert world.probe("write('.git/hooks/pre-commit')", "--write", str(hooks)) == "ok"


def test_venv_and_pip(world: World) -> None:
    """A virtual environment, and pip install of a local wheel into it without a network."""
    wheel = world.workspace / "answer-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("answer.py", "def answer():\n    return 42\n")
        archive.writestr("answer-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: answer\nVersion: 1.0\n")
        archive.writestr("answer-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("answer-1.0.dist-info/RECORD", "")
    (world.workspace / "test_answer.py").write_text(
        "import unittest, answer\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(answer.answer(), 42)\n"
    )
    script = f"""
    set -e
    {PYTHON} -m venv /tmp/venv
    /tmp/venv/bin/pip install -q --no-index ./answer-1.0-py3-none-any.whl
    /tmp/venv/bin/python -m unittest -q test_answer
    """

    assert "OK" in ok(world.shell(script)).stderr


def test_pytest_from_a_virtual_environment(world: World) -> None:
    environment = world.base / "tools"
    source = Path(pytest.__file__).parent.parent
    (environment / "bin").mkdir(parents=True)
    shutil.copytree(source / "pytest", environment / "lib/pytest")
    for name in ("_pytest", "pluggy", "iniconfig", "packaging", "pygments"):
        shutil.copytree(source / name, environment / "lib" / name)
    shutil.copy(source / "py.py", environment / "lib/py.py")
    (world.workspace / "test_it.py").write_text("def test_it(tmp_path):\n    (tmp_path / 'f').write_text('x')\n")

    result = world.shell(
        f"PYTHONPATH={environment}/lib {PYTHON} -m pytest -q -p no:cacheprovider", "--exec", str(environment)
    )

    assert "1 passed" in ok(result).stdout


@pytest.mark.needs("gcc", "make")
def test_gcc_and_make(world: World) -> None:
    (world.workspace / "main.c").write_text('#include <stdio.h>\nint main(void) { puts("built"); return 0; }\n')
    (world.workspace / "Makefile").write_text("all: main\n\t./main\nmain: main.o\n\t$(CC) -o $@ $^\n")

    assert ok(world.run("make", "-j2")).lines[-1] == "built"


@pytest.mark.needs("node", "npm")
def test_node_and_npm_scripts(world: World) -> None:
    (world.workspace / "package.json").write_text(
        '{"name": "x", "version": "1.0.0", "scripts": {"test": "node -e \\"console.log(6 * 7)\\""}}'
    )
    (world.workspace / "dependency").mkdir()
    (world.workspace / "dependency/package.json").write_text('{"name": "dep", "version": "1.0.0", "main": "i.js"}')
    (world.workspace / "dependency/i.js").write_text("module.exports = 'dep'")

    assert "42" in ok(world.run("npm", "test", "--silent")).lines
    script = (
        "npm install --offline --no-audit --no-fund --silent ./dependency && node -e \"console.log(require('dep'))\""
    )
    assert ok(world.shell(script)).lines[-1] == "dep"


def test_multiprocessing(world: World) -> None:
    code = (
        "import multiprocessing as m\n"
        "if __name__ == '__main__':\n"
        "    q = m.Queue(); p = m.Process(target=q.put, args=(1,)); p.start(); print(q.get()); p.join()\n"
        "    with m.Pool(2) as pool: print(sum(pool.map(abs, range(-10, 0))))\n"
        "    s = m.shared_memory.SharedMemory(create=True, size=10) if hasattr(m, 'shared_memory') else None\n"
        "    with m.Manager() as manager: print(list(manager.list([1, 2])))\n"
    )
    (world.workspace / "pool.py").write_text(code)

    assert ok(world.run(PYTHON, "pool.py")).lines == ["1", "55", "[1, 2]"]


def test_sqlite(world: World) -> None:
    code = (
        "import sqlite3\nc = sqlite3.connect('x.db'); c.execute('pragma journal_mode=wal')\n"
        "c.execute('create table t(a)'); c.executemany('insert into t values(?)', [(n,) for n in range(100)]); c.commit()\n"
        "print(sqlite3.connect('x.db').execute('select sum(a) from t').fetchone()[0])\n"
    )

    assert ok(world.run(PYTHON, "-c", code)).stdout == "4950\n"


@pytest.mark.needs("ssh-keygen")
def test_ssh_keygen(world: World) -> None:
    ok(world.shell("ssh-keygen -q -t ed25519 -N '' -f key && ssh-keygen -y -f key > public"))

    assert (world.workspace / "public").read_text().startswith("ssh-ed25519 ")


@pytest.mark.needs("script")
def test_script(world: World) -> None:
    result = ok(world.shell("script -qec 'tty; echo inside' /dev/null < /dev/null"))

    assert "/dev/pts/" in result.stdout
    assert "inside" in result.stdout


@pytest.mark.needs("strace")
def test_strace_on_a_child(world: World) -> None:
    result = ok(
        world.shell(
            "strace -f -o trace -e trace=openat sh -c 'cat /etc/hostname > /dev/null' && grep -c hostname trace"
        )
    )

    assert int(result.stdout) >= 1


def test_a_server_and_a_client_of_its_own(world: World) -> None:
    script = f"""
    echo served > page
    {PYTHON} -c '
import http.server, threading, urllib.request
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
opener = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
print(opener.open("http://localhost:%d/page" % server.server_port).read().decode().strip())
' 2>/dev/null
    """

    assert ok(world.shell(script)).stdout == "served\n"


def test_a_unix_socket_of_its_own(world: World) -> None:
    code = """
    server = socket.socket(socket.AF_UNIX); server.bind("here.sock"); server.listen()
    client = socket.socket(socket.AF_UNIX); client.connect("here.sock"); client.send(b"x")
    print(server.accept()[0].recv(1))
    """

    assert ok(world.python(code)).stdout == "b'x'\n"


def test_toolchains_below_the_home_work_and_the_rest_stays_hidden(world: World, secret: Path) -> None:
    root = world.home / ".tools/v1"
    (root / "bin").mkdir(parents=True)
    (root / "lib").mkdir()
    (root / "lib/data").write_text("data")
    (root / "bin/mytool").write_text(f"#!/bin/sh\ncat {root}/lib/data\n")
    (root / "bin/mytool").chmod(0o755)
    path = {"PATH": f"{root}/bin:/usr/bin:/bin"}

    result = world.run("mytool", env=path)

    assert (result.status, result.stdout) in ((0, "data"), (1, "")), result
    assert world.run("cat", str(secret), env=path).status == 1
    planted = world.run("sh", "-c", f"echo x > {root}/bin/mytool", env=path)
    assert planted.status != 0
    assert (root / "bin/mytool").read_text().startswith("#!/bin/sh")


def test_move_between_any_two_directories(world: World) -> None:
    script = "mkdir -p a/b c; echo x > a/b/f; mv a/b/f c/g; mv a c/a; ls -R c | sort | tr '\\n' ' '; ln c/g c/h; stat -c %h c/h"

    assert ok(world.shell(script)).lines[-1].endswith("2")


def test_tar_and_permissions(world: World) -> None:
    script = """
    set -e
    mkdir tree; for n in $(seq 200); do echo $n > tree/$n; done; chmod 755 tree/1; ln -s 1 tree/link; mkfifo tree/fifo
    tar cf all.tar tree; mkdir out; tar xf all.tar -C out
    diff -r --no-dereference -x fifo tree out/tree; stat -c %a out/tree/1; readlink out/tree/link
    umask 077; touch u; stat -c %a u
    """

    assert ok(world.shell(script)).lines == ["755", "1", "600"]


@pytest.mark.needs("git", ordinary=True)
def test_a_clone_of_a_repository_that_is_granted(world: World) -> None:
    origin = world.base / "origin"
    environment = {**os.environ, "HOME": str(world.home)}
    subprocess.run(["git", "init", "-q", str(origin)], check=True, env=environment)
    (origin / "file").write_text("x")
    for words in (["add", "file"], ["-c", "user.name=t", "-c", "user.email=t@x", "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(origin), *words], check=True, env=environment)

    assert ok(world.shell(f"git clone -q {origin} copy && cat copy/file", "--read", str(origin))).stdout == "x"
