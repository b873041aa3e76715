"""asyncio's loop, with descriptors beside it that are a callback's alone.

What a relay waits for changes with every connection, and asyncio's ``add_reader`` makes a handle, a selector's key and a
task's context for each change and each call: a third of the gateway's own time in a short connection. ``Selector`` is what
asyncio waits with, and calls those callbacks itself, from within ``select``: everything else of asyncio works as it does.
"""

from __future__ import annotations

import asyncio
import math
import select
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_Callback = Callable[[], None]
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_AT_LEAST = 16


class Selector(selectors.BaseSelector):
    """``epoll(7)``, as ``selectors.EpollSelector``; and ``watch``."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._watched: dict[int, tuple[_Callback | None, _Callback | None]] = {}
        self.failed: Callable[[Exception], None] | None = None
        """Called with what a callback raised."""

    # --- a callback's alone

    def watch(self, descriptor: int, what: int, call: _Callback) -> None:
        """Call ``call`` whenever ``descriptor`` is ready for ``what`` (READ or WRITE), or broken. It is not asyncio's too."""
        self._set(descriptor, what, call)

    def unwatch(self, descriptor: int, what: int) -> None:
        """Call nothing any more for ``what``."""
        self._set(descriptor, what, None)

    def forget(self, descriptor: int, *, copied: bool = False) -> None:
        """It is about to be closed. The kernel forgets it then, unless it is ``copied``: other descriptors refer to the same
        (``epoll(7)``, Q6)."""
        if self._watched.pop(descriptor, None) is not None and copied:
            self._epoll.unregister(descriptor)

    def _set(self, descriptor: int, what: int, call: _Callback | None) -> None:
        reader, writer = self._watched.get(descriptor, (None, None))
        before = _mask(reader is not None, writer is not None)
        reader, writer = (call, writer) if what == READ else (reader, call)
        mask = _mask(reader is not None, writer is not None)
        if mask:
            self._watched[descriptor] = (reader, writer)
        else:
            self._watched.pop(descriptor, None)
        if mask == before:
            return
        if not before:
            self._epoll.register(descriptor, mask)
        elif mask:
            self._epoll.modify(descriptor, mask)
        else:
            self._epoll.unregister(descriptor)

    # --- asyncio's

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As the base class."""
        descriptor = _number(fileobj)
        if descriptor in self._keys:
            raise KeyError(f"{fileobj!r} is registered already")
        key = selectors.SelectorKey(fileobj, descriptor, events, data)
        self._epoll.register(descriptor, _mask(bool(events & READ), bool(events & WRITE)))
        self._keys[descriptor] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """As the base class."""
        key = self._keys.pop(_number(fileobj))
        try:
            self._epoll.unregister(key.fd)
        except OSError:
            pass  # it was closed meanwhile
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As the base class."""
        descriptor = _number(fileobj)
        key = self._keys[descriptor]._replace(events=events, data=data)
        self._epoll.modify(descriptor, _mask(bool(events & READ), bool(events & WRITE)))
        self._keys[descriptor] = key
        return key

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """As the base class."""
        return self._keys[_number(fileobj)]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """By descriptor."""
        return self._keys

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What of asyncio's is ready. What is a callback's has been called."""
        wait = -1.0 if timeout is None else 0.0 if timeout <= 0 else math.ceil(timeout * 1e3) * 1e-3
        try:
            events = self._epoll.poll(wait, max(len(self._keys) + len(self._watched), _AT_LEAST))
        except InterruptedError:
            return []
        found: list[tuple[selectors.SelectorKey, int]] = []
        for descriptor, event in events:
            watched = self._watched.get(descriptor)
            if watched is not None:
                # Broken is ready for both: whoever reads or writes is told the error.
                if event & ~_OUT and watched[0] is not None:
                    self._call(watched[0])
                if event & ~_IN and watched[1] is not None and self._watched.get(descriptor) == watched:
                    self._call(watched[1])
                continue
            key = self._keys.get(descriptor)
            if key is not None:
                ready = (READ if event & ~_OUT else 0) | (WRITE if event & ~_IN else 0)
                found.append((key, ready & key.events))
        return found

    def _call(self, call: _Callback) -> None:
        try:
            call()
        except Exception as error:
            if self.failed is None:
                raise
            self.failed(error)

    def close(self) -> None:
        """As the base class."""
        self._epoll.close()
        self._keys.clear()
        self._watched.clear()


class Loop(asyncio.SelectorEventLoop):
    """A loop with such a selector."""

    def __init__(self) -> None:
        self.watcher = Selector()
        super().__init__(self.watcher)
        self.watcher.failed = self._failed

    def _failed(self, error: Exception) -> None:
        self.call_exception_handler({"message": "a connection's callback failed", "exception": error})


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """As ``asyncio.run``, with this loop."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(main)


def _mask(reads: bool, writes: bool) -> int:
    return (_IN if reads else 0) | (_OUT if writes else 0)


def _number(fileobj: Any) -> int:
    """The descriptor of an object, as ``selectors`` has it. Raises ValueError."""
    descriptor = fileobj if isinstance(fileobj, int) else int(fileobj.fileno())
    if descriptor < 0:
        raise ValueError(f"not a descriptor: {fileobj!r}")
    return descriptor
