"""What a call's thread answers the mediator, without a kernel to ask."""

from __future__ import annotations

from errno import EACCES
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remit.sandbox.launch.jail import Jail
from remit.sandbox.launch.running import Running


class Limits:
    """A policy that only notes whose limits it was told to set."""

    def __init__(self) -> None:
        self.applied: list[int] = []

    def apply_limits(self, pid: int) -> None:
        self.applied.append(pid)


def running(*chain: str, jail: Any = None) -> Any:
    return Running(jail, -1, ("a-1", chain, [b"x"], [], b"/", None, False, 0.0, False))


@pytest.mark.parametrize("revoked", [False, True])
def test_a_grant_that_was_taken_back_since_the_call_was_let_in_starts_nothing(revoked: bool) -> None:
    jail, policy = cast("Any", object.__new__(Jail)), Limits()
    jail.policy, jail.executing = policy, 0
    jail.running, jail.revoked = running("session", "call"), {"call", "other"} if revoked else {"other"}

    if revoked:
        with pytest.raises(PermissionError) as refused:
            jail.executes(7)
        assert refused.value.errno == EACCES
    else:
        jail.executes(7)

    assert policy.applied == ([] if revoked else [7])


@pytest.mark.parametrize("began", [False, True])
def test_a_call_that_fails_after_its_command_began_is_not_told_as_if_it_had_not(began: bool) -> None:
    said: list[tuple[Any, ...]] = []

    def tell(*message: Any) -> None:
        said.append(message)

    call = running("grant", jail=SimpleNamespace(tell_template=tell))
    call._answered = True  # nobody is at the other end
    call._untold = (1.0, "a-1", 7, [b"x"], 1, ("grant",)) if began else ()

    call.failed(("launch", "no more descriptors", "", 125))
    call.failed(("launch", "again", "", 125))

    assert [kind for kind, *_ in said] == [*["began"] * began, "refused", "refused"]
    if began:
        assert said[0] == ("began", 1.0, "a-1", 7, [b"x"], 1, ("grant",), None)
