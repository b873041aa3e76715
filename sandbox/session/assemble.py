"""From a request (options and a profile's name) to a compiled plan: the slow path, each step once and in one order.

profile -> expand -> join with the options -> resolve -> compile. Every error that can be found is found before the first
is raised: a mistyped option does not hide a broken profile.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from remit.profiles import load
from remit.profiles.expand import Context, Expanded, expand
from remit.profiles.suggest import Suggestion, read_suggestion
from remit.sandbox.authority.errors import RemitError
from remit.sandbox.authority.grant import Grant
from remit.sandbox.authority.lattice import join
from remit.sandbox.authority.model import Authority
from remit.sandbox.resolve.toolchains import toolchains
from remit.sandbox.session import place
from remit.sandbox.session.errors import Several
from remit.sandbox.session.granted import Granted, granted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remit.profiles.model import Profile
    from remit.sandbox.compile.plan import Lowering, Plan
    from remit.sandbox.kernel.facts import HostFacts
    from remit.sandbox.resolve.binding import Named

DEFAULT_PROFILE = "coding"


class Request(Protocol):
    """What a session is asked to be: the command line's ``Invocation`` has this form."""

    @property
    def command(self) -> tuple[str, ...]: ...
    @property
    def profile(self) -> str: ...
    @property
    def workspace(self) -> str: ...
    @property
    def chdir(self) -> str: ...
    @property
    def grants(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def accept_suggestion(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with its profile found and its options parsed; nothing of it has been resolved."""

    profile: Profile
    expanded: Expanded
    options: Granted
    suggestion: Suggestion | None
    workspace: str
    directory: str
    home: str
    uid: int
    notes: tuple[str, ...]

    @property
    def authority(self) -> Authority:
        """What the session is granted: floor, profile and options together; every deny and protect accumulates."""
        return join(join(self.expanded.floor, self.expanded.authority), self.options.authority)

    @property
    def degrade(self) -> tuple[str, ...]:
        """Every layer that may be given up: the profile's words and the options'."""
        return tuple(sorted({*self.expanded.degrade, *self.options.degrade}))


@dataclass(frozen=True, slots=True)
class Assembled:
    """A request as a compiled plan, with everything it was made from.

    ``directory`` is where the command starts. ``names`` is the binding, good for this start only; ``files`` are the
    profile's files and their digests, which a cache has to compare. ``notes`` are for people.
    """

    plan: Plan
    lowering: Lowering
    grant: Grant
    profile: Profile
    facts: HostFacts
    names: Mapping[str, Named]
    workspace: str
    directory: str
    audit: str
    audit_on_full: str
    suggestion: Suggestion | None
    files: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def ask(request: Request, environ: Mapping[str, str], cwd: str) -> Asked:
    """Find the profile, parse the options, look at the places. ``cwd`` is the current directory without symbolic links.

    Raises:
        Several: two errors or more; RemitError: one. All have exit status 2.
    """
    options, errors = granted(request.grants, cwd)
    workspace = directory = ""
    profile: Profile | None = None
    suggestion: Suggestion | None = None
    notes: list[str] = []
    caller_home = place.home_directory(environ)
    try:
        workspace = place.directory(os.path.join(cwd, request.workspace), "--workspace")
    except RemitError as error:
        errors.append(error)
    try:
        directory = place.directory(os.path.join(cwd, request.chdir), "--chdir") if request.chdir else workspace
    except RemitError as error:
        errors.append(error)
    try:
        profile = load.load(request.profile or DEFAULT_PROFILE, environ=environ, home=caller_home)
    except RemitError as error:
        errors.append(error)
    if workspace:
        try:
            suggestion = read_suggestion(workspace)
        except RemitError as error:
            if request.accept_suggestion:
                errors.append(error)
            notes.append(f"a suggestion in the workspace cannot be used: {error}")
    if suggestion is not None and profile is not None:
        try:
            if request.accept_suggestion:
                profile = load.accept(profile, suggestion, environ=environ, home=caller_home)
            else:
                notes.append(f"{suggestion.text.file} suggests grants; not applied (--accept-suggestion applies them)")
        except RemitError as error:
            errors.append(error)
    if errors or profile is None:
        raise errors[0] if len(errors) == 1 else Several(errors)
    uid = place.identity(workspace)
    home = caller_home if uid == os.geteuid() else place.home_of(uid)
    context = Context(
        workspace=workspace,
        home=home,
        runtime=place.runtime_directory(environ),
        toolchains=toolchains(environ.get("PATH", ""), home or "/nonexistent"),
    )
    expanded = expand(profile, context)
    return Asked(
        profile=profile,
        expanded=expanded,
        options=options,
        suggestion=suggestion,
        workspace=workspace,
        directory=directory,
        home=home,
        uid=uid,
        notes=(*notes, *expanded.notes),
    )
