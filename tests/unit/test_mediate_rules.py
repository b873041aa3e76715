"""The decision: literal and any-depth rules, what a rename carries across them, what a link would redirect."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remit.sandbox.compile.catalogue import WIRE
from remit.sandbox.mediate.rules import READ, REMOVE, WRITE, Rules

Pattern = tuple[str, tuple[str, ...], bool, str]
ROOT = (b"/w",)


def rules(
    *deny: Pattern, protect: tuple[Pattern, ...] = (), opened: tuple[str, ...] = (), catalogue: bool = False
) -> Rules:
    return Rules(ROOT, deny, protect, WIRE if catalogue else (), opened)


def test_a_literal_covers_itself_and_what_is_below_and_nothing_beside() -> None:
    its = rules(("/w", ("a", "b"), False, "deny a/b"))
    for right in (READ, WRITE, REMOVE):
        assert its.decide(b"/w/a/b", right) == "deny a/b"
        assert its.decide(b"/w/a/b/c/d", right) == "deny a/b"
        assert its.decide(b"/w/a/bc", right) == ""
        assert its.decide(b"/w/a", right) == ""
        assert its.decide(b"/w/x/a/b", right) == ""


def test_any_depth_begins_below_its_anchor() -> None:
    its = rules(("/w/p", (".env",), True, "deny"), ("/", ("x", "y"), True, "deny x/y"))
    assert its.decide(b"/w/p/.env", READ) == "deny"
    assert its.decide(b"/w/p/q/r/.env/s", READ) == "deny"
    assert its.decide(b"/w/.env", READ) == ""
    assert its.decide(b"/w/pp/.env", READ) == ""
    assert its.decide(b"/x/y", READ) == "deny x/y"
    assert its.decide(b"/w/x/z/y", READ) == ""


def test_protect_leaves_reading() -> None:
    its = rules(protect=(("/w", ("k",), False, "protect"),))
    assert its.decide(b"/w/k", READ) == ""
    assert its.decide(b"/w/k", WRITE) == its.decide(b"/w/k/x", REMOVE) == "protect"


def test_opened_lifts_the_catalogue_and_never_a_deny() -> None:
    its = rules(("/w", (".envrc",), False, "deny"), opened=("/w/.vscode", "/w/.envrc"), catalogue=True)
    assert its.decide(b"/w/.vscode/tasks.json", WRITE) == ""
    assert its.decide(b"/w/sub/.vscode/tasks.json", WRITE) != ""
    assert its.decide(b"/w/.envrc", WRITE) == "deny"


def test_the_catalogue_at_its_depths() -> None:
    its = rules(catalogue=True)
    assert its.decide(b"/w/a/b/.vscode/settings.json", WRITE)
    assert its.decide(b"/w/node_modules/a/.vscode/settings.json", WRITE) == ""
    assert its.decide(b"/w/.github/workflows/ci.yml", WRITE)
    assert its.decide(b"/w/vendored/.github/workflows/ci.yml", WRITE) == ""
    assert its.decide(b"/w/.github/CODEOWNERS", WRITE) == ""
    assert its.decide(b"/w/.vscode/settings.json", READ) == ""


def test_a_rename_is_checked_only_where_a_rule_straddles_it() -> None:
    its = rules(("/w", ("a", "b", "c"), True, "deny"), ("/w", ("l", "m"), False, "literal"))
    assert its.governed(b"/w/x/a") == [(b"b/c", "deny")]
    assert its.governed(b"/w/x/a/b") == [(b"c", "deny")]
    assert its.governed(b"/w/x/b") == []
    assert its.governed(b"/w/l") == [(b"m", "literal")]
    assert its.component(b"/w/l") == "literal"
    assert its.component(b"/w/q/a") == "deny"
    assert its.component(b"/w/q/c") == ""


def test_a_tree_that_changes_its_anchor_crosses() -> None:
    its = rules(("/w/p", (".env",), True, "deny"))
    assert its.crosses(b"/w/p/x", b"/w/x")
    assert its.crosses(b"/w/x", b"/w/p/x")
    assert its.crosses(b"/w/p", b"/w/q")
    assert not its.crosses(b"/w/p/x", b"/w/p/y")
    assert not its.crosses(b"/w/x", b"/w/y")


def test_packages_may_move_among_themselves_but_not_out() -> None:
    its = rules(catalogue=True)
    assert not its.crosses(b"/w/node_modules/.a-1", b"/w/node_modules/a")
    assert its.crosses(b"/w/node_modules/a", b"/w/a")
    assert not its.crosses(b"/w/a", b"/w/b")


names = st.sampled_from([b"a", b"b", b"c", b"d"])
paths = st.lists(names, min_size=1, max_size=5).map(lambda parts: b"/w/" + b"/".join(parts))
tails = st.lists(names, min_size=1, max_size=3)


@given(tail=tails, any_depth=st.booleans(), path=paths)
def test_decisions_agree_with_the_definition(tail: list[bytes], any_depth: bool, path: bytes) -> None:
    its = rules(("/w", tuple(part.decode() for part in tail), any_depth, "deny"))
    parts = path.split(b"/")[2:]
    starts = range(len(parts)) if any_depth else range(1)
    expected = any(parts[start : start + len(tail)] == tail for start in starts)
    assert bool(its.decide(path, READ)) == expected


@given(tail=tails, old=paths, new=paths, below=st.lists(names, min_size=1, max_size=3))
def test_whatever_a_rename_would_bring_under_a_rule_is_asked_for(
    tail: list[bytes], old: bytes, new: bytes, below: list[bytes]
) -> None:
    """A tree holding ``below``, nowhere denied, moved to where ``below`` is denied: ``governed`` names what to look for."""
    its = rules(("/w", tuple(part.decode() for part in tail), True, "deny"))
    inside = b"/" + b"/".join(below)
    if its.decide(old + inside, READ) or its.decide(new, READ) or not its.decide(new + inside, READ):
        return
    asked = [rest for rest, _ in its.governed(new)]
    assert any((inside + b"/").startswith(b"/" + rest + b"/") for rest in asked)
