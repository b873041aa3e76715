"""The compiler's rules, one behaviour a test, over a made-up host."""

from __future__ import annotations

import marshal
from dataclasses import replace
from typing import cast

import pytest

from remit.sandbox.authority.errors import Unenforceable
from remit.sandbox.authority.model import Authority, AutoExec, Endpoint
from remit.sandbox.compile import landlock
from remit.sandbox.compile.compiler import Compiled
from remit.sandbox.compile.plan import (
    Bind,
    Copy,
    Cover,
    Dev,
    Directory,
    Egress,
    Environment,
    Landlock,
    Limit,
    Mediate,
    NewRoot,
    PivotRoot,
    Privileges,
    Proc,
    Record,
    Seccomp,
    Symlink,
    Text,
    Tmpfs,
    Unshare,
)
from remit.sandbox.kernel.facts import HostFacts
from remit.sandbox.resolve.binding import Kind, Named
from tests.plan.world import PROFILE, World, anywhere, authority, coding, compiled, literal, only, rule

WORKSPACE = "/home/u/p"


def domain(result: Compiled, name: str) -> dict[str, int]:
    return dict(next(op for op in only(result, Landlock) if op.domain == name).rules)


def binds(result: Compiled) -> dict[str, Bind]:
    return {op.target: op for op in only(result, Bind)}


def reasons(caught: pytest.ExceptionInfo[Unenforceable]) -> str:
    return "\n".join(f"{problem} | {fix}" for problem, fix in caught.value.reasons)


# --- the tree


def test_the_order_of_the_layers() -> None:
    kinds = [type(op) for op in compiled(coding()).plan.operations]
    firsts = [
        kinds.index(k) for k in (Unshare, NewRoot, Bind, PivotRoot, Environment, Landlock, Mediate, Privileges, Seccomp)
    ]
    assert firsts == sorted(firsts)
    assert kinds[-1] is Seccomp


def test_usr_merge_links_are_repeated_and_share_one_bind() -> None:
    result = compiled(coding())
    assert {(op.path, op.target) for op in only(result, Symlink)} >= {("/bin", "usr/bin"), ("/lib64", "usr/lib64")}
    assert "/usr/bin" not in binds(result)
    usr = binds(result)["/usr"]
    assert (usr.read_only, usr.no_exec, usr.no_dev, usr.kind) == (True, False, True, "directory")


def test_the_workspace_is_writable_and_executable() -> None:
    work = binds(compiled(coding()))[WORKSPACE]
    assert (work.read_only, work.no_exec, work.source) == (False, False, WORKSPACE)


def test_read_only_grants_are_noexec() -> None:
    data = binds(compiled(authority(rule(WORKSPACE, "r"))))[WORKSPACE]
    assert (data.read_only, data.no_exec) == (True, True)


def test_a_grant_below_another_with_the_same_rights_needs_no_bind() -> None:
    world = World()
    world.directories |= {f"{WORKSPACE}/sub"}
    result = compiled(authority(rule(WORKSPACE, "rw"), rule(f"{WORKSPACE}/sub", "rw")), world=world)
    assert f"{WORKSPACE}/sub" not in binds(result)


@pytest.mark.parametrize(
    ("letters", "expected"), [("rw", (False, True)), ("rx", (True, False)), ("rwx", (False, False))]
)
def test_a_grant_below_another_with_more_rights_has_its_own_bind(letters: str, expected: tuple[bool, bool]) -> None:
    world = World()
    world.directories |= {f"{WORKSPACE}/sub"}
    result = compiled(authority(rule(WORKSPACE, "r"), rule(f"{WORKSPACE}/sub", letters)), world=world)
    sub = binds(result)[f"{WORKSPACE}/sub"]
    assert (sub.read_only, sub.no_exec) == expected


def test_a_grant_with_fewer_rights_than_the_one_above_takes_nothing_away() -> None:
    world = World()
    world.directories |= {f"{WORKSPACE}/sub"}
    result = compiled(authority(rule(WORKSPACE, "rwx"), rule(f"{WORKSPACE}/sub", "r")), world=world)
    assert f"{WORKSPACE}/sub" not in binds(result)


