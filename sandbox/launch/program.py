"""Starting a program as execvp(3) would, and saying why it could not be started."""

from __future__ import annotations

import posix
from errno import EACCES, ENOEXEC

from remit.sandbox.kernel.spawn import spawn
from remit.sandbox.launch.ground import NOT_HERE, Refused, clipped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any


def enter(directory: bytes) -> None:
    """Make it the working directory. Raises Refused where it cannot be."""
    try:
        posix.chdir(directory)
    except OSError as error:
        name = clipped(directory.decode(errors="replace"))
        raise Refused(
            "launch",
            f"the working directory {name} is not visible inside: {error.strerror}",
            "grant it (--read), or choose another with --chdir",
            125,
        ) from None


def found(name: bytes, environment: list[bytes]) -> bytes | None:
    """What execvp(3) would try first."""
    return next(_candidates(name, environment), None)


def start(argv: list[bytes], environment: list[bytes], **how: Any) -> int:
    """``spawn.spawn`` of the program that ``argv[0]`` names, along the environment's PATH. Returns its pid.

    ``how``: the keywords of ``spawn.spawn``. Raises Refused with exit status 126 or 127.
    """
    problem: OSError | None = None
    for candidate in _candidates(argv[0], environment):
        try:
            return spawn(candidate, argv, environment, **how)
        except OSError as error:
            if error.errno == ENOEXEC:
                # As execvp(3) does: a file without a format is a shell script.
                return spawn(b"/bin/sh", [b"sh", candidate, *argv[1:]], environment, **how)
            if error.errno not in NOT_HERE:
                problem = error
    name = clipped(argv[0].decode(errors="replace"))
    if problem is None:
        raise Refused("exec", f"{name}: not found", "", 127)
    if problem.errno == EACCES:
        raise Refused("exec", f"{name}: not executable, or execution is not granted", f"--exec {name}", 126)
    raise Refused("exec", f"{name}: {problem.strerror}", "", 126)


def _candidates(name: bytes, environment: list[bytes]) -> Generator[bytes]:
    """Where execvp(3) would look for a program, without what is not there."""
    if b"/" in name:
        yield name
        return
    path = next((v[5:] for v in environment if v.startswith(b"PATH=")), b"/usr/bin:/bin")
    for directory in path.split(b":"):
        candidate = (directory or b".") + b"/" + name
        if posix.access(candidate, posix.F_OK):
            yield candidate
