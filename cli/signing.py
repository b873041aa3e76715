"""The keys that sign checkpoints of records, and those that are believed: the session room's, loaded when wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remit.sandbox.authority.errors import RemitError

if TYPE_CHECKING:
    from remit.sandbox.audit.seal import Signer


def key() -> Signer:
    """The user's own key; made where there is none. Raises GrantError, ImportError."""
    import os

    from remit.sandbox.session import keys, place

    return keys.own(os.environ, place.home_directory(os.environ))


def key_or_none() -> Signer | None:
    """As ``key``; None where there is none to be had."""
    try:
        return key()
    except (RemitError, OSError, ImportError):
        return None


def verified(public: str, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is that of a believed key."""
    import os

    from remit.sandbox.session import keys, place

    trusted = keys.trusted(os.environ, place.home_directory(os.environ))
    return trusted.trusts(public) and trusted.verified(public, message, signature)
