"""The mount API by descriptor (``open_tree(2)``, ``mount_setattr(2)``, ``fsopen(2)``, ``move_mount(2)``; Linux 5.12)."""

from __future__ import annotations

import posix

from remit.sandbox.kernel.call import AT_EMPTY_PATH, AT_FDCWD, AT_RECURSIVE, NR, quick

MS_PRIVATE = 1 << 18
MS_REC = 0x4000
MNT_DETACH = 2

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = posix.O_CLOEXEC

ATTR_RDONLY = 0x1
ATTR_NOSUID = 0x2
ATTR_NODEV = 0x4
ATTR_NOEXEC = 0x8
ATTR_IDMAP = 0x100000

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CREATE = 6
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40


def make_private() -> None:
    """No mount event travels between this mount namespace and any other."""
    quick(NR["mount"], None, b"/", None, MS_REC | MS_PRIVATE, None)


def new_filesystem(kind: bytes, options: tuple[tuple[bytes, bytes], ...], attributes: int) -> int:
    """``fsopen``, ``fsconfig``, ``fsmount``: the descriptor of a detached mount of a new filesystem."""
    context = quick(NR["fsopen"], kind, FSOPEN_CLOEXEC)
    try:
        for key, value in options:
            quick(NR["fsconfig"], context, _FSCONFIG_SET_STRING, key, value, 0)
        quick(NR["fsconfig"], context, _FSCONFIG_CREATE, None, None, 0)
        return quick(NR["fsmount"], context, FSMOUNT_CLOEXEC, attributes)
    finally:
        posix.close(context)


def clone_tree(descriptor: int, *, recursive: bool = True) -> int:
    """``open_tree(OPEN_TREE_CLONE)`` of the object behind ``descriptor``: the descriptor of a detached copy of its mounts."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    return quick(NR["open_tree"], descriptor, b"", flags)


def set_attributes(mount: int, attributes: int, *, recursive: bool = True, user_namespace: int = 0) -> None:
    """``mount_setattr(2)``. With AT_RECURSIVE it covers submounts, which remounting a bind does not."""
    structure = b"".join([v.to_bytes(8, "little") for v in (attributes, 0, 0, user_namespace)])
    quick(NR["mount_setattr"], mount, b"", AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0), structure, 32)


def attach(mount: int, directory: int, path: bytes = b"") -> None:
    """``move_mount(2)`` of a detached mount onto ``path`` below ``directory``, or onto ``directory`` itself."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | (0 if path else _MOVE_MOUNT_T_EMPTY_PATH)
    quick(NR["move_mount"], mount, b"", directory, path, flags)


def attach_over(mount: int, path: bytes) -> None:
    """``move_mount(2)`` onto an absolute path of the current root."""
    quick(NR["move_mount"], mount, b"", AT_FDCWD, path, _MOVE_MOUNT_F_EMPTY_PATH)


def pivot_to(root: int) -> None:
    """Make the attached mount ``root`` the root of this mount namespace and detach the old one."""
    posix.fchdir(root)
    quick(NR["pivot_root"], b".", b".")
    quick(NR["umount2"], b".", MNT_DETACH)
    posix.chdir("/")
