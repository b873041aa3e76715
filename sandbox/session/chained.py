"""Whether each grant of a chain lies in the one above it as what its names lead to on this host.

A chain's own check (``authority.proof``) goes by names, wherever it is made. Who was granted a directory can put a link
into it: the name of a grant that was taken out of that one then leads elsewhere, and would take its holder along. So where
a chain is used, the names of all of its grants are followed, and compared as a call's are with its session's.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from remit.sandbox.authority.errors import GrantError
from remit.sandbox.authority.lattice import Bound
from remit.sandbox.compile.call import beyond_objects, canonical
from remit.sandbox.resolve.names import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remit.sandbox.authority.lattice import Violation
    from remit.sandbox.authority.model import Authority
    from remit.sandbox.authority.proof import Chain
    from remit.sandbox.resolve.binding import Named


def check_objects(chain: Chain, names: Mapping[str, Named], *, uid: int) -> None:
    """``names``: those that were followed already, for what the chain is used for: what will be opened is what is compared.

    Raises:
        GrantError: one of the grants goes beyond the one above it. It says which name leads where.
        ResolveError: a name that cannot be followed.
    """
    if len(chain.links) == 1:
        return
    grants = [link.grant for link in chain.links]
    known: dict[str, Named] = {}
    for grant in grants:
        # What is missing here leads nowhere else, and whether it may be missing is asked where it is used.
        paths = tuple([replace(rule, optional=True) for rule in grant.authority.paths if rule.path not in known])
        known |= resolve(replace(grant.authority, paths=paths), uid=uid)
    known |= names
    for above, grant in pairwise(grants):
        found = beyond_objects(canonical(grant.authority, known), Bound(canonical(above.authority, known)))
        if found:
            raise GrantError(
                "; ".join([_told(one, grant.authority, known) for one in found]),
                where=f"grant {grant.id}, out of {above.id}",
                hint="a grant can only be narrowed, also where its names lead to: put the directories back, or ask the grantor",
            )


def _told(one: Violation, authority: Authority, names: Mapping[str, Named]) -> str:
    """The violation by the name that the grant has for the object."""
    paths = [*[rule.path for rule in authority.paths], *authority.unix]
    led = [path for path in paths if path != one.object and path in names and names[path].canonical == one.object]
    return f"{led[0]} leads to {one.object}: {one.right}: {one.reason}" if led else str(one)
