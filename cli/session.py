"""``remit session``: sessions that stand by themselves, for shells and other languages."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import click

from remit.cli import options, output, render
from remit.cli.command import HELP_NAMES, OptionCommand, invocation
from remit.sandbox.audit import log, sessions
from remit.sandbox.audit.record import state_directory
from remit.sandbox.authority.errors import LaunchError, RemitError
from remit.sandbox.session import standing
from remit.sandbox.session.opening import Wanted

if TYPE_CHECKING:
    from remit.cli.options import Invocation

_HELP = {"help_option_names": list(HELP_NAMES)}
_json = click.option("--json", "as_json", is_flag=True, help=options.JSON.help)


@click.group("session", context_settings=_HELP, no_args_is_help=False)
def command() -> None:
    """Start sessions, list them, look at them, stop them. remit exec runs calls in them."""


def _begin(**values: Any) -> int:
    return _start(invocation("session start", values))


def _start(invocation: Invocation) -> int:
    wanted = Wanted(
        profile=invocation.profile,
        workspace=invocation.workspace,
        chdir=invocation.chdir,
        grants=invocation.grants,
        accept_suggestion=invocation.accept_suggestion,
    )
    started = standing.start(wanted, os.environ)
    try:
        _tell(started, as_json=invocation.json)
    except BaseException as error:
        # Nobody knows that it is there: it would stand until somebody looked for it.
        with contextlib.suppress(RemitError):
            _stop(started.session)
        if not isinstance(error, output.Unwritten):
            raise
        raise LaunchError(
            f"{error}: the session's id could not be told, and the session was stopped",
            hint="remit session start writes the id on standard output",
        ) from None
    return 0


def _tell(started: standing.Started, *, as_json: bool) -> None:
    render.problems(started.warnings)
    if as_json:
        content = {"session": started.session, "workspace": started.workspace, "enforcement": dict(started.enforcement)}
        render.document("session-start", content)
    else:
        render.text(started.session)
    output.flush()


def _stop(session: str) -> None:
    with standing.connected(session, os.environ) as link:
        link.stop(session)


command.add_command(
    OptionCommand(
        "session start",
        _begin,
        [],
        help="""Start a session and print its id. It stands until it is stopped.

        The profile and the options are its ceiling: every call in it (remit exec) has that or less.
        """,
    )
)


@command.command("list", context_settings=_HELP)
@click.option("--all", "every", is_flag=True, help="Also those that have ended, newest last.")
@_json
def list_(every: bool, as_json: bool) -> int:
    """List the live sessions."""
    live = standing.live(os.environ)
    state = state_directory(dict(os.environb))
    found = sessions.summaries(state, live, every=every)
    if as_json:
        render.document("session-list", {"sessions": [one.json() for one in found]})
    elif found:
        rows = [[one.session, one.state, one.profile, one.workspace, one.command] for one in found]
        render.table(["session", "state", "profile", "workspace", "command"], rows, whole=["session"])
    return 0


@command.command("show", context_settings=_HELP)
@click.argument("session")
@_json
def show(session: str, as_json: bool) -> int:
    """Show a session, live or ended: where, under which profile and grant, and the calls in it."""
    live = standing.live(os.environ)
    state = state_directory(dict(os.environb))
    found = sessions.details(state, log.full(state, session), live)
    if as_json:
        render.document("session", found.json())
        return 0
    one = found.summary
    render.text(f"{one.session} ({one.state})")
    render.listing(
        [
            f"profile    {one.profile}",
            f"workspace  {one.workspace}",
            f"started    {one.started}",
            *([f"command    {one.command}"] if one.command else []),
            *([f"ended      {found.why}"] if found.why else []),
        ]
    )
    if found.calls:
        rows = [[call.call, call.result, str(call.denials), call.command] for call in found.calls]
        render.table(["call", "result", "denials", "command"], rows)
    return 0


@command.command("stop", context_settings=_HELP)
@click.argument("session")
def stop(session: str) -> int:
    """Stop a live session: everything in it ends."""
    _stop(standing.full(session, os.environ))
    return 0
