"""From a request (options and a profile's name) to a compiled plan: the slow path, each step once and in one order.

profile -> expand -> join with the options -> resolve -> compile. Every error that can be found is found before the first
is raised: a mistyped option does not hide a broken profile.

``prepare`` is what a start needs (plain values, fit for the cache, and the files they depend on); ``assemble`` is the
same with everything it was made from, for ``explain`` and ``doctor``.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from remit.profiles import find, load
from remit.profiles.expand import Context, Expanded, expand
from remit.profiles.suggest import NAME as SUGGESTION
from remit.profiles.suggest import Suggestion, read_suggestion
from remit.sandbox.authority import codec
from remit.sandbox.authority.errors import RemitError, UsageError
from remit.sandbox.authority.grant import Grant
from remit.sandbox.authority.lattice import join, normal
from remit.sandbox.authority.model import Authority, Endpoint, PathPattern
from remit.sandbox.authority.proof import dump
from remit.sandbox.authority.web import WebRules
from remit.sandbox.compile.call import Ceiling
from remit.sandbox.compile.compiler import compile_session
from remit.sandbox.compile.plan import Environment, Web
from remit.sandbox.compile.web import BUNDLE, LISTS
from remit.sandbox.kernel.probe import APPARMOR_RESTRICTION, DEBIAN_USERNS, USERNS_MAXIMUM, probe
from remit.sandbox.resolve import search
from remit.sandbox.resolve.binding import Kind
from remit.sandbox.resolve.names import resolve
from remit.sandbox.resolve.toolchains import toolchains
from remit.sandbox.session import place
from remit.sandbox.session.chained import check_objects
from remit.sandbox.session.errors import Several
from remit.sandbox.session.granted import Granted, granted
from remit.sandbox.session.oneshot import Prepared

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remit.profiles.model import Profile
    from remit.sandbox.authority.proof import Chain
    from remit.sandbox.authority.web import Credential, HttpRule
    from remit.sandbox.compile.plan import Lowering, Op, Plan
    from remit.sandbox.kernel.facts import HostFacts
    from remit.sandbox.resolve.binding import Named

DEFAULT_PROFILE = "coding"

_SWITCHES = (APPARMOR_RESTRICTION, DEBIAN_USERNS, USERNS_MAXIMUM)


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
    warnings: tuple[str, ...]
    looked_at: tuple[str, ...] = ()
    """Files outside the profile that its placeholders were looked up in, there or not."""

    @property
    def rules(self) -> WebRules:
        """The profile's HTTP rules and credentials: no option adds to them."""
        return WebRules(self.expanded.http, self.expanded.credentials)

    @property
    def authority(self) -> Authority:
        """What the session is granted: floor, profile and options together; every deny and protect accumulates."""
        return join(join(self.expanded.floor, self.expanded.authority), self.explicit)

    @property
    def explicit(self) -> Authority:
        """What the options grant. A grant that ends is a limit on time: the command ends with it (exit status 124)."""
        own, expires = self.options.authority, self.options.expires
        if not expires:
            return own
        limits = dict(join(self.expanded.authority, own).limits)
        time_limit = min(limits.get("time", expires), expires)
        return normal(replace(own, limits=(*[one for one in own.limits if one[0] != "time"], ("time", time_limit))))

    @property
    def degrade(self) -> tuple[str, ...]:
        """Every layer that may be given up: the profile's words and the options'."""
        return tuple(sorted({*self.expanded.degrade, *self.options.degrade}))


