"""What this host can do, found out by trying it; and which of that must not be missing.

``@pytest.mark.needs("strace", landlock=6, userns=True)`` skips a test where a program or a feature is missing.
``REMIT_MUST_HAVE=landlock:7,userns,strace`` turns such a skip into a failure: a continuous-integration machine that has
lost a feature must not pass by testing nothing.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache

_LIBC = ctypes.CDLL(None, use_errno=True)
_LANDLOCK_CREATE_RULESET, _OPEN_TREE, _MOUNT_SETATTR = 444, 428, 442
_LANDLOCK_VERSION_FLAG = 1
_AT_FDCWD, _AT_EMPTY_PATH, _CLONE_TREE, _ATTR_IDMAP = -100, 0x1000, 1, 0x100000


def _landlock(wanted: int) -> str:
    version = _LIBC.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION_FLAG)
    if version >= wanted:
        return ""
    return f"Landlock ABI {wanted} needed, {max(version, 0)} found"


def _userns(_: int) -> str:
    tried = subprocess.run(
        ["unshare", "-Umpnf", "--map-root-user", "true"], capture_output=True, text=True, check=False
    )
    return "" if tried.returncode == 0 else f"user namespaces: {tried.stderr.strip()}"


def _root(_: int) -> str:
    return "" if os.geteuid() == 0 else "for root only"


def _ordinary(_: int) -> str:
    return "" if os.geteuid() != 0 else "for an ordinary user only"


def _idmap(_: int) -> str:
    """Whether the file system of the tests' files takes an idmapped mount."""

    class MountAttributes(ctypes.Structure):
        _fields_ = (
            ("set", ctypes.c_uint64),
            ("clear", ctypes.c_uint64),
            ("propagation", ctypes.c_uint64),
            ("userns", ctypes.c_uint64),
        )

    if os.geteuid() != 0:
        return "idmapped mounts are for root"
    with tempfile.TemporaryDirectory(dir="/home") as directory:
        tree = _LIBC.syscall(_OPEN_TREE, _AT_FDCWD, directory.encode(), _CLONE_TREE)
        if tree < 0:
            return f"open_tree: {os.strerror(ctypes.get_errno())}"
        held = subprocess.Popen(
            ["unshare", "-U", "sh", "-c", "echo; read line"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert held.stdin is not None
        assert held.stdout is not None
        try:
            held.stdout.readline()
            for kind in ("uid", "gid"):
                with open(f"/proc/{held.pid}/{kind}_map", "w") as mapping:
                    mapping.write("0 1000 1")
            namespace = os.open(f"/proc/{held.pid}/ns/user", os.O_RDONLY)
            attributes = MountAttributes(set=_ATTR_IDMAP, userns=namespace)
            size = ctypes.sizeof(attributes)
            done = _LIBC.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size)
            problem = "" if done == 0 else f"idmapped mounts here: {os.strerror(ctypes.get_errno())}"
            os.close(namespace)
        finally:
            held.stdin.close()
            held.wait()
            held.stdout.close()
            os.close(tree)
    return problem


def _x86_64(_: int) -> str:
    return "" if platform.machine() == "x86_64" else "for x86-64 only"


def _fuse(_: int) -> str:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    return ""


_FEATURES: Mapping[str, Callable[[int], str]] = {
    "landlock": _landlock,
    "userns": _userns,
    "root": _root,
    "ordinary": _ordinary,
    "idmap": _idmap,
    "fuse": _fuse,
    "x86_64": _x86_64,
}


@cache
def missing(feature: str, wanted: int = 1) -> str:
    """Why ``feature`` (or the program of that name) cannot be had here, or ``""``."""
    probe = _FEATURES.get(feature)
    if probe is not None:
        return probe(wanted)
    return "" if shutil.which(feature, path="/usr/local/bin:/usr/bin:/bin") else f"no program {feature!r}"


def all_missing(programs: Sequence[str], features: Mapping[str, int]) -> list[tuple[str, str]]:
    """(feature, reason) of everything that a test needs and cannot have."""
    wanted = {**dict.fromkeys(programs, 1), **{name: int(value) for name, value in features.items()}}
    return [(name, reason) for name, value in wanted.items() if (reason := missing(name, value))]


def must_have() -> dict[str, int]:
    """``REMIT_MUST_HAVE``, parsed: feature to the least version."""
    entries = [entry.strip() for entry in os.environ.get("REMIT_MUST_HAVE", "").split(",")]
    named = [entry.partition(":") for entry in entries if entry]
    return {name: int(version or 1) for name, _, version in named}


if __name__ == "__main__":
    for feature_name in _FEATURES:
        print(f"{feature_name}: {missing(feature_name) or 'yes'}", file=sys.stdout)
