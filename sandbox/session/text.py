"""A call's output as text, where it is not all there: cut in the middle, or at its end."""

from __future__ import annotations

import codecs

_LONGEST = 4
"""Bytes of a character, at the most."""


def decoded(head: bytes, tail: bytes, lost: int, encoding: str, errors: str, *, whole: bool) -> tuple[str, int]:
    """``head`` and ``tail`` as text, ``lost`` bytes apart, with line ends as ``subprocess`` makes them; and how many bytes more
    are lost, of characters that the gap has cut.

    ``whole``: the end of it is where its writer ended it, and no character is cut there.

    Raises UnicodeDecodeError: it is no text, with ``errors`` "strict".
    """
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    if not lost:
        return _lines(decoder.decode(head + tail, final=whole)), 0
    text = decoder.decode(head)
    pending, state = decoder.getstate()

    def rest(skipped: int, errors: str) -> str:
        # What the head said of its encoding, such as a byte order mark, is the tail's too.
        decoder = codecs.getincrementaldecoder(encoding)(errors)
        decoder.setstate((b"", state))
        return decoder.decode(tail[skipped:], final=whole)

    starts = _starts(len(head) + lost, encoding)
    start = -1
    for candidate in starts:
        if candidate >= len(tail):
            if start < 0:
                start = len(tail)  # a part of one character, and no more
            break
        try:
            more = rest(candidate, "strict")
        except UnicodeDecodeError as error:
            if error.start and start < 0:
                start = candidate  # a character begins here, whatever comes later
        else:
            return _lines(text + more), len(pending) + candidate
    if start < 0:
        start = starts[0]
    return _lines(text + rest(start, errors)), len(pending) + start


def _starts(offset: int, encoding: str) -> range:
    """Where the first whole character after ``offset`` may begin, counted from there."""
    unit = len("aa".encode(encoding)) - len("a".encode(encoding))  # without a byte order mark
    first = -offset % unit
    return range(first, first + _LONGEST, unit)


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
