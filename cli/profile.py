"""``remit profile``: list, show, check, compare and start profiles."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from remit.cli import options, render
from remit.cli.command import HELP_NAMES
from remit.profiles import find, jsonschema, load
from remit.profiles.errors import Problem, ProfileError
from remit.sandbox.authority.errors import UsageError

if TYPE_CHECKING:
    from remit.profiles.model import Entry, Profile, Value

NEW_FILE_MODE = 0o600
NEW_DIRECTORY_MODE = 0o700

STARTER = """\
# {name}: say here who uses this profile and for what.
#
# Check it with `remit profile check {name}`, see what it grants with `remit explain -p {name}`.
# Every key is in `remit profile schema`; editors complete and check with that file.

format = 1
name = "{name}"
description = "What this profile is for, in one line."

# "base" is the floor: system programs and libraries, and nothing of yours. "readonly" adds
# reading the workspace, "coding" writing it. `remit profile show NAME` prints any of them.
extends = ["base"]

[filesystem]
read = ["{{workspace}}"]
# write = ["{{workspace}}/build"]
# exec = ["{{workspace}}", "{{toolchains}}"]
# deny = ["{{workspace}}/.env", "**/id_ed25519"]   # wins over everything, there yet or not
# protect = ["{{workspace}}/.github"]              # readable, never writable

# [network]
# connect = ["api.example.com:443"]
# listen = [3000]

# [environment]
# pass = ["EDITOR"]
# set = {{ CI = "1" }}

# [limits]
# memory = "2GiB"
# time = "1h"
"""

as_json_option = click.option("--json", "as_json", is_flag=True, help=options.JSON.help)


@click.group("profile", context_settings={"help_option_names": list(HELP_NAMES)}, no_args_is_help=False)
def command() -> None:
    """List, show, check, compare and start profiles."""


@command.command("list")
@as_json_option
def list_(as_json: bool) -> int:
    """List every profile that can be named, with where it is from."""
    found = load.available(os.environ, home())
    if as_json:
        rows = [
            {"name": one.name, "path": one.path, "description": one.description, "where": one.where} for one in found
        ]
        render.document("profile-list", {"profiles": rows})
    else:
        render.table(("name", "from", "description"), [(one.name, one.where, one.description) for one in found])
    return 0


@command.command("show")
@click.argument("name")
@as_json_option
def show(name: str, as_json: bool) -> int:
    """Print a profile with everything it extends, and the file and line of each entry."""
    profile = _load(name)
    if as_json:
        render.document(
            "profile",
            {
                "name": profile.name,
                "description": profile.description,
                "file": profile.file,
                "files": [{"path": path, "blake2b": digest} for path, digest in profile.files],
                "entries": [_entry(entry) for entry in profile.entries],
            },
        )
        return 0
    render.heading(f"{profile.name}: {profile.description}")
    rows = [(_key(entry), _value(entry), str(entry.source)) for entry in profile.entries]
    if rows:
        render.text()
        render.table(("key", "value", "from"), rows)
    return 0


@command.command("check")
@click.argument("names", nargs=-1, required=True)
@as_json_option
def check(names: tuple[str, ...], as_json: bool) -> int:
    """Check profiles (names or files): print every problem. Exit 0 when there is none, 2 otherwise."""
    problems = [problem for name in names for problem in _problems(name)]
    if as_json:
        rows = [
            {"file": one.file, "line": one.line, "key": one.key, "message": one.message, "hint": one.hint}
            for one in problems
        ]
        render.document("profile-check", {"valid": not problems, "problems": rows})
    elif problems:
        render.problems(f"error: {one}" for one in problems)
    else:
        for name in names:
            render.text(f"{name}: valid")
    return 2 if problems else 0


@command.command("diff")
@click.argument("one")
@click.argument("other")
@as_json_option
def diff(one: str, other: str, as_json: bool) -> int:
    """Compare what two profiles come to, with everything they extend. Exit 1 when they differ."""
    first, second = _load(one), _load(other)
    known = {_identity(entry) for entry in first.entries}, {_identity(entry) for entry in second.entries}
    removed = [entry for entry in first.entries if _identity(entry) not in known[1]]
    added = [entry for entry in second.entries if _identity(entry) not in known[0]]
    if as_json:
        render.document(
            "profile-diff",
            {
                "equal": not removed and not added,
                "removed": [_entry(entry) for entry in removed],
                "added": [_entry(entry) for entry in added],
            },
        )
    else:
        for mark, entries in (("-", removed), ("+", added)):
            for entry in entries:
                render.text(f"{mark} {_key(entry)} = {_value(entry)}    ({entry.source})")
    return 1 if removed or added else 0


@command.command("schema")
def schema() -> int:
    """Print the JSON Schema of profiles, for editors."""
    render.text(jsonschema.text().rstrip("\n"))
    return 0


@command.command("new")
@click.argument("name")
@as_json_option
def new(name: str, as_json: bool) -> int:
    """Write a commented profile to start from into the user's profile directory. Never overwrites."""
    if not find.is_name(name):
        raise UsageError(f"{name!r} is not a profile's name", hint="small letters, digits and hyphens: my-agent")
    directory = find.places(os.environ, home())[0].directory
    path = os.path.join(directory, name + find.SUFFIX)
    try:
        os.makedirs(directory, NEW_DIRECTORY_MODE, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, NEW_FILE_MODE)
    except FileExistsError:
        raise UsageError(
            "there is one already, and it is not overwritten", where=path, hint="choose a new name"
        ) from None
    except OSError as error:
        raise UsageError(error.strerror or "cannot be written", where=error.filename or path) from None
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(STARTER.format(name=name))
    if as_json:
        render.document("profile-new", {"name": name, "path": path})
    else:
        render.text(path)
    return 0


def home() -> str:
    """The user's home directory: ``HOME`` when it is absolute, else what the password database says, else "/"."""
    from remit.sandbox.session.place import home_directory

    return home_directory(os.environ)


def _load(name: str) -> Profile:
    return load.load(name, environ=os.environ, home=home())


def _problems(name: str) -> list[Problem]:
    try:
        _load(name)
    except ProfileError as error:
        return list(error.problems)
    return []


def _identity(entry: Entry) -> tuple[str, str, Value]:
    return entry.key, entry.name, entry.value


def _key(entry: Entry) -> str:
    return f"{entry.key}.{entry.name}" if entry.name else entry.key


def _value(entry: Entry) -> str:
    return str(entry.value).lower() if isinstance(entry.value, bool) else str(entry.value)


def _entry(entry: Entry) -> dict[str, object]:
    source = {"file": entry.source.file, "line": entry.source.line}
    return {"key": entry.key, "name": entry.name, "value": _plain(entry.value), "source": source}


def _plain(value: Value) -> str | int | bool:
    return value if isinstance(value, str | int | bool) else str(value)
