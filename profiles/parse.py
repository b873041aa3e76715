"""TOML bytes to ``ProfileText``, or everything that is wrong with them at once."""

from __future__ import annotations

from typing import cast

import tomli

from remit.profiles.errors import Problem, ProfileError
from remit.profiles.find import SIZE_LIMIT
from remit.profiles.lines import Path, find_lines
from remit.profiles.model import Entry, ProfileText, Value
from remit.profiles.schema import BY_DOTTED, KEYS, TABLES, Key, Kind, Shape, keys_of
from remit.profiles.values import ValueProblem, check, check_variable, nearest, record, show, type_name
from remit.sandbox.authority.model import Source

_PROFILE_KEYS = frozenset(BY_DOTTED)
_SUGGESTION_KEYS = frozenset(key.dotted for key in KEYS if key.suggestible)


def parse(data: bytes, file: str, *, suggestion: bool = False) -> ProfileText:
    """What the profile in ``data`` says; ``file`` is its name in sources and errors.

    With ``suggestion``, ``data`` is a workspace's ``remit.toml``: it can have fewer keys, and extend names only.
    Raises ``ProfileError`` with every problem, and nothing else whatever the bytes.
    """
    text = _decode(data, file)
    document = _load(text, file)
    try:
        lines = find_lines(text)
    except RecursionError:
        raise ProfileError((Problem(file, 0, "", "nested too deeply"),)) from None
    reader = _Reader(file, lines, suggestion=suggestion)
    reader.read(document)
    if reader.problems:
        raise ProfileError(tuple(sorted(reader.problems, key=lambda problem: problem.line)))
    entries = [entry for entry in reader.entries if entry.key not in ("format", "name", "description", "extends")]
    own = {entry.key: entry for entry in reader.entries if entry.key in ("name", "description")}
    description = str(own["description"].value) if "description" in own else ""
    extends = tuple(entry for entry in reader.entries if entry.key == "extends")
    return ProfileText(file, str(own["name"].value), own["name"].source, description, extends, tuple(entries))


def _decode(data: bytes, file: str) -> str:
    if len(data) > SIZE_LIMIT:
        raise ProfileError((Problem(file, 0, "", f"larger than {SIZE_LIMIT >> 20} MiB", "a profile is a short text"),))
    try:
        # As tomllib does for files: line ends are \n from here on, in strings too.
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ProfileError((Problem(file, line, "", "not UTF-8 text"),)) from None


def _load(text: str, file: str) -> dict[str, object]:
    try:
        return tomli.loads(text)
    except RecursionError:
        problem = Problem(file, 0, "", "nested too deeply")
    except ValueError as error:  # TOMLDecodeError, and Python's own refusal of integers with thousands of digits
        message, place, position = str(error).partition(" (at ")
        first = position.removeprefix("line ").partition(",")[0]
        line = int(first) if place and first.isdecimal() else text.count("\n") + 1 if place else 0
        problem = Problem(file, line, "", f"not TOML: {_printable(message)}", _toml_hint(text, line))
    raise ProfileError((problem,))


def _printable(message: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message[:200])


def _toml_hint(text: str, line: int) -> str:
    """The most usual mistake: text without quotes."""
    if not line:
        return ""
    before, equals, value = text.split("\n")[line - 1].partition("=")
    if equals and before.strip() and value.strip()[:1].isalpha():
        return "text needs quotes"
    return ""


def _shown_key(parts: tuple[str, ...]) -> str:
    """A dotted key for people: parts that are no bare keys are quoted (they can hold anything)."""
    return ".".join(
        part if part and part.isascii() and part.replace("-", "").replace("_", "").isalnum() else show(part, 40)
        for part in parts
    )


