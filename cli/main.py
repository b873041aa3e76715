"""The ``remit`` command for everything but the hot path: click's group, loading only the command that is asked for."""

from __future__ import annotations

from importlib import import_module

import click

import remit
from remit.cli import fail, render
from remit.cli.command import HELP_NAMES

COMMANDS = ("run", "exec", "session", "explain", "why", "grant", "profile", "doctor", "bench")
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


@click.group(cls=LazyGroup, context_settings=SETTINGS, no_args_is_help=False)
@click.version_option(remit.__version__, prog_name="remit", message="%(prog)s %(version)s")
def cli() -> None:
    """Run a command with exactly the authority it was granted; the Linux kernel holds the line."""


def run(argv: list[str]) -> int:
    """Run the command line ``argv`` (without the program's name). Returns the exit status; raises only SystemExit."""
    try:
        status: object = cli.main(args=argv or ["--help"], prog_name="remit", standalone_mode=False)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "remit"
        render.problems([f"error: {_sentence(error.format_message())}", f"hint: {where} --help"])
        return 2
    except SystemExit:
        raise
    except click.Abort:
        return 130
    except BaseException as error:
        return fail.report(error)
    return status if isinstance(status, int) else 0


def _sentence(message: str) -> str:
    """click's "No such command 'x'." in the style of Remit's own messages."""
    lower = message[:1].lower() + message[1:] if message[1:2].islower() else message
    return lower.removesuffix(".")
