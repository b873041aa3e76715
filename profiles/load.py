"""A profile by name or path, with everything that it extends.

Names are looked for in the user's directory, the administrator's, and among the shipped profiles. What a profile
extends is looked for from its own place on, so that a shipped or an administrator's profile never changes its
meaning because a user has a file of some name; and a profile that extends its own name means the next one of that
name (a user's ``coding`` can extend the shipped ``coding``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import NamedTuple

from remit.profiles.errors import Problem, ProfileError
from remit.profiles.find import SHIPPED, SUFFIX, Found, Place, find, is_name, is_path, places, read
from remit.profiles.model import Entry, Profile, ProfileText
from remit.profiles.parse import parse
from remit.profiles.schema import BY_DOTTED, Merge, Shape
from remit.profiles.suggest import Suggestion
from remit.profiles.values import nearest, show
from remit.sandbox.authority.errors import NOWHERE

_FILE_LIMIT = 64
_TABLES_OF_VARIABLES = ("floor", "environment")


class Available(NamedTuple):
    """A profile that ``load`` would find by name. ``where``: ``user``, ``system`` or ``shipped``."""

    name: str
    path: str
    description: str
    where: str


def load(name_or_path: str, *, environ: Mapping[str, str], home: str) -> Profile:
    """The profile that ``--profile`` means: a path if it has a slash or ends in ``.toml``, else a name.

    ``environ`` gives ``XDG_CONFIG_HOME``; ``home`` is the user's home directory. Raises ``ProfileError`` with the
    problems of every file involved.
    """
    loader = _Loader(places(environ, home))
    merged = loader.start(name_or_path)
    if loader.problems:
        raise ProfileError(tuple(loader.problems))
    return loader.profile(merged)


def accept(profile: Profile, suggestion: Suggestion, *, environ: Mapping[str, str], home: str) -> Profile:
    """``profile`` with a suggestion that the user has seen and accepted, as if it extended the profile.

    Raises ``ProfileError``, also where the profile and what the suggestion extends differ in a scalar.
    """
    loader = _Loader(places(environ, home))
    loader.files.update(profile.files)
    own = _Merged(profile.name, profile.description, profile.file, list(profile.entries))
    merged = loader.unite(suggestion.text, [own, *loader.parents(suggestion.text, -1)])
    loader.files[suggestion.text.file] = suggestion.digest
    if loader.problems:
        raise ProfileError(tuple(loader.problems))
    return loader.profile(merged._replace(name=profile.name, description=profile.description, file=profile.file))


def available(environ: Mapping[str, str], home: str) -> list[Available]:
    """Every profile that can be named, sorted. One that cannot be used has the reason as its description."""
    known: dict[str, Available] = {}
    for place in places(environ, home):
        for name in _names(place):
            if name in known:
                continue
            path = os.path.join(place.directory, name + SUFFIX)
            try:
                description = parse(read(path), path).description
            except ProfileError as error:
                description = f"cannot be used: {error.problems[0].message}"
            known[name] = Available(name, path, description, place.where)
    return sorted(known.values())


def _names(place: Place) -> list[str]:
    try:
        files = os.listdir(place.directory)
    except OSError:
        return []
    stems = (file.removesuffix(SUFFIX) for file in files if file.endswith(SUFFIX))
    return sorted(stem for stem in stems if is_name(stem))


class _Merged(NamedTuple):
    """A profile's entries with those of what it extends, parents first."""

    name: str
    description: str
    file: str
    entries: list[Entry]


