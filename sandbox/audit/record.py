"""A session's record: one directory, owner-only, written while the session runs.

``events.jsonl`` is append-only, one line for everything that happened: that the session started (and what from), what the
start proved of each layer, what was done and denied, how it ended. ``plan.json`` is the plan it ran under, with the grant, the
profile's files and the lowering. A record that cannot be written ends the start: fail closed.
"""

from __future__ import annotations

import posix
import time
from errno import errorcode

from remit.sandbox.audit import outside
from remit.sandbox.audit.chain import chain
from remit.sandbox.audit.text import dumps
from remit.sandbox.events.action import ATTEMPTED, DENIED, EXECUTES, LOOKED_UP, LOOKUP, MOOT, TAKES_AWAY, axis
from remit.sandbox.kernel.call import NR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    Line: TypeAlias = tuple[str, str, int, str]
    """(rule text or granted path, file, line, key)."""

SCHEMA = "remit.session/2"
_CREATE = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
_TOKEN_SIZE = 16
_TRIES = 100
CANARY_SIZE = 128
"""Bytes: enough for the id, the time and the token."""


def state_directory(environ: dict[bytes, bytes]) -> str:
    """``$XDG_STATE_HOME/remit`` (default ``~/.local/state/remit``), after the XDG base directory specification."""
    base = environ.get(b"XDG_STATE_HOME", b"")
    if not base.startswith(b"/"):
        base = home_directory(environ) + b"/.local/state"
    return (base + b"/remit").decode(errors="surrogateescape")


