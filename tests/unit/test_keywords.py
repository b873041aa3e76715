"""The keywords of ``Session``, ``AsyncSession`` and ``Grant``: a string is no list of its characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remit import AsyncSession, Grant, GrantError, Session
from remit.sandbox.session import base, opening

NOTHING: dict[str, Any] = {
    **dict.fromkeys(("read", "write", "exec", "deny", "protect", "connect", "listen", "unix", "env"), ()),
    "limits": None,
    "allow_syscalls": (),
    "degrade": (),
    "expires": None,
    "purpose": "",
}
LISTS = ("read", "write", "exec", "deny", "protect", "connect", "listen", "unix", "env", "allow_syscalls", "degrade")


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(wanted: opening.Wanted) -> base.Opened:
        raise AssertionError(f"a session was begun: {wanted}")

    monkeypatch.setattr("remit.sandbox.session.session.begin", begin)


def wanted(**given: Any) -> tuple[tuple[str, str], ...]:
    return base.request("", ".", **{**NOTHING, **given}).grants


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in (Session, AsyncSession, Grant) for name in LISTS if (kind, name) != (Grant, "degrade")],
)
@pytest.mark.parametrize("value", ["secrets", Path("secrets"), b"secrets", 5])
def test_what_is_no_list_is_an_error_that_says_how_to_write_it(kind: Any, name: str, value: object) -> None:
    with pytest.raises(GrantError) as caught:
        kind(**{name: value})
    assert caught.value.where.endswith(f".{name}")
    assert "a list of" in str(caught.value)
    assert caught.value.hint.startswith("[")


@pytest.mark.parametrize("given", [["secrets"], ("secrets",), {"secrets"}, iter(["secrets"])])
def test_lists_of_any_kind_are_taken(given: Any) -> None:
    assert wanted(deny=given) == (("deny", "secrets"),)


def test_every_keyword_arrives_as_the_options_of_the_command_line() -> None:
    given = wanted(
        read=[Path("a")], protect=["b"], connect=["x:1"], listen=[80], env={"A": "1"}, limits={"pids": 5}, degrade=["x"]
    )
    assert given == (
        *(("read", "a"), ("protect", "b"), ("connect", "x:1"), ("listen", "80")),
        *(("env", "A=1"), ("limit", "pids=5"), ("degrade", "x")),
    )
    assert Grant(read=[Path("a")], env=["A"], listen=[80]).options == (("read", "a"), ("listen", "80"), ("env", "A"))


@pytest.mark.parametrize(
    "given", [{"read": [5]}, {"connect": [None]}, {"env": {"A": 5}}, {"limits": "memory=1GiB"}, {"deny": [b"x"]}]
)
@pytest.mark.parametrize("kind", [Session, AsyncSession, Grant])
def test_what_is_in_a_list_has_to_be_a_string(kind: Any, given: dict[str, Any]) -> None:
    with pytest.raises(GrantError, match=r"not (5|None|b'x'|'memory=1GiB')"):
        kind(**given)
