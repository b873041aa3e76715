"""Which grants mean the same, and may so share what was found out for one of them."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from remit import Grant, GrantError
from remit.sandbox.authority.model import Authority
from remit.sandbox.session.aio import AsyncSession
from remit.sandbox.session.handle import Timeout, size
from remit.sandbox.session.session import Session


class Held(Authority):
    """One that can be seen going."""

    __slots__ = ("__weakref__",)


def out_of_a_file(held: Authority) -> Grant:
    """As ``from_options`` makes it, where the options say no more than which file."""
    grant = Grant(read=["a"])
    object.__setattr__(grant, "given", held)
    return grant


def test_grants_that_say_the_same_mean_the_same() -> None:
    assert Grant(read=["a"], task="one").meant == Grant(read=["a"], expires=5, uses=1).meant
    assert Grant(read=["a"]).meant != Grant(write=["a"]).meant
    assert hash(Grant(read=["a"]).meant) == hash(Grant(read=["a"]).meant)


def test_what_a_grant_out_of_a_file_means_is_the_files_content_for_as_long_as_it_is_remembered() -> None:
    """Two files may have had one name: where the first content goes, the second one may get its place in memory."""
    held = Held()
    one, same, other = out_of_a_file(held), out_of_a_file(held), out_of_a_file(Held())
    assert one.meant == same.meant
    assert hash(one.meant) == hash(same.meant)
    assert one.meant != other.meant != Grant(read=["a"]).meant
    remembered, seen = one.meant, weakref.ref(held)
    del held, one, same
    gc.collect()
    assert seen() is not None
    del remembered
    gc.collect()
    assert seen() is None


WRONG: list[tuple[str, Any]] = [
    *((name, value) for name in ("read", "write", "exec", "deny", "protect", "unix") for value in ([""], ["a", ""])),
    *(
        (name, value)
        for name in ("read", "write", "unix")
        for value in ([b"x"], [5], [None], "src", b"x", Path("x"), 5, None)
    ),
    *((name, value) for name in ("connect", "listen", "env", "allow_syscalls") for value in ("abc", b"abc", 5, None)),
    ("limits", ["files=5"]),
    ("limits", "files=5"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_what_is_no_list_of_paths_or_words_is_refused_where_it_stands(name: str, value: Any) -> None:
    """``Grant(read=[os.environ.get("PLACE", "")])`` is no grant of everything."""
    with pytest.raises(GrantError) as refused:
        Grant(**{name: value})
    assert refused.value.where == f"Grant.{name}"
    assert refused.value.hint
    for kind in (Session, AsyncSession):
        with pytest.raises(GrantError) as also:
            kind("offline", ".", **{name: value})
        assert (also.value.where, also.value.hint) == (f"Session.{name}", refused.value.hint)


def test_lists_of_any_kind_are_lists() -> None:
    assert Grant(read=(Path(""), "a"), listen=range(80, 82)).options == (
        ("read", "."),
        ("read", "a"),
        ("listen", "80"),
        ("listen", "81"),
    )
    assert Grant(env={"A": "b"}, limits={"files": 5}).options == (("env", "A=b"), ("limit", "files=5"))


def test_an_empty_workspace_is_none() -> None:
    for kind in (Session, AsyncSession):
        with pytest.raises(GrantError, match="empty") as refused:
            kind("offline", "")
        assert refused.value.where == "Session.workspace"


@pytest.mark.parametrize("uses", [0, -1, 1.5, 1.0, float("nan"), float("inf"), True, "2"])
def test_uses_are_a_whole_number(uses: Any) -> None:
    with pytest.raises(GrantError, match="uses") as refused:
        Grant(uses=uses)
    assert refused.value.hint
    assert Grant(uses=2).uses == 2


@pytest.mark.parametrize("expires", [0, -1, float("nan"), float("inf"), True, b"5m", [], ""])
def test_an_expiry_is_a_time_to_come(expires: Any) -> None:
    with pytest.raises(GrantError, match="expires"):
        Grant(expires=expires)
    assert Grant(expires="10m").expires == 600


def test_a_timeout_is_a_number_of_seconds() -> None:
    assert [Timeout(given).given for given in (None, 0, -1, 2.5, 1e6)] == [None, 0, -1, 2.5, 1e6]
    assert [Timeout(given).given for given in (1e10, float("inf"))] == [None, None]
    assert [Timeout(given).over() for given in (None, 0, -1, 1e6)] == [False, True, True, False]
    assert [Timeout(given).left() for given in (None, 0, -1)] == [None, 0, 0]
    with pytest.raises(ValueError, match="NaN"):
        Timeout(float("nan"))
    values: list[Any] = ["5", b"5", True, []]
    for wrong in values:
        with pytest.raises(TypeError, match="timeout"):
            Timeout(wrong)


def test_what_is_kept_of_a_stream_is_a_number_of_bytes() -> None:
    assert [size(most) for most in (0, 7)] == [0, 7]
    with pytest.raises(ValueError, match="max_output"):
        size(-1)
    for wrong in ("5", 1.5, True, None):
        with pytest.raises(TypeError, match="max_output"):
            size(wrong)
