"""What a workspace suggests: ``remit.toml`` in its top directory, read and never applied.

Whoever writes the workspace writes this file, the confined side included. So it can only be shown; ``load.accept``
applies it after the user has agreed. It is read without following a link and without ever blocking, and parsed with
the profile's own parser over a smaller set of keys: no floor, no audit, no enforcement.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from hashlib import blake2b

from remit.profiles.errors import Problem, ProfileError
from remit.profiles.find import read_regular
from remit.profiles.model import ProfileText
from remit.profiles.parse import parse

NAME = "remit.toml"


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A suggestion, and the BLAKE2b-256 (hex) of its bytes: agreement is to these bytes, not to the file's name."""

    text: ProfileText
    digest: str


def read_suggestion(workspace: str) -> Suggestion | None:
    """The suggestion in the directory ``workspace``, or ``None`` where there is none.

    Raises ``ProfileError`` when it is there and is not a regular file of at most 1 MiB, or malformed. The run
    itself does not depend on it: a caller may go on without it.
    """
    path = os.path.join(workspace, NAME)
    try:
        data = _read(workspace, path)
    except FileNotFoundError:
        return None
    except OSError as error:
        message = "a symbolic link" if error.errno == errno.ELOOP else error.strerror or "cannot be read"
        raise ProfileError((Problem(path, 0, "", message, "a suggestion is a regular file"),)) from None
    return Suggestion(parse(data, path, suggestion=True), blake2b(data, digest_size=32).hexdigest())


def _read(workspace: str, path: str) -> bytes:
    directory = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # O_NONBLOCK: a FIFO of this name would otherwise hold the start up.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(NAME, flags, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        return read_regular(descriptor, path)
    finally:
        os.close(descriptor)
