"""Ordinary work goes on under mediation, and what the rules take away is refused however it is reached."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kernel.mediation_harness import Pattern, Result, make_root, run, workspace

pytestmark = pytest.mark.kernel

IDENTITY = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.com",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def shell(script: str, root: Path, **options: object) -> Result:
    return run(["/bin/sh", "-c", script], root, environment=IDENTITY, **options)  # type: ignore[arg-type]


def own(root: Path, path: str, content: str = "before\n", mode: int = 0o644) -> Path:
    """A file that existed before the session, the ordinary user's."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content)
    target.chmod(mode)
    if os.getuid() == 0:
        for place in (target, *target.parents):
            if place == root:
                break
            shutil.chown(place, 2001, 2001)
    return target


GIT = """
set -ex
git init -q -b main r && cd r
echo 1 > f && git add f && git commit -qm one
git config user.name somebody && git config user.email s@example.com
git branch b && git checkout -q b && echo 2 > f && git commit -qam two
git checkout -q main && echo 3 > g && git add g && git commit -qm three
git merge -q --no-edit b
git checkout -q -b c HEAD~1 && echo 4 > h && git add h && git commit -qm four && git rebase -q main
echo 5 >> h && git stash -q && git stash pop -q && git checkout -q h
git tag v1 && git tag -a -m x v2
git worktree add -q ../w main && (cd ../w && echo 6 > i && git add i && git commit -qm six) && git worktree remove ../w
cd .. && git clone -q r clone && cd clone && git remote add other ../r && git fetch -q other
git branch -q -u origin/c c 2>/dev/null || git checkout -q -b c2 origin/c
git remote rename other another && git remote remove another && cd ..
git clone -q --bare r bare.git && git clone -q --no-local bare.git third
cd third && git -c protocol.file.allow=always submodule --quiet add ../r sub && git commit -qm sub
git submodule --quiet update --init && (cd sub && git status -s && git config user.name x)
git gc -q && git sparse-checkout set f && git sparse-checkout disable && cd ..
git init -q --bare bare2 && cd r && git push -q ../bare2 main && cd ..
git -C r repack -adq && git -C r fsck --no-progress
rm -rf clone third bare2 bare.git
test ! -e clone
"""


def test_git_works() -> None:
    with workspace() as root:
        result = shell(GIT, make_root(root))
    assert result.status == 0, result.output[-2000:]
    assert result.denials == 0, result.notes


OTHER_WORK = {
    "tar": """
        mkdir t && (cd t && seq 200 | while read i; do echo $i > f$i; done) && tar cf t.tar t && rm -r t
        tar xf t.tar && test $(ls t | wc -l) = 200
    """,
    "gcc and make": """
        echo 'int main(void) { return 0; }' > m.c && printf 'm: m.c\n\tgcc -o m m.c\n' > Makefile
        make -s && ./m
    """,
    "sqlite": """
        sqlite3 x.db 'create table t(a); insert into t values(1); update t set a=2; select a from t'
        test -f x.db
    """,
    "npm": """
        mkdir p q && cd p && echo 1 > i.js
        echo '{"name":"p","version":"1.0.0"}' > package.json && npm pack --silent
        cd ../q && echo '{"name":"q","version":"1.0.0"}' > package.json
        npm install --silent --offline --no-audit --no-fund ../p/p-1.0.0.tgz
        test -f node_modules/p/i.js
    """,
    "venv": """
        python3 -m venv --without-pip v && v/bin/python -c 'import sys; print(sys.prefix)'
        rm -rf v && python3 -m venv --without-pip v
    """,
    "rename": """
        mkdir -p a/b c && echo 1 > a/b/f && mv a c/ && mv c d && test -f d/a/b/f
        mv d/a/b/f d/a/b/g && rm -r d
    """,
    "descriptors": """
        (echo y > /dev/stdout) > g && test $(cat g) = y
        (echo z > /proc/self/fd/1) >> g && test $(cat g) = z
        exec 3> h && echo w > /dev/fd/3 && test $(cat h) = w
    """,
    "fifo": """
        mkfifo p && (cat p > out &) && echo through > p
        while ! test -s out; do :; done
        test $(cat out) = through
    """,
    "fifo without a reader": """
        mkfifo p && ! timeout 0.3 sh -c 'echo x > p'
        ! timeout -s INT 0.3 sh -c 'trap "exit 9" INT; echo x > p'
        echo > after
    """,
    "umask": """
        umask 077; echo > a; (umask 002; echo > b; sh -c 'echo > c'); echo > d
        test "$(stat -c %a a b c d | xargs)" = "600 664 664 600"
    """,
    "setgid directory": "mkdir s && chmod 2775 s && mkdir s/t && test $(stat -c %a s/t) = 2755",
}


