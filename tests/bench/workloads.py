"""Whole commands inside ``remit run``, beside the same commands bare. Everything they work on is made here."""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from tests.bench.measure import BenchError, Command, NotMeasured, Row, interleave, milliseconds, nothing, row
from tests.bench.setting import Setting

GROUP = "workload"
_SQLITE = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("create table t (i integer primary key, text text)")
for i in range(200):
    database.execute("insert into t (text) values (?)", ("x" * 100,))
    database.commit()
"""
_WHERE = """
import json, re
from importlib import metadata
found, todo = {}, ["pytest"]
while todo:
    name = todo.pop()
    if name not in found:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name == "pytest":
                raise
            continue
        found[name] = [str(distribution.locate_file(f)) for f in distribution.files or () if f.suffix == ".py"]
        for need in distribution.requires or ():
            if "extra ==" not in need:
                todo.append(re.match(r"[\\w.-]+", need)[0])
root = str(metadata.distribution("pytest").locate_file(""))
print(json.dumps([root, sorted(sum(found.values(), []))]))
"""
"""Which files pytest and what it needs consist of, in the interpreter that runs this."""


class Unavailable(Exception):
    """A workload's program is not installed."""


@dataclass(frozen=True)
class Workload:
    """A command, with absolute paths, what puts its workspace back before each run of it, and a file that it makes."""

    argv: tuple[str, ...]
    makes: str
    prepare: Callable[[], None] = nothing


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _remove(*paths: str) -> None:
    for path in paths:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)


def _call(setting: Setting, directory: str, *argv: str) -> None:
    done = subprocess.run(argv, cwd=directory, env=setting.environment, capture_output=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(argv)[:200]}: {done.stderr.decode(errors='replace')[-600:].strip()}")


def _program(setting: Setting, name: str) -> str:
    path = setting.program(name)
    if path is None:
        raise Unavailable(f"{name} is not installed")
    return path


def _repository(setting: Setting, path: str) -> str:
    """1,000 files in 20 directories, loose objects; the branch ``other`` changes 499 and adds one. Returns git's path."""
    git = _program(setting, "git")
    os.mkdir(path)

    def commit(message: str) -> None:
        _call(setting, path, git, "add", "-A")
        _call(setting, path, git, "-c", "user.name=b", "-c", "user.email=b@localhost", "commit", "-q", "-m", message)

    _call(setting, path, git, "init", "-q", "-b", "main")
    for i in range(1000):
        _write(f"{path}/d{i % 20}/f{i}.txt", f"file {i}\n" * 20)
    commit("first")
    _call(setting, path, git, "checkout", "-q", "-b", "other")
    for i in range(2, 1000, 2):
        _write(f"{path}/d{i % 20}/f{i}.txt", f"other {i}\n" * 20)
    _write(f"{path}/only-other.txt", "other\n")
    commit("second")
    _call(setting, path, git, "checkout", "-q", "main")
    return git


def _clone(setting: Setting, workspace: str, *options: str) -> Workload:
    git = _repository(setting, f"{workspace}/source")
    target = f"{workspace}/target"
    return Workload(
        (git, "clone", "-q", *options, f"{workspace}/source", target), f"{target}/d19/f999.txt", lambda: _remove(target)
    )


def _clone_links(setting: Setting, workspace: str) -> Workload:
    return _clone(setting, workspace)


def _clone_copy(setting: Setting, workspace: str) -> Workload:
    return _clone(setting, workspace, "--no-local")


def _checkout(setting: Setting, workspace: str) -> Workload:
    path = f"{workspace}/source"
    git = _repository(setting, path)
    return Workload(
        (git, "-C", path, "checkout", "-q", "other"),
        f"{path}/only-other.txt",
        lambda: _call(setting, path, git, "checkout", "-q", "main"),
    )


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    archive.addfile(member, io.BytesIO(content))


def _untar(setting: Setting, workspace: str) -> Workload:
    tar = _program(setting, "tar")
    target = f"{workspace}/target"
    with tarfile.open(f"{workspace}/tiny.tar", "w") as archive:
        for i in range(5000):
            _add(archive, f"d{i % 50}/f{i}", b"%d\n" % i)

    def clean() -> None:
        _remove(target)
        os.mkdir(target)

    return Workload((tar, "-xf", f"{workspace}/tiny.tar", "-C", target), f"{target}/d49/f4999", clean)


