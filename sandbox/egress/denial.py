"""What a program inside is told when the gateway says no: for HTTP, a 403 that a person, or a model, can act on."""

from __future__ import annotations

import json
from dataclasses import dataclass

SCHEMA = "remit.denied/1"


@dataclass(frozen=True, slots=True)
class Denial:
    """One refusal. ``missing``: what would allow it: (profile key, its value, the option for it or "")."""

    status: int
    object: str
    reason: str
    missing: tuple[str, str, str] = ("", "", "")

    def body(self) -> bytes:
        """The JSON document."""
        key, value, option = self.missing
        document: dict[str, object] = {
            "schema": SCHEMA,
            "error": "denied" if self.status == 403 else "failed",
            "layer": "gateway",
            "object": self.object,
            "reason": self.reason,
        }
        if key:
            document["missing"] = {"key": key, "value": value}
            steps = [f"Ask the person who started this session to grant it: {option or _entry(key, value)}."]
            document["next_steps"] = [*steps, "Trying again, or another way to the same place, will not help."]
        return json.dumps(document).encode() + b"\n"

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Of an answer with this body; the connection ends after it."""
        return [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(self.body())).encode()),
            (b"x-remit-denied", b"1" if self.status == 403 else b"0"),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
        ]

    def message(self) -> bytes:
        """The whole HTTP/1.1 answer, where no parser is at work."""
        lines = [b"HTTP/1.1 %d %s" % (self.status, _PHRASES.get(self.status, b"Error"))]
        lines += [name + b": " + value for name, value in self.headers()]
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body()


def _entry(key: str, value: str) -> str:
    """A value as it stands in a profile."""
    return f"{key} = [{{ {value} }}]" if key == "network.http" else f"{key} = {value}"


_PHRASES = {400: b"Bad Request", 403: b"Forbidden", 502: b"Bad Gateway", 504: b"Gateway Timeout"}


def not_granted(wanted: str, reason: str, grant: str) -> Denial:
    """A destination that no rule allows; ``grant`` is the smallest endpoint that would."""
    return Denial(403, wanted, reason, ("network.connect", f'["{grant}"]', f"--connect {grant}"))
