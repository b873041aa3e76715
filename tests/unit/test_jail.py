"""What a call's thread answers the mediator, without a kernel to ask."""

from __future__ import annotations

from errno import EACCES
from typing import Any, cast

import pytest

from remit.sandbox.launch.jail import Jail


class Limits:
    """A policy that only notes whose limits it was told to set."""

    def __init__(self) -> None:
        self.applied: list[int] = []

    def apply_limits(self, pid: int) -> None:
        self.applied.append(pid)


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
