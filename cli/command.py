"""click commands made from the option table: help, completion, and every usage error at once."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from remit.cli import options
from remit.sandbox.authority.errors import RemitError, UsageError
from remit.sandbox.authority.model import DEGRADABLE, LIMIT_NAMES, SYSCALL_GROUPS

if TYPE_CHECKING:
    from collections.abc import Callable

if TYPE_CHECKING:
    _ParamType = click.ParamType[str]
else:
    _ParamType = click.ParamType  # takes a parameter since click 8.4

HELP_NAMES = ("-h", "--help")

_WORDS = {
    "limit": tuple(f"{name}=" for name in LIMIT_NAMES),
    "allow-syscalls": SYSCALL_GROUPS,
    "degrade": DEGRADABLE,
    "denials": ("text", "json"),
}
_COMPLETED_AS = {"PATH": "file", "FILE": "file", "PROFILE": "file", "DIR": "dir"}


class Value(_ParamType):
    """A value passed on as it was written: the authority room parses it, so that profiles and options agree."""

    name = "text"

    def __init__(self, option: options.Option) -> None:
        self.option = option

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        words = _WORDS.get(self.option.name)
        if words is not None:
            return [CompletionItem(word) for word in words if word.startswith(incomplete)]
        kind = _COMPLETED_AS.get(self.option.metavar)
        return [CompletionItem(incomplete, type=kind)] if kind else []


def parameters(verb: str) -> list[click.Parameter]:
    """The click options of ``verb``, from the table."""
    found: list[click.Parameter] = []
    for option in options.taken(verb):
        shown = options.help_of(option, verb)
        names = [f"--{option.name}", option.name.replace("-", "_")]
        if option.short:
            names.append(f"-{option.short}")
        if option.metavar:
            found.append(
                click.Option(names, type=Value(option), metavar=option.metavar, multiple=option.repeatable, help=shown)
            )
        else:
            found.append(click.Option(names, is_flag=True, help=shown))
    return found


def invocation(verb: str, values: dict[str, Any]) -> options.Invocation:
    """What click parsed, as the value that the hot path's parser gives for the same words."""
    grants: list[tuple[str, str]] = []
    for option in options.GRANT:
        value = values.get(option.name.replace("-", "_"))
        grants += [(option.name, one) for one in (value or [] if option.repeatable else [value] if value else [])]
    status = values.get("status_fd")
    return options.Invocation(
        verb,
        tuple(values.get("command") or ()),
        values.get("profile") or "",
        values.get("workspace") or "",
        values.get("chdir") or "",
        tuple(grants),
        int(status) if status else -1,
        values.get("accept_suggestion", False),
        values.get("json", False),
        values.get("plan", False),
        values.get("denials") or "",
    )


class OptionCommand(click.Command):
    """A command with the table's options, grant options among them: every error at once, and help in two sections."""

    def __init__(self, verb: str, callback: Callable[..., int], arguments: list[click.Parameter], *, help: str) -> None:
        self.verb = verb
        super().__init__(
            verb.rpartition(" ")[2],
            context_settings={"allow_interspersed_args": False, "help_option_names": list(HELP_NAMES)},
            params=[*parameters(verb), *arguments],
            callback=callback,
            help=help,
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """click stops at its first error; the table's own parser has all of them."""
        if not ctx.resilient_parsing:
            parsed, errors = options.parse(self.verb, list(args))
            if any(error == f"no such option: {name}" for error in errors for name in HELP_NAMES):
                args = [HELP_NAMES[-1]]
            elif errors:
                raise _failure(self.verb, parsed, errors)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        granting = {option.name.replace("-", "_") for option in options.GRANT}
        grants: list[tuple[str, str]] = []
        others: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                (grants if parameter.name in granting else others).append(record)
        with formatter.section("Options"):
            formatter.write_dl(others)
        with formatter.section("Grant options (repeatable; paths are relative to the current directory)"):
            formatter.write_dl(grants)


class GrantCommand(OptionCommand):
    """A command that takes the grant options: one callback with the ``Invocation``, and CMD left alone."""

    def __init__(self, verb: str, act: Callable[[options.Invocation], int], *, help: str, required: bool) -> None:
        def callback(**values: Any) -> int:
            return act(invocation(verb, values))

        command = click.Argument(["command"], nargs=-1, type=click.UNPROCESSED, required=required, metavar="CMD...")
        super().__init__(verb, callback, [command], help=help)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS]", "[--]", "CMD..." if self.verb in ("run", "exec") else "[CMD...]"]


def _usage(verb: str, error: str) -> UsageError:
    unknown = error.removeprefix("no such option: ")
    if unknown != error:
        others = next((option.commands for option in options.TABLE if f"--{option.name}" == unknown), ())
        if others:
            return UsageError(error, hint=f"it is an option of remit {', remit '.join(others)}")
        near = get_close_matches(unknown, [f"--{option.name}" for option in options.taken(verb)], n=1)
        hint = f"did you mean {near[0]}?" if near else f"remit {verb} --help lists the options"
        return UsageError(error, hint=hint)
    return UsageError(error)


def _failure(verb: str, parsed: options.Invocation, errors: list[str]) -> RemitError:
    """The words that are no option, and also everything that is wrong with the values of those that are."""
    from remit.sandbox.session import place
    from remit.sandbox.session.errors import Several
    from remit.sandbox.session.granted import granted

    _, wrong = granted(parsed.grants, place.current_directory())
    return Several([*(_usage(verb, error) for error in errors), *wrong])
