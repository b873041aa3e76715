"""The hash chain of a record: BLAKE2b-256 over the hash before it and the line without its own hash."""

from __future__ import annotations

from _blake2 import blake2b

SIZE = 32
MARK = b',"hash":"'
"""What stands before a line's hash, which is the last thing in it."""


def chain(head: bytes, line: bytes) -> bytes:
    """The hash (hexadecimal) of ``line``, a JSON object without its hash, after the line whose hash is ``head``."""
    return blake2b(head + b"\n" + line, digest_size=SIZE).hexdigest().encode()
