"""The ledger: how often each grant was used, and which were revoked. One file a user, shared by every process.

``log`` is append-only text, one line a fact, the last line about an id the one that holds; whoever writes holds
``flock(2)`` on ``lock`` from the reading to the end of the writing, so of many that race for the last use one wins. A use
is on the disk before it is allowed: a process killed between any two steps can lose a use and never gains one. A last line
without its end was never allowed to anybody, and is cut off by the next writer.

The file stays small: what is about grants that have expired is dropped, with the latest such expiry (the horizon) kept, so
that a clock that is set back revives nothing. What never expires is kept for ever.

Nothing here imports more than the interpreter has loaded: reading what is revoked is on the path of every call.
"""

from __future__ import annotations

import fcntl
import posix
import time

from remit.sandbox.audit.record import make_parents
from remit.sandbox.authority.errors import GrantError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Plain = tuple[str, int | None, float | None, float | None, str]
    """A claim (``authority.proof.Claim.plain``): id, uses, not before, expires, the session it is bound to or empty."""

SIZE_LIMIT = 16 << 20
"""Bytes. A ledger that cannot be made shorter than this takes no more: fail closed."""

COMPACT_SIZE = 64 << 10
"""Bytes below which nothing is gained by making the file shorter."""

_READ = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC
_APPEND = posix.O_RDWR | posix.O_APPEND | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC
_CREATE = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_NOFOLLOW | posix.O_CLOEXEC
_LOCK = posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC
_DIRECTORY = _READ | posix.O_DIRECTORY
_FOREIGN = 0o077
_ID_DIGITS = 32
_HEX = frozenset("0123456789abcdef")
_NONE = "-"
_LINE = 128
"""Bytes that a line takes, at most but for its texts: what a shorter file would hold is estimated with it."""


class Used:
    """What the ledger knows of one id's uses: how many, of how many, until when, bound to which session."""

    __slots__ = ("count", "expires", "session", "uses")

    def __init__(self, count: int, uses: int, expires: float | None, session: str) -> None:
        self.count = count
        self.uses = uses
        self.expires = expires
        self.session = session


class Revoked:
    """That an id was revoked: when (Unix seconds), why, and when the grant would have ended."""

    __slots__ = ("expires", "reason", "time")

    def __init__(self, time: float, expires: float | None, reason: str) -> None:
        self.time = time
        self.expires = expires
        self.reason = reason


class _State:
    """What a log says. ``size`` is that of its complete lines."""

    __slots__ = ("horizon", "revoked", "size", "used")

    def __init__(self) -> None:
        self.used: dict[str, Used] = {}
        self.revoked: dict[str, Revoked] = {}
        self.horizon = 0.0
        self.size = 0


