"""What this host's kernel offers, as one immutable value. ``probe.probe()`` measures it; tests make it up."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Facts that decide how an authority can be enforced. Found by trying, not by reading version numbers.

    ``missing`` says, for each feature that is not there, what refused it (for ``doctor`` and ``Unenforceable``).
    """

    machine: str = "x86_64"
    kernel: str = "6.18"
    landlock_abi: int = 7
    """0: the kernel has no Landlock, or it is not in the boot-time ``lsm=`` list."""
    user_namespaces: bool = True
    """A new user namespace gives its maker capabilities inside it (false under Ubuntu's AppArmor restriction)."""
    seccomp_notify: bool = True
    """``SECCOMP_RET_USER_NOTIF`` with ``SECCOMP_ADDFD_FLAG_SEND`` (Linux 5.14)."""
    new_mount_api: bool = True
    """``mount_setattr(2)`` (Linux 5.12)."""
    fresh_proc: bool = True
    """A new proc can be mounted in a new PID namespace (false where the container masks /proc)."""
    cgroup: str = ""
    """How limits on a whole session can be enforced: ``v2`` (delegated), ``v1`` (root), or empty: per process only."""
    cgroup_controllers: tuple[str, ...] = ()
    idmapped_mounts: bool = False
    """Started with the power to idmap a mount (root of the initial namespace, Linux 5.12)."""
    uid: int = 1000
    gid: int = 1000
    apparmor_restricts_userns: bool = False
    nftables: bool = True
    """A packet filter can be set in a new network namespace. Not part of ``probe()``: ``probe.packet_filter`` tries it, for
    ``doctor``; a start that needs it finds out by itself."""
    tproxy: bool = True
    """It can hand connections on as they are. Without, each packet of them is translated; not part of ``probe()`` either."""
    fuse: bool = False
    tiocsti: bool = True
    missing: tuple[tuple[str, str], ...] = field(default=(), compare=False)
