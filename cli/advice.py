"""What a host lacks and exactly how to give it, distribution by distribution: the pure half of ``remit doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remit.sandbox.kernel.facts import HostFacts

MINIMUM_ABI = 2
"""Landlock ABI 2 (Linux 5.19): without REFER, a rename could leave a granted subtree."""

APPARMOR_PROFILE = """\
abi <abi/4.0>,
include <tunables/global>

profile remit /opt/remit/bin/python{,3,3.*} flags=(unconfined) {
  userns,
}
"""
"""For an interpreter that only root can replace. One in a home directory would lend the right to whoever can write there."""


@dataclass(frozen=True, slots=True)
class Host:
    """What advice depends on besides the kernel's facts: who distributed this system, and what surrounds it."""

    distribution: str = ""
    """``ID`` of ``os-release(5)``, followed by the words of ``ID_LIKE``."""
    container: str = ""
    """``docker``, ``podman``, ... or empty on a plain host."""
    systemd: bool = False
    lsm: str = ""
    """The security modules in force (``/sys/kernel/security/lsm``), or empty where that cannot be read."""

    def like(self, *names: str) -> bool:
        return any(word in names for word in self.distribution.split())


@dataclass(frozen=True, slots=True)
class Finding:
    """One feature: what was found, what it is for, whether ``remit run`` refuses without it, and how to get it."""

    feature: str
    present: bool
    detail: str
    purpose: str
    required: bool
    fixes: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        return "ok" if self.present else "missing" if self.required else "limited"


def findings(facts: HostFacts, host: Host) -> list[Finding]:
    """Every feature that Remit looks for, in the order in which the layers are built."""
    why = dict(facts.missing)
    namespaces = facts.user_namespaces
    landlock = facts.landlock_abi >= MINIMUM_ABI
    return [
        Finding(
            "machine",
            facts.machine in ("x86_64", "aarch64"),
            f"{facts.machine}, Linux {facts.kernel}",
            "system call numbers and filters",
            True,
            ("Remit runs on x86_64 and aarch64",),
        ),
        Finding(
            "user namespaces",
            namespaces,
            "usable" if namespaces else why.get("user_namespaces", "refused"),
            "own mounts, processes and network without root",
            True,
            () if namespaces else _namespace_fixes(facts, host),
        ),
        Finding(
            "mount API",
            facts.new_mount_api,
            "mount_setattr" if facts.new_mount_api else why.get("new_mount_api", "missing"),
            "a new root built from descriptors, not from names that can be swapped",
            True,
            () if facts.new_mount_api else ("a kernel of 5.12 or newer (Remit needs 5.19)", *_kernel_fixes(host)),
        ),
        Finding(
            "Landlock",
            landlock,
            f"ABI {facts.landlock_abi}" if facts.landlock_abi else why.get("landlock", "missing"),
            "file access by kernel object, a second layer below the mounts",
            True,
            () if landlock else _landlock_fixes(facts, host),
        ),
        Finding(
            "seccomp listener",
            facts.seccomp_notify,
            "usable" if facts.seccomp_notify else why.get("seccomp_notify", "missing"),
            "deny, protect and auto-executed files, for names that do not exist yet",
            True,
            () if facts.seccomp_notify else _listener_fixes(why.get("seccomp_notify", ""), host),
        ),
        Finding(
            "own /proc",
            facts.fresh_proc,
            "mountable" if facts.fresh_proc else why.get("fresh_proc", "refused"),
            "the command sees its own processes only",
            False,
            () if facts.fresh_proc or not namespaces else _proc_fixes(host),
        ),
        Finding(
            "packet filter",
            facts.nftables,
            _filtering(facts, why),
            "a way out for what `connect` and `publish` grant, and for nothing else",
            namespaces,  # without them the network is the host's, and given up by name
            () if facts.nftables or not namespaces else _filter_fixes(host),
        ),
        Finding(
            "cgroup limits",
            bool(facts.cgroup),
            f"{facts.cgroup}: {', '.join(facts.cgroup_controllers)}" if facts.cgroup else why.get("cgroup", "none"),
            "limits for the whole session, not for each process",
            False,
            () if facts.cgroup else _cgroup_fixes(facts, host),
        ),
        Finding(
            "idmapped mounts",
            facts.idmapped_mounts or facts.uid != 0,
            "usable" if facts.idmapped_mounts else why.get("idmapped_mounts", "not needed: not root"),
            "work on a root-owned workspace without being root inside",
            False,
            ()
            if facts.idmapped_mounts or facts.uid
            else ("run as the workspace's owner, or give the workspace to an ordinary user",),
        ),
        Finding(
            "FUSE",
            facts.fuse,
            "/dev/fuse opens" if facts.fuse else why.get("fuse", "missing"),
            "who reaches for a hidden secret is seen, where reads are not recorded",
            False,
        ),
    ]


