"""A session's record: one directory, owner-only, written while the session runs.

``session.json`` says under which plan it ran, what was really enforced, and how it ended; ``plan.json`` is that plan,
with the grant, the profile's files and the lowering that belong to it; ``events.jsonl`` has one line for every event. A
record that cannot be written ends the start: fail closed.
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
    """The record of one session. The constructor makes its directory; every method raises OSError if it cannot write."""

    def __init__(self, state: str, plan: str, about: dict[str, object]) -> None:
        """``plan`` is the digest under which ``keep_plan`` has kept the plan. FileNotFoundError: it is not there."""
        self.identifier = new_identifier()
        self.path = f"{state}/sessions/{self.identifier}"
        make_directory(self.path)
        posix.link(_plan_path(state, plan), f"{self.path}/plan.json")
        self._about: dict[str, object] = {
            "schema": SCHEMA,
            "id": self.identifier,
            "plan": plan,
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
            _write_all(opened, data)
        finally:
            posix.close(opened)

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
        _write_all(self._events, line.encode())

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
