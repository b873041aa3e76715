"""The mediator makes files with its caller's umask, which is its whole process's meanwhile; no other call may come to have it."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from remit import PIPE, Grant
from tests.kernel.run_harness import World
from tests.kernel.session_harness import opened, said

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6)]

PRIVATE = "umask 077; echo > private; stat -c %a private"
AT_ONCE = 6


def _modes() -> tuple[str, str]:
    """This process's umask, as a shell says it, and the mode of a file that is made under it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return f"{mask:04o}", f"{0o666 & ~mask:o}"


def test_a_call_begins_with_the_sessions_umask_whatever_another_has_set(world: World) -> None:
    mask, _ = _modes()
    with opened(world) as session:
        assert said(session.run(["sh", "-c", PRIVATE])) == "600"
        # More than wait for a call: some of their threads are made after the one above.
        with ExitStack() as stack:
            asks = ["sh", "-c", "umask; read line"]
            calls = [stack.enter_context(session.popen(asks, stdin=PIPE, stdout=PIPE)) for _ in range(AT_ONCE)]

            assert [call.communicate(b"\n")[0].decode().strip() for call in calls] == [mask] * AT_ONCE


def test_calls_under_different_grants_make_files_with_their_own_umask(world: World) -> None:
    _, mode = _modes()
    (world.workspace / "part").mkdir()
    os.chown(world.workspace / "part", world.workspace.stat().st_uid, world.workspace.stat().st_gid)
    make = ["sh", "-c", "rm -f part/made; echo > part/made; stat -c %a part/made"]
    part = Grant(read=["."], write=["part"])
    with opened(world) as session:
        assert said(session.run(make, grant=part)) == mode
        assert said(session.run(["sh", "-c", PRIVATE])) == "600"
        assert said(session.run(make, grant=part)) == mode
        assert said(session.run(["sh", "-c", "umask 027; echo > part/own; stat -c %a part/own"], grant=part)) == "640"
        assert said(session.run(make)) == mode


def test_what_a_process_hands_down_is_followed(world: World) -> None:
    with opened(world) as session:
        program = "umask 077; (umask 022; echo > a); sh -c 'echo > b'; (umask 002; sh -c 'echo > c'); stat -c %a a b c"

        assert said(session.run(["sh", "-c", program])).split() == ["644", "600", "664"]
