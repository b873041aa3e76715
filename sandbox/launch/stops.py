"""When a call's command stops, for a client that controls it as a job.

Only wait(2) tells, and no descriptor: SIGCHLD would come for the end of every call's command too, and wake the mediator. So a
call whose client asks for it has a second thread, which waits for nothing else. It takes no end away: that is the call's own
thread's to find (``process.ended``) and to reap. And it is the mediator's thread that starts it: where children are born in
another PID namespace, no thread can be (``clone(2)``).
"""

from __future__ import annotations

import _thread
import posix

from remit.sandbox.kernel import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from remit.sandbox.launch.running import Running


def watch(pidfd: int, wake: int, running: Running) -> None:
    """Write a line to ``wake`` when the command stops, until it is gone. ``pidfd`` is given up.

    Where no thread or descriptor is left for that, nobody hears of its stops.
    """
    copy = -1
    try:
        copy = posix.dup(wake)  # the number is another file's as soon as the call's thread is gone
        _thread.start_new_thread(_wait, (pidfd, copy, running))
    except (OSError, RuntimeError):
        posix.close(pidfd)
        if copy >= 0:
            posix.close(copy)


def _wait(pidfd: int, wake: int, running: Running) -> None:
    line = f"stopped {running.call}\n".encode()
    try:
        while process.next_stop(pidfd):
            # One line until the client lets it go on: a command may stop and go on by itself as often as it likes.
            if not running.stopped:
                running.stopped = True
                posix.write(wake, line)
    except OSError:
        pass  # the thread has ended
    finally:
        posix.close(pidfd)
        posix.close(wake)
