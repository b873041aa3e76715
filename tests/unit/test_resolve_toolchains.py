"""Tool managers in made-up home directories: what PATH needs is granted, and nothing else of the home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remit.sandbox.resolve import toolchains as module
from remit.sandbox.resolve.toolchains import toolchains


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = Path(os.path.realpath(tmp_path)) / "homes/u"
    for name in (".ssh/id", ".aws/credentials", ".config/x", "notes.txt", "project/.env"):
        put(made / name)
    return made


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def link(path: Path, target: Path | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def granted(home: Path, *path: str) -> set[str]:
    """Relative to the home, where below it."""
    found = toolchains(":".join(p.replace("~", str(home)) for p in path), str(home))
    return {p.replace(str(home), "~") for p in found}


def test_uv_tool(home: Path) -> None:
    tool, python = home / ".local/share/uv/tools/x", home / ".local/share/uv/python"
    put(python / "cpython-3.12.5/bin/python3.12")
    put(python / "cpython-3.12.5/lib/os.py")
    (python / "cpython-3.12.5/include").mkdir()
    link(python / "cpython-3.12", "cpython-3.12.5")
    put(tool / "bin/x")
    put(tool / "pyvenv.cfg", f"home = {python}/cpython-3.12/bin\n")
    link(tool / "bin/python", python / "cpython-3.12/bin/python3.12")
    link(home / ".local/bin/x", tool / "bin/x")
    assert granted(home, "~/.local/bin") == {
        "~/.local/bin",
        "~/.local/share/uv/tools/x",
        "~/.local/share/uv/python/cpython-3.12.5",
        "~/.local/share/uv/python/cpython-3.12/bin",
    }


def test_pip_user_scripts_find_their_packages(home: Path) -> None:
    put(home / ".local/bin/flake8")
    put(home / ".local/lib/python3.11/site-packages/flake8.py")
    put(home / ".local/lib/secret/x")
    assert granted(home, "~/.local/bin") == {"~/.local/bin", "~/.local/lib/python3.11"}


def test_nvm(home: Path) -> None:
    node = home / ".nvm/versions/node/v20"
    put(node / "bin/node")
    put(node / "include/node.h")
    put(node / "lib/node_modules/npm/bin/npm-cli.js")
    link(node / "bin/npm", "../lib/node_modules/npm/bin/npm-cli.js")
    assert granted(home, "~/.nvm/versions/node/v20/bin") == {"~/.nvm/versions/node/v20"}


def test_npm_global_prefix_without_other_signs(home: Path) -> None:
    put(home / ".npm-global/lib/node_modules/tool/cli.js")
    link(home / ".npm-global/bin/tool", "../lib/node_modules/tool/cli.js")
    assert granted(home, "~/.npm-global/bin") == {"~/.npm-global/bin", "~/.npm-global/lib/node_modules"}


def test_rustup_keeps_the_registry_token_hidden(home: Path) -> None:
    put(home / ".cargo/bin/cargo")
    put(home / ".cargo/credentials.toml", "token")
    put(home / ".rustup/toolchains/stable/bin/cargo")
    put(home / ".rustup/settings.toml")
    assert granted(home, "~/.cargo/bin") == {"~/.cargo/bin", "~/.rustup/settings.toml", "~/.rustup/toolchains"}


def test_shims_and_versions_below_one_directory(home: Path) -> None:
    put(home / ".rbenv/shims/python")
    put(home / ".rbenv/bin/rbenv")
    put(home / ".rbenv/versions/3.11/bin/python")
    assert granted(home, "~/.rbenv/shims", "~/.rbenv/bin") == {"~/.rbenv"}


def test_a_virtual_environment_and_its_base(home: Path) -> None:
    base = home / ".rbenv/versions/3.11"
    put(base / "bin/python3.11")
    put(base / "lib/os.py")
    put(base / "include/Python.h")
    put(home / "project/.venv/pyvenv.cfg", f"home = {base}/bin\nversion = 3.11\n")
    link(home / "project/.venv/bin/python", base / "bin/python3.11")
    assert granted(home, "~/project/.venv/bin") == {"~/project/.venv", "~/.rbenv/versions/3.11"}


def test_a_virtual_environment_on_the_systems_python(home: Path) -> None:
    put(home / "v/pyvenv.cfg", "home = /usr/bin\n")
    link(home / "v/bin/python", "/usr/bin/python3")
    assert granted(home, "~/v/bin") == {"~/v"}


def test_a_single_binary_elsewhere(home: Path) -> None:
    put(home / ".local/share/claude/versions/1.2.3")
    link(home / ".local/bin/claude", home / ".local/share/claude/versions/1.2.3")
    assert granted(home, "~/.local/bin") == {"~/.local/bin", "~/.local/share/claude/versions/1.2.3"}


def test_a_project_with_a_bin_is_not_a_prefix(home: Path) -> None:
    put(home / "project/bin/run")
    put(home / "project/lib/x")
    put(home / "project/share/x")
    put(home / "project/.git/HEAD")
    assert granted(home, "~/project/bin") == {"~/project/bin"}


def test_a_linked_directory_is_granted_by_both_names(home: Path) -> None:
    put(home / "apps/v2/bin/x")
    link(home / "apps/current", "v2")
    assert granted(home, "~/apps/current/bin") == {"~/apps/current/bin", "~/apps/v2/bin"}


@pytest.mark.parametrize(
    "path",
    [
        "~",
        "~/..",
        "/",
        "/tmp",
        "/home",
        "/usr/bin:/bin",
        "",
        "bin:.",
        "~/absent",
        "~/.ssh",
        "~/.config",
        "~/.aws",
        "~/.cargo",
    ],
)
def test_what_is_never_granted(home: Path, path: str) -> None:
    (home / ".cargo").mkdir()
    assert granted(home, path) == set()


def test_links_to_what_is_never_granted(home: Path) -> None:
    (home / "bin").mkdir()
    for name, target in (("a", home), ("b", "/"), ("c", home / ".ssh/id"), ("d", home / ".config/x"), ("e", "/tmp")):
        link(home / "bin" / name, target)
    assert granted(home, "~/bin") == {"~/bin"}


def test_the_home_under_another_name(home: Path, tmp_path: Path) -> None:
    link(tmp_path / "h", home)
    put(home / "bin/x")
    found = toolchains(f"{tmp_path}/h/bin:{tmp_path}/h:{tmp_path}/h/.ssh", f"{tmp_path}/h")
    assert set(found) == {f"{tmp_path}/h/bin", f"{home}/bin"}


def test_a_lying_pyvenv_cfg_grants_no_home(home: Path) -> None:
    put(home / "v/pyvenv.cfg", f"home = {home}/.ssh\n")
    put(home / "w/pyvenv.cfg", f"home = {home}\n")
    put(home / "v/bin/x")
    put(home / "w/bin/x")
    assert granted(home, "~/v/bin", "~/w/bin") == {"~/v", "~/w"}


def test_the_work_is_bounded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINKS", 3)
    for i in range(20):
        put(home / f"opt/t{i:02}/bin/x")
        link(home / f"bin/x{i:02}", home / f"opt/t{i:02}/bin/x")
    assert len(granted(home, "~/bin")) < 20


def test_a_loop_of_links_ends(home: Path) -> None:
    link(home / "bin/a", "b")
    link(home / "bin/b", "a")
    assert granted(home, "~/bin") == {"~/bin"}
