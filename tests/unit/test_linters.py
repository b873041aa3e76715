"""The linters and type checkers are tests, and each must have looked at every file: one that looks at none is content."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("sandbox", "cli", "profiles")
SHIM = 2
"""src/remit holds links to the rooms: only its own ``__init__.py`` and ``__main__.py`` count."""
BIN = Path(sys.executable).parent


def python_files(*directories: str) -> int:
    """How many Python files git would ship from these directories of the repository."""
    return sum(1 for directory in directories for _ in (ROOT / directory).rglob("*.py"))


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a development tool of this environment on the repository. A missing tool is a failure, not a skip."""
    program = BIN / name
    assert program.exists(), f"{name} is not installed beside {sys.executable}: pip install --group dev"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [str(program), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_ruff_check() -> None:
    shown = tool("ruff", "check", "--show-files").stdout.splitlines()
    ours = [line for line in shown if line.endswith(".py")]
    result = tool("ruff", "check")

    assert result.returncode == 0, result.stdout
    assert len(ours) == python_files(*ROOMS, "tests") + SHIM


def test_ruff_format() -> None:
    result = tool("ruff", "format", "--check", *ROOMS, "tests", "src/remit")

    assert result.returncode == 0, result.stdout
    counted = re.search(r"(\d+) files? already formatted", result.stdout)
    assert counted is not None
    assert int(counted[1]) == python_files(*ROOMS, "tests") + SHIM


@pytest.mark.slow
def test_mypy() -> None:
    result = tool("mypy")

    assert result.returncode == 0, result.stdout
    counted = re.search(r"no issues found in (\d+) source files", result.stdout)
    assert counted is not None
    assert int(counted[1]) == python_files(*ROOMS, "tests") + SHIM


@pytest.mark.slow
def test_pyright() -> None:
    # basedpyright in pyright's own mode: the same checker, packaged with the runtime that it needs.
    result = tool("basedpyright", "--pythonpath", sys.executable, "--outputjson", "--level", "error")
    report = json.loads(result.stdout)
    errors = [d for d in report["generalDiagnostics"] if d["severity"] == "error"]

    assert errors == []
    # pyright does not follow links to directories it meets while walking; the configuration names each room.
    assert report["summary"]["filesAnalyzed"] == python_files(*ROOMS, "tests") + SHIM


def test_import_contracts() -> None:
    result = tool("lint-imports", "--no-cache")

    assert result.returncode == 0, result.stdout
    counted = re.search(r"Analyzed (\d+) files", result.stdout)
    assert counted is not None
    assert int(counted[1]) >= python_files(*ROOMS)
    assert re.search(r"(\d+) kept, 0 broken", result.stdout)
