"""The ``remit`` command for everything but the hot path: click's group, loading only the command that is asked for."""

from __future__ import annotations

from importlib import import_module

import click

import remit
from remit.cli import fail, render
from remit.cli.command import HELP_NAMES

COMMANDS = ("run", "explain", "profile", "doctor")
"""In the order that help shows them; each is the ``command`` of ``remit.cli.NAME``."""

SETTINGS = {"help_option_names": list(HELP_NAMES)}


class LazyGroup(click.Group):
    """Imports a command's module when the command is looked up, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = import_module(f"remit.cli.{cmd_name}").command
        return found


@click.group(cls=LazyGroup, context_settings=SETTINGS)
@click.version_option(remit.__version__, prog_name="remit", message="%(prog)s %(version)s")
def cli() -> None:
    """Run a command with exactly the authority it was granted; the Linux kernel holds the line."""


def run(argv: list[str]) -> int:
    """Run the command line ``argv`` (without the program's name). Returns the exit status; raises only SystemExit."""
    try:
        status: object = cli.main(args=argv, prog_name="remit", standalone_mode=False)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "remit"
        hint = f"{where} --help" if error.ctx and not isinstance(error, click.NoArgsIsHelpError) else ""
        message = error.format_message()
        render.problems([message] if not hint else [f"error: {_sentence(message)}", f"hint: {hint}"])
        return 2
    except click.Abort:
        return 130
    except SystemExit:
        raise
    except BaseException as error:
        return fail.report(error)
    return status if isinstance(status, int) else 0


def _sentence(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".") if message[1:2].islower() else message
