"""What the records say about sessions: a line each, or one with its calls."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from remit.sandbox.audit.log import LIST_HINT
from remit.sandbox.authority.errors import UsageError


@dataclass(frozen=True, slots=True)
class Summary:
    """One session. ``state``: ``live`` (standing), ``ended``, or ``open`` (its record has no end: it runs in another
    process, or was killed)."""

    session: str
    state: str
    profile: str
    workspace: str
    started: str
    command: str

    def json(self) -> dict[str, object]:
        return {
            "id": self.session,
            "state": self.state,
            "profile": self.profile,
            "workspace": self.workspace,
            "started": self.started,
            "command": self.command or None,
        }


@dataclass(slots=True)
class Call:
    """One call of a session."""

    call: str
    command: str
    result: str = "running"
    denials: int = 0

    def json(self) -> dict[str, object]:
        return {"call": self.call, "command": self.command, "result": self.result, "denials": self.denials}


@dataclass(frozen=True, slots=True)
class Details:
    """A session with its calls."""

    summary: Summary
    why: str
    calls: tuple[Call, ...] = field(default=())

    def json(self) -> dict[str, object]:
        return {**self.summary.json(), "ended": self.why or None, "calls": [call.json() for call in self.calls]}


def summaries(state: str, live: Collection[str], *, every: bool) -> list[Summary]:
    """The live sessions, or with ``every`` all that have a record; newest last."""
    names = sorted(live)
    if every:
        try:
            names = sorted({*live, *os.listdir(os.path.join(state, "sessions"))})
        except OSError:
            pass
    found: list[Summary] = []
    for name in names:
        try:
            found.append(_summary(name, _events(state, name), _plan(state, name), live))
        except OSError:
            continue  # no record any more
    return found


def details(state: str, session: str, live: Collection[str]) -> Details:
    """One session. Raises UsageError where there is no record of it."""
    try:
        events = _events(state, session)
    except OSError:
        raise UsageError(f"no record of a session {session!r}", hint=LIST_HINT) from None
    calls: dict[str, Call] = {}
    why = ""
    for event in events:
        kind, call = event.get("kind"), str(event.get("call", ""))
        if kind == "call":
            calls[call] = Call(call, shlex.join(map(str, event.get("argv", []))))
        elif kind == "returned" and call in calls:
            calls[call].result = _result(event)
            calls[call].denials = int(event.get("denials", 0))
        elif kind == "refused" and call:
            calls.setdefault(call, Call(call, "")).result = f"refused: {event.get('message', '')}"
        elif kind == "ended":
            why = str(event.get("why") or event.get("failed") or f"status {event.get('status')}")
    return Details(_summary(session, events, _plan(state, session), live), why, tuple(calls.values()))


def _result(event: dict[str, Any]) -> str:
    if event.get("limit"):
        return str(event["limit"])
    code = os.waitstatus_to_exitcode(int(event.get("status", 0)))
    return f"signal {-code}" if code < 0 else str(code)


def _summary(name: str, events: list[dict[str, Any]], plan: dict[str, Any], live: Collection[str]) -> Summary:
    first = events[0] if events else {}
    ended = any(event.get("kind") == "ended" for event in events[-3:])
    state = "live" if name in live else "ended" if ended else "open"
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(float(first.get("time", 0))))
    profile = plan.get("profile", {}).get("name", "")
    return Summary(name, state, profile, str(first.get("workspace", "")), began, shlex.join(first.get("argv", [])))


def _events(state: str, session: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if "/" in session or session in ("", ".", ".."):
        raise FileNotFoundError(session)
    with open(os.path.join(state, "sessions", session, "events.jsonl"), encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # the last line of a session that was killed while it wrote
    return found


def _plan(state: str, session: str) -> dict[str, Any]:
    try:
        with open(os.path.join(state, "sessions", session, "plan.json"), encoding="utf-8") as file:
            made: dict[str, Any] = json.load(file)
    except (OSError, ValueError):
        return {}
    return made
