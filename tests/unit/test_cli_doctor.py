"""Doctor's advice: every missing feature has an exact fix, the narrow one first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from remit.cli.advice import APPARMOR_PROFILE, Finding, Host, findings
from remit.sandbox.kernel.facts import HostFacts

GOOD = HostFacts(cgroup="v2", cgroup_controllers=("memory", "pids"), fuse=True)
UBUNTU = Host(distribution="ubuntu debian", systemd=True, lsm="lockdown,capability,yama,apparmor")
FEDORA = Host(distribution="fedora", systemd=True, lsm="lockdown,capability,yama,selinux,bpf")
DEBIAN = Host(distribution="debian", systemd=True)
ARCH = Host(distribution="arch", systemd=True)
DOCKER = Host(distribution="debian", container="docker")


def lacking(facts: HostFacts, host: Host) -> dict[str, Finding]:
    return {one.feature: one for one in findings(facts, host) if not one.present}


def test_a_good_host_lacks_nothing() -> None:
    assert lacking(GOOD, UBUNTU) == {}
    assert all(one.state == "ok" for one in findings(GOOD, UBUNTU))


def test_apparmor_advice_is_a_profile_for_a_root_owned_interpreter_and_a_sysctl_last() -> None:
    facts = replace(
        GOOD,
        user_namespaces=False,
        fresh_proc=False,
        apparmor_restricts_userns=True,
        missing=(("user_namespaces", "AppArmor: restricted"),),
    )
    one = lacking(facts, UBUNTU)["user namespaces"]
    assert one.required
    assert "/opt/remit" in one.fixes[0]
    assert APPARMOR_PROFILE in one.fixes[1]
    assert [i for i, fix in enumerate(one.fixes) if "sysctl" in fix] == [len(one.fixes) - 1]
    assert "userns," in APPARMOR_PROFILE
    assert "/home" not in APPARMOR_PROFILE


def test_the_boot_parameter_keeps_the_modules_that_are_on() -> None:
    facts = replace(GOOD, landlock_abi=0, missing=(("landlock", "built in, but not in the boot parameter lsm="),))
    ubuntu = lacking(facts, UBUNTU)["Landlock"].fixes
    assert "lsm=landlock,lockdown,capability,yama,apparmor" in ubuntu[0]
    assert "update-grub" in ubuntu[1]
    fedora = lacking(facts, FEDORA)["Landlock"].fixes
    assert fedora[0].startswith("sudo grubby")
    assert "selinux" in fedora[0]


def test_a_kernel_without_landlock_needs_another_kernel() -> None:
    facts = replace(GOOD, landlock_abi=0, missing=(("landlock", "built without CONFIG_SECURITY_LANDLOCK"),))
    for host in (UBUNTU, DEBIAN, FEDORA, ARCH):
        fixes = lacking(facts, host)["Landlock"].fixes
        assert "5.19" in fixes[0]
        assert len(fixes) == 2
    assert "host's" in lacking(facts, DOCKER)["Landlock"].fixes[1]


@pytest.mark.parametrize("abi", [0, 1])
def test_an_old_landlock_refuses(abi: int) -> None:
    assert lacking(replace(GOOD, landlock_abi=abi), DEBIAN)["Landlock"].required


@pytest.mark.parametrize(
    ("reason", "key"),
    [
        ("/proc/sys/kernel/unprivileged_userns_clone is 0", "kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/user/max_user_namespaces is 0", "user.max_user_namespaces"),
    ],
)
def test_a_switch_that_is_off_is_named(reason: str, key: str) -> None:
    facts = replace(GOOD, user_namespaces=False, missing=(("user_namespaces", reason),))
    assert key in " ".join(lacking(facts, DEBIAN)["user namespaces"].fixes)


def test_a_missing_cgroup_only_limits_and_says_how_to_delegate() -> None:
    one = lacking(replace(GOOD, cgroup=""), UBUNTU)["cgroup limits"]
    assert one.state == "limited"
    text = " ".join(one.fixes)
    assert "Delegate=" in text
    assert "enable-linger" in text
    assert "Delegate=yes" in lacking(replace(GOOD, cgroup="", uid=0), UBUNTU)["cgroup limits"].fixes[0]


def test_containers_get_hints_for_containers() -> None:
    facts = replace(GOOD, user_namespaces=False, fresh_proc=False, cgroup="", seccomp_notify=False)
    found = lacking(facts, DOCKER)
    assert "--security-opt" in " ".join(found["user namespaces"].fixes)
    assert "container" in found["seccomp listener"].fixes[0]
    masked = lacking(replace(GOOD, fresh_proc=False), DOCKER)
    assert "systempaths=unconfined" in masked["own /proc"].fixes[0]


def test_a_listener_around_us_is_not_a_kernel_too_old() -> None:
    facts = replace(GOOD, seccomp_notify=False, missing=(("seccomp_notify", "EBUSY: one already"),))
    assert "outside" in lacking(facts, DEBIAN)["seccomp listener"].fixes[0]


def test_a_host_without_nftables() -> None:
    facts = replace(GOOD, nftables=False, missing=(("nftables", "nftables: EOPNOTSUPP"),))
    one = lacking(facts, DEBIAN)["packet filter"]
    assert one.required
    assert one.detail == "nftables: EOPNOTSUPP"
    assert "modprobe" in one.fixes[0]
    assert "host's" in lacking(facts, DOCKER)["packet filter"].fixes[0]
    slower = replace(GOOD, tproxy=False, missing=(("tproxy", "nftables: ENOENT"),))
    assert "packet filter" not in lacking(slower, DEBIAN)
    (found,) = [one for one in findings(slower, DEBIAN) if one.feature == "packet filter"]
    assert found.detail == "nftables; slower without nft_tproxy (nftables: ENOENT)"
    assert not lacking(replace(facts, user_namespaces=False), DEBIAN)["packet filter"].required


@pytest.mark.parametrize("host", [UBUNTU, FEDORA, DEBIAN, ARCH, DOCKER, Host()])
def test_whatever_run_needs_has_a_fix(host: Host) -> None:
    facts = HostFacts(
        landlock_abi=0,
        user_namespaces=False,
        seccomp_notify=False,
        new_mount_api=False,
        fresh_proc=False,
        machine="riscv64",
    )
    for one in findings(facts, host):
        if one.required:
            assert one.state == "missing"
            assert one.fixes
