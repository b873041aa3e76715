"""What a gateway reported (``egress.wire.EVENT``) as the fields of a record's event."""

from __future__ import annotations

import time

from remit.sandbox.events.action import ALLOWED, DENIED, EXERCISED


def connection(event: tuple[object, ...]) -> dict[str, object]:
    """One decision as an action (``events.event``), or the end of a connection.

    No process is known: a gateway sees sockets. ``errno`` is none, because what the program sees depends on how it asked.
    """
    call, right, thing, verdict, reason, rule, via, sent, received, duration, missing = event
    denied = verdict == "denied"
    if not thing:
        return {"kind": "gap", "lost": int(str(reason).partition(" ")[0])}  # denials that the gateway could only count
    if verdict == "ended" or (right not in ("connect", "request") and not denied):
        fields = {"source": "gateway", "object": thing, "right": right, "verdict": verdict, "via": via}
        fields |= {"sent": sent, "received": received, "duration": duration, "reason": reason, "rule": rule}
        return {"kind": "connection", "call": call, **fields}
    return {
        "mono": time.monotonic(),
        "kind": "action",
        "call": call,
        "grant": "",
        "pid": 0,
        "pid_start": 0,
        "exe": "",
        "syscall": "connect",
        "axis": "network",
        "right": "request" if right == "request" else "connect",
        "object": thing,
        "verdict": DENIED if denied else ALLOWED,
        "certainty": DENIED if denied else EXERCISED,
        "layer": "gateway" if denied else "",
        "rule": _rule(str(rule), str(reason) if denied else ""),
        "errno": None,
        "source": "gateway",
        **({"missing": missing} if missing else {}),
    }


def _rule(where: str, reason: str) -> dict[str, object]:
    """``FILE:LINE KEY`` as its parts (``authority.model.Source``). ``reason``: what a denial is called."""
    place, _, key = where.rpartition(" ")
    file, _, line = place.rpartition(":")
    if not line.isdecimal():
        file, line = place, "0"
    return {"text": reason or where, "file": file, "line": int(line), "key": key}


def gone(problem: str) -> dict[str, object]:
    """The gateway died before its session: nothing can leave any more."""
    return {"kind": "gateway", "verdict": "gone", "reason": problem}