@pytest.mark.parametrize("name", OTHER_WORK)
def test_ordinary_work(name: str) -> None:
    with workspace() as root:
        result = shell("set -ex\n" + OTHER_WORK[name], make_root(root))
    assert result.status == 0, (result.output[-1500:], result.notes)


def test_pip_installs_a_local_wheel() -> None:
    with workspace() as root:
        make_root(root)
        subprocess.run(["/usr/bin/python3", "-c", "import ensurepip"], check=True)
        own(root, "x-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: x\nVersion: 1.0\n")
        own(
            root,
            "x-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        own(
            root,
            "x-1.0.dist-info/RECORD",
            "x.py,,\nx-1.0.dist-info/METADATA,,\nx-1.0.dist-info/WHEEL,,\nx-1.0.dist-info/RECORD,,\n",
        )
        own(root, "x.py", "value = 7\n")
        script = (
            "set -e; python3 -m zipfile -c x-1.0-py3-none-any.whl x.py x-1.0.dist-info; python3 -m venv v; "
            "v/bin/pip -q install --no-index --disable-pip-version-check ./x-1.0-py3-none-any.whl; "
            "cd /; $OLDPWD/v/bin/python -c 'import x; assert x.value == 7'"
        )
        result = shell(script, root)
    assert result.status == 0, (result.output, result.notes)


CATALOGUE_ATTACKS = [
    "mkdir -p r/.git/hooks && echo x > r/.git/hooks/pre-commit",
    "mkdir -p r/.git r/h && echo x > r/h/pre-commit && mv r/h r/.git/hooks",
    "mkdir -p r/g/hooks && echo x > r/g/hooks/post-checkout && mv r/g r/.git",
    "mkdir -p r/g && printf '[core]\\n\\tfsmonitor = x\\n' > r/g/config && mv r/g r/.git",
    "mkdir -p r/.git && printf '[alias]\\n\\tst = !x\\n' > r/.git/config",
    "git init -q r && printf '[core]\\n\\tsshCommand = x\\n' > r/.git/config.lock && mv r/.git/config.lock r/.git/config",
    "git init -q r && git -C r config core.hooksPath /tmp/x",
    "git init -q r && git -C r config alias.x '!y'",
    "git init -q r && git -C r config remote.o.url 'ext::sh -c x'",
    "git init -q r && echo x >> r/.git/config",
    "git init -q r && ln -f r/.git/config c && false",
    "git init -q r && cp r/.git/hooks/pre-commit.sample x && mv x r/.git/hooks/pre-commit",
    "git init -q r && ln r/.git/hooks/pre-commit.sample r/.git/hooks/pre-commit",
    "git init -q r && ln -s ../../x r/.git/hooks/pre-commit",
    # A bare repository is one under any name, in whatever order it is put together.
    "git init -q --bare b && echo x > b/hooks/update",
    "mkdir -p b/refs b/hooks && echo x > b/hooks/update && mkdir b/objects",
    "mkdir -p b/objects b/hooks && echo x > b/hooks/update && mkdir b/refs",
    "mkdir -p b/refs && printf '[core]\\n\\tpager = x\\n' > b/config && mkdir b/objects",
    "mkdir -p b/refs c/objects && printf '[core]\\n\\tpager = x\\n' > b/config && mv c/objects b/objects",
    "mkdir -p b/refs h && printf '[core]\\n\\tpager = x\\n' > b/config && ln -s ../h b/objects",
    "mkdir -p b/refs h && ln -s ../h b/hooks && mkdir b/objects",
    "ln -s elsewhere .git",
    "mkdir .vscode && echo {} > .vscode/tasks.json",
    "mkdir x && echo {} > x/tasks.json && mv x .vscode",
    "ln -s x .vscode",
    "mkdir -p a/b/.claude && echo {} > a/b/.claude/settings.json",
    "mkdir .cursor",
    "echo x > .bashrc",
    "echo x > a && mv a .envrc",
    "mkdir -p .github/workflows",
    "mkdir -p v/bin && cp /bin/true v/bin/python3",
    "mkdir -p v/bin && cp /bin/true v/x && ln -s ../x v/bin/python",
    "mkdir -p v/bin && cp /bin/true v/x && mv v/x v/bin/python",
    "mkdir -p v/x && cp /bin/true v/x/python && mv v/x v/bin",
    "mkdir -p node_modules/x/.vscode && echo {} > node_modules/x/.vscode/tasks.json && mv node_modules/x y",
    "python3 -c \"import os; os.open('s', os.O_CREAT | os.O_WRONLY, 0o4755)\"",
    "echo > s && chmod 4755 s",
    "echo > s && chmod g+s s",
]