def _namespace_fixes(facts: HostFacts, host: Host) -> tuple[str, ...]:
    if host.container:
        return (
            f"this is a container ({host.container}): its seccomp profile or capabilities forbid user namespaces",
            "docker, podman: allow clone, clone3, unshare, setns, mount and pivot_root in a copy of the default seccomp "
            "profile and pass it with --security-opt seccomp=FILE",
            "Kubernetes: the same profile as securityContext.seccompProfile (type Localhost)",
            "or without them: --degrade namespaces (Landlock, seccomp and mediation stay; `remit explain` prints the rest)",
        )
    if facts.apparmor_restricts_userns:
        return (
            "install Remit where only root can write: sudo python3 -m venv --copies /opt/remit && "
            "sudo /opt/remit/bin/pip install remit",
            "give that interpreter, and nothing else, the right; as /etc/apparmor.d/remit:\n" + APPARMOR_PROFILE,
            "load it: sudo apparmor_parser -r /etc/apparmor.d/remit",
            "use it: sudo ln -s /opt/remit/bin/remit /usr/local/bin/remit",
            "only if no profile can be installed, and for every program on this machine: "
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    reason = dict(facts.missing).get("user_namespaces", "")
    if "unprivileged_userns_clone" in reason:
        return (_sysctl("kernel.unprivileged_userns_clone", "1"),)
    if "max_user_namespaces" in reason:
        return (
            "inside a sandbox that forbids nesting (Remit's own does): run it outside",
            _sysctl("user.max_user_namespaces", "15000"),
        )
    return (
        "a kernel with CONFIG_USER_NS, outside other sandboxes",
        "or without them: --degrade namespaces (Landlock, seccomp and mediation stay; `remit explain` prints the rest)",
    )


def _sysctl(key: str, value: str) -> str:
    return f"echo {key}={value} | sudo tee /etc/sysctl.d/60-remit.conf && sudo sysctl --system"


def _landlock_fixes(facts: HostFacts, host: Host) -> tuple[str, ...]:
    if facts.landlock_abi:
        return ("a kernel of 5.19 or newer (Landlock ABI 2)", *_kernel_fixes(host))
    if "lsm=" not in dict(facts.missing).get("landlock", ""):
        return ("a kernel of 5.19 or newer built with CONFIG_SECURITY_LANDLOCK=y", *_kernel_fixes(host))
    modules = f"landlock,{host.lsm}" if host.lsm else 'landlock,"$(cat /sys/kernel/security/lsm)"'
    if host.like("fedora", "rhel", "centos", "suse", "opensuse"):
        return (f"sudo grubby --update-kernel=ALL --args=lsm={modules}, then reboot",)
    if host.like("debian", "ubuntu"):
        return (
            f"add lsm={modules} to GRUB_CMDLINE_LINUX in /etc/default/grub",
            "sudo update-grub, then reboot",
        )
    return (f"add lsm={modules} to the kernel's command line (boot loader entry), then reboot",)


def _kernel_fixes(host: Host) -> tuple[str, ...]:
    if host.container:
        return ("in a container the kernel is the host's: update it there",)
    if host.like("ubuntu"):
        return ("sudo apt install linux-generic-hwe-$(lsb_release -rs), then reboot",)
    if host.like("debian"):
        return ("Debian 12 or newer, or linux-image-amd64 (arm64) from backports, then reboot",)
    if host.like("rhel", "centos"):
        return ("RHEL 9.6, 10 or newer: sudo dnf upgrade kernel, then reboot",)
    if host.like("fedora"):
        return ("sudo dnf upgrade kernel, then reboot",)
    if host.like("arch"):
        return ("sudo pacman -Syu, then reboot",)
    return ()


def _listener_fixes(reason: str, host: Host) -> tuple[str, ...]:
    if reason.startswith("EBUSY"):
        return ("run Remit outside the sandbox or supervisor that already listens",)
    if host.container:
        return ("allow seccomp with SECCOMP_FILTER_FLAG_NEW_LISTENER in the container's seccomp profile",)
    return ("a kernel of 5.14 or newer with CONFIG_SECCOMP_FILTER", *_kernel_fixes(host))


def _proc_fixes(host: Host) -> tuple[str, ...]:
    if host.container:
        return (
            "the container masks parts of /proc. docker: --security-opt systempaths=unconfined; "
            "podman: --security-opt unmask=/proc/*; Kubernetes: procMount: Unmasked (with hostUsers: false)",
        )
    return (
        "something is mounted over parts of /proc (see /proc/self/mountinfo): a new proc is refused until it is gone",
    )


def _filtering(facts: HostFacts, why: Mapping[str, str]) -> str:
    if facts.nftables and not facts.tproxy:
        return f"nftables; slower without nft_tproxy ({why.get('tproxy', 'missing')})"
    return "nftables" if facts.nftables else why.get("nftables", "missing")


def _filter_fixes(host: Host) -> tuple[str, ...]:
    if host.container:
        return (
            "in a container the kernel's modules are the host's: load nf_tables, nft_chain_nat and nft_tproxy there",
        )
    return (
        "sudo modprobe -a nf_tables nft_chain_nat nft_redir nft_tproxy nft_reject_inet, and the same names in "
        "/etc/modules-load.d/remit.conf",
        "a kernel with CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT and CONFIG_NFT_REDIR (faster with CONFIG_NFT_TPROXY and "
        "CONFIG_NFT_REJECT)",
        "or no network: a profile without `connect` and `publish` (`offline`, `build`) starts without it",
    )


def _cgroup_fixes(facts: HostFacts, host: Host) -> tuple[str, ...]:
    if host.container:
        return ("run the container with a writable cgroup v2 tree (podman does for --cgroupns=private with systemd)",)
    if not host.systemd:
        return ("give this user a cgroup: its directory, cgroup.procs and cgroup.subtree_control, one level above it",)
    if facts.uid == 0:
        return ("systemd-run --scope -p Delegate=yes remit run ...",)
    return (
        "start it below the user's manager: systemd-run --user --scope -p Delegate=yes remit run ...",
        "for memory, pids and cpu there: printf '[Service]\\nDelegate=cpu memory pids\\n' | "
        "sudo tee /etc/systemd/system/user@.service.d/delegate.conf (make the directory first), "
        "sudo systemctl daemon-reload, then log in again",
        "without a login session (ssh with no PAM, cron): sudo loginctl enable-linger $USER",
    )
