"""The code in ``docs/python.md`` and in the README's Python section runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.run_harness import World

pytestmark = [pytest.mark.kernel]

SOURCE = Path(__file__).resolve().parents[2]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (SOURCE / page).read_text(), re.MULTILINE | re.DOTALL)


PAGES = {"docs/python.md": 5, "README.md": 1}
CODE = [pytest.param(code, id=f"{page}-{number}") for page in PAGES for number, code in enumerate(blocks(page), 1)]


@pytest.mark.parametrize("page", PAGES)
def test_no_code_is_overlooked(page: str) -> None:
    assert len(blocks(page)) == PAGES[page]


@pytest.mark.parametrize("code", CODE)
def test_code_in_the_documentation_runs(code: str, world: World) -> None:
    for name in ("src", "build"):
        (world.workspace / name).mkdir()
        # Started as root where file systems cannot map owners, the workspace is somebody else's.
        os.chmod(world.workspace / name, 0o777)
    (world.workspace / "src" / "main.py").write_text("print('hello')\n")
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(world.home),
        "LANG": "C.UTF-8",
        "XDG_RUNTIME_DIR": str(world.base / "runtime"),
    }
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        cwd=world.workspace,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # What asyncio's debug mode finds slow says something of the machine.
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
    assert (done.returncode, complaints) == (0, []), done.stderr
