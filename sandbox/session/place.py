"""Where a session happens: the workspace, the user's directories, and Remit's own."""

from __future__ import annotations

import os
import pwd
import sys
from typing import TYPE_CHECKING

import remit
from remit.sandbox.audit.record import ensure_directory
from remit.sandbox.authority.errors import NOWHERE, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SYSTEM_PREFIXES = ("/", "/usr", "/usr/local")


def current_directory() -> str:
    """The current directory without symbolic links; empty where it has been removed: what is named in full needs none."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def home_directory(environ: Mapping[str, str]) -> str:
    """The user's home: ``HOME`` when it is absolute, else what passwd(5) says, else empty."""
    home = environ.get("HOME", "")
    if home.startswith("/"):
        return os.path.normpath(home)
    return home_of(os.geteuid())


def home_of(uid: int) -> str:
    """The home directory of ``uid`` in passwd(5), or empty."""
    try:
        found = pwd.getpwuid(uid).pw_dir
    except KeyError:
        return ""
    return os.path.normpath(found) if found.startswith("/") else ""


def runtime_directory(environ: Mapping[str, str]) -> str:
    """``XDG_RUNTIME_DIR`` when it is absolute, else empty (XDG Base Directory Specification)."""
    found = environ.get("XDG_RUNTIME_DIR", "")
    return os.path.normpath(found) if found.startswith("/") else ""


def directory(text: str, option: str, cwd: str) -> str:
    """The canonical path of an existing directory that an option names, relative to ``cwd`` (see ``current_directory``).

    Raises:
        UsageError: it is not there, is no directory, or cannot be entered.
    """
    text = os.path.join(cwd, text)
    if not text.startswith("/"):
        raise UsageError(NOWHERE, where=option, hint=f"cd to one that does, or {option} with a path in full")
    try:
        found = os.path.realpath(text, strict=True)
    except OSError as error:
        raise UsageError(f"{text!r}: {error.strerror}", where=option, hint="name an existing directory") from None
    except ValueError:
        raise UsageError(f"{text!r} contains a NUL byte", where=option) from None
    if not os.path.isdir(found):
        raise UsageError(f"{text!r} is not a directory", where=option, hint="name an existing directory")
    if not os.access(found, os.X_OK):
        raise UsageError(f"{text!r} cannot be entered", where=option, hint=f"its permissions are {_mode(found)}")
    return found


def _mode(path: str) -> str:
    return f"{os.stat(path).st_mode & 0o7777:04o}"


def own_directories(environ: Mapping[str, str], home: str) -> tuple[str, ...]:
    """Remit's configuration, keys, profiles, state, cache and sockets: never granted, whatever is (invariant 6)."""
    bases = (("XDG_CONFIG_HOME", ".config"), ("XDG_STATE_HOME", ".local/state"), ("XDG_CACHE_HOME", ".cache"))
    found: list[str] = []
    for variable, default in bases:
        base = environ.get(variable, "")
        base = base if base.startswith("/") else os.path.join(home, default) if home else ""
        if base:
            found.append(os.path.join(os.path.normpath(base), "remit"))
    runtime = runtime_directory(environ)
    return (*found, *([os.path.join(runtime, "remit")] if runtime else []), "/etc/remit")


def make_own_directories(environ: Mapping[str, str]) -> None:
    """Make the user's own directories (mode 0700) that are not there yet, before a session's names are resolved.

    No mount covers what is absent when a session starts: a key made while it runs would be readable below a grant of the
    home directory. What cannot be made is for its first user to report.
    """
    runtime = runtime_directory(environ)
    for path in own_directories(environ, home_directory(environ)):
        if path.startswith("/etc/") or (path == os.path.join(runtime, "remit") and not os.path.isdir(runtime)):
            continue
        ensure_directory(path)


def own_code() -> tuple[str, ...]:
    """The directories that this Remit's code and interpreter run from, under every name; none lies in another one."""
    package = os.path.dirname(os.path.abspath(remit.__file__))
    rooms = [os.path.join(package, name) for name in ("sandbox", "cli", "profiles")]
    prefix = os.path.dirname(os.path.dirname(os.path.abspath(sys.executable)))
    environment = [prefix] if os.path.isfile(os.path.join(prefix, "pyvenv.cfg")) else []
    base = [] if sys.base_prefix in _SYSTEM_PREFIXES else [sys.base_prefix]
    candidates = [package, *rooms, *environment, *base, *[path for path in sys.path if os.path.isabs(path)]]
    paths = sorted({os.path.normpath(path) for one in candidates for path in (one, os.path.realpath(one))})
    outermost: list[str] = []
    for path in paths:
        if not any(path == other or path.startswith(other + "/") for other in outermost):
            outermost.append(path)
    return tuple(outermost)


def identity(workspace: str) -> int:
    """The uid that a command works as in ``workspace``: the caller's, or the workspace's owner's where root calls."""
    uid = os.geteuid()
    return uid if uid else os.stat(workspace).st_uid
