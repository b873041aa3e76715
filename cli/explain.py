"""``remit explain``: what a ``remit run`` with the same options would be held to. Runs nothing."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING

from remit.cli import render
from remit.cli.command import GrantCommand
from remit.profiles.find import SHIPPED
from remit.sandbox.authority.errors import Unenforceable
from remit.sandbox.compile.plan import Limit
from remit.sandbox.session.assemble import Assembled, assemble

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remit.cli.options import Invocation
    from remit.sandbox.compile.plan import Line

SECTIONS = (
    ("granted", "Granted"),
    ("denied", "Denied"),
    ("slack", "Slack: enforced wider than granted"),
    ("deficit", "Deficit: enforced narrower than granted"),
    ("unenforceable", "Unenforceable"),
)

MOOT = "not granted anyway"
GATHERED = ("environment", "devices")
RIGHTS = ("read", "write", "exec")


def explain(invocation: Invocation) -> int:
    """Print the plan. Returns 0, or 125 where ``remit run`` would refuse because the authority is unenforceable."""
    try:
        assembled = assemble(invocation, os.environ)
    except Unenforceable as error:
        if invocation.json:
            render.document("explain", refusal(error))
            return error.exit_status
        raise
    if invocation.json:
        render.document("explain", content(assembled))
    else:
        _print(assembled, with_plan=invocation.plan)
    return 0


def content(assembled: Assembled) -> dict[str, object]:
    """The document behind ``--json`` for an authority that can be enforced."""
    lowering = assembled.lowering.json()
    return {
        "enforceable": True,
        "profile": {"name": assembled.profile.name, "file": assembled.profile.file},
        "workspace": assembled.workspace,
        "directory": assembled.directory,
        "grant": assembled.grant.to_json(),
        "lowering": {**lowering, "notes": _notes(assembled)},
        "plan": assembled.plan.json(),
        "reasons": [],
    }


def _notes(assembled: Assembled) -> list[str]:
    return [*assembled.warnings, *assembled.lowering.notes, *assembled.notes]


def refusal(error: Unenforceable) -> dict[str, object]:
    """The document behind ``--json`` for one that cannot."""
    return {
        "enforceable": False,
        "message": str(error),
        "hint": error.hint,
        "reasons": [{"what": what, "fix": fix} for what, fix in error.reasons],
    }


def _print(assembled: Assembled, *, with_plan: bool) -> None:
    profile, plan, lowering = assembled.profile, assembled.plan, assembled.lowering
    render.heading(f"profile {profile.name} ({profile.file})")
    render.text(f"workspace {assembled.workspace}")
    if assembled.directory != assembled.workspace:
        render.text(f"starts in {assembled.directory}")
    if assembled.grant.purpose:
        render.text(f"purpose {assembled.grant.purpose}")
    if plan.degraded:
        render.text(f"degraded {', '.join(plan.degraded)}")
    for name, title in SECTIONS:
        lines: Sequence[Line] = getattr(lowering, name)
        if lines:
            _section(title, lines)
    limits = [operation for operation in plan.operations if isinstance(operation, Limit)]
    if limits:
        render.text()
        render.heading("Limits")
        render.listing(operation.describe() for operation in limits)
    notes = _notes(assembled)
    if notes:
        render.text()
        render.heading("Notes")
        render.listing(notes)
    if with_plan:
        render.text()
        render.heading(f"Plan {plan.digest[:16]}")
        render.listing(f"{number:3}. {operation.describe()}" for number, operation in enumerate(plan.operations, 1))


def _section(title: str, lines: Sequence[Line]) -> None:
    rows = _rows(lines)
    moot = sum(one.note == MOOT for one in lines)
    render.text()
    render.heading(title)
    if rows:
        columns = ("axis", "right", "object", "note", "held by", "from")
        shown = [i for i in range(len(columns)) if any(row[i] for row in rows)]
        render.table([columns[i] for i in shown], [[row[i] for i in shown] for row in rows])
    for one in _gathered(lines):
        render.listing(one)
    if moot:
        render.listing([f"and {moot} that nothing grants anyway (--json lists them)"])


def _rows(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """One row an object with all its rights from one source."""
    merged: dict[tuple[str, ...], list[Line]] = {}
    for one in lines:
        if one.axis not in GATHERED and one.axis != "limits" and one.note != MOOT:
            merged.setdefault((one.axis, one.object, one.note, one.source), []).append(one)
    rows: list[tuple[str, ...]] = []
    for (axis, object_, note, source), found in merged.items():
        rights = sorted(
            {one.right for one in found}, key=lambda right: (RIGHTS.index(right) if right in RIGHTS else 9, right)
        )
        layers = dict.fromkeys(layer for one in found for layer in one.layers)
        rows.append((axis, ", ".join(rights), object_, note, ", ".join(layers), _place(source)))
    return rows


def _gathered(lines: Sequence[Line]) -> list[list[str]]:
    """Variables and devices, many and short: their names in a paragraph each."""
    names: dict[str, list[str]] = {}
    for one in lines:
        if one.axis in GATHERED:
            names.setdefault(f"{one.axis}, {one.right}: ", []).append(one.object)
    return [textwrap.wrap(title + ", ".join(found), 100, subsequent_indent="  ") for title, found in names.items()]


def _place(source: str) -> str:
    """A shipped profile by its file's name: its directory is the same for all."""
    return source.removeprefix(f"{SHIPPED}/")


command = GrantCommand(
    "explain",
    explain,
    required=False,
    help="""Print what `remit run` with the same options would be held to: granted, denied, slack, deficit, and what
    cannot be enforced here. Runs nothing. Exit 125 where `remit run` would refuse.
    """,
)
