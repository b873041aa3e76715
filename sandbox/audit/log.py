"""Reading records: which there are, what one says, whether it is what was written.

A record is read while its session may still run, or after it was killed: a last line that is not whole is no error, and
the reader says that there was one. Anything else that is not a record's is an error with its line.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from typing import Any, cast

from remit.sandbox.audit.chain import MARK, SIZE, chain
from remit.sandbox.audit.decide import Decider
from remit.sandbox.audit.joined import joined
from remit.sandbox.audit.record import SCHEMA
from remit.sandbox.authority.errors import RemitError, UsageError
from remit.sandbox.events.event import Event

_REFERENCE = re.compile(r"([0-9]{8}T[0-9]{6}-[0-9a-f]{10})(?::([1-9][0-9]{0,17}))?")
_ABBREVIATED = re.compile(r"([0-9a-fT-]+)(?::([1-9][0-9]{0,17}))?")
_HASH = re.compile(rb'"([0-9a-f]{%d})"\}' % (2 * SIZE))
LAST_HINT = "remit why --last"
LIST_HINT = "remit session list --all"


_NAMED = 5
"""Sessions that an error names, of those that were meant perhaps: the latest."""


class RecordError(RemitError):
    """A record that cannot be read, or is not what a session writes."""

    phase = "record"


@dataclass(frozen=True, slots=True)
class Call:
    """One execution in a session. ``status`` is an exit status (below 0: a signal), None while it runs or its session was killed.

    ``policy`` is the key of its authority in ``Log.authorities``, empty for the session's own.
    """

    identifier: str
    argv: tuple[str, ...]
    grant: str
    started: float
    ended: float | None = None
    status: int | None = None
    limit: str | None = None
    policy: str = ""


@dataclass(frozen=True, slots=True)
class Log:
    """What a record says. ``torn``: the last line is not whole. ``ended``: the record is complete.

    ``lost``: actions that could not be written. ``authorities``: those of calls, by policy, as JSON (``lattice.beyond``).
    ``plan``: the content of ``plan.json``.
    """

    identifier: str
    directory: str
    started: dict[str, Any]
    enforcement: dict[str, str]
    events: tuple[Event, ...]
    calls: tuple[Call, ...]
    authorities: dict[str, dict[str, Any]]
    lost: int
    ended: bool
    torn: bool
    plan: dict[str, Any]

    @property
    def command(self) -> tuple[str, ...]:
        """The session's first command."""
        return tuple(map(str, self.started.get("argv", ())))


def reference(text: str) -> tuple[str, int]:
    """``SESSION`` or ``SESSION:SEQ`` as (session, sequence number or 0). Raises UsageError for anything else."""
    found = _REFERENCE.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no session: SESSION, SESSION:SEQ or --last is expected", hint=LAST_HINT)
    return found[1], int(found[2] or 0)


def is_reference(text: str) -> bool:
    """Whether ``reference`` reads it."""
    return _REFERENCE.fullmatch(text) is not None


def named(state: str, text: str) -> tuple[str, int]:
    """As ``reference``, where SESSION may be any unambiguous beginning or end of a recorded one's id.

    Raises UsageError: it could be several, or is no session's.
    """
    found = _ABBREVIATED.fullmatch(text)
    if found is None or is_reference(text):
        return reference(text)
    return full(state, found[1]), int(found[2] or 0)


def full(state: str, text: str) -> str:
    """A recorded session's whole id from any unambiguous beginning or end of it; ``text`` itself where it is none's.

    Raises UsageError where it could be several.
    """
    every = sessions(state)
    likely = [one for one in every if text and (one.startswith(text) or one.endswith(text))]
    if len(likely) > 1 and text not in every:
        raise UsageError(f"{text!r} could be {', '.join(likely[-_NAMED:])}", hint="give more of the id")
    return likely[0] if len(likely) == 1 else text


