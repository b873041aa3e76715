"""``remit audit``: the record of a session, shown, verified, exported, and decided again under another profile."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import click

from remit.cli import options, render, signing
from remit.cli.command import HELP_NAMES
from remit.sandbox.audit import housekeeping, journal, log, ocsf, replay, seal
from remit.sandbox.audit.record import state_directory
from remit.sandbox.authority.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

AXES = ("filesystem", "network", "exec", "ipc", "syscalls")
_NAMED = 8
"""Calls that an error names."""
_SETTINGS = {"help_option_names": list(HELP_NAMES)}


@click.group("audit", context_settings=_SETTINGS)
def command() -> None:
    """Show, verify, export and replay the records of sessions."""


def chosen(state: str, session: str | None, last: bool, hint: str) -> str:
    """The session that is meant: SESSION or --last. Raises UsageError."""
    if last == (session is not None):
        raise UsageError("either a session or --last is expected", hint=hint)
    if session is None:
        return log.latest(state)
    identifier, sequence = log.named(state, session)
    if sequence:
        raise UsageError(f"{session}: a session is expected, not an event", hint=hint)
    return identifier


_SESSION = click.argument("session", required=False, metavar="[SESSION]")
_LAST = click.option("--last", is_flag=True, help="The session that started last.")
_JSON = click.option("--json", "as_json", is_flag=True, help=options.JSON.help)


@command.command("show", context_settings=_SETTINGS)
@_SESSION
@_LAST
@_JSON
@click.option("--denied", is_flag=True, help="Only what was denied.")
@click.option("--call", metavar="CALL", help="Only events of this call.")
@click.option("--axis", metavar="AXIS", help=f"Only this axis ({', '.join(AXES)}).")
@click.option("--under", metavar="PATH", help="Only objects that are PATH or below it.")
def show(
    session: str | None, last: bool, as_json: bool, denied: bool, call: str | None, axis: str | None, under: str | None
) -> int:
    """Print the events of a session."""
    state = state_directory(dict(os.environb))
    found = log.read(state, chosen(state, session, last, "remit audit show --last"))
    if axis is not None and axis not in AXES:
        raise UsageError(f"no such axis: {axis!r}", where="--axis", hint=f"one of: {', '.join(AXES)}")
    if call is not None and call not in (known := list(dict.fromkeys(one.identifier for one in found.calls))):
        raise UsageError(
            f"session {found.identifier} has no call {call!r}",
            where="--call",
            hint=f"one of: {', '.join(known)}" if len(known) <= _NAMED else f"remit session show {found.identifier}",
        )
    events = [
        event
        for event in found.events
        if (not denied or event.denied)
        and (call is None or event.call == call)
        and (axis is None or event.axis == axis)
        and (under is None or event.object == under or event.object.startswith(under.rstrip("/") + "/"))
    ]
    if as_json:
        render.document(
            "audit-show",
            {
                "session": found.identifier,
                "command": list(found.command),
                "started": found.started.get("time"),
                "ended": found.ended,
                "torn": found.torn,
                "lost": found.lost,
                "events": [event.to_json() for event in events],
            },
        )
        return 0
    begun = float(found.started.get("time", 0))
    rows = [
        (
            str(event.sequence),
            f"{event.time - begun:.3f}",
            event.call,
            os.path.basename(event.exe) or str(event.pid),
            event.syscall,
            event.right,
            event.object,
            event.verdict if event.certainty != "exercised" else "done",
            event.errno,
            event.rule.where or event.rule.text,
        )
        for event in events
    ]
    columns = ("seq", "seconds", "call", "program", "syscall", "right", "object", "verdict", "errno", "rule")
    render.heading(f"session {found.identifier}: {' '.join(found.command)}".replace("\n", " "))
    if rows:
        render.table(columns, rows)
    if found.lost:
        render.text(f"{found.lost} actions could not be recorded")
    if found.torn or not found.ended:
        render.text("the record has no end: the session was killed, or still runs")
    housekeeping.run(state, signing.key)
    return 0


@command.command("verify", context_settings=_SETTINGS)
@click.argument("sessions", nargs=-1, metavar="[SESSION...]")
@click.option("--last", is_flag=True, help="The session that started last.")
@click.option("--all", "every", is_flag=True, help="Every recorded session.")
@_JSON
def verify(sessions: tuple[str, ...], last: bool, every: bool, as_json: bool) -> int:
    """Check that records are what was written: nothing changed, removed, cut off or moved. Exit status 1 if not.

    Lines that no checkpoint signs yet are said to be unsigned; they are signed when they have been verified.
    """
    state = state_directory(dict(os.environb))
    if bool(sessions) + last + every != 1:
        raise UsageError("sessions, --last or --all are expected", hint="remit audit verify --last")
    names = [log.named(state, one)[0] for one in sessions] or ([log.latest(state)] if last else log.sessions(state))
    results = [verified(state, name) for name in names]
    good = all(one["ok"] for one in results)
    for one in results:
        if one["ok"] and one["unsigned"]:
            _sign(one, f"{state}/sessions/{one['session']}")
    if as_json:
        render.document("audit-verify", {"ok": good, "sessions": results})
    else:
        for one in results:
            render.text(_line(one))
    housekeeping.run(state, signing.key)
    return 0 if good else 1


def verified(state: str, identifier: str) -> dict[str, Any]:
    """What ``verify`` says of one session, before it signs anything."""
    directory = log.directory_of(state, identifier)
    checked = log.check(directory)
    seals = seal.check(directory, checked, signing.verified)
    problem = checked.problem or seals.problem
    if checked.problem is not None and seals.problem is not None:
        problem = min(checked.problem, seals.problem, key=lambda one: one.line)
    return {
        "session": identifier,
        "ok": problem is None,
        "lines": len(checked.hashes),
        "ended": checked.ended,
        "running": log.running(directory),
        "torn": checked.torn,
        "signed": seals.upto,
        "unsigned": len(checked.hashes) - seals.upto,
        "keys": list(dict.fromkeys(seals.keys)),
        "problem": None
        if problem is None
        else {"what": problem.what, "line": problem.line, "offset": problem.offset, "event": problem.id or None},
        "signed_now": False,
    }


def _sign(result: dict[str, Any], directory: str) -> None:
    key = signing.key_or_none()
    if key is not None:
        result["signed_now"] = seal.add(directory, key, time.time())


def _line(one: dict[str, Any]) -> str:
    problem = one["problem"]
    if problem is not None:
        return f"{one['session']}: BROKEN at line {problem['line']} (byte {problem['offset']}): {problem['what']}"
    parts = [f"{one['lines']} lines, whole"]
    if not one["ended"]:
        parts.append("still runs" if one["running"] else "no end: the session was killed")
    if one["torn"]:
        parts.append("a last line that is not whole was left out")
    if one["unsigned"]:
        parts.append(f"unsigned tail: {one['unsigned']} lines" + (", signed now" if one["signed_now"] else ""))
    else:
        parts.append("signed")
    return f"{one['session']}: {'; '.join(parts)}"


@command.command("export", context_settings=_SETTINGS)
@_SESSION
@_LAST
@click.option("--ocsf", "as_ocsf", is_flag=True, help="In the Open Cybersecurity Schema Framework's form (1.3).")
@click.option("--journald", "to_journal", is_flag=True, help="Send them to the systemd journal instead.")
def export(session: str | None, last: bool, as_ocsf: bool, to_journal: bool) -> int:
    """Print every event of a session as JSON lines."""
    state = state_directory(dict(os.environb))
    if as_ocsf and to_journal:
        raise UsageError("--ocsf is for JSON lines, --journald sends none", hint="one of the two")
    found = log.read(state, chosen(state, session, last, "remit audit export --last"))
    if to_journal:
        sent = journal.send(found.events, found.identifier)
        render.text(f"{sent} events: journalctl REMIT_SESSION={found.identifier}")
        return 0
    shape: Callable[[Any], dict[str, object]] = (
        (lambda event: ocsf.event(event, found))
        if as_ocsf
        else (lambda event: {"schema": "remit.event/1", **event.to_json()})
    )
    for event in found.events:
        render.text(json.dumps(shape(event)))
    return 0


@command.command("replay", context_settings=_SETTINGS)
@_SESSION
@_LAST
@click.option("-p", "--profile", required=True, metavar="PROFILE", help="The profile to decide by.")
@click.option("--all", "every", is_flag=True, help="Also actions that would be decided as they were.")
@_JSON
def replayed(session: str | None, last: bool, profile: str, every: bool, as_json: bool) -> int:
    """Say what PROFILE would have decided of a session's actions, and where that differs. Runs nothing.

    A replay answers for the recorded attempts only: what a program would have done after another answer, nobody knows.
    """
    from remit.cli.options import Invocation
    from remit.sandbox.audit.decide import Decider
    from remit.sandbox.session.assemble import assemble

    state = state_directory(dict(os.environb))
    found = log.read(state, chosen(state, session, last, "remit audit replay --last -p PROFILE"))
    workspace = str(found.started.get("workspace", ""))
    made = assemble(Invocation("explain", (), profile, workspace, "", (), -1, False, True, False))
    names = {path: named.canonical for path, named in made.names.items()}
    decider = Decider(made.grant.authority, names, http=made.http)
    document = replay.compare(found, decider, made.profile.name, every=every)
    if as_json:
        render.document("audit-replay", document)
        return 0
    counts = document["counts"]
    render.heading(f"session {found.identifier} under profile {made.profile.name}")
    render.text(
        f"{counts['actions']} actions: {counts['same']} decided the same, {counts['would_allow']} would be allowed, "
        f"{counts['would_deny']} would be denied"
    )
    rows = [
        (one["right"], one["object"], one["then"], one["now"], one["rule"], str(one["count"]))
        for one in document["actions"]
    ]
    if rows:
        render.table(("right", "object", "then", "now", "rule", "times"), rows)
    return 0
