"""``remit run``: one session for one command, from parsed options to an exit status.

This is the cold path. A start whose plan is in the cache imports nothing of the profiles, the compiler or their
libraries; ``tests/unit/test_cold_path.py`` says which modules it may import.
"""

from __future__ import annotations

import posix
import sys
import time

import remit
from remit.sandbox.audit.record import Record, home_directory, keep_plan, state_directory
from remit.sandbox.audit.text import dumps
from remit.sandbox.authority.errors import LaunchError, RemitError, UsageError, no_program
from remit.sandbox.kernel import files, landlock
from remit.sandbox.launch import assume, start
from remit.sandbox.session.cache import Cache, key
from remit.sandbox.session.status import Status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from remit.cli.options import Invocation
    from remit.sandbox.audit.record import Line
    from remit.sandbox.launch.assume import Check
    from remit.sandbox.launch.way import Events
    from remit.sandbox.launch.wire import Wire
    from remit.sandbox.session.ledger import Plain
    from remit.sandbox.session.secrets import Secrets

    Claims = tuple[Plain, ...]

TIME_LIMIT_STATUS = 124
MEMORY_LIMIT_STATUS = 137
NOT_FOUND_STATUS = 127
REVOKED_STATUS = 125
"""As whatever is not the command's own end and has no status of its own."""
_KEY_VARIABLES = (
    b"HOME",
    b"PATH",
    b"XDG_CONFIG_HOME",
    b"XDG_STATE_HOME",
    b"XDG_CACHE_HOME",
    b"XDG_RUNTIME_DIR",
    # What pip, npm and cargo are told by (``resolve.indexes.VARIABLES``).
    b"PIP_INDEX_URL",
    b"PIP_EXTRA_INDEX_URL",
    b"PIP_CONFIG_FILE",
    b"PIP_NO_INDEX",
    b"VIRTUAL_ENV",
    b"NPM_CONFIG_REGISTRY",
    b"NPM_CONFIG_USERCONFIG",
    b"NPM_CONFIG_GLOBALCONFIG",
    b"NPM_CONFIG_PREFIX",
    b"npm_config_registry",
    b"npm_config_userconfig",
    b"npm_config_globalconfig",
    b"npm_config_prefix",
    b"CARGO_HOME",
    b"XDG_CONFIG_DIRS",
)
_ROOMS = ("authority", "compile", "egress", "resolve", "session", "../profiles")


class Prepared:
    """A plan in its wire form, with what the user has to hear at each start.

    ``claims`` is what each start has to ask of the ledger for the grant files in it (``authority.proof.Claim.plain``);
    ``freeze``: when one of them is revoked, the command is stopped where it stands rather than ended. ``assumed`` is what
    has to hold for it to be still true. ``description`` is JSON for the record: the plan, the grant, the lowering. It is kept
    once and is not in the cache.
    """

    __slots__ = ("assumed", "cached", "claims", "description", "freeze", "secrets", "taken", "warnings", "wire")

    def __init__(
        self,
        wire: Wire,
        warnings: tuple[str, ...],
        claims: Claims = (),
        freeze: bool = False,
        description: str = "",
    ) -> None:
        self.wire = wire
        self.warnings = warnings
        self.claims = claims
        self.freeze = freeze
        self.description = description
        self.assumed: tuple[Check, ...] = ()
        self.cached = False
        self.secrets: Secrets | None = None
        """How to get the secrets that the session's gateway needs. A plan that has any is not in the cache."""
        self.taken: Claims = ()


def run(invocation: Invocation, libraries: Callable[[], None]) -> int:
    """Run the command of ``invocation`` and return ``remit run``'s exit status. Raises RemitError if it never ran.

    ``libraries`` makes third-party packages importable; it is called only where the plan has to be compiled.
    """
    status = Status(invocation.status_fd)
    try:
        code = _run(invocation, libraries, status)
    except RemitError as error:
        status.event({"event": "failed", "phase": error.phase, "message": str(error), "hint": error.hint})
        raise
    status.check()
    return code


def _run(invocation: Invocation, libraries: Callable[[], None], status: Status) -> int:
    if not invocation.command:
        raise UsageError("no command", hint="remit run [OPTIONS] -- CMD [ARG...]")
    if not invocation.command[0]:
        raise no_program()
    prepared = _prepare(invocation, libraries, fresh=False)
    try:
        return _attempt(invocation, prepared, status)
    except LaunchError as error:
        if error.phase != "changed" or not prepared.cached:
            raise
    # The cached plan is not true any more.
    again = _prepare(invocation, libraries, fresh=True)
    # What the first try took of the ledger serves the second one: nothing ran.
    return _attempt(invocation, again, status, taken=prepared.taken)


