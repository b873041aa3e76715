"""The keywords of ``Session``, ``AsyncSession`` and ``Grant``: a string is no list of its characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remit import AsyncSession, Grant, GrantError, Session
from remit.sandbox.session import base, opening
from remit.sandbox.session.granted import granted

LISTS = ("read", "write", "exec", "deny", "protect", "connect", "listen", "unix", "env", "allow_syscalls", "degrade")


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(wanted: opening.Wanted) -> base.Opened:
        raise AssertionError(f"a session was begun: {wanted}")

    monkeypatch.setattr("remit.sandbox.session.session.begin", begin)


class Asked(base.Base):
    """A session that nobody begins."""

    def _open(self, wanted: opening.Wanted) -> None:
        self.wanted = wanted


def wanted(**given: Any) -> tuple[tuple[str, str], ...]:
    return Asked(**given).wanted.grants


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


def test_a_session_ends_after_seconds_or_a_duration_as_a_grant_does() -> None:
    assert [wanted(expires=one) for one in (5, 0.25, "10m")] == [
        (("expires", one),) for one in ("5000ms", "250ms", "10m")
    ]
    assert [Grant(expires=one).expires for one in (5, 0.25, "10m")] == [5, 0.25, 600]
    assert wanted(expires=None) == wanted() == ()


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), [5], True])
@pytest.mark.parametrize("kind", [Session, AsyncSession, Grant])
def test_what_is_no_time_to_come_is_an_error(kind: Any, value: object) -> None:
    with pytest.raises(GrantError, match="expires"):
        kind(expires=value)


@pytest.mark.parametrize("env", [{"A": "b\0c"}, ["A=b\0c"]])
def test_a_variable_cannot_hold_a_nul(env: Any) -> None:
    """The kernel would end the value there."""
    _, errors = granted(wanted(env=env), "/")
    assert [str(error) for error in errors] == ["--env: a NUL in the value of A"]
    assert granted(wanted(env={"A": "b c"}), "/")[0].authority.environment == (("A", "b c"),)
