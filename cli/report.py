"""``remit report``: a session's alignment: what was exercised against what was granted."""

from __future__ import annotations

import os
import shlex
from typing import Any

import click

from remit.cli import page, render, signing
from remit.cli.audit import chosen, verified
from remit.cli.command import HELP_NAMES
from remit.sandbox.audit import housekeeping, log, report
from remit.sandbox.audit.record import state_directory
from remit.sandbox.authority.errors import RemitError

_ROWS = 40
"""Denied objects that the text shows; the other formats have all."""


@click.command("report", context_settings={"help_option_names": list(HELP_NAMES)})
@click.argument("session", required=False, metavar="[SESSION]")
@click.option("--last", is_flag=True, help="The session that started last.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "html"]),
    default="text",
    help="How to print it (default: text).",
)
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
def command(session: str | None, last: bool, form: str, as_json: bool) -> int:
    """Report what a session attempted, exercised and was denied, each joined to the grant line that allowed it, or to the
    missing one that would have.
    """
    state = state_directory(dict(os.environb))
    identifier = chosen(state, session, last, "remit report --last")
    found = log.read(state, identifier)
    try:
        made = report.build(found, verified(state, identifier))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise log.RecordError(f"not a plan: {error!r}", where=f"{found.directory}/plan.json") from None
    except RemitError as error:
        raise log.RecordError(f"not a plan: {error}", where=f"{found.directory}/plan.json") from None
    if as_json or form == "json":
        render.document("report", made)
    elif form == "html":
        render.text(page.html(made))
    else:
        _print(made)
    housekeeping.run(state, signing.key)
    return 0


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _print(made: dict[str, Any]) -> None:
    totals = made["totals"]
    render.heading(f"session {made['session']}: {shlex.join(made['command'])}".replace("\n", " "))
    render.text(f"profile {made['profile']}, workspace {made['workspace']}, audit level {made['level']}")
    for line in remarks(made):
        render.text(line)
    render.text()
    render.table(
        ("metric", "value", "of", "good"),
        [
            ("alignment score", _percent(totals["alignment_score"]), "", "100 %"),
            ("attempted", str(totals["attempted"]), "", ""),
            ("exercised", str(totals["exercised"]), str(totals["attempted"]), ""),
            ("violation attempts", str(totals["violation_attempts"]), str(totals["attempted"]), "0"),
            ("prevented", str(totals["prevented"]), str(totals["violation_attempts"]), "all"),
            ("leaked, by this record", str(totals["leaked"]), str(totals["violation_attempts"]), "0"),
            (
                "false denials",
                str(totals["false_denials"]),
                str(totals["attempted"] - totals["violation_attempts"]),
                "0",
            ),
            ("unused grant lines", str(totals["unused_grant_lines"]), str(totals["grant_lines"]), "low"),
            ("lowering slack", str(len(made["lowering"]["slack"])), "", "0"),
            ("lowering deficit", str(len(made["lowering"]["deficit"])), "", "0"),
            ("moot (not Remit)", str(totals["moot"]), "", ""),
        ],
    )
    calls = made["calls"]
    if len(calls) > 1:
        render.text()
        render.heading("calls")
        rows = [
            (
                call["call"],
                "-" if call["status"] is None else str(call["status"]),
                str(call["totals"]["attempted"]),
                str(call["totals"]["exercised"]),
                str(call["totals"]["denied"]),
                _percent(call["totals"]["alignment_score"]),
                shlex.join(call["argv"]),
            )
            for call in calls
        ]
        render.table(("call", "status", "attempted", "exercised", "denied", "score", "command"), rows)
    _atoms("denied", [atom for atom in made["atoms"] if atom["outcome"] == "denied"])
    _atoms(
        "exercised outside the grant", [a for a in made["atoms"] if a["outcome"] == "exercised" and not a["in_grant"]]
    )
    unused = [line for line in made["grant_lines"] if line["used"] is False]
    if unused:
        render.text()
        render.heading("granted and not used")
        render.table(("right", "object", "line"), [(line["right"], line["object"], line["source"]) for line in unused])


def _atoms(title: str, atoms: list[dict[str, Any]]) -> None:
    if not atoms:
        return
    render.text()
    render.heading(title)
    rows = [
        (
            atom["call"],
            ", ".join(os.path.basename(one) for one in atom["programs"]),
            atom["right"],
            atom["object"],
            str(atom["attempts"]),
            atom["source"] or atom["line"],
            shlex.join(atom["missing"]) or atom["note"],
        )
        for atom in atoms[:_ROWS]
    ]
    render.table(("call", "program", "right", "object", "times", "decided by", "would be allowed by"), rows)
    if len(atoms) > _ROWS:
        render.text(f"and {len(atoms) - _ROWS} more (--format json has all)")


def remarks(made: dict[str, Any]) -> list[str]:
    """What a reader has to know before believing the numbers."""
    said: list[str] = []
    record = made["record"]
    if record["problem"] is not None:
        said.append(
            f"THE RECORD IS NOT WHAT WAS WRITTEN: line {record['problem']['line']}: {record['problem']['what']}"
        )
    if not made["ended"]:
        said.append("the record has no end: the session was killed, or still runs")
    if made["lost"]:
        said.append(f"{made['lost']} actions could not be recorded")
    if made["level"] == "off":
        said.append("this session recorded its start and end only: nothing here says what it did")
    elif made["level"] == "writes":
        said.append('reads were not recorded ([audit] level = "full" does)')
    if made["degraded"]:
        said.append(f"degraded: {', '.join(made['degraded'])}")
    return said
