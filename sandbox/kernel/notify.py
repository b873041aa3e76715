"""seccomp: loading filters, and the user-notification listener (``seccomp_unotify(2)``)."""

from __future__ import annotations

from _struct import Struct
from errno import EINPROGRESS, EINTR, EINVAL, ENOENT
from fcntl import ioctl

from remit.sandbox.kernel.call import NR, address, call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from remit.sandbox.kernel.placement import Placement

SET_MODE_FILTER = 1
GET_ACTION_AVAIL = 2
GET_NOTIF_SIZES = 3
FILTER_FLAG_NEW_LISTENER = 1 << 3
FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5
USER_NOTIF_FLAG_CONTINUE = 1
ADDFD_FLAG_SEND = 2

_RECV = 0xC0502100
_SEND = 0xC0182101
_ID_VALID = 0x40082102
_ADDFD = 0x40182103
_SET_FLAGS = 0x40082104
_SYNC_WAKE_UP = 1

NOTIFICATION = Struct("=QIIiIQ6Q")
"""``struct seccomp_notif``."""
_RESPONSE = Struct("=QqiI")
_ADD = Struct("=QIIII")
_ID = Struct("=Q")
_EMPTY = bytes(NOTIFICATION.size)


def load_filter(program: bytes, *, listener: bool = False) -> int:
    """``seccomp(SECCOMP_SET_MODE_FILTER)`` for the calling thread. Returns the listener's descriptor, or 0 without one.

    The listener is made with WAIT_KILLABLE_RECV (Linux 5.19), so that a signal does not restart a call that is being
    performed; kernels without the flag get one without it.
    """
    header = (len(program) // 8).to_bytes(8, "little") + address(program).to_bytes(8, "little")
    if not listener:
        return call(NR["seccomp"], SET_MODE_FILTER, 0, header)
    try:
        return call(NR["seccomp"], SET_MODE_FILTER, FILTER_FLAG_NEW_LISTENER | FILTER_FLAG_WAIT_KILLABLE_RECV, header)
    except OSError as error:
        if error.errno != EINVAL:
            raise
        return call(NR["seccomp"], SET_MODE_FILTER, FILTER_FLAG_NEW_LISTENER, header)


class Listener:
    """The supervising end of a filter. One notification at a time; ids are the kernel's."""

    __slots__ = ("_buffer", "_placement", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray(NOTIFICATION.size)
        self._placement: Placement | None = None

    def synchronous(self, placement: Placement | None = None) -> bool:
        """Ask for wake-ups on the same CPU (Linux 6.6): a third of the round trip's cost. False where the kernel has none.

        ``placement``: knows when that is right, and does the same for ``give``. Whoever receives has to be its thread.
        """
        try:
            ioctl(self.fd, _SET_FLAGS, _SYNC_WAKE_UP)
        except OSError:
            return False
        if placement is not None and placement.usable:
            self._placement = placement
        return True

    @property
    def placement(self) -> Placement | None:
        """What ``synchronous`` was given, where it is of use."""
        return self._placement

    def receive(self) -> tuple[int, ...] | None:
        """(id, pid, flags, nr, arch, instruction pointer, six arguments), or None where the caller died meanwhile."""
        self._buffer[:] = _EMPTY
        try:
            ioctl(self.fd, _RECV, self._buffer, True)
        except OSError as error:
            if error.errno in (ENOENT, EINTR):
                return None
            raise
        return NOTIFICATION.unpack_from(self._buffer)

    def reply(self, identifier: int, value: int = 0, error: int = 0) -> None:
        """The call returns ``value``, or fails with ``error`` (a positive errno). A caller that died is no error."""
        self._send(_RESPONSE.pack(identifier, value, -error, 0))

    def proceed(self, identifier: int) -> None:
        """CONTINUE: the kernel executes the call as the caller's memory is *then*. Safe only where another layer decides."""
        self._send(_RESPONSE.pack(identifier, 0, 0, USER_NOTIF_FLAG_CONTINUE))

    def _send(self, response: bytes) -> None:
        elsewhere = self._placement is not None and not self._placement.alone()
        try:
            if elsewhere:
                # Not for good: whoever calls next should still find this thread on its own CPU.
                ioctl(self.fd, _SET_FLAGS, 0)
            ioctl(self.fd, _SEND, response)
        except OSError as error:
            if error.errno not in (ENOENT, EINPROGRESS):
                raise
        finally:
            if elsewhere:
                ioctl(self.fd, _SET_FLAGS, _SYNC_WAKE_UP)

    def valid(self, identifier: int) -> bool:
        """The caller still waits, so its pid is still its own."""
        try:
            ioctl(self.fd, _ID_VALID, _ID.pack(identifier))
        except OSError:
            return False
        return True

    def give(self, identifier: int, descriptor: int, *, cloexec: bool, pid: int = 0) -> bool:
        """Answer with a copy of ``descriptor`` as the caller's lowest free one (ADDFD, Linux 5.14).

        ``pid``: the caller's, if this is the thread that receives: it may choose where the caller wakes up.

        False where the caller died. Raises OSError (EMFILE where the caller's table is full).
        """
        flags = 0o2000000 if cloexec else 0
        placement = self._placement
        try:
            if not (pid and placement is not None and placement.together(pid)):
                ioctl(self.fd, _ADDFD, _ADD.pack(identifier, ADDFD_FLAG_SEND, descriptor, 0, flags))
                return True
            # Not with SEND: the caller must not run before its CPUs are its own again. Nothing can come between the two
            # steps but its death: no signal ends its wait otherwise (WAIT_KILLABLE_RECV is older than _SYNC_WAKE_UP).
            try:
                # Of a bytearray alone ioctl() gives the result, which is the caller's number.
                number = ioctl(self.fd, _ADDFD, bytearray(_ADD.pack(identifier, 0, descriptor, 0, flags)))
            finally:
                placement.apart(pid)
        except OSError as error:
            if error.errno == ENOENT:
                return False
            raise
        self.reply(identifier, number)
        return True
