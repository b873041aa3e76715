"""Events as entries of the systemd journal, by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

An entry is one datagram of fields. Its time is that of the export; ``REMIT_TIME`` is the event's.
"""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING

from remit.sandbox.audit import message
from remit.sandbox.authority.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remit.sandbox.events.event import Event

SOCKET = "/run/systemd/journal/socket"
_PATIENCE = 5.0
"""Seconds for which the journal may read nothing."""
_WARNING, _INFORMATION = "4", "6"
"""Priorities of ``syslog(3)``."""


def entry(event: Event, session: str) -> bytes:
    """One event's datagram."""
    fields = {
        "MESSAGE": f"{event.verdict}: {message.tried(event)}",
        "PRIORITY": _WARNING if event.denied else _INFORMATION,
        "SYSLOG_IDENTIFIER": "remit",
        "REMIT_SESSION": session,
        "REMIT_EVENT": event.id,
        "REMIT_TIME": repr(event.time),
        "REMIT_CALL": event.call,
        "REMIT_GRANT": event.grant,
        "REMIT_PROGRAM": event.exe,
        "REMIT_SYSCALL": event.syscall,
        "REMIT_AXIS": event.axis,
        "REMIT_RIGHT": event.right,
        "REMIT_OBJECT": event.object,
        "REMIT_VERDICT": event.verdict,
        "REMIT_CERTAINTY": event.certainty,
        "REMIT_LAYER": event.layer,
        "REMIT_RULE": f"{event.rule.text} {event.rule.where}".strip(),
        "REMIT_ERRNO": event.errno,
    }
    return b"".join([_field(name, value) for name, value in fields.items() if value])


def send(events: Iterable[Event], session: str, path: str = "") -> int:
    """Send them all; how many there were. ``path``: another socket than the journal's.

    Raises UsageError: there is no journal here, or it takes no more.
    """
    count = 0
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as journal:
        try:
            journal.settimeout(_PATIENCE)
            journal.connect(path or SOCKET)
            for event in events:
                journal.send(entry(event, session))
                count += 1
        except OSError as error:
            reason = f"{error.strerror or 'it takes no more'}, after {count} events"
            raise UsageError(f"the journal cannot be written: {reason}", where=path or SOCKET) from None
    return count


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="surrogateescape")
    if b"\n" not in data:
        return b"%s=%s\n" % (name.encode(), data)
    # With its length: what a file is called must not be able to make a field.
    return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
