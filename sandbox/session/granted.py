"""Grant options as authority: what the person at the command line adds to, and takes from, the profile.

Options go through the same strict parsers as profiles. The one difference: paths may be relative to the current
directory, which the kernel reports without symbolic links, so leading ``..`` can be taken off it safely; any other
``..`` is refused as in a profile.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from remit.sandbox.authority import parse
from remit.sandbox.authority.errors import NOWHERE, RemitError, UsageError
from remit.sandbox.authority.lattice import join
from remit.sandbox.authority.model import DEGRADABLE, Authority, PathPattern, PathRule, Right, Source
from remit.sandbox.compile import catalogue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from remit.sandbox.authority.proof import Chain

COMMAND_LINE = "command line"

_RIGHTS = {
    "read": frozenset({Right.READ}),
    "write": frozenset({Right.READ, Right.WRITE}),
    "exec": frozenset({Right.READ, Right.EXEC}),
}


@dataclass(frozen=True, slots=True)
class Granted:
    """What the options come to. ``expires``: milliseconds from now, 0 for never.

    ``files``: grant files that were read, ``chains``: what was in them, verified; their uses are not counted yet.
    """

    authority: Authority
    degrade: tuple[str, ...]
    purpose: str
    expires: int
    files: tuple[str, ...]
    chains: tuple[Chain, ...]


def granted(
    options: tuple[tuple[str, str], ...],
    cwd: str,
    now: float | None = None,
    environ: Mapping[str, str] | None = None,
    session: str = "",
) -> tuple[Granted, list[RemitError]]:
    """The options' authority, and every error in them. ``cwd`` is absolute and has no symbolic link in it, or
    is empty where there is none any more (``place.current_directory``).

    ``now`` (Unix seconds, default: the wall clock) decides whether a grant file is in force; ``environ`` (default: the
    process's) says where the keys are that it must be signed with. ``session``: the one that a grant file is used in.
    """
    reader = _Reader(cwd, time.time() if now is None else now, os.environ if environ is None else environ, session)
    for name, value in options:
        reader.read(name, value)
    return reader.result(), reader.errors


def absolute(text: str, cwd: str) -> str:
    """A path from the command line as an absolute one. Raises ParseError.

    A leading ``~`` is an error: no shell expands ``--deny=~/.ssh``, and as a name in the current directory it would deny
    nothing that matters.
    """
    if not text:
        raise parse.ParseError("empty path", "write . for the whole directory")  # such as of a variable that is not set
    if text.startswith("~"):
        raise parse.ParseError(
            f"the shell did not expand ~ in {text!r}",
            f"write it as a word of its own, or in full; ./{text} is a name here",
        )
    if text.startswith("/"):
        return parse.parse_path(text)
    if not cwd:
        raise parse.ParseError(f"{NOWHERE}, and {text!r} is relative to it", "cd to one that does, or write it in full")
    here = cwd
    rest = text
    while True:
        head, _, tail = rest.partition("/")
        if head == "..":
            here = os.path.dirname(here)
        elif head not in ("", "."):
            break
        rest = tail
        if not rest:
            break
    return parse.parse_path(f"{here.rstrip('/')}/{rest}")


class _Reader:
    def __init__(self, cwd: str, now: float, environ: Mapping[str, str], session: str) -> None:
        self.cwd = cwd
        self.now = now
        self.environ = environ
        self.session = session
        self.errors: list[RemitError] = []
        self.paths: list[PathRule] = []
        self.deny: list[PathPattern] = []
        self.protect: list[PathPattern] = []
        self.authority = Authority()
        self.degrade: list[str] = []
        self.purpose = ""
        self.expires = 0
        self.files: list[str] = []
        self.chains: list[Chain] = []
        self.limits: tuple[tuple[str, int], ...] = ()
        """Those of the grant files."""

    def read(self, name: str, value: str) -> None:
        """One option. An error is kept, not raised."""
        source = Source(COMMAND_LINE, 0, f"--{name}")
        try:
            self._read(name, value, source)
        except parse.ParseError as error:
            self.errors.append(UsageError(error.message, where=f"--{name}", hint=error.hint))
        except RemitError as error:
            self.errors.append(error)

    def _read(self, name: str, value: str, source: Source) -> None:
        if name in _RIGHTS:
            self.paths.append(PathRule(absolute(value, self.cwd), _RIGHTS[name], False, source))
        elif name in ("deny", "protect"):
            (self.deny if name == "deny" else self.protect).append(self._pattern(value, source))
        elif name in _NAMES:
            self.authority = join(self.authority, _NAMES[name](value, source))
        elif name == "unix":
            self.authority = join(self.authority, Authority(unix=(absolute(value, self.cwd),)))
        elif name == "degrade":
            self.degrade.append(_layer(value))
        elif name == "purpose":
            self.purpose = value
        elif name == "expires":
            self.expires = parse.parse_duration(value)
        elif name == "grant":
            self._grant_file(value)
        else:
            raise UsageError(f"no such grant option: --{name}")

    def _pattern(self, value: str, source: Source) -> PathPattern:
        if value.startswith("**/"):
            return parse.parse_pattern(value, source)
        # The stars stay behind while the directory before them is made absolute.
        before, stars, after = value.partition("**/")
        if not stars:
            return parse.parse_pattern(absolute(value, self.cwd), source)
        return parse.parse_pattern(f"{absolute(before or '.', self.cwd)}/{stars}{after}", source)

    def _grant_file(self, value: str) -> None:
        """What a file proves to be granted, and to whom: somebody's whose key is trusted, to this user, for now."""
        from remit.sandbox.session.grantfile import (
            load_grant_file,  # with what it needs, dearer than all options together
        )

        path = absolute(value, self.cwd)
        if path in self.files:
            return  # said twice, it is one grant and one use
        chain = load_grant_file(path, self.environ, at=self.now, session=self.session)
        if chain.expires is not None:
            left = max(1, int((chain.expires - self.now) * 1000))
            self.expires = min(self.expires or left, left)
        # Of a limit, the least holds: nobody grants what another grant's limit takes.
        least = chain.leaf.authority.limits + self.limits
        self.limits = tuple((name, min(most for other, most in least if other == name)) for name in dict(least))
        self.authority = join(self.authority, replace(chain.leaf.authority, limits=()))
        self.purpose = self.purpose or chain.leaf.purpose
        self.files.append(path)
        self.chains.append(chain)

    def result(self) -> Granted:
        opened = tuple(rule.path for rule in self.paths if Right.WRITE in rule.rights and catalogue.opens(rule.path))
        own = Authority(paths=tuple(self.paths), deny=tuple(self.deny), protect=tuple(self.protect), opened=opened)
        given = dict(self.authority.limits)
        limits = {**given, **{name: min(most, given.get(name, most)) for name, most in self.limits}}
        return Granted(
            authority=replace(join(self.authority, own), limits=tuple(sorted(limits.items()))),
            degrade=tuple(dict.fromkeys(self.degrade)),
            purpose=self.purpose,
            expires=self.expires,
            files=tuple(self.files),
            chains=tuple(self.chains),
        )


def _connect(value: str, source: Source) -> Authority:
    return Authority(connect=(parse.parse_endpoint(value, source),))


def _listen(value: str, source: Source) -> Authority:
    return Authority(listen=(parse.parse_port(value),))


def _publish(value: str, source: Source) -> Authority:
    return Authority(publish=(parse.parse_publish(value),))


def _env(value: str, source: Source) -> Authority:
    name, equals, content = value.partition("=")
    if "\0" in content:
        raise parse.ParseError(f"a NUL in the value of {name}", "no program can have one")
    return Authority(environment=((parse.parse_env_name(name), content if equals else None),))


def _limit(value: str, source: Source) -> Authority:
    name, equals, quantity = value.partition("=")
    if not equals:
        raise parse.ParseError(f"{value!r} has no value", "write NAME=VALUE, such as memory=2GiB")
    return Authority(limits=((name, parse.parse_limit(name, quantity)),))


def _syscalls(value: str, source: Source) -> Authority:
    return Authority(syscalls=(parse.parse_group(value),))


_NAMES: dict[str, Callable[[str, Source], Authority]] = {
    "connect": _connect,
    "listen": _listen,
    "publish": _publish,
    "env": _env,
    "limit": _limit,
    "allow-syscalls": _syscalls,
}
"""Options whose values do not depend on the current directory."""


def _layer(value: str) -> str:
    if value not in DEGRADABLE:
        near = parse.nearest(value, DEGRADABLE)
        hint = f"did you mean {near}?" if near else f"one of: {', '.join(DEGRADABLE)}"
        raise parse.ParseError(f"unknown layer {value!r}", hint)
    return value
