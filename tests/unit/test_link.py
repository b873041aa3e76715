"""Messages to a session: what goes with them, and that nobody waits who must not."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from remit.sandbox.session import link


def test_descriptors_come_with_a_message_small_or_large() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    held = set(os.listdir("/proc/self/fd"))
    with ours, theirs:
        for size, count in ((10, 1), (1 << 20, 2)):
            link.send(ours, b"x" * size, [write])
            data, ancillary = link.receive(theirs, 1 << 16, socket.CMSG_SPACE(16))
            came = link.descriptors(ancillary)
            assert len(came) == count  # what is large comes in a file
            assert (data == b"x" * size) == (count == 1)
            os.write(came[0], b"y")
            assert os.read(read, 1) == b"y"
            for descriptor in came:
                os.close(descriptor)
        link.send(ours, b"none", [])
        assert link.receive(theirs, 64) == (b"none", [])
        assert set(os.listdir("/proc/self/fd")) <= held  # of other tests' some may be collected meanwhile
    os.close(read)
    os.close(write)


def test_a_full_socket_is_said_to_who_must_not_wait() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    held = set(os.listdir("/proc/self/fd"))
    # Who waited all the same would hear that nobody is there any more.
    late = threading.Timer(20, theirs.shutdown, [socket.SHUT_RDWR])
    late.start()

    def fill(size: int) -> None:
        for _ in range(10_000):
            link.send(ours, b"x" * size, [0], socket.MSG_DONTWAIT)

    with ours, theirs:
        for size in (1000, 1 << 20):
            with pytest.raises(BlockingIOError):
                fill(size)
        late.cancel()
        assert set(os.listdir("/proc/self/fd")) <= held  # of other tests' some may be collected meanwhile
