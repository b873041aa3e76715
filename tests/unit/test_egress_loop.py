"""The gateway's loop: asyncio as it is, and descriptors that are a callback's alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from typing import cast

import pytest

from remit.sandbox.egress.loop import READ, WRITE, Loop, Selector, run


@pytest.fixture
def selector() -> Iterator[Selector]:
    made = Selector()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with contextlib.ExitStack() as stack:
        one, other = (stack.enter_context(sock) for sock in socket.socketpair())
        yield one, other


def test_a_callback_is_called_for_what_it_waits_for_alone(
    selector: Selector, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    called: list[str] = []
    selector.watch(one.fileno(), READ, lambda: called.append("read"))
    assert selector.select(0) == []
    assert called == []
    other.send(b"x")
    selector.select(0)
    assert called == ["read"]
    selector.watch(one.fileno(), WRITE, lambda: called.append("write"))
    selector.select(0)
    assert called == ["read", "read", "write"]
    selector.unwatch(one.fileno(), READ)
    selector.select(0)
    assert called[3:] == ["write"]
    selector.unwatch(one.fileno(), WRITE)
    selector.unwatch(one.fileno(), WRITE)
    selector.select(0)
    assert called[4:] == []


def test_a_broken_one_is_ready_for_both(selector: Selector, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    called: list[str] = []
    selector.watch(one.fileno(), READ, lambda: called.append("read"))
    other.close()
    selector.select(0)
    selector.unwatch(one.fileno(), READ)
    selector.watch(one.fileno(), WRITE, lambda: called.append("write"))
    selector.select(0)
    assert called == ["read", "write"]


def test_what_one_callback_takes_away_the_other_is_not_called_for(
    selector: Selector, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    called: list[str] = []

    def read() -> None:
        called.append("read")
        selector.forget(one.fileno())
        one.close()

    selector.watch(one.fileno(), READ, read)
    selector.watch(one.fileno(), WRITE, lambda: called.append("write"))
    other.send(b"x")
    selector.select(0)
    selector.select(0)
    assert called == ["read"]


def test_a_copied_descriptor_is_taken_out_of_the_kernels_set(
    selector: Selector, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    number = os.dup(one.fileno())
    selector.watch(number, READ, lambda: None)
    other.send(b"x")
    selector.forget(number, copied=True)
    os.close(number)
    called: list[str] = []
    again = os.dup(one.fileno())
    assert again == number
    try:
        selector.watch(again, READ, lambda: called.append("again"))  # EEXIST, were it still there
        selector.select(0)
    finally:
        os.close(again)
    assert called == ["again"]


def test_a_callback_that_fails_ends_nothing_else(selector: Selector, pair: tuple[socket.socket, socket.socket]) -> None:
    failed: list[Exception] = []
    selector.failed = failed.append
    one, other = pair
    called: list[str] = []

    def fail() -> None:
        raise ValueError("so")

    selector.watch(one.fileno(), WRITE, fail)
    selector.watch(other.fileno(), WRITE, lambda: called.append("other"))
    selector.select(0)
    assert [str(error) for error in failed] == ["so"]
    assert called == ["other"]


def test_asyncio_works_on_it_beside_callbacks() -> None:
    async def main() -> None:
        loop = cast("Loop", asyncio.get_running_loop())
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b""
            writer.close()
        one, other = socket.socketpair()
        with one, other:
            came: asyncio.Future[bytes] = loop.create_future()

            def read() -> None:
                loop.watcher.unwatch(one.fileno(), READ)
                came.set_result(one.recv(9))

            loop.watcher.watch(one.fileno(), READ, read)
            loop.call_later(0.01, other.send, b"late")
            assert await asyncio.wait_for(came, 20) == b"late"
            told: list[dict[str, object]] = []
            loop.set_exception_handler(lambda _, context: told.append(context))

            def fail() -> None:
                loop.watcher.unwatch(one.fileno(), WRITE)
                raise ZeroDivisionError

            loop.watcher.watch(one.fileno(), WRITE, fail)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert [type(context["exception"]) for context in told] == [ZeroDivisionError]
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 0

    run(main())


def test_asyncios_own_are_known_by_number_and_once(
    selector: Selector, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = pair
    key = selector.register(one, READ, "data")
    assert selector.get_key(one.fileno()) is selector.get_map()[one.fileno()] is key
    with pytest.raises(KeyError):
        selector.register(one, READ)
    with pytest.raises(KeyError):
        selector.get_key(other)
    with pytest.raises(ValueError, match="not a descriptor"):
        selector.register(-1, READ)
    other.send(b"x")
    assert selector.select(0) == [(key, READ)]
    changed = selector.modify(one, READ | WRITE, "more")
    assert selector.select(0) == [(changed, READ | WRITE)]
    assert selector.unregister(one) is changed
    assert selector.select(0) == []
    with pytest.raises(KeyError):
        selector.unregister(one)
