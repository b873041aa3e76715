"""``remit doctor``: what this host can enforce, and exact fixes for what it cannot."""

from __future__ import annotations

import os
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from remit.cli import advice, options, render
from remit.sandbox.authority.errors import RemitError, Unenforceable
from remit.sandbox.compile import packets
from remit.sandbox.kernel.probe import packet_filter, probe

if TYPE_CHECKING:
    from remit.sandbox.kernel.facts import HostFacts


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help=options.JSON.help)
def command(as_json: bool) -> int:
    """What this host can enforce and how to fix what it cannot. Exit 1 where `remit run` would refuse to start."""
    facts = probed()
    found = advice.findings(facts, host())
    refusal = refused(facts)
    status = 1 if refusal or any(not one.present and one.required for one in found) else 0
    if as_json:
        render.document("doctor", content(facts, found, refusal, status))
    else:
        _print(found, refusal, status)
    return status


def probed() -> HostFacts:
    """What ``probe`` finds, and whether the packet filter of a session with a network can be set."""
    facts = probe()
    if not facts.user_namespaces:
        why = "needs a user namespace"
        return replace(facts, nftables=False, tproxy=False, missing=(*facts.missing, ("nftables", why)))
    better = packet_filter(packets.program((), loopback=True))
    if not better:
        return facts
    why = packet_filter(packets.without_tproxy((), loopback=True))
    if not why:
        return replace(facts, tproxy=False, missing=(*facts.missing, ("tproxy", better)))
    return replace(facts, nftables=False, tproxy=False, missing=(*facts.missing, ("nftables", why)))


def refused(facts: HostFacts) -> str:
    """Why ``remit run`` with the default profile would refuse here; empty where it would start."""
    from remit.sandbox.session import assemble

    with TemporaryDirectory(prefix="remit-doctor-") as workspace:
        try:
            assemble.assemble(options.Invocation("explain", ("true",), workspace=workspace), facts=facts)
        except Unenforceable as error:
            return "; ".join([str(error), *(what for what, _ in error.reasons)])
        except RemitError as error:
            return str(error)
    return ""


def content(facts: HostFacts, found: list[advice.Finding], refusal: str, status: int) -> dict[str, object]:
    """The document behind ``--json``."""
    return {
        "would_run": status == 0,
        "refusal": refusal,
        "facts": {
            "machine": facts.machine,
            "kernel": facts.kernel,
            "uid": facts.uid,
            "gid": facts.gid,
            "landlock_abi": facts.landlock_abi,
            "user_namespaces": facts.user_namespaces,
            "seccomp_notify": facts.seccomp_notify,
            "new_mount_api": facts.new_mount_api,
            "fresh_proc": facts.fresh_proc,
            "cgroup": facts.cgroup,
            "cgroup_controllers": list(facts.cgroup_controllers),
            "idmapped_mounts": facts.idmapped_mounts,
            "apparmor_restricts_userns": facts.apparmor_restricts_userns,
            "nftables": facts.nftables,
            "tproxy": facts.tproxy,
            "fuse": facts.fuse,
            "tiocsti": facts.tiocsti,
        },
        "findings": [
            {
                "feature": one.feature,
                "state": one.state,
                "detail": one.detail,
                "purpose": one.purpose,
                "required": one.required,
                "fixes": list(one.fixes),
            }
            for one in found
        ],
    }


def host() -> advice.Host:
    """Who distributed this system and what surrounds it, from the files that say so."""
    release = dict(line.split("=", 1) for line in _read("/etc/os-release").splitlines() if "=" in line)
    words = [release.get(key, "").strip("\"'") for key in ("ID", "ID_LIKE")]
    return advice.Host(
        distribution=" ".join(word for word in words if word),
        container=_container(),
        systemd=os.path.isdir("/run/systemd/system"),
        lsm=_read("/sys/kernel/security/lsm").strip(),
    )


def _container() -> str:
    """``systemd-detect-virt`` without the process: the marks that container managers leave."""
    for path, name in (("/.dockerenv", "docker"), ("/run/.containerenv", "podman")):
        if os.path.exists(path):
            return name
    if os.path.isdir("/var/run/secrets/kubernetes.io"):
        return "kubernetes"
    return _read("/run/systemd/container").strip()


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _print(found: list[advice.Finding], refusal: str, status: int) -> None:
    render.table(
        ("feature", "state", "found", "what for"), [(one.feature, one.state, one.detail, one.purpose) for one in found]
    )
    lacking = [one for one in found if not one.present and one.fixes]
    for one in lacking:
        render.text()
        render.heading(f"{one.feature}: {'needed by `remit run`' if one.required else 'optional'}")
        for number, fix in enumerate(one.fixes, 1):
            first, *rest = fix.splitlines()
            render.listing([f"{number}. {first}", *(f"     {line}" for line in rest)])
    render.text()
    if status == 0:
        render.text("`remit run` works on this host.")
    else:
        render.text("`remit run` would refuse to start on this host." + (f" {refusal}" if refusal else ""))
