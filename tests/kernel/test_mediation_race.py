"""A thread that flips the path, its links or its parents never gets a protected name; without the second domain it does."""

from __future__ import annotations

import pytest

from tests.kernel.mediation_harness import build_probe, make_root, run, workspace

pytestmark = pytest.mark.kernel
MEMORY = ["open", "openat2", "rename", "link", "symlink"]


def race(kind: str, tries: int, mode: str) -> tuple[int, int, int]:
    """(tries, successes, times the protected name existed)."""
    with workspace() as root:
        make_root(root)
        result = run([str(build_probe("mediation_race")), kind, str(tries)], root, mode=mode, timeout=300)
    assert result.status == 0, result.output
    tried, done, seen = map(int, result.output.split())
    return tried, done, seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*MEMORY, "parents", "links"])
def test_twenty_thousand_tries_never_make_the_protected_name(kind: str) -> None:
    tried, done, seen = race(kind, 20_000, "broker")
    assert tried == 20_000
    assert seen == 0
    # The race is real only if the innocent name was made often, and refused often.
    assert 500 < done < 20_000


@pytest.mark.parametrize("kind", MEMORY)
def test_deciding_and_going_on_without_the_second_domain_loses(kind: str) -> None:
    # How often depends on what else the machine does; that it happens at all is the point.
    assert any(race(kind, 3000, "unnested")[2] > 0 for _ in range(8))
