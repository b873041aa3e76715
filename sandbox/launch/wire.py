"""The shape of a plan's wire form, for type checkers only: what ``compile.plan`` writes and this room executes."""

from __future__ import annotations

from typing import Any, TypeAlias

Operation: TypeAlias = tuple[Any, ...]
"""An operation's name, then its fields in the order of its class in ``remit.sandbox.compile.plan``."""

Assumption: TypeAlias = tuple[str, str, str, tuple[tuple[str, str], ...]]
"""(path as granted, kind, canonical path, symbolic links crossed)."""

Wire: TypeAlias = tuple[int, str, str, tuple[str, ...], tuple[Assumption, ...], tuple[Operation, ...]]
"""(format, digest, workspace, degraded, assumptions, operations)."""

CallWire: TypeAlias = tuple[
    int,
    str,
    tuple[int, int, int, tuple[tuple[str, int], ...], tuple[tuple[int, int], ...]],
    bytes,
    tuple[Any, ...],
    tuple[Operation, ...],
    tuple[bool, bool],
    bool,
    tuple[tuple[str, tuple[int, int]], ...],
    tuple[tuple[str, int], ...],
    dict[str, object],
    Operation | None,
]
"""(format, digest, Landlock domain, filter program, mediation, limits, whether the cell is private and has a loopback, freeze
instead of kill, granted objects as path -> (device, inode), rights over the cell's own file systems by path, what its
authority has beyond that of every call as JSON for the record, a private network's way out): what ``compile.call`` writes."""
