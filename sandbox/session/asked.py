"""``remit.Grant``: the authority that a caller gives to one call, as it is written in a program.

It is symbolic and reusable: paths may be relative to the session's workspace, and nothing is resolved before a session
uses it. What a call really runs under, with an id of its own and its place in the chain of grants, is
``remit.sandbox.authority.grant.Grant`` (``result.grant``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from remit.sandbox.authority import codec
from remit.sandbox.authority.errors import GrantError, RemitError
from remit.sandbox.authority.lattice import normal
from remit.sandbox.authority.model import Authority
from remit.sandbox.authority.proof import Chain
from remit.sandbox.session import keywords
from remit.sandbox.session.errors import Several
from remit.sandbox.session.granted import granted
from remit.sandbox.session.keywords import StrPath as StrPath

WHERE = "Grant"


class Identity:
    """One grant object's own, which uses and expiry are counted by."""

    __slots__ = ("__weakref__",)


class _Same:
    """Equal to itself and to what is about the same object. It keeps that: another one would get its address."""

    __slots__ = ("_of",)

    def __init__(self, of: object) -> None:
        self._of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._of is other._of

    def __hash__(self) -> int:
        return id(self._of)


@dataclass(frozen=True, slots=True, init=False)
class Grant:
    """An authority for a call: what is not named is not granted, but for the session's floor.

    Paths mean a file (as the object that it is when the grant is first used) or a directory with everything below it;
    relative ones are relative to the workspace. ``write`` and ``exec`` include reading. ``connect`` entries are
    ``HOST:PORT[/tcp|udp]``; ``env`` is a list of the session's variables, or maps names to values that the session has;
    ``limits`` maps names (``memory``, ``pids``, ``cpu-time``, ``time``, ``files``, ``file-size``) to quantities such as
    ``"2GiB"``. ``expires``: seconds, or a duration such as ``"10m"``, from the first use; ``uses``: how many calls it is
    good for.

    Raises:
        GrantError: what would be malformed in any session (a session adds what is wrong in that one).
    """

    options: tuple[tuple[str, str], ...]
    """The same as command line options, in their order."""
    expires: float | None
    uses: int | None
    purpose: str
    task: str
    principal: str
    base: str
    """What relative paths are relative to; "" for the workspace."""
    proofs: tuple[Chain, ...]
    """The grant files that it comes from: each call counts one use of every grant in them."""
    given: Authority | None = field(compare=False, repr=False)
    """What the options came to where they were read already."""
    _identity: Identity = field(compare=False, repr=False)

    def __init__(
        self,
        *,
        read: Iterable[StrPath] = (),
        write: Iterable[StrPath] = (),
        exec: Iterable[StrPath] = (),
        deny: Iterable[StrPath] = (),
        protect: Iterable[StrPath] = (),
        connect: Iterable[str] = (),
        listen: Iterable[int] = (),
        unix: Iterable[StrPath] = (),
        env: Iterable[str] | Mapping[str, str] = (),
        limits: Mapping[str, str | int] | None = None,
        allow_syscalls: Iterable[str] = (),
        expires: float | str | None = None,
        uses: int | None = None,
        purpose: str = "",
        task: str = "",
        principal: str = "call",
    ) -> None:
        options = [
            (name, value)
            for name, values in (
                ("read", keywords.paths(read, f"{WHERE}.read")),
                ("write", keywords.paths(write, f"{WHERE}.write")),
                ("exec", keywords.paths(exec, f"{WHERE}.exec")),
                ("deny", keywords.paths(deny, f"{WHERE}.deny")),
                ("protect", keywords.paths(protect, f"{WHERE}.protect")),
                ("connect", keywords.words(connect, f"{WHERE}.connect")),
                ("listen", keywords.ports(listen, f"{WHERE}.listen")),
                ("unix", keywords.paths(unix, f"{WHERE}.unix")),
                ("env", keywords.variables(env, f"{WHERE}.env")),
                ("limit", keywords.limits(limits, f"{WHERE}.limits")),
                ("allow-syscalls", keywords.words(allow_syscalls, f"{WHERE}.allow_syscalls")),
            )
            for value in values
        ]
        # Not a NaN or a half either: whatever is compared with those, the answer is a wrong one.
        if uses is not None and (type(uses) is not int or uses < 1):
            raise GrantError(
                f"uses {uses!r} is no whole number from 1 up", where=WHERE, hint="leave it out for any number"
            )
        expires = keywords.seconds(expires, f"{WHERE}.expires")
        for text, name in ((purpose, "purpose"), (task, "task"), (principal, "principal")):
            codec.a_string(text, f"{WHERE}.{name}")
        for name, value in (
            ("options", tuple(options)),
            ("expires", expires),
            ("uses", uses),
            ("purpose", purpose),
            ("task", task),
            ("principal", principal),
            ("base", ""),
            ("proofs", ()),
            ("given", None),
            ("_identity", Identity()),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_options(cls, options: tuple[tuple[str, str], ...], cwd: str, session: str = "") -> Grant:
        """From command line options, whose paths are relative to ``cwd``, for use in ``session``.

        Raises:
            RemitError: everything that is wrong with them; exit status 2.
        """
        made, errors = granted(options, cwd, session=session)
        if errors:
            raise errors[0] if len(errors) == 1 else Several(errors)
        grant = cls(expires=made.expires / 1000 if made.expires else None, purpose=made.purpose)
        object.__setattr__(grant, "options", options)
        object.__setattr__(grant, "base", cwd)
        object.__setattr__(grant, "proofs", made.chains)
        object.__setattr__(grant, "given", made.authority)
        return grant

    @property
    def identity(self) -> Identity:
        """The same for this object only: uses and expiry are counted for it, not for an equal one."""
        return self._identity

    @property
    def meant(self) -> object:
        """Equal for grants of the same authority, whatever else they say of whom it is for, and for how long."""
        return (self.options, self.base, None if self.given is None else _Same(self.given))

    def authority(self, workspace: str) -> Authority:
        """What it denotes in ``workspace``, in normal form. Raises GrantError with everything that is malformed."""
        if self.given is not None:
            return normal(self.given)
        made, errors = granted(self.options, workspace)
        if errors:
            raise _grant_error(errors)
        return normal(made.authority)


def _grant_error(errors: list[RemitError]) -> GrantError:
    text = "; ".join(str(error).removeprefix("--") for error in errors)
    hint = next((error.hint for error in errors if error.hint), "")
    return GrantError(text, where=WHERE, hint=hint)