def _attempt(invocation: Invocation, prepared: Prepared, told: Status, taken: Claims = ()) -> int:
    _, digest, workspace, _, _, operations = prepared.wire
    level, on_full, lines = next((op[1:4] for op in operations if op[0] == "record"), ("writes", "deny", ()))

    def started(enforcement: Mapping[str, str]) -> None:
        record.enforced(dict(enforcement))
        told.event({"event": "started", "session": record.identifier, "plan": digest})

    def happened(actions: tuple[Any, ...]) -> None:
        if actions and actions[0] == "gateway":
            _network(record, actions[1])
            return
        missing = record.lost
        try:
            record.actions(actions)
        except OSError as error:
            if on_full == "stop":
                raise _no_record(error) from None
            if not missing:
                session.hold(True)
        else:
            if missing:
                session.hold(False)

    def ended(outcome: start.Outcome) -> None:
        if level != "off":
            outcome.denials = record.denials
        outcome.denials += session.network_denials
        result: dict[str, object] = {
            "status": _exit_status(outcome),
            "limit": outcome.limit or None,
            "denials": outcome.denials,
        }
        _complete(record, result)

    # Its first process builds what it can while the plan is checked and the record made.
    try:
        session = start.Session(
            prepared.wire,
            argv=[argument.encode(errors="surrogateescape") for argument in invocation.command],
            environment=_environment(prepared),
            directory=_directory(invocation, workspace),
            on_event=happened,
            on_start=started,
            secrets=prepared.secrets.file if prepared.secrets is not None else None,
        )
    except RemitError as error:
        if error.phase != "changed":
            _not_started(invocation, prepared, level, lines, error)
        raise
    try:
        changed = assume.broken(prepared.assumed)
        if changed:
            raise _changed(f"{changed} is not what it was when the plan was made")
        record = _record(invocation, prepared, level, lines)
    except BaseException:
        session.close()
        raise
    try:
        try:
            if prepared.claims:
                _spend(prepared, taken, record.identifier)
            watched = _watched(prepared) if prepared.claims else None
            for warning in prepared.warnings:
                _say(warning)
            session.go(record.canary)
            outcome = session.wait(watched, freeze=prepared.freeze)
            if not session.has_gateway:
                ended(outcome)  # while the kernel takes everything inside apart
        finally:
            session.close()
        if session.has_gateway:
            ended(outcome)  # its last words are among them
    except RemitError as error:
        if error.exit_status == NOT_FOUND_STATUS:
            _look_outside(error, invocation.command[0])
        try:
            record.ended({"failed": str(error), "phase": error.phase})
        except OSError:
            pass  # the failure that there is says more
        raise
    status = _exit_status(outcome)
    _report(invocation, outcome, status, record.identifier, told)
    return status


def _not_started(
    invocation: Invocation, prepared: Prepared, level: str, lines: tuple[Line, ...], error: RemitError
) -> None:
    """Record a start that ended before it had a record. Where that cannot be, the failure that there is says more."""
    try:
        _record(invocation, prepared, level, lines).ended({"failed": str(error), "phase": error.phase})
    except (RemitError, OSError):
        pass


def _record(invocation: Invocation, prepared: Prepared, level: str, lines: tuple[Line, ...]) -> Record:
    _, digest, workspace, degraded, _, _ = prepared.wire
    about: dict[str, object] = {
        "workspace": workspace,
        "degraded": degraded,
        "argv": list(invocation.command),
        "audit": level,
    }
    if prepared.claims:
        about["grants"] = [claim[0] for claim in prepared.claims]
    try:
        return Record(state_directory(posix.environ), digest, about, lines, kept=_kept(prepared))
    except FileNotFoundError:
        raise _changed("the plan's record is gone") from None
    except OSError as error:
        raise _no_record(error) from None


def _changed(what: str) -> LaunchError:
    error = LaunchError(what, hint="start again")
    error.phase = "changed"
    return error


def _complete(record: Record, result: dict[str, object]) -> None:
    try:
        record.ended(result)
    except OSError as error:
        raise _no_record(error) from None


def _kept(prepared: Prepared) -> str:
    """The name under which the plan is kept with its description, which holds the proofs: other grants may give the same plan."""
    digest = prepared.wire[1]
    return key((digest, tuple([claim[0] for claim in prepared.claims]))) if prepared.claims else digest


