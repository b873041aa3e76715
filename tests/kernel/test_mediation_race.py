"""A thread that flips the path, its links or its parents never gets a protected name; without the second domain it does."""

from __future__ import annotations

import pytest

from remit.sandbox.kernel.call import MACHINE
from remit.sandbox.kernel.fastpath import CODE
from tests.kernel.mediation_harness import build_probe, make_root, run, workspace

pytestmark = pytest.mark.kernel
MEMORY = ["open", "openat2", "rename", "link", "symlink"]


ORDINARY = ("ok/dir/xxx/file", "kept-hooks/file")
"""Names of which the first is the fast path's to answer, and the second is protected."""


def race(kind: str, tries: int, mode: str, names: tuple[str, ...] = ()) -> tuple[int, int, int, int]:
    """(tries, successes, times the protected name existed, calls that the fast path answered)."""
    with workspace() as root:
        make_root(root)
        if names:
            (root / names[1]).parent.mkdir()
            (root / names[1]).parent.chmod(0o777)
        protect = [(str(root), ("kept-hooks",), False, "protect kept-hooks")] if names else []
        command = [str(build_probe("mediation_race")), kind, str(tries), *names]
        result = run(command, root, mode=mode, protect=protect, timeout=300)
    assert result.status == 0, result.output
    tried, done, seen = map(int, result.output.split())
    return tried, done, seen, result.answered


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*MEMORY, "parents", "links"])
def test_twenty_thousand_tries_never_make_the_protected_name(kind: str) -> None:
    tried, done, seen, _ = race(kind, 20_000, "broker")
    assert tried == 20_000
    assert seen == 0
    # The race is real only if the innocent name was made often, and refused often.
    assert 500 < done < 20_000


@pytest.mark.parametrize("kind", MEMORY)
def test_deciding_and_going_on_without_the_second_domain_loses(kind: str) -> None:
    # How often depends on what else the machine does; that it happens at all is the point.
    assert any(race(kind, 3000, "unnested")[2] > 0 for _ in range(8))


@pytest.mark.slow
@pytest.mark.skipif(MACHINE not in CODE, reason="there is no fast path for other machines")
@pytest.mark.parametrize("kind", MEMORY)
def test_nor_where_the_fast_path_answers(kind: str) -> None:
    tried, done, seen, answered = race(kind, 20_000, "broker", ORDINARY)
    assert tried == 20_000
    assert seen == 0
    assert 500 < done < 20_000
    if kind != "symlink":  # which is not its call; removing what came of it is
        assert answered > done
    assert answered > 500


@pytest.mark.parametrize("kind", MEMORY)
def test_that_race_is_lost_without_the_second_domain(kind: str) -> None:
    assert any(race(kind, 3000, "unnested", ORDINARY)[2] > 0 for _ in range(8))
