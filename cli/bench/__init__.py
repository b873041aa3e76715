"""``remit bench``: measurements of this installation on this host."""

from __future__ import annotations

from importlib import import_module

import click

from remit.cli.command import HELP_NAMES

COMMANDS = ("speed",)
"""Each is the ``command`` of ``remit.cli.bench.NAME``."""


class _Group(click.Group):
    """Imports a benchmark when it is asked for, not with the other."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = import_module(f"remit.cli.bench.{cmd_name}").command
        return found


@click.group("bench", cls=_Group, context_settings={"help_option_names": list(HELP_NAMES)}, no_args_is_help=False)
def command() -> None:
    """Measure this installation on this host."""
