"""Opening a session: from a request to a running first process, with everything that its calls will be measured against."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from remit.sandbox.audit.record import keep_plan, state_directory
from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.session import place
from remit.sandbox.session.assemble import Assembled, assemble, describe
from remit.sandbox.session.core import Core
from remit.sandbox.session.grantfile import plain
from remit.sandbox.session.ledger import Ledger
from remit.sandbox.session.secrets import Secrets
from remit.sandbox.session.shared import Shared

if TYPE_CHECKING:
    import socket

    from remit.sandbox.authority.grant import Grant
    from remit.sandbox.session.link import Link


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request for a session (``assemble.Request``)."""

    profile: str = ""
    workspace: str = ""
    chdir: str = ""
    grants: tuple[tuple[str, str], ...] = ()
    accept_suggestion: bool = False
    command: tuple[str, ...] = ()


def open_session(
    link: Link, wanted: Wanted, environ: Mapping[str, str]
) -> tuple[Core, dict[str, str], socket.socket, tuple[str, ...]]:
    """A new session through ``link``: its core, what its start proved, the socket to its first process, warnings.

    Raises RemitError: bad options or profile, Unenforceable, LaunchError.
    """
    state = state_directory(dict(os.environb))
    place.make_own_directories(environ)
    assembled = assemble(wanted, environ)
    plan = assembled.plan
    try:
        keep_plan(state, plan.digest, json.dumps(describe(assembled)))
    except OSError as error:
        raise LaunchError(
            f"the session's record cannot be written: {error.strerror}",
            where=state,
            hint="a session without a record is not started: make the directory writable, or set XDG_STATE_HOME",
        ) from None
    about: dict[str, object] = {
        "workspace": plan.workspace,
        "degraded": list(plan.degraded),
        "grant": assembled.grant.id,
    }
    claims = [claim for chain in assembled.chains for claim in plain(chain)]
    if claims:
        about["grants"] = [claim[0] for claim in claims]
    wire = plan.wire()
    secrets = Secrets(assembled.credentials, environ) if assembled.credentials else None
    file = secrets.file() if secrets is not None else -1
    try:
        session, enforcement, door = link.open((*wire[:4], (), wire[5]), about, state, file)
    finally:
        if file >= 0:
            os.close(file)
    if claims:
        try:
            Ledger(state).spend(claims, session)  # before the first call: nothing has run yet
        except BaseException:
            try:
                link.stop(session)
            finally:
                door.close()
            raise
    placeholders = secrets.placeholders if secrets is not None else {}
    return core_of(assembled, session, environ, placeholders), enforcement, door, assembled.warnings


def core_of(assembled: Assembled, session: str, environ: Mapping[str, str], placeholders: Mapping[str, str]) -> Core:
    """What a session's calls are decided by."""
    grant: Grant = replace(assembled.grant, session=session)
    shared = Shared(session, dict(placeholders))
    bytes_environ = {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}
    held = tuple([id for chain in assembled.chains for id in chain.ids])
    return Core(assembled.ceiling, grant, shared, bytes_environ, uid=place.identity(assembled.workspace), chain=held)


def options(values: Mapping[str, Iterable[str]]) -> tuple[tuple[str, str], ...]:
    """Grant options from keyword arguments: the names are those of the command line, in that order."""
    return tuple((name, value) for name, every in values.items() for value in every)
