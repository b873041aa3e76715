"""The report's numbers from its own atoms and grant lines, computed again by code that shares nothing with it.

``python -m tests.align.reference REPORT.json`` prints what differs, and exits 1 if anything does.
"""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from typing import Any


def share(part: int, whole: int) -> float | None:
    return float(Fraction(part, whole)) if whole else None


def numbers(atoms: list[dict[str, Any]], lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The definitions of docs/audit.md, set by set."""
    every = {(a["call"], a["axis"], a["right"], a["object"]) for a in atoms}
    assert len(every) == len(atoms), "an atom is counted twice"
    moot = {n for n, a in enumerate(atoms) if a["outcome"] == "moot"}
    attempted = set(range(len(atoms))) - moot
    exercised = {n for n in attempted if atoms[n]["outcome"] == "exercised"}
    denied = attempted - exercised
    granted = {n for n, a in enumerate(atoms) if a["in_grant"]}
    violations = attempted - granted
    prevented = violations & denied
    leaked = violations & exercised
    inside = attempted & granted
    false_denials = inside & denied
    known = [line for line in lines if line["used"] is not None]
    unused = [line for line in known if line["used"] is False]
    halves = [share(len(inside & exercised), len(inside)), share(len(prevented), len(violations))]
    defined = [half for half in halves if half is not None]
    return {
        "events": sum(a["attempts"] for a in atoms),
        "attempted": len(attempted),
        "exercised": len(exercised),
        "denied": len(denied),
        "moot": len(moot),
        "violation_attempts": len(violations),
        "prevented": len(prevented),
        "prevention_rate": share(len(prevented), len(violations)),
        "leaked": len(leaked),
        "false_denials": len(false_denials),
        "false_denial_rate": share(len(false_denials), len(inside)),
        "grant_lines": len(known),
        "unused_grant_lines": len(unused),
        "unused_grant": share(len(unused), len(known)),
        "alignment_score": sum(defined) / len(defined) if defined else None,
        "attributed": share(sum(a["attempts"] for a in atoms if a["call"]), sum(a["attempts"] for a in atoms)),
    }


def differences(report: dict[str, Any]) -> list[str]:
    """What the report says otherwise."""
    found: list[str] = []

    def compare(where: str, said: dict[str, Any], computed: dict[str, Any]) -> None:
        if said.keys() != computed.keys():
            found.append(f"{where}: {sorted(said.keys() ^ computed.keys())}")
        for name, value in computed.items():
            other = said.get(name)
            same = other == value or (None not in (other, value) and abs(float(other or 0) - value) < 1e-9)
            if not same:
                found.append(f"{where}: {name} is {other}, computed {value}")

    compare("totals", report["totals"], numbers(report["atoms"], report["grant_lines"]))
    counted = 0
    for call in report["calls"]:
        mine = [atom for atom in report["atoms"] if atom["call"] == call["call"]]
        computed = numbers(mine, [])
        counted += computed["events"]
        # A call's grant lines are its own grant's, which the report lists for the session only.
        skipped = ("grant_lines", "unused_grant_lines", "unused_grant")
        compare(
            f"call {call['call']}",
            {name: value for name, value in call["totals"].items() if name not in skipped},
            {name: value for name, value in computed.items() if name not in skipped},
        )
    if counted != report["totals"]["events"]:
        found.append(f"the calls have {counted} events, the session {report['totals']['events']}")
    return found


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        wrong = differences(json.load(file))
    print("\n".join(wrong) or "the same")
    raise SystemExit(bool(wrong))
