"""Find out what this host's kernel offers, by trying it: the effectful half of ``facts``.

One child process tries everything that would change the caller (namespaces, mounts, a seccomp filter) and reports over
a pipe; nothing outlives the probe. Version numbers are not evidence: distributions backport, containers and security
modules take away.
"""

from __future__ import annotations

import posix
from errno import EBUSY, ENOSYS, ENOTTY, EOPNOTSUPP, EPERM, ETIMEDOUT
from errno import errorcode as ERRNO_NAMES
from select import POLLIN, poll

from remit.sandbox.kernel import files, landlock, mount, notify, process, sockets
from remit.sandbox.kernel.call import AT_FDCWD, MACHINE, NR, call
from remit.sandbox.kernel.facts import HostFacts
from remit.sandbox.kernel.netlink import NETFILTER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CGROUP_CONTROLLERS = ("memory", "pids", "cpu")
"""The controllers that hold a session's limits."""

APPARMOR_RESTRICTION = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
USERNS_MAXIMUM = "/proc/sys/user/max_user_namespaces"
DEBIAN_USERNS = "/proc/sys/kernel/unprivileged_userns_clone"
LEGACY_TIOCSTI = "/proc/sys/dev/tty/legacy_tiocsti"

_ALLOW_ALL = (0x06).to_bytes(2, "little") + bytes(2) + (0x7FFF0000).to_bytes(4, "little")
_RET_USER_NOTIF = 0x7FC00000
_PATIENCE = 20_000
"""Milliseconds for a child that should answer at once: on a machine where many namespaces end it has to wait for that."""
_WORDS = 4096


def probe() -> HostFacts:
    """Try every feature that decides how an authority can be enforced. Never raises for a feature that is missing."""
    uid, gid = posix.geteuid(), posix.getegid()
    restricted = _read(APPARMOR_RESTRICTION).strip() == "1"
    missing: list[tuple[str, str]] = []
    if not NR:
        missing.append(("machine", f"{MACHINE} is neither x86_64 nor aarch64"))
        return HostFacts(MACHINE, posix.uname().release, 0, False, False, False, False, missing=tuple(missing))
    abi = landlock.abi()
    if not abi:
        missing.append(("landlock", _landlock_refusal()))
    tried = _tried(uid, gid)
    namespaces = tried.get("namespaces") == 0
    if not namespaces:
        missing.append(("user_namespaces", _namespace_refusal(tried.get("namespaces", EPERM), restricted, uid)))
    mount_api = tried["mount_api"] == 0 if "mount_api" in tried else _has_mount_setattr()
    if not mount_api:
        missing.append(("new_mount_api", f"mount_setattr: {_errno_name(tried.get('mount_api', ENOSYS))}"))
    fresh_proc = tried.get("proc") == 0
    if not fresh_proc:
        why = f"mounting proc: {_errno_name(tried['proc'])}" if "proc" in tried else "needs a user namespace"
        missing.append(("fresh_proc", why))
    listener = tried.get("notify", ENOSYS)
    if listener:
        missing.append(("seccomp_notify", _notify_refusal(listener)))
    idmap = tried.get("idmap")
    if idmap:
        missing.append(("idmapped_mounts", f"mount_setattr(MOUNT_ATTR_IDMAP) of /: {_errno_name(idmap)}"))
    kind, _, controllers = cgroup_place()
    if not kind:
        missing.append(("cgroup", "no cgroup with memory, pids or cpu that this user may make children in"))
    fuse = _errno_of_open("/dev/fuse")
    if fuse:
        missing.append(("fuse", f"/dev/fuse: {_errno_name(fuse)}"))
    return HostFacts(
        machine=MACHINE,
        kernel=posix.uname().release,
        landlock_abi=abi,
        user_namespaces=namespaces,
        seccomp_notify=not listener,
        new_mount_api=mount_api,
        fresh_proc=fresh_proc,
        cgroup=kind,
        cgroup_controllers=controllers,
        idmapped_mounts=idmap == 0,
        uid=uid,
        gid=gid,
        apparmor_restricts_userns=restricted,
        fuse=not fuse,
        tiocsti=_read(LEGACY_TIOCSTI).strip() != "0",
        missing=tuple(missing),
    )


