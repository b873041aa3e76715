"""Where profiles are, and reading one only if nobody else could have written it.

A profile is authority: whoever can change one can grant. So on the whole way to a user's or an administrator's profile,
through every symbolic link, each directory must belong to root or the user and be writable by its owner alone, and
so must the file. A directory with the sticky bit may be writable by others: in it nobody can rename or replace what
belongs to somebody else, and what belongs to somebody else is refused. Groups count as others, even a user's own:
who is in a group is not written on the file. Shipped profiles are part of the code that is reading them and share
its trust.

This module imports ``os`` and nothing that costs time, neither the TOML parser nor ``dataclasses`` nor ``typing``: a
start that finds everything in a cache needs no more than this of the room.
"""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from remit.profiles.errors import ProfileError

SIZE_LIMIT = 1 << 20
"""Bytes. A profile longer than this is refused unread."""

SUFFIX = ".toml"
SHIPPED = os.path.dirname(os.path.abspath(__file__))
SYSTEM = "/etc/remit/profiles"

_OVERFLOW_UID = 65534
_LINK_LIMIT = 40


class Place:
    """A directory in the search order. ``where``: ``user``, ``system`` or ``shipped``."""

    __slots__ = ("directory", "where")

    def __init__(self, where: str, directory: str) -> None:
        self.where = where
        self.directory = directory


class Found:
    """A profile's file. ``place`` is its index in the search order, -1 for a file named by path."""

    __slots__ = ("path", "place")

    def __init__(self, path: str, place: int) -> None:
        self.path = path
        self.place = place


def places(environ: Mapping[str, str], home: str) -> tuple[Place, ...]:
    """The search order: the user's profiles, the administrator's, those shipped with Remit.

    ``XDG_CONFIG_HOME`` counts only when it is absolute (XDG Base Directory Specification); without it and without a
    home directory, the user has no place.
    """
    config = environ.get("XDG_CONFIG_HOME", "")
    if not config.startswith("/"):
        config = os.path.join(home, ".config")
    order = (Place("system", SYSTEM), Place("shipped", SHIPPED))
    # A relative directory would be the current one's: whoever is worked for there could name profiles.
    return (Place("user", os.path.join(config, "remit", "profiles")), *order) if config.startswith("/") else order


def is_path(name: str) -> bool:
    """Whether ``name``, as given to ``--profile``, is a file and not the name of a profile."""
    return "/" in name or name.endswith(SUFFIX)


def is_name(name: str) -> bool:
    """Whether ``name`` has the form of a profile's name: ``[a-z][a-z0-9-]*``."""
    rest = name.replace("-", "")
    return name[:1].isalpha() and rest.isalnum() and name.isascii() and name == name.lower()


def find(name: str, order: tuple[Place, ...], first: int = 0) -> Found | None:
    """The file of the profile ``name`` in the search order from index ``first`` on, or ``None``.

    A name that exists and cannot be used is not passed over: the next place would silently give it another meaning.
    """
    for index in range(first, len(order)):
        path = os.path.join(order[index].directory, name + SUFFIX)
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise _refused(path, error.strerror or "cannot be read") from None
        return Found(path, index)
    return None


def read(path: str) -> bytes:
    """The bytes of the profile at ``path``. Raises ``ProfileError``: it is missing, unsafe, or larger than 1 MiB."""
    shipped = os.path.dirname(path) == SHIPPED
    try:
        real = path if shipped else _safe_path(path)
        # O_NONBLOCK: opening a FIFO would otherwise wait for somebody to write to it.
        descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise _refused(path, "no such profile", "remit profile list") from None
        raise _refused(path, error.strerror or "cannot be read") from None
    try:
        return _read_open(descriptor, path, shipped=shipped)
    except OSError as error:
        raise _refused(path, error.strerror or "cannot be read") from None
    finally:
        os.close(descriptor)


def read_regular(descriptor: int, path: str) -> bytes:
    """The bytes of the open file ``descriptor``, if regular; ``path`` names it in errors.

    Raises ``ProfileError`` and ``OSError``.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise _refused(path, "not a regular file")
    chunks: list[bytes] = []
    size = 0
    while size <= SIZE_LIMIT:
        chunk = os.read(descriptor, SIZE_LIMIT + 1 - size)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
        size += len(chunk)
    raise _refused(path, f"larger than {SIZE_LIMIT >> 20} MiB", "a profile is a short text")


def _read_open(descriptor: int, path: str, *, shipped: bool) -> bytes:
    if not shipped:
        _check_owner(path, os.fstat(descriptor), what="file")
    return read_regular(descriptor, path)


def _safe_path(path: str) -> str:
    """``path`` with every symbolic link resolved, after a check of each directory and each link on the way."""
    pending = (path if path.startswith("/") else os.path.join(os.getcwd(), path)).split("/")[::-1]
    real = "/"
    links = 0
    _check_owner(real, os.lstat(real), what="directory")
    while pending:
        part = pending.pop()
        if part in ("", "."):
            continue
        if part == "..":
            real = os.path.dirname(real)
            continue
        here = os.path.join(real, part)
        status = os.lstat(here)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _LINK_LIMIT:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            # Nobody needs to write to a link's directory to redirect it if the link itself is theirs.
            _check_owner(here, status, what="symbolic link")
            target = os.readlink(here)
            real = "/" if target.startswith("/") else real
            pending.extend(target.split("/")[::-1])
            continue
        if stat.S_ISDIR(status.st_mode):
            _check_owner(here, status, what="directory")
        real = here
    return real


def _check_owner(path: str, status: os.stat_result, *, what: str) -> None:
    """Refuse what belongs to neither root nor the user, or can be written by more than its owner."""
    own = (0, os.geteuid())
    if status.st_uid not in own and not (what == "directory" and status.st_uid == _OVERFLOW_UID and _root_unmapped()):
        message = f"the {what} belongs to uid {status.st_uid}, and who owns it decides what is granted"
        raise _refused(path, message, f"chown {own[1]} {path}, after reading it")
    if what == "symbolic link":  # its mode means nothing
        return
    if status.st_mode & 0o022 and not (what == "directory" and status.st_mode & stat.S_ISVTX):
        others = "everybody" if status.st_mode & 0o002 else "its group"
        raise _refused(path, f"the {what} can be written by {others}", f"chmod go-w {path}")


def _root_unmapped() -> bool:
    """Whether this user namespace has no uid 0: then root's directories show as uid 65534 (user_namespaces(7))."""
    with open("/proc/self/uid_map", encoding="ascii") as lines:
        inside = [line.split() for line in lines]
    return not any(int(first) <= 0 < int(first) + int(count) for first, _, count in inside)


def _refused(path: str, message: str, hint: str = "") -> ProfileError:
    from remit.profiles.errors import Problem, ProfileError

    return ProfileError((Problem(path, 0, "", message, hint),))
