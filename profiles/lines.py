"""Where each key and each array item of a TOML document stands.

``tomli`` gives values without positions, and ``tomlkit``, which keeps positions only implicitly, costs three times
as much to import as everything else a profile needs. This scanner runs over text that ``tomli`` has already
accepted, so it recognises TOML and does not check it: a few regular expressions for the places where a delimiter
can hide (strings, comments), and the nesting of tables, arrays and inline tables.

Both TOML 1.0 and 1.1 are covered (newlines in inline tables need nothing extra here).
"""

from __future__ import annotations

import re
from bisect import bisect_right

import tomli

Path = tuple[str | int, ...]
"""Table keys and array indexes from the top of the document."""

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^"\\]+|\\.|"(?!""))*"""(?:"{0,2})'
    r"|'''(?:[^']+|'(?!''))*'''(?:'{0,2})"
    r'|"(?:[^"\\\n]+|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_OTHER_VALUE = re.compile(r"[^,\]}#\n]+")


def find_lines(text: str) -> dict[Path, int]:
    """The 1-based line of every key, table header and array item in ``text``, a valid TOML document with ``\\n`` ends.

    A table that is opened by a header and continued by another has the line of the first. Raises ``RecursionError`` for
    nesting that the parser would not have accepted either.
    """
    scanner = _Scanner(text)
    scanner.document()
    ends = [match.start() for match in re.finditer("\n", text)]
    # bisect_left would do as well: no recorded offset is a newline.
    return {path: bisect_right(ends, offset) + 1 for path, offset in scanner.found.items()}


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[Path, int] = {}
        self._table_arrays: dict[Path, int] = {}

    def document(self) -> None:
        table: Path = ()
        while self._skip_blank():
            start = self.at
            if self.text.startswith("[[", start):
                self.at += 2
                table = self._header(self._key(), start, array=True)
                self.at += 2
            elif self.text[start] == "[":
                self.at += 1
                table = self._header(self._key(), start, array=False)
                self.at += 1
            else:
                self._pair(table)

    def _skip_blank(self) -> bool:
        """Skip white space, newlines and comments; false at the end of the text."""
        match = _BLANK.match(self.text, self.at)
        assert match is not None  # it matches the empty string
        self.at = match.end()
        return self.at < len(self.text)

    def _key(self) -> list[str]:
        """Read a bare, quoted or dotted key, and the blanks on both sides of it."""
        parts: list[str] = []
        while self._skip_blank():
            match = _STRING.match(self.text, self.at) or _BARE_KEY.match(self.text, self.at)
            if match is None:
                raise ValueError(f"no key at offset {self.at}")
            raw = match.group()
            parts.append(_unquote(raw))
            self.at = match.end()
            self._skip_blank()
            if not self.text.startswith(".", self.at):
                break
            self.at += 1
        return parts

    def _header(self, parts: list[str], offset: int, *, array: bool) -> Path:
        """The path of a ``[table]`` or ``[[table]]`` header: names below an array of tables mean its last element."""
        path: Path = ()
        for index, part in enumerate(parts):
            path = (*path, part)
            self.found.setdefault(path, offset)
            last = index == len(parts) - 1
            if last and array:
                self._table_arrays[path] = self._table_arrays.get(path, -1) + 1
            if path in self._table_arrays:
                path = (*path, self._table_arrays[path])
                self.found.setdefault(path, offset)
        return path

    def _pair(self, table: Path) -> None:
        offset = self.at
        path = table
        for part in self._key():
            path = (*path, part)
            self.found.setdefault(path, offset)
        self.at += 1  # the equals sign
        self._skip_blank()
        self._value(path)

    def _value(self, path: Path) -> None:
        opening = self.text[self.at : self.at + 1]
        if opening == "[":
            self._items(path)
        elif opening == "{":
            self._pairs(path)
        else:
            match = _STRING.match(self.text, self.at) or _OTHER_VALUE.match(self.text, self.at)
            if match is None:
                raise ValueError(f"no value at offset {self.at}")
            self.at = match.end()

    def _items(self, path: Path) -> None:
        self.at += 1
        index = 0
        while self._skip_blank() and self.text[self.at] != "]":
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self.found[(*path, index)] = self.at
            self._value((*path, index))
            index += 1
        self.at += 1

    def _pairs(self, path: Path) -> None:
        self.at += 1
        while self._skip_blank() and self.text[self.at] != "}":
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self._pair(path)
        self.at += 1


def _unquote(raw: str) -> str:
    if raw[0] not in "\"'":
        return raw
    if raw[0] == "'" or "\\" not in raw:
        return raw[1:-1]
    return str(tomli.loads(f"key = {raw}")["key"])
