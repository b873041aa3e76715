"""A grant: an authority given to someone for something, for a time, out of another grant.

A grant names its parent by id and by digest, so that a chain cannot be changed without changing every digest below. It
is narrowed, never clipped: what is not inside the parent is refused with each offending object.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from remit.sandbox.authority import codec
from remit.sandbox.authority.errors import GrantError
from remit.sandbox.authority.lattice import normal, violations
from remit.sandbox.authority.model import Authority

SCHEMA = "remit.grant/1"

_KEYS = (
    "schema",
    "id",
    "grantor",
    "principal",
    "task",
    "purpose",
    "authority",
    "not_before",
    "expires",
    "uses",
    "parent",
    "parent_digest",
    "session",
)
_HEX = frozenset("0123456789abcdef")
_FOREVER = 1 << 53


def _new_id() -> str:
    return os.urandom(16).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """An authority with its provenance. Times are Unix seconds, None for no bound; ``uses`` None for any number.

    ``id`` is 128 random bits in hexadecimal. ``parent`` and ``parent_digest`` are the parent's id and ``digest()``.
    ``session`` is the id of the session that the grant belongs to, empty for none.

    Raises:
        GrantError: an id or digest that is none, a time that is not finite, an empty period, fewer than one use, half a
            parent, NUL in a text.
    """

    authority: Authority
    grantor: str
    principal: str
    task: str = ""
    purpose: str = ""
    not_before: float | None = None
    expires: float | None = None
    uses: int | None = None
    parent: str | None = None
    parent_digest: str | None = None
    session: str = ""
    id: str = field(default_factory=_new_id)

    def __post_init__(self) -> None:
        for name, value, size in (("id", self.id, 32), ("parent", self.parent, 32), ("digest", self.parent_digest, 64)):
            if value is not None and not (len(value) == size and _HEX.issuperset(value)):
                raise GrantError(f"{name} {value!r} is not {size} hexadecimal digits", where="grant")
        if (self.parent is None) != (self.parent_digest is None):
            raise GrantError("a parent needs its id and its digest", where="grant")
        for name in ("grantor", "principal", "task", "purpose", "session"):
            codec.a_string(getattr(self, name), f"grant.{name}")
        for name, moment in (("not_before", self.not_before), ("expires", self.expires)):
            if moment is not None:
                if not -_FOREVER < moment < _FOREVER:
                    raise GrantError(f"{name} {moment!r} is not a time", where="grant")
                # 5 and 5.0 are equal but not the same JSON: a grant has one digest.
                object.__setattr__(self, name, float(moment))
        if self.not_before is not None and self.expires is not None and self.not_before >= self.expires:
            raise GrantError(f"the grant expires ({self.expires}) before it begins ({self.not_before})", where="grant")
        if self.uses is not None and self.uses < 1:
            raise GrantError(f"uses {self.uses!r} is less than 1", where="grant", hint="leave it out for any number")

    def active(self, now: float) -> bool:
        """Whether ``now`` (Unix seconds) lies in the grant's period. The moment of expiry does not."""
        return (self.not_before is None or self.not_before <= now) and (self.expires is None or now < self.expires)

    def digest(self) -> str:
        """BLAKE2b-256 (hex) over the canonical JSON, with the authority's normal form and without sources."""
        return codec.blake2b(codec.canonical_json(self.canonical()))

    def canonical(self) -> dict[str, object]:
        """What the digest is over: ``to_json`` with the authority's normal form and without sources."""
        return self.to_json() | {"authority": codec.to_json(normal(self.authority), sources=False)}

    def narrow(
        self,
        authority: Authority,
        *,
        principal: str | None = None,
        task: str | None = None,
        purpose: str | None = None,
        not_before: float | None = None,
        expires: float | None = None,
        uses: int | None = None,
        session: str | None = None,
    ) -> Grant:
        """A grant out of this one, for ``authority``. The grantor is this grant's principal; what is None is inherited.

        This grant's deny and protect lines are carried along. By name they take nothing more away, since ``authority``
        is inside already; but a name may resolve to an object that is also reached by another name.

        Raises:
            GrantError: ``authority`` is not ⊑ this grant's (the message names every offending object), the period or the
                uses go beyond it, or it belongs to another session. Nothing is ever clipped.
        """
        beyond = [str(one) for one in violations(authority, self.authority)]
        if session is not None and self.session and session != self.session:
            beyond.append(f"session: {session or 'any'} is not the parent's {self.session}")
        if expires is not None and self.expires is not None and expires > self.expires:
            beyond.append(f"expires: {expires} is after the parent's {self.expires}")
        if not_before is not None and self.not_before is not None and not_before < self.not_before:
            beyond.append(f"not before: {not_before} is before the parent's {self.not_before}")
        if uses is not None and self.uses is not None and uses > self.uses:
            beyond.append(f"uses: {uses} is above the parent's {self.uses}")
        if beyond:
            raise GrantError(
                "beyond the grant it is taken from: " + "; ".join(beyond),
                where=f"grant {self.id}",
                hint="ask for less, or ask the grantor for more",
            )
        carried = replace(
            authority,
            deny=authority.deny + self.authority.deny,
            protect=authority.protect + self.authority.protect,
        )
        return Grant(
            authority=normal(carried),
            grantor=self.principal,
            principal=self.principal if principal is None else principal,
            task=self.task if task is None else task,
            purpose=self.purpose if purpose is None else purpose,
            not_before=self.not_before if not_before is None else not_before,
            expires=self.expires if expires is None else expires,
            uses=self.uses if uses is None else uses,
            parent=self.id,
            parent_digest=self.digest(),
            session=self.session if session is None else session,
        )

    def follows(self, parent: Grant) -> bool:
        """Whether ``parent`` is the grant, unchanged, that this one was taken from."""
        return self.parent == parent.id and self.parent_digest == parent.digest()

    def to_json(self) -> dict[str, object]:
        """The grant as plain JSON values, sources included."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "grantor": self.grantor,
            "principal": self.principal,
            "task": self.task,
            "purpose": self.purpose,
            "authority": codec.to_json(self.authority),
            "not_before": self.not_before,
            "expires": self.expires,
            "uses": self.uses,
            "parent": self.parent,
            "parent_digest": self.parent_digest,
            "session": self.session,
        }

    @classmethod
    def from_json(cls, value: object) -> Grant:
        """Read what ``to_json`` wrote.

        Raises:
            GrantError: anything that ``to_json`` would not have written.
        """
        made = codec.object_of(value, "grant", _KEYS)
        if made["schema"] != SCHEMA:
            raise codec.wrong("grant.schema", f"unknown schema {made['schema']!r}", f"expected {SCHEMA}")

        def text(key: str) -> str:
            return codec.a_string(made[key], f"grant.{key}")

        def text_or_none(key: str) -> str | None:
            return None if made[key] is None else text(key)

        def moment(key: str) -> float | None:
            held = made[key]
            if held is None:
                return None
            if isinstance(held, bool) or not isinstance(held, int | float):
                raise codec.wrong(f"grant.{key}", f"expected Unix seconds or null, not {held!r}")
            return held

        return cls(
            authority=codec.from_json(made["authority"], "grant.authority"),
            grantor=text("grantor"),
            principal=text("principal"),
            task=text("task"),
            purpose=text("purpose"),
            not_before=moment("not_before"),
            expires=moment("expires"),
            uses=None if made["uses"] is None else codec.an_int(made["uses"], "grant.uses", 1, (1 << 53) - 1),
            parent=text_or_none("parent"),
            parent_digest=text_or_none("parent_digest"),
            session=text("session"),
            id=text("id"),
        )
