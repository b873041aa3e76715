"""The gateway's end of the control socket: what is told together, in which order, and what does not fit."""

from __future__ import annotations

import asyncio
import marshal
import socket
from typing import Any

import pytest

from remit.sandbox.egress import wire
from remit.sandbox.egress.control import Control
from remit.sandbox.egress.loop import run


class _End:
    """A control socket, of which this is the launcher's end."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self.left = 0
        self.control = Control(theirs, self._hear, self._end, self._written)

    def _hear(self, message: tuple[Any, ...], descriptors: list[int]) -> None:
        raise AssertionError(message, descriptors)

    def _end(self) -> None:
        raise AssertionError

    def _written(self) -> None:
        self.left += 1

    def heard(self) -> list[Any]:
        """Every message that has arrived."""
        found: list[Any] = []
        while True:
            try:
                found.append(marshal.loads(self.ours.recv(wire.MESSAGE_SIZE)))
            except BlockingIOError:
                return found

    def close(self) -> None:
        self.control.close()
        self.ours.close()


def test_what_may_wait_goes_with_what_may_not_and_before_it() -> None:
    async def main() -> None:
        end = _End()
        end.control.tell((1,), waits=True)
        end.control.tell((2,), waits=True)
        assert end.heard() == []
        assert end.left == 0
        end.control.tell((3,))
        assert end.heard() == [(wire.EVENTS, [(1,), (2,), (3,)])]
        assert end.left == 3
        end.control.send((wire.READY, b""))
        assert end.heard() == [(wire.READY, b"")]
        assert end.left == 3
        end.close()

    run(main())


def test_what_waits_is_told_by_itself_when_nothing_comes_or_too_much() -> None:
    async def main() -> None:
        end = _End()
        end.control.tell((1,), waits=True)
        await asyncio.get_running_loop().sock_recv(end.ours, 1)
        assert end.left == 1
        for number in range(64):
            end.control.tell((number,), waits=True)
        ((_, told),) = end.heard()
        assert told == [(number,) for number in range(64)]
        end.control.tell((9,), waits=True)
        await end.control.flushed()
        assert end.heard() == [(wire.EVENTS, [(9,)])]
        end.close()

    run(main())


def test_what_is_too_long_together_is_told_one_by_one() -> None:
    async def main() -> None:
        end = _End()
        for number in range(2):
            end.control.tell((number, str(number) * (wire.MESSAGE_SIZE // 2)), waits=True)
        end.control.tell((2,))
        told: list[Any] = []
        while end.left < 3 or len(told) < 3:
            told += end.heard()
            await asyncio.sleep(0)
        assert [len(events) for _, events in told] == [1, 1, 1]
        assert [events[0][0] for _, events in told] == [0, 1, 2]
        end.close()

    run(main())


@pytest.mark.parametrize("waits", [True, False])
def test_a_launcher_that_is_behind_gets_everything_in_order(waits: bool) -> None:
    async def main() -> None:
        end = _End()
        for number in range(5000):
            end.control.tell((number, "x" * 100), waits=waits)
        assert end.left < 5000
        flushed = asyncio.ensure_future(end.control.flushed())
        told: list[int] = []
        while not flushed.done():
            told += [event[0] for _, events in end.heard() for event in events]
            await asyncio.sleep(0)
        told += [event[0] for _, events in end.heard() for event in events]
        assert told == list(range(5000))
        assert end.left == 5000
        end.close()

    run(main())
