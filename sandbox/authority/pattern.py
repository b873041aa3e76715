"""The algebra of names that are taken away: matching, inclusion, restriction to a subtree.

A *shape* is ``(anchor, tail)`` in path components: with an empty tail, the literal path ``anchor`` and everything below
it; otherwise ``anchor/**/tail`` and everything below each match.

Names are unbounded, which makes inclusion in a union pairwise: take a component ``z`` that no shape mentions. If
``anchor/z/tail`` lies in a union, it lies in one shape of it, whose own components can match before ``z`` or after it,
never across; and then that shape holds all of ``anchor/**/tail``. So ``within`` against one shape at a time decides
inclusion in a set of them completely, and a set without redundant members is unique for what it denotes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from remit.sandbox.authority.model import PathPattern

if TYPE_CHECKING:
    from collections.abc import Iterable

Parts: TypeAlias = tuple[str, ...]
Shape: TypeAlias = tuple[Parts, Parts]

_REMEMBERED = 4096
"""Names whose parts are known: the grants of a session's calls have nearly all of them in common."""


@lru_cache(_REMEMBERED)
def parts(path: str) -> Parts:
    """The components of an absolute, lexically normal path; none for ``/``.

    Raises:
        ValueError: the path is not absolute or not lexically normal. Deciding on it would be deciding on another name.
    """
    if path == "/":
        return ()
    components = tuple(path.split("/"))
    if components[0] or len(components) < 2 or not {"", ".", ".."}.isdisjoint(components[1:]):
        raise ValueError(f"{path!r} is not an absolute, lexically normal path")
    return components[1:]


def joined(components: Parts) -> str:
    """The path with these components."""
    return "/" + "/".join(components)


@lru_cache(_REMEMBERED)
def shape(pattern: PathPattern) -> Shape:
    """The shape of a pattern.

    Raises:
        ValueError: the anchor is not lexically normal, or the tail is empty or not made of components.
    """
    anchor, tail = parts(pattern.anchor), pattern.tail
    if not tail or any(part in ("", ".", "..") or "/" in part for part in tail):
        raise ValueError(f"{pattern} is not a pattern")
    return (anchor, tail) if pattern.any_depth else (anchor + tail, ())


@lru_cache(_REMEMBERED)
def pattern(made: Shape) -> PathPattern:
    """The one spelling of a shape: a literal is its parent with one name."""
    anchor, tail = made
    if tail:
        return PathPattern(joined(anchor), tail, True)
    return PathPattern(joined(anchor[:-1]), anchor[-1:], False)


@lru_cache(_REMEMBERED)
def spelled(one: PathPattern) -> PathPattern:
    """The same, in its one spelling. Raises ValueError, as ``shape``."""
    return pattern(shape(one))


def _occurs(needle: Parts, hay: Parts) -> bool:
    size = len(needle)
    return any(hay[i : i + size] == needle for i in range(len(hay) - size + 1))


def covers(one: Shape, path: Parts) -> bool:
    """Whether the path is a match of the shape or lies below one."""
    anchor, tail = one
    size = len(anchor)
    return path[:size] == anchor and (not tail or _occurs(tail, path[size:]))


def within(one: Shape, other: Shape) -> bool:
    """Whether everything that ``one`` covers, ``other`` covers."""
    anchor, tail = one
    if covers(other, anchor):
        return True
    start, needle = other
    return bool(tail and needle) and anchor[: len(start)] == start and _occurs(needle, tail)


def restrict(one: Shape, root: Parts) -> list[Shape]:
    """Shapes, all inside the subtree ``root``, that together cover what ``one`` covers there."""
    anchor, tail = one
    if covers(one, root):
        return [(root, ())]
    if anchor[: len(root)] == root:
        return [one]
    if not tail or root[: len(anchor)] != anchor:
        return []
    # A match may begin above the root and end below it: what is left of the tail is then a literal.
    above = root[len(anchor) :]
    straddling = [(root + tail[n:], ()) for n in range(1, len(tail)) if above[-n:] == tail[:n]]
    return [(root, tail), *straddling]


def irredundant(shapes: Iterable[Shape], also: Iterable[Shape] = ()) -> list[Shape]:
    """The shapes that lie in no other of them and in none of ``also``, sorted: unique for the set they cover."""
    unique = sorted(set(shapes))
    beside = list(also)
    return [
        one
        for one in unique
        if not any(within(one, other) for other in beside)
        and not any(other != one and within(one, other) for other in unique)
    ]
