"""What a model should read of a denial: what was denied, that trying again is pointless, whom to ask. Three lines at most.

A denial's text must not invite escalation: it names the one missing grant and no broader one, and where nothing can be
granted it says so. A failure that was not the sandbox's is said to be none, so that nobody asks for authority in vain.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from remit.sandbox.audit.why import MAKE
from remit.sandbox.events.action import POINTLESS, UNGRANTED

if TYPE_CHECKING:
    from remit.sandbox.audit.why import Explanation
    from remit.sandbox.events.event import Event


def text(explanation: Explanation) -> str:
    """A denial in at most three lines."""
    event = explanation.event
    times = f" ({len(explanation.events)} times)" if len(explanation.events) > 1 else ""
    lines = [f"Denied by the sandbox: {tried(event)}{times}: {reason(explanation)}.", POINTLESS, asking(explanation)]
    return "\n".join(_one_line(line) for line in lines)


def tried(event: Event) -> str:
    """What was tried, by which program."""
    what = event.syscall if event.right == "call" else f"{event.right} {event.object}".rstrip()
    return f"{what} by {event.exe}" if event.exe else what


def reason(explanation: Explanation) -> str:
    """What decided, in words."""
    rule = explanation.event.rule.text
    if explanation.event.right == "setuid":
        return "setuid and setgid modes are refused"
    return {
        "deny": f"the rule deny {rule} takes it away",
        "protect": f"the rule protect {rule} keeps it from being written",
        "auto-exec": "a program outside would execute that file",
        "ungranted": f"{UNGRANTED}",
        "call": "the system call is not granted",
        "held": "the record of this session cannot be written",
        "error": "the sandbox's mediator failed and refused",
    }.get(explanation.kind, rule)


def asking(explanation: Explanation) -> str:
    """Whom to ask for what."""
    if explanation.entry:
        return f"If the task needs it, ask the user for an HTTP rule in the profile: {explanation.entry}"
    if explanation.grant:
        return f"If the task needs it, ask the user to grant: {shlex.join(explanation.grant)}"
    _, make, how = explanation.note.partition(MAKE)
    if make:
        return f"If the task needs it, ask the user. {MAKE[0].upper()}{MAKE[1:]}{how}."
    if explanation.kind in ("deny", "protect") or explanation.source:
        return f"No grant opens it; only the user can change {explanation.source or 'the rule'}. Do without it, or ask."
    return "It cannot be granted. Do without it, or tell the user."


def document(explanation: Explanation) -> dict[str, object]:
    """A denial for programs: ``Result.denials`` and ``--denials=json``."""
    event = explanation.event
    return {
        "events": [one.id for one in explanation.events],
        "count": len(explanation.events),
        "call": event.call,
        "program": event.exe,
        "syscall": event.syscall,
        "axis": event.axis,
        "right": event.right,
        "object": event.object,
        "kind": explanation.kind,
        "rule": event.rule.text,
        "source": explanation.source or None,
        "errno": event.errno or None,
        "grant": list(explanation.grant),
        "toml": explanation.toml or None,
        "note": explanation.note,
        "message": text(explanation),
    }


def not_remit(event: Event) -> str:
    """A failure that would have been the same without the sandbox, in a line."""
    error = f" with {event.errno}" if event.errno else ""
    if event.verdict == "allowed":
        return _one_line(f"Not Remit: {tried(event)} was allowed.")
    return _one_line(f"Not Remit: {tried(event)} failed{error}, and would have without the sandbox too.")


def _one_line(line: str) -> str:
    """A file name must not be able to say anything in a line of its own, nor to move a cursor."""
    return "".join([c if c.isprintable() else c.encode("unicode_escape").decode() for c in line])
