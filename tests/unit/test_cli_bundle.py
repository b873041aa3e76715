"""The bundle of a plain ``remit run``: trusted, complete, in order, and the same program as its sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import remit
from remit.cli import bundle, loader

ROOT = Path(remit.__file__).parent.parent
INSTALL = """
import marshal, posix, sys
with open(sys.argv[1], "rb") as file:
    code, content = marshal.loads(file.read())
before = set(sys.modules)
space = {}
exec(code, space)
print(space["install"](content), *sorted(set(sys.modules) - before))
"""
NAMES = ["remit.sandbox.kernel.files", "remit", "remit.sandbox", "remit.sandbox.kernel", "remit.sandbox.kernel.call",
         "remit.sandbox.kernel.numbers"]  # fmt: skip


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
    content = loader.read(str(made))
    assert content is not None
    order = [entry[0] for entry in content[1]]
    assert sorted(order) == sorted(NAMES)
    assert order.index("remit.sandbox.kernel.numbers") < order.index("remit.sandbox.kernel.call")
    assert order.index("remit.sandbox.kernel.call") < order.index("remit.sandbox.kernel.files")
    assert order.index("remit.sandbox.kernel") < order.index("remit.sandbox.kernel.call")


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
    assert loader.read(str(made)) is not None
    for mode in (0o664, 0o646):
        made.chmod(mode)
        assert loader.read(str(made)) is None


def test_it_is_not_used_through_a_link(made: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(made)
    assert loader.read(str(link)) is None


def test_nothing_of_it_is_imported_where_a_source_has_changed(made: Path) -> None:
    content = loader.read(str(made))
    assert content is not None
    name, source, package, modified, size, code = content[1][-1]
    for other in ((name, source, package, modified + 1, size, code), (name, source, package, modified, size + 1, code)):
        assert not loader.install((content[0], (other,)))


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