@pytest.mark.parametrize("attack", CATALOGUE_ATTACKS)
def test_what_runs_outside_is_not_written_inside(attack: str) -> None:
    with workspace() as root:
        refused = shell(attack, make_root(root))
        subprocess.run(["rm", "-rf", str(root)], check=True)
        # The same with nothing mediated succeeds, so the refusal means something.
        allowed = shell(attack.replace(" && false", ""), make_root(root), mode="native")
    assert refused.status != 0, refused.output
    assert refused.denials >= 1 or "false" in attack, refused.notes
    assert allowed.status == 0, allowed.output


HARMLESS = [
    "mkdir -p .git/hooks && echo x > .git/hooks/pre-commit.sample",
    "echo x > pre-commit && mkdir hooks && mv pre-commit hooks/",
    "mkdir -p node_modules/x/.vscode && echo {} > node_modules/x/.vscode/tasks.json && mv node_modules/x node_modules/y",
    "mkdir -p sub/.github/workflows && echo > sub/.gitlab-ci.yml",
    "mkdir config && echo > config/objects && mkdir objects && echo x > objects/config",
    "mkdir bin && ln -s /usr/bin/python3 bin/python3 && ln -s python3 bin/python && echo > bin/run",
]


@pytest.mark.parametrize("script", HARMLESS)
def test_what_only_looks_alike_is_left_alone(script: str) -> None:
    with workspace() as root:
        result = shell(script, make_root(root))
    assert (result.status, result.denials) == (0, 0), (result.output, result.notes)


def rules(root: Path) -> tuple[list[Pattern], list[Pattern]]:
    deny: list[Pattern] = [
        (str(root), ("secret",), False, "deny secret"),
        (str(root), ("sub", "deep", "key"), False, "deny sub/deep/key"),
        (str(root), (".env",), True, "deny **/.env"),
        (str(root), ("a", "b"), True, "deny **/a/b"),
        (str(root / "anchor"), ("x",), True, "deny anchor/**/x"),
    ]
    return deny, [(str(root), ("keep",), False, "protect keep")]


EXCHANGE = "import ctypes; raise SystemExit(ctypes.CDLL(None).renameat2(-100, b'other', -100, b'keep', 2) != 0)"
DENY_ATTACKS = [
    "echo x > secret",
    "mkdir secret",
    "echo x > p/q/r/.env",
    "echo x > e && mv e p/.env",
    "echo x > e && ln e p/.env",
    "ln -s e .env",
    "mknod .env p",
    "mkdir sub",  # a directory may be made; what follows may not
    "mkdir -p sub/deep && echo x > sub/deep/key",
    "mkdir -p u/deep && echo x > u/deep/key && mv u sub",
    "mkdir u && ln -s u sub",
    "mkdir u && mv p/has u/",
    "mkdir -p z/b && mv z a",
    "mkdir -p z/a && touch z/b && mv z/b z/a/b",
    "mv keep kept",
    "rm keep/old",
    "echo x > keep/old",
    "echo x > keep/new",
    "echo x >> keep/old",
    "truncate -s 0 keep/old",
    "chmod 600 keep/old",
    "ln keep/old other",
    f'mkdir other && python3 -c "{EXCHANGE}"',
    "cat .env",
    "cat p/has/.env",
    "exec 3< p && cat /proc/self/fd/3/has/.env",
    "ln -s p/has/.env innocent && cat innocent",
]


@pytest.mark.parametrize("attack", DENY_ATTACKS)
def test_deny_and_protect(attack: str) -> None:
    with workspace() as root:
        make_root(root)
        own(root, "keep/old")
        own(root, ".env", "TOKEN\n")
        own(root, "p/has/.env", "TOKEN\n")
        own(root, "p/q/r/file")
        own(root, "e", "e\n")
        deny, protect = rules(root)
        result = shell(attack, root, deny=deny, protect=protect, reads=True)
        if attack == "mkdir sub":
            assert result.status == 0, result.output
            return
        # Moving a directory with a denied name of any depth inside the same anchor is the one thing that is harmless.
        if attack == "mkdir u && mv p/has u/":
            assert result.status == 0
            assert shell("cat u/has/.env", root, deny=deny, protect=protect, reads=True).status != 0
            return
        assert result.status != 0, result.output
        assert "TOKEN" not in result.output
        assert result.denials >= 1
        assert (root / "keep/old").read_text() == "before\n"
        assert not list(root.glob("**/.remit*"))


