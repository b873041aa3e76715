"""JSON text without the ``json`` module, which costs more to import than a record takes to write."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def dumps(value: Any) -> str:
    """Compact JSON of plain values (str, int, float, bool, None, lists, tuples, dicts with str keys).

    Lone surrogates, which stand for bytes that are no UTF-8 in a path, come out as ``\\udcXX`` escapes and are read back
    as such. Raises TypeError for anything else.
    """
    if isinstance(value, str):
        return _quoted(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        items: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
        return "[" + ",".join([dumps(item) for item in items]) + "]"
    if isinstance(value, dict):
        entries: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
        return "{" + ",".join([_quoted(str(k)) + ":" + dumps(v) for k, v in entries.items()]) + "}"
    raise TypeError(f"not JSON: {type(value).__name__}")


def _quoted(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    from _json import encode_basestring_ascii  # a shared object to load: only for text that needs it

    return encode_basestring_ascii(text)
