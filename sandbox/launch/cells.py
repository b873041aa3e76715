"""The cells of one session: made by a thread of their own, ahead where it can be, and kept when a call has left nothing in them.

The maker's thread starts before the session's first process confines itself (``cell``). It makes one cell for each request
of the armer's thread; the mediator's thread takes back those that were left.
"""

from __future__ import annotations

import _thread
import posix
import time

from remit.sandbox.kernel import process
from remit.sandbox.launch.cell import Maker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import select
    from collections.abc import Sequence

    from remit.sandbox.launch.cell import Cell
    from remit.sandbox.launch.policy import Policy
    from remit.sandbox.launch.wire import Operation

_SHARED, _PRIVATE, _SILENT = b"s", b"p", b"q"
"""Kinds of cells: in the session's network; in one of its own; in one of its own that has not even a loopback."""
_SPARES = 2
"""Cells of each kind that are kept at most for threads that are not armed yet."""
_QUIET_MS = 5
"""Nothing was to be armed for so long: time to make a cell that will be wanted at once."""
_SHORTAGE = 30.0
"""Seconds for which nothing is kept after something was short."""


class Cells:
    """What is there, by kind, and who makes more. All but ``take`` and ``prepare`` are for the mediator's thread."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        """Starts the maker's thread, which has what this one has: every capability, and no Landlock domain."""
        self._maker = Maker(operations)
        self._made: list[Cell | OSError] = []
        self._ways: list[Operation | None] = []
        self._spares: dict[bytes, list[Cell]] = {_SHARED: [], _PRIVATE: [], _SILENT: []}
        """Cells that nobody is in, for any call: by their kind, without a way out."""
        self._wanted: set[bytes] = set()
        self._keeps_from = 0.0
        """On the monotonic clock."""
        self._asked_read, self._asked = posix.pipe2(posix.O_CLOEXEC)
        self._ready_read, self._ready = posix.pipe2(posix.O_CLOEXEC)
        _thread.start_new_thread(self._serve, ())

    @property
    def places(self) -> tuple[str, ...]:
        """Where a cell's own file systems lie (``Maker.places``)."""
        return self._maker.places

    def take(self, policy: Policy) -> Cell:
        """One for a thread of this policy's, for it alone. On the armer's thread. Raises OSError."""
        kind = _kind(policy)
        if policy.egress is None:
            self._wanted.add(kind)
            spare = self._spare(kind)
            if spare is not None:
                return spare
        return self._make(kind, policy.egress)

    def prepare(self, jobs: select.poll) -> None:
        """Make what will be wanted, until there is something to do. On the armer's thread."""
        for kind in [kind for kind in self._wanted if not self._spares[kind]]:
            if not self._keeping or jobs.poll(_QUIET_MS):
                return
            try:
                self._spares[kind].append(self._make(kind, None))
            except OSError:
                self._keep_nothing()

    def keeps(self, policy: Policy) -> bool:
        """Whether one that a thread of this policy's leaves would be kept. On any thread."""
        return self._keeping and len(self._spares[_kind(policy)]) < _SPARES

    def keep(self, cell: Cell, policy: Policy, came: Sequence[int]) -> None:
        """A cell that a thread has left, with what it gave (``Cell.leave``)."""
        left = cell.left(came)
        if left is None:
            # There was no room for its descriptors: its life ended with the message.
            for descriptor in came:
                posix.close(descriptor)
            posix.waitpid(cell.init, 0)
        elif self.keeps(policy):
            self._spares[_kind(policy)].append(left)
        else:
            left.close()
            left.end()

    def make_room(self) -> None:
        """Something is short: nothing is kept for later, for a while."""
        self._keep_nothing()
        for kind in self._spares:
            while (spare := self._spare(kind)) is not None:
                spare.close()
                spare.end()

    @property
    def _keeping(self) -> bool:
        return time.monotonic() >= self._keeps_from

    def _keep_nothing(self) -> None:
        self._keeps_from = time.monotonic() + _SHORTAGE

    def _spare(self, kind: bytes) -> Cell | None:
        try:
            return self._spares[kind].pop()
        except IndexError:
            return None

    def _make(self, kind: bytes, way: Operation | None) -> Cell:
        """Have the maker make one. Raises OSError."""
        self._ways.append(way)
        posix.write(self._asked, kind)
        posix.read(self._ready_read, 1)
        made = self._made.pop()
        if isinstance(made, OSError):
            try:
                raise made
            finally:
                del made  # its traceback has this frame: a cycle, and nothing is collected here
        return made

    def _serve(self) -> None:
        """The maker's thread: one cell for each byte, of that kind."""
        # The mediator sets the main thread's umask; what starts on another thread has the session's.
        process.unshare(process.CLONE_FS)
        process.raise_ambient(process.CAP_SYS_ADMIN)
        while kind := posix.read(self._asked_read, 1):
            try:
                made: Cell | OSError = self._maker.make(
                    private=kind != _SHARED, loopback=kind != _SILENT, egress=self._ways.pop()
                )
            except OSError as error:
                made = error
            self._made.append(made)
            posix.write(self._ready, b"c")


def _kind(policy: Policy) -> bytes:
    """Of its cells."""
    return (_PRIVATE if policy.loopback else _SILENT) if policy.private else _SHARED
