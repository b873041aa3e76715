"""What a session's record says was denied: reads ``events.jsonl`` and ``plan.json``, writes nothing.

A record is read while its session may still run, or after it was killed: a last line that is not whole is no error, and
the reader says that there was one. Anything else that is not a record's is an error with its line.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from typing import Any, cast

from remit.sandbox.authority.errors import RemitError, UsageError
from remit.sandbox.authority.model import PathPattern, Source

_REFERENCE = re.compile(r"([0-9]{8}T[0-9]{6}-[0-9a-f]{10})(?::([1-9][0-9]{0,17}))?")
LAST_HINT = "remit why --last"


class RecordError(RemitError):
    """A record that cannot be read, or is not what a session writes."""

    phase = "record"


@dataclass(frozen=True, slots=True)
class Denial:
    """Equal denials of one session. ``sequence`` are their numbers in the record, in order; ``nr`` is the system call's.

    ``errno`` and ``rule`` are the mediator's: where ``rule`` says that nothing grants the object, the kernel refused it
    with an errno of its own.
    """

    nr: int
    object: str
    right: str
    verdict: str
    errno: int
    rule: str
    sequence: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Session:
    """A session as its record has it. ``torn``: the last line is not whole. ``ended``: the record is complete."""

    identifier: str
    command: tuple[str, ...]
    denials: tuple[Denial, ...]
    torn: bool
    ended: bool
    deny: tuple[PathPattern, ...]
    protect: tuple[PathPattern, ...]
    operations: tuple[dict[str, Any], ...]
    """The plan's, as ``explain --json`` prints them."""


def reference(text: str) -> tuple[str, int]:
    """``SESSION`` or ``SESSION:SEQ`` as (session, sequence number or 0). Raises UsageError for anything else."""
    found = _REFERENCE.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no session: SESSION, SESSION:SEQ or --last is expected", hint=LAST_HINT)
    return found[1], int(found[2] or 0)


def latest(state: str) -> str:
    """The session that started last. Raises UsageError if there is no record, RecordError if they cannot be listed."""
    directory = f"{state}/sessions"
    try:
        names = sorted(name for name in os.listdir(directory) if _REFERENCE.fullmatch(name) and ":" not in name)
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise RecordError(error.strerror or str(error), where=directory) from None
    if not names:
        raise UsageError("no session is recorded", where=directory, hint="remit run -- CMD records one")
    # Names tell the second. Within it, the first line of a record, and with it the directory's time, tells.
    second = names[-1].partition("-")[0]
    return max((os.stat(f"{directory}/{name}").st_mtime_ns, name) for name in names if name.startswith(second))[1]


def read(state: str, identifier: str) -> Session:
    """The record of the session ``identifier`` (see ``reference``).

    Raises:
        UsageError: there is no such session.
        RecordError: its record cannot be read, or is malformed.
    """
    directory = f"{state}/sessions/{identifier}"
    if not os.path.isdir(directory):
        raise UsageError(f"no such session: {identifier}", where=f"{state}/sessions", hint=LAST_HINT)
    events, torn = _events(f"{directory}/events.jsonl")
    plan = f"{directory}/plan.json"
    command: tuple[str, ...] = ()
    ended = False
    grouped: dict[tuple[object, ...], Denial] = {}
    try:
        for event in events:
            if event["kind"] == "started":
                command = tuple(map(str, event["argv"]))
            elif event["kind"] == "ended":
                ended = True
            elif event["kind"] == "denial":
                one = _denial(event)
                key = (one.nr, one.object, one.right, one.verdict, one.errno, one.rule)
                before = grouped.get(key)
                grouped[key] = one if before is None else replace(one, sequence=before.sequence + one.sequence)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"not an event: {error!r}", where=f"{directory}/events.jsonl") from None
    try:
        content = json.loads(_text(plan))
        authority = content["grant"]["authority"]
        deny, protect = (tuple(map(_pattern, authority[name])) for name in ("deny", "protect"))
        operations = tuple(dict(one) for one in content["plan"]["operations"])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"not a plan: {error!r}", where=plan) from None
    return Session(identifier, command, tuple(grouped.values()), torn, ended, deny, protect, operations)


def _denial(event: dict[str, Any]) -> Denial:
    sequence = int(str(event["id"]).rpartition(":")[2])
    object_, right, verdict = (str(event[name]) for name in ("object", "right", "verdict"))
    return Denial(int(event["nr"]), object_, right, verdict, int(event["errno"]), str(event["rule"]), (sequence,))


def _pattern(value: dict[str, Any]) -> PathPattern:
    source = value.get("source", {"file": ""})
    where = Source(str(source["file"]), int(source.get("line", 0)), str(source.get("key", "")))
    return PathPattern(str(value["anchor"]), tuple(map(str, value["tail"])), bool(value["any_depth"]), where)


def _events(path: str) -> tuple[list[dict[str, Any]], bool]:
    """The whole lines of ``path``, and whether a torn one follows them."""
    *lines, rest = _text(path).split("\n")
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            raise RecordError("not an event", where=f"{path}:{number}")
        events.append(cast("dict[str, Any]", event))
    return events, bool(rest)


def _text(path: str) -> str:
    try:
        # A record is ASCII: bytes that are not must not keep the rest of it from being read.
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as error:
        raise RecordError(error.strerror or str(error), where=path) from None