def sessions(state: str) -> list[str]:
    """Every recorded session, newest last. Raises RecordError if they cannot be listed."""
    directory = f"{state}/sessions"
    try:
        return sorted(name for name in os.listdir(directory) if is_reference(name) and ":" not in name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordError(error.strerror or str(error), where=directory) from None


def latest(state: str) -> str:
    """The session that started last. Raises UsageError if there is no record, RecordError if they cannot be listed."""
    names = sessions(state)
    directory = f"{state}/sessions"
    if not names:
        raise UsageError("no session is recorded", where=directory, hint="remit run -- CMD records one")
    # Names tell the second. Within it, a record's first line tells.
    second = names[-1].partition("-")[0]
    return max((_begun(f"{directory}/{name}"), name) for name in names if name.startswith(second))[1]


def _begun(directory: str) -> float:
    try:
        with open(f"{directory}/events.jsonl", "rb") as file:
            return float(json.loads(file.readline())["time"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0


def directory_of(state: str, identifier: str) -> str:
    """Where the record of ``identifier`` is. Raises UsageError: there is no such session."""
    directory = f"{state}/sessions/{identifier}"
    if not os.path.isdir(directory):
        raise UsageError(f"no such session: {identifier}", where=f"{state}/sessions", hint=LIST_HINT)
    return directory


def running(directory: str) -> bool:
    """Whether the writer of the record still holds it."""
    try:
        opened = os.open(f"{directory}/events.jsonl", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        os.lockf(opened, os.F_TEST, 0)
    except OSError:
        return True
    finally:
        os.close(opened)
    return False


def read(state: str, identifier: str) -> Log:
    """The record of the session ``identifier`` (see ``reference``).

    Raises:
        UsageError: there is no such session.
        RecordError: its record cannot be read, or is malformed.
    """
    directory = directory_of(state, identifier)
    path = f"{directory}/events.jsonl"
    lines, torn = _lines(path)
    try:
        plan = json.loads(_bytes(f"{directory}/plan.json"))
        if not isinstance(plan, dict):
            raise TypeError("not an object")
    except (ValueError, TypeError, RecursionError) as error:
        raise RecordError(f"not a plan: {error}", where=f"{directory}/plan.json") from None
    started: dict[str, Any] = {}
    enforcement: dict[str, str] = {}
    events: list[Event] = []
    calls: dict[str, Call] = {}
    authorities: dict[str, dict[str, Any]] = {}
    lost, ended = 0, False
    number = 0
    try:
        for line in lines:
            number += 1
            kind = line["kind"]
            if kind == "action":
                events.append(Event.from_json(line))
            elif kind == "started":
                started = {**line, "time": float(line["time"])}
                if "argv" in line:
                    started["argv"] = list(map(str, line["argv"]))
            elif kind == "enforced":
                enforcement = dict(line["enforcement"])
            elif kind == "policy":
                authorities[str(line["policy"])] = dict(line["beyond"])
            elif kind == "call":
                chain = [str(grant) for grant in line["grants"]]
                calls[str(line["call"])] = Call(
                    str(line["call"]),
                    tuple(map(str, line["argv"])),
                    chain[-1] if chain else identifier,
                    float(line["time"]),
                    policy=str(line["policy"]),
                )
            elif kind == "returned":
                code = os.waitstatus_to_exitcode(int(line["status"]))
                calls[str(line["call"])] = _returned(calls[str(line["call"])], {**line, "status": code})
            elif kind == "gap":
                lost += int(line["lost"])
            elif kind == "ended":
                ended = True
                if not calls and "argv" in started:
                    calls["1"] = _returned(_only(started, identifier), line)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"not an event: {error!r}", where=f"{path}:{number}") from None
    if not calls and "argv" in started:
        calls["1"] = _only(started, identifier)
    made = Log(
        identifier,
        directory,
        started,
        enforcement,
        tuple(events),
        tuple(calls.values()),
        authorities,
        lost,
        ended,
        torn,
        cast("dict[str, Any]", plan),
    )
    if not any(event.axis == "network" for event in events):
        return made
    return replace(made, events=joined(events, Deciders(made).of))


def since(directory: str, begin: int, call: str) -> tuple[list[Event], bool]:
    """The actions that a record tells of behind its first ``begin`` bytes, and whether ``call`` has returned by then. For
    whoever knows the authority already. Raises RecordError."""
    path = f"{directory}/events.jsonl"
    lines, _ = _lines(path, begin)
    try:
        events = [Event.from_json(line) for line in lines if line["kind"] == "action"]
        ended = any(line["kind"] == "returned" and line["call"] == call for line in lines)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"not an event: {error!r}", where=path) from None
    return events, ended


class Deciders:
    """Decisions under the authority of each call of a record, and under the session's (``session``).

    Raises RecordError where the record holds none.
    """

    def __init__(self, log: Log) -> None:
        where = f"{log.directory}/plan.json"
        try:
            self.session = Decider.of_plan(log.plan)
            where = f"{log.directory}/events.jsonl"
            self._made = {
                policy: Decider.of_call(held, log.plan, self.session) for policy, held in log.authorities.items()
            }
        except (AttributeError, KeyError, TypeError, ValueError, RemitError) as error:
            raise RecordError(f"not a plan: {error!r}", where=where) from None
        self._policies = {call.identifier: call.policy for call in log.calls}

    def of(self, call: str) -> Decider:
        """That of a call; the session's where it has none of its own."""
        return self._made.get(self._policies.get(call, ""), self.session)


def _only(started: dict[str, Any], identifier: str) -> Call:
    """``remit run`` makes one call, and its record says so by what it starts and ends with."""
    return Call("1", tuple(map(str, started["argv"])), identifier, float(started["time"]))


def _returned(call: Call, line: dict[str, Any]) -> Call:
    status = line.get("status")
    limit = line.get("limit")
    return replace(
        call,
        ended=float(line["time"]),
        status=None if status is None else int(status),
        limit=None if limit is None else str(limit),
    )


def _lines(path: str, begin: int = 0) -> tuple[list[dict[str, Any]], bool]:
    """The whole lines of ``path`` from an offset on, and whether a torn one follows them."""
    *lines, rest = _bytes(path, begin).split(b"\n")
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            made = json.loads(line)
        except (ValueError, RecursionError):
            made = None
        if not isinstance(made, dict):
            raise RecordError("not an event", where=f"{path}:{number}")
        found.append(cast("dict[str, Any]", made))
    return found, bool(rest)


def _bytes(path: str, begin: int = 0) -> bytes:
    try:
        with open(path, "rb") as file:
            if not begin:
                return file.read()
            # Whoever asked how long it was may have seen the half of a line that was just being written.
            file.seek(begin - 1)
            return file.read().partition(b"\n")[2]
    except OSError as error:
        raise RecordError(error.strerror or str(error), where=path) from None


# --- whether it is what was written


@dataclass(frozen=True, slots=True)
class Problem:
    """The first place where a record is not what was written: a line (from 1) and the offset in bytes where it begins."""

    what: str
    line: int
    offset: int
    id: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """``hashes`` are those of the whole lines up to the first problem; ``size`` the bytes that they take."""

    hashes: tuple[str, ...]
    size: int
    ended: bool
    torn: bool
    problem: Problem | None


def check(directory: str) -> Checked:
    """Walk the chain of a record. Raises RecordError only where there is no file to read.

    A torn last line is a problem only in a record that says it was completed.
    """
    identifier = directory.rpartition("/")[2]
    data = _bytes(f"{directory}/events.jsonl")
    head = chain(b"", f"{SCHEMA} {identifier}".encode())
    hashes: list[str] = []
    offset, ended = 0, False
    *lines, rest = data.split(b"\n")

    def stop(what: str, id_: str = "") -> Checked:
        return Checked(tuple(hashes), offset, ended, bool(rest), Problem(what, len(hashes) + 1, offset, id_))

    for number, line in enumerate(lines, 1):
        begin = b'{"id":"%s:' % identifier.encode()
        body, mark, tail = line.rpartition(MARK)
        found = _HASH.fullmatch(b'"' + tail)
        if not mark or found is None or not line.startswith(begin):
            return stop("not a line of this record")
        own = line[len(begin) :].partition(b'"')[0].decode("ascii", "replace")
        if own != str(number):
            return stop(f"line {number} is expected here and {own} is found: lines were removed or moved", own)
        head = chain(head, body + b"}")
        if head != found[1]:
            return stop("the line does not follow from those before it: it was changed", f"{identifier}:{number}")
        if ended:
            return stop("a line after the end", f"{identifier}:{number}")
        hashes.append(head.decode())
        offset += len(line) + 1
        ended = b',"kind":"ended",' in line[:200]
    kept = _head(directory)
    if kept is None and ended:
        return stop("the record was completed, and its head is gone")
    if kept is not None and (kept[0] != len(hashes) or kept[1] != hashes[-1]):
        return stop(f"truncated: {kept[0]} lines were written")
    if kept is not None and rest:
        return stop("what follows is no line")
    return Checked(tuple(hashes), offset, ended, bool(rest), None)


def _head(directory: str) -> tuple[int, str] | None:
    """(lines, last hash) of a completed record."""
    try:
        words = _bytes(f"{directory}/head").decode("ascii", "replace").split()
    except RecordError:
        return None
    try:
        return int(words[0]), words[1]
    except (IndexError, ValueError):
        return 0, ""
