"""An event as its readers have it: one action of a program in a session, as one line of the record says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

Document: TypeAlias = dict[str, Any]
"""JSON (``object`` is a field here)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What decided: the text of a rule, or the granted path; and where it stands (``file`` empty: nowhere)."""

    text: str
    file: str = ""
    line: int = 0
    key: str = ""

    @property
    def where(self) -> str:
        """``FILE:LINE KEY``, what there is of it."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place} {self.key}".strip()


@dataclass(frozen=True, slots=True)
class Event:
    """``verdict`` and ``certainty``: see ``events.action``. ``errno`` is a name, empty where the kernel chose it, or for none.

    ``time`` is Unix seconds, ``mono`` CLOCK_MONOTONIC, ``pid`` a number in the session's PID namespace, ``pid_start`` clock
    ticks since boot. ``missing``: the endpoint that would have allowed it, as the gateway said.
    """

    id: str
    call: str
    grant: str
    time: float
    mono: float
    pid: int
    pid_start: int
    exe: str
    syscall: str
    axis: str
    right: str
    object: str
    verdict: str
    certainty: str
    layer: str
    rule: Rule
    errno: str
    source: str
    missing: str = ""

    @property
    def sequence(self) -> int:
        """Its number in the record."""
        return int(self.id.rpartition(":")[2])

    @property
    def denied(self) -> bool:
        """Outside the grant, and stopped."""
        return self.verdict in ("denied", "error")

    @property
    def exercised(self) -> bool:
        """It took effect; where the kernel was left to decide, because the authority allows it."""
        return self.verdict == "allowed"

    @property
    def moot(self) -> bool:
        """It failed, or would have, without Remit too."""
        return self.verdict == "moot"

    @classmethod
    def from_json(cls, made: Mapping[str, Any]) -> Event:
        """Raises KeyError, TypeError or ValueError for what is no event."""
        rule = made["rule"]
        return cls(
            id=_text(made["id"]),
            call=_text(made["call"]),
            grant=_text(made["grant"]),
            time=float(made["time"]),
            mono=float(made["mono"]),
            pid=int(made["pid"]),
            pid_start=int(made["pid_start"]),
            exe=_text(made["exe"]),
            syscall=_text(made["syscall"]),
            axis=_text(made["axis"]),
            right=_text(made["right"]),
            object=_text(made["object"]),
            verdict=_text(made["verdict"]),
            certainty=_text(made["certainty"]),
            layer=_text(made["layer"]),
            rule=Rule(_text(rule["text"]), _text(rule["file"]), int(rule["line"]), _text(rule["key"])),
            errno=_text(made["errno"] or ""),
            source=_text(made["source"]),
            missing=_text(made.get("missing", "")),
        )

    def to_json(self) -> Document:
        """What ``from_json`` reads."""
        rule = self.rule
        return {
            "id": self.id,
            "call": self.call,
            "grant": self.grant,
            "time": self.time,
            "mono": self.mono,
            "pid": self.pid,
            "pid_start": self.pid_start,
            "exe": self.exe,
            "syscall": self.syscall,
            "axis": self.axis,
            "right": self.right,
            "object": self.object,
            "verdict": self.verdict,
            "certainty": self.certainty,
            "layer": self.layer,
            "rule": {"text": rule.text, "file": rule.file, "line": rule.line, "key": rule.key},
            "errno": self.errno or None,
            "source": self.source,
            **({"missing": self.missing} if self.missing else {}),
        }


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value
