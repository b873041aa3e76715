"""Whom the command runs as. Root is not special (invariant 7).

An ordinary user stays that user. Started as root, the command runs as the workspace's owner; a root-owned workspace is
mounted with its ids mapped (``mount_setattr(2)`` MOUNT_ATTR_IDMAP, Linux 5.12) so that root's files are an unprivileged
user's inside and root's outside.
"""

from __future__ import annotations

import posix
import pwd

from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.kernel import files, mount, process
from remit.sandbox.launch.request import Identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from remit.sandbox.launch.wire import Operation

_SIGKILL = 9
NOBODY = 65534
_OPEN = files.O_PATH | posix.O_CLOEXEC
_SAFE = files.RESOLVE_NO_SYMLINKS | files.RESOLVE_NO_MAGICLINKS


def choose(workspace: str, operations: Sequence[Operation]) -> Identity:
    """Decide for one start by root. Raises LaunchError where root's workspace cannot be mapped."""
    status = posix.stat(workspace)
    if status.st_uid != 0:
        return Identity(status.st_uid, _group_of(status.st_uid), self_map=False, idmapped={})
    mapped: dict[str, int] = {}
    for operation in operations:
        # Every writable bind of a root-owned tree: (bind, source, target, kind, read_only, no_exec, no_dev, idmap).
        if operation[0] == "bind" and not operation[4] and posix.stat(operation[1]).st_uid == 0:
            mapped[operation[1]] = _map_tree(operation[1])
    return Identity(NOBODY, NOBODY, self_map=False, idmapped=mapped)


def _group_of(uid: int) -> int:
    """The user's own group. Not the workspace's: a directory that root made for somebody is often still of group root."""
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return NOBODY


def _map_tree(path: str) -> int:
    try:
        opened = files.openat2(-100, path.encode(errors="surrogateescape"), _OPEN, 0, _SAFE)
    except OSError as error:
        changed = LaunchError(f"{path}: {error.strerror}", hint="grant what is there now")
        changed.phase = "changed"  # the plan is older than the host's tree, as in ``ground``
        raise changed from None
    namespace = _user_namespace(NOBODY, NOBODY)
    try:
        tree = mount.clone_tree(opened)
        mount.set_attributes(tree, mount.ATTR_IDMAP, user_namespace=namespace)
    except OSError as error:
        raise LaunchError(
            f"{path} belongs to root and its ids cannot be mapped here: {error.strerror}",
            hint=f"give it to an ordinary user: chown -R USER {path}",
        ) from None
    finally:
        posix.close(namespace)
        posix.close(opened)
    return tree


def _user_namespace(uid: int, gid: int) -> int:
    """A user namespace in which 0 is ``uid`` outside, held by a descriptor alone."""
    read, write = posix.pipe2(posix.O_CLOEXEC)
    child = process.clone3(process.CLONE_NEWUSER)
    if child == 0:
        posix.close(write)
        posix.read(read, 1)
        process.leave(0)
    posix.close(read)
    try:
        files.write(f"/proc/{child}/uid_map", b"0 %d 1" % uid)
        files.write(f"/proc/{child}/gid_map", b"0 %d 1" % gid)
        return posix.open(f"/proc/{child}/ns/user", posix.O_RDONLY | posix.O_CLOEXEC)
    finally:
        posix.close(write)
        posix.waitpid(child, 0)
