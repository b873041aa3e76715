"""``remit why``: what a session was denied, what decided it, and the smallest grant that would have allowed it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from errno import errorcode
from typing import TYPE_CHECKING

import click

from remit.cli import options, render
from remit.cli.command import HELP_NAMES
from remit.sandbox.audit import denials
from remit.sandbox.audit.record import state_directory
from remit.sandbox.authority import pattern
from remit.sandbox.authority.errors import UsageError
from remit.sandbox.compile import catalogue
from remit.sandbox.compile.syscalls import TABLE, Action
from remit.sandbox.kernel.call import NR
from remit.sandbox.mediate.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from remit.sandbox.audit.denials import Denial, Session

_NAMES = {number: name for name, number in NR.items()}
_UNGRANTED = "nothing grants it"
_AUTO_EXEC = "auto_exec "
_KERNEL_LAYERS = ("namespaces", "landlock")
_OPTIONS = {"write": "--write", "exec": "--exec"}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one denial, or several that are equal, happened.

    ``kind``: ``deny``, ``protect``, ``auto-exec``, ``ungranted``, ``call``, ``refused`` or ``error``. ``source`` is the
    line of the authority that took the object away. ``grant`` are the words to add to the command line; none, and
    ``note`` says why.
    """

    denial: Denial
    call: str
    kind: str
    layers: tuple[str, ...]
    source: str = ""
    grant: tuple[str, ...] = ()
    note: str = ""

    @property
    def errno(self) -> str:
        """The name of what the command got; empty where the kernel chose it."""
        if self.kind == "ungranted":
            return ""
        return errorcode.get(self.denial.errno, str(self.denial.errno))


@click.command("why", context_settings={"help_option_names": list(HELP_NAMES)})
@click.argument("session", required=False, metavar="[SESSION[:SEQ]]")
@click.option("--last", is_flag=True, help="The session that started last.")
@click.option("--json", "as_json", is_flag=True, help=options.JSON.help)
def command(session: str | None, last: bool, as_json: bool) -> int:
    """Explain what a session was denied: what was tried, what decided, and the smallest grant that would allow it."""
    if last == (session is not None):
        raise UsageError("either a session (SESSION, SESSION:SEQ) or --last is expected", hint=denials.LAST_HINT)
    state = state_directory(dict(os.environb))
    identifier, sequence = denials.reference(session) if session is not None else (denials.latest(state), 0)
    found = denials.read(state, identifier)
    chosen = [one for one in found.denials if not sequence or sequence in one.sequence]
    if sequence and not chosen:
        raise UsageError(f"{session}: no denial has that number", hint=f"remit why {identifier}")
    if sequence:
        chosen = [replace(one, sequence=(sequence,)) for one in chosen]
    explained = [explain(one, found, os.path.lexists) for one in chosen]
    if as_json:
        render.document("why", content(found, explained))
    else:
        _print(found, explained)
    return 0


def explain(denial: Denial, session: Session, exists: Callable[[str], bool]) -> Explanation:
    """Why ``denial`` happened in ``session``. ``exists`` tells what is on the host now: only that can be granted."""
    name = _NAMES.get(denial.nr, f"system call {denial.nr}")
    if denial.verdict == "error":
        note = "the mediator failed, and what fails is refused: a bug in Remit"
        return Explanation(denial, name, "error", ("mediation",), note=note)
    if denial.right == "call":
        group = _group(name) if denial.rule.endswith(" is refused") else ""
        if group:
            return Explanation(denial, name, "call", ("seccomp",), grant=("--allow-syscalls", group))
        return Explanation(denial, name, "call", ("seccomp",), note="not grantable")
    if denial.rule == _UNGRANTED:
        return _ungranted(denial, name, session, exists)
    if denial.rule.startswith(_AUTO_EXEC):
        note = "protected as auto-executed: a program outside would run it"
        if catalogue.opens(denial.object):
            return Explanation(denial, name, "auto-exec", ("mediation",), grant=("--write", denial.object), note=note)
        return Explanation(denial, name, "auto-exec", ("mediation",), note=note)
    for kind, patterns in (("deny", session.deny), ("protect", session.protect)):
        for one in patterns:
            if str(one) == denial.rule:
                source = str(one.source)
                return Explanation(denial, name, kind, ("mediation",), source, note=_edit(kind, source))
    return Explanation(denial, name, "refused", ("mediation",), note="not grantable")