class Ledger:
    """One user's ledger below ``state`` (``$XDG_STATE_HOME/remit``). A thread uses one at a time."""

    def __init__(self, state: str) -> None:
        self.directory = f"{state}/ledger"
        self.path = f"{self.directory}/log"
        self._seen: tuple[int, ...] = ()
        self._known = _State()

    # --- reading ---

    def revoked(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Which of ``ids`` are revoked. Pass a whole chain's: a revoked grant takes all below it along.

        Costs one stat(2) while the file has not changed. Raises GrantError where the ledger cannot be read.
        """
        known = self._read().revoked
        return tuple([one for one in ids if one in known])

    def revocation(self, id: str) -> Revoked | None:
        """Why and when ``id`` was revoked, or None. Raises GrantError."""
        return self._read().revoked.get(id)

    def taken_back(self, ids: Iterable[str]) -> tuple[str, ...]:
        """``revoked``, for what runs already: all of ``ids`` where the ledger cannot be read."""
        try:
            return self.revoked(ids)
        except GrantError:
            return tuple(ids)

    def used(self, id: str) -> int:
        """How many uses of ``id`` were counted. Raises GrantError."""
        found = self._read().used.get(id)
        return found.count if found is not None else 0

    def _read(self) -> _State:
        # Without the lock: lines are only added, and a shorter file replaces the old one as a whole.
        try:
            opened = posix.open(self.path, _READ)
        except FileNotFoundError:
            self._seen, self._known = (), _State()
            return self._known
        except OSError as error:
            raise self._error(error) from None
        try:
            status = posix.fstat(opened)
            now = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if now != self._seen:
                self._known = self._parse(opened, status)
                self._seen = now
            return self._known
        finally:
            posix.close(opened)

    def _parse(self, opened: int, status: posix.stat_result) -> _State:
        if status.st_uid != posix.geteuid() or status.st_mode & _FOREIGN:
            raise GrantError(
                "the ledger is not yours alone",
                where=self.path,
                hint=f"chown {posix.geteuid()} and chmod 600 {self.path}, after reading it",
            )
        if status.st_size > SIZE_LIMIT + COMPACT_SIZE:
            raise self._damaged(0, "it is too long")
        data = b""
        while chunk := posix.pread(opened, 1 << 20, len(data)):
            data += chunk
        state = _State()
        state.size = data.rfind(b"\n") + 1
        for number, line in enumerate(data[: state.size].split(b"\n")[:-1], 1):
            try:
                _fact(state, line.decode().split(" "))
            except (ValueError, IndexError, GrantError):
                raise self._damaged(number, "it is malformed") from None
        return state

    # --- writing ---

    def consume(
        self, grant_id: str, uses: int | None, session: str, *, expires: float | None = None, bound: bool = False
    ) -> int:
        """Count one use of a grant in ``session`` and return how many there are now.

        ``uses`` is how many there may be (None: any number; then none is counted, and 0 is returned), ``expires`` when the
        grant ends (Unix seconds). ``bound``: the id belongs to ``session``, and is refused in every other from now on.

        Raises:
            GrantError: spent, revoked, bound to another session, known with another number of uses, or a ledger that
                cannot be read or written. Nothing was counted then.
        """
        counts = self.spend(((grant_id, uses, None, expires, session if bound else ""),), session)
        return counts[0] if uses is not None else 0

    def spend(self, claims: Sequence[Plain], session: str, *, now: float | None = None) -> tuple[int, ...]:
        """One use of every claim (a chain's: ``Chain.claims``), or of none. Returns how many there are now of each.

        ``now`` (Unix seconds; default: the wall clock) must lie in each one's period. Of what is not counted, there are 0.

        Raises:
            GrantError: as ``consume``, and where a grant is not in force.
        """
        _check_session(session)
        now = time.time() if now is None else now
        for claim in claims:
            _check_claim(claim, session, now)
        if not any([uses is not None or bound for _, uses, _, _, bound in claims]):
            self._refuse(self._read(), claims, session)
            return (0,) * len(claims)
        counts: list[int] = []
        lock = self._lock()
        try:
            self._append(lambda state: self._uses(state, claims, session, counts), now)
        finally:
            posix.close(lock)
        return tuple(counts)

    def _uses(self, state: _State, claims: Sequence[Plain], session: str, counts: list[int]) -> list[str]:
        self._refuse(state, claims, session)
        lines: list[str] = []
        taken: dict[str, Plain] = {}
        for claim in claims:
            id, uses, _, expires, bound = claim
            if id in taken and taken[id] != claim:
                raise GrantError(
                    "it is claimed as two different grants", where=f"grant {id}", hint="an id is never replayed"
                )
            taken[id] = claim
            if uses is None and not bound:
                counts.append(0)
                continue
            # Two grants out of one: who starts with both at once uses that one once, so the same line twice says it once.
            old = state.used.get(id)
            count = (old.count if old is not None else 0) + 1
            counts.append(count)
            held = bound or (old.session if old is not None else "")
            lines.append(_use_line(id, Used(count, uses or 0, expires, held)))
        return lines

    def _refuse(self, state: _State, claims: Sequence[Plain], session: str) -> None:
        """GrantError for the first claim that cannot be met."""
        for id, uses, _, expires, _ in claims:
            where = f"grant {id}"
            if id in state.revoked:
                why = state.revoked[id].reason
                raise GrantError(
                    f"revoked{': ' + why if why else ''}", where=where, hint="ask the grantor for a new one"
                )
            old = state.used.get(id)
            if old is None:
                if expires is not None and expires <= state.horizon:
                    raise GrantError(
                        "it had expired before, and what was known of its uses is gone: the clock was set back",
                        where=where,
                        hint="set the clock right, or ask the grantor for a new one",
                    )
                continue
            if old.session and old.session != session:
                raise GrantError(
                    f"it belongs to session {old.session}, not to {session}",
                    where=where,
                    hint="an id is never replayed",
                )
            if old.uses != (uses or 0):
                raise GrantError(
                    f"it was used before as one with {old.uses or 'any number of'} uses, not {uses or 'any number'}",
                    where=where,
                    hint="an id is never replayed: ask the grantor for a new one",
                )
            if old.uses and old.count >= old.uses:
                times = "once" if old.uses == 1 else f"{old.uses} times"
                raise GrantError(
                    f"spent: it could be used {times}, and was", where=where, hint="ask the grantor for a new one"
                )

    def revoke(self, grant_id: str, reason: str = "", *, expires: float | None = None) -> None:
        """Revoke a grant, and with it all that were taken out of it. Again is no error; the first reason stays.

        ``expires``: when the grant ends (Unix seconds), if known: nobody needs to remember it for longer.

        Raises:
            GrantError: no id, or a ledger that cannot be read or written.
        """
        _check_id(grant_id)
        now = time.time()
        lock = self._lock()
        try:
            made = Revoked(now, expires, reason)
            self._append(lambda state: [] if grant_id in state.revoked else [_revoke_line(grant_id, made)], now)
        finally:
            posix.close(lock)

    def _lock(self) -> int:
        """The lock, held until the descriptor is closed: the kernel lets go of it with the process, however that ends."""
        try:
            make_parents(self.directory)
            directory = posix.stat(self.directory, follow_symlinks=False)
            if directory.st_uid != posix.geteuid() or directory.st_mode & _FOREIGN:
                raise GrantError(
                    "the ledger's directory is not yours alone",
                    where=self.directory,
                    hint=f"chown {posix.geteuid()} and chmod 700 {self.directory}, after looking into it",
                )
            opened = posix.open(f"{self.directory}/lock", _LOCK, 0o600)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX)
            except BaseException:
                posix.close(opened)
                raise
        except OSError as error:
            raise self._error(error) from None
        return opened

    def _append(self, decide: _Decision, now: float) -> None:
        """Add the lines that ``decide`` returns for what the log says now. The caller holds the lock."""
        try:
            opened = posix.open(self.path, _APPEND, 0o600)
            try:
                status = posix.fstat(opened)
                state = self._parse(opened, status)
                lines = decide(state)
                if not lines:
                    return
                if status.st_size != state.size:
                    posix.ftruncate(opened, state.size)
                if state.size > SIZE_LIMIT:
                    raise GrantError(
                        "the ledger is full",
                        where=self.path,
                        hint="grants that count uses should expire: those that never do are remembered for ever",
                    )
                self._write(opened, "".join(lines).encode(), state.size)
                if not state.size:
                    self._sync_directory()
                size = posix.fstat(opened).st_size
            finally:
                posix.close(opened)
        except OSError as error:
            raise self._error(error) from None
        kept = [one for one in _ends(state) if one is None or one >= now]
        if size > COMPACT_SIZE and size > 2 * _LINE * len(kept):
            try:
                self._compact(now)
            except OSError:
                pass  # it is longer than it need be, and true

    @staticmethod
    def _write(opened: int, data: bytes, size: int) -> None:
        """All of ``data``, on the disk, or an error and none of it."""
        try:
            while data:
                data = data[posix.write(opened, data) :]
            posix.fdatasync(opened)
        except OSError:
            posix.ftruncate(opened, size)
            raise

    def _sync_directory(self) -> None:
        opened = posix.open(self.directory, _DIRECTORY)
        try:
            posix.fsync(opened)
        finally:
            posix.close(opened)

    def _compact(self, now: float) -> None:
        """Replace the log by a shorter one that says the same. The caller holds the lock."""
        opened = posix.open(self.path, _READ)
        try:
            state = self._parse(opened, posix.fstat(opened))
        finally:
            posix.close(opened)
        horizon = max([state.horizon, *[one for one in _ends(state) if one is not None and one < now]])
        lines = [f"horizon {horizon!r}\n"]
        for id, used in state.used.items():
            if used.expires is None or used.expires > horizon:
                lines.append(_use_line(id, used))
        for id, revoked in state.revoked.items():
            if revoked.expires is None or revoked.expires > horizon:
                lines.append(_revoke_line(id, revoked))
        temporary = f"{self.directory}/log.new"
        made = posix.open(temporary, _CREATE, 0o600)
        try:
            self._write(made, "".join(lines).encode(), 0)
        finally:
            posix.close(made)
        posix.rename(temporary, self.path)
        self._sync_directory()

    # --- errors ---

    def _error(self, error: OSError) -> GrantError:
        return GrantError(
            f"the ledger of uses and revocations cannot be used: {error.strerror}",
            where=self.path,
            hint="a grant that cannot be counted is not used: make the directory writable, or set XDG_STATE_HOME",
        )

    def _damaged(self, line: int, what: str) -> GrantError:
        return GrantError(
            f"the ledger of uses and revocations is damaged: {what}",
            where=f"{self.path}:{line}" if line else self.path,
            hint="restore it; moving it away makes spent and revoked grants usable again",
        )


if TYPE_CHECKING:
    from collections.abc import Callable

    _Decision = Callable[[_State], list[str]]


def _ends(state: _State) -> list[float | None]:
    """When the grants that are known end."""
    return [one.expires for one in state.used.values()] + [one.expires for one in state.revoked.values()]


def _fact(state: _State, words: list[str]) -> None:
    """Take one line in. ValueError and IndexError: it is none."""
    kind = words[0]
    if kind == "use":
        _, id, count, uses, expires, session = words
        _check_id(id)
        known = state.used.get(id)
        if known is None or known.count < int(count):
            state.used[id] = Used(int(count), int(uses), _moment(expires), "" if session == _NONE else session)
    elif kind == "revoke":
        _check_id(words[1])
        reason = bytes.fromhex(words[4]).decode(errors="replace")
        state.revoked.setdefault(words[1], Revoked(float(words[2]), _moment(words[3]), reason))
    elif kind == "horizon":
        state.horizon = max(state.horizon, float(words[1]))
    else:
        raise ValueError(kind)


def _use_line(id: str, used: Used) -> str:
    return f"use {id} {used.count} {used.uses} {_shown(used.expires)} {used.session or _NONE}\n"


def _revoke_line(id: str, revoked: Revoked) -> str:
    # The reason in hexadecimal: whatever is in it, it is one word.
    reason = revoked.reason.encode(errors="surrogateescape").hex()
    return f"revoke {id} {revoked.time!r} {_shown(revoked.expires)} {reason}\n"


def _shown(expires: float | None) -> str:
    return _NONE if expires is None else repr(float(expires))


def _moment(text: str) -> float | None:
    return None if text == _NONE else float(text)


def _check_id(id: str) -> None:
    if not (len(id) == _ID_DIGITS and _HEX.issuperset(id)):
        raise GrantError(f"{id!r} is not a grant's id", hint="an id is 32 hexadecimal digits")


def _check_session(session: str) -> None:
    if not session or session == _NONE or not session.isascii() or not session.isprintable() or " " in session:
        raise GrantError(f"{session!r} is not a session's id")


def _check_claim(claim: Plain, session: str, now: float) -> None:
    id, uses, not_before, expires, bound = claim
    _check_id(id)
    where = f"grant {id}"
    if uses is not None and uses < 1:
        raise GrantError(f"uses {uses} is less than 1", where=where)
    if bound and bound != session:
        raise GrantError(
            f"it belongs to session {bound}, not to {session}", where=where, hint="an id is never replayed"
        )
    if not_before is not None and now < not_before:
        raise GrantError(f"it is not in force before {not_before}", where=where, hint="wait, or ask for a new one")
    if expires is not None and now >= expires:
        raise GrantError(f"it expired at {expires}", where=where, hint="ask the grantor for a new one")
