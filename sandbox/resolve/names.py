"""Names to objects: the one step between what a user wrote and what the kernel will be told.

A name is followed component by component, each opened without following it, so that every symbolic link on the way is
seen and recorded; nothing is ever asked of the kernel by a whole path. A plan remembers what each name
led to; a start that finds anything else does not go on, so that a name that changed can never widen a grant.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import PurePosixPath

from remit.sandbox.authority.errors import RemitError
from remit.sandbox.authority.model import Authority, PathPattern, PathRule
from remit.sandbox.resolve.binding import Kind, Named

MAX_LINKS = 40
"""As the kernel's own bound (``MAXSYMLINKS``, path_resolution(7))."""

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class ResolveError(RemitError):
    """A granted name that is not there, or that cannot be followed. Exit status 2 when the command line named it."""

    phase = "resolve"

    def __init__(self, message: str, *, where: str = "", hint: str = "", usage: bool = False) -> None:
        super().__init__(message, where=where, hint=hint)
        if usage:
            self.exit_status = 2


def resolve_name(path: str, *, uid: int) -> Named:
    """Follow ``path`` (absolute). ``uid`` is the user whose power over the parent directory ``parent_writable`` tells.

    A name that is absent is no error: the result says ``ABSENT``. ResolveError for a relative path, for more than
    ``MAX_LINKS`` links and for a link on /proc (what it means depends on who looks); PermissionError where a directory
    on the way may not be searched.
    """
    if not path.startswith("/"):
        raise ResolveError(f"not an absolute path: {path!r}")
    walk = _Walk(path)
    try:
        return walk.run(uid)
    finally:
        walk.close()


