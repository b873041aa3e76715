"""What proves a grant that crossed a process boundary: a chain of signed grants, from a root down to the one in use.

Each link is a grant and a signature over the digests of all grants from the root down to it: nothing in a link, and
nothing above it, can be changed, left out or exchanged. Three kinds of key may sign a link: one that the reader trusts;
the one that the link's grantor names (``key:HEX``: the parent was given to whoever holds it); and the one that signed the
parent, whose holder could have made the narrower grant directly. A root is signed by a trusted key.

This module does no I/O and knows no cryptography: ``Keys`` is asked. Algorithm: Ed25519 (RFC 8032).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from remit.sandbox.authority import codec
from remit.sandbox.authority.errors import GrantError
from remit.sandbox.authority.grant import SCHEMA as GRANT_SCHEMA
from remit.sandbox.authority.grant import Grant
from remit.sandbox.authority.lattice import normal, violations

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA = "remit.grant-file/1"
PROOF = "remit.grant-proof/1"
"""Begins what is signed: no signature that the key ever makes over anything else can be taken for one over a chain."""

MAX_DEPTH = 8
"""Grants in a chain, the root counted: delegation that goes on and on has no one left who answers for it."""

KEY_PREFIX = "key:"
KEY_DIGITS = 64
SIGNATURE_DIGITS = 128
_HEX = frozenset("0123456789abcdef")


class Keys(Protocol):
    """What a verifier knows of keys. A key is its public half: 64 hexadecimal digits."""

    def trusts(self, key: str) -> bool:
        """Whether roots that ``key`` signed are believed."""
        ...

    def verified(self, key: str, message: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is ``key``'s over ``message``."""
        ...


@dataclass(frozen=True, slots=True)
class Signed:
    """A grant with the key (64 hexadecimal digits) that signed it and the signature (128).

    Raises:
        GrantError: a key or signature that is none.
    """

    grant: Grant
    key: str
    signature: str

    def __post_init__(self) -> None:
        for name, value, size in (("key", self.key, KEY_DIGITS), ("signature", self.signature, SIGNATURE_DIGITS)):
            if not (len(value) == size and _HEX.issuperset(value)):
                raise GrantError(f"{name} {value!r} is not {size} hexadecimal digits", where=f"grant {self.grant.id}")


@dataclass(frozen=True, slots=True)
class Claim:
    """What using a grant asks of the ledger: that ``id`` is not revoked, in its period, and used at most ``uses`` times.

    Times are Unix seconds; None is no bound. ``session`` is the one the grant is bound to, or empty.
    """

    id: str
    uses: int | None
    not_before: float | None
    expires: float | None
    session: str = ""

    def plain(self) -> tuple[str, int | None, float | None, float | None, str]:
        """As a tuple of plain values, for caches; ``Claim(*plain)`` is equal."""
        return (self.id, self.uses, self.not_before, self.expires, self.session)


