"""Which layers a plan has: what the host offers, and what was given up by name."""

from __future__ import annotations

from collections.abc import Collection

from remit.sandbox.compile import landlock
from remit.sandbox.compile.lowering import Layers, Report
from remit.sandbox.kernel.facts import HostFacts
from remit.sandbox.kernel.numbers import AUDIT_ARCH


def layers(facts: HostFacts, degrade: Collection[str], says: Report) -> Layers:
    """What this host offers and nobody gave up; a layer that is missing otherwise is a reason to refuse, in ``says``."""

    def have(layer: str, possible: bool, problem: str, fix: str) -> bool:
        if not possible and layer not in degrade:
            says.missing(layer, problem, fix)
        return possible and layer not in degrade

    why = dict(facts.missing).get("user_namespaces", "")
    userns_fix = (
        "install Remit's AppArmor profile (remit doctor prints it), or give the layer up with --degrade namespaces"
        if facts.apparmor_restricts_userns
        else "allow user namespaces (remit doctor says how), or give the layer up with --degrade namespaces"
    )
    cause = "AppArmor's restriction" if facts.apparmor_restricts_userns else why or "the kernel's configuration"
    namespaces = have("namespaces", facts.user_namespaces, f"no user namespaces here: {cause}", userns_fix)
    if facts.user_namespaces:
        namespaces = namespaces and have(
            "namespaces",
            facts.new_mount_api,
            "the kernel has no mount_setattr (Linux 5.12)",
            "use Linux 5.19 or later, or --degrade namespaces",
        )
        if not facts.fresh_proc and "namespaces" in degrade and facts.new_mount_api:
            # What is given up by name is only what cannot be had: a masked /proc is no reason to drop the rest.
            namespaces = True
    confined = have(
        "landlock",
        facts.landlock_abi >= landlock.MINIMUM_ABI,
        f"Landlock ABI {facts.landlock_abi}: at least {landlock.MINIMUM_ABI} is needed (Linux 5.19)",
        "add landlock to the boot parameter lsm=, or use Linux 5.19 or later",
    )
    filtered = have(
        "seccomp", facts.machine in AUDIT_ARCH, f"no system call table for {facts.machine}", "use x86-64 or aarch64"
    )
    mediation = have(
        "mediation",
        facts.seccomp_notify,
        "the kernel has no seccomp notification with descriptors (Linux 5.14)",
        "use Linux 5.19 or later, or give up denials of names that do not exist yet with --degrade mediation",
    )
    if not namespaces and not confined and not says.reasons:
        says.reasons.append(("neither namespaces nor Landlock: nothing would confine the command", "keep one of them"))
    return Layers(
        namespaces,
        namespaces and "network" not in degrade,
        confined,
        filtered,
        filtered and mediation and confined,
    )
