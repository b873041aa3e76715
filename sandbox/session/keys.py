"""Keys that sign grants: the user's own, and those of others that are trusted.

``$XDG_CONFIG_HOME/remit/keys/`` holds ``own.key`` (the secret half; mode 0600 in a directory of mode 0700), ``own.pub`` to
give away, and ``trusted/*.pub``; ``/etc/remit/keys/*.pub`` are trusted on the whole machine. A session never sees any of
them, whatever it is granted (``place.own_directories``). A key is one line of text: ``ed25519-secret HEX`` or
``ed25519 HEX [COMMENT]``, the 32 bytes of RFC 8032 in hexadecimal.

``cryptography`` is imported where something is signed or verified, and nowhere else: it costs more than a confined start.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from remit.profiles import find
from remit.profiles.errors import ProfileError
from remit.sandbox.authority.errors import GrantError
from remit.sandbox.authority.proof import KEY_DIGITS, Chain, Signed, message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remit.sandbox.authority.grant import Grant

SYSTEM = "/etc/remit/keys"
SUFFIX = ".pub"
PUBLIC = "ed25519"
SECRET = "ed25519-secret"

_FOREIGN = 0o077
_HEX = frozenset("0123456789abcdef")
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


def directory(environ: Mapping[str, str], home: str) -> str:
    """``$XDG_CONFIG_HOME/remit/keys``. Raises GrantError: there is neither that variable nor a home directory."""
    config = environ.get("XDG_CONFIG_HOME", "")
    if not config.startswith("/"):
        config = os.path.join(home, ".config") if home.startswith("/") else ""
    if not config:
        raise GrantError("there is no place for keys", hint="set HOME or XDG_CONFIG_HOME to an absolute path")
    return os.path.join(os.path.normpath(config), "remit", "keys")


class Own:
    """A user's own key: signs grants. ``public`` is its public half, 64 hexadecimal digits. The secret is not shown."""

    __slots__ = ("_secret", "public")

    def __init__(self, secret: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._secret = Ed25519PrivateKey.from_private_bytes(secret)
        self.public = self._secret.public_key().public_bytes_raw().hex()

    def sign(self, data: bytes) -> bytes:
        """The Ed25519 signature of ``data``, 64 bytes."""
        return self._secret.sign(data)

    def add(self, grant: Grant, above: Chain | None = None) -> Chain:
        """``grant`` signed, below the leaf of ``above`` or as a root. Whether it follows from that is not checked."""
        links = above.links if above is not None else ()
        signature = self.sign(message([*(link.grant for link in links), grant]))
        return Chain((*links, Signed(grant, self.public, signature.hex())))


class Trusted:
    """Public keys that are believed, each with the file that says so (``authority.proof.Keys``)."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self.keys = dict(keys)

    def trusts(self, key: str) -> bool:
        """Whether roots that ``key`` signed are believed."""
        return key in self.keys

    def verified(self, key: str, message: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is ``key``'s over ``message``; a key that is no point of the curve signed nothing."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


def own(environ: Mapping[str, str], home: str) -> Own:
    """The user's key; made, with its directory, where there is none. Two processes that make one at once get the same.

    Raises:
        GrantError: it belongs to somebody else, others can read or write it, it is malformed, it cannot be written.
    """
    place = directory(environ, home)
    path = os.path.join(place, "own.key")
    try:
        found = _secret(path)
        if found is None:
            _make(place, path)
            found = _secret(path)
    except OSError as error:
        raise GrantError(error.strerror or "cannot be used", where=error.filename or path) from None
    if found is None:
        raise GrantError("the key vanished while it was made", where=path, hint="start again")
    return Own(found)


def own_public(environ: Mapping[str, str], home: str) -> str:
    """The public half of the user's key, or empty where there is no key yet: none is made. Raises GrantError."""
    path = os.path.join(directory(environ, home), "own.key")
    try:
        found = _secret(path)
    except OSError as error:
        raise GrantError(error.strerror or "cannot be used", where=path) from None
    return Own(found).public if found is not None else ""


def trusted(environ: Mapping[str, str], home: str) -> Trusted:
    """The keys that this user believes: the own one, and those in the trusted directories.

    Raises:
        GrantError: a key file that is malformed, or that somebody but the user and root could have written.
    """
    found: dict[str, str] = {}
    mine = own_public(environ, home)
    if mine:
        found[mine] = os.path.join(directory(environ, home), "own.key")
    for place in _trusted_directories(environ, home):
        for path in _public_files(place):
            found.setdefault(read_public(path), path)
    return Trusted(found)


def inputs(environ: Mapping[str, str], home: str) -> tuple[str, ...]:
    """The files and directories that decide which keys are trusted: what a cached verdict depends on."""
    places = _trusted_directories(environ, home)
    files = [path for place in places for path in _public_files(place)]
    return (os.path.join(directory(environ, home), "own.key"), *places, *files)


def read_public(path: str) -> str:
    """The key in a ``.pub`` file. Raises GrantError: unsafe to believe, malformed, missing."""
    try:
        text = find.read(path).decode("utf-8", "replace")
    except ProfileError as error:
        problem = error.problems[0]
        if problem.message == "no such profile":
            raise GrantError("no such file", where=path, hint="name a .pub file") from None
        raise GrantError(problem.message, where=path, hint=problem.hint) from None
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    words = lines[0].split() if len(lines) == 1 else []
    if len(words) < 2 or words[0] != PUBLIC or not is_public(words[1]):
        raise GrantError(
            "not a public key", where=path, hint=f"one line: {PUBLIC} and 64 hexadecimal digits, then a comment if any"
        )
    return words[1]


def is_public(text: str) -> bool:
    """Whether ``text`` has the form of a public key."""
    return len(text) == KEY_DIGITS and _HEX.issuperset(text)


def _trusted_directories(environ: Mapping[str, str], home: str) -> tuple[str, str]:
    return (os.path.join(directory(environ, home), "trusted"), SYSTEM)


def _public_files(place: str) -> list[str]:
    try:
        names = sorted(os.listdir(place))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise GrantError(error.strerror or "cannot be read", where=place) from None
    return [os.path.join(place, name) for name in names if name.endswith(SUFFIX) and not name.startswith(".")]


def _secret(path: str) -> bytes | None:
    """The secret key in ``path``, None where there is none. Raises GrantError and OSError."""
    try:
        opened = os.open(path, _READ)
    except FileNotFoundError:
        return None
    try:
        _check_private(os.path.dirname(path), os.stat(os.path.dirname(path), follow_symlinks=False), "directory", 700)
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode):
            raise GrantError("not a regular file", where=path)
        _check_private(path, status, "key", 600)
        words = os.read(opened, 4096).decode("utf-8", "replace").split()
    finally:
        os.close(opened)
    if len(words) != 2 or words[0] != SECRET or not is_public(words[1]):
        # Nothing of it is shown: it may be a key, but for one letter.
        raise GrantError("not a key that Remit made", where=path, hint="restore it, or move it away: a new one is made")
    return bytes.fromhex(words[1])


