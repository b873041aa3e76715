"""A process between a call and its command, for one that is a job on a terminal: it leads the session that the terminal controls.

A process group whose parents are all in other sessions is orphaned, and the kernel discards its stop signals: Ctrl-Z would do
nothing (``setpgid(2)``). Nobody enters a session, so the command's parent has to be in it before it starts: a fork of the
call's thread, which is confined as that is, makes the session, starts the command in a group of its own, and tells the thread
how that went, when it stops and how it ended. Without a terminal there is none (``Running``), and nothing is forked.

It is among the command's processes, which have its uid: they can stop it or kill it, and then hear nothing more of themselves;
the call ends. Not dumpable, as what it was forked from, it is closed to them otherwise.
"""

from __future__ import annotations

import marshal
import posix
from errno import EAGAIN
from fcntl import ioctl

from remit.sandbox.kernel import memory, process, sockets
from remit.sandbox.launch import program
from remit.sandbox.launch.descriptors import keep
from remit.sandbox.launch.ground import told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SIGKILL = 9
_SIGNALS = tuple(range(1, 65))
_TIOCSCTTY = 0x540E
_MESSAGE = 1 << 14
_ASKS = "asks"


class Leader:
    """Seen from the call's thread. Raises OSError: no process is left for it."""

    __slots__ = ("_mail", "channel", "pid")

    def __init__(
        self, terminal: int, descriptors: tuple[int, ...], argv: list[bytes], environment: list[bytes], directory: bytes
    ) -> None:
        """``terminal``: a slave that is no session's yet."""
        self._mail = sockets.Receiver(_MESSAGE)
        self.channel, theirs = sockets.packet_pair()
        try:
            # Not clone3, which gives the interpreter up while it runs, and leaves locks to threads that the child has not.
            self.pid = posix.fork()
        except OSError:
            posix.close(self.channel)
            posix.close(theirs)
            raise
        if self.pid == 0:
            try:
                _lead(theirs, terminal, descriptors, argv, environment, directory)
            finally:
                process.leave(125)
        posix.close(theirs)

    def heard(self) -> tuple[Any, ...] | None:
        """The next message: ``asks`` whether it may try to start the command, ``started``, ``failed`` (a failure), ``stopped``,
        ``ended`` (as ``process.ended``), ``gone``. None: there is none now."""
        try:
            data, _ = self._mail.receive(self.channel, wait=False)
        except BlockingIOError:
            return None
        return tuple(marshal.loads(data)) if data else ("gone",)

    def go(self) -> None:
        """To one that ``asks``."""
        try:
            sockets.say(self.channel, b"g")
        except OSError:
            pass  # it is gone, which is heard next

    def reap(self) -> None:
        """Once. The command's process has ended, or is ending with the cell; it goes with this one, whose child it is."""
        process.kill(self.pid, _SIGKILL)  # somebody inside may have stopped it
        posix.waitpid(self.pid, 0)
        posix.close(self.channel)


def _lead(
    channel: int,
    terminal: int,
    descriptors: tuple[int, ...],
    argv: list[bytes],
    environment: list[bytes],
    directory: bytes,
) -> None:
    """In the child. Returns when there is nothing more to say."""
    process.block_signals(
        _SIGNALS
    )  # the command's ``kill -TERM -1`` is not meant for it; the command itself has none blocked
    keep(channel, terminal, *descriptors)
    process.set_name(b"remit-call")
    try:
        memory.forget_caller(memory.own_strings())
    except OSError:
        pass  # the call may not read /proc, where they would be seen

    def ask() -> None:
        sockets.say(channel, marshal.dumps((_ASKS,)))
        if not posix.read(channel, 1):
            process.leave(125)

    try:
        posix.setsid()
        ioctl(terminal, _TIOCSCTTY, 0)
        pid = program.start(
            argv,
            environment,
            directory=directory,
            descriptors=descriptors,
            new_group=True,
            foreground=terminal,
            about_to=ask,
        )
    except Exception as error:
        sockets.say(channel, marshal.dumps(("failed", *told(error))))
        return
    keep(channel)
    sockets.say(channel, marshal.dumps(("started",)))
    pidfd = process.pidfd_open(pid)
    while process.next_stop(pidfd):
        try:
            sockets.send(channel, marshal.dumps(("stopped",)), wait=False)
        except OSError as error:
            if error.errno != EAGAIN:  # enough is told that was not heard yet
                raise
    ended = process.ended(pid)
    if ended is not None:
        sockets.say(channel, marshal.dumps(("ended", *ended)))
    # Until this process is killed, there is the command's, by whose number the mediator may still ask for it.
    while posix.read(channel, 1):
        pass
