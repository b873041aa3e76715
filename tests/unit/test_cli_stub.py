"""The installed command: isolated, found through symbolic links, and quick to its launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import remit

ROOT = Path(remit.__file__).resolve().parent
STUB = ROOT.joinpath("cli").resolve() / "remit.sh"
VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
LIBRARIES = (
    "click", "rich", "tomli", "*__mypyc*", "tomlkit", "markdown_it", "mdurl", "pygments", "pyseccomp.py",
)  # fmt: skip

FAST_PATH = """
import sys
before = set(sys.modules)
import posix
class Session:
    @staticmethod
    def run(invocation, libraries):
        posix.write(1, "\\n".join(sorted(set(sys.modules) - before)).encode())
        return 7
import remit.sandbox.session
sys.modules["remit.sandbox.session.oneshot"] = remit.sandbox.session.oneshot = Session
from remit.cli.fast import main
main(["run", "-p", "offline", "--read", "/x", "--", "true"])
"""


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An installation as a wheel makes it: the stub and an interpreter in bin, packages in site-packages."""
    made = tmp_path / "prefix"
    site = made / "lib" / VERSION / "site-packages"
    site.mkdir(parents=True)
    (made / "bin").mkdir()
    (made / "bin" / "remit").write_bytes(STUB.read_bytes())
    (made / "bin" / "remit").chmod(0o755)
    (made / "bin" / "python3").symlink_to(os.path.realpath(sys.executable))
    (site / "remit").symlink_to(ROOT)
    for directory in [Path(path) for path in sys.path if path]:
        for pattern in LIBRARIES:
            for found in directory.glob(pattern):
                if not (site / found.name).exists():
                    (site / found.name).symlink_to(found)
    return made


def site_of(prefix: Path) -> Path:
    return prefix / "lib" / VERSION / "site-packages"


def run(
    *argv: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}
    return subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env={**clean, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_wheel_installation_runs(prefix: Path) -> None:
    result = run(prefix / "bin" / "remit", "--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"remit {remit.__version__}\n", "")


def test_an_editable_installation_reads_the_one_path_as_data(prefix: Path, tmp_path: Path) -> None:
    site = site_of(prefix)
    (site / "remit").unlink()
    (site / "_remit.pth").write_text(f"{ROOT.parent}\nimport os; os.mkdir({str(tmp_path / 'ran')!r})\n")
    assert run(prefix / "bin" / "remit", "--version").stdout == f"remit {remit.__version__}\n"
    assert not (tmp_path / "ran").exists()


def test_an_editable_path_that_is_code_is_never_run(prefix: Path, tmp_path: Path) -> None:
    site = site_of(prefix)
    (site / "remit").unlink()
    (site / "_remit.pth").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})\n")
    result = run(prefix / "bin" / "remit", "--version")
    assert result.returncode == 125
    assert "no Remit" in result.stderr
    assert not (tmp_path / "ran").exists()
    # The same line does run where .pth files are read.
    plain = f"import site; site.addsitedir({str(site)!r})"
    assert run(sys.executable, "-c", plain).returncode == 0
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("relative", [False, True])
def test_it_is_found_through_chains_of_links(prefix: Path, tmp_path: Path, relative: bool) -> None:
    first, second = tmp_path / "one" / "remit", tmp_path / "two" / "other-name"
    for link in (first, second):
        link.parent.mkdir()
    target = prefix / "bin" / "remit"
    first.symlink_to(os.path.relpath(target, first.parent) if relative else target)
    second.symlink_to(os.path.relpath(first, second.parent) if relative else first)
    assert run(second, "--version").stdout == f"remit {remit.__version__}\n"


def test_it_is_found_by_a_relative_path_and_from_a_path_with_spaces(prefix: Path, tmp_path: Path) -> None:
    expected = f"remit {remit.__version__}\n"
    assert run("./remit", "--version", cwd=prefix / "bin").stdout == expected
    assert run("../prefix/bin/remit", "--version", cwd=prefix).stdout == expected
    spaced = tmp_path / "a b'$x"
    prefix.rename(spaced)
    assert run(spaced / "bin" / "remit", "--version").stdout == expected
    assert run("sh", "remit", "--version", cwd=spaced / "bin").stdout == expected


