"""Started as root: root is not special inside, and root's files stay root's outside (invariant 7)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kernel.run_harness import TIMEOUT, World, descendants

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=2, root=True)]

SOMEBODY = 12345


@pytest.mark.needs(idmap=True)
def test_invariant_7_a_root_owned_workspace_is_nobodys_inside_and_roots_outside(world: World) -> None:
    (world.workspace / "before").write_text("root's")

    result = world.shell("id -u; stat -c %u before; echo more >> before; echo new > after; stat -c %u after")

    assert result.status == 0, result
    uid = result.lines[0]
    assert uid != "0"
    assert result.lines[1:] == [uid, uid]
    assert {path.name: path.stat().st_uid for path in world.workspace.iterdir()} == {"before": 0, "after": 0}
    assert (world.workspace / "before").read_text() == "root'smore\n"


@pytest.mark.needs(idmap=True)
def test_a_root_owned_write_grant_is_mapped_too(world: World) -> None:
    other = world.base / "other"
    other.mkdir()

    assert world.shell(f"echo x > {other}/file", "--write", str(other)).status == 0
    assert (other / "file").stat().st_uid == 0


def test_invariant_7_a_users_workspace_is_worked_on_as_that_user(world: World) -> None:
    os.chown(world.workspace, SOMEBODY, SOMEBODY)

    result = world.shell("id -u; echo new > file")

    assert (result.status, result.stdout) == (0, f"{SOMEBODY}\n")
    assert (world.workspace / "file").stat().st_uid == SOMEBODY


def test_invariant_7_files_of_root_in_a_users_workspace_stay_roots(world: World) -> None:
    os.chown(world.workspace, SOMEBODY, SOMEBODY)
    (world.workspace / "kept").write_text("root's")
    (world.workspace / "kept").chmod(0o600)

    tries = {"read": "read('kept')", "write": "write('kept', flags=0)", "chown": "os.chown('kept', os.getuid(), -1)"}

    assert world.probes(tries) == {"read": "EACCES", "write": "EACCES", "chown": "EPERM"}


def test_invariant_7_no_way_back_to_root(world: World) -> None:
    tries = {
        "setuid": "os.setuid(0)",
        "setgid": "os.setgid(0)",
        "setgroups": "os.setgroups([0])",
        "chown": "(write('mine'), os.chown('mine', 0, 0))",
        "shadow": "read('/etc/shadow')",
        "core_pattern": "os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)",
        "root's home": "os.listdir('/root/.ssh')",
    }

    results = world.probes(tries)

    assert "ok" not in results.values(), results
    assert world.shell("su -c id root < /dev/null").status != 0


def test_roots_own_variables_do_not_lead_to_roots_home(world: World, secret: Path) -> None:
    os.chown(world.workspace, SOMEBODY, SOMEBODY)

    assert world.probe(f"read('{secret}')") == "ENOENT"


def test_invariant_7_processes_inside_have_no_capability_outside(world: World) -> None:
    with world.start("sh", "-c", "echo ready; read line") as session:
        assert session.stdout is not None
        assert session.stdout.readline() == "ready\n"
        mine = os.readlink("/proc/self/ns/user")
        inside = [pid for pid in descendants(session.pid) if os.readlink(f"/proc/{pid}/ns/user") != mine]
        uids = {Path(f"/proc/{pid}/status").read_text().split("Uid:\t")[1].split("\t")[0] for pid in inside}
        session.communicate("\n", timeout=TIMEOUT)

    assert len(inside) >= 2
    assert "0" not in uids
