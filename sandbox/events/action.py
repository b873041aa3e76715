"""What a session's mediator says of one action, and the words of an event. Values only, and nothing imported.

An action travels from the mediator to the writer of the record as a plain tuple in the order of ``FIELDS``; the writer
adds what it knows (see ``remit.sandbox.audit.record``) and the result is one line of ``events.jsonl``.

Two words are not the same. The *verdict* is what the authority says of the action. The *certainty* is what is known of
its effect: only what the mediator performed or refused by itself is certain; where it lets the kernel go on, the kernel
decides by the same authority, and nobody hears the answer.
"""

FIELDS = (
    "mono",
    "pid",
    "pid_start",
    "exe",
    "nr",
    "object",
    "right",
    "verdict",
    "certainty",
    "layer",
    "errno",
    "rule",
)
"""``mono`` is CLOCK_MONOTONIC in seconds, ``pid_start`` clock ticks since boot (``proc_pid_stat(5)``), ``object`` and
``exe`` bytes, ``errno`` a number, 0 for none or unknown."""

LOOKED_UP, LOOKUP = -1, "lookup"
"""The ``nr`` of a name that was looked up, by a call that is not known; and what the record has instead of its name."""

ALLOWED, DENIED, MOOT, ERROR, ASKED = "allowed", "denied", "moot", "error", "asked"
"""Verdicts. ``moot``: it failed, or would, without Remit too. ``error``: the mediator failed, and so refused. ``asked``: a
connection that the gateway decides on, in an event of its own (``audit.joined``)."""

ATTEMPTED, EXERCISED = "attempted", "exercised"
"""Certainties, beside ``denied``. ``attempted``: the kernel was left to decide."""

UNGRANTED = "nothing grants it"
"""The rule of what no line of the authority covers."""

PRIVATE = "the session's own"
"""The rule of what every session has for itself: its ``/tmp``, ``/dev``, ``/proc``, loopback and processes."""

NO_RULE = "no rule grants it"
OTHER_PORT = "the host is granted, but not on this port"
OTHER_PROTOCOL = "the host is granted, but not with this protocol"
NO_NAME = "no rule grants the name"
NO_HTTP_RULE = "no HTTP rule allows it"
BY_AUTHORITY = (NO_RULE, OTHER_PORT, OTHER_PROTOCOL, NO_NAME, NO_HTTP_RULE)
"""A gateway's reasons that follow from the authority alone. Its others depend on what a name led to or a program sent."""

RELAYED = "the gateway decides"
"""The rule of a connection that is the gateway's to judge."""

HELD = "the record cannot be written"
"""The rule of what is refused because it could not be recorded."""

POINTLESS = "The kernel enforces this: trying again, or another way to the same end, will be denied too."
"""What whoever is told of a denial should read, a model above all."""

EXECUTES, TAKES_AWAY = "exec ", "no "
"""Before a rule, where it is asked where that stands: the right to execute what is granted, and what takes away. Rules begin
with a slash, and one text can be both."""

OPTIONS = {"read": "--read", "write": "--write", "remove": "--write", "exec": "--exec"}
"""The option that grants a right on a path."""

AXES = {
    "read": "filesystem",
    "write": "filesystem",
    "remove": "filesystem",
    "setuid": "filesystem",
    "exec": "exec",
    "connect": "network",
    "request": "network",
    "bind": "network",
    "signal": "ipc",
    "trace": "ipc",
    "call": "syscalls",
    "": "syscalls",
}
"""The axis of each right. A Unix socket's is ``ipc``, see ``axis``."""


def axis(right: str, name: str) -> str:
    """The axis of ``right`` on the object ``name``."""
    if right in ("connect", "bind") and name[:1] in ("/", "@"):
        return "ipc"
    return AXES[right]