def _spend(prepared: Prepared, taken: Claims, session: str) -> None:
    """Take a use of every grant file's chain, before anything starts. Raises GrantError: spent, revoked, over."""
    if prepared.claims != taken:
        from remit.sandbox.session.ledger import Ledger

        Ledger(state_directory(posix.environ)).spend(prepared.claims, session)
    prepared.taken = prepared.claims


def _watched(prepared: Prepared) -> Callable[[], bool]:
    """Whether one of the grants has been revoked by now."""
    from remit.sandbox.session.ledger import Ledger

    ledger = Ledger(state_directory(posix.environ))
    held = [claim[0] for claim in prepared.claims]

    def revoked() -> bool:
        if not ledger.taken_back(held):
            return False
        if prepared.freeze:
            _say("the grant was revoked: the command stands still; SIGINT or SIGTERM ends it")
        return True

    return revoked


# --- preparation -----------------------------------------------------------------------------------------------------


def _prepare(invocation: Invocation, libraries: Callable[[], None], *, fresh: bool) -> Prepared:
    """A plan, from the cache or, with ``fresh`` always, compiled now."""
    cache = Cache(_cache_directory())
    name = key(_material(invocation))
    entry = None if fresh else cache.load(name)
    if entry is not None:
        assumed, *rest = entry
        prepared = Prepared(*rest)
        prepared.assumed, prepared.cached = assumed, True
        return prepared
    prepared, inputs = _compile(invocation, libraries)  # no inputs: it is good for this start only
    try:
        keep_plan(state_directory(posix.environ), _kept(prepared), prepared.description)
    except OSError as error:
        raise _no_record(error) from None
    if inputs:
        wire = _without_assumptions(prepared.wire)
        cache.store(
            name, inputs, (assume.checks(prepared.wire[4]), wire, prepared.warnings, prepared.claims, prepared.freeze)
        )
    return prepared


def _without_assumptions(wire: Wire) -> Wire:
    """The checks say the same, and an eighth as long."""
    version, digest, workspace, degraded, _, operations = wire
    return (version, digest, workspace, degraded, (), operations)


def _no_record(error: OSError) -> LaunchError:
    return LaunchError(
        f"the session's record cannot be written: {error.strerror}",
        where=state_directory(posix.environ),
        hint="a session without a record is not started: make the directory writable, or set XDG_STATE_HOME",
    )


def _compile(invocation: Invocation, libraries: Callable[[], None]) -> tuple[Prepared, tuple[str, ...]]:
    libraries()
    import os

    from remit.sandbox.session import place
    from remit.sandbox.session.assemble import prepare

    place.make_own_directories(os.environ)
    return prepare(invocation)


def _material(invocation: Invocation) -> tuple[object, ...]:
    variables = tuple([(name, posix.environ.get(name)) for name in _KEY_VARIABLES])
    host = posix.uname()
    return (
        remit.__version__,
        _sources(),
        invocation.key(),
        _current_directory(),
        variables,
        (posix.geteuid(), posix.getegid()),
        (host.release, host.version, host.machine, landlock.abi()),
        files.read("/proc/self/cgroup"),
        sys.executable,
    )


def _current_directory() -> str:
    """Empty where it has been removed, as ``place.current_directory``: then the plan depends on no relative path."""
    try:
        return posix.getcwd()
    except FileNotFoundError:
        return ""


def _sources() -> tuple[int, ...]:
    """When Remit's own code changed, where it is developed: an installed version is told by its number."""
    if not _HERE.endswith("/src/remit/sandbox"):
        return ()
    changed: list[int] = []
    for room in _ROOMS:
        directory = f"{_HERE}/{room}"
        changed += [posix.stat(f"{directory}/{name}").st_mtime_ns for name in posix.listdir(directory)]
    return tuple(changed)


_HERE = __file__.rpartition("/")[0].rpartition("/")[0]


def _cache_directory() -> str:
    base = posix.environ.get(b"XDG_CACHE_HOME", b"")
    if not base.startswith(b"/"):
        base = home_directory(posix.environ) + b"/.cache"
    return (base + b"/remit/plans").decode(errors="surrogateescape")


