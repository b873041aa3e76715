"""A session's record: one directory, owner-only, written while the session runs.

``events.jsonl`` is append-only, one line for everything that happened: that the session started (and what from), what the
start proved of each layer, every denial, how it ended. ``plan.json`` is the plan it ran under, with the grant, the
profile's files and the lowering. A record that cannot be written ends the start: fail closed.
"""

from __future__ import annotations

import posix
import time

from remit.sandbox.audit.text import dumps

SCHEMA = "remit.session/1"
_CREATE = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
_TOKEN_SIZE = 16
CANARY_SIZE = 128
"""Bytes: enough for the id, the time and the token."""


def state_directory(environ: dict[bytes, bytes]) -> str:
    """``$XDG_STATE_HOME/remit`` (default ``~/.local/state/remit``), after the XDG base directory specification."""
    base = environ.get(b"XDG_STATE_HOME", b"")
    if not base.startswith(b"/"):
        base = environ.get(b"HOME", b"/") + b"/.local/state"
    return (base + b"/remit").decode(errors="surrogateescape")


def new_identifier() -> str:
    """A session's id: when it started (UTC, to the second) and 40 random bits, so that names sort by time."""
    now = time.gmtime()
    stamp = f"{now.tm_year:04d}{now.tm_mon:02d}{now.tm_mday:02d}T{now.tm_hour:02d}{now.tm_min:02d}{now.tm_sec:02d}"
    return f"{stamp}-{posix.urandom(5).hex()}"


def keep_plan(state: str, plan: str, text: str) -> None:
    """Write a plan's JSON once, for every session that will run under it: each links it into its own record."""
    path = _plan_path(state, plan)
    make_parents(path.rpartition("/")[0])
    temporary = f"{path}.{posix.getpid()}"
    opened = posix.open(temporary, _CREATE, 0o600)
    try:
        _write_all(opened, text.encode())
    finally:
        posix.close(opened)
    posix.rename(temporary, path)


def _plan_path(state: str, plan: str) -> str:
    return f"{state}/plans/{plan}.json"


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[posix.write(descriptor, data) :]


class Record:
    """The record of one session. The constructor makes its directory; every method raises OSError if it cannot write.

    The first line holds a random token. The file is the session's canary: it can be read before confinement, and must
    not be inside.
    """

    def __init__(self, state: str, plan: str, about: dict[str, object], kept: str = "") -> None:
        """``plan`` is the plan's digest. ``keep_plan`` has kept it under that name, or as ``kept``.

        FileNotFoundError: it is not there.
        """
        self.identifier = new_identifier()
        self.path = f"{state}/sessions/{self.identifier}"
        make_directory(self.path)
        posix.link(_plan_path(state, kept or plan), f"{self.path}/plan.json")
        self._events = posix.open(f"{self.path}/events.jsonl", _CREATE | posix.O_APPEND, 0o600)
        self._sequence = 0
        token = posix.urandom(_TOKEN_SIZE).hex()
        line = self.event({"canary": token, "kind": "started", "schema": SCHEMA, "plan": plan, **about})
        self.canary = (f"{self.path}/events.jsonl", line[:CANARY_SIZE])
        """(path, how it begins) of a file that the session must not be able to read once it is confined."""

    def enforced(self, enforcement: dict[str, str]) -> None:
        """What the start proved, layer by layer."""
        self.event({"kind": "enforced", "enforcement": enforcement})

    def event(self, fields: dict[str, object]) -> bytes:
        """Append one line, with the next sequence number of the session and the time (Unix seconds). Returns the line."""
        self._sequence += 1
        text = dumps({"id": f"{self.identifier}:{self._sequence}", "time": time.time(), **fields})
        line = text.encode() + b"\n"
        _write_all(self._events, line)
        return line

    def ended(self, result: dict[str, object]) -> None:
        """How the session ended. The record is complete."""
        self.event({"kind": "ended", **result})
        posix.close(self._events)


def make_directory(path: str) -> None:
    """A new directory, mode 0700, with its parents as needed. FileExistsError: it is not new."""
    try:
        posix.mkdir(path, 0o700)
    except FileNotFoundError:
        make_parents(path.rpartition("/")[0])
        posix.mkdir(path, 0o700)


def make_parents(path: str) -> None:
    """``mkdir -p`` with mode 0700."""
    try:
        posix.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        make_parents(path.rpartition("/")[0])
        make_parents(path)


def ensure_directory(path: str) -> None:
    """A directory of Remit's own, mode 0700, with its parents. What cannot be made is for its first user to report."""
    try:
        make_parents(path)
    except OSError:
        pass