class _Reader:
    """Walks a document by the schema and collects entries and problems."""

    def __init__(self, file: str, lines: dict[Path, int], *, suggestion: bool) -> None:
        self.file = file
        self.lines = lines
        self.suggestion = suggestion
        self.allowed = _SUGGESTION_KEYS if suggestion else _PROFILE_KEYS
        self.problems: list[Problem] = []
        self.entries: list[Entry] = []

    def read(self, document: dict[str, object]) -> None:
        """Check the whole document. Where the format is not known, every other complaint would be worth nothing."""
        if "format" in document:
            self._value(BY_DOTTED["format"], document["format"], ("format",))
            if self.problems:
                return
        for name, value in document.items():
            if name == "format":
                continue
            if name in self.allowed and BY_DOTTED[name].table == "":  # not a quoted "filesystem.read"
                self._key(BY_DOTTED[name], value, (name,))
            elif name in TABLES and name and any(key.dotted in self.allowed for key in keys_of(name)):
                self._table(name, value)
            else:
                self._unknown("", name, value)
        for key in KEYS:
            if key.required and key.name not in document:
                self._problem(
                    (),
                    key.dotted,
                    "missing",
                    f"every profile begins with format = 1 and a name: {key.name} = {key.example}",
                )
        self._both_passed_and_set()

    def _table(self, table: str, value: object) -> None:
        if not isinstance(value, dict):
            message = f"must be a table, not {type_name(value)}"
            self._problem((table,), table, message, f"write [{table}] on a line of its own, once")
            return
        for name, inner in cast("dict[str, object]", value).items():
            dotted = f"{table}.{name}"
            if dotted in self.allowed:
                self._key(BY_DOTTED[dotted], inner, (table, name))
            else:
                self._unknown(table, name, inner)

    def _key(self, key: Key, value: object, path: Path) -> None:
        if key.shape is Shape.SCALAR:
            self._value(key, value, path)
        elif key.shape is Shape.LIST:
            self._list(key, value, path)
        elif key.shape is Shape.RECORDS:
            self._records(key, value, path)
        else:
            self._map(key, value, path)

    def _list(self, key: Key, value: object, path: Path) -> None:
        if not isinstance(value, list):
            one = isinstance(value, str | int) and not isinstance(value, bool)
            hint = (
                f"{key.name} = [{show(value) if isinstance(value, str) else '…'}]"
                if one
                else f"{key.name} = {key.example}"
            )
            self._problem(path, key.dotted, f"must be an array, not {type_name(value)}", hint)
            return
        for index, item in enumerate(cast("list[object]", value)):
            self._value(key, item, (*path, index))

    def _records(self, key: Key, value: object, path: Path) -> None:
        """An array of tables. Each table is checked field by field, then as a whole, and becomes one entry."""
        tables: list[object] = [None]
        kind = type_name(value)
        if isinstance(value, list):
            tables = cast("list[object]", value)
        if not all([isinstance(one, dict) for one in tables]):
            hint = f"write [[{key.dotted}]] on a line of its own, once for each"
            self._problem(path, key.dotted, f"must be an array of tables, not {kind}", hint)
            return
        known = {field.name: field for field in key.fields}
        for index, table in enumerate(cast("list[dict[str, object]]", tables)):
            place = (*path, index)
            before = len(self.problems)
            found: dict[str, tuple[Value, ...]] = {}
            for name, inner in table.items():
                if name in known:
                    found[name] = self._field(known[name], inner, (*place, name))
                    continue
                near = nearest(name, list(known)) if before < 100 else ""
                hint = f"did you mean {near}?" if near else f"[[{key.dotted}]] has: {', '.join(known)}"
                self._problem((*place, name), f"{key.dotted}.{_shown_key((name,))}", "unknown key", hint)
            for field in key.fields:
                if field.required and field.name not in table:
                    self._problem(place, field.dotted, "missing", f"{field.name} = {field.example}")
            if len(self.problems) > before:
                continue
            source = Source(self.file, self._line(place), key.dotted)
            try:
                self.entries.append(Entry(key.dotted, record(key, found, source), source))
            except ValueProblem as problem:
                self._problem(place, key.dotted, problem.message, problem.hint)

    def _field(self, field: Key, value: object, path: Path) -> tuple[Value, ...]:
        """The checked values of one field of a record; problems are collected."""
        if field.shape is Shape.LIST and not isinstance(value, list):
            message = f"must be an array, not {type_name(value)}"
            self._problem(path, field.dotted, message, f"{field.name} = {field.example}")
            return ()
        one_by_one: list[tuple[object, Path]] = [(value, path)]
        if field.shape is Shape.LIST:
            one_by_one = [(item, (*path, index)) for index, item in enumerate(cast("list[object]", value))]
        checked: list[Value] = []
        for item, place in one_by_one:
            try:
                checked.append(check(field, item))
            except ValueProblem as problem:
                self._problem(place, field.dotted, problem.message, problem.hint)
        return tuple(checked)

    def _map(self, key: Key, value: object, path: Path) -> None:
        if not isinstance(value, dict):
            self._problem(path, key.dotted, f"must be a table, not {type_name(value)}", f"{key.name} = {key.example}")
            return
        for name, inner in cast("dict[str, object]", value).items():
            place = (*path, name)
            shown = f"{key.dotted}.{_shown_key((name,))}"
            try:
                variable = check_variable(name)
            except ValueProblem as problem:
                self._problem(place, shown, problem.message, problem.hint)
                continue
            self._value(key, inner, place, variable, shown)

    def _value(self, key: Key, value: object, path: Path, name: str = "", shown: str = "") -> None:
        try:
            checked = check(key, value)
        except ValueProblem as problem:
            self._problem(path, shown or key.dotted, problem.message, problem.hint)
            return
        if self.suggestion and key.kind is Kind.PARENT and str(checked).startswith("./"):
            self._problem(
                path,
                key.dotted,
                "a suggestion can only extend profiles by name",
                "files in a workspace are not profiles",
            )
            return
        self.entries.append(Entry(key.dotted, checked, Source(self.file, self._line(path), shown or key.dotted), name))

    def _both_passed_and_set(self) -> None:
        for table in ("floor", "environment"):
            passed = {entry.value for entry in self.entries if entry.key == f"{table}.pass"}
            for entry in self.entries:
                if entry.key == f"{table}.set" and entry.name in passed:
                    message = f"{entry.name} is passed as well"
                    self.problems.append(
                        Problem(self.file, entry.source.line, entry.source.key, message, "pass it or set it, not both")
                    )

    def _unknown(self, table: str, name: str, value: object) -> None:
        path = (table, name) if table else (name,)
        shown = _shown_key(path)
        restricted = ".".join(path) in BY_DOTTED or (not table and name in TABLES and name)
        if self.suggestion and restricted:
            self._problem(path, shown, "cannot be suggested", "only a profile of the user can say this")
            return
        # Similarity is worth its time for a person's typing errors, not for a megabyte of noise.
        hint = self._meant(table, name) if len(self.problems) < 100 else ""
        self._problem(path, shown, "unknown table" if isinstance(value, dict) and not table else "unknown key", hint)

    def _meant(self, table: str, name: str) -> str:
        """A hint with the key that was probably meant: in the same table, then elsewhere."""
        siblings = [key.name for key in KEYS if key.table == table and key.dotted in self.allowed]
        if not table:
            siblings += [
                known for known in TABLES if known and any(key.dotted in self.allowed for key in keys_of(known))
            ]
        elsewhere = [key for key in KEYS if key.name == name and key.table != table and key.dotted in self.allowed]
        if elsewhere:
            places = " or ".join(
                f"[{key.table}]" if key.table else "the top of the file, before any table" for key in elsewhere
            )
            return f"{name} belongs in {places}"
        near = nearest(name, siblings)
        if near:
            return f"did you mean {near}?"
        near = nearest(name, [key.name for key in KEYS if key.dotted in self.allowed])
        owners = [key for key in KEYS if key.name == near and key.dotted in self.allowed]
        if owners:
            return (
                f"did you mean {owners[0].name} in [{owners[0].table}]?" if owners[0].table else f"did you mean {near}?"
            )
        what = f"[{table}]" if table else "a profile"
        return f"{what} has: {', '.join(siblings)}"

    def _problem(self, path: Path, key: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(self.file, self._line(path), key, message, hint))

    def _line(self, path: Path) -> int:
        """The line of ``path``; 1 for what is missing."""
        return self.lines.get(path, 1)
