"""What a call's thread answers the mediator, without a kernel to ask."""

from __future__ import annotations

from errno import EACCES, EMFILE
from typing import Any, cast

import pytest

from remit.sandbox.launch.jail import Jail


class Limits:
    """A policy that only notes whose limits it was told to set."""

    def __init__(self) -> None:
        self.applied: list[int] = []

    def apply_limits(self, pid: int) -> None:
        self.applied.append(pid)


class Told(Jail):
    """What the template would hear."""

    said: list[tuple[Any, ...]]

    def _tell_template(self, *message: Any) -> None:
        self.said.append(message)


@pytest.mark.parametrize("revoked", [False, True])
def test_a_grant_that_was_taken_back_since_the_call_was_let_in_starts_nothing(revoked: bool) -> None:
    jail, policy = cast("Any", object.__new__(Jail)), Limits()
    jail.policy = policy
    jail.chain, jail.revoked = ("session", "call"), {"call", "other"} if revoked else {"other"}

    if revoked:
        with pytest.raises(PermissionError) as refused:
            jail._executes(7)
        assert refused.value.errno == EACCES
    else:
        jail._executes(7)

    assert policy.applied == ([] if revoked else [7])


@pytest.mark.parametrize("began", [False, True])
def test_a_call_that_fails_after_its_command_began_is_not_told_as_if_it_had_not(began: bool) -> None:
    jail, said = cast("Any", object.__new__(Told)), list[tuple[Any, ...]]()
    jail.said, jail.reply, jail.call, jail.unseen = said, -1, "a-1", ()
    jail.untold = (1.0, "a-1", 7, [b"x"], 1, ("grant",)) if began else ()

    jail._fail(OSError(EMFILE, "no more descriptors"))
    jail._fail(OSError(EMFILE, "again"))

    assert [kind for kind, *_ in said] == [*["began"] * began, "refused", "refused"]
    if began:
        assert said[0] == ("began", 1.0, "a-1", 7, [b"x"], 1, ("grant",), None)