class _Walk:
    """The state of one walk: the open directories from the root down, and what is still to follow."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        root = os.open("/", _LOOK | os.O_DIRECTORY)
        self.opened: list[tuple[str, int, os.stat_result]] = [("", root, os.fstat(root))]
        self.links: list[tuple[str, str]] = []
        self.proc = _device("/proc")

    def close(self) -> None:
        for _, descriptor, _ in self.opened:
            os.close(descriptor)

    def here(self, *more: str) -> str:
        return "/" + "/".join((*(name for name, _, _ in self.opened[1:]), *more))

    def run(self, uid: int) -> Named:
        while self.pending:
            name = self.pending.pop()
            if name == "..":
                if len(self.opened) > 1:
                    os.close(self.opened.pop()[1])
                continue
            try:
                descriptor = os.open(name, _LOOK, dir_fd=self.opened[-1][1])
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR):
                    return self.absent(name)
                raise
            found = os.fstat(descriptor)
            if stat.S_ISLNK(found.st_mode):
                try:
                    self.follow(name, descriptor, found)
                finally:
                    os.close(descriptor)
                continue
            self.opened.append((name, descriptor, found))
        return self.present(uid)

    def follow(self, name: str, descriptor: int, found: os.stat_result) -> None:
        link = self.here(name)
        if found.st_dev == self.proc:
            raise ResolveError(f"{self.path}: {link} is a link of /proc, which names another object for every process")
        if len(self.links) >= MAX_LINKS:
            raise ResolveError(f"{self.path}: more than {MAX_LINKS} symbolic links", hint="a loop of links?")
        target = os.readlink("", dir_fd=descriptor)
        self.links.append((link, target))
        self.pending.extend(part for part in reversed(target.split("/")) if part not in ("", "."))
        if target.startswith("/"):
            while len(self.opened) > 1:
                os.close(self.opened.pop()[1])

    def absent(self, name: str) -> Named:
        canonical = os.path.normpath(self.here(name, *reversed(self.pending)))
        return Named(self.path, canonical, Kind.ABSENT, tuple(self.links))

    def present(self, uid: int) -> Named:
        found = self.opened[-1][2]
        parent = self.opened[-2][2] if len(self.opened) > 1 else found
        return Named(
            self.path,
            self.here(),
            _kind(found.st_mode),
            tuple(self.links),
            found.st_dev,
            found.st_ino,
            found.st_uid,
            found.st_mode,
            _can_replace(parent, found, uid),
            tuple([(status.st_dev, status.st_ino) for _, _, status in self.opened]),
        )


def _device(path: str) -> int:
    try:
        return os.stat(path).st_dev
    except OSError:
        return -1


def _kind(mode: int) -> Kind:
    if stat.S_ISDIR(mode):
        return Kind.DIRECTORY
    if stat.S_ISREG(mode):
        return Kind.FILE
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return Kind.DEVICE
    if stat.S_ISSOCK(mode):
        return Kind.SOCKET
    return Kind.OTHER


def _can_replace(parent: os.stat_result, child: os.stat_result, uid: int) -> bool:
    """Whether ``uid`` can put another object in the child's place, by permission bits (a read-only mount is not
    seen)."""
    mode = parent.st_mode
    if uid == 0:
        return True
    if mode & stat.S_ISVTX and uid not in (parent.st_uid, child.st_uid):
        return False
    if parent.st_uid == uid:
        return bool(mode & stat.S_IWUSR)
    if mode & stat.S_IWGRP and parent.st_gid in os.getgroups():
        return True
    return bool(mode & stat.S_IWOTH)


def device_path(name: str) -> str:
    """A device of an authority as a path: ``kvm`` and ``/dev/kvm`` are the same."""
    return name if name.startswith("/") else f"/dev/{name}"


def resolve(authority: Authority, *, uid: int, also: Iterable[str] = ()) -> dict[str, Named]:
    """Every name the compiler will ask for: granted paths, denied and protected names and their anchors, devices, unix
    sockets, and ``also`` (workspace, current directory, home, Remit's own files), each under the spelling given.

    ResolveError, naming every granted path that is absent without being optional, or that may not be looked at.
    """
    names: dict[str, Named] = {}
    missing: list[tuple[PathRule, str]] = []
    for rule in authority.paths:
        try:
            named = resolve_name(rule.path, uid=uid)
        except PermissionError:
            if not rule.optional:
                missing.append((rule, "may not be looked at by this user"))
            named = Named(rule.path, rule.path, Kind.ABSENT)
        if named.kind is Kind.ABSENT and not rule.optional and (not missing or missing[-1][0] is not rule):
            missing.append((rule, "does not exist"))
        names[rule.path] = named
    if missing:
        raise _missing(missing, uid)

    for pattern in (*authority.deny, *authority.protect):
        for path in (pattern.anchor, str(pattern)) if not pattern.any_depth else (pattern.anchor,):
            names.setdefault(path, look(path, uid=uid))
    for path in (*map(device_path, authority.devices), *authority.unix, *also):
        names.setdefault(path, look(path, uid=uid))
    return names


def literal(pattern: PathPattern) -> str | None:
    """The one path that a pattern without depth names."""
    return None if pattern.any_depth else str(pattern)


def look(path: str, *, uid: int) -> Named:
    """As ``resolve_name``; what this user may not look at counts as absent (inside, nobody can look at it either)."""
    try:
        return resolve_name(path, uid=uid)
    except PermissionError:
        return Named(path, path, Kind.ABSENT)


def _missing(missing: list[tuple[PathRule, str]], uid: int) -> ResolveError:
    first, why = missing[0]
    more = "".join(f"; {rule.path} {reason}" for rule, reason in missing[1:])
    usage = any(rule.source.line == 0 for rule, _ in missing)
    return ResolveError(
        f"{first.path} {why}{more}",
        where=str(first.source),
        hint=f"the nearest directory that exists is {nearest(first.path, uid=uid)}",
        usage=usage,
    )


def nearest(path: str, *, uid: int) -> str:
    """The deepest parent of ``path`` that exists and can be looked at."""
    for parent in PurePosixPath(path).parents:
        try:
            named = resolve_name(str(parent), uid=uid)
        except (OSError, ResolveError):
            continue
        if named.kind is Kind.DIRECTORY:
            return str(parent)
    return "/"
