"""The probe: it tries, it says what refused, and it leaves nothing behind."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from remit.sandbox.compile import packets
from remit.sandbox.kernel import probe as module
from remit.sandbox.kernel import process
from remit.sandbox.kernel.probe import find_cgroup, packet_filter, probe

V1 = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" + "".join(
    f"{n} 31 0:{n} / /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}\n"
    for n, name in enumerate(("cpu,cpuacct", "memory", "pids"), 32)
)
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def yes(path: str) -> bool:
    return True


def no(path: str) -> bool:
    return False


def nothing(path: str) -> str:
    return ""


@pytest.mark.needs(userns=True)
def test_the_packet_filter_is_tried() -> None:
    for make in (packets.program, packets.without_tproxy):
        batch = make((53000,), loopback=False, servers=(3000,))
        assert packet_filter(batch) == ""
        # As on a kernel without NFT_REDIR.
        assert packet_filter(batch.replace(b"redir\0", b"redix\0")).startswith("nftables: ENOENT")


def test_the_probe_names_what_is_missing() -> None:
    facts = probe()
    named = {name for name, _ in facts.missing}
    assert ("user_namespaces" in named) is not facts.user_namespaces
    assert ("seccomp_notify" in named) is not facts.seccomp_notify
    assert ("landlock" in named) is (facts.landlock_abi == 0)
    assert all(reason for _, reason in facts.missing)


def test_the_probe_leaves_no_descriptor_process_or_namespace() -> None:
    def state() -> tuple[set[str], set[str], set[str]]:
        here = Path("/proc/self")
        children: set[str] = set()
        for task in (here / "task").iterdir():
            with suppress(OSError):  # a thread that has just ended
                children |= {*(task / "children").read_text().split()}
        return {*os.listdir(here / "fd")}, children, {os.readlink(here / f"ns/{kind}") for kind in ("user", "mnt")}

    probe()
    before = state()
    probe()
    # What other tests in this process left may be there too, and go meanwhile: what counts is that none is added.
    assert [now - then for now, then in zip(state(), before, strict=True)] == [set()] * 3


def test_the_probe_does_not_confine_its_caller() -> None:
    def confinement() -> list[str]:
        lines = Path("/proc/self/status").read_text().splitlines()
        return [line for line in lines if line.startswith(("NoNewPrivs", "Seccomp", "Cap"))]

    before = confinement()
    probe()
    assert confinement() == before
    assert before


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_worked", {})


def test_what_worked_is_tried_once_and_what_was_refused_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    answers: dict[str, int] = {"namespaces": 0, "mount_api": 0, "proc": errno.EPERM, "notify": 0}

    def tried(uid: int, gid: int) -> dict[str, int]:
        tries.append(uid)
        return dict(answers)

    monkeypatch.setattr(module, "_try_in_child", tried)
    assert not probe().fresh_proc
    answers["proc"] = 0
    assert probe().fresh_proc
    assert probe().fresh_proc
    assert len(tries) == 2


def test_a_child_that_never_answers_does_not_hang_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(report: int, wait: int, identity: tuple[int, int] | None) -> None:
        os.read(wait, 1)
        os._exit(0)

    monkeypatch.setattr(module, "_child", hang)
    monkeypatch.setattr(module, "_PATIENCE", 50)
    facts = probe()
    assert not facts.user_namespaces
    assert not facts.seccomp_notify
    assert not facts.fresh_proc


def test_a_refused_namespace_still_leaves_seccomp_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    real = process.clone3

    def refuse(flags: int) -> int:
        if flags:
            raise OSError(28, "No space left on device")
        return real(flags)

    monkeypatch.setattr(process, "clone3", refuse)
    facts = probe()
    assert not facts.user_namespaces
    assert "ENOSPC" in dict(facts.missing)["user_namespaces"]
    assert facts.seccomp_notify


def test_cgroup_v1_is_found_below_the_own_group_of_each_controller() -> None:
    kind, places, controllers = find_cgroup(V1, "3:memory:/a/b\n2:pids:/\n1:cpu,cpuacct:/c\n0::/\n", nothing, yes)
    assert kind == "v1"
    assert dict(places) == {
        "memory": "/sys/fs/cgroup/memory/a/b",
        "pids": "/sys/fs/cgroup/pids",
        "cpu": "/sys/fs/cgroup/cpu,cpuacct/c",
    }
    assert controllers == ("memory", "pids", "cpu")


def test_cgroup_v1_without_write_access_is_none() -> None:
    assert find_cgroup(V1, "3:memory:/a\n2:pids:/\n", nothing, no) == ("", (), ())


def test_cgroup_v2_is_the_nearest_ancestor_that_hands_controllers_down() -> None:
    slice_ = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice"

    def read(path: str) -> str:
        return "memory pids" if path.startswith("/sys/fs/cgroup/user.slice") and "run-1.scope" not in path else ""

    def mine(path: str) -> bool:
        return "/user@1000.service" in path

    own = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope\n"
    kind, places, controllers = find_cgroup(V2, own, read, mine)
    assert (kind, controllers) == ("v2", ("memory", "pids"))
    assert {place for _, place in places} == {slice_}


def test_cgroup_v2_that_is_not_delegated_is_none() -> None:
    def read(path: str) -> str:
        return "cpu memory pids"

    assert find_cgroup(V2, "0::/user.slice/session-3.scope\n", read, no) == ("", (), ())


def test_cgroup_v2_with_no_wanted_controller_falls_back_to_v1() -> None:
    def read(path: str) -> str:
        return "hugetlb"

    kind, _, controllers = find_cgroup(V1 + V2, "4:memory:/\n0::/\n", read, yes)
    assert (kind, controllers) == ("v1", ("memory",))


def test_a_mount_that_does_not_show_the_own_group_is_not_used() -> None:
    shown = "32 31 0:32 /other /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    assert find_cgroup(shown, "4:memory:/mine\n", nothing, yes) == ("", (), ())
    inside = "32 31 0:32 /mine /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    assert find_cgroup(inside, "4:memory:/mine/x\n", nothing, yes)[1] == (("memory", "/sys/fs/cgroup/memory/x"),)
