"""The shape of a plan's wire form, for type checkers only: what ``compile.plan`` writes and this room executes."""

from __future__ import annotations

from typing import Any, TypeAlias

Operation: TypeAlias = tuple[Any, ...]
"""An operation's name, then its fields in the order of its class in ``remit.sandbox.compile.plan``."""

Assumption: TypeAlias = tuple[str, str, str, tuple[tuple[str, str], ...]]
"""(path as granted, kind, canonical path, symbolic links crossed)."""

Wire: TypeAlias = tuple[int, str, str, tuple[str, ...], tuple[Assumption, ...], tuple[Operation, ...]]
"""(format, digest, workspace, degraded, assumptions, operations)."""