def test_a_directory_that_leaves_the_reach_of_a_rule_is_copied_name_by_name() -> None:
    with workspace() as root:
        make_root(root)
        own(root, "anchor/t/u/x", "TOKEN\n")
        own(root, "anchor/t/u/y", "fine\n")
        deny, _ = rules(root)
        result = shell("mv anchor/t out; cat out/u/y; cat out/u/x", root, deny=deny, reads=True)
        assert "fine" in result.output
        assert "TOKEN" not in result.output
        assert (root / "anchor/t/u/x").read_text() == "TOKEN\n"


def test_opened_lifts_the_catalogue_never_a_deny() -> None:
    with workspace() as root:
        make_root(root)
        opened = [str(root / ".vscode"), str(root / ".git/config"), str(root / ".envrc")]
        deny: list[Pattern] = [(str(root), (".envrc",), False, "deny .envrc")]
        script = """
            set -e; mkdir .vscode; echo {} > .vscode/tasks.json
            git init -q . && git config alias.x '!y' && ! sh -c 'echo x > .envrc'
        """
        result = shell(script, root, deny=deny, opened=opened)
    assert result.status == 0, (result.output, result.notes)


def test_a_config_that_is_still_open_cannot_be_written_afterwards() -> None:
    script = """
import os
os.makedirs('.git/objects'); os.mkdir('.git/refs')
fd = os.open('.git/config.lock', os.O_CREAT | os.O_RDWR)
os.write(fd, b'[core]\\n\\tbare = false\\n')
os.link('.git/config.lock', 'second')
os.rename('.git/config.lock', '.git/config')
os.write(fd, b'\\tfsmonitor = evil\\n')
open('second', 'a').write('\\tpager = evil\\n')
assert not os.path.exists('.git/config.lock')
print(open('.git/config').read())
"""
    with workspace() as root:
        result = run(["/usr/bin/python3", "-c", script], make_root(root))
    assert result.status == 0, result.output
    assert "bare = false" in result.output
    assert "evil" not in result.output


def test_an_existing_alias_survives_what_git_writes_beside_it() -> None:
    with workspace() as root:
        make_root(root)
        shell("git init -q r", root)
        own(root, "r/.git/config", (root / "r/.git/config").read_text() + "[alias]\n\tst = status\n")
        good = shell("git -C r config user.name x && git -C r st", root)
        bad = shell("git -C r config alias.st '!evil'", root)
    assert good.status == 0, good.output
    assert bad.status != 0


def test_killed_callers_leave_the_broker_alive() -> None:
    script = """
import os, signal, random, time
for i in range(300):
    pid = os.fork()
    if pid == 0:
        while True:
            try:
                fd = os.open(f'f{i % 7}', os.O_CREAT | os.O_RDWR); os.close(fd); os.rename(f'f{i % 7}', 'g')
            except OSError:
                pass
    end = time.monotonic() + random.random() * 0.002
    while time.monotonic() < end:
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
open('alive', 'w').write('yes')
"""
    with workspace() as root:
        result = run(["/usr/bin/python3", "-c", script], make_root(root))
        assert result.status == 0, result.output
        assert (root / "alive").read_text() == "yes"


def test_threads_share_a_umask_and_a_directory() -> None:
    script = """
import os, threading
bad = []
def other(value, name):
    fd = os.open(name, os.O_CREAT | os.O_WRONLY, 0o666)
    if os.fstat(fd).st_mode & 0o777 != 0o666 & ~value: bad.append((name, value))
    os.close(fd)
for i in range(200):
    value = (0o022, 0o077, 0o002)[i % 3]
    os.umask(value)
    t = threading.Thread(target=other, args=(value, f'f{i}')); t.start(); t.join()
os.mkdir('d1'); os.mkdir('d2')
stop = False
def wander():
    while not stop:
        os.chdir('d1'); os.chdir('../d2'); os.chdir('..')
t = threading.Thread(target=wander); t.start()
for i in range(500):
    fd = os.open(f'w{i}', os.O_CREAT | os.O_WRONLY); os.close(fd)
stop = True; t.join()
found = sum(name.startswith('w') for place in ('.', 'd1', 'd2') for name in os.listdir(place))
print(bad, found)
"""
    with workspace() as root:
        result = run(["/usr/bin/python3", "-c", script], make_root(root))
    assert result.output.strip() == "[] 500", result.output


