"""``remit grant``: make, show, verify and revoke grants in files."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from remit.cli import options, render
from remit.cli.command import HELP_NAMES, OptionCommand, invocation
from remit.sandbox.authority import proof
from remit.sandbox.authority.errors import RemitError, UsageError
from remit.sandbox.authority.grant import Grant
from remit.sandbox.authority.lattice import join, normal
from remit.sandbox.authority.model import AutoExec
from remit.sandbox.authority.parse import ParseError
from remit.sandbox.session import grantfile, keys, place
from remit.sandbox.session.chained import check_objects
from remit.sandbox.session.errors import Several
from remit.sandbox.session.granted import absolute, granted
from remit.sandbox.session.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remit.sandbox.authority.model import Authority
    from remit.sandbox.authority.proof import Chain, Signed

FILE_MODE = 0o600
ID_DIGITS = 32
MOST_USES = (1 << 53) - 1
NO_UID = (1 << 32) - 1
"""What ``chown(2)`` takes for nobody."""

as_json_option = click.option("--json", "as_json", is_flag=True, help=options.JSON.help)
file_argument = click.argument("file", type=click.Path())


@click.group("grant", context_settings={"help_option_names": list(HELP_NAMES)}, no_args_is_help=False)
def command() -> None:
    """Make, show, verify and revoke signed grants in files."""


# --- new -----------------------------------------------------------------------------------------------------------------


def _new(**values: Any) -> int:
    asked = _Asked(values, time.time())
    made = asked.grant()
    own = keys.own(os.environ, _home())
    chain = own.add(made, asked.parent)
    proof.verify(chain, _trusting(own.public), at=made.not_before or asked.now)
    check_objects(chain, {}, uid=os.geteuid())
    path = _write(asked.output, proof.dump(chain))
    if values["json"]:
        render.document("grant-new", {"path": path, **_link(chain.links[-1])})
    else:
        render.text(f"{path}: grant {made.id}")
    return 0


class _Asked:
    """What the options of ``grant new`` ask for. The constructor raises every error in them at once."""

    def __init__(self, values: dict[str, Any], now: float) -> None:
        self.now = round(now, 3)
        self.values = values
        self.errors: list[RemitError] = []
        self.parent: Chain | None = None
        self.output = values["output"] or ""
        if not self.output:
            self.errors.append(UsageError("the file to write is missing", where="--output", hint="-o FILE"))
        self.uses = self._uses(values["uses"] or "")
        self.not_before = self._not_before(values["not_before"] or "")
        self._check_principal(values["principal"] or "")
        self.authority, self.purpose, self.expires = self._authority()
        if values["from"]:
            self._from(values["from"])
        if self.errors:
            raise self.errors[0] if len(self.errors) == 1 else Several(self.errors)

    def _uses(self, text: str) -> int | None:
        if not text:
            return None
        if text.isascii() and text.isdigit() and len(text) < 17 and 1 <= int(text) <= MOST_USES:
            return int(text)
        self.errors.append(
            UsageError(f"{text!r} is not a number of uses", where="--uses", hint="a whole number from 1")
        )
        return None

    def _check_principal(self, text: str) -> None:
        """Nobody could ever prove to be ``uid:x``."""
        kind, colon, who = text.partition(":")
        if colon and kind == "uid" and not (who.isascii() and who.isdigit() and len(who) <= 10 and int(who) < NO_UID):
            self.errors.append(UsageError(f"{text!r} is no user", where="--principal", hint=f"uid:{os.geteuid()}"))
        elif colon and kind == "key" and not keys.is_public(who):
            self.errors.append(
                UsageError(f"{text!r} is no key", where="--principal", hint="key: and its 64 hexadecimal digits")
            )

    def _not_before(self, text: str) -> float | None:
        try:
            return moment(text) if text else None
        except ValueError as error:
            self.errors.append(UsageError(str(error), where="--not-before", hint="such as 2030-01-31T12:00Z"))
            return None

    def _authority(self) -> tuple[Authority, str, float | None]:
        asked = invocation("grant new", self.values)
        found, errors = granted(asked.grants, place.current_directory())
        self.errors += errors
        authority = found.authority
        if asked.profile and not errors:
            from remit.sandbox.session.assemble import ask

            try:
                authority = join(ask(asked, os.environ, place.current_directory()).expanded.authority, authority)
            except RemitError as error:
                self.errors.append(error)
        expires = (self.not_before or self.now) + found.expires / 1000 if found.expires else None
        return authority, found.purpose, expires

    def _from(self, file: str) -> None:
        try:
            path = absolute(file, place.current_directory())
            self.parent = grantfile.read(path)
            proof.verify(self.parent, _trusting(*_known()), at=self.not_before or self._start(), where=path)
        except ParseError as error:
            self.errors.append(UsageError(error.message, where="--from", hint=error.hint))
        except RemitError as error:
            self.errors.append(error)

    def _start(self) -> float:
        """When it begins if nothing else is said: now, or with the grant that it is taken from."""
        begins = self.parent.leaf.not_before if self.parent is not None else None
        return self.now if begins is None else max(begins, self.now)

    def grant(self) -> Grant:
        """The grant. Raises GrantError: it is wider than the one it is taken from, or its period is empty."""
        values = self.values
        begins = self._start() if self.not_before is None else self.not_before
        if self.parent is None:
            return Grant(
                authority=normal(self.authority),
                grantor=f"uid:{os.geteuid()}",
                principal=values["principal"] or f"uid:{os.geteuid()}",
                task=values["task"] or "",
                purpose=self.purpose,
                not_before=begins,
                expires=self.expires,
                uses=self.uses,
                session=values["session"] or "",
            )
        above = self.parent.leaf
        # No option takes these away: not to speak of them is to leave them as they are.
        limits = dict(above.authority.limits) | dict(self.authority.limits)
        authority = replace(
            self.authority,
            limits=tuple(limits.items()),
            loopback=self.authority.loopback and above.authority.loopback,
        )
        return above.narrow(
            authority,
            principal=values["principal"] or None,
            task=values["task"] or None,
            purpose=self.purpose or None,
            not_before=begins,
            expires=self.expires,
            uses=self.uses,
            session=values["session"] or None,
        )


def _write(file: str, data: bytes) -> str:
    try:
        path = absolute(file, place.current_directory())
    except ParseError as error:
        raise UsageError(error.message, where="--output", hint=error.hint) from None
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        opened = os.open(path, flags, FILE_MODE)
        with os.fdopen(opened, "wb") as made:
            made.write(data)
    except FileExistsError:
        raise UsageError("it is there already, and is not overwritten", where=path, hint="choose a new name") from None
    except OSError as error:
        raise UsageError(error.strerror or "cannot be written", where=path) from None
    return path


command.add_command(
    OptionCommand(
        "grant new",
        _new,
        [],
        help="""Make a grant and sign it with your key: what the options say, out of the grant in --from if there is one.

        It is written to a file that can be given away. Whoever trusts your key can use it: remit run --grant FILE.
        """,
    )
)


# --- show, verify, revoke ------------------------------------------------------------------------------------------------


@command.command("show")
@file_argument
@as_json_option
def show(file: str, as_json: bool) -> int:
    """Print every grant in FILE, the root first. Checks the form only: see verify."""
    chain = grantfile.read(_path(file))
    if as_json:
        render.document("grant-show", {"links": [_link(one) for one in chain.links]})
        return 0
    for number, one in enumerate(chain.links):
        if number:
            render.text()
        render.heading(f"grant {one.grant.id}" + (" (root)" if number == 0 else f", out of {one.grant.parent}"))
        render.listing(f"{name} {value}" for name, value in _about(one) if value)
        rows = list(_rows(one.grant.authority))
        if rows:
            render.table(("right", "object"), rows)
    return 0


@command.command("verify")
@file_argument
@click.option(
    "--at", metavar="TIME", help="Whether it held at TIME: 2030-01-31T12:00Z, or Unix seconds.  [default: now]"
)
@click.option("--session", metavar="ID", help="Whether it is of use in session ID.")
@click.option("--key", metavar="PUB", help="Believe this key only: a .pub file, or 64 hexadecimal digits.")
@as_json_option
def verify(file: str, at: str | None, session: str | None, key: str | None, as_json: bool) -> int:
    """Verify every link of the grant in FILE, offline: signatures, narrowing, period. Exit 0, 1 if it does not hold.

    Also whether this user's ledger has it revoked, and, unless --at asks about another time, spent. Grants are compared by
    their names: what those lead to on a host (a symbolic link may have been put there since) is looked at where it is used.
    """
    try:
        moment_asked = time.time() if at is None else moment(at)
    except ValueError as error:
        raise UsageError(str(error), where="--at", hint="such as 2030-01-31T12:00Z") from None
    chain = grantfile.read(_path(file))
    known = _known() if key is None else (key if keys.is_public(key) else keys.read_public(_path(key)),)
    found = [
        *proof.problems(chain, _trusting(*known), at=moment_asked, session=session),
        *_ledger(chain, moment_asked, spent=at is None),
    ]
    if as_json:
        rows = [{"link": one.link, "id": one.id, "message": one.message, "hint": one.hint} for one in found]
        content = {"valid": not found, "at": moment_asked, "problems": rows}
        render.document("grant-verify", {**content, "links": [_link(one) for one in chain.links]})
    elif found:
        render.problems([*(f"error: {one}" for one in found), f"hint: {found[0].hint}"])
    else:
        leaf = chain.leaf
        render.text(f"{file}: grant {leaf.id} holds; given to {leaf.principal} by {leaf.grantor}")
        render.listing([f"signed by key {one.key}" for one in chain.links[:1]])
        if len(chain.links) > 1:
            render.text("compared by their names; what those lead to is looked at where the grant is used")
    return 1 if found else 0


def _ledger(chain: Chain, at: float, *, spent: bool) -> Iterator[proof.Broken]:
    ledger = Ledger(grantfile.state(os.environ, _home()))
    for number, one in enumerate(chain.links):
        id, uses = one.grant.id, one.grant.uses
        gone = ledger.revocation(id)
        if gone is not None and gone.time <= at:
            why = f": {gone.reason}" if gone.reason else ""
            yield proof.Broken(number, id, f"revoked at {shown(gone.time)}{why}", "ask the grantor for a new one")
        if spent and uses is not None and ledger.used(id) >= uses:
            yield proof.Broken(number, id, f"spent: all of {uses} uses were made", "ask the grantor for a new one")


@command.command("revoke")
@click.argument("grant", metavar="ID|FILE")
@click.option("--reason", metavar="TEXT", default="", help="Why; whoever tries to use it is told.")
@as_json_option
def revoke(grant: str, reason: str, as_json: bool) -> int:
    """Revoke a grant, by its id or its file, and with it every grant that was taken out of it.

    What runs under it ends or, where its profile says so, stands still; nothing starts under it any more. To revoke is
    always allowed, and never undone.
    """
    expires: float | None = None
    if len(grant) == ID_DIGITS and set(grant) <= set("0123456789abcdef") and not os.path.lexists(grant):
        id = grant
    else:
        leaf = grantfile.read(_path(grant)).leaf
        id, expires = leaf.id, leaf.expires
    Ledger(grantfile.state(os.environ, _home())).revoke(id, reason, expires=expires)
    if as_json:
        render.document("grant-revoke", {"id": id, "reason": reason})
    else:
        render.text(f"grant {id}: revoked")
    return 0


# --- common --------------------------------------------------------------------------------------------------------------


def moment(text: str) -> float:
    """A time as Unix seconds: those, or ISO 8601 with a zone. Raises ValueError with a sentence."""
    plain = text.removeprefix("-").replace(".", "", 1)
    if plain.isascii() and plain.isdigit() and len(plain) < 15:
        return float(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time") from None
    if found.tzinfo is None:
        raise ValueError(f"{text!r} has no zone: add Z for UTC, or +HH:MM")
    return found.timestamp()


def shown(seconds: float) -> str:
    """Unix seconds for people."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"{seconds} s"