def _environment(prepared: Prepared) -> list[bytes]:
    """The command's environment: what the plan passes of the caller's, what it sets, and what stands for secrets."""
    result: dict[bytes, bytes] = {}
    for operation in prepared.wire[5]:
        if operation[0] == "environment":
            for name in operation[1]:
                encoded = name.encode(errors="surrogateescape")
                value = posix.environ.get(encoded)
                if value is not None:
                    result[encoded] = value
            for name, text in operation[2]:
                result[name.encode(errors="surrogateescape")] = text.encode(errors="surrogateescape")
    if prepared.secrets is not None:
        result |= {name.encode(): holder.encode() for name, holder in prepared.secrets.placeholders.items()}
    return [name + b"=" + value for name, value in result.items()]


def _directory(invocation: Invocation, workspace: str) -> str:
    """Where the command starts: canonical, as the tree inside has no other names."""
    if not invocation.chdir:
        return workspace
    try:
        opened = posix.open(invocation.chdir, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{invocation.chdir}: {error.strerror}", where="--chdir") from None
    try:
        return posix.readlink(f"/proc/self/fd/{opened}")
    finally:
        posix.close(opened)


# --- results ---------------------------------------------------------------------------------------------------------


def _network(record: Record, events: Events) -> None:
    from remit.sandbox.audit import network  # only where there is a gateway

    if isinstance(events, str):
        record.event(network.gone(events))
        _say(f"the gateway is gone ({events}): no network from now on")
    else:
        now, mono = time.time(), time.monotonic()
        record.lines([network.line(one, "1", record.identifier, now, mono) for one in events])


def _exit_status(outcome: start.Outcome) -> int:
    if outcome.limit == "time":
        return TIME_LIMIT_STATUS
    if outcome.limit == "memory":
        return MEMORY_LIMIT_STATUS
    if outcome.limit == "revoked":
        return REVOKED_STATUS
    assert outcome.status is not None
    if posix.WIFSIGNALED(outcome.status):
        return 128 + posix.WTERMSIG(outcome.status)
    return posix.WEXITSTATUS(outcome.status)


def _look_outside(error: RemitError, name: str) -> None:
    """Say so where a program that was not found inside is there on the host."""
    path = posix.environ.get(b"PATH", b"").decode(errors="surrogateescape")
    for candidate in [name] if "/" in name else [f"{directory}/{name}" for directory in path.split(":") if directory]:
        try:
            if posix.access(candidate, posix.X_OK) and posix.stat(candidate).st_mode & 0o170000 == 0o100000:
                error.message = f"{name}: exists on the host, not granted"
                error.args = (error.message,)
                error.hint = f"--exec {candidate}"
                return
        except OSError:
            continue


def _report(invocation: Invocation, outcome: start.Outcome, status: int, identifier: str, told: Status) -> None:
    result: dict[str, object] = {"event": "exited"}
    own = outcome.limit in ("time", "memory", "revoked")  # a status of its own, whatever signal that took
    if not own and outcome.status is not None and posix.WIFSIGNALED(outcome.status):
        result["signal"] = posix.WTERMSIG(outcome.status)
    else:
        result["code"] = status
    result["limit"] = outcome.limit or None
    result["denials"] = outcome.denials
    told.event(result)
    if outcome.limit == "revoked":
        _say("the grant was revoked, and the command ended with it")
    elif outcome.limit:
        _say(f"the {outcome.limit} limit ended the command")
    if status and outcome.denials and posix.isatty(2):
        actions = "1 action was" if outcome.denials == 1 else f"{outcome.denials} actions were"
        _say(f"{actions} outside the grant: remit why {identifier} explains")
    if invocation.denials:
        _tell_denials(invocation, status, identifier, told)


def _tell_denials(invocation: Invocation, status: int, identifier: str, told: Status) -> None:
    """What a model should read, and nothing of it is on the way of who does not ask."""
    from remit.sandbox.audit import denials, log

    try:
        found = denials.of(log.read(state_directory(posix.environ), identifier))
    except RemitError as error:
        # The command's status stays its own.
        _say(f"what was denied cannot be said: {error}")
        return
    if invocation.denials == "json" and told.wanted:
        told.say(found.document(status))
    elif invocation.denials == "json":
        _to_stderr(dumps(found.document(status)) + "\n")
    else:
        _say(*found.text(status))


def _say(*lines: str) -> None:
    _to_stderr("".join([f"remit: {line}\n" for line in lines]))


def _to_stderr(text: str) -> None:
    try:
        files.say(2, text.encode(errors="surrogateescape"))
    except OSError:
        pass  # nobody reads it, and the command's status stays its own
