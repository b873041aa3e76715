"""What a gateway reported (``egress.wire.EVENT``) as the fields of a record's event."""

from __future__ import annotations

from remit.sandbox.kernel.call import NR


def connection(event: tuple[object, ...]) -> dict[str, object]:
    """One decision, or the end of a connection.

    A denial has the fields of every denial (``nr`` is connect's, which is what a program called in nearly every case;
    ``errno`` is 0, because what the program sees depends on how it asked), and ``allow``: the grant that would change it.
    """
    call, right, thing, verdict, reason, rule, via, sent, received, duration = event
    fields: dict[str, object] = {"source": "gateway", "object": thing, "right": right, "verdict": verdict, "via": via}
    if call:
        fields["call"] = call
    if verdict == "denied":
        return {"kind": "denial", **fields, "pid": 0, "nr": NR["connect"], "errno": 0, "rule": reason, "allow": rule}
    if verdict == "ended":
        fields |= {"sent": sent, "received": received, "duration": duration}
    return {"kind": "connection", **fields, "reason": reason, "rule": rule}


def gone(problem: str) -> dict[str, object]:
    """The gateway died before its session: nothing can leave any more."""
    return {"kind": "gateway", "verdict": "gone", "reason": problem}
