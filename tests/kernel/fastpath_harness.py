"""A process under a filter, that makes the calls it is asked for, and the fast path that answers them or does not."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from errno import EPERM
from pathlib import Path
from typing import Any

from remit.sandbox.compile.seccomp import build_filter
from remit.sandbox.kernel import notify, process
from remit.sandbox.kernel.call import MACHINE
from remit.sandbox.kernel.fastpath import DONE, LEFT, FastPath, Others
from remit.sandbox.kernel.placement import Placement

NAMES = (b"hooks", b".git", b"secret.txt")
"""What is never ordinary."""
DEVICES = (b"/dev/null",)
Event = tuple[float, int, int, int, tuple[bytes, ...], bytes, int]


class Caller:
    """The process: ``start`` has it make a call, ``result`` tells what became of it."""

    def __init__(self, pid: int, channel: socket.socket, listener: int) -> None:
        self.pid = pid
        self.listener = notify.Listener(listener)
        self._channel = channel

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._channel.send(pickle.dumps((function, arguments)))

    def result(self) -> Any:
        """What the function returned, or its errno as a negative number."""
        return pickle.loads(self._channel.recv(65536))


@contextmanager
def caller(directory: Path, *, prepare: Callable[[], object] = lambda: None) -> Generator[Caller]:
    """In ``directory``, after ``prepare``."""
    program = build_filter((), notify=True, brokered_reads=False, machine=MACHINE)
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            mine.close()
            os.chdir(directory)
            prepare()
            process.no_new_privileges()
            listener = notify.load_filter(program, listener=True)
            socket.send_fds(its, [b"l"], [listener])
            os.close(listener)
            while request := its.recv(65536):
                function, arguments = pickle.loads(request)
                try:
                    value = function(*arguments)
                except OSError as error:
                    value = -(error.errno or 0)
                its.send(pickle.dumps(value))
        finally:
            os._exit(0)
    its.close()
    _, descriptors, _, _ = socket.recv_fds(mine, 16, 1)
    try:
        yield Caller(pid, mine, descriptors[0])
    finally:
        mine.close()
        os.close(descriptors[0])
        os.waitpid(pid, 0)


class Session:
    """A caller, and a fast path for what is below a directory."""

    def __init__(self, caller: Caller, root: Path, placement: Placement | None = None) -> None:
        self.caller = caller
        self.root = root
        self.anchor = os.open(root, os.O_PATH)
        caller.listener.synchronous(placement)
        self.fast = FastPath(NAMES, DEVICES, caller.listener.placement, anybody=False)
        self.allow(root)
        self.fast.know(caller.pid)

    def allow(self, directory: Path) -> None:
        self.fast.allow(os.fsencode(directory), self.anchor, len(os.fsencode(self.root)) + 1)

    def close(self) -> None:
        os.close(self.anchor)

    def call(
        self, function: Callable[..., Any], *arguments: Any, as_started: bool = True, others: Others | None = None
    ) -> tuple[bool, Any, list[Event]]:
        """(whether the fast path answered, what the caller got, what is to be told). What is left gets EPERM."""
        self.caller.start(function, *arguments)
        answer = self.fast.step(self.caller.listener.fd, others, as_started=as_started)
        if answer == LEFT:
            self.caller.listener.reply(self.fast.notification()[0], error=EPERM)
        else:
            assert answer == DONE
        return answer == DONE, self.caller.result(), [*self.fast.events()]