def test_floor_files_in_etc_are_copies_and_directories_are_binds() -> None:
    result = compiled(coding())
    assert {op.target for op in only(result, Copy)} == {"/etc/passwd", "/etc/ld.so.cache"}
    assert "/etc/ssl/certs" in binds(result)


def test_a_floor_file_behind_a_link_is_copied_where_it_lies() -> None:
    world = World()
    world.links["/etc/resolv.conf"] = ("../run/resolve/stub.conf", "/run/resolve/stub.conf")
    world.files.add("/run/resolve/stub.conf")
    result = compiled(coding(), world=world)
    assert ("/etc/resolv.conf", "../run/resolve/stub.conf") in {(op.path, op.target) for op in only(result, Symlink)}
    assert "/run/resolve/stub.conf" in {op.target for op in only(result, Copy)}
    assert "/run/resolve" in {op.path for op in only(result, Directory)}


def test_a_users_file_in_etc_is_bound() -> None:
    world = World()
    world.files.add("/etc/hosts")
    assert binds(compiled(authority(rule("/etc/hosts", "r")), world=world))["/etc/hosts"].kind == "file"


def test_private_places() -> None:
    result = compiled(coding(limits=(("tmp", 1 << 20),)))
    sizes = {op.target: (op.size, op.no_exec, op.mode) for op in only(result, Tmpfs)}
    assert sizes["/tmp"] == (1 << 20, False, 0o1777)
    assert sizes["/run"][1] is True
    assert ("/var/tmp", "/tmp") in {(op.path, op.target) for op in only(result, Symlink)}
    assert only(result, Proc)[0].fresh
    assert only(result, Dev)[0].nodes == ("null", "zero", "full", "random", "urandom", "tty")


def test_a_granted_device_is_a_node() -> None:
    assert only(compiled(coding(devices=("kvm",))), Dev)[0].nodes[-1] == "kvm"


def test_a_workspace_below_tmp_is_bound_on_top_of_the_private_one() -> None:
    world = World()
    world.directories |= {"/tmp/x", "/tmp/x/w"}
    result = compiled(authority(rule("/tmp/x/w", "rwx")), world=world, workspace="/tmp/x/w")
    targets = [getattr(op, "target", getattr(op, "path", "")) for op in result.plan.operations]
    assert targets.index("/tmp") < targets.index("/tmp/x") < targets.index("/tmp/x/w")


def test_tmp_itself_granted_is_the_hosts() -> None:
    result = compiled(coding(limits=()), world=World())
    assert "/tmp" not in binds(result)
    shared = compiled(authority(rule("/tmp", "rw"), rule(WORKSPACE, "rwx")))
    assert binds(shared)["/tmp"].read_only is False
    assert "/tmp" not in {op.target for op in only(shared, Tmpfs)}


def test_below_var_tmp_it_is_a_tmpfs_of_its_own() -> None:
    world = World()
    world.directories |= {"/var/tmp/w"}
    result = compiled(authority(rule("/var/tmp/w", "rw")), world=world, workspace="/var/tmp/w")
    assert "/var/tmp" in {op.target for op in only(result, Tmpfs)}
    assert "/var/tmp" in dict(next(op for op in only(result, Landlock)).rules)


def test_home_is_an_empty_directory_unless_granted() -> None:
    assert "/home/u" in {op.path for op in only(compiled(coding()), Directory)}
    granted = compiled(authority(rule("/home/u", "r")))
    assert "/home/u" not in {op.path for op in only(granted, Directory)}
    assert "/home/u" in binds(granted)


def test_the_whole_file_system_is_refused() -> None:
    with pytest.raises(Unenforceable) as caught:
        compiled(authority(rule("/", "r")))
    assert "grant its directories" in reasons(caught)


def test_optional_rules_that_are_absent_grant_nothing() -> None:
    result = compiled(coding())
    assert "/etc/resolv.conf" not in str(domain(result, "session"))
    assert not any(line.object == "/etc/resolv.conf" for line in result.lowering.granted)


# --- deny and protect


