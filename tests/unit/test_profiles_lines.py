"""The line finder: it finds every key and item that the parser sees, and at the right line."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.profiles.find import SHIPPED
from remit.profiles.lines import Path as KeyPath
from remit.profiles.lines import find_lines


def paths(value: object, prefix: KeyPath = ()) -> set[KeyPath]:
    """Every key and array item of a parsed document."""
    found: set[KeyPath] = set()
    if isinstance(value, dict):
        for key, inner in value.items():  # pyright: ignore[reportUnknownVariableType]
            found |= {(*prefix, str(key)), *paths(inner, (*prefix, str(key)))}  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, list):
        for index, inner in enumerate(value):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            found |= {(*prefix, index), *paths(inner, (*prefix, index))}  # pyright: ignore[reportUnknownArgumentType]
    return found


EVERYTHING = r'''# a comment with "quotes" and [brackets]
a = 1            # 2
"b c".d = 'x # y' # 3

[t]              # 5
list = [         # 6
  "one",         # 7
  # [ "no" ]
  """two
    "quoted" ]""", [ 1, 2,   # 9, 10: items 1 and 2 of it
    3 ],         # 11
  { x = 1, y = [ # 12
    "z" ] },     # 13
]
date = 1979-05-27 07:32:00   # 15
inf = -inf
[t.deep."a.b"]   # 17
"\u0063" = true  # 18
[[many]]         # 19
k = ''           # 20
[[many]]         # 21
k = ""           # 22
[many.sub]       # 23
k = """"a"""""   # 24
'''


def test_every_form() -> None:
    lines = find_lines(EVERYTHING)
    assert set(lines) == paths(tomli.loads(EVERYTHING))
    expected: dict[KeyPath, int] = {
        ("a",): 2,
        ("b c", "d"): 3,
        ("t",): 5,
        ("t", "list"): 6,
        ("t", "list", 0): 7,
        ("t", "list", 1): 9,
        ("t", "list", 2): 10,
        ("t", "list", 2, 1): 10,
        ("t", "list", 2, 2): 11,
        ("t", "list", 3, "x"): 12,
        ("t", "list", 3, "y", 0): 13,
        ("t", "date"): 15,
        ("t", "inf"): 16,
        ("t", "deep", "a.b", "c"): 18,
        ("many",): 19,
        ("many", 0, "k"): 20,
        ("many", 1, "k"): 22,
        ("many", 1, "sub", "k"): 24,
    }
    assert {path: lines[path] for path in expected} == expected


@pytest.mark.parametrize("path", sorted(Path(SHIPPED).glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_profiles(path: Path) -> None:
    text = path.read_text()
    lines = find_lines(text)
    rows = text.split("\n")
    assert set(lines) == paths(tomli.loads(text))
    for place, line in lines.items():
        value: object = tomli.loads(text)
        for part in place:
            value = value[part]  # type: ignore[index]  # pyright: ignore[reportIndexIssue, reportUnknownVariableType]
        shown = place[-1] if isinstance(place[-1], str) else str(value)  # pyright: ignore[reportUnknownArgumentType]
        assert shown in rows[line - 1]


scalars = st.one_of(st.integers(-9, 9), st.booleans(), st.text(max_size=6), st.dates(), st.floats(allow_nan=False))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.dictionaries(st.text(max_size=4), values, max_size=5))
def test_whatever_tomlkit_writes(document: dict[str, object]) -> None:
    text = tomlkit.dumps(document)
    assert set(find_lines(text)) == paths(tomli.loads(text))


@settings(max_examples=500)
@given(st.text(alphabet="[]{}=\"'\\\n#,. ab1-_\t", max_size=60))
def test_whatever_the_parser_accepts(text: str) -> None:
    for candidate in (text, f"a = {text}", f'a = ["x", {text}]', f"[t]\n{text}\nb = 1"):
        try:
            document = tomli.loads(candidate)
        except tomli.TOMLDecodeError:
            continue
        assert set(find_lines(candidate)) == paths(document)