@dataclass(frozen=True, slots=True)
class Chain:
    """Signed grants, the root first, each taken out of the one before it. At least one; nothing else is checked here.

    Raises:
        GrantError: no links.
    """

    links: tuple[Signed, ...]

    def __post_init__(self) -> None:
        if not self.links:
            raise GrantError("a chain without a grant", where="links")

    @property
    def leaf(self) -> Grant:
        """The grant that the chain proves."""
        return self.links[-1].grant

    @property
    def ids(self) -> tuple[str, ...]:
        """Every grant's id, the root's first: who revokes one of them revokes the leaf."""
        return tuple(link.grant.id for link in self.links)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What one use of the leaf asks of the ledger: a use of every grant above it, too."""
        grants = [link.grant for link in self.links]
        return tuple(Claim(one.id, one.uses, one.not_before, one.expires, one.session) for one in grants)

    @property
    def expires(self) -> float | None:
        """When the first of the grants ends (Unix seconds), or None."""
        ends = [link.grant.expires for link in self.links if link.grant.expires is not None]
        return min(ends) if ends else None


@dataclass(frozen=True, slots=True)
class Broken:
    """What is wrong with one link. ``link`` counts from the root, which is 0."""

    link: int
    id: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"link {self.link} (grant {self.id}): {self.message}"


def message(grants: Sequence[Grant]) -> bytes:
    """What the signature of the last of ``grants`` is over; they are the chain down to it, the root first."""
    return codec.canonical_json({"schema": PROOF, "chain": [grant.digest() for grant in grants]})


def problems(
    chain: Chain, keys: Keys, *, at: float, session: str | None = None, principal: str | None = None
) -> tuple[Broken, ...]:
    """Everything that is wrong with ``chain`` at the time ``at`` (Unix seconds), link by link; empty where it holds.

    ``session``: the session that it is to be used in, empty for none; None leaves the leaf's session unchecked.
    ``principal``: who presents it; None leaves it unchecked.
    """
    found: list[Broken] = []
    seen: set[str] = set()
    grants = [link.grant for link in chain.links]
    for index, link in enumerate(chain.links):
        grant = link.grant

        def broken(message: str, hint: str, *, index: int = index, id: str = grant.id) -> None:
            found.append(Broken(index, id, message, hint))

        if index == MAX_DEPTH:
            broken(f"the chain is longer than {MAX_DEPTH} grants", "narrow an earlier grant of it directly")
        if grant.id in seen:
            broken("its id stands in the chain twice", "ask the grantor for a new grant")
        seen.add(grant.id)
        if index:
            for one, hint in _beyond(grant, grants[index - 1]):
                broken(one, hint)
        elif grant.parent is not None:
            broken(f"the root is taken out of grant {grant.parent}, which is not here", "ask for the whole chain")
        if grant.not_before is not None and at < grant.not_before:
            broken(f"it is not in force before {grant.not_before}", "wait, or ask the grantor for a new grant")
        if grant.expires is not None and at >= grant.expires:
            broken(f"it expired at {grant.expires}", "ask the grantor for a new grant")
        for one, hint in _signature(chain, index, keys, grants):
            broken(one, hint)
    leaf = chain.leaf
    last = len(chain.links) - 1
    if session is not None and leaf.session and leaf.session != session:
        where = f"session {session}" if session else "a session of its own"
        found.append(
            Broken(
                last, leaf.id, f"it belongs to session {leaf.session}, not to {where}", "ask for one for that session"
            )
        )
    if principal is not None and leaf.principal != principal:
        found.append(
            Broken(
                last,
                leaf.id,
                f"it was given to {leaf.principal!r}, not to {principal!r}",
                "ask for one in your own name",
            )
        )
    return tuple(found)


def verify(
    chain: Chain, keys: Keys, *, at: float, session: str | None = None, principal: str | None = None, where: str = ""
) -> Chain:
    """``chain``, if ``problems`` finds none.

    Raises:
        GrantError: the message names each broken link, the hint is the first one's; ``where`` is the file's name.
    """
    found = problems(chain, keys, at=at, session=session, principal=principal)
    if found:
        raise GrantError(
            "; ".join(str(one) for one in found), where=where or f"grant {chain.leaf.id}", hint=found[0].hint
        )
    return chain


def _beyond(grant: Grant, parent: Grant) -> list[tuple[str, str]]:
    """How ``grant`` is not one that ``parent.narrow`` could have returned, as (what, hint)."""
    forged = "the chain was changed after it was made: ask the grantor for it again"
    wider = "a grant can only be narrowed: ask for less, or ask the grantor for more"
    found: list[tuple[str, str]] = []
    if grant.parent != parent.id:
        found.append((f"its parent is {grant.parent}, not {parent.id}", forged))
    if grant.parent_digest != parent.digest():
        found.append((f"its parent's digest is {grant.parent_digest}, not {parent.digest()}", forged))
    if grant.grantor != parent.principal:
        found.append(
            (f"its grantor {grant.grantor!r} is not {parent.principal!r}, whom the parent was given to", forged)
        )
    found += [(str(one), wider) for one in violations(grant.authority, parent.authority)]
    # By name they take nothing away from what is inside already. But names are not objects: see Grant.narrow.
    mine, theirs = normal(grant.authority), normal(parent.authority)
    found += [(f"the parent's deny of {one} is missing", wider) for one in theirs.deny if one not in mine.deny]
    found += [(f"the parent's protect of {one} is missing", wider) for one in theirs.protect if one not in mine.protect]
    if parent.expires is not None and (grant.expires is None or grant.expires > parent.expires):
        found.append((f"expires: {grant.expires or 'never'} is after the parent's {parent.expires}", wider))
    if parent.not_before is not None and (grant.not_before is None or grant.not_before < parent.not_before):
        found.append(
            (f"not before: {grant.not_before or 'any time'} is before the parent's {parent.not_before}", wider)
        )
    if parent.uses is not None and (grant.uses is None or grant.uses > parent.uses):
        found.append((f"uses: {grant.uses or 'any number'} is above the parent's {parent.uses}", wider))
    if parent.session and grant.session != parent.session:
        found.append((f"session: {grant.session or 'any'} is not the parent's {parent.session}", wider))
    return found


def _signature(chain: Chain, index: int, keys: Keys, grants: list[Grant]) -> list[tuple[str, str]]:
    link, grant = chain.links[index], chain.links[index].grant
    if not keys.verified(link.key, message(grants[: index + 1]), bytes.fromhex(link.signature)):
        return [
            ("its signature does not match", "the file was changed after it was made: ask the grantor for it again")
        ]
    named = grant.grantor.startswith(KEY_PREFIX)
    if named and grant.grantor != KEY_PREFIX + link.key:
        return [(f"key {link.key} signed it, and not its grantor {grant.grantor}", "the grantor has to sign it")]
    if keys.trusts(link.key) or (index and (named or link.key == chain.links[index - 1].key)):
        return []
    return [
        (
            f"key {link.key} is not known here",
            "if you know whose key it is, put it into the directory of trusted keys (docs/grants.md)",
        )
    ]


# --- the file ------------------------------------------------------------------------------------------------------------


def dump(chain: Chain) -> bytes:
    """The file that holds ``chain``: JSON in one form, so that one chain has one file.

    Without sources: where a line came from is not signed, and what is not signed could be forged.
    """
    links = [{"grant": link.grant.canonical(), "key": link.key, "signature": link.signature} for link in chain.links]
    return (json.dumps({"links": links, "schema": SCHEMA}, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def parse(data: bytes) -> Chain:
    """Read what ``dump`` wrote. No signature is checked.

    Raises:
        GrantError: anything else, down to a blank: a file that differs from what was written was changed by somebody.
    """
    try:
        value = cast("object", json.loads(data.decode("ascii")))
    except UnicodeDecodeError:
        raise codec.wrong("grant file", "not ASCII", "a grant file is what `remit grant new` writes") from None
    except (ValueError, RecursionError) as error:
        raise codec.wrong("grant file", f"not JSON: {error}", "a grant file is what `remit grant new` writes") from None
    if _is_unsigned(value):
        raise codec.wrong("grant file", "the grant is not signed", "make a signed one: remit grant new ... -o FILE")
    made = codec.object_of(value, "grant file", ("schema", "links"))
    if made["schema"] != SCHEMA:
        raise codec.wrong("schema", f"unknown schema {made['schema']!r}", f"expected {SCHEMA}")
    links = made["links"]
    if not isinstance(links, list):
        raise codec.wrong("links", f"expected a list, not {links!r}")
    chain = Chain(tuple(_link(one, f"links.{i}") for i, one in enumerate(cast("list[object]", links))))
    if dump(chain) != data:
        raise codec.wrong(
            "grant file",
            "not in the form that it was written in: it was edited, or reformatted",
            "ask for the file again, byte for byte",
        )
    return chain


def _is_unsigned(value: object) -> bool:
    return isinstance(value, dict) and cast("dict[str, object]", value).get("schema") == GRANT_SCHEMA


def _link(value: object, where: str) -> Signed:
    made = codec.object_of(value, where, ("grant", "key", "signature"))
    key, signature = (codec.a_string(made[name], f"{where}.{name}") for name in ("key", "signature"))
    try:
        return Signed(Grant.from_json(made["grant"]), key, signature)
    except GrantError as error:
        raise codec.wrong(f"{where}: {error.where}", error.message, error.hint) from None
