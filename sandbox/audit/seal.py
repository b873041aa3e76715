"""Checkpoints: a signature over the hash that a record's last line has, and over its plan.

The chain shows what was changed by who could not compute hashes; a signature, what was changed by who could not sign. It
is made off the hot path, by the next command that reads records, so lines since the last checkpoint are *unsigned*: a
chain, and no more. With the user's own key this is evidence against the confined side and against accidents, not against
the user.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol, cast

from remit.sandbox.audit import log

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA = "remit.seal/1"
NAME = "seals.jsonl"


class Signer(Protocol):
    """A key that signs (``session.keys.Own``)."""

    @property
    def public(self) -> str: ...
    def sign(self, data: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Seals:
    """What the checkpoints of a record say. ``upto``: lines that a signature covers; ``keys``: whose, newest last."""

    upto: int
    keys: tuple[str, ...]
    problem: log.Problem | None = None


def message(seal: dict[str, Any]) -> bytes:
    """What is signed: everything in the checkpoint but the signature, in one spelling."""
    body = {name: value for name, value in seal.items() if name != "signature"}
    return f"{SCHEMA}\n{json.dumps(body, sort_keys=True, separators=(',', ':'))}".encode()


def add(directory: str, key: Signer, now: float) -> bool:
    """Sign what the record at ``directory`` has, if it has more than its last checkpoint and its chain is whole.

    The lines are on the disk before their signature is. Raises OSError, RecordError.
    """
    checked = log.check(directory)
    if checked.problem is not None or not checked.hashes or _last(directory) >= len(checked.hashes):
        return False
    for name in ("events.jsonl", "plan.json"):
        opened = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    seal: dict[str, Any] = {
        "schema": SCHEMA,
        "session": directory.rpartition("/")[2],
        "sequence": len(checked.hashes),
        "hash": checked.hashes[-1],
        "plan": _plan(directory),
        "time": now,
        "key": key.public,
    }
    seal["signature"] = key.sign(message(seal)).hex()
    opened = os.open(
        f"{directory}/{NAME}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    try:
        os.write(opened, json.dumps(seal).encode() + b"\n")
        os.fsync(opened)
    finally:
        os.close(opened)
    return True


def check(directory: str, checked: log.Checked, verified: Callable[[str, bytes, bytes], bool]) -> Seals:
    """Whether the checkpoints of a record hold. ``verified(key, message, signature)`` tells of one signature."""
    upto, keys = 0, list[str]()
    for seal in _seals(directory):
        try:
            sequence, key = int(seal["sequence"]), str(seal["key"])
            good = verified(key, message(seal), bytes.fromhex(str(seal["signature"])))
        except (KeyError, TypeError, ValueError):
            good, sequence, key = False, 0, ""
        if not good or seal.get("session") != directory.rpartition("/")[2]:
            return Seals(upto, tuple(keys), log.Problem("a checkpoint is not what was signed", upto + 1, checked.size))
        if seal["plan"] != _plan(directory):
            return Seals(upto, tuple(keys), log.Problem("plan.json was changed", 1, 0))
        if sequence > len(checked.hashes):
            line = len(checked.hashes) + 1
            what = f"truncated: {sequence} lines were signed"
            return Seals(upto, tuple(keys), log.Problem(what, line, checked.size))
        if checked.hashes[sequence - 1] != seal["hash"]:
            what = "the line is not the one that was signed"
            return Seals(upto, tuple(keys), log.Problem(what, upto + 1, 0, f"{seal['session']}:{sequence}"))
        upto = max(upto, sequence)
        keys.append(key)
    return Seals(upto, tuple(keys))


def pending(directory: str) -> bool:
    """Whether a completed record has no checkpoint yet: a guess by file times, good enough to spare reading it."""
    try:
        return not os.path.exists(f"{directory}/{NAME}") and os.path.exists(f"{directory}/head")
    except OSError:
        return False


def _plan(directory: str) -> str:
    try:
        with open(f"{directory}/plan.json", "rb") as file:
            return blake2b(file.read(), digest_size=32).hexdigest()
    except OSError:
        return ""


def _seals(directory: str) -> list[dict[str, Any]]:
    try:
        with open(f"{directory}/{NAME}", "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for line in lines:
        if not line:
            continue
        try:
            made = json.loads(line)
        except (ValueError, RecursionError):
            made = {}
        found.append(cast("dict[str, Any]", made) if isinstance(made, dict) else {})
    return found


def _last(directory: str) -> int:
    return max((int(seal.get("sequence", 0)) for seal in _seals(directory)), default=0)