class _Loader:
    def __init__(self, order: tuple[Place, ...]) -> None:
        self.order = order
        self.files: dict[str, str] = {}
        self.problems: list[Problem] = []
        self._done: dict[str, _Merged | None] = {}
        self._path: list[tuple[str, str]] = []

    def profile(self, merged: _Merged) -> Profile:
        return Profile(merged.name, merged.description, merged.file, tuple(self.files.items()), tuple(merged.entries))

    def start(self, name_or_path: str) -> _Merged:
        """The profile asked for; where it cannot be had, nothing, and ``problems`` says why."""
        nothing = _Merged("", "", "", [])
        if is_path(name_or_path):
            if "\0" in name_or_path:
                self.problems.append(Problem(show(name_or_path), 0, "", "a path cannot hold a NUL byte"))
                return nothing
            try:
                path = os.path.abspath(name_or_path)
            except FileNotFoundError:
                self.problems.append(Problem(show(name_or_path), 0, "", NOWHERE, "cd to one that does"))
                return nothing
            return self._file(Found(path, -1), "") or nothing
        if not is_name(name_or_path):
            hint = "names are like coding; a file is named by a path with a slash, or ending in .toml"
            self.problems.append(Problem(show(name_or_path), 0, "", "not a profile name", hint))
            return nothing
        found = find(name_or_path, self.order)
        if found is None:
            self.problems.append(Problem(name_or_path, 0, "", "no such profile", self._instead(name_or_path)))
            return nothing
        return self._file(found, name_or_path) or nothing

    def _instead(self, name: str) -> str:
        near = nearest(name, sorted({known for place in self.order for known in _names(place)}))
        return f"did you mean {near}?" if near else "remit profile list shows them"

    def _file(self, found: Found, name: str) -> _Merged | None:
        """The file's profile, parents included; ``name`` is what it must be called (any, if empty)."""
        identity = os.path.realpath(found.path)
        if identity in self._done:
            return self._done[identity]
        self._done[identity] = None
        if len(self._done) > _FILE_LIMIT:
            self.problems.append(Problem(found.path, 0, "extends", f"more than {_FILE_LIMIT} files in all"))
            return None
        try:
            data = read(found.path)
            text = parse(data, found.path)
        except ProfileError as error:
            self.problems.extend(error.problems)
            return None
        if name and text.name != name:
            message = f"{show(text.name)} in a file called {name}{SUFFIX}"
            self.problems.append(Problem(found.path, text.named.line, "name", message, f'name = "{name}"'))
        self._path.append((identity, text.name))
        parents = self.parents(text, found.place)
        self._path.pop()
        self.files[found.path] = blake2b(data, digest_size=32).hexdigest()
        merged = self.unite(text, parents)
        self._done[identity] = merged
        return merged

    def parents(self, text: ProfileText, place: int) -> list[_Merged]:
        """What ``text`` extends, left to right. ``place`` is where its file is in the search order."""
        found: list[_Merged] = []
        for entry in text.extends:
            target = str(entry.value)
            if is_path(target):
                at = Found(os.path.join(os.path.dirname(text.file), target.removeprefix("./")), place)
                name = ""
            else:
                first = max(place, 0) + (1 if target == text.name and place >= 0 else 0)
                looked = self._find(target, first, entry)
                if looked is None:
                    continue
                at, name = looked, target
            if self._is_cycle(at, entry):
                continue
            parent = self._file(at, name)
            if parent is not None:
                found.append(parent)
        return found

    def _find(self, name: str, first: int, entry: Entry) -> Found | None:
        try:
            found = find(name, self.order, first)
        except ProfileError as error:
            self.problems.extend(error.problems)
            return None
        if found is None:
            source = entry.source
            self.problems.append(
                Problem(source.file, source.line, source.key, f"there is no profile {show(name)}", self._instead(name))
            )
        return found

    def _is_cycle(self, at: Found, entry: Entry) -> bool:
        identity = os.path.realpath(at.path)
        files = [file for file, _ in self._path]
        if identity not in files:
            return False
        names = [name for _, name in self._path[files.index(identity) :]]
        circle = " -> ".join([*names, names[0]])
        source = entry.source
        self.problems.append(
            Problem(source.file, source.line, source.key, f"a circle: {circle}", "take one of them out of extends")
        )
        return True

    def unite(self, text: ProfileText, parents: list[_Merged]) -> _Merged:
        """The one place where ``extends`` gets its meaning."""
        overridden = {_identity(entry) for entry in text.entries if _is_scalar(entry)}
        overridden |= {
            (f"{table}.set", entry.value)
            for table in _TABLES_OF_VARIABLES
            for entry in text.entries
            if entry.key == f"{table}.pass"
        }
        set_here = {
            (f"{table}.pass", entry.name)
            for table in _TABLES_OF_VARIABLES
            for entry in text.entries
            if entry.key == f"{table}.set"
        }
        inherited: list[Entry] = []
        scalars: dict[tuple[str, object], tuple[Entry, str]] = {}
        for parent in parents:
            for entry in parent.entries:
                if _is_scalar(entry):
                    identity = _identity(entry)
                    if identity in overridden:
                        continue
                    first = scalars.setdefault(identity, (entry, parent.name))
                    if first[0].value != entry.value:
                        self._conflict(text, first, (entry, parent.name))
                    inherited.append(entry)
                elif (entry.key, entry.value) not in set_here and _inherits(entry):
                    inherited.append(entry)
        self._passed_and_set(text, inherited)
        return _Merged(text.name, text.description, text.file, _distinct((*inherited, *text.entries)))

    def _conflict(self, text: ProfileText, one: tuple[Entry, str], other: tuple[Entry, str]) -> None:
        places = " and ".join(f"{name} ({entry.source.file}:{entry.source.line})" for entry, name in (one, other))
        line = text.extends[0].source.line
        self.problems.append(Problem(text.file, line, one[0].source.key, f"differs between {places}", "set it here"))

    def _passed_and_set(self, text: ProfileText, inherited: list[Entry]) -> None:
        for table in _TABLES_OF_VARIABLES:
            passed = {entry.value: entry for entry in inherited if entry.key == f"{table}.pass"}
            for entry in inherited:
                if entry.key == f"{table}.set" and entry.name in passed:
                    here, there = entry.source, passed[entry.name].source
                    message = f"set by {here.file}:{here.line} and passed by {there.file}:{there.line}"
                    line = text.extends[0].source.line
                    self.problems.append(Problem(text.file, line, here.key, message, "pass it or set it here"))


def _is_scalar(entry: Entry) -> bool:
    return BY_DOTTED[entry.key].shape not in (Shape.LIST, Shape.RECORDS)


def _identity(entry: Entry) -> tuple[str, object]:
    return (entry.key, entry.name)


def _inherits(entry: Entry) -> bool:
    """Whether a list's entry passes from a parent to a child."""
    if BY_DOTTED[entry.key].merge is not Merge.DEGRADE:
        return True
    return entry.value == "limits" and os.path.dirname(entry.source.file) == SHIPPED


def _distinct(entries: Iterable[Entry]) -> list[Entry]:
    """``entries`` without repetitions: the first place that said something is its source."""
    kept: dict[tuple[str, str, object], Entry] = {}
    for entry in entries:
        # The type as well: 1 == True.
        kept.setdefault((entry.key, entry.name, (type(entry.value), entry.value)), entry)
    return list(kept.values())