def test_limits_are_the_callers() -> None:
    script = """
import os, resource, signal, errno
signal.signal(signal.SIGXFSZ, lambda *a: print('SIGXFSZ'))
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
open('t', 'w').close()
try: os.truncate('t', 200)
except OSError as e: print(errno.errorcode[e.errno])
os.truncate('t', 50)
resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))
fds = []
try:
    while True: fds.append(os.open(f'n{len(fds)}', os.O_CREAT | os.O_WRONLY))
except OSError as e: code = errno.errorcode[e.errno]
for fd in fds: os.close(fd)
print(code, os.path.exists(f'n{len(fds)}'))
"""
    with workspace() as root:
        native = run(["/usr/bin/python3", "-c", script], make_root(root), mode="native")
        subprocess.run(["rm", "-rf", str(root)], check=True)
        mediated = run(["/usr/bin/python3", "-c", script], make_root(root))
    assert mediated.output == native.output
    assert "EMFILE False" in mediated.output


SWAP = """/usr/bin/python3 -c 'import ctypes; assert not ctypes.CDLL(None).renameat2(-100, b"b", -100, b"a", 2)'"""
KEPT: list[Pattern] = [("{root}", ("a", "conf", "settings"), False, "protect a/conf/settings")]


@pytest.mark.parametrize(
    ("attack", "seen"),
    [
        ("mkdir a; ln -s ../evil s; ln -P s a/conf", "a/conf/settings"),
        ("mkdir b; ln -s ../evil b/conf; mv b a", "a/conf/settings"),
        ("mkdir b a; ln -s ../evil b/conf; {exchange}", "a/conf/settings"),
        ("mkdir -p real; ln -s ../evil real/conf; ln -s real s; ln -P s a", "a/conf/settings"),
        ("ln -s evil s; ln -P s .vscode", ".vscode/settings"),
        ("ln -s evil s; ln -P s .git", ".git/settings"),
        ("git init -q --template= r; ln -s ../evil r/s; ln -P r/s r/.git/hooks; mv r/.git/hooks r/h", "r/h/settings"),
        (
            "mkdir -p node_modules/p; ln -s ../../evil node_modules/p/.vscode; ln -P node_modules/p/.vscode .vscode",
            ".vscode",
        ),
    ],
)
def test_no_second_name_of_a_link_and_no_moved_directory_redirects_a_rule(attack: str, seen: str) -> None:
    filled = attack.format(exchange=SWAP)
    script = f"set -e; mkdir evil; {filled}; echo bad > evil/settings; test -e {seen} -o -L {seen}"
    for refused in (True, False):
        with workspace() as root:
            make_root(root)
            protect = [(anchor.format(root=root), *rest) for anchor, *rest in KEPT] if refused else []
            result = shell(script, root, protect=protect, catalogue=refused)
        assert (result.status != 0) == refused, (refused, result.output, result.notes)
        assert (result.denials > 0) == refused


@pytest.mark.parametrize("refused", [True, False])
def test_no_second_name_of_a_link_by_any_form_of_the_call(refused: bool) -> None:
    script = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
os.mkdir('evil'); os.symlink('evil', 's')
fd = os.open('s', os.O_PATH | os.O_NOFOLLOW)
forms = [(-100, b's', 0), (-100, b'/proc/self/fd/%d' % fd, 0x400), (fd, b'', 0x1000)]
for number, (at, path, flags) in enumerate(forms):
    for name in ('.vscode', 'other'):
        result = libc.linkat(at, path, -100, name.encode(), flags)
        print(number, name, ctypes.get_errno() if result else 0, os.path.islink(name))
        if not result:
            os.unlink(name)
"""
    with workspace() as root:
        result = run(["/usr/bin/python3", "-c", script], make_root(root), catalogue=refused)
    vscode = "13 False" if refused else "0 True"
    expected = [line for n in range(3) for line in (f"{n} .vscode {vscode}", f"{n} other 0 True")]
    assert result.output.splitlines() == expected


def test_a_link_may_have_a_second_name_where_nothing_is_redirected() -> None:
    with workspace() as root:
        make_root(root)
        protect = [(anchor.format(root=root), *rest) for anchor, *rest in KEPT]
        script = """
            set -e; mkdir evil b; ln -s ../evil b/other; ln -s evil s; ln -P s second; test -L second
            mv b a; test -L a/other; mkdir a/conf; echo fine > a/conf/beside; mv a moved; mv moved a
        """
        result = shell(script, root, protect=protect)
    assert result.status == 0, (result.output, result.notes)
