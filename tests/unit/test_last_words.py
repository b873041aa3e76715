"""What is said before an end is heard, also where the other end closes without having read all that was said to it.

The kernel tells that (ECONNRESET) before it gives what is there to read (``unix_release_sock``), and once.
"""

from __future__ import annotations

import errno
import os
import socket

import pytest

from remit.sandbox.kernel import sockets
from remit.sandbox.session import link


def rude() -> socket.socket:
    """The end of a pair whose other end said two things, and closed with a message unread."""
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    own.send(b"unread")
    other.send(b"one")
    other.send(b"last words")
    other.close()
    return own


def test_the_kernel_tells_the_end_first() -> None:
    with rude() as own:
        with pytest.raises(ConnectionResetError):
            own.recv(64)
        assert own.recv(64) == b"one"


def test_a_receiver_hears_all() -> None:
    with rude() as own:
        assert [sockets.receive(own.fileno(), 64)[0] for _ in range(3)] == [b"one", b"last words", b""]


def test_a_client_hears_all() -> None:
    with rude() as own:
        assert [link.receive(own, 64)[0] for _ in range(3)] == [b"one", b"last words", b""]


def test_other_errors_are_errors() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        sockets.receive(-1, 64)
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with own, other, pytest.raises(BlockingIOError):
        link.receive(own, 64, flags=socket.MSG_DONTWAIT)