def test_an_existing_denied_file_is_covered() -> None:
    world = World()
    world.files.add(f"{WORKSPACE}/.env")
    result = compiled(coding(deny=(literal(f"{WORKSPACE}/.env"),)), world=world)
    assert only(result, Cover) == [Cover(f"{WORKSPACE}/.env", "file")]
    operations = list(result.plan.operations)
    assert operations.index(only(result, Cover)[0]) > operations.index(binds(result)[WORKSPACE])
    assert (WORKSPACE, (".env",), False, f"{WORKSPACE}/.env") in only(result, Mediate)[0].deny


def test_an_absent_denied_name_is_mediated_and_says_what_it_does_not_cover() -> None:
    result = compiled(coding(deny=(literal(f"{WORKSPACE}/.env"),)))
    assert not only(result, Cover)
    assert (WORKSPACE, (".env",), False, f"{WORKSPACE}/.env") in only(result, Mediate)[0].deny
    line = next(line for line in result.lowering.denied if line.object == f"{WORKSPACE}/.env")
    assert "outside" in line.note
    assert line.layers == ("mediation",)


def test_a_denied_name_outside_every_grant_needs_nothing() -> None:
    world = World()
    world.directories.add("/home/u/.ssh")
    result = compiled(coding(deny=(literal("/home/u/.ssh"),)), world=world)
    assert not only(result, Cover)
    assert only(result, Mediate)[0].deny == ()
    assert result.lowering.denied[0].layers == ("namespaces", "landlock")


def test_a_denied_link_is_held_under_both_names() -> None:
    world = World()
    world.links[f"{WORKSPACE}/secret"] = ("real", f"{WORKSPACE}/real")
    world.directories.add(f"{WORKSPACE}/real")
    result = compiled(coding(deny=(literal(f"{WORKSPACE}/secret"),)), world=world)
    assert {entry[1] for entry in only(result, Mediate)[0].deny} == {("secret",), ("real",)}
    assert [op.path for op in only(result, Cover)] == [f"{WORKSPACE}/real"]


def test_deny_wins_over_a_grant_below_it() -> None:
    world = World()
    world.directories |= {f"{WORKSPACE}/d", f"{WORKSPACE}/d/in"}
    granted = authority(rule(WORKSPACE, "rw"), rule(f"{WORKSPACE}/d/in", "rwx"), deny=(literal(f"{WORKSPACE}/d"),))
    result = compiled(granted, world=world)
    assert f"{WORKSPACE}/d/in" not in binds(result)
    assert f"{WORKSPACE}/d/in" not in domain(result, "session")
    assert not any(line.object == f"{WORKSPACE}/d/in" for line in result.lowering.granted)


def test_a_deny_pattern_wins_over_a_grant_of_that_name() -> None:
    world = World()
    world.directories |= {f"{WORKSPACE}/a/d/in"}
    granted = authority(rule(f"{WORKSPACE}/a/d/in", "rw"), deny=(anywhere(WORKSPACE, "d"),))
    result = compiled(granted, world=world, matches={f"{WORKSPACE}/**/d": ()})
    assert f"{WORKSPACE}/a/d/in" not in binds(result)


def test_protect_is_a_read_only_bind_where_it_exists() -> None:
    world = World()
    world.directories.add(f"{WORKSPACE}/.github")
    result = compiled(coding(protect=(literal(f"{WORKSPACE}/.github"),)), world=world)
    assert binds(result)[f"{WORKSPACE}/.github"].read_only
    assert only(result, Mediate)[0].protect == ((WORKSPACE, (".github",), False, f"{WORKSPACE}/.github"),)


def test_protect_wins_over_a_write_grant_below_it() -> None:
    world = World()
    world.directories |= {f"{WORKSPACE}/g", f"{WORKSPACE}/g/x"}
    granted = authority(rule(f"{WORKSPACE}/g/x", "rw"), protect=(literal(f"{WORKSPACE}/g"),))
    result = compiled(granted, world=world)
    assert binds(result)[f"{WORKSPACE}/g/x"].read_only
    assert not domain(result, "session")[f"{WORKSPACE}/g/x"] & landlock.CHANGE
    assert only(result, Mediate)[0].roots == ()


