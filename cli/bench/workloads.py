"""Whole commands inside ``remit run`` and in calls, beside the same commands bare. All they work on is made here."""

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
from contextlib import ExitStack
from dataclasses import dataclass

from remit.cli.bench.client import Client
from remit.cli.bench.measure import (
    BARE,
    CALL,
    RUN,
    BenchError,
    Line,
    NotMeasured,
    Sample,
    interleave,
    milliseconds,
    row,
    run,
)
from remit.cli.bench.setting import Setting

GROUP = "workload"
_TRUE = ", true"
_SQLITE = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("create table t (i integer primary key, text text)")
for i in range(200):
    database.execute("insert into t (text) values (?)", ("x" * 100,))
    database.commit()
"""
_WHERE = """
import json, re, sys
from importlib import metadata
suffixes = (*sys.argv[1].split(), "")
found, todo = {}, sys.argv[2:]
while todo:
    name = todo.pop()
    if name not in found:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name in sys.argv:
                raise
            continue
        found[name] = [str(distribution.locate_file(f)) for f in distribution.files or () if f.suffix in suffixes]
        for need in distribution.requires or ():
            if "extra ==" not in need:
                todo.append(re.match(r"[\\w.-]+", need)[0])
root = str(metadata.distribution(sys.argv[2]).locate_file(""))
print(json.dumps([root, sorted(sum(found.values(), []))]))
"""
"""Which files the named packages and what they need consist of, in the interpreter that runs this: those with one of the
suffixes, and those without, where what names a version is."""
_REAL, _SUITES = "jsonschema", ("types", "utils", "format", "validators")
"""A package that ships its tests, and those of them that want nothing that it does not ship."""


def nothing() -> None:
    """Prepare nothing."""


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
        (git, "clone", "-q", *options, f"{workspace}/source", target),
        f"{target}/d19/f999.txt",
        lambda: setting.aside(target),
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
        setting.aside(target)
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
        setting.aside(project, cache)
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
        lambda: setting.aside(f"{packages}/tiny", f"{packages}/{information}"),
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
    return Workload((make, "-s", "-j2", "-C", workspace), f"{workspace}/program", lambda: setting.aside(*built))


def _sqlite(setting: Setting, workspace: str) -> Workload:
    _write(f"{workspace}/commits.py", _SQLITE)
    database = f"{workspace}/t.db"
    return Workload(
        (setting.python, "-I", f"{workspace}/commits.py", database),
        database,
        lambda: setting.aside(database, f"{database}-journal"),
    )


def _packages(setting: Setting, workspace: str, *names: str) -> str:
    """A copy of packages of the interpreter that runs this: what lies elsewhere in a home is not seen inside."""
    script = ("-I", "-c", _WHERE, ".py .so .json", *names)
    where = subprocess.run([sys.executable, *script], env=setting.environment, capture_output=True, check=False)
    if where.returncode != 0:
        raise Unavailable(f"{sys.executable}, which runs the benchmark, has no {' or no '.join(names)}")
    root: str
    files: list[str]
    root, files = json.loads(where.stdout)
    for file in files:
        relative = os.path.relpath(file, root)
        if not relative.startswith("..") and os.path.exists(file):
            os.makedirs(os.path.dirname(f"{workspace}/lib/{relative}"), exist_ok=True)
            shutil.copyfile(file, f"{workspace}/lib/{relative}")
    return f"{workspace}/lib"


def _tests(setting: Setting, library: str, project: str, cleaned: tuple[str, ...], *arguments: str) -> Workload:
    """pytest from ``library``, isolated: a user's own packages are seen neither inside nor outside."""
    start = f"import sys; sys.path.insert(0, {library!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    # What is compiled from a copy is kept beside it after the first run, as that of an installed one is.
    return Workload(
        (setting.python, "-I", "-c", start, "-q", "--rootdir", project, *arguments),
        f"{project}/.pytest_cache/v/cache/nodeids",
        lambda: setting.aside(*[f"{project}/{name}" for name in (".pytest_cache", *cleaned)]),
    )


def _pytest(setting: Setting, workspace: str) -> Workload:
    library, project = _packages(setting, workspace, "pytest"), f"{workspace}/project"
    for i in range(10):
        _write(f"{project}/small/m{i}.py", f"def add(x: int) -> int:\n    return x + {i}\n")
        tests = "".join([f"def test_{j}() -> None:\n    assert add({j}) == {i + j}\n\n\n" for j in range(10)])
        _write(f"{project}/tests/test_m{i}.py", f"from small.m{i} import add\n\n\n{tests}")
    _write(f"{project}/pytest.ini", "[pytest]\npythonpath = .\n")
    return _tests(setting, library, project, ("small/__pycache__", "tests/__pycache__"), project)


def _pytest_real(setting: Setting, workspace: str) -> Workload:
    library, project = _packages(setting, workspace, _REAL, "pytest"), f"{workspace}/project"
    suites = [f"{library}/{_REAL}/tests/test_{name}.py" for name in _SUITES]
    if not all([os.path.exists(suite) for suite in suites]):
        raise Unavailable(f"{_REAL} is installed without its tests")
    # It has compiled parts: those of the interpreter that runs this may be of another version than the one measured with.
    imported = f"import sys; sys.path.insert(0, {library!r}); import {_REAL}"
    if subprocess.run([setting.python, "-I", "-c", imported], capture_output=True, check=False).returncode != 0:
        raise Unavailable(f"{setting.python} cannot use the {_REAL} of {sys.executable}")
    _write(f"{project}/pytest.ini", "[pytest]\n")
    return _tests(setting, library, project, (), "-p", "no:warnings", *suites)


