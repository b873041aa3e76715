"""Chains by what their names lead to on this host."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from remit.sandbox.authority.errors import GrantError
from remit.sandbox.authority.model import Authority, PathPattern, PathRule, Right
from remit.sandbox.resolve.names import resolve_name
from remit.sandbox.session.chained import check_objects
from tests.unit.grants import chain, reads, root

WRITE = frozenset({Right.READ, Right.WRITE})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    real = Path(os.path.realpath(tmp_path))
    for name in ("given/sub/leaf", "also", "private/leaf"):
        (real / name).mkdir(parents=True)
    return real


def check(*authorities: Authority) -> None:
    """The second and later ones as narrowed out of those before."""
    grants = [root(authorities[0])]
    for authority in authorities[1:]:
        grants.append(grants[-1].narrow(authority, principal="next"))
    check_objects(chain(*grants), {}, uid=os.geteuid())


def swap(place: Path, target: str) -> None:
    (place / "given/sub").rename(place / "given/old")
    (place / "given/sub").symlink_to(target)


@pytest.mark.parametrize("target", ["../private", "../private/leaf", "../nowhere", "/etc"])
def test_a_link_that_leads_out_of_the_parent_is_refused(place: Path, target: str) -> None:
    links = (reads(f"{place}/given"), reads(f"{place}/given/sub"), reads(f"{place}/given/sub/leaf"))
    check(*links)
    swap(place, target)
    for through in (links, links[:2], (links[0], links[2])):
        with pytest.raises(GrantError, match=f"{place}/given/sub.* leads to /.*: read: not granted") as raised:
            check(*through)
        assert raised.value.where.startswith("grant ")
        assert raised.value.hint
    check(links[0])


def test_a_link_to_what_the_parent_has_is_inside(place: Path) -> None:
    swap(place, "../also")
    with pytest.raises(GrantError, match="leads to"):
        check(reads(f"{place}/given"), reads(f"{place}/given/sub"))
    check(reads(f"{place}/given", f"{place}/also"), reads(f"{place}/given/sub"))
    # With the rights that it has there.
    writes = Authority(paths=(PathRule(f"{place}/given", WRITE), PathRule(f"{place}/also", frozenset({Right.READ}))))
    check(writes, reads(f"{place}/given/sub"))
    with pytest.raises(GrantError, match=r"leads to .*/also: write: not granted"):
        check(writes, Authority(paths=(PathRule(f"{place}/given/sub", WRITE),)))


def test_a_link_above_both_is_followed_for_both(place: Path) -> None:
    (place / "way").symlink_to("given")
    check(reads(f"{place}/way"), reads(f"{place}/way/sub"))
    (place / "way").unlink()
    (place / "way").symlink_to("private")
    check(reads(f"{place}/way"), reads(f"{place}/way/leaf"))


def test_a_link_to_what_the_parent_denies_is_refused(place: Path) -> None:
    taken = replace(reads(f"{place}/given"), deny=(PathPattern(f"{place}/given", ("old",)),))
    check(taken, reads(f"{place}/given/sub"))
    swap(place, "old")
    with pytest.raises(GrantError, match=r"leads to .*/given/old: read: the ceiling denies"):
        check(taken, reads(f"{place}/given/sub"))


def test_what_is_missing_leads_nowhere_else(place: Path) -> None:
    check(reads(f"{place}/given"), reads(f"{place}/given/later/x"))


def test_what_was_followed_already_is_what_is_compared(place: Path) -> None:
    """A link that is put there between the two looks, or taken away, changes nothing."""
    name = f"{place}/given/sub"
    grants = [root(reads(f"{place}/given"))]
    grants.append(grants[0].narrow(reads(name)))
    made = chain(*grants)
    before = {name: resolve_name(name, uid=os.geteuid())}
    swap(place, "../private")
    check_objects(made, before, uid=os.geteuid())
    after = {name: resolve_name(name, uid=os.geteuid())}
    (place / "given/sub").unlink()
    (place / "given/old").rename(place / "given/sub")
    with pytest.raises(GrantError, match="leads to"):
        check_objects(made, after, uid=os.geteuid())