def test_protect_leaves_what_may_be_executed_below_it() -> None:
    world = World()
    world.directories |= {f"{WORKSPACE}/g", f"{WORKSPACE}/g/bin", f"{WORKSPACE}/g/same"}
    rules = (rule(WORKSPACE, "rw"), rule(f"{WORKSPACE}/g/bin", "rwx"), rule(f"{WORKSPACE}/g/same", "rw"))
    found = binds(compiled(authority(*rules, protect=(literal(f"{WORKSPACE}/g"),)), world=world))
    assert (found[f"{WORKSPACE}/g"].read_only, found[f"{WORKSPACE}/g"].no_exec) == (True, True)
    assert (found[f"{WORKSPACE}/g/bin"].read_only, found[f"{WORKSPACE}/g/bin"].no_exec) == (True, False)
    assert f"{WORKSPACE}/g/same" not in found


def test_pattern_denies_of_reading_are_brokered_where_nothing_is_executed() -> None:
    result = compiled(authority(rule(WORKSPACE, "rw"), deny=(anywhere(WORKSPACE, ".env"),)))
    assert only(result, Mediate)[0].brokered_reads == (WORKSPACE,)
    rules = domain(result, "command")
    bits = rules.get(WORKSPACE, 0) | rules["/"]  # whose rule counts below it
    assert not bits & (landlock.READ_FILE | landlock.EXECUTE)
    assert bits & landlock.READ_DIR
    assert domain(result, "session")[WORKSPACE] & landlock.READ_FILE
    assert any("slower" in note for note in result.lowering.notes)


def test_pattern_denies_below_what_may_be_executed_refuse_unless_searched_or_degraded() -> None:
    granted = coding(deny=(anywhere(WORKSPACE, ".env"),))
    with pytest.raises(Unenforceable) as caught:
        compiled(granted)
    assert "can still be read" in reasons(caught)
    found = Named(f"{WORKSPACE}/a/.env", f"{WORKSPACE}/a/.env", Kind.FILE)
    result = compiled(granted, matches={f"{WORKSPACE}/**/.env": (found,)})
    assert [op.path for op in only(result, Cover)] == [f"{WORKSPACE}/a/.env"]
    assert only(result, Mediate)[0].brokered_reads == ()
    degraded = compiled(granted, degrade=["mediation"])
    assert any(line.object == f"{WORKSPACE}/**/.env" for line in degraded.lowering.slack)


# --- Remit's own files


def test_remits_secrets_are_denied_whatever_is_granted() -> None:
    world = World()
    world.directories |= {"/home/u/.config/remit"}
    result = compiled(
        authority(rule("/home/u", "rwx")), world=world, secret=("/home/u/.config/remit", "/home/u/.local/state/remit")
    )
    assert [op.path for op in only(result, Cover)] == ["/home/u/.config/remit"]
    assert {entry[1] for entry in only(result, Mediate)[0].deny} == {("remit",)}
    assert len(only(result, Mediate)[0].deny) == 2


def test_remits_code_is_never_writable_and_readable_only_with_exec() -> None:
    world = World()
    world.directories |= {f"{WORKSPACE}/.venv"}
    result = compiled(coding(), world=world, own_code=(f"{WORKSPACE}/.venv",))
    assert binds(result)[f"{WORKSPACE}/.venv"].read_only
    assert any("inside the workspace" in note for note in result.lowering.notes)
    hidden = compiled(authority(rule(WORKSPACE, "rw")), world=world, own_code=(f"{WORKSPACE}/.venv",))
    assert [op.path for op in only(hidden, Cover)] == [f"{WORKSPACE}/.venv"]


# --- landlock


@pytest.mark.parametrize("version", range(2, 10))
def test_masks_hold_only_what_the_abi_has(version: int) -> None:
    result = compiled(coding(), facts=HostFacts(landlock_abi=version))
    row = landlock.abi(version)
    for op in only(result, Landlock):
        assert op.handled_fs == row.fs
        assert op.scoped == row.scoped
        assert all(bits & ~row.fs == 0 and bits for _, bits in op.rules)
    assert bool(row.fs & landlock.TRUNCATE) == (version >= 3)
    assert bool(row.fs & landlock.IOCTL_DEV) == (version >= 5)
    assert bool(row.scoped) == (version >= 6)
    assert bool(row.fs & landlock.RESOLVE_UNIX) == (version >= 9)


def test_a_newer_abi_is_used_as_the_newest_known() -> None:
    assert landlock.abi(23) == landlock.ABIS[-1]


