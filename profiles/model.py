"""Profiles as values: what one file says, and what a profile comes to with everything it extends."""

from __future__ import annotations

from dataclasses import dataclass

from remit.sandbox.authority.model import Source
from remit.sandbox.authority.web import Credential, HttpRule

Value = str | int | bool | HttpRule | Credential


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of one key, with its place.

    ``key`` is the dotted name in the schema (``filesystem.read``); ``name`` is the variable, in ``environment.set`` and
    ``floor.set``. Paths and patterns are canonical, with their placeholder in front (``~/x`` reads ``{home}/x``).
    Limits are in the units of ``authority.model.LIMIT_NAMES``.
    """

    key: str
    value: Value
    source: Source
    name: str = ""


@dataclass(frozen=True, slots=True)
class ProfileText:
    """What one file says, checked; nothing that it extends is in it."""

    file: str
    name: str
    named: Source
    """Where ``name`` stands."""
    description: str
    extends: tuple[Entry, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile with everything it extends.

    ``files`` are all files that were read, parents first, as (path, BLAKE2b-256 of the bytes in hex): what a cache
    has to compare before it trusts something made from this profile.
    """

    name: str
    description: str
    file: str
    files: tuple[tuple[str, str], ...]
    entries: tuple[Entry, ...]

    def items(self, key: str) -> tuple[Entry, ...]:
        """The entries of a list or map, ``key`` being its dotted name."""
        return tuple(entry for entry in self.entries if entry.key == key)

    def scalar(self, key: str) -> Entry | None:
        """The entry of a scalar, or ``None`` where no file sets it."""
        return next((entry for entry in self.entries if entry.key == key), None)
