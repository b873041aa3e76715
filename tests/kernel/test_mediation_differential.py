"""Mediated calls behave as native ones: same results and errnos in the same order, and the same tree at the end."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.kernel.mediation_harness import Result, build_probe, make_root, run, workspace

pytestmark = pytest.mark.kernel


def tree(root: Path) -> list[tuple[object, ...]]:
    """Everything below ``root`` that a program can see, but for inode numbers and times."""
    found: list[tuple[object, ...]] = []

    def visit(path: Path, name: str) -> None:
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            path.chmod(stat.S_IRUSR)  # its mode is known by now, and may let nobody read
            # One of them is cut to 4 GiB: all but its ends is a hole.
            with open(path, "rb") as file:
                content = file.read(4096), file.seek(max(0, status.st_size - 4096)), file.read()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
        found.append((name, oct(status.st_mode), links, status.st_uid, content))
        if stat.S_ISDIR(status.st_mode):
            path.chmod(stat.S_IRWXU)
            for child in sorted(os.listdir(path)):
                visit(path / child, f"{name}/{child}")

    visit(root, "")
    return found


def both(argv: list[str], root: Path, **options: object) -> list[tuple[Result, list[tuple[object, ...]]]]:
    arms: list[tuple[Result, list[tuple[object, ...]]]] = []
    for mode in ("native", "broker"):
        make_root(root)
        arms.append((run(argv, root, mode=mode, **options), tree(root)))  # type: ignore[arg-type]
        subprocess.run(["chmod", "-R", "u+rwX", str(root)], check=True)
        shutil.rmtree(root)
    return arms


@pytest.mark.parametrize("seed", range(1, 11))
@pytest.mark.parametrize("reads", [False, True])
def test_random_calls_are_as_native(seed: int, reads: bool) -> None:
    with workspace() as root:
        probe = build_probe("mediation_random")
        argv = [str(probe), str(seed), "2000"]
        (native, native_tree), (mediated, mediated_tree) = both(argv, root, catalogue=False, reads=reads)
    lines = list(zip(native.output.split("\n"), mediated.output.split("\n"), strict=False))
    different = [(n, m) for n, m in lines if n != m]
    assert not different, different[:5]
    assert native.status == mediated.status == 0
    assert len(lines) > 1900
    assert native_tree == mediated_tree