def _status(setting: Setting, workspace: str) -> Workload:
    path = f"{workspace}/source"
    git = _repository(setting, path)
    # What was written in the same moment as the index is read again by each run, until one happens to write the index later.
    before = os.stat(path).st_mtime - 60
    for directory, directories, files in os.walk(path):
        directories[:] = [name for name in directories if name != ".git"]
        for name in files:
            os.utime(f"{directory}/{name}", (before, before))
    _call(setting, path, git, "update-index", "-q", "--refresh")
    # Bare and confined, it refreshes the same index: what stat says of files is the same on both sides.
    return Workload((git, "-C", path, "status", "--short"), f"{path}/.git/index")


def _gcc(setting: Setting, workspace: str) -> Workload:
    compiler = _program(setting, "gcc")
    lines = [f"int g{j}(int x) {{ return x * {j}; }}" for j in range(200)]
    _write(f"{workspace}/one.c", "#include <stdio.h>\n" + "\n".join(lines) + "\nint main(void) { return g0(0); }\n")
    made = f"{workspace}/one"
    return Workload((compiler, "-O1", f"{workspace}/one.c", "-o", made), made, lambda: setting.aside(made))


WORKLOADS: dict[str, Callable[[Setting, str], Workload]] = {
    "git status, 1,000 files": _status,
    "git clone, 1,000 files, hard links": _clone_links,
    "git clone --no-local, 1,000 files": _clone_copy,
    "git checkout, 500 changed files": _checkout,
    "tar -x, 5,000 tiny files": _untar,
    "npm install, a tarball of 200 files": _npm,
    "pip install, a wheel of 50 modules": _pip,
    "gcc -O1, one C file": _gcc,
    "make -j2, 26 C files": _make,
    "sqlite, 200 commits": _sqlite,
    "pytest, 100 tests in 10 files": _pytest,
    f"pytest, {_REAL}'s own tests": _pytest_real,
}


def measure(setting: Setting, rounds: int, wanted: Callable[[str], bool]) -> Iterable[Line]:
    """The rows of the workloads that are ``wanted``, each in a workspace of its own that is removed after it."""
    for number, (name, make) in enumerate(WORKLOADS.items()):
        if not wanted(name):
            continue
        setting.tell(name)
        workspace = setting.directory(f"workload{number}")
        try:
            yield from _rows(setting, workspace, name, make(setting, workspace), rounds)
        except (Unavailable, BenchError) as error:
            yield NotMeasured(GROUP, name, str(error))
        finally:
            os.chdir(setting.base)
            setting.aside(workspace)


def _rows(setting: Setting, workspace: str, name: str, work: Workload, rounds: int) -> list[Line]:
    """Bare, in a session of its own and in a call; and what ``true`` takes there, from the same rounds."""
    lines: list[Line] = []
    with ExitStack() as stack:
        runs: dict[str, Callable[[], Sample]] = {}
        for suffix, argv in (("", work.argv), (_TRUE, (setting.true,))):
            runs[BARE + suffix] = _starter(setting, workspace, argv)
            runs[RUN + suffix] = _starter(setting, workspace, setting.confined(workspace, *argv))
        client = stack.enter_context(Client(setting, workspace))
        try:
            client.ask(do="open", sessions=1)
            runs[CALL] = client.called(work.argv)
            runs[CALL + _TRUE] = client.called((setting.true,))
        except BenchError as error:
            lines.append(NotMeasured(GROUP, f"{CALL}: {name}", str(error)))

        def check(variant: str) -> None:
            if not variant.endswith(_TRUE) and not os.path.exists(work.makes):
                raise BenchError(f"{variant} did not make {os.path.relpath(work.makes, workspace)}")

        samples, failed = interleave(
            {variant: settled(work, act) for variant, act in runs.items()},
            rounds,
            must=(BARE,),
            after=check,
            tell=lambda turn: setting.tell(f"{name} {turn}/{rounds}"),
        )
    taken = {variant: milliseconds(values) for variant, values in samples.items()}
    medians = {variant: statistics.median(values) for variant, values in taken.items()}
    bare = medians[BARE]
    for variant in (BARE, RUN, CALL):
        if variant in taken:
            extra: dict[str, float] = {}
            if variant != BARE and {variant + _TRUE, BARE + _TRUE} <= medians.keys():
                start = medians[variant + _TRUE] - medians[BARE + _TRUE]
                extra = {"start": start, "net_median": medians[variant] - start}
                extra["net_ratio"] = extra["net_median"] / bare
            lines.append(row(GROUP, name, variant, "ms", taken[variant], bare, extra))
    return [*lines, *[NotMeasured(GROUP, f"{variant}: {name}", reason) for variant, reason in failed.items()]]


def _starter(setting: Setting, workspace: str, argv: tuple[str, ...]) -> Callable[[], Sample]:
    command = setting.command(workspace, *argv)
    return lambda: run(command, setting.errors)


def settled(work: Workload, act: Callable[[], Sample]) -> Callable[[], Sample]:
    """``act``, with the workspace put back before it and on disk."""

    def run_once() -> Sample:
        work.prepare()
        os.sync()  # else the writes of the run before are paid for in this one
        return act()

    return run_once
