"""The first process of a plain ``remit run``, started before anybody knows what for.

Making the namespaces and importing what runs in them takes as long as all that the launcher does until it has a plan. So
the launcher begins with the fork, and both go on side by side: the child imports, waits, and gets the plan as a message
instead of by its memory, of which it would have to copy every page that it touches.

Nothing has been decided when it starts, and nothing is lost if it is not wanted: it knows nothing, has every descriptor
but the standard ones and its socket closed, and ends when the launcher's end of that socket does. It builds what only it
can see, and enters that, and so does anything that the host could see, only when the launcher has made the session's
record. It serves the plan that wants all namespaces and no ids but the caller's own, which nearly every one does; for others
the launcher forks as ever.
"""

from __future__ import annotations

import marshal
import posix

from remit.sandbox.kernel import process, sockets
from remit.sandbox.launch.descriptors import keep
from remit.sandbox.launch.request import LARGEST
from remit.sandbox.launch.signals import FORWARDED, SIGKILL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

FLAGS = (
    process.CLONE_NEWUSER
    | process.CLONE_NEWNS
    | process.CLONE_NEWPID
    | process.CLONE_NEWNET
    | process.CLONE_NEWIPC
    | process.CLONE_NEWUTS
    | process.CLONE_NEWCGROUP
)
_LATER = process.CLONE_NEWNET
"""Two thirds of what the namespaces cost. The child makes it for itself, and the launcher need not wait."""


class Waiting:
    """A first process without a plan, seen from its launcher: its pid and the launcher's end of its socket."""

    __slots__ = ("control", "pid")

    def __init__(self, pid: int, control: int) -> None:
        self.pid = pid
        self.control = control

    def hand(self, request: tuple[Any, ...]) -> bool:
        """Give it its request. False: it cannot take it, and is given up."""
        try:
            posix.write(self.control, marshal.dumps(request))
        except OSError:  # too large for one message, or it died
            self.give_up()
            return False
        return True

    def give_up(self) -> None:
        """End it."""
        posix.close(self.control)
        try:
            posix.kill(self.pid, SIGKILL)
            posix.waitpid(self.pid, 0)
        except OSError:
            pass  # somebody waits for every child of this process, and did for this one


_waiting: list[Waiting] = []
_prepare: list[Callable[[], object]] = []


def begin(prepare: Callable[[], object], *descriptors: int) -> None:
    """Start it, unless there can be none. ``prepare`` imports what it will need, in the child, with ``descriptors`` open."""
    control, inside = sockets.packet_pair()
    who = posix.geteuid(), posix.getegid()
    # A terminal's signal goes to the child as well, where nobody waits for one before the session is set up.
    mask = process.block_signals(FORWARDED)
    try:
        pid = process.clone3(FLAGS & ~_LATER)
    except OSError:
        pid = -1  # the launcher's own attempt will say why
    if pid == 0:
        _serve(inside, who, prepare, descriptors)
    process.set_signal_mask(mask)
    posix.close(inside)
    if pid < 0:
        posix.close(control)
    else:
        _waiting.append(Waiting(pid, control))


def otherwise(prepare: Callable[[], object]) -> None:
    """There is none; ``prepare`` is for the child that the launcher forks when it has its plan."""
    _prepare.append(prepare)


def prepared() -> None:
    """In such a child: import what it needs, as far as ``otherwise`` has heard of it."""
    while _prepare:
        _prepare.pop()()


def take() -> Waiting | None:
    """The process, for whoever asks first."""
    return _waiting.pop() if _waiting else None


def give_up() -> None:
    """End the process that nobody has taken."""
    waiting = take()
    if waiting is not None:
        waiting.give_up()


def _serve(control: int, who: tuple[int, int], prepare: Callable[[], object], descriptors: tuple[int, ...]) -> None:
    """The child. Does not return."""
    try:
        keep(control, *descriptors)
        prepare()
        for descriptor in descriptors:
            posix.close(descriptor)
        from remit.sandbox.launch import ground, stage

        try:
            ground.begin(*who, _LATER)
        except (OSError, ground.Refused) as error:
            posix.write(control, marshal.dumps(("failed", *ground.told(error))))
            process.leave(125)
        data = posix.read(control, LARGEST)
        if data:
            stage.serve(control, marshal.loads(data))
    finally:
        process.leave(125)