def _edit(kind: str, source: str) -> str:
    if source.startswith("command line"):
        return f"{kind} wins over every grant: leave that option out"
    return f"{kind} wins over every grant: only editing the line that says so opens it"


def _group(call: str) -> str:
    """The group that allows ``call``; empty where some way to be refused is in none."""
    groups = {row.group for row in TABLE if row.call == call and row.action is Action.COUNT}
    return groups.pop() if len(groups) == 1 else ""


def _ungranted(denial: Denial, call: str, session: Session, exists: Callable[[str], bool]) -> Explanation:
    held = {str(one.get("layer")) for one in session.operations}
    found = Explanation(denial, call, "ungranted", tuple(layer for layer in _KERNEL_LAYERS if layer in held))
    path = denial.object
    option = _OPTIONS.get(denial.right)
    if option is None:
        return replace(found, note="not grantable in this version: a session has its own loopback only")
    try:
        components = pattern.parts(path)
    except ValueError:
        return replace(found, note="not grantable by that name")
    taken = [("deny", session.deny)]
    if denial.right == "write":
        taken.append(("protect", session.protect))
    for kind, patterns in taken:
        for one in patterns:
            if pattern.covers(pattern.shape(one), components):
                return replace(found, source=str(one.source), note=_edit(kind, str(one.source)))
    if components[:1] == ("proc",):
        return replace(
            found, note="not grantable: a session has its own /proc, and what it holds of the host is read-only"
        )
    if denial.right == "write" and _auto_executed(session, path):
        return replace(found, note="a grant would not do: protected as auto-executed")
    if exists(path):
        return replace(found, grant=(option, path))
    parent = path.rpartition("/")[0]
    if parent and exists(parent):
        note = "only what is there at start can be granted, and this is not: its directory"
        return replace(found, grant=(option, parent), note=note)
    return replace(
        found, note=f"only what is there at start can be granted: make it, then {option} {shlex.quote(path)}"
    )


def _auto_executed(session: Session, path: str) -> bool:
    for operation in session.operations:
        if operation.get("op") == "mediate":
            catalogue = tuple(tuple(map(str, entry)) for entry in operation.get("catalogue", ()))
            rules = Rules((), (), (), catalogue, tuple(operation.get("opened", ())))
            return bool(rules.decide(path.encode("utf-8", "surrogateescape"), "write"))
    return False


def content(session: Session, explained: list[Explanation]) -> dict[str, object]:
    """The document behind ``--json``."""
    return {
        "session": session.identifier,
        "command": list(session.command),
        "ended": session.ended,
        "torn": session.torn,
        "denials": [
            {
                "events": [f"{session.identifier}:{number}" for number in one.denial.sequence],
                "count": len(one.denial.sequence),
                "call": one.call,
                "right": one.denial.right,
                "object": one.denial.object,
                "kind": one.kind,
                "rule": one.denial.rule,
                "layers": list(one.layers),
                "errno": one.errno or None,
                "source": one.source or None,
                "grant": list(one.grant),
                "note": one.note,
            }
            for one in explained
        ],
    }


def _print(session: Session, explained: list[Explanation]) -> None:
    render.heading(f"session {session.identifier}: {shlex.join(session.command)}".replace("\n", " "))
    if session.torn:
        render.text("the record's last line is not whole: the session was killed, or is writing it")
    elif not session.ended:
        render.text("the record has no end: the session was killed, or still runs")
    if not explained:
        render.text("nothing was denied")
    for one in explained:
        denial, times = one.denial, len(one.denial.sequence)
        tried = one.call if denial.right == "call" else f"{one.call}: {denial.right} {denial.object}".rstrip()
        lines = [
            ("decided", f"{denial.rule} ({', '.join(one.layers)}; {one.errno or 'the kernel chose the error'})"),
            ("line", one.source),
            ("grant", shlex.join(one.grant) or "none"),
            ("note", one.note),
        ]
        render.text()
        render.heading((tried + (f" ({times} times)" if times > 1 else "")).replace("\n", "\\n"))
        render.listing(f"{label:<9}{value}".replace("\n", "\\n") for label, value in lines if value)
