"""``cat <>/.remit/why``: what was denied to a program, asked from inside.

Remit's own code and record are hidden from what it confines, and nothing is put there for it to read: a place that is opened
*for writing* is the mediator's to open anyway, and at this name it gives a read-only memory file with the last denials of
whoever asks. So it costs nothing where nobody asks; there is no file that could be changed, removed or forged; a call hears
of its own denials only; and what is told, the program had as an errno before.
"""

from __future__ import annotations

import posix

from remit.sandbox.events.action import HELD, OPTIONS, POINTLESS, UNGRANTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TypeAlias

    Recent: TypeAlias = tuple[bytes, str, str, bytes]
    """Object, right, rule and program of a denial."""

PLACE = b"/.remit/why"
KEPT = 8
"""Denials that are remembered for each command."""
_UNKNOWN = 'This session notes its start and end only ([audit] level = "off"): what was denied is not known.\n'
_GATEWAY = (
    "Connections to the network are not in this list: a refused one was reset, or answered 403 with the reason.\n"
)
_UNSEEN = f"{UNGRANTED} (whether it would work without the sandbox is not known in here)"
_THERE = "if it is not there yet, to make it first: only what is there at start can be granted"
_NONE = "The sandbox has denied nothing here that it saw. (A name that nothing grants is simply not there.)\n"


def text(recent: Iterable[Recent], lines: Mapping[str, str], *, known: bool, gateway: bool) -> bytes:
    """The latest denials, three lines each, the last one first. ``lines``: where a rule stands, by its text. ``known``: what
    is denied is noted at all. ``gateway``: connections are decided elsewhere."""
    if not known:
        return _UNKNOWN.encode()
    told = [_one(*one, lines) for one in reversed(list(recent))]
    found = "\n\n".join(dict.fromkeys(told)) + "\n" if told else _NONE
    return (found + ("\n" + _GATEWAY if gateway else "")).encode(errors="surrogateescape")


def _one(path: bytes, right: str, rule: str, exe: bytes, lines: Mapping[str, str]) -> str:
    name = _line(path.decode(errors="surrogateescape"))
    by = f" by {_line(exe.decode(errors='surrogateescape'))}" if exe else ""
    stands = lines.get(rule, "")
    if rule == UNGRANTED:
        why = _UNSEEN
    elif rule == HELD:
        why = rule
    elif right in ("call", "setuid"):
        why = rule if right == "call" else "setuid and setgid modes are refused"
    else:
        why = f"the rule {rule} takes it away" + (f" ({stands})" if stands else "")
    asks = "Do without it, or ask the user, who can see more with: remit why --last"
    if rule == UNGRANTED and right in OPTIONS and not name.startswith("/proc/"):
        asks = f"If the task needs it, ask the user to grant: {OPTIONS[right]} {name} ({_THERE})"
    return f"Denied by the sandbox: {right} {name}{by}: {why}.\n{POINTLESS}\n{asks}."


def _line(text: str) -> str:
    return text if text.isprintable() else repr(text)


def opened(content: bytes) -> int:
    """A descriptor that reads ``content`` and can neither be written nor made longer."""
    made = posix.memfd_create("why", posix.MFD_CLOEXEC)
    try:
        posix.write(made, content)
        return posix.open(b"/proc/self/fd/%d" % made, posix.O_RDONLY | posix.O_CLOEXEC)
    finally:
        posix.close(made)
