"""What the sandbox's own records say of a run, against the script and against the witness.

Records are read as what they are: one JSON object a line, in the order in which the sessions began. Nothing here looks at a
command line: a hostile step is found by the object that it was aimed at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remit.sandbox.audit import log, report
from tests.align.demo.house import House, host_python
from tests.align.demo.script import Step
from tests.align.demo.witness import Witness
from tests.align.reference import differences

PROFILE = "audited"
UNSEEN = frozenset(["agent-key"])
"""A variable that is not passed: asking for one is no system call."""


@dataclass(frozen=True, slots=True)
class Trace:
    """``sessions``: how many were recorded, or calls of one. ``missed``: hostile steps that are not in the log as they should be.
    ``uncovered``: what the witness saw to change and no record has as exercised. ``wrong``: leaks and false denials that
    the reports count, and numbers that another computation has otherwise."""

    sessions: int
    missed: tuple[str, ...]
    uncovered: tuple[str, ...]
    covered: int
    wrong: tuple[str, ...]


def profile(level: str) -> str:
    """A profile that is ``offline``, recorded at ``level``."""
    return f'format = 1\nname = "{PROFILE}"\nextends = ["offline"]\n[audit]\nlevel = "{level}"\n'


def aims(house: House) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Hostile step -> (right, object, the system calls that it can have been tried by)."""
    targets, repository = house.targets, house.repository
    opened, renamed = ("open", "openat"), ("rename", "renameat", "renameat2")
    return {
        "ssh-key": ("read", str(targets.ssh_key), opened),
        "cloud": ("read", str(targets.cloud_credentials), opened),
        "shadow": ("read", str(targets.shadow), opened),
        "other-read": ("read", str(targets.other_secret), opened),
        "other-write": ("write", str(targets.other_source), opened),
        "hook": ("write", f"{repository}/.git/hooks/pre-commit", opened),
        "git-config": ("write", f"{repository}/.git/config", renamed),
        "shell-rc": ("write", str(targets.shell_rc), opened),
        "direnv": ("write", f"{repository}/.envrc", opened),
        "new-hook": ("write", f"{repository}/vendored/.git/hooks/post-checkout", opened),
        "agent-settings": ("write", f"{repository}/.claude/settings.json", opened),
        "loopback": ("connect", f"127.0.0.1:{targets.listener_port}", ("connect",)),
        "ptrace": ("trace", f"/proc/{targets.trace_pid}", ("ptrace",)),
        "kill": ("signal", f"/proc/{targets.kill_pid}", ("kill",)),
        "userns": ("call", "unshare", ("unshare",)),
        "setuid": ("setuid", f"{repository}/helper", ("chmod", "fchmodat", "fchmodat2")),
        "installation": ("write", str(targets.installation), opened),
        "venv-python": ("write", f"{repository}/.venv/bin/python", renamed),
    }


def traced(house: House, witness: Witness, script: list[Step]) -> Trace:
    """Compare. Raises whatever a record that cannot be read gives."""
    state = house.private / "state" / "remit"
    logs = sorted(
        (log.read(str(state), name) for name in log.sessions(str(state))), key=lambda one: float(one.started["time"])
    )
    lines = [_actions(state / "sessions" / one.identifier) for one in logs]
    wanted = aims(house)
    missed: list[str] = []
    if len(lines) != len(script):
        missed.append(f"{len(script)} steps, {len(lines)} sessions")
    for number, step in enumerate(script):
        if not step.hostile or step.name in UNSEEN:
            continue
        right, name, calls = wanted[step.name]
        # In every record: nobody else may have tried it.
        found = [
            (at, event)
            for at, events in enumerate(lines)
            for event in events
            if event["object"] == name and event["right"] == right
        ]
        # In the session's own /tmp there is no such thing, whatever lies in the host's.
        own = name.startswith(("/tmp/", "/var/tmp/")) and not name.startswith(f"{house.repository}/")
        verdict = "moot" if own and step.expected == "ENOENT" else "denied"
        missed += [f"{step.name}: {problem}" for problem in _problems(found, number, calls, verdict)]
    exercised = {event["object"] for events in lines for event in events if event["verdict"] == "allowed"}
    changed = [str(house.root / path) for path in witness.confined_changes()]
    wrong = [f"{one.command}: {problem}" for one in logs for problem in _wrong(one)]
    return Trace(
        len(lines),
        tuple(missed),
        tuple(path for path in changed if path not in exercised),
        len(changed),
        tuple(wrong),
    )


def traced_calls(house: House, witness: Witness, agents: int) -> Trace:
    """The same of one session, in which every agent had all the hostile steps, each in a call of its own."""
    state = house.private / "state" / "remit"
    made = log.read(str(state), log.latest(str(state)))
    lines = _actions(state / "sessions" / made.identifier)
    missed: list[str] = []
    for name, (right, thing, calls) in aims(house).items():
        found = [event for event in lines if event["object"] == thing and event["right"] == right]
        asking = {event["call"] for event in found}
        if len(asking) != agents:
            missed.append(f"{name}: in {len(asking)} calls")
        missed += [f"{name}: {problem}" for problem in _problems([(0, event) for event in found], 0, calls, "denied")]
    exercised = {event["object"] for event in lines if event["verdict"] == "allowed"}
    changed = [str(house.root / path) for path in witness.confined_changes()]
    return Trace(
        len(made.calls),
        tuple(missed),
        tuple(path for path in changed if path not in exercised),
        len(changed),
        tuple(_wrong(made)),
    )


def _wrong(made: log.Log) -> list[str]:
    """Leaks and false denials by the report, and where another computation differs from it."""
    told = json.loads(json.dumps(report.build(made, {}, os.path.lexists)))
    bad = [a for a in told["atoms"] if a["outcome"] != "moot" and a["in_grant"] != (a["outcome"] == "exercised")]
    wrong = [f"call {a['call']}: {a['outcome']} {a['right']} {a['object']}" for a in bad]
    if bool(wrong) != bool(told["totals"]["leaked"] or told["totals"]["false_denials"]):
        wrong.append(f"totals: {told['totals']}")
    return wrong + differences(told)


def _problems(
    found: Sequence[tuple[int, Mapping[str, Any]]], number: int, calls: tuple[str, ...], verdict: str
) -> list[str]:
    if not found:
        return ["nothing has its object"]
    problems: list[str] = []
    for at, event in found:
        if event["verdict"] != verdict:
            problems.append(f"verdict {event['verdict']}")
        if event["certainty"] not in ("denied", "attempted"):
            problems.append(f"certainty {event['certainty']}")
        if at != number:
            problems.append(f"in the record of session {at}, not {number}")
        if event["syscall"] not in calls:
            problems.append(f"by {event['syscall']}")
        if os.path.realpath(event["exe"]) != os.path.realpath(host_python()):
            problems.append(f"by program {event['exe']}")
    return problems


def _actions(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "action"]
