"""Arms calls: the thread that every call's thread comes from.

It starts when the session's first process is in the Landlock domain *session* already, and has its capabilities still: so what
it starts is below the mediator's domain, and can enter a cell.
"""

from __future__ import annotations

import _thread
import marshal
import posix
import select

from remit.sandbox.kernel import process, sockets
from remit.sandbox.launch.ground import told
from remit.sandbox.launch.jail import Jail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from remit.sandbox.launch.cells import Cells
    from remit.sandbox.launch.ground import Ground
    from remit.sandbox.launch.policy import Policy


class Armer:
    """Starts a thread for each policy it is given, and says on ``told`` what came of it."""

    def __init__(
        self,
        cells: Cells,
        ground: Ground,
        control: int,
        jails: dict[int, Jail],
        revoked: set[str],
        tell_end: Callable[..., None],
    ) -> None:
        """``jails``: where each is entered before it runs. ``control``, ``revoked``, ``tell_end``: for them (``Jail``)."""
        self._cells, self._ground, self._control = cells, ground, control
        self._jails, self._revoked, self._tell_end = jails, revoked, tell_end
        self.told, self._arms = sockets.packet_pair()
        """Where the threads' messages arrive: a number, what, and more of it."""
        self._jobs_read, self._jobs = posix.pipe2(posix.O_CLOEXEC)
        self._queue: list[tuple[Policy, int]] = []

    def start(self) -> None:
        """Its thread, from the one that this is called on."""
        _thread.start_new_thread(self._serve, ())

    def arm(self, policy: Policy, number: int) -> None:
        """One more thread for the policy's calls, with this number. What is wrong is told."""
        self._queue.append((policy, number))
        posix.write(self._jobs, b"a")

    def _serve(self) -> None:
        """The thread: one armed call for each byte, each with this one's umask."""
        process.unshare(process.CLONE_FS)
        jobs = select.poll()
        jobs.register(self._jobs_read, select.POLLIN)
        while True:
            self._cells.prepare(jobs)
            if not posix.read(self._jobs_read, 1):
                return
            policy, number = self._queue.pop(0)
            try:
                self._arm(policy, number)
            except (OSError, RuntimeError) as error:  # the latter: a thread too many
                sockets.send(self._arms, marshal.dumps((number, "broken", *told(error))))

    def _arm(self, policy: Policy, number: int) -> None:
        """Raises OSError, RuntimeError, and then nothing of it is left."""
        cell = self._cells.take(policy)
        life = cell.life  # which its thread forgets when it ends the cell
        jail = None
        try:
            policy.allow(cell)
            if cell.sockets is not None and policy.egress is not None:
                _, rules, *_, variables = policy.egress
                cell.sockets.send(self._control, number, rules, variables)
            jail = Jail(
                number,
                policy,
                cell,
                self._ground,
                self._control,
                self._arms,
                self._revoked,
                self._tell_end,
                self._cells.keeps,
            )
            self._jails[number] = jail
            _thread.start_new_thread(jail.run, ())
        except (OSError, RuntimeError):
            cell.close()
            cell.end()
            if jail is not None:
                posix.close(jail.woken)
            raise
        # The thread makes itself a copy of this table and closes there what is not its own; here, what is.
        jail.separated.acquire()
        cell.close()
        if jail.parted:
            posix.close(life)
        else:
            cell.end()
        posix.close(jail.woken)
