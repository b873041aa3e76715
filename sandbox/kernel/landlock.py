"""Landlock (``Documentation/userspace-api/landlock.rst``): rulesets by descriptor, and what each ABI brought."""

from __future__ import annotations

import posix

from remit.sandbox.kernel.call import NR, quick

RULE_PATH_BENEATH = 1
RULE_NET_PORT = 2
CREATE_RULESET_VERSION = 1


def version() -> int:
    """The Landlock ABI of this kernel. Raises OSError (ENOSYS: not built in; EOPNOTSUPP: not enabled at boot)."""
    return quick(NR["landlock_create_ruleset"], None, 0, CREATE_RULESET_VERSION)


def abi() -> int:
    """The Landlock ABI of this kernel; 0 where there is none."""
    try:
        return version()
    except OSError:
        return 0


def create_ruleset(handled_fs: int, handled_net: int, scoped: int) -> int:
    """``landlock_create_ruleset(2)``: the descriptor of a ruleset that denies all that it handles.

    Older kernels refuse a structure whose unknown tail is not zero, so the tail is left out where it is.
    """
    words = [handled_fs, handled_net, scoped]
    while len(words) > 1 and not words[-1]:
        words.pop()
    attributes = b"".join([w.to_bytes(8, "little") for w in words])
    return quick(NR["landlock_create_ruleset"], attributes, len(attributes), 0)


def allow_path(ruleset: int, descriptor: int, access: int) -> None:
    """``landlock_add_rule(2)``: ``access`` below the object that ``descriptor`` (O_PATH will do) refers to."""
    quick(
        NR["landlock_add_rule"],
        ruleset,
        RULE_PATH_BENEATH,
        access.to_bytes(8, "little") + descriptor.to_bytes(4, "little"),
        0,
    )


def allow_port(ruleset: int, port: int, access: int) -> None:
    """``landlock_add_rule(2)`` for a TCP port (ABI 4)."""
    quick(NR["landlock_add_rule"], ruleset, RULE_NET_PORT, access.to_bytes(8, "little") + port.to_bytes(8, "little"), 0)


def restrict_self(ruleset: int) -> None:
    """``landlock_restrict_self(2)`` for the calling *thread*; threads and processes made from it inherit. Closes ``ruleset``."""
    quick(NR["landlock_restrict_self"], ruleset, 0)
    posix.close(ruleset)