@pytest.mark.parametrize("version", [0, 1])
def test_too_old_a_landlock_refuses_with_a_fix(version: int) -> None:
    with pytest.raises(Unenforceable) as caught:
        compiled(coding(), facts=HostFacts(landlock_abi=version))
    assert "5.19" in reasons(caught)


def test_what_an_older_abi_lacks_is_said() -> None:
    notes = "\n".join(compiled(coding(), facts=HostFacts(landlock_abi=2)).lowering.notes)
    assert "truncation" in notes
    assert "signals" in notes
    assert "truncation" not in "\n".join(compiled(coding(), facts=HostFacts(landlock_abi=3)).lowering.notes)


def test_the_command_cannot_change_names_in_the_workspace_by_itself() -> None:
    result = compiled(coding())
    assert domain(result, "session")[WORKSPACE] & landlock.WRITE == landlock.WRITE
    assert not domain(result, "command")[WORKSPACE] & landlock.CHANGE
    assert domain(result, "command")["/tmp"] & landlock.MAKE_REG
    assert only(result, Mediate)[0].roots == (WORKSPACE,)


def test_a_root_below_the_private_tmp_makes_tmp_mediated() -> None:
    world = World()
    world.directories |= {"/tmp/w"}
    result = compiled(authority(rule("/tmp/w", "rw")), world=world, workspace="/tmp/w")
    assert only(result, Mediate)[0].roots == ("/tmp/w", "/tmp")
    assert not domain(result, "command")["/tmp"] & landlock.CHANGE


def test_a_writable_file_has_file_rights_only() -> None:
    world = World()
    world.files.add("/home/u/f")
    result = compiled(authority(rule("/home/u/f", "rw")), world=world)
    assert domain(result, "session")["/home/u/f"] & ~landlock.FILE_RIGHTS == 0
    assert domain(result, "session")["/home/u/f"] & landlock.WRITE_FILE
    assert not domain(result, "command")["/home/u/f"] & landlock.WRITE_FILE


def test_nobody_may_make_device_nodes() -> None:
    for op in only(compiled(coding()), Landlock):
        assert not any(bits & (landlock.MAKE_CHAR | landlock.MAKE_BLOCK) for _, bits in op.rules)


def test_listing_stops_above_what_is_covered() -> None:
    world = World()
    world.files.add(f"{WORKSPACE}/.env")
    open_ = domain(compiled(coding(), world=world), "command")
    assert open_["/"] == landlock.READ_DIR
    covered = domain(compiled(coding(deny=(literal(f"{WORKSPACE}/.env"),)), world=world), "command")
    assert not any(covered.get(path, 0) for path in ("/", "/home", "/home/u"))


# --- network, limits, environment, seccomp


GATEWAY = Endpoint(name="example.com", port=443, source=PROFILE)


def test_a_connect_grant_is_enforced_by_a_gateway() -> None:
    result = compiled(
        coding(
            connect=(GATEWAY, Endpoint(network="10.0.0.0/8", port=5432), Endpoint("a.example", port=99, protocol="udp"))
        )
    )
    (way,) = only(result, Egress)
    assert way.rules == (
        ("example.com:443/tcp", str(PROFILE)),
        ("10.0.0.0/8:5432/tcp", ""),
        ("a.example:99/udp", ""),
    )
    assert way.udp == (99,)
    assert way.filter
    lines = [line for line in result.lowering.granted if line.right == "connect"]
    assert {line.object for line in lines} == {rule for rule, _ in way.rules}
    assert all(line.layers == ("namespaces", "gateway") for line in lines)
    assert result.lowering.deficit == ()
    assert ["fronting" in line.note for line in result.lowering.slack if line.axis == "network"] == [True]
    (environment,) = only(result, Environment)
    assert dict(environment.set_)["HTTPS_PROXY"] == "http://127.0.0.1:880"
    assert {op.path for op in only(result, Text)} == {"/etc/resolv.conf", "/etc/hosts"}
    assert only(result, Mediate)[0].gateway


def test_nothing_granted_adds_nothing() -> None:
    for granted in (coding(), coding(listen=(3000,)), coding(unix=("/run/s",))):
        result = compiled(granted)
        assert not only(result, Egress)
        assert not only(result, Text)
        assert not any("proxy" in name.lower() for name, _ in only(result, Environment)[0].set_)
        assert not only(result, Mediate)[0].gateway