def _home() -> str:
    return place.home_directory(os.environ)


def _path(file: str) -> str:
    try:
        return absolute(file, place.current_directory())
    except ParseError as error:
        raise UsageError(error.message, hint=error.hint) from None


def _known() -> tuple[str, ...]:
    return tuple(keys.trusted(os.environ, _home()).keys)


def _trusting(*known: str) -> keys.Trusted:
    return keys.Trusted(dict.fromkeys(known, ""))


def _link(link: Signed) -> dict[str, object]:
    return {"grant": link.grant.to_json(), "digest": link.grant.digest(), "key": link.key}


def _about(link: Signed) -> Iterator[tuple[str, str]]:
    grant = link.grant
    yield "from", grant.grantor
    yield "to", grant.principal
    yield "task", grant.task
    yield "purpose", grant.purpose
    yield "begins", "" if grant.not_before is None else shown(grant.not_before)
    yield "expires", "" if grant.expires is None else shown(grant.expires)
    yield "uses", "" if grant.uses is None else str(grant.uses)
    yield "session", grant.session
    yield "key", link.key


def _rows(authority: Authority) -> Iterator[tuple[str, str]]:
    for rule in authority.paths:
        yield ", ".join(sorted(rule.rights, key=("read", "write", "exec").index)), rule.path
    for name in ("deny", "protect", "connect"):
        for one in getattr(authority, name):
            yield name, str(one)
    for port in authority.listen:
        yield "listen", str(port)
    for path in authority.unix:
        yield "unix", path
    for name, value in authority.environment:
        yield "env", name if value is None else f"{name}={value}"
    for name, most in authority.limits:
        yield "limit", f"{name}={most}"
    for axis, key in (("allow-syscalls", "syscalls"), ("device", "devices"), ("opened", "opened")):
        for one in getattr(authority, key):
            yield axis, one
    if authority.auto_exec is AutoExec.ALLOW:
        yield "auto-exec", "allow"
    if not authority.loopback:
        yield "loopback", "closed"
