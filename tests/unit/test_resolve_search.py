"""The walk behind a deny at any depth: what it finds, where it does not go, and that it says when it gave up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remit.sandbox.authority.model import Authority, PathPattern, PathRule, Right
from remit.sandbox.resolve import search
from remit.sandbox.resolve.names import resolve

UID = os.getuid()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = Path(os.path.realpath(tmp_path))
    for name in ("w/a/.env", "w/b/c/.env/inside/.env", "w/sub/ci/deploy.yml", "w/ci.yml", "other/.env", "sys/x/.env"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text("")
    (made / "w/link").symlink_to(made / "other")
    return made


def run(root: Path, *denied: PathPattern, granted: tuple[str, ...] = ("w",)) -> dict[str, set[str]]:
    def rule(name: str) -> PathRule:
        return PathRule(f"{root}/{name}", frozenset({Right.READ}))

    floor = Authority(paths=(rule("sys"),))
    authority = Authority(paths=(*floor.paths, *map(rule, granted)), deny=denied)
    names = resolve(authority, uid=UID)
    found = search.matches(authority, floor, names, uid=UID)
    return {text: {named.canonical.removeprefix(f"{root}/") for named in all_} for text, all_ in found.items()}


def test_every_object_of_the_name_and_nothing_below_it(root: Path) -> None:
    pattern = PathPattern(f"{root}/w", (".env",), any_depth=True)
    assert run(root, pattern) == {str(pattern): {"w/a/.env", "w/b/c/.env"}}


def test_a_tail_of_two_names(root: Path) -> None:
    pattern = PathPattern(f"{root}/w", ("ci", "deploy.yml"), any_depth=True)
    assert run(root, pattern) == {str(pattern): {"w/sub/ci/deploy.yml"}}


def test_an_anchor_above_the_grants_searches_them_alone(root: Path) -> None:
    pattern = PathPattern(str(root), (".env",), any_depth=True)
    assert run(root, pattern) == {str(pattern): {"w/a/.env", "w/b/c/.env"}}
    assert run(root, pattern, granted=("w", "w/a", "other")) == {str(pattern): {"w/a/.env", "w/b/c/.env", "other/.env"}}


def test_an_anchor_below_a_grant_searches_what_is_below_it(root: Path) -> None:
    pattern = PathPattern(f"{root}/w/b", (".env",), any_depth=True)
    assert run(root, pattern) == {str(pattern): {"w/b/c/.env"}}


def test_nothing_is_walked_without_a_pattern(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_ENTRIES", 0)
    assert run(root, PathPattern(f"{root}/w", ("a",))) == {}


def test_a_walk_that_came_to_its_bound_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_ENTRIES", 3)
    assert run(root, PathPattern(f"{root}/w", (".env",), any_depth=True)) == {}


def test_a_pattern_that_matches_nothing_was_still_searched(root: Path) -> None:
    pattern = PathPattern(f"{root}/w", ("absent",), any_depth=True)
    assert run(root, pattern) == {str(pattern): set()}
