"""Whole plans for a few hosts, as JSON. ``REMIT_SNAPSHOTS=write`` regenerates them; look at the difference before
commit.

Filter programs are left out: their bytes are libseccomp's business, and another version of it builds another tree. What
they answer is tested in a simulator. The catalogue and the table of refused calls are the same in every plan.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from remit.sandbox.authority.errors import Unenforceable
from remit.sandbox.authority.model import Endpoint
from remit.sandbox.compile.compiler import Compiled
from remit.sandbox.kernel.facts import HostFacts
from tests.plan.world import World, anywhere, coding, compiled, literal

HERE = Path(__file__).parent / "snapshots"
HOST = HostFacts(machine="x86_64", landlock_abi=7)
HOSTS: dict[str, tuple[HostFacts, tuple[str, ...]]] = {
    **{f"abi-{v}": (replace(HOST, landlock_abi=v), ("limits",)) for v in range(2, 10)},
    "aarch64": (replace(HOST, machine="aarch64"), ("limits",)),
    "no-userns-refused": (replace(HOST, user_namespaces=False), ("limits",)),
    "no-userns-degraded": (replace(HOST, user_namespaces=False), ("limits", "namespaces", "mediation")),
    "no-cgroup-refused": (HOST, ()),
    "cgroup-v2": (replace(HOST, cgroup="v2", cgroup_controllers=("cpu", "memory", "pids")), ()),
    "apparmor-refused": (replace(HOST, user_namespaces=False, apparmor_restricts_userns=True), ("limits",)),
}


def compile_for(facts: HostFacts, degrade: tuple[str, ...]) -> Compiled:
    world = World()
    world.files |= {"/home/u/p/.env", "/home/u/.gitconfig"}
    world.directories |= {"/home/u/p/.github", "/home/u/.ssh", "/home/u/.nvm/v20"}
    granted = coding(
        deny=(
            literal("/home/u/p/.env"),
            literal("/home/u/.ssh"),
            literal("/home/u/p/later"),
            anywhere("/home/u/p", ".npmrc"),
        ),
        protect=(literal("/home/u/p/.github"), anywhere("/home/u/p", "ci", "deploy.yml")),
        connect=(Endpoint(name="example.com", port=443),),
        environment=(("TERM", None), ("CI", "1")),
        limits=(("memory", 4 << 30), ("pids", 512), ("cpu", 2000), ("time", 3600_000), ("files", 1024)),
    )
    return compiled(
        granted,
        world=world,
        facts=facts,
        degrade=degrade,
        secret=("/home/u/.config/remit",),
        matches={"/home/u/p/**/.npmrc": ()},
    )


def outcome(facts: HostFacts, degrade: tuple[str, ...]) -> dict[str, object]:
    try:
        result = compile_for(facts, degrade)
    except Unenforceable as error:
        return {"unenforceable": [list(reason) for reason in error.reasons], "message": str(error), "hint": error.hint}
    left_out = ("program", "catalogue", "refuse")
    operations = [
        {key: value for key, value in op.json().items() if key not in left_out} for op in result.plan.operations
    ]
    return {
        "describe": [
            op.describe().split(", ")[0] if op.name == "seccomp" else op.describe() for op in result.plan.operations
        ],
        "operations": operations,
        "assumptions": result.plan.json()["assumptions"],
        "lowering": result.lowering.json(),
    }


@pytest.mark.parametrize("host", HOSTS)
def test_snapshot(host: str) -> None:
    text = json.dumps(outcome(*HOSTS[host]), indent=1, sort_keys=True) + "\n"
    file = HERE / f"{host}.json"
    if os.environ.get("REMIT_SNAPSHOTS") == "write":
        file.write_text(text)
    assert text == file.read_text()


def test_there_is_no_snapshot_without_a_host() -> None:
    assert {file.stem for file in HERE.glob("*.json")} == set(HOSTS)
