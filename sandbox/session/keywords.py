"""What the keywords of ``Session`` and ``Grant`` may be, and the words of the command line that they come to.

A string is a list of its characters: taken as one, ``deny="secrets"`` would protect the files ``s``, ``e``, ``c``, ..., and
nobody would hear of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TypeAlias, cast

from remit.sandbox.authority import parse
from remit.sandbox.authority.errors import GrantError

StrPath: TypeAlias = "str | os.PathLike[str]"

_FOREVER = 1 << 52
"""Seconds that no grant lasts."""


def paths(given: Iterable[StrPath], where: str) -> tuple[str, ...]:
    """Paths as they are written. An empty one is refused: as a variable that is not set, it would mean the whole directory.

    Raises GrantError.
    """
    found = tuple(_path(one, where) for one in _every(given, "paths", where))
    if "" in found:
        raise GrantError("an empty path", where=where, hint="for the whole directory write '.'")
    return found


def words(given: Iterable[str], where: str) -> tuple[str, ...]:
    """Strings. Raises GrantError."""
    return tuple(_word(one, where) for one in _every(given, "strings", where))


def ports(given: Iterable[int], where: str) -> tuple[str, ...]:
    """Ports, as words. Raises GrantError."""
    return tuple(str(one) for one in _every(given, "ports", where))


def variables(given: Iterable[str] | Mapping[str, str], where: str) -> tuple[str, ...]:
    """Variables to pass, or to set, as the option ``--env`` has them. Raises GrantError."""
    if isinstance(given, Mapping):
        pairs = cast("Mapping[str, str]", given).items()
        return tuple(f"{_word(name, where)}={_word(value, where)}" for name, value in pairs)
    return words(given, where)


def limits(given: Mapping[str, str | int] | None, where: str) -> tuple[str, ...]:
    """Limits, as the option ``--limit`` has them. Raises GrantError."""
    if given is None:
        return ()
    if not isinstance(cast("object", given), Mapping):
        raise GrantError(f"names with their values, not {given!r}", where=where, hint='{"memory": "2GiB"}')
    return tuple(f"{name}={value}" for name, value in given.items())


def seconds(given: float | str | None, where: str) -> float | None:
    """How long from now: seconds, or a duration such as ``"10m"``; None for ever. Raises GrantError."""
    if isinstance(given, str):
        try:
            return parse.parse_duration(given) / 1000
        except parse.ParseError as error:
            raise GrantError(error.message, where=where, hint=error.hint) from None
    if given is None:
        return None
    if not isinstance(cast("object", given), int | float) or isinstance(cast("object", given), bool):
        raise GrantError(f"seconds or a duration, not {given!r}", where=where, hint='such as 600, or "10m"')
    if not 0 < given < _FOREVER:
        raise GrantError(f"{given!r} seconds from now are not in the future", where=where, hint="leave it out for ever")
    return given


def duration(given: float | str | None, where: str) -> str:
    """The same, as the option ``--expires`` has it; empty for ever. Raises GrantError."""
    if isinstance(given, str) or given is None:
        return given or ""  # the option's own parser has the errors of a string
    found = seconds(given, where)
    return f"{max(1, round(found * 1000))}ms" if found is not None else ""


def _every(given: object, what: str, where: str) -> Iterable[object]:
    if isinstance(given, str | bytes | os.PathLike):
        one = os.fspath(cast("StrPath | bytes", given))
        raise GrantError(f"a list of {what}, not {one!r}", where=where, hint=f"[{one!r}]")
    if not isinstance(given, Iterable):
        raise GrantError(f"a list of {what}, not {given!r}", where=where, hint=f"[{given!r}]")
    return cast("Iterable[object]", given)


def _path(one: object, where: str) -> str:
    if isinstance(one, os.PathLike):
        one = os.fspath(cast("os.PathLike[str]", one))
    return _word(one, where)


def _word(one: object, where: str) -> str:
    if not isinstance(one, str):
        raise GrantError(f"a string is expected, not {one!r}", where=where, hint=f"{str(one)!r}")
    return one
