"""The import package is a shim: ``src/remit/ROOM`` -> ``../../ROOM``. The wheel is built from the rooms themselves."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "src" / "remit"


def test_shim_and_wheel_table_name_the_same_rooms() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    sources = config["tool"]["hatch"]["build"]["targets"]["wheel"]["sources"]
    table = {old: new for old, new in sources.items() if old != "src/remit"}
    links = {path.resolve().name: f"remit/{path.name}" for path in SHIM.iterdir() if path.is_symlink()}

    assert table == links


def test_links_of_the_shim_are_relative_and_lead_to_rooms() -> None:
    links = [path for path in SHIM.iterdir() if path.is_symlink()]

    assert len(links) >= 3
    for link in links:
        assert os.readlink(link) == f"../../{link.name}"


def test_data_rooms_are_not_importable() -> None:
    # A systemd/__init__.py would shadow python-systemd whenever the repository root is on sys.path.
    assert not (ROOT / "systemd" / "__init__.py").exists()


def test_every_python_file_of_the_rooms_is_in_a_package() -> None:
    rooms = [ROOT / "sandbox", ROOT / "cli", ROOT / "profiles"]
    directories = {path.parent for room in rooms for path in room.rglob("*.py")}

    assert directories
    assert [str(d) for d in sorted(directories) if not (d / "__init__.py").exists()] == []


def test_no_module_imports_a_room_by_its_bare_name() -> None:
    # The same file imported as sandbox.x and as remit.sandbox.x is two modules with different classes.
    bare = ("import sandbox", "from sandbox", "import cli", "from cli", "import profiles", "from profiles")
    files = [path for room in ("sandbox", "cli", "profiles", "tests") for path in (ROOT / room).rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if line.startswith(tuple(f"{start}{end}" for start in bare for end in (" ", ".")))
    ]

    assert files
    assert found == []
