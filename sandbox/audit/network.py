"""What a gateway reported (``egress.wire.EVENT``) as lines of a record."""

from __future__ import annotations

from remit.sandbox.audit.text import dumps
from remit.sandbox.events.action import ALLOWED, DENIED, EXERCISED

_REMEMBERED = 256
"""Rules whose text is made once."""


def line(event: tuple[object, ...], call: str, grant: str, now: float, mono: float) -> str:
    """One decision as an action (``events.event``), or the end of a connection: a line of the record, without its place.

    No process is known: a gateway sees sockets. ``errno`` is none, because what the program sees depends on how it asked.
    """
    _, right, thing, verdict, reason, rule, via, sent, received, duration, missing = event
    denied = verdict == "denied"
    if not thing:
        # Denials that the gateway could only count.
        return dumps({"time": now, "kind": "gap", "lost": int(str(reason).partition(" ")[0])})
    # Spelled out, because every connection comes by here twice.
    if verdict == "ended" or (right not in ("connect", "request") and not denied):
        return (
            f'{{"time":{now!r},"kind":"connection","call":{dumps(call)},"source":"gateway","object":{dumps(thing)},'
            f'"right":"{right}","verdict":"{verdict}","via":"{via}","sent":{sent},"received":{received},'
            f'"duration":{duration},"reason":{dumps(reason)},"rule":{dumps(rule)},"grant":"{grant}"}}'
        )
    result, certainty, layer = (DENIED, DENIED, "gateway") if denied else (ALLOWED, EXERCISED, "")
    where = _rule(str(rule), str(reason) if denied else "")
    also = f',"missing":{dumps(missing)}' if missing else ""
    means = "request" if right == "request" else "connect"
    return (
        f'{{"time":{now!r},"mono":{mono!r},"kind":"action","call":{dumps(call)},"grant":"{grant}","pid":0,"pid_start":0,'
        f'"exe":"","syscall":"connect","axis":"network","right":"{means}",'
        f'"object":{dumps(thing)},"verdict":"{result}","certainty":"{certainty}","layer":"{layer}","rule":{where},'
        f'"errno":null,"source":"gateway"{also}}}'
    )


_rules: dict[tuple[str, str], str] = {}


def _rule(where: str, reason: str) -> str:
    """``FILE:LINE KEY`` as its parts (``authority.model.Source``). ``reason``: what a denial is called."""
    made = _rules.get((where, reason))
    if made is None:
        place, _, key = where.rpartition(" ")
        file, _, number = place.rpartition(":")
        if not number.isdecimal():
            file, number = place, "0"
        made = dumps({"text": reason or where, "file": file, "line": int(number), "key": key})
        if len(_rules) >= _REMEMBERED:
            _rules.clear()
        _rules[where, reason] = made
    return made


def gone(problem: str) -> dict[str, object]:
    """The gateway died before its session: nothing can leave any more."""
    return {"kind": "gateway", "verdict": "gone", "reason": problem}