def test_names_alone_are_fronted() -> None:
    result = compiled(coding(connect=(Endpoint(network="10.0.0.0/8", port=443),)))
    assert not any(line.axis == "network" for line in result.lowering.slack)


@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint("a.example", protocol="udp"),
        Endpoint("a.example", port=53),
        Endpoint("a.example", port=53, protocol="udp"),
    ],
)
def test_what_a_gateway_cannot_give_is_a_deficit_or_refused_where_asked(endpoint: Endpoint) -> None:
    result = compiled(coding(connect=(endpoint,)))
    assert [line.object for line in result.lowering.deficit] == [str(endpoint)]
    assert not only(result, Egress)
    with pytest.raises(Unenforceable) as caught:
        compiled(coding(connect=(endpoint,)), explicit=Authority(connect=(endpoint,)))
    assert str(endpoint) in reasons(caught)


def test_udp_ports_have_an_end() -> None:
    many = tuple(Endpoint("a.example", port=port, protocol="udp") for port in range(2000, 2130))
    result = compiled(coding(connect=many))
    assert len(only(result, Egress)[0].udp) == 124
    assert len(result.lowering.deficit) == 6
    assert {rule for rule, _ in only(result, Egress)[0].rules}.isdisjoint(
        line.object for line in result.lowering.deficit
    )


def test_published_ports_need_a_gateway_and_no_rule() -> None:
    result = compiled(coding(publish=("127.0.0.1:8080:3000", "[::1]:80:80")))
    (way,) = only(result, Egress)
    assert way.published == (("127.0.0.1", 8080, 3000), ("::1", 80, 80))
    assert way.rules == ()


def test_the_hosts_network_has_no_gateway() -> None:
    granted = coding(connect=(GATEWAY,), publish=("127.0.0.1:8080:3000",))
    result = compiled(granted, degrade=("network",))
    assert not only(result, Egress)
    assert any(line.object == "the host's network" for line in result.lowering.slack)
    assert [line.right for line in result.lowering.deficit] == ["publish"]


def test_a_granted_etc_keeps_its_files() -> None:
    world = World()
    world.files.add("/etc/resolv.conf")
    assert not only(compiled(authority(rule("/etc", "r"), connect=(GATEWAY,)), world=world), Text)


def test_a_resolv_conf_that_is_a_link_is_replaced() -> None:
    world = World()
    world.links["/etc/resolv.conf"] = ("../run/resolve/stub.conf", "/run/resolve/stub.conf")
    world.files.add("/run/resolve/stub.conf")
    paths = [op.path for op in only(compiled(coding(connect=(GATEWAY,)), world=world), Text)]
    assert "/etc/resolv.conf" in paths


def test_a_unix_socket_is_bound_alone() -> None:
    world = World()
    world.sockets = {"/run/user/1000/bus"}
    result = compiled(coding(unix=("/run/user/1000/bus", "/run/none")), world=world, facts=HostFacts(landlock_abi=9))
    binds = [op for op in only(result, Bind) if op.kind == "socket"]
    assert [(op.source, op.read_only, op.no_exec) for op in binds] == [("/run/user/1000/bus", True, True)]
    assert dict(only(result, Landlock)[0].rules)["/run/user/1000/bus"] == landlock.RESOLVE_UNIX
    assert [(line.object, line.layers) for line in result.lowering.granted if line.axis == "ipc"] == [
        ("/run/user/1000/bus", ("namespaces", "landlock"))
    ]
    assert [line.object for line in result.lowering.deficit] == ["/run/none"]
    assert ("/run/user/1000/bus", "s") in only(result, Mediate)[0].granted
    with pytest.raises(Unenforceable) as caught:
        compiled(coding(unix=("/run/none",)), explicit=Authority(unix=("/run/none",)))
    assert "no such socket" in reasons(caught)


