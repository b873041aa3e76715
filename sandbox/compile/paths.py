"""Relations between canonical paths, by name."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache


def below(path: str, directory: str) -> bool:
    """``path`` is ``directory`` or lies in it."""
    return path == directory or directory == "/" or path.startswith(directory + "/")


def strictly_below(path: str, directory: str) -> bool:
    """``path`` lies in ``directory`` and is not it."""
    return path != directory and below(path, directory)


def touch(one: str, other: str) -> bool:
    """One of the two lies in the other, or they are the same."""
    return below(one, other) or below(other, one)


def outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """Without those that lie in another one; sorted."""
    chosen: list[str] = []
    for path in sorted(paths, key=order):
        if not any(below(path, other) for other in chosen):
            chosen.append(path)
    return tuple(chosen)


def order(path: str) -> tuple[str, ...]:
    """Sort key that puts a directory before what is in it."""
    return tuple(path.split("/"))


def parent(path: str) -> str:
    """The directory that holds ``path``; of the root, the root."""
    return path.rpartition("/")[0] or "/"


@lru_cache(4096)
def parents(path: str) -> tuple[str, ...]:
    """Every directory above ``path`` but the root, outermost first."""
    parts = path.split("/")[1:-1]
    return tuple("/" + "/".join(parts[: i + 1]) for i in range(len(parts)))


def join(directory: str, *names: str) -> str:
    """``directory`` (absolute) with ``names`` below it."""
    return "/".join(("" if directory == "/" else directory, *names))