def home_directory(environ: dict[bytes, bytes]) -> bytes:
    """``HOME`` where it is absolute, else what passwd(5) says, else the root; without a slash at its end."""
    home = environ.get(b"HOME", b"")
    if not home.startswith(b"/"):
        import pwd  # only for whoever has no HOME

        try:
            home = pwd.getpwuid(posix.geteuid()).pw_dir.encode(errors="surrogateescape")
        except KeyError:
            home = b""
    return home.rstrip(b"/")


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

    Every line ends with a hash over itself and the hash of the line before it (``chain``), so that no line can be changed,
    removed or moved without all that follow it; ``head`` keeps the last one where the record was completed. What cannot be
    written whole is taken back: a line is there or it is not.
    """

    def __init__(
        self, state: str, plan: str, about: dict[str, object], lines: Iterable[Line] = (), kept: str = ""
    ) -> None:
        """``plan`` is the plan's digest. ``keep_plan`` has kept it under that name, or as ``kept``. ``lines`` say where rules
        stand (``compile.plan.Record``).

        FileNotFoundError: it is not there.
        """
        self.identifier = new_identifier()
        self.path = f"{state}/sessions/{self.identifier}"
        self.denials = 0
        """Recorded actions outside the grant."""
        self.lost = 0
        """Actions that could not be recorded, since the last one that could."""
        make_directory(self.path)
        _link(_plan_path(state, kept or plan), f"{self.path}/plan.json")
        self._events = posix.open(f"{self.path}/events.jsonl", _CREATE | posix.O_APPEND, 0o600)
        # Held for as long as this process lives: readers can tell a session that runs from one that was killed.
        posix.lockf(self._events, posix.F_TLOCK, 0)
        self._sequence = self._size = 0
        self._head = chain(b"", f"{SCHEMA} {self.identifier}".encode())
        self._lines = lines
        self._stand: dict[str, tuple[str, int, str]] = {}
        self._places: dict[str, str] = {}
        self._clock = 0.0
        token = posix.urandom(_TOKEN_SIZE).hex()
        line = self.event({"canary": token, "kind": "started", "schema": SCHEMA, "plan": plan, **about})
        self.canary = (f"{self.path}/events.jsonl", line[:CANARY_SIZE])
        """(path, how it begins) of a file that the session must not be able to read once it is confined."""

    def enforced(self, enforcement: dict[str, str]) -> None:
        """What the start proved, layer by layer."""
        self.event({"kind": "enforced", "enforcement": enforcement})

    def event(self, fields: dict[str, object]) -> bytes:
        """Append one line, with the next sequence number of the session and the time (Unix seconds). Returns the line."""
        return self._append([dumps({"time": time.time(), **fields})])

    def whole(
        self,
        begun: dict[str, object] | None,
        actions: Iterable[tuple[str, str, tuple[Any, ...]]],
        ended: dict[str, object],
    ) -> None:
        """A call at once: that it began (if that is not said yet), actions (each with its call and grant), and its end.
        Where it raises OSError, nothing of it is there."""
        self._clock = _ahead()
        denials = 0
        texts = [] if begun is None else [dumps(begun)]
        for call, grant, action in actions:
            text, denied = self._action(action, call, grant or self.identifier)
            texts.append(text)
            denials += denied
        texts.append(dumps({"time": time.time(), **ended}))
        self._append(texts)
        self.denials += denials

    def lines(self, texts: list[str]) -> None:
        """Append lines that are JSON objects already, each with its time."""
        self._append(texts)

    def actions(self, actions: Iterable[tuple[Any, ...]], call: str = "1", grant: str = "") -> None:
        """Append what a mediator noted (``events.action.FIELDS``) of ``call``, under ``grant`` (else the session's own).

        After actions that could not be written, the first line that can be says how many.
        """
        self._clock = _ahead()
        texts: list[str] = []
        denials = 0
        for action in actions:
            text, denied = self._action(action, call, grant or self.identifier)
            texts.append(text)
            denials += denied
        self.lost += len(texts)
        if self.lost > len(texts):
            texts.insert(0, dumps({"time": time.time(), "kind": "gap", "lost": self.lost - len(texts)}))
        self._append(texts)
        self.lost = 0
        self.denials += denials

    def _action(self, action: tuple[Any, ...], call: str, grant: str) -> tuple[str, bool]:
        mono, pid, start, exe, nr, object_, right, verdict, certainty, layer, errno, rule = action
        name = object_.decode(errors="surrogateescape")
        syscall = _name(nr)
        if verdict == DENIED and certainty == ATTEMPTED and not outside.would_work(right, name):
            verdict, layer = MOOT, ""
        if right == "call" and not name:
            name = syscall
        kind = EXECUTES if right == "exec" else ""
        if verdict == DENIED:
            kind = TAKES_AWAY
        where = self._places.get(kind + rule)
        if where is None:
            where = self._place(kind, rule)
        # Spelled out, because every action of a session comes by here.
        text = (
            f'{{"time":{self._clock + mono!r},"mono":{mono!r},"kind":"action","call":{dumps(call)},"grant":"{grant}",'
            f'"pid":{pid},"pid_start":{start},"exe":{dumps(exe.decode(errors="surrogateescape"))},"syscall":"{syscall}",'
            f'"axis":"{axis(right, name)}","right":"{right}","object":{dumps(name)},"verdict":"{verdict}",'
            f'"certainty":"{certainty}","layer":"{layer}","rule":{where},'
            f'"errno":{_errno(errno)},"source":"mediator"}}'
        )
        return text, verdict == DENIED

    def _place(self, kind: str, rule: str) -> str:
        if not self._stand:
            self._stand = {text: (file, line, key) for text, file, line, key in self._lines}
        found = self._stand.get(kind + rule)
        if found is None and kind != TAKES_AWAY:
            found = self._stand.get(rule)
        file, line, key = found or ("", 0, "")
        made = self._places[kind + rule] = dumps({"text": rule, "file": file, "line": line, "key": key})
        return made

    def _append(self, texts: list[str]) -> bytes:
        head, sequence = self._head, self._sequence
        lines: list[bytes] = []
        for text in texts:
            sequence += 1
            body = f'{{"id":"{self.identifier}:{sequence}",{text[1:]}'.encode()
            head = chain(head, body)
            lines.append(b'%s,"hash":"%s"}\n' % (body[:-1], head))
        data = b"".join(lines)
        try:
            _write_all(self._events, data)
        except OSError:
            # Half a line would end the record for every reader.
            posix.ftruncate(self._events, self._size)
            raise
        self._size += len(data)
        self._head, self._sequence = head, sequence
        return data

    def ended(self, result: dict[str, object]) -> None:
        """How the session ended. The record is complete."""
        if self.lost:
            self.event({"kind": "gap", "lost": self.lost})
        self.event({"kind": "ended", **result})
        posix.close(self._events)
        opened = posix.open(f"{self.path}/head", _CREATE, 0o600)
        try:
            _write_all(opened, b"%d %s\n" % (self._sequence, self._head))
        finally:
            posix.close(opened)


def _ahead() -> float:
    """What the wall clock is ahead of the monotonic one: the more of two tries. Who is interrupted in one finds less."""
    return max(time.time() - time.monotonic(), time.time() - time.monotonic())


_names: dict[int, str] = {}


def _name(nr: int) -> str:
    if not _names:
        _names.update({number: name for name, number in NR.items()})
        _names[LOOKED_UP] = LOOKUP
    return _names.get(nr, str(nr))


def _errno(number: int) -> str:
    return f'"{errorcode.get(number, str(number))}"' if number else "null"


def _link(source: str, target: str) -> None:
    """Give ``source`` another name. FileNotFoundError: it is not there.

    Where somebody renames the same plan to that name at this moment, what was found there has lost its last name, and
    link(2) says ENOENT of it too, though the name is never free.
    """
    for _ in range(_TRIES):
        try:
            return posix.link(source, target)
        except FileNotFoundError:
            posix.stat(source)
    return posix.link(source, target)


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
        parent = path.rpartition("/")[0]
        if not parent:
            raise
        make_parents(parent)
        try:
            # Some file systems say that below a directory which is there, /proc for one: then it cannot be made at all.
            posix.mkdir(path, 0o700)
        except FileExistsError:
            pass


def ensure_directory(path: str) -> None:
    """A directory of Remit's own, mode 0700, with its parents. What cannot be made is for its first user to report."""
    try:
        make_parents(path)
    except OSError:
        pass