def test_without_loopback_landlock_leaves_the_granted_ports() -> None:
    granted = coding(loopback=False, listen=(3000,), connect=(GATEWAY,))
    result = compiled(granted)
    both = 3
    assert all(op.ports == ((53, 2), (443, 2), (880, 2), (3000, both)) for op in only(result, Landlock))
    anywhere_ = compiled(coding(loopback=False, listen=(3000,), connect=(Endpoint("a.example"),)))
    assert all((op.handled_net, op.ports) == (1, ((3000, 1),)) for op in only(anywhere_, Landlock))
    assert only(compiled(coding(loopback=False, listen=(3000,))), Landlock)[0].ports == ((3000, both),)


def test_loopback_decides_whether_landlock_holds_tcp() -> None:
    assert only(compiled(coding()), Landlock)[0].handled_net == 0
    assert any("one layer" in note for note in compiled(coding()).lowering.notes)
    closed = compiled(coding(loopback=False))
    assert all(op.handled_net == 3 and op.ports == () for op in only(closed, Landlock))
    assert only(closed, Unshare)[0].loopback is False
    assert only(compiled(coding(loopback=False), facts=HostFacts(landlock_abi=3)), Landlock)[0].handled_net == 0


@pytest.mark.parametrize(
    ("what", "facts", "mechanism"),
    [
        ("memory", HostFacts(), "watch"),
        ("memory", HostFacts(cgroup="v2", cgroup_controllers=("memory",)), "cgroup"),
        ("pids", HostFacts(), "nproc"),
        ("pids", HostFacts(cgroup="v1", cgroup_controllers=("pids",)), "cgroup"),
        ("cpu", HostFacts(cgroup="v2", cgroup_controllers=("cpu",)), "cgroup"),
        ("cpu-time", HostFacts(), "rlimit"),
        ("files", HostFacts(), "rlimit"),
        ("file-size", HostFacts(), "rlimit"),
        ("time", HostFacts(), "timer"),
        ("tmp", HostFacts(), "tmpfs"),
    ],
)
def test_mechanisms(what: str, facts: HostFacts, mechanism: str) -> None:
    assert only(compiled(coding(limits=((what, 1 << 20),)), facts=facts), Limit) == [Limit(what, 1 << 20, mechanism)]


def test_a_limit_that_nothing_holds() -> None:
    granted = coding(limits=(("cpu", 500),))
    with pytest.raises(Unenforceable) as caught:
        compiled(granted)
    assert "limit cpu" in reasons(caught)
    assert compiled(granted, degrade=["limits"]).lowering.slack[0].object == "cpu"
    with pytest.raises(Unenforceable):
        compiled(granted, degrade=["limits"], explicit=Authority(limits=(("cpu", 500),)))
    asked = compiled(granted, degrade=["limits"], asked=["limits"], explicit=Authority(limits=(("cpu", 500),)))
    assert only(asked, Limit)[0].mechanism == "none"


def test_environment() -> None:
    result = compiled(coding(environment=(("TERM", None), ("CI", "1"), ("LANG", None))))
    assert only(result, Environment) == [Environment(("LANG", "TERM"), (("CI", "1"),))]


def test_syscall_groups_reach_the_filter_and_the_namespaces() -> None:
    plain, nested = compiled(coding()), compiled(coding(syscalls=("nested-userns",)))
    assert only(plain, PivotRoot)[0].forbid_user_namespaces
    assert not only(nested, PivotRoot)[0].forbid_user_namespaces
    assert only(plain, Seccomp)[0].program != only(nested, Seccomp)[0].program
    assert not any(call == "unshare" for call, _, _ in only(nested, Mediate)[0].refuse)


def test_the_catalogue_follows_auto_exec() -> None:
    assert only(compiled(coding()), Mediate)[0].catalogue
    assert not only(compiled(coding(auto_exec=AutoExec.ALLOW)), Mediate)[0].catalogue


def test_without_a_mediator_there_is_one_domain_and_no_listener() -> None:
    result = compiled(coding(), degrade=["mediation"])
    assert [op.domain for op in only(result, Landlock)] == ["session"]
    assert not only(result, Mediate)
    assert only(result, Seccomp)[0].notify is False
    assert any("auto-executed" in line.object for line in result.lowering.slack)


# --- hosts