# --- What only a child can try ----------------------------------------------------------------------------------------


_worked: dict[tuple[int, int], dict[str, int]] = {}


def _tried(uid: int, gid: int) -> dict[str, int]:
    """``_try_in_child``; once is enough for what worked: a program that opens one session after the other pays for one try.

    What was refused is tried again, for somebody may have allowed it meanwhile. What worked and would not any more ends the
    start by itself.
    """
    found = _worked.get((uid, gid))
    if found is None:
        found = _try_in_child(uid, gid)
        if all(found.get(what, ENOSYS) == 0 for what in ("namespaces", "mount_api", "proc", "notify")):
            _worked[uid, gid] = found
    return found


def _try_in_child(uid: int, gid: int) -> dict[str, int]:
    """Feature -> 0 or the errno that refused it; a feature that could not even be tried is absent."""
    from_child, to_parent = posix.pipe()
    to_wait, hold = posix.pipe()
    tried: dict[str, int] = {}
    flags = process.CLONE_NEWUSER | process.CLONE_NEWNS | process.CLONE_NEWPID
    try:
        pid = process.clone3(flags)
    except OSError as error:
        tried["namespaces"] = error.errno or EPERM
        try:
            pid = process.clone3(0)  # seccomp does not need the namespaces
        except OSError:
            for descriptor in (from_child, to_parent, to_wait, hold):
                posix.close(descriptor)
            return tried
    if pid == 0:
        posix.close(hold)
        _child(to_parent, to_wait, None if tried else (uid, gid))
    posix.close(to_parent)
    posix.close(to_wait)
    try:
        tried.update(_receive(from_child))
        if uid == 0 and tried.get("mount_api") == 0:
            tried["idmap"] = _try_idmap(pid)
    finally:
        posix.close(from_child)
        posix.close(hold)
        # The child waits only for ``hold``; one that hangs (a lock held by another thread at clone3) must not hang us.
        posix.kill(pid, 9)
        posix.waitpid(pid, 0)
    return tried


def _receive(descriptor: int) -> dict[str, int]:
    """The child's report: ``feature=errno`` words, ended by a newline. A child that died said what it could."""
    text = b""
    ready = poll()
    ready.register(descriptor, POLLIN)
    while not text.endswith(b"\n") and ready.poll(_PATIENCE):
        piece = posix.read(descriptor, _WORDS)
        if not piece:
            break
        text += piece
    return {name: int(value) for name, _, value in (word.partition("=") for word in text.decode("ascii").split())}


def _child(report: int, wait: int, identity: tuple[int, int] | None) -> None:
    """The child's whole life: try, report, wait until the parent has looked at its namespaces, leave. Never returns."""
    try:
        process.die_with_parent()
        words: list[tuple[str, int]] = []
        if identity is not None:
            # A namespace without capabilities (AppArmor's restriction) can be made but not used.
            words.append(("namespaces", _attempt(_map_identity, *identity) or _attempt(mount.make_private)))
            words.append(("mount_api", _attempt(_try_mount_api)))
            words.append(("proc", _attempt(_try_proc)))
        words.append(("notify", _attempt(_try_notify)))
        posix.write(report, " ".join([f"{name}={errno}" for name, errno in words]).encode("ascii") + b"\n")
        posix.read(wait, 1)
    finally:
        posix._exit(0)  # pyright: ignore[reportPrivateUsage]


def _attempt(action: Callable[..., None], *arguments: int) -> int:
    try:
        action(*arguments)
    except OSError as error:
        return error.errno or EPERM
    return 0