def _npm(setting: Setting, workspace: str) -> Workload:
    npm = _program(setting, "npm")
    project, cache = f"{workspace}/project", f"{workspace}/npm-cache"
    with tarfile.open(f"{workspace}/tiny.tgz", "w:gz") as archive:
        _add(archive, "package/package.json", json.dumps({"name": "tiny", "version": "1.0.0"}).encode())
        for i in range(199):
            _add(archive, f"package/lib/f{i}.js", b"module.exports = %d;\n" % i)

    def clean() -> None:
        _remove(project, cache)
        _write(f"{project}/package.json", json.dumps({"name": "project", "version": "1.0.0", "private": True}))

    quiet = ("--offline", "--no-audit", "--no-fund", "--no-update-notifier", "--cache", cache)
    return Workload(
        (npm, "install", *quiet, "--prefix", project, f"{workspace}/tiny.tgz"),
        f"{project}/node_modules/tiny/lib/f198.js",
        clean,
    )


def _pip(setting: Setting, workspace: str) -> Workload:
    environment = f"{workspace}/venv"
    try:
        _call(setting, workspace, setting.python, "-m", "venv", environment)
    except BenchError:
        raise Unavailable(f"{setting.python} makes no virtual environment with pip") from None
    version = os.listdir(f"{environment}/lib")[0]
    packages = f"{environment}/lib/{version}/site-packages"
    information = "tiny-1.0.dist-info"
    wheel = f"{workspace}/tiny-1.0-py3-none-any.whl"
    files = {f"tiny/m{i}.py": f"VALUE = {i}\n" for i in range(50)}
    files["tiny/__init__.py"] = ""
    files[f"{information}/METADATA"] = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
    files[f"{information}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join([f"{name},,\n" for name in [*files, f"{information}/RECORD"]])
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {**files, f"{information}/RECORD": record}.items():
            archive.writestr(name, text)
    install = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-cache-dir", "--disable-pip-version-check")
    return Workload(
        (f"{environment}/bin/python", *install, wheel),
        f"{packages}/tiny/m49.py",
        lambda: _remove(f"{packages}/tiny", f"{packages}/{information}"),
    )


def _make(setting: Setting, workspace: str) -> Workload:
    make, compiler = _program(setting, "make"), _program(setting, "gcc")
    functions = range(25)
    for i in functions:
        lines = [f"static int g{i}_{j}(int x) {{ return x * {j} + {i}; }}" for j in range(40)]
        total = " + ".join([f"g{i}_{j}(x)" for j in range(40)])
        _write(
            f"{workspace}/f{i}.c",
            "#include <stdio.h>\n" + "\n".join(lines) + f"\nint f{i}(int x) {{ return {total}; }}\n",
        )
    declared = "\n".join([f"int f{i}(int);" for i in functions])
    called = " + ".join([f"f{i}(c)" for i in functions])
    _write(f"{workspace}/main.c", f"{declared}\nint main(int c, char **v) {{ return v == 0 && ({called}); }}\n")
    objects = " ".join([f"f{i}.o" for i in functions]) + " main.o"
    rules = f"CC = {compiler}\nCFLAGS = -O1\nall: program\nprogram: {objects}\n\t$(CC) -o $@ {objects}\n"
    _write(f"{workspace}/Makefile", rules)
    built = [f"{workspace}/{name}" for name in [*objects.split(), "program"]]
    return Workload((make, "-s", "-j2", "-C", workspace), f"{workspace}/program", lambda: _remove(*built))


def _sqlite(setting: Setting, workspace: str) -> Workload:
    _write(f"{workspace}/commits.py", _SQLITE)
    database = f"{workspace}/t.db"
    return Workload(
        (setting.python, "-I", f"{workspace}/commits.py", database),
        database,
        lambda: _remove(database, f"{database}-journal"),
    )


def _pytest(setting: Setting, workspace: str) -> Workload:
    found = subprocess.run([sys.executable, "-c", _WHERE], capture_output=True, check=False)
    if found.returncode != 0:
        raise Unavailable(f"{sys.executable}, which runs the benchmark, has no pytest")
    root: str
    files: list[str]
    root, files = json.loads(found.stdout)
    # A copy, so that it is below the workspace: what lies elsewhere in a home is not seen inside.
    for file in files:
        relative = os.path.relpath(file, root)
        if not relative.startswith(".."):
            os.makedirs(os.path.dirname(f"{workspace}/lib/{relative}"), exist_ok=True)
            shutil.copyfile(file, f"{workspace}/lib/{relative}")
    for i in range(10):
        _write(f"{workspace}/project/small/m{i}.py", f"def add(x: int) -> int:\n    return x + {i}\n")
        tests = "".join([f"def test_{j}() -> None:\n    assert add({j}) == {i + j}\n\n\n" for j in range(10)])
        _write(f"{workspace}/project/tests/test_m{i}.py", f"from small.m{i} import add\n\n\n{tests}")
    _write(f"{workspace}/project/pytest.ini", "[pytest]\npythonpath = .\n")
    project = f"{workspace}/project"
    start = (
        f"import sys; sys.path.insert(0, {workspace + '/lib'!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    )

    def clean() -> None:
        _remove(f"{project}/.pytest_cache", f"{project}/small/__pycache__", f"{project}/tests/__pycache__")

    # Isolated, so that a user's own packages are seen neither inside nor outside.
    return Workload(
        (setting.python, "-I", "-c", start, "-q", "--rootdir", project, project),
        f"{project}/.pytest_cache/v/cache/nodeids",
        clean,
    )


WORKLOADS: dict[str, Callable[[Setting, str], Workload]] = {
    "git clone, 1,000 files, hard links": _clone_links,
    "git clone --no-local, 1,000 files": _clone_copy,
    "git checkout, 500 changed files": _checkout,
    "tar -x, 5,000 tiny files": _untar,
    "npm install, a tarball of 200 files": _npm,
    "pip install, a wheel of 50 modules": _pip,
    "make -j2, 26 C files": _make,
    "sqlite, 200 commits": _sqlite,
    "pytest, 100 tests in 10 files": _pytest,
}


def measure(
    setting: Setting, rounds: int, wanted: Callable[[str], bool], say: Callable[[str], None]
) -> Iterable[Row | NotMeasured]:
    """The rows of the workloads that are ``wanted``, each in a workspace of its own that is removed after it."""
    for number, (name, make) in enumerate(WORKLOADS.items()):
        if not wanted(name):
            continue
        say(name)
        workspace = setting.directory(f"workload{number}")
        try:
            yield from _rows(setting, workspace, name, make(setting, workspace), rounds)
        except (Unavailable, BenchError) as error:
            yield NotMeasured(GROUP, name, str(error))
        finally:
            os.chdir(setting.base)
            shutil.rmtree(workspace, ignore_errors=True)


def _rows(setting: Setting, workspace: str, name: str, work: Workload, rounds: int) -> list[Row]:
    """Bare and confined, whole; and without what ``true`` takes there, each from the same rounds."""
    true = setting.program("true") or "/bin/true"
    argv = {
        "bare": work.argv,
        "remit run": setting.confined(workspace, *work.argv),
        "bare true": (true,),
        "confined true": setting.confined(workspace, true),
    }
    commands: dict[str, Command] = {
        variant: replace(setting.command(workspace, *words), prepare=work.prepare, settle=True)
        for variant, words in argv.items()
    }

    def check(variant: str) -> None:
        if variant in ("bare", "remit run") and not os.path.exists(work.makes):
            raise BenchError(f"{variant} did not make {os.path.relpath(work.makes, workspace)}")

    taken = {
        variant: milliseconds(samples)
        for variant, samples in interleave(commands, rounds, setting.errors, check).items()
    }
    medians = {variant: statistics.median(values) for variant, values in taken.items()}
    bare, confined = medians["bare"], medians["remit run"]
    start = medians["confined true"] - medians["bare true"]
    extra = {"cold_start": start, "net_median": confined - start, "net_ratio": (confined - start) / bare}
    return [
        row(GROUP, name, "bare", "ms", taken["bare"], bare),
        row(GROUP, name, "remit run", "ms", taken["remit run"], bare, extra),
    ]