@dataclass(frozen=True, slots=True)
class Assembled:
    """A request as a compiled plan, with everything it was made from.

    ``directory`` is where the command starts. ``names`` is the binding, good for this start only. ``notes`` are for
    people who ask, ``warnings`` for whoever starts the session. ``inputs`` are the files and directories that the plan
    depends on, and those that would make it another one if they appeared; none where it is good for this start only.
    ``chains`` are the signed grants in it, whose uses a start has still to take.
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
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    inputs: tuple[str, ...]
    chains: tuple[Chain, ...]
    ceiling: Ceiling
    http: tuple[HttpRule, ...] = ()
    credentials: tuple[Credential, ...] = ()
    """Those whose secrets a start has to get: none where the plan has nobody to put them in."""


def ask(request: Request, environ: Mapping[str, str], cwd: str) -> Asked:
    """Find the profile, parse the options, look at the places. ``cwd`` is the current directory without symbolic links, or empty.

    Raises:
        Several: two errors or more; RemitError: one. All have exit status 2.
    """
    options, errors = granted(request.grants, cwd, environ=environ)
    workspace = directory = ""
    profile: Profile | None = None
    suggestion: Suggestion | None = None
    warnings: list[str] = []
    caller_home = place.home_directory(environ)
    try:
        workspace = place.directory(request.workspace, "--workspace", cwd)
    except RemitError as error:
        errors.append(error)
    try:
        directory = place.directory(request.chdir, "--chdir", cwd) if request.chdir else workspace
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
            warnings.append(f"a suggestion in the workspace cannot be used: {error}")
    if suggestion is not None and profile is not None:
        try:
            if request.accept_suggestion:
                profile = load.accept(profile, suggestion, environ=environ, home=caller_home)
            else:
                warnings.append(
                    f"{suggestion.text.file} suggests grants; not applied (see it, then --accept-suggestion)"
                )
        except RemitError as error:
            errors.append(error)
    if errors:
        try:
            resolve(Authority(paths=options.authority.paths), uid=os.geteuid())
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
    authority, looked_at, notes = _with_indexes(expanded, environ, caller_home, workspace)
    authority = _with_credentials(authority, expanded, caller_home)
    expanded = replace(expanded, authority=authority, notes=(*expanded.notes, *notes))
    return Asked(
        profile=profile,
        expanded=expanded,
        options=options,
        suggestion=suggestion,
        workspace=workspace,
        directory=directory,
        home=home,
        uid=uid,
        warnings=tuple(warnings),
        looked_at=looked_at,
    )


def _with_indexes(
    expanded: Expanded, environ: Mapping[str, str], home: str, workspace: str
) -> tuple[Authority, tuple[str, ...], tuple[str, ...]]:
    """The authority with what each ``{package_index}`` entry means now; the files that said so; notes for people."""
    if not expanded.package_index:
        return expanded.authority, (), ()
    from remit.sandbox.resolve import indexes

    wanted = [str(entry.value)[1:-1].partition(":")[2] for entry in expanded.package_index]
    tools = indexes.TOOLS if "" in wanted else tuple(dict.fromkeys(wanted))
    made = indexes.indexes(environ, home, workspace, tools)
    endpoints: list[Endpoint] = []
    notes = list(made.notes)
    for tool, entry in zip(wanted, expanded.package_index, strict=True):
        for name, endpoint, where in made.endpoints(tool):
            endpoints.append(replace(endpoint, source=entry.source))
            notes.append(f"{entry.value} is {endpoint} for {name} (from {where})")
    own = expanded.authority.environment
    said = {name for name, _ in (*own, *expanded.floor.environment)}
    told = tuple((name, value) for name, value in sorted(made.variables.items()) if name not in said)
    connect = (*expanded.authority.connect, *endpoints)
    authority = replace(expanded.authority, connect=connect, environment=(*own, *told))
    return authority, tuple(made.inputs), tuple(dict.fromkeys(notes))


def _with_credentials(authority: Authority, expanded: Expanded, home: str) -> Authority:
    """The authority with the variables that hold placeholders, and without the files that hold secrets."""
    said = {name for name, _ in (*authority.environment, *expanded.floor.environment)}
    rules = WebRules(expanded.http, expanded.credentials)
    told = tuple((name, None) for name in sorted(rules.variables - said))
    files: list[PathPattern] = []
    for one in expanded.credentials:
        if one.origin == "file":
            anchor, _, name = one.path(home).rpartition("/")
            files.append(PathPattern(anchor or "/", (name,), False, one.source))
    return replace(
        authority, environment=(*authority.environment, *told), deny=(*authority.deny, *dict.fromkeys(files))
    )


def assemble(
    request: Request, environ: Mapping[str, str] | None = None, *, facts: HostFacts | None = None
) -> Assembled:
    """The compiled plan of ``request``. ``environ`` defaults to the process's, ``facts`` to a probe of this host.

    Raises:
        RemitError: bad options or profile, a granted path that is not there (exit status 2), Unenforceable (125).
    """
    environ = os.environ if environ is None else environ
    asked = ask(request, environ, place.current_directory())
    facts = probe() if facts is None else facts
    authority, explicit = asked.authority, asked.explicit
    secret = place.own_directories(environ, place.home_directory(environ))
    code = place.own_code()
    rules = asked.rules
    places = (asked.workspace, asked.home, asked.directory, *secret, *code, *(LISTS if rules else ()))
    also = tuple(dict.fromkeys(path for path in places if path))
    names = resolve(authority, uid=asked.uid, also=also)
    _check_sockets(explicit, names)
    for chain in asked.options.chains:
        check_objects(chain, names, uid=asked.uid)
    matches = search.matches(authority, asked.expanded.floor, names, uid=asked.uid)
    compiled = compile_session(
        authority,
        asked.expanded.floor,
        names,
        facts,
        workspace=asked.workspace,
        home=asked.home,
        degrade=asked.degrade,
        degrade_asked=asked.options.degrade,
        explicit=explicit,
        deny_paths_of_remit=secret,
        own_code=code,
        matches=matches,
        audit=asked.expanded.audit,
        audit_on_full=asked.expanded.audit_on_full,
        rules=rules,
    )
    read = any(isinstance(operation, Web) for operation in compiled.plan.operations)
    now = time.time()
    grant = Grant(
        authority=authority,
        grantor=f"uid:{os.geteuid()}",
        principal="session",
        purpose=asked.options.purpose,
        not_before=now,
        expires=now + asked.options.expires / 1000 if asked.options.expires else None,
    )
    return Assembled(
        plan=compiled.plan,
        lowering=compiled.lowering,
        grant=grant,
        profile=asked.profile,
        facts=facts,
        names=names,
        workspace=asked.workspace,
        directory=asked.directory,
        audit=asked.expanded.audit,
        audit_on_full=asked.expanded.audit_on_full,
        warnings=asked.warnings,
        notes=asked.expanded.notes,
        inputs=_inputs(asked, environ),
        chains=asked.options.chains,
        http=rules.http if read else (),
        credentials=rules.credentials if read else (),
        ceiling=Ceiling(
            authority=authority,
            floor=asked.expanded.floor,
            names=names,
            facts=facts,
            workspace=asked.workspace,
            home=asked.home,
            directory=asked.directory,
            degrade=asked.degrade,
            secret=secret,
            own_code=code,
            matches=matches,
            audit=asked.expanded.audit,
            audit_on_full=asked.expanded.audit_on_full,
            freeze=asked.expanded.on_expiry == "freeze",
            certificates=BUNDLE if read else "",
            placeholders=tuple(sorted(rules.variables)) if read else (),
            withheld=tuple(sorted(rules.variables | rules.secret_variables)),
        ),
    )


def _check_sockets(explicit: Authority, names: Mapping[str, Named]) -> None:
    """What an option names has to be there, a socket as a file: a UsageError, as for ``--read``."""
    errors: list[RemitError] = []
    for path in explicit.unix:
        if names[path].kind is not Kind.SOCKET:
            why = "no such socket now" if names[path].kind is Kind.ABSENT else "not a socket"
            hint = "start its server first, and name the socket itself"
            errors.append(UsageError(f"unix {path}: {why}", hint=hint))
    if errors:
        raise errors[0] if len(errors) == 1 else Several(errors)


def prepare(request: Request) -> tuple[Prepared, tuple[str, ...]]:
    """What a start needs, as plain values, with the paths that they depend on. Raises RemitError, as ``assemble``."""
    assembled = assemble(request)
    claims = tuple(claim.plain() for chain in assembled.chains for claim in chain.claims)
    freeze = assembled.ceiling.freeze
    prepared = Prepared(assembled.plan.wire(), assembled.warnings, claims, freeze, json.dumps(describe(assembled)))
    if assembled.credentials:
        from remit.sandbox.session.secrets import Secrets

        prepared.secrets = Secrets(assembled.credentials, os.environ)
    return prepared, assembled.inputs


def describe(assembled: Assembled) -> dict[str, object]:
    """The plan for the record, and what it was made from. No id and no time: the record's own are those of a start."""
    plan = assembled.plan
    operations = [_recorded(operation) for operation in plan.operations]
    floor = codec.recorded(assembled.ceiling.floor)
    return {
        "schema": "remit.plan/1",
        **_about(assembled),
        "floor": floor,
        "plan": {**plan.json(), "operations": operations},
    }


