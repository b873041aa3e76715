"""What is left of a call's thread that cannot be had."""

from __future__ import annotations

import errno
import marshal
import os
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest

from remit.sandbox.kernel import process, sockets
from remit.sandbox.launch.armer import Armer
from remit.sandbox.launch.jail import Jail


class Cell:
    """Of a cell, what is to be closed once."""

    sockets = None
    namespaces: tuple[tuple[int, int], ...] = ()
    descriptors: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.ends, self.life = os.pipe2(os.O_CLOEXEC)
        self.did: list[str] = []

    def close(self) -> None:
        self.did.append("close")

    def cut(self) -> None:
        if self.life >= 0:
            os.close(self.life)
            self.life = -1

    def end(self) -> None:
        self.cut()
        self.did.append("end")


@pytest.mark.parametrize("what", ["thread", "table"])
def test_what_was_made_for_a_thread_is_closed_once(what: str) -> None:
    """There is no memory for a thread, or none for a descriptor table of its own: then it still has the one of all."""
    cell = Cell()
    jails: dict[int, Jail] = {}
    cells = SimpleNamespace(take=lambda policy: cell, keeps=lambda policy: False)  # pyright: ignore[reportUnknownLambdaType]
    policy = SimpleNamespace(allow=lambda cell: None, egress=None)  # pyright: ignore[reportUnknownLambdaType]
    armer = Armer(cast("Any", cells), cast("Any", None), -1, jails, set(), lambda *_: None)
    lacking = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    refused = (
        patch("remit.sandbox.launch.armer._thread.start_new_thread", side_effect=RuntimeError("can't start new thread"))
        if what == "thread"
        else patch.object(process, "unshare", side_effect=lacking)
    )
    with refused:
        if what == "thread":
            with pytest.raises(RuntimeError):
                armer._arm(cast("Any", policy), 7)  # pyright: ignore[reportPrivateUsage]
        else:
            armer._arm(cast("Any", policy), 7)  # pyright: ignore[reportPrivateUsage]
            number, kind, *_ = marshal.loads(sockets.receive(armer.told, 4096)[0])
            assert (number, kind) == (7, "broken")
    assert sorted(cell.did) == ["close", "end"]
    assert os.read(cell.ends, 1) == b""  # no copy of its other end is left
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(jails[7].woken)
    for descriptor in (cell.ends, jails[7].wake, armer.told):
        os.close(descriptor)
