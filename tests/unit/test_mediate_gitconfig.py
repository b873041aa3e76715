"""git configuration: what may be written, and that the narrow grammar refuses what git would read differently."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.sandbox.mediate.gitconfig import parse, refused


def no_worktree(value: bytes) -> bool:
    return False


def check(text: str, existing: str = "") -> str:
    return refused(text.encode(), existing.encode(), no_worktree)


PLAIN = """[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = false
[remote "origin"]
\turl = git@example.com:a/b.git
\tfetch = +refs/heads/*:refs/remotes/origin/*
[branch "main"]
\tremote = origin
\tmerge = refs/heads/main
[user]
\tname = "Some One"
\temail = s@example.com
[submodule "sub"]
\tactive = true
\turl = ../sub
"""


def test_what_git_writes_passes() -> None:
    assert check(PLAIN) == ""


@pytest.mark.parametrize(
    "line",
    [
        "[core]\n\tfsmonitor = x",
        "[core]\n\thooksPath = x",
        "[CORE]\n\tHooksPath = x",
        "[core]\n\tsshCommand = x",
        "[core]\n\teditor = x",
        "[core]\n\tpager = x",
        "[core]\n\tgitProxy = x",
        "[core]\n\taskPass = x",
        "[core]\n\tattributesFile = x",
        "[core]\n\tworktree = ../..",
        "[alias]\n\tx = !y",
        "[include]\n\tpath = x",
        '[includeIf "gitdir:/"]\n\tpath = x',
        '[filter "x"]\n\tclean = y',
        '[diff "x"]\n\ttextconv = y',
        '[merge "x"]\n\tdriver = y',
        "[credential]\n\thelper = y",
        '[remote "o"]\n\turl = ext::sh -c x',
        '[remote "o"]\n\turl = -oProxyCommand=x',
        '[remote "o"]\n\tuploadpack = x',
        '[remote "o"]\n\tvcs = x',
        '[url "ext::x"]\n\tinsteadOf = y',
        '[submodule "s"]\n\tupdate = !x',
        "[gpg]\n\tprogram = x",
        "[protocol]\n\tallow = always",
        "[pull]\n\trebase = $(x)",
    ],
)
def test_what_runs_commands_is_refused_unless_it_stands_there_already(line: str) -> None:
    assert check(line)
    if line.count("\n") == 1:
        assert check(PLAIN + line + "\n", line + "\n") == ""
        assert check(line + "y\n", line + "\n")


@pytest.mark.parametrize(
    "text",
    [
        "[core] fsmonitor = x",
        "[core]\n\tbare = a\\\n\tb",
        '[core]\n\tbare = "a',
        "[a]b]\n",
        "bare = true",
        "[core]\n\tbare\r = x",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    assert parse(text.encode()) is None
    assert check(text)


sections = st.sampled_from(["core", "user", "alias", 'remote "o"', "include", "Core.x", "color"])
keys = st.sampled_from(["name", "bare", "fsmonitor", "url", "Path", "x-y", "ui"])
values = st.text(alphabet="ab =#;\"'!:-[]\t", max_size=8)


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.tuples(sections, keys, values), min_size=1, max_size=4))
def test_no_key_that_git_reads_goes_unseen(
    lines: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """git is the reference: every key that it finds, the parser found, or it refused the file."""
    text = "".join(f"[{section}]\n\t{key} = {value}\n" for section, key, value in lines)
    path = tmp_path_factory.getbasetemp() / "config"
    path.write_text(text)
    listed = subprocess.run(
        ["git", "config", "--no-includes", "--file", str(path), "--list", "--name-only", "-z"], capture_output=True
    )
    parsed = parse(text.encode())
    if listed.returncode or parsed is None:
        return
    ours = {b".".join(part for part in (section, subsection, key) if part) for section, subsection, key, _ in parsed}
    theirs = {name for name in listed.stdout.split(b"\0") if name}
    assert {name.lower() for name in theirs} <= {name.lower() for name in ours}


def test_gits_own_file_is_accepted(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GIT_CONFIG_GLOBAL": "/dev/null"}
    subprocess.run(["git", "init", "-q", str(tmp_path / "r")], check=True, env=environment)
    for key, value in (("user.name", "a; b # c"), ("branch.x.merge", "refs/heads/x"), ("remote.o.url", "/a b/c")):
        subprocess.run(["git", "-C", str(tmp_path / "r"), "config", key, value], check=True, env=environment)
    assert check((tmp_path / "r/.git/config").read_text()) == ""
