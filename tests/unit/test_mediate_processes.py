"""Whose limits a process changes, as the mediator judges it: numbers as /proc has them, without a session."""

from __future__ import annotations

import os
import threading
from errno import EMFILE, EPERM
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from remit.sandbox.mediate import processes
from remit.sandbox.mediate.calls import PROCEED
from remit.sandbox.mediate.processes import Processes
from remit.sandbox.mediate.resolve import own_numbers

ABOVE = 1 << 32


def handlers(pid: int) -> Processes:
    """For a caller with this number."""

    def denied(right: str, path: bytes, rule: str, errno: int) -> OSError:
        assert (right, path) == ("call", b"")
        assert rule.endswith(" is refused")
        return OSError(errno, rule)

    calls: Any = SimpleNamespace(view=SimpleNamespace(pid=pid), rules=None, repository=None, denied=denied)
    return Processes(calls)


def test_own_numbers_are_the_processs_and_the_threads() -> None:
    found: list[tuple[int, tuple[int, int]]] = []

    def look() -> None:
        found.append((threading.get_native_id(), own_numbers(threading.get_native_id())))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    ((number, numbers),) = found
    own = int(os.readlink("/proc/self"))
    assert numbers == (own, number)
    assert number != own


@pytest.mark.parametrize("bits", [0, ABOVE])
def test_only_its_own_limits_are_a_processs_to_change(bits: int) -> None:
    own = os.getpid()
    assert handlers(own).prlimit64(own | bits, 7, 4096) == PROCEED
    for other in (1, os.getppid(), own + 1, 0xFFFFFFFF):
        with pytest.raises(PermissionError) as refused:
            handlers(own).prlimit64(other | bits, 7, 4096)
        assert refused.value.errno == EPERM


def test_what_cannot_be_looked_up_is_refused_and_not_left_to_the_kernel() -> None:
    """An error before anything was done is otherwise the kernel's to find: here it would change the limits."""
    own = os.getpid()
    with (
        patch.object(processes, "own_numbers", side_effect=OSError(EMFILE, "Too many open files")),
        pytest.raises(PermissionError),
    ):
        handlers(own).prlimit64(own, 7, 4096)