def _map_identity(uid: int, gid: int) -> None:
    """Map one uid and gid. Without ``setgroups`` denied first, an ordinary user may not write ``gid_map``."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        descriptor = posix.open(f"/proc/self/{name}", posix.O_WRONLY | posix.O_CLOEXEC)
        try:
            posix.write(descriptor, text.encode("ascii"))
        finally:
            posix.close(descriptor)


def _try_mount_api() -> None:
    descriptor = mount.new_filesystem(b"tmpfs", (), 0)
    try:
        mount.set_attributes(descriptor, mount.ATTR_NOSUID)
    finally:
        posix.close(descriptor)


def _try_proc() -> None:
    posix.close(mount.new_filesystem(b"proc", (), mount.ATTR_NOSUID | mount.ATTR_NODEV | mount.ATTR_NOEXEC))


def _try_notify() -> None:
    """Make a listener and try ADDFD with SEND (Linux 5.14) on a notification that is not there: ENOENT is a yes."""
    call(NR["seccomp"], notify.GET_ACTION_AVAIL, 0, _RET_USER_NOTIF.to_bytes(4, "little"))
    process.no_new_privileges()
    listener = notify.load_filter(_ALLOW_ALL, listener=True)
    try:
        notify.Listener(listener).give(1, listener, cloexec=True)
    finally:
        posix.close(listener)


def _try_idmap(pid: int) -> int:
    """As root: an idmapped clone of the root mount, by the child's user namespace. Returns 0 or the errno."""
    try:
        namespace = posix.open(f"/proc/{pid}/ns/user", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError as error:
        return error.errno or EPERM
    try:
        root = files.openat2(AT_FDCWD, b"/", files.O_PATH | posix.O_CLOEXEC)
        try:
            tree = mount.clone_tree(root, recursive=False)
        finally:
            posix.close(root)
        try:
            mount.set_attributes(tree, mount.ATTR_IDMAP, recursive=False, user_namespace=namespace)
        finally:
            posix.close(tree)
    except OSError as error:
        return error.errno or EPERM
    finally:
        posix.close(namespace)
    return 0


def _has_mount_setattr() -> bool:
    """Where no namespace allows a real try: the kernel knows the call if it complains about anything but the call."""
    try:
        mount.set_attributes(-1, 0)
    except OSError as error:
        return error.errno != ENOSYS
    return True


def packet_filter(batch: bytes) -> str:
    """Why ``batch`` (nfnetlink, of one acknowledgement) cannot be set in a new network namespace here, or "".

    Not part of ``probe``: making a network namespace takes longer than all of that.
    """
    from_child, to_parent = posix.pipe()
    try:
        pid = process.clone3(process.CLONE_NEWUSER | process.CLONE_NEWNET)
    except OSError as error:
        posix.close(from_child)
        posix.close(to_parent)
        return f"a network namespace: {_errno_name(error.errno or EPERM)}"
    if pid == 0:
        try:
            process.die_with_parent()
            errno = 0
            try:
                sockets.netlink(NETFILTER, batch, 1)
            except OSError as error:
                errno = error.errno or EPERM
            posix.write(to_parent, b"nftables=%d\n" % errno)
        finally:
            posix._exit(0)  # pyright: ignore[reportPrivateUsage]
    posix.close(to_parent)
    try:
        errno = _receive(from_child).get("nftables", ETIMEDOUT)
    finally:
        posix.close(from_child)
        posix.kill(pid, 9)
        posix.waitpid(pid, 0)
    return f"nftables: {_errno_name(errno)}" if errno else ""


# --- cgroups ----------------------------------------------------------------------------------------------------------


def cgroup_place() -> tuple[str, tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Where a session's cgroup can be made: (kind, ((controller, directory), ...), controllers).

    ``kind`` is ``v2``, ``v1`` or empty. With v2 every controller has the same directory: the nearest ancestor of the
    own cgroup, itself included, that this user may make children in and that hands the controller down. A cgroup that
    holds processes can hand none down (the "no internal processes" rule), so it is mostly the parent. Reads only.
    """
    return find_cgroup(_read("/proc/self/mountinfo"), _read("/proc/self/cgroup"), _read, _may_write)


def find_cgroup(
    mountinfo: str, own: str, read: Callable[[str], str], may_write: Callable[[str], bool]
) -> tuple[str, tuple[tuple[str, str], ...], tuple[str, ...]]:
    """``cgroup_place`` on given texts (``proc(5)`` formats of ``mountinfo`` and ``cgroup``) and file accesses."""
    mounts = _cgroup_mounts(mountinfo)
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in own.splitlines() if line)}
    for _, root, point in [m for m in mounts if m[0] == ""]:
        place = _inside(point, root, paths.get("", ""))
        while place.startswith(point):
            handed = [c for c in CGROUP_CONTROLLERS if c in read(f"{place}/cgroup.subtree_control").split()]
            if handed and may_write(place) and may_write(f"{place}/cgroup.procs"):
                return "v2", tuple([(c, place) for c in handed]), tuple(handed)
            if place == point:
                break
            place = place.rpartition("/")[0]
    found: list[tuple[str, str]] = []
    for controller in CGROUP_CONTROLLERS:
        for names, root, point in mounts:
            if controller in names.split(","):
                own_path = next((path for name, path in paths.items() if controller in name.split(",")), "")
                place = _inside(point, root, own_path)
                if place and may_write(place) and may_write(f"{place}/cgroup.procs"):
                    found.append((controller, place))
                    break
    return ("v1" if found else ""), tuple(found), tuple([c for c, _ in found])


def _cgroup_mounts(mountinfo: str) -> list[tuple[str, str, str]]:
    """(v1 controllers or "" for v2, root of the mount, mount point) of each cgroup filesystem."""
    found: list[tuple[str, str, str]] = []
    for line in mountinfo.splitlines():
        front, _, back = line.partition(" - ")
        words, tail = front.split(" "), back.split(" ")
        if tail[0] in ("cgroup", "cgroup2") and len(words) > 4 and len(tail) > 2:
            names = "" if tail[0] == "cgroup2" else ",".join([o for o in tail[2].split(",") if o in CGROUP_CONTROLLERS])
            if names or tail[0] == "cgroup2":
                found.append((names, words[3], words[4].replace("\\040", " ")))
    return found


def _inside(point: str, root: str, path: str) -> str:
    """The own cgroup ``path`` below a mount of ``root`` at ``point``; "" where the mount does not show it."""
    if not path or "/.." in path:
        return ""
    if root == "/":
        return (point + path).rstrip("/")
    if path == root or path.startswith(root + "/"):
        return point + path[len(root) :]
    return ""


def _may_write(path: str) -> bool:
    return posix.access(path, posix.W_OK, effective_ids=True)


# --- Small readings ---------------------------------------------------------------------------------------------------


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _errno_of_open(path: str) -> int:
    try:
        posix.close(posix.open(path, posix.O_RDWR | posix.O_CLOEXEC))
    except OSError as error:
        return error.errno or EPERM
    return 0


def _errno_name(errno: int) -> str:
    return f"{ERRNO_NAMES.get(errno, str(errno))} ({posix.strerror(errno)})"


def _landlock_refusal() -> str:
    try:
        landlock.create_ruleset(1, 0, 0)
    except OSError as error:
        if error.errno == ENOSYS:
            return "the kernel was built without CONFIG_SECURITY_LANDLOCK"
        if error.errno == EOPNOTSUPP:
            return "built in, but not in the boot parameter lsm="
        return f"landlock_create_ruleset: {_errno_name(error.errno or EPERM)}"
    return "landlock_create_ruleset reports no version"


def _namespace_refusal(errno: int, restricted: bool, uid: int) -> str:
    if restricted and uid:
        return f"AppArmor: {APPARMOR_RESTRICTION} is 1"
    if _read(DEBIAN_USERNS).strip() == "0":
        return f"{DEBIAN_USERNS} is 0"
    if _read(USERNS_MAXIMUM).strip() == "0":
        return f"{USERNS_MAXIMUM} is 0"
    return f"clone3(CLONE_NEWUSER): {_errno_name(errno)}"


def _notify_refusal(errno: int) -> str:
    if errno == EBUSY:
        return "EBUSY: this process already has a seccomp listener (a sandbox around it), and the kernel allows one"
    if errno == ENOTTY:
        return "the kernel has no SECCOMP_IOCTL_NOTIF_ADDFD"
    return f"seccomp listener: {_errno_name(errno)}"
