"""Where a session happens: the workspace, the user's home and runtime directories. The first effectful look at the host."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING

from remit.sandbox.authority.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


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


def directory(text: str, option: str) -> str:
    """The canonical path of an existing directory that an option names, relative to the current directory.

    Raises:
        UsageError: it is not there, is no directory, or cannot be entered.
    """
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
