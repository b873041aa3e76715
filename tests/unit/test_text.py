"""Output as text, wherever it was cut."""

from __future__ import annotations

import pytest

from remit.sandbox.session.result import Capture
from remit.sandbox.session.streams import decoder, encoded
from remit.sandbox.session.text import decoded

WORDS = "é€𐍈a\u0301\n" * 5


def cut(data: bytes, limit: int) -> tuple[bytes, bytes, int]:
    capture = Capture(limit)
    for byte in data:
        capture.add(bytes([byte]))
    return (*capture.halves(), capture.lost)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-le", "iso8859-15"])
def test_text_that_is_cut_is_cut_between_characters(encoding: str) -> None:
    words = WORDS if encoding.startswith("utf") else "é€a\n" * 9
    data = words.encode(encoding)
    plain = (
        encoding
        if encoding in ("utf-16-be", "utf-32-le", "iso8859-15")
        else encoding.removesuffix("-sig") + ("" if encoding.startswith("utf-8") else "-le")
    )
    mark = len(data) - len(words.encode(plain))
    for limit in range(mark + 4, len(data) + 2):
        head, tail, lost = cut(data, limit)
        text, more = decoded(head, tail, lost, encoding, "strict", whole=True)
        split = next(n for n in range(len(text) + 1) if words.startswith(text[:n]) and words.endswith(text[n:]))
        assert split >= 0
        assert len(text.encode(plain)) + mark + lost + more == len(data)
        assert more < 8


@pytest.mark.parametrize("encoding", ["shift_jis", "gb18030", "euc-jp", "big5"])
def test_older_encodings_lose_no_result_either(encoding: str) -> None:
    data = "日本語\n".encode(encoding) * 9
    for limit in range(len(data) + 1):
        head, tail, lost = cut(data, limit)
        text, more = decoded(head, tail, lost, encoding, "replace", whole=True)
        assert more < 8
        assert text.count("\n") >= limit // 9


def test_text_that_has_not_ended_may_end_in_the_middle_of_a_character() -> None:
    assert decoded("aé".encode()[:2], b"", 0, "utf-8", "strict", whole=False) == ("a", 0)
    with pytest.raises(UnicodeDecodeError):
        decoded("aé".encode()[:2], b"", 0, "utf-8", "strict", whole=True)
    assert decoded("aé".encode()[:2], b"", 0, "utf-8", "replace", whole=True) == ("a\ufffd", 0)


def test_what_is_no_text_is_none_wherever_it_is_cut() -> None:
    for head, tail in ((b"a\xffb", b"c"), (b"a", b"bcdefgh\xff"), (b"\xff" * 9, b"\xff" * 9)):
        with pytest.raises(UnicodeDecodeError):
            decoded(head, tail, 5, "utf-8", "strict", whole=True)
    # The characters that the gap has cut are no errors of the text's.
    assert decoded(b"a\xc3", b"\xa9b\xff", 5, "utf-8", "replace", whole=True) == ("ab\ufffd", 2)
    assert decoded(b"a", b"bcdef\xffg", 5, "utf-8", "replace", whole=True) == ("abcdef\ufffdg", 0)


def test_line_ends_are_one_character() -> None:
    assert decoded(b"a\r\nb\rc\n", b"", 0, "utf-8", "strict", whole=True) == ("a\nb\nc\n", 0)
    assert decoded(b"a\r", b"\nb", 0, "utf-8", "strict", whole=True) == ("a\nb", 0)


def test_an_encoding_that_there_is_not_is_told_before_anything_is_decoded() -> None:
    assert decoder(None, None, None) is None
    assert decoder(True, None, None) == ("utf-8", "strict")
    assert decoder(None, None, "replace") == ("utf-8", "replace")
    for encoding, errors in (("no-such", None), ("base64", None), (None, "no-such")):
        with pytest.raises(LookupError):
            decoder(None, encoding, errors)


def test_input_is_bytes_or_a_string() -> None:
    assert encoded("é", ("latin-1", "strict")) == b"\xe9"
    assert [encoded(given, None) for given in (None, b"a", bytearray(b"a"), memoryview(b"a"))] == [
        None,
        b"a",
        b"a",
        b"a",
    ]
    for wrong in (5, ["a"], object()):
        with pytest.raises(TypeError, match="input"):
            encoded(wrong, None)