def _check_private(path: str, status: os.stat_result, what: str, mode: int) -> None:
    """Refuse what is not the user's alone: who reads the key grants in the user's name."""
    if status.st_uid != os.geteuid():
        raise GrantError(
            f"the {what} belongs to uid {status.st_uid}", where=path, hint="keys are used by their owner alone"
        )
    if status.st_mode & _FOREIGN:
        raise GrantError(
            f"the {what} is open to others (mode {status.st_mode & 0o7777:04o})",
            where=path,
            hint=f"chmod {mode} {path}; if others may have read the key, move it away: a new one is made",
        )


def _make(place: str, path: str) -> None:
    """A new key at ``path``, whole or not at all; one that somebody else made meanwhile stays."""
    _make_directory(place)
    secret = os.urandom(32)
    public = Own(secret).public
    # Linked into place and not renamed: a rename would take the place of the key that another process just made.
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    _write(temporary, f"{SECRET} {secret.hex()}\n")
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    finally:
        os.unlink(temporary)
    shown = f"{path.removesuffix('.key')}{SUFFIX}"
    try:
        os.unlink(shown)
    except FileNotFoundError:
        pass
    _write(shown, f"{PUBLIC} {public}\n")


def _make_directory(place: str) -> None:
    os.makedirs(os.path.dirname(place), 0o700, exist_ok=True)
    try:
        os.mkdir(place, 0o700)
    except FileExistsError:
        _check_private(place, os.stat(place, follow_symlinks=False), "directory", 700)


def _write(path: str, text: str) -> None:
    opened = os.open(path, _CREATE, 0o600)
    with os.fdopen(opened, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(opened)
