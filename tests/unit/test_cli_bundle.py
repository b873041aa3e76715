"""The bundle of a plain ``remit run``: trusted, complete, in order, and the same program as its sources."""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

import remit
from remit.cli import bundle, loader

ROOT = Path(remit.__file__).parent.parent
INSTALL = """
import marshal, posix, sys
bundle = posix.open(sys.argv[1], posix.O_RDONLY)
code, content = marshal.loads(posix.read(bundle, 131072))
before = set(sys.modules)
space = {}
exec(code, space)
print(space["install"](bundle, content), *sorted(set(sys.modules) - before))
"""
NAMES = ["remit.sandbox.kernel.files", "remit", "remit.sandbox", "remit.sandbox.kernel", "remit.sandbox.kernel.call",
         "remit.sandbox.kernel.numbers"]  # fmt: skip
IN_CHILD = """
import marshal, posix, sys
bundle = posix.open(sys.argv[1], posix.O_RDONLY)
code, content = marshal.loads(posix.read(bundle, 131072))
before = set(sys.modules)
sys.path.clear()
space = {}
exec(code, space)
space["_load_extension"]("_ctypes", content[0])
space["_import"](content[2], [])
if len(sys.argv) > 2:
    space["_import"](space[sys.argv[2]](bundle, content), [])
print(*sorted(set(sys.modules) - before))
"""


def opened(path: Path) -> tuple[int, loader.Content]:
    found = loader.read(str(path))
    assert found is not None
    return found


def order(path: Path) -> list[str]:
    bundle, content = opened(path)
    parts = (content[2], loader._stage(bundle, content), loader._launcher(bundle, content))  # pyright: ignore[reportPrivateUsage]
    os.close(bundle)
    return [entry[0] for part in parts for entry in marshal.loads(part)[1]]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of one small module and what it needs."""
    path = tmp_path / "run.bundle"
    monkeypatch.setattr(bundle, "BUNDLE", str(path))
    for name in NAMES:
        __import__(name)
    bundle.write(NAMES)
    return path


def install(path: Path, environment: dict[str, str] | None = None) -> list[str]:
    command = [sys.executable, "-I", "-S", "-c", INSTALL, str(path)]
    return subprocess.run(command, env=environment or {}, capture_output=True, text=True, check=True).stdout.split()


def test_it_holds_the_modules_after_what_they_import(made: Path) -> None:
    names = order(made)
    assert sorted(names) == sorted(NAMES)
    assert names.index("remit.sandbox.kernel.numbers") < names.index("remit.sandbox.kernel.call")
    assert names.index("remit.sandbox.kernel.call") < names.index("remit.sandbox.kernel.files")
    assert names.index("remit.sandbox.kernel") < names.index("remit.sandbox.kernel.call")


@pytest.mark.parametrize(("part", "needed", "alien"), [
    ([], bundle.EARLY, "remit.sandbox.launch.ground"),
    (["_stage"], bundle.STAGE, "remit.cli.options"),
    (["_launcher"], bundle.LAUNCHER, "remit.sandbox.mediate.broker"),
])  # fmt: skip
def test_each_part_is_complete_with_the_first_and_holds_no_other_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: list[str], needed: str, alien: str
) -> None:
    path = tmp_path / "run.bundle"
    code = (
        f"import sys; sys.path.append({str(ROOT)!r}); from remit.cli import fast, bundle;"
        f"import {bundle.STAGE}, {bundle.LAUNCHER}; names = fast.loaded();"
        f"bundle.BUNDLE = {str(path)!r}; bundle.write([name for name in names if name != 'remit.cli.bundle'])"
    )
    subprocess.run([sys.executable, "-I", "-S", "-X", "utf8", "-c", code], check=True)
    command = [sys.executable, "-I", "-S", "-c", IN_CHILD, str(path), *part]
    found = subprocess.run(command, env={}, capture_output=True, text=True, check=True).stdout.split()
    assert needed in found
    assert alien not in found


def test_it_imports_them_with_nothing_on_the_path(made: Path) -> None:
    done, *modules = install(made)
    assert done == "True"
    assert set(NAMES) <= set(modules)
    # Neither a finder was asked nor a module of Python's own loaded from a file, but for the one shared object.
    assert "importlib" not in modules
    assert "__future__" not in modules


def test_it_is_not_used_where_a_traceback_is_wanted(made: Path) -> None:
    assert install(made, {"REMIT_DEBUG": "1"}) == ["False"]


def test_it_is_not_used_where_others_may_write_it(made: Path) -> None:
    os.close(opened(made)[0])
    for mode in (0o664, 0o646):
        made.chmod(mode)
        assert loader.read(str(made)) is None


def test_it_is_not_used_through_a_link(made: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(made)
    assert loader.read(str(link)) is None


def test_nothing_of_it_is_imported_where_a_source_has_changed(made: Path) -> None:
    bundle, (extension, sources, *parts) = opened(made)
    source, modified, size = sources[-1]
    for other in ((source, modified + 1, size), (source, modified, size + 1), (source + "x", modified, size)):
        changed = cast("loader.Content", (extension, (*sources[:-1], other), *parts))
        assert not loader.install(bundle, changed)
        assert not loader.begin(bundle, changed)
    os.close(bundle)


def test_a_damaged_one_is_none(made: Path) -> None:
    made.write_bytes(made.read_bytes()[:1000])
    assert loader.read(str(made)) is None


def test_lean_code_does_what_the_source_does() -> None:
    text = '''
"""Documentation."""
from __future__ import annotations
TYPE_CHECKING = False
if TYPE_CHECKING:
    from nowhere import nothing
value: int = 3
class Only:
    field: nothing
def add(first: nothing, second: int = 2) -> nothing:
    """Documentation."""
    total: int
    total = first + second
    return total
result = add(1)
'''
    space: dict[str, object] = {}
    exec(bundle.lean(text, "text"), space)
    assert (space["value"], space["result"], space.get("__doc__")) == (3, 3, None)
    assert not getattr(space["add"], "__annotations__", None)
    assert "annotations" not in space


WHOLE = """
import sys
sys.path[:0] = [sys.argv[2]]
from remit.cli import bundle, fast
import remit.sandbox.launch.stage, remit.sandbox.session.oneshot
bundle.BUNDLE = sys.argv[1]
bundle.write(fast.loaded())
"""


def test_the_whole_of_a_start_has_room_in_it(tmp_path: Path) -> None:
    """Where its head is too long there is none, and every start takes ten times as long: longer paths, and some code, fit too."""
    path = tmp_path / "run.bundle"
    subprocess.run([sys.executable, "-I", "-c", WHOLE, str(path), str(ROOT)], check=True)
    bundle, content = opened(path)
    os.close(bundle)
    assert path.stat().st_size - content[3] - content[4] < loader.HEAD * 3 / 4
