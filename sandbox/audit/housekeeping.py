"""What commands off the hot path do for the records: sign what has no checkpoint yet, and remove what is kept no longer.

``remit run`` does neither: a signature costs as much as a start. ``$XDG_CONFIG_HOME/remit/audit.toml`` may say how much is
kept (``sessions``, ``bytes``, ``days`` of ended sessions, in a table ``[keep]``); 0 is no bound.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from remit.sandbox.audit import log, seal
from remit.sandbox.authority.errors import RemitError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

_DAY = 86400
_SIGNED_AT_MOST = 200


@dataclass(frozen=True, slots=True)
class Keep:
    """How much of ended sessions is kept; 0 is no bound."""

    sessions: int = 2000
    bytes: int = 1 << 30
    days: int = 90


def keep(environ: dict[str, str]) -> Keep:
    """What the user's ``audit.toml`` says. Raises UsageError for what is malformed."""
    base = environ.get("XDG_CONFIG_HOME", "")
    if not base.startswith("/"):
        base = os.path.join(environ.get("HOME", "/"), ".config")
    path = os.path.join(base, "remit", "audit.toml")
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return Keep()
    import tomli

    try:
        table = tomli.loads(data.decode())
    except (ValueError, tomli.TOMLDecodeError) as error:
        raise UsageError(f"malformed: {error}", where=path) from None
    found = Keep()
    kept = table.get("keep", {})
    if set(table) - {"keep"} or not isinstance(kept, dict):
        raise UsageError("only a table [keep] is known", where=path)
    for name, value in cast("dict[str, object]", kept).items():
        if (
            name not in ("sessions", "bytes", "days")
            or isinstance(value, bool)
            or not isinstance(value, int)
            or value < 0
        ):
            raise UsageError(f"keep.{name} = {value!r}", where=path, hint="sessions, bytes or days, a number from 0 up")
        found = replace(found, **{name: value})
    return found


def run(state: str, key: Callable[[], seal.Signer] | None = None) -> None:
    """Both, as far as it can be done; nobody waits for an error of it."""
    try:
        prune(state, keep(dict(os.environ)), time.time())
        if key is not None:
            sign(state, key)
    except (OSError, RemitError, ImportError):
        return


def sign(state: str, key: Callable[[], seal.Signer]) -> int:
    """Sign records that were completed and have no checkpoint. Returns how many. Raises OSError, RemitError."""
    pending = [name for name in log.sessions(state) if seal.pending(f"{state}/sessions/{name}")]
    if not pending:
        return 0
    signer = key()
    return sum(seal.add(f"{state}/sessions/{name}", signer, time.time()) for name in pending[-_SIGNED_AT_MOST:])


def prune(state: str, bounds: Keep, now: float) -> list[str]:
    """Remove the oldest records beyond ``bounds``; a session that runs is never touched. Returns what was removed."""
    names = log.sessions(state)
    held: list[tuple[str, int, float]] = []
    for name in names:
        directory = f"{state}/sessions/{name}"
        try:
            status = os.stat(f"{directory}/events.jsonl")
            size = status.st_size + os.stat(f"{directory}/plan.json").st_size
        except OSError:
            continue
        held.append((name, size, status.st_mtime))
    total = sum(size for _, size, _ in held)
    removed: list[str] = []
    for at, (name, size, modified) in enumerate(held):
        left = len(held) - at
        beyond = (
            (bounds.sessions and left > bounds.sessions)
            or (bounds.bytes and total > bounds.bytes)
            or (bounds.days and now - modified > bounds.days * _DAY)
        )
        if not beyond:
            continue
        directory = f"{state}/sessions/{name}"
        if log.running(directory):
            continue
        shutil.rmtree(directory, ignore_errors=True)
        removed.append(name)
        total -= size
    if removed:
        _plans(state)
    return removed


def _plans(state: str) -> None:
    """Plans are linked into the records that ran under them: one with no other link serves no record."""
    now = time.time()
    try:
        with os.scandir(f"{state}/plans") as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                # A cached plan without a session yet is young, or will be made again.
                if status.st_nlink == 1 and now - status.st_mtime > _DAY:
                    os.unlink(entry.path)
    except OSError:
        return
