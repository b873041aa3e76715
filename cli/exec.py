"""``remit exec``: one call in a live session, under a grant of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from remit.cli import render
from remit.cli.command import HELP_NAMES, GrantCommand
from remit.cli.status import Status
from remit.sandbox.authority.errors import RemitError, UsageError
from remit.sandbox.authority.parse import ParseError
from remit.sandbox.session import place, standing
from remit.sandbox.session.asked import Grant
from remit.sandbox.session.granted import absolute

if TYPE_CHECKING:
    from remit.cli.options import Invocation
    from remit.sandbox.session.result import CompletedCall

_SESSION = "remit.exec.session"
_TIME, _MEMORY = 124, 137


def execute(invocation: Invocation) -> int:
    """Run CMD in the session and return its exit status. Raises RemitError."""
    status = Status(invocation.status_fd)
    try:
        code = _execute(invocation, status)
    except RemitError as error:
        status.failed(error)
        raise
    status.check()
    return code


def _execute(invocation: Invocation, status: Status) -> int:
    from remit.sandbox.session import execute as running

    session = standing.full(click.get_current_context().meta[_SESSION], os.environ)
    # Without a grant the call has what the session has.
    asked = Grant.from_options(invocation.grants, place.current_directory(), session) if invocation.grants else None
    directory = _directory(invocation.chdir) if invocation.chdir else ""
    begun = ""

    def begin(call: str) -> None:
        nonlocal begun
        begun = call
        status.started(session, call)

    try:
        result = running.run(session, invocation.command, asked, os.environ, directory, begin)
    except running.Ended as ended:
        code, denied = ended.exit_status, ended.denied
        status.exited(code, 0, ended.limit, denied)
        render.problems([str(ended)])
    else:
        code = result.returncode if result.returncode >= 0 else 128 - result.returncode
        own = {"time": _TIME, "memory": _MEMORY}.get(result.limit)
        # What such a limit ended has a status of its own, whatever signal that took.
        signal = max(0, -result.returncode) if own is None else 0
        code = code if own is None else own
        # To count the network's denials the record is read: not for nobody.
        denied = _denied(result) if status.wanted or (code and os.isatty(2)) else 0
        status.exited(code, signal, result.limit, denied)
        if result.limit:
            render.problems([f"the {result.limit} limit ended the command"])
    if code and denied and os.isatty(2):
        actions = "1 action was" if denied == 1 else f"{denied} actions were"
        render.problems([f"{actions} outside the grant: remit why {session} explains"])
    if invocation.denials:
        _tell(invocation, status, session, begun, code)
    return code


def _tell(invocation: Invocation, status: Status, session: str, call: str, code: int) -> None:
    """What a model should read."""
    from remit.sandbox.audit import denials
    from remit.sandbox.audit.record import state_directory

    try:
        found = denials.of_call(state_directory(dict(os.environb)), session, call)
    except RemitError as error:
        # The command's status stays its own.
        render.problems([f"what was denied cannot be said: {error}"])
        return
    if invocation.denials == "text":
        render.problems(found.text(code))
    elif status.wanted:
        status.say(found.document(code))
    else:
        render.line(found.document(code))


def _directory(text: str) -> str:
    try:
        return absolute(text, place.current_directory())
    except ParseError as error:
        raise UsageError(error.message, where="--chdir", hint=error.hint) from None


def _denied(result: CompletedCall[Any]) -> int:
    """The status is the command's, whatever can be read of its record: then the network's part is missing."""
    try:
        return result.denied
    except RemitError:
        return result.counted


class ExecCommand(GrantCommand):
    """SESSION comes before the options, which are the call's grant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-"):
            ctx.meta[_SESSION] = args.pop(0)
        elif not ctx.resilient_parsing and not any(name in args[:1] for name in HELP_NAMES):
            raise UsageError("a session is expected first", hint="remit session list; remit exec SESSION -- CMD")
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["SESSION", *super().collect_usage_pieces(ctx)]


command = ExecCommand(
    "exec",
    execute,
    required=True,
    help="""Run CMD in the live session SESSION, under the grant that the options are.

    What the options do not grant, CMD does not have, but for the floor; without a grant option it has what the session
    has. A grant beyond the session's is refused, naming every object. The exit status is as for remit run.
    """,
)
