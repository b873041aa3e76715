"""The catalogue is data that means what it says."""

from __future__ import annotations

import pytest

from remit.sandbox.compile import catalogue
from remit.sandbox.compile.catalogue import ENTRIES, HOOKS, INTERPRETERS, PACKAGE_DIRECTORIES, WIRE


def test_every_entry_has_a_reason_and_stands_once() -> None:
    assert all(entry.reason for entry in ENTRIES)
    tails = [entry.tail for entry in ENTRIES]
    assert len(tails) == len(set(tails))


def test_tails_are_plain_components() -> None:
    for entry in ENTRIES:
        assert entry.tail
        for name in entry.tail:
            assert name
            assert "/" not in name
            assert name not in (".", "..")
            assert "*" not in name


def test_no_entry_hides_behind_another() -> None:
    """An entry below another one of the same depth would never decide anything."""
    for entry in ENTRIES:
        for other in ENTRIES:
            if entry is not other and entry.top == other.top:
                assert entry.tail[: len(other.tail)] != other.tail


def test_hooks_are_names_that_git_runs() -> None:
    assert {"pre-commit", "post-checkout", "update", "reference-transaction", "post-index-change"} <= set(HOOKS)
    assert not [name for name in HOOKS if name.endswith(".sample")]


def test_the_wire_form_is_plain_and_complete() -> None:
    assert {kind for kind, *_ in WIRE} == {"any", "top", "hook", "interpreter", "package"}
    assert len(WIRE) == len(ENTRIES) + len(HOOKS) + len(INTERPRETERS) + len(PACKAGE_DIRECTORIES)
    assert all(type(part) is str for entry in WIRE for part in entry)


@pytest.mark.parametrize(
    ("path", "opened"),
    [
        ("/p/.git/hooks", True),
        ("/p/.git/hooks/pre-commit", True),
        ("/p/a/.vscode", True),
        ("/p/.vscode/tasks.json", True),
        ("/p/.envrc", True),
        ("/p/.venv/bin/python", True),
        ("/p", False),
        ("/p/.git", False),
        ("/p/hooks", False),
        ("/p/bin/python-config", False),
        ("/p/.git/objects", False),
    ],
)
def test_only_a_catalogue_name_opens_the_catalogue(path: str, opened: bool) -> None:
    assert catalogue.opens(path) is opened
