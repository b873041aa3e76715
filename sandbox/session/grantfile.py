"""Grants in files: reading one with its proof, and using it.

``load_grant_file`` answers whether the file may be used by who presents it; ``Ledger.spend`` with the chain's claims takes
the use. They are apart because one is asked often and the other happens once, at the start.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from remit.profiles import find
from remit.profiles.errors import ProfileError
from remit.sandbox.authority import proof
from remit.sandbox.authority.errors import GrantError
from remit.sandbox.session import keys, place
from remit.sandbox.session.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remit.sandbox.authority.proof import Chain, Keys

UID_PREFIX = "uid:"


def load_grant_file(
    path: str,
    environ: Mapping[str, str] | None = None,
    *,
    at: float | None = None,
    session: str = "",
    principal: str | None = None,
    trusted: Keys | None = None,
) -> Chain:
    """The grant in ``path``, if everything about it holds now: form, every link, keys, revocation, who presents it.

    ``at`` (Unix seconds) defaults to the wall clock, ``environ`` to the process's, ``trusted`` to the user's keys.
    ``session`` is the one that it is used in; empty for one that has no id yet, which no bound grant belongs to.
    ``principal``: see ``presented_by``. No use is counted: that is ``Ledger.spend(plain(chain), session)``.

    Raises:
        GrantError: names every broken link, with one hint.
    """
    environ = os.environ if environ is None else environ
    at = time.time() if at is None else at
    home = place.home_directory(environ)
    chain = read(path)
    trusted = keys.trusted(environ, home) if trusted is None else trusted
    presented = presented_by(chain, environ, home, principal)
    proof.verify(chain, trusted, at=at, session=session, principal=presented, where=path)
    gone = Ledger(state(environ, home)).revoked(chain.ids)
    if gone:
        raise GrantError(f"revoked: grant {', '.join(gone)}", where=path, hint="ask the grantor for a new one")
    return chain


def read(path: str) -> Chain:
    """The chain in ``path``, its form checked and nothing else. Raises GrantError.

    The file and every directory on the way to it must be writable by nobody but the user and root: a signature does not
    help against somebody who puts another grant of the same grantor, a wider one, in the place of the one that was meant.
    """
    try:
        data = find.read(path)
    except ProfileError as error:
        problem = error.problems[0]
        if problem.message == "no such profile":
            raise GrantError("no such file", where=path, hint="name a file that `remit grant new` wrote") from None
        raise GrantError(problem.message, where=path, hint=problem.hint) from None
    try:
        return proof.parse(data)
    except GrantError as error:
        raise GrantError(str(error), where=path, hint=error.hint) from None


def presented_by(chain: Chain, environ: Mapping[str, str], home: str, principal: str | None) -> str | None:
    """Whom the grant has to be given to, as the one who presents it can prove to be.

    ``uid:N`` is the user whom the kernel runs this process as, ``key:HEX`` whoever holds that key. Any other principal is
    a name that whoever starts a session hands out: it must be ``principal``, where that is given.
    """
    held = chain.leaf.principal
    if held.startswith(UID_PREFIX):
        return f"{UID_PREFIX}{os.geteuid()}"
    if held.startswith(proof.KEY_PREFIX):
        return f"{proof.KEY_PREFIX}{keys.own_public(environ, home)}"
    return principal


def plain(chain: Chain) -> tuple[tuple[str, int | None, float | None, float | None, str], ...]:
    """The chain's claims as plain values, for ``Ledger.spend`` and for caches."""
    return tuple(claim.plain() for claim in chain.claims)


def state(environ: Mapping[str, str], home: str) -> str:
    """``$XDG_STATE_HOME/remit``: the directory that holds the ledger."""
    base = environ.get("XDG_STATE_HOME", "")
    return os.path.join(base if base.startswith("/") else os.path.join(home or "/", ".local/state"), "remit")