def test_arguments_arrive_unchanged(prefix: Path) -> None:
    result = run(prefix / "bin" / "remit", "no such\ncommand $(x) \udcff")
    assert result.returncode == 2
    assert "\\udcff" in result.stderr or "\\xff" in result.stderr
    assert "$(x)" in result.stderr


def test_nothing_planted_runs(prefix: Path, tmp_path: Path) -> None:
    """Two arms: the same plants do run with a plain interpreter in the same place."""
    planted, cwd, marks = tmp_path / "planted", tmp_path / "cwd", tmp_path / "marks"
    for directory in (planted, cwd, marks):
        directory.mkdir()

    def plant(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"import os\nopen(os.path.join({str(marks)!r}, {path.parent.name + '-' + path.name!r}), 'w')\n")

    for name in ("sitecustomize.py", "usercustomize.py", "posixpath.py", "json.py", "click.py", "remit.py"):
        plant(planted / name)
    for name in ("json.py", "click.py", "remit.py", "sitecustomize.py"):
        plant(cwd / name)
    mark = f"import os; open(os.path.join({str(marks)!r}, 'pth'), 'w')\n"
    (site_of(prefix) / "planted.pth").write_text(mark)
    (site_of(prefix) / "sitecustomize.py").write_text(mark)
    env = {"PYTHONPATH": f"{planted}:", "PYTHONSTARTUP": str(planted / "json.py"), "PYTHONINSPECT": ""}

    for argv in (["--version"], ["profile", "list", "--json"], ["--help"], ["run", "--bogus"]):
        run(prefix / "bin" / "remit", *argv, cwd=cwd, env=env)
    assert sorted(os.listdir(marks)) == []

    run(prefix / "bin" / "python3", "-c", f"import json, click, site; site.addsitedir({str(site_of(prefix))!r})",
        cwd=cwd, env=env)  # fmt: skip
    assert {"planted-sitecustomize.py", "pth"} <= set(os.listdir(marks))
    assert {"cwd-json.py", "planted-json.py"} & set(os.listdir(marks))


def test_a_package_cannot_replace_a_module_of_pythons_own(prefix: Path, tmp_path: Path) -> None:
    for name in ("argparse.py", "json.py", "shutil.py", "inspect.py"):
        (site_of(prefix) / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    result = run(prefix / "bin" / "remit", "profile", "list", "--json")
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "ran").exists()


def test_python_dash_m_starts_again_isolated(tmp_path: Path) -> None:
    """``python -m`` itself reads ``PYTHONPATH``; the interpreter that does the work must not."""
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "click.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    env = {"PYTHONPATH": f"{planted}:{ROOT.parent}"}
    result = run(sys.executable, "-m", "remit", "--version", env=env)
    assert (result.returncode, result.stdout) == (0, f"remit {remit.__version__}\n")
    assert not (tmp_path / "ran").exists()
    run(sys.executable, "-c", "import click", env=env)
    assert (tmp_path / "ran").exists()


def test_a_missing_installation_is_one_line_and_125(prefix: Path) -> None:
    (site_of(prefix) / "remit").unlink()
    result = run(prefix / "bin" / "remit", "run", "--", "true")
    assert result.returncode == 125
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 2


def test_the_fast_path_imports_exactly_these_modules() -> None:
    """Each module here is paid for at every ``remit run``. The session's own come after."""
    code = f"import sys; sys.path.append({str(ROOT.parent)!r})\n" + FAST_PATH
    result = run(sys.executable, "-I", "-S", "-X", "utf8", "-c", code)
    assert result.returncode == 7, result.stderr
    # The maker of the bundle is imported where there is no good one yet.
    assert [name for name in result.stdout.split() if name not in ("gc", "remit.cli.bundle")] == [
        "remit",
        "remit.cli",
        "remit.cli.fast",
        "remit.cli.options",
        "remit.sandbox",
        "remit.sandbox.session",
        "remit.sandbox.session.oneshot",
    ]
