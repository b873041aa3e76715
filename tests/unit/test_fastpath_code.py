"""The machine code is what its source says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from remit.sandbox.kernel import fastpath
from remit.sandbox.kernel.call import MACHINE

SOURCE = Path(fastpath.__file__).with_name("fastpath.c")
FLAGS = (
    *(
        "-Os",
        "-ffreestanding",
        "-fPIC",
        "-fno-builtin",
        "-fno-strict-aliasing",
        "-fno-stack-protector",
        "-fno-jump-tables",
    ),
    *("-fno-tree-loop-distribute-patterns", "-fno-asynchronous-unwind-tables", "-fcf-protection=none"),
    *("-fno-toplevel-reorder", "-nostdlib", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror"),
)
MADE_BY = "12.2.0"
"""gcc. Another makes other bytes of the same source."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("code") / "fastpath.o"
    subprocess.run(["gcc", *FLAGS, "-c", "-o", made, SOURCE], check=True)
    return made


def text(compiled: Path) -> bytes:
    raw = compiled.with_suffix(".bin")
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", compiled, raw], check=True)
    return raw.read_bytes()


@pytest.mark.skipif(MACHINE != "x86_64", reason="there is no fast path for other machines")
def test_the_bytes_are_the_compiled_source(compiled: Path) -> None:
    version = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    shipped, made = fastpath.CODE["x86_64"], text(compiled)
    if version == MADE_BY:
        assert made == shipped, "fastpath.c has changed: python3 -m tests.unit.test_fastpath_code writes its bytes"
    else:
        assert abs(len(made) - len(shipped)) < len(shipped) // 2


@pytest.mark.skipif(MACHINE != "x86_64", reason="there is no fast path for other machines")
def test_it_needs_nothing_but_itself(compiled: Path) -> None:
    def listed(*options: str) -> str:
        return subprocess.run(["objdump", *options, compiled], capture_output=True, text=True, check=True).stdout

    assert "RELOCATION RECORDS" not in listed("-r")
    sizes = dict(re.findall(r"^ *\d+ (\.\S+) +([0-9a-f]+)", listed("-h"), re.MULTILINE))
    assert int(sizes[".text"], 16) > 1000
    assert all(int(size, 16) == 0 for name, size in sizes.items() if name in (".data", ".bss", ".rodata"))
    first = re.search(r"^0+ <(\w+)>:", listed("-d"), re.MULTILINE)
    assert first is not None
    assert first[1] == "step"


def test_names_are_hashed_as_published() -> None:
    # FNV-1a's test vectors (draft-eastlake-fnv).
    assert fastpath.hashed(b"") == 0xCBF29CE484222325
    assert fastpath.hashed(b"a") == 0xAF63DC4C8601EC8C
    assert fastpath.hashed(b"foobar") == 0x85944171F73967E8


def _write() -> None:
    made = Path("/dev/shm/fastpath.o")
    subprocess.run(["gcc", *FLAGS, "-c", "-o", made, SOURCE], check=True)
    digits = text(made).hex()
    lines = "\n".join([f'        "{digits[at : at + 112]}"' for at in range(0, len(digits), 112)])
    target = Path(fastpath.__file__)
    code = re.compile(r'("x86_64": bytes\.fromhex\(\n).*?(\n    \))', re.DOTALL)
    target.write_text(code.sub(lambda found: found[1] + lines + found[2], target.read_text()))


if __name__ == "__main__":
    _write()