def _recorded(operation: Op) -> dict[str, object]:
    made = operation.json()
    if isinstance(operation, Environment):
        made["set"] = [[name, codec.NOT_RECORDED] for name, _ in operation.set_]
    return made


def _about(assembled: Assembled) -> dict[str, object]:
    grant, profile = assembled.grant, assembled.profile
    return {
        "profile": {"name": profile.name, "file": profile.file, "files": dict(profile.files)},
        "grant": {
            "grantor": grant.grantor,
            "principal": grant.principal,
            "purpose": grant.purpose,
            "authority": codec.recorded(grant.authority),
            "authority_digest": codec.digest(grant.authority),
        },
        "proofs": [json.loads(dump(chain)) for chain in assembled.chains],
        "lowering": assembled.lowering.json(),
        "audit": assembled.audit,
        "audit_on_full": assembled.audit_on_full,
    }


def _inputs(asked: Asked, environ: Mapping[str, str]) -> tuple[str, ...]:
    chains = asked.options.chains
    if any(chain.expires is not None for chain in chains):
        return ()  # what a grant that ends leaves of its time differs at every start
    if asked.expanded.credentials:
        return ()  # a plan does not say how to get a secret: a command line can be one
    places = find.places(environ, place.home_directory(environ))
    return tuple(
        dict.fromkeys(
            (
                *(path for path, _ in asked.profile.files),
                *(one.directory for one in places),
                os.path.join(asked.workspace, SUGGESTION),
                *(path for path in environ.get("PATH", "").split(":") if path.startswith("/")),
                *asked.looked_at,
                *_SWITCHES,
                *asked.options.files,
                *_proof_inputs(asked, environ),
            )
        )
    )


def _proof_inputs(asked: Asked, environ: Mapping[str, str]) -> tuple[str, ...]:
    """What the verdict on a grant file depends on, but for the ledger, which every start asks again."""
    if not asked.options.chains:
        return ()
    from remit.sandbox.session import keys

    return keys.inputs(environ, place.home_directory(environ))
