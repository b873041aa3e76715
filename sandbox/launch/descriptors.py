"""Descriptor tables."""

from __future__ import annotations

from remit.sandbox.kernel import process


def keep(*wanted: int) -> None:
    """Close every descriptor of this thread's table but the standard ones and ``wanted``."""
    first = 3
    for descriptor in sorted(wanted):
        if descriptor > first:
            process.close_range(first, descriptor - 1)
        first = max(first, descriptor + 1)
    process.close_range(first, 0xFFFFFFFF)
