"""``remit why``: what was denied, what decided it, and the smallest grant that would have allowed it.

Three questions: about a recorded session (or one event of it), about an object in the session that ran last, and, with
``-p``, about an object under a profile, where nothing needs to have run.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

import click

from remit.cli import options, render
from remit.cli.command import HELP_NAMES
from remit.sandbox.audit import denials, housekeeping, log, message, why
from remit.sandbox.audit.decide import Decider, Decision, endpoint, requested, target
from remit.sandbox.audit.record import state_directory
from remit.sandbox.authority.errors import NOWHERE, UsageError
from remit.sandbox.authority.parse import ParseError, parse_endpoint
from remit.sandbox.session import place

if TYPE_CHECKING:
    from remit.sandbox.audit.why import Explanation
    from remit.sandbox.events.event import Event

_RIGHTS = ("read", "write", "exec")
_TELLING = 6
"""Characters of an id that no host is called by accident."""


@click.command("why", context_settings={"help_option_names": list(HELP_NAMES)})
@click.argument("what", required=False, metavar="[SESSION[:SEQ] | PATH | HOST:PORT]")
@click.option("--last", is_flag=True, help="The session that started last.")
@click.option(
    "-p", "--profile", metavar="PROFILE", help="Ask what PROFILE would say of PATH or HOST:PORT; nothing is run."
)
@click.option("-w", "--workspace", metavar="DIR", help="With -p: the workspace (default: the current directory).")
@click.option("--json", "as_json", is_flag=True, help=options.JSON.help)
def command(what: str | None, last: bool, profile: str | None, workspace: str | None, as_json: bool) -> int:
    """Say why a session's actions were denied, or whether an action would be.

    For the session that ran last (--last), a session or an event of it: each distinct denial, the layer and the line that
    decided, and the smallest grant that would have allowed it. For a PATH or HOST:PORT: what happened to it in the last
    session; with -p, what the profile would say.
    """
    state = state_directory(dict(os.environb))
    if profile is not None:
        if last or what is None or log.is_reference(what):
            raise UsageError("-p asks about a PATH or HOST:PORT", hint="remit why -p PROFILE PATH")
        return _would(what, profile, workspace or "", as_json)
    if workspace is not None:
        raise UsageError("-w goes with -p", hint="remit why -p PROFILE -w DIR PATH")
    about = what is not None and _is_object(what) and not _is_recorded(state, what)
    if last == (what is not None) and not (last and about):
        raise UsageError("either a session (SESSION, SESSION:SEQ), an object or --last is expected", hint=log.LAST_HINT)
    if what is not None and about:
        return _happened(state, what, as_json)
    identifier, sequence = log.named(state, what) if what is not None else (log.latest(state), 0)
    found = log.read(state, identifier)
    denied = [event for event in found.events if event.denied and (not sequence or event.sequence == sequence)]
    if sequence and not denied:
        other = [event for event in found.events if event.sequence == sequence]
        if not other:
            raise UsageError(f"{what}: no denial has that number", hint=f"remit why {identifier}")
        return _not_denied(found, other, as_json)
    explained = denials.explanations(found, denied)
    if as_json:
        render.document("why", content(found, explained))
    else:
        _print(found, explained)
    housekeeping.run(state)
    return 0


def content(session: log.Log, explained: list[Explanation]) -> dict[str, object]:
    """The document behind ``--json``."""
    return {
        "session": session.identifier,
        "command": list(session.command),
        "ended": session.ended,
        "torn": session.torn,
        "lost": session.lost,
        "denials": [
            {
                "events": [event.id for event in one.events],
                "count": len(one.events),
                "call": one.event.syscall,
                "axis": one.event.axis,
                "right": one.event.right,
                "object": one.event.object,
                "programs": sorted({event.exe for event in one.events if event.exe}),
                "calls": sorted({event.call for event in one.events}),
                "kind": one.kind,
                "rule": one.event.rule.text,
                "layers": list(one.layers),
                "errno": one.event.errno or None,
                "source": one.source or one.event.rule.where or None,
                "grant": list(one.grant),
                "toml": one.toml or None,
                "note": one.note,
                "message": message.text(one),
            }
            for one in explained
        ],
    }


def _print(session: log.Log, explained: list[Explanation]) -> None:
    render.heading(f"session {session.identifier}: {shlex.join(session.command)}".replace("\n", " "))
    if session.torn:
        render.text("the record's last line is not whole: the session was killed, or is writing it")
    elif not session.ended:
        render.text("the record has no end: the session was killed, or still runs")
    if session.lost:
        render.text(f"{session.lost} actions could not be recorded")
    if not explained:
        render.text(denials.nothing_denied(str(session.plan.get("audit", "writes"))))
    for one in explained:
        event, times = one.event, len(one.events)
        tried = event.syscall if event.right == "call" else f"{event.syscall}: {event.right} {event.object}".rstrip()
        programs = ", ".join(sorted({event.exe for event in one.events if event.exe}))
        lines = [
            ("program", programs),
            ("decided", f"{event.rule.text} ({', '.join(one.layers)}; {event.errno or 'the kernel chose the error'})"),
            ("line", one.source or event.rule.where),
            ("grant", shlex.join(one.grant) or "none"),
            ("toml", one.toml.replace("\n", "  ")),
            ("note", one.note),
        ]
        render.text()
        render.heading((tried + (f" ({times} times)" if times > 1 else "")).replace("\n", "\\n"))
        render.listing(f"{label:<9}{value}".replace("\n", "\\n") for label, value in lines if value)


# --- about an object


def _is_endpoint(text: str) -> bool:
    host, colon, rest = text.rpartition(":")
    port, _, protocol = rest.partition("/")
    return bool(host and colon and port.isdigit() and protocol in ("", "tcp", "udp")) and "/" not in host


def _is_object(text: str) -> bool:
    """A path (with a slash or a dot before it, or of something that is there) or HOST:PORT rather than a session."""
    if not text or log.is_reference(text) or (_is_endpoint(text) and log.is_reference(text.rpartition(":")[0])):
        return False
    if "/" in text or text.startswith("~") or text in (".", "..") or _is_endpoint(text):
        return True
    return os.path.lexists(text)


def _is_recorded(state: str, text: str) -> bool:
    """SESSION:SEQ, with a session's id that is abbreviated. Short ones are rather hosts."""
    session = text.rpartition(":")[0]
    return len(session) >= _TELLING and _is_endpoint(text) and log.full(state, session) != session


