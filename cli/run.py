"""``remit run``: what click parsed, handed to the same launcher as the hot path."""

from __future__ import annotations

from remit.cli import fast
from remit.cli.command import GrantCommand

command = GrantCommand(
    "run",
    lambda invocation: fast.start(invocation),
    required=True,
    help="""Run CMD with the profile's authority and the options', and nothing else.

    Options after CMD belong to CMD. The exit status is CMD's own, or 128 + signal; 124 time limit, 125 Remit failed or
    the authority cannot be enforced, 126 exec not granted, 127 not found, 137 memory limit, 2 usage.
    """,
)
