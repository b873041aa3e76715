"""A session's record: one directory, owner-only, written while the session runs.

``session.json`` says what was granted, planned and really enforced, and how it ended; ``plan.json`` is the plan;
``events.jsonl`` has one line for every event. A record that cannot be written ends the start: fail closed.
"""

from __future__ import annotations

import posix
import time
from errno import ENOENT

from remit.sandbox.audit.text import dumps

SCHEMA = "remit.session/1"
_DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC
_CREATE = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
_TOKEN_SIZE = 16


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


class Record:
    """The record of one session. The constructor makes its directory; every method raises OSError if it cannot write."""

    def __init__(self, state: str, about: dict[str, object]) -> None:
        self.identifier = new_identifier()
        self.path = f"{state}/sessions/{self.identifier}"
        _make_directory(self.path)
        self._about: dict[str, object] = {
            "schema": SCHEMA,
            "id": self.identifier,
            **about,
            "started": time.time(),
            "enforcement": None,
            "ended": None,
        }
        self._directory = posix.open(self.path, _DIRECTORY)
        self._events = -1
        self._sequence = 0
        self._canary = posix.urandom(_TOKEN_SIZE)
        self._write_new("canary", self._canary)

    @property
    def canary(self) -> tuple[str, bytes]:
        """(path, content) of a file that the session must not be able to read once it is confined."""
        return f"{self.path}/canary", self._canary

    def _write_new(self, name: str, data: bytes) -> None:
        opened = posix.open(name, _CREATE, 0o600, dir_fd=self._directory)
        try:
            while data:
                data = data[posix.write(opened, data) :]
        finally:
            posix.close(opened)

    def plan(self, text: bytes) -> None:
        """Keep the plan's JSON."""
        self._write_new("plan.json", text)

    def enforced(self, enforcement: dict[str, str]) -> None:
        """What the start proved, layer by layer."""
        self._about["enforcement"] = enforcement
        posix.unlink("canary", dir_fd=self._directory)
        self._save()

    def event(self, fields: dict[str, object]) -> None:
        """Append one event, with the next sequence number of the session and the time."""
        if self._events < 0:
            self._events = posix.open("events.jsonl", _CREATE | posix.O_APPEND, 0o600, dir_fd=self._directory)
        self._sequence += 1
        line = dumps({"id": f"{self.identifier}:{self._sequence}", "time": time.time(), **fields}) + "\n"
        data = line.encode()
        while data:
            data = data[posix.write(self._events, data) :]

    def ended(self, result: dict[str, object]) -> None:
        """How the session ended. The record is complete."""
        self._about["ended"] = {"time": time.time(), **result}
        try:
            posix.unlink("canary", dir_fd=self._directory)
        except OSError as error:
            if error.errno != ENOENT:
                raise
        self._save()
        if self._events >= 0:
            posix.close(self._events)
        posix.close(self._directory)

    def _save(self) -> None:
        # Whole or not at all: a reader never sees half of it.
        temporary = f"session.json.{self._sequence}"
        self._write_new(temporary, dumps(self._about).encode() + b"\n")
        posix.rename(temporary, "session.json", src_dir_fd=self._directory, dst_dir_fd=self._directory)


def _make_directory(path: str) -> None:
    """A session's own directory, new, mode 0700; parents as needed. The common case is one call."""
    try:
        posix.mkdir(path, 0o700)
    except FileNotFoundError:
        _make_parents(path.rpartition("/")[0])
        posix.mkdir(path, 0o700)


def _make_parents(path: str) -> None:
    try:
        posix.mkdir(path, 0o700)
    except FileExistsError:
        pass  # another start made it meanwhile
    except FileNotFoundError:
        _make_parents(path.rpartition("/")[0])
        _make_parents(path)
