"""Which cells are made, kept and given up; with a maker that makes none."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from remit.sandbox.launch import cells as module
from remit.sandbox.launch.cells import Cells


@dataclass
class FakeCell:
    """One that can be left as often as is wanted, and says how it ended."""

    how: dict[str, Any]
    init: int = 0
    complete: bool = True
    ended: list[str] = field(default_factory=list[str])

    def left(self, _came: object) -> FakeCell | None:
        return self if self.complete else None

    def close(self) -> None:
        self.ended.append("closed")

    def end(self) -> None:
        self.ended.append("ended")


class FakeMaker:
    places = ("/proc",)

    def __init__(self, _operations: object) -> None:
        self.made: list[FakeCell] = []
        self.fails = False

    def make(self, **how: Any) -> FakeCell:
        if self.fails:
            raise OSError(24, "Too many open files")
        self.made.append(FakeCell(how))
        return self.made[-1]


class FakeProcess:
    CLONE_FS = CAP_SYS_ADMIN = 0

    @staticmethod
    def unshare(_what: int) -> None: ...

    @staticmethod
    def raise_ambient(_what: int) -> None: ...


@dataclass
class World:
    cells: Any
    maker: FakeMaker
    quiet: select.poll
    clock: list[float]

    def later(self, seconds: float) -> None:
        self.clock[0] += seconds


def policy(*, private: bool = False, loopback: bool = True, egress: object = None) -> Any:
    return SimpleNamespace(private=private, loopback=loopback, egress=egress)


@contextmanager
def opened() -> Generator[World, None, None]:
    clock = [100.0]
    threads: list[threading.Thread] = []

    def start(run: Callable[[], None], _arguments: tuple[()]) -> None:
        threads.append(threading.Thread(target=run))
        threads[-1].start()

    with (
        patch.object(module, "_thread", SimpleNamespace(start_new_thread=start)),
        patch.object(module, "Maker", FakeMaker),
        patch.object(module, "process", FakeProcess),
        patch.object(module, "time", SimpleNamespace(monotonic=lambda: clock[0])),
    ):
        cells: Any = Cells(())
        try:
            yield World(cells, cells._maker, select.poll(), clock)
        finally:
            os.close(cells._asked)
            threads[0].join()
            # Not before: it would read whatever has the number by then.
            for end in (cells._asked_read, cells._ready, cells._ready_read):
                os.close(end)


@pytest.fixture
def world() -> Generator[World, None, None]:
    with opened() as made:
        yield made


def test_what_was_wanted_once_is_made_ahead(world: World) -> None:
    world.cells.prepare(world.quiet)
    assert world.maker.made == []  # nobody has asked for any
    first = world.cells.take(policy())
    world.cells.prepare(world.quiet)
    world.cells.prepare(world.quiet)
    assert len(world.maker.made) == 2
    assert world.cells.take(policy()) is world.maker.made[1] is not first
    assert len(world.maker.made) == 2


def test_nothing_is_made_ahead_while_there_is_something_to_do(world: World) -> None:
    world.cells.take(policy())
    reading, writing = os.pipe()
    try:
        busy = select.poll()
        busy.register(reading, select.POLLIN)
        os.write(writing, b"a")
        world.cells.prepare(busy)
        assert len(world.maker.made) == 1
        os.read(reading, 1)
        world.cells.prepare(busy)  # the other arm
        assert len(world.maker.made) == 2
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(
    ("asks", "how"),
    [
        ({}, {"private": False, "loopback": True, "egress": None}),
        ({"private": True}, {"private": True, "loopback": True, "egress": None}),
        ({"private": True, "loopback": False}, {"private": True, "loopback": False, "egress": None}),
        ({"private": True, "egress": "way"}, {"private": True, "loopback": True, "egress": "way"}),
    ],
    ids=["shared", "private", "silent", "egress"],
)
def test_a_policy_gets_cells_of_its_kind_and_no_other(world: World, asks: dict[str, Any], how: dict[str, Any]) -> None:
    others: list[dict[str, Any]] = [{}, {"private": True}, {"private": True, "loopback": False}]
    for other in others:
        if other != asks:
            world.cells.take(policy(**other))
    world.cells.prepare(world.quiet)
    assert world.cells.take(policy(**asks)).how == how
    if "egress" in asks:
        assert world.cells.take(policy(**asks)).how == how  # with a way out, none is a spare one


def test_those_that_were_left_are_kept_up_to_a_number(world: World) -> None:
    taken = [world.cells.take(policy()) for _ in range(4)]
    kept: list[FakeCell] = []
    for cell in taken:
        if world.cells.keeps(policy()):
            kept.append(cell)
        world.cells.keep(cell, policy(), [])
    assert len(kept) == 2
    assert [cell.ended for cell in taken] == [[], [], ["closed", "ended"], ["closed", "ended"]]
    assert world.cells.keeps(policy(private=True))
    assert {id(world.cells.take(policy())) for _ in kept} == {id(cell) for cell in kept}


def test_one_that_was_left_in_part_is_given_up(world: World) -> None:
    cell = world.cells.take(policy())
    cell.complete, cell.init = False, os.fork() or os._exit(0)
    reading, writing = os.pipe()
    try:
        world.cells.keep(cell, policy(), [writing])
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(writing)
    finally:
        os.close(reading)
    with pytest.raises(ChildProcessError):
        os.waitpid(cell.init, 0)
    assert world.cells.take(policy()) is not cell


def short_of_room(world: World) -> None:
    world.cells.make_room()


def short_of_a_cell(world: World) -> None:
    while world.cells._spares[b"s"]:
        world.cells.take(policy())
    world.maker.fails = True
    world.cells.prepare(world.quiet)
    world.maker.fails = False


@pytest.mark.parametrize("happens", [short_of_room, short_of_a_cell])
def test_after_a_shortage_nothing_is_kept_for_a_while(world: World, happens: Callable[[World], None]) -> None:
    cell = world.cells.take(policy())
    world.cells.prepare(world.quiet)
    happens(world)
    count = len(world.maker.made)

    world.later(29)
    world.cells.prepare(world.quiet)
    assert len(world.maker.made) == count
    assert not world.cells.keeps(policy())
    world.cells.keep(cell, policy(), [])
    assert cell.ended == ["closed", "ended"]

    world.later(2)
    assert world.cells.keeps(policy())
    world.cells.prepare(world.quiet)
    assert len(world.maker.made) == count + 1


def test_room_is_made_of_all_that_is_kept(world: World) -> None:
    for asks in (policy(), policy(private=True), policy(private=True, loopback=False)):
        world.cells.take(asks)
    taken = [*world.maker.made]
    world.cells.prepare(world.quiet)
    spares = world.maker.made[len(taken) :]
    assert len(spares) == 3
    world.cells.make_room()
    assert [cell.ended for cell in spares] == [["closed", "ended"]] * 3
    assert [cell.ended for cell in taken] == [[]] * 3


def test_who_asks_hears_that_none_can_be_made(world: World) -> None:
    world.maker.fails = True
    with pytest.raises(OSError, match="Too many open files"):
        world.cells.take(policy())
    world.maker.fails = False
    assert world.cells.take(policy()) in world.maker.made