def _object(text: str) -> tuple[str, bool]:
    """(the object's name in events, whether it is an endpoint). Raises UsageError."""
    if _is_endpoint(text):
        return text, True
    if not _is_object(text):
        raise UsageError(
            f"{text!r} is neither HOST:PORT nor the path of something that is here",
            hint=f"./{text} for a path, {text}:443 for a host",
        )
    path = os.path.expanduser(text)
    if not path.startswith("/") and not place.current_directory():
        raise UsageError(f"{NOWHERE}, and {text!r} is relative to it", hint="cd to one that does, or write it in full")
    return os.path.realpath(path), False


def _means(event: Event, name: str, spelled: str) -> bool:
    """Whether it is about that object. A connection is asked about as it was meant, by name or address."""
    if event.object in (name, spelled):
        return True
    try:
        if event.right == "request":
            return (*requested(event.object)[1:3], "tcp") == target(name)
        return event.axis == "network" and target(event.object) == target(name)
    except ValueError:
        return False


def _happened(state: str, what: str, as_json: bool) -> int:
    name, network = _object(what)
    spelled = name if network else os.path.abspath(os.path.expanduser(what))
    found = log.read(state, log.latest(state))
    events = [event for event in found.events if _means(event, name, spelled)]
    denied = [event for event in events if event.denied]
    if not events:
        return _tell_would(what, log.Deciders(found).session, f"session {found.identifier}", as_json, nothing=True)
    if not denied:
        return _not_denied(found, events, as_json)
    explained = denials.explanations(found, denied)
    if as_json:
        render.document("why", content(found, explained))
    else:
        _print(found, explained)
    return 0


def _not_denied(found: log.Log, events: list[Event], as_json: bool) -> int:
    if as_json:
        render.document("why", {**content(found, []), "not_remit": [message.not_remit(event) for event in events]})
    else:
        render.heading(f"session {found.identifier}: {shlex.join(found.command)}".replace("\n", " "))
        for line in dict.fromkeys(message.not_remit(event) for event in events):
            render.text(line)
    return 0


def _would(what: str, profile: str, workspace: str, as_json: bool) -> int:
    from remit.cli.options import Invocation
    from remit.sandbox.session.assemble import assemble

    invocation = Invocation("explain", (), profile, workspace, "", (), -1, False, True, False)
    made = assemble(invocation)
    names = {path: named.canonical for path, named in made.names.items()}
    decider = Decider(made.grant.authority, names, http=made.http)
    return _tell_would(what, decider, f"profile {made.profile.name}", as_json)


def _tell_would(what: str, decider: Decider, whose: str, as_json: bool, *, nothing: bool = False) -> int:
    name, network = _object(what)
    answers: list[tuple[str, str, Decision]] = []
    if network:
        try:
            asked = parse_endpoint(what)
        except ParseError as error:
            raise UsageError(error.message, hint=error.hint) from None
        name = endpoint(asked.name or asked.network.partition("/")[0], asked.port, asked.protocol)
        answers.append(("network", "connect", decider.endpoint(name)))
    else:
        answers += [
            ("exec" if right == "exec" else "filesystem", right, decider.path(name, right)) for right in _RIGHTS
        ]
    rows: list[dict[str, Any]] = []
    for axis, right, decision in answers:
        grant: tuple[str, ...] = ()
        note, source = "", str(decision.source) if decision.source else ""
        if decision.kind == "ungranted":
            explained = why.missing(axis, right, name, decider, os.path.lexists)
            grant, note, source = explained.grant, explained.note, explained.source
        elif decision.kind in ("deny", "protect"):
            note = f"{decision.kind} wins over every grant"
        elif decision.kind == "auto-exec":
            grant, note = why.auto_executed(name, os.path.lexists)
        rows.append(
            {
                "axis": axis,
                "right": right,
                "object": name,
                "allowed": decision.allowed,
                "kind": decision.kind,
                "rule": decision.line,
                "source": source or None,
                "grant": list(grant),
                "toml": why.toml(grant) or None,
                "note": note,
            }
        )
    if as_json:
        render.document("would", {"under": whose, "answers": rows})
        return 0
    render.heading(f"{name} under {whose}")
    if nothing:
        render.text("nothing that was recorded names it; by its authority it would be so:")
    for row in rows:
        line = f"{row['right']}: {'allowed' if row['allowed'] else 'denied'} ({row['rule'] or row['kind']})"
        if nothing and row["allowed"]:
            line += "; where that failed, it was not Remit"
        render.text(line)
        more = [("line", row["source"]), ("grant", shlex.join(row["grant"])), ("note", row["note"])]
        render.listing(f"{label:<9}{value}" for label, value in more if value)
    return 0