def test_no_user_namespaces_refuses_with_a_fix() -> None:
    with pytest.raises(Unenforceable) as caught:
        compiled(
            coding(), facts=HostFacts(user_namespaces=False, missing=(("user_namespaces", "max_user_namespaces is 0"),))
        )
    assert "max_user_namespaces is 0" in reasons(caught)
    assert "--degrade namespaces" in reasons(caught)


def test_apparmors_restriction_is_named_and_its_profile_comes_first() -> None:
    with pytest.raises(Unenforceable) as caught:
        compiled(coding(), facts=HostFacts(user_namespaces=False, apparmor_restricts_userns=True))
    assert "AppArmor" in reasons(caught)
    assert "sysctl" not in reasons(caught)


def test_without_namespaces_by_name() -> None:
    result = compiled(coding(), facts=HostFacts(user_namespaces=False), degrade=["namespaces"])
    kinds = {type(op) for op in result.plan.operations}
    assert kinds == {Environment, Landlock, Mediate, Privileges, Record, Seccomp}
    rules = domain(result, "session")
    assert "/tmp" not in rules
    assert "/dev/null" in rules
    assert "/dev" not in rules
    assert {line.axis for line in result.lowering.slack} >= {"network", "ipc", "filesystem"}
    assert {line.object for line in result.lowering.deficit} == {"/tmp", "/dev/shm"}


def test_every_reason_is_given_at_once() -> None:
    with pytest.raises(Unenforceable) as caught:
        compiled(
            coding(limits=(("cpu", 1),)), facts=HostFacts(user_namespaces=False, landlock_abi=0, seccomp_notify=False)
        )
    text = reasons(caught)
    assert len(caught.value.reasons) == 4
    assert all(word in text for word in ("user namespaces", "Landlock ABI 0", "notification", "limit cpu"))


def test_neither_namespaces_nor_landlock_is_refused_even_by_name() -> None:
    with pytest.raises(Unenforceable, match="nothing would confine"):
        compiled(coding(), degrade=["namespaces", "landlock", "mediation"])


def test_a_masked_proc_is_slack() -> None:
    with pytest.raises(Unenforceable) as caught:
        compiled(coding(), facts=HostFacts(fresh_proc=False))
    assert "/proc" in reasons(caught)
    result = compiled(coding(), facts=HostFacts(fresh_proc=False), degrade=["namespaces"])
    assert only(result, Proc)[0].fresh is False
    assert only(result, Unshare)


def test_root_owned_workspaces() -> None:
    root = HostFacts(uid=0, gid=0)
    with pytest.raises(Unenforceable) as caught:
        compiled(coding(), world=World(owner=0), facts=root)
    assert "chown" in reasons(caught)
    mapped = compiled(coding(), world=World(owner=0), facts=replace(root, idmapped_mounts=True))
    assert binds(mapped)[WORKSPACE].idmap
    assert not binds(mapped)["/usr"].idmap
    assert not binds(compiled(coding(), facts=root))[WORKSPACE].idmap


# --- the plan as a value


def test_the_digest_is_stable_and_depends_on_every_part() -> None:
    one, same = compiled(coding()).plan, compiled(coding()).plan
    assert one.digest == same.digest
    assert len(one.digest) == 64
    assert one.digest != compiled(coding(limits=(("files", 9),))).plan.digest
    assert one.digest != replace(one, degraded=("limits",)).digest
    assert one.digest != replace(one, assumptions=()).digest
    assert one.digest != replace(one, workspace="/x").digest


def test_wire_is_plain_and_survives_marshal() -> None:
    plan = compiled(coding()).plan
    assert marshal.loads(marshal.dumps(cast("tuple[str, ...]", plan.wire()))) == plan.wire()
    assert plan.wire()[1] == plan.digest


def test_every_operation_describes_itself_in_one_line() -> None:
    world = World()
    world.files.add(f"{WORKSPACE}/.env")
    result = compiled(
        coding(deny=(literal(f"{WORKSPACE}/.env"),), limits=(("cpu-time", 1500), ("pids", 3))), world=world
    )
    for op in result.plan.operations:
        text = op.describe()
        assert text
        assert "\n" not in text
        assert op.json()["op"] == op.name
    program = next(op.json() for op in result.plan.operations if isinstance(op, Seccomp))["program"]
    assert "'blake2b'" in str(program)
    assert "'length'" in str(program)
