"""Malformed profiles: every error is reported, at its line and key, and nothing else is; no other exception escapes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.profiles.errors import ProfileError
from remit.profiles.find import SHIPPED
from remit.profiles.model import ProfileText
from remit.profiles.parse import parse

BAD = sorted((Path(__file__).parent / "fixtures" / "profiles" / "bad").glob("*.toml"))
GOOD = [path.read_bytes() for path in sorted(Path(SHIPPED).glob("*.toml"))]


class Expected(NamedTuple):
    line: int
    key: str
    fragment: str


def expectations(data: bytes) -> list[Expected]:
    """The ``# expect: LINE KEY MESSAGE-FRAGMENT`` lines at the top; ``-`` is no key; a quoted key may hold spaces."""
    found: list[Expected] = []
    for line in data.split(b"\n"):
        if not line.startswith(b"# expect: "):
            break
        number, _, rest = line.decode().removeprefix("# expect: ").partition(" ")
        end = rest.index('" ') + 1 if '"' in rest.partition(" ")[0] else rest.index(" ")
        key, fragment = rest[:end], rest[end + 1 :]
        found.append(Expected(int(number), "" if key == "-" else key, fragment))
    return found


def test_there_are_more_than_a_hundred() -> None:
    assert len(BAD) > 100


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_every_error_and_nothing_else(path: Path) -> None:
    data = path.read_bytes()
    expected = expectations(data)
    assert expected

    with pytest.raises(ProfileError) as raised:
        parse(data, "bad.toml")

    assert raised.value.exit_status == 2
    problems = list(raised.value.problems)
    assert [(problem.line, problem.key) for problem in problems] == [(one.line, one.key) for one in expected]
    for problem, one in zip(problems, expected, strict=True):
        assert one.fragment in f"{problem.message} {problem.hint}"
        assert problem.file == "bad.toml"
        assert all(character.isprintable() for character in str(problem))


def parsed(data: bytes, *, suggestion: bool = False) -> ProfileText | ProfileError:
    """What ``parse`` makes of ``data``; any exception but its own escapes."""
    try:
        return parse(data, "p.toml", suggestion=suggestion)
    except ProfileError as error:
        return error


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes(data: bytes, suggestion: bool) -> None:
    result = parsed(data, suggestion=suggestion)
    assert isinstance(result, ProfileError)
    assert result.problems


@given(st.text(alphabet="[]{}=\"'\\\n#,. ab1:-_", max_size=80))
def test_any_toml_punctuation(text: str) -> None:
    data = f'format = 1\nname = "x"\n{text}'.encode()
    result = parsed(data)
    assert isinstance(result, ProfileText | ProfileError)
    if isinstance(result, ProfileError):
        assert all(0 <= problem.line <= data.count(b"\n") + 2 for problem in result.problems)


@settings(max_examples=300)
@given(st.data())
def test_mutated_profiles(data: st.DataObject) -> None:
    text = bytearray(data.draw(st.sampled_from(GOOD)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        how = data.draw(st.sampled_from(("delete", "insert", "replace", "repeat")))
        piece = data.draw(
            st.sampled_from((b'"', b"[", b"]", b"{", b"}", b"\n", b"=", b"..", b"\0", b"\xff", b"'", b"#", b"9" * 40))
        )
        if how == "delete":
            del text[at : at + data.draw(st.integers(1, 40))]
        elif how == "insert":
            text[at:at] = piece
        elif how == "replace":
            text[at : at + len(piece)] = piece
        else:
            text[at:at] = text[at : at + 60]
        if not text:
            text = bytearray(b"#")
    assert isinstance(parsed(bytes(text)), ProfileText | ProfileError)


def test_too_large() -> None:
    result = parsed(b"#" * ((1 << 20) + 1))
    assert isinstance(result, ProfileError)
    assert "larger than 1 MiB" in result.message


def test_a_megabyte_of_errors_ends_soon() -> None:
    noise = 'format = 1\nname = "x"\n' + "".join(f"k{n} = 1\n" for n in range(90_000))
    result = parsed(noise.encode()[: 1 << 20])
    assert isinstance(result, ProfileError)
    assert len(result.problems) > 50_000
