"""``remit run --grant FILE``: what a signed grant opens, how often, and that nothing inside reaches what proves it."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernel.run_harness import TIMEOUT, World, descendants, first_line
from tests.kernel.session_harness import comm, gone


@pytest.fixture
def data(world: World) -> Path:
    """A file of the user's that no profile grants."""
    path = world.home / "data"
    path.write_text("granted\n")
    path.chmod(0o644)
    return path


def make(world: World, *words: str, file: str = "g.json") -> Path:
    """``remit grant new``, in the home."""
    path = world.home / file
    made = world.remit("grant", "new", *words, "-o", str(path))
    assert made.status == 0, made.stderr
    return path


def read(world: World, data: Path, grant: Path | None) -> tuple[int, str]:
    options = ["--grant", str(grant)] if grant else []
    result = world.run("cat", str(data), options=options)
    return result.status, result.stdout + result.stderr


def imports(world: World, data: Path, grant: Path | None) -> set[str]:
    """The modules that a start imports, as ``-X importtime`` of the same interpreter tells them."""
    command = Path(world.command).resolve()
    stub = command.read_text()
    traced = world.base / "traced"
    lines = {
        "python=${bin}python3": f"bin={command.parent}/ python=${{bin}}python3",
        " -X utf8 ": " -X utf8 -X importtime ",
    }
    for old, new in lines.items():
        assert old in stub
        stub = stub.replace(old, new)
    traced.write_text(stub)
    traced.chmod(0o755)
    result = replace(world, command=str(traced)).run("cat", str(data), options=["--grant", str(grant)] if grant else [])
    assert result.status == (0 if grant else 1)
    found = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "remit.cli.fast" in found
    return found


def test_a_grant_file_opens_what_it_grants_as_often_as_it_says(world: World, data: Path) -> None:
    grant = make(world, "--read", str(data), "--uses", "2")
    assert read(world, data, None)[0] == 1
    # What only looks takes no use.
    for _ in range(3):
        assert world.remit("explain", "-p", world.profile, "--grant", str(grant)).status == 0
        assert world.remit("grant", "verify", str(grant)).status == 0
    # The second start has its plan from the cache.
    assert [read(world, data, grant) for _ in range(2)] == [(0, "granted\n")] * 2
    status, said = read(world, data, grant)
    assert status == 2
    assert "spent: it could be used 2 times" in said
    assert world.remit("grant", "verify", str(grant)).status == 1


def test_a_start_with_a_cached_plan_imports_no_cryptography(world: World, data: Path) -> None:
    grant = make(world, "--read", str(data), "--uses", "5")
    imported = [imports(world, data, grant) for _ in range(2)]
    assert "cryptography" in imported[0]
    assert "remit.sandbox.session.ledger" in imported[1]
    assert imported[1].isdisjoint({"cryptography", "json", "re", "dataclasses", "remit.sandbox.session.granted"})
    assert "remit.sandbox.session.ledger" not in imports(world, data, None)


def test_a_revoked_grant_opens_nothing_though_its_plan_is_cached(world: World, data: Path) -> None:
    grant = make(world, "--read", str(data))
    assert [read(world, data, grant)[0] for _ in range(2)] == [0, 0]
    assert world.remit("grant", "revoke", str(grant), "--reason", "leaked").status == 0
    status, said = read(world, data, grant)
    assert status == 2
    assert "leaked" in said


def test_a_key_that_is_trusted_no_more_opens_nothing_though_the_plan_is_cached(world: World, data: Path) -> None:
    grant = make(world, "--read", str(data))
    keys = world.home / ".config/remit/keys"
    theirs = keys / "trusted/theirs.pub"
    theirs.parent.mkdir(mode=0o700)
    (keys / "own.pub").rename(theirs)
    (keys / "own.key").unlink()
    assert [read(world, data, grant)[0] for _ in range(2)] == [0, 0]
    theirs.unlink()
    status, said = read(world, data, grant)
    assert status == 2
    assert "is not known here" in said


def test_a_grant_that_ends_ends_the_command(world: World, data: Path) -> None:
    for lives in ("2s", "10s", "60s"):
        grant = make(world, "--read", str(data), "--expires", lives, file=f"{lives}.json")
        result = world.run("sh", "-c", f"cat {data}; sleep 1000", options=["--grant", str(grant)])
        if result.stdout:
            break
        # A machine may take longer than that to come to the command.
        assert result.status in (2, 124), result
    assert (result.status, result.stdout) == (124, "granted\n")
    status, said = read(world, data, grant)
    assert status == 2
    assert "expired" in said


@pytest.mark.parametrize("end", ["kill", "freeze"])
def test_a_grant_that_is_revoked_ends_or_stops_the_command_that_runs_under_it(
    world: World, data: Path, end: str
) -> None:
    """And no other one. What it started goes with it."""
    path = world.home / "ending.toml"
    path.write_text(f'format = 1\nname = "ending"\nextends = ["offline"]\n[enforcement]\non_expiry = "{end}"\n')
    ending = replace(world, profile=str(path))
    taken, kept = (make(world, "--read", str(data), file=name) for name in ("g.json", "h.json"))
    left = "setsid sh -c 'trap \"\" TERM HUP; echo left; while :; do sleep 1000; done'"
    script = f"{left} & trap '' TERM HUP; cat {data}; while read line; do cat {data}; done"
    with (
        ending.start("sh", "-c", script, options=["--grant", str(taken)]) as one,
        ending.start("sh", "-c", script, options=["--grant", str(kept)]) as other,
    ):
        for started in (one, other):
            assert {first_line(started), first_line(started)} == {"granted", "left"}
        inside = [pid for pid in descendants(one.pid) if comm(pid) == "sh" and in_tree(pid)]
        assert len(inside) >= 2
        handles = [os.pidfd_open(pid) for pid in inside]
        assert world.remit("grant", "revoke", str(taken)).status == 0
        if end == "freeze":
            assert one.stderr is not None
            assert "stands still" in one.stderr.readline()
            while {state(pid) for pid in inside} != {"T"}:
                assert one.poll() is None
            os.kill(one.pid, signal.SIGCONT)
            os.kill(one.pid, signal.SIGINT)
        assert one.wait(TIMEOUT) == 125  # without the end of its input, which would end the script
        assert one.stderr is not None
        assert "was revoked" in one.stderr.read()
        assert gone(handles)
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
        assert first_line(other) == "granted"


def in_tree(pid: int) -> bool:
    """Not the janitor, which is outside."""
    return os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_changed_grant_opens_nothing(world: World, data: Path) -> None:
    grant = make(world, "--read", str(data))
    assert read(world, data, grant)[0] == 0
    grant.write_text(grant.read_text().replace(str(data), str(world.home)))
    status, said = read(world, data, grant)
    assert status == 2
    assert "signature does not match" in said


def test_the_record_names_the_grants_and_keeps_their_proof(world: World, data: Path) -> None:
    grant = make(world, "--read", str(data), "--uses", "1")
    assert read(world, data, grant)[0] == 0
    link = json.loads(grant.read_text())["links"][0]
    record = world.records()[-1]
    started = json.loads((record / "events.jsonl").read_text().splitlines()[0])
    assert started["grants"] == [link["grant"]["id"]]
    assert json.loads((record / "plan.json").read_text())["proofs"] == [json.loads(grant.read_text())]


def test_each_session_keeps_the_proof_of_its_own_grant_though_the_plan_is_the_same(world: World, data: Path) -> None:
    grants = [make(world, "--read", str(data), file=name) for name in ("g.json", "h.json")]
    for grant in [*grants, *grants]:
        assert read(world, data, grant)[0] == 0
        record = world.records()[-1]
        assert json.loads((record / "plan.json").read_text())["proofs"] == [json.loads(grant.read_text())]


def test_a_use_is_a_sessions_start_even_if_the_command_fails(world: World, data: Path) -> None:
    grant = make(world, "--read", str(data), "--uses", "1")
    assert world.run("false", options=["--grant", str(grant)]).status == 1
    assert read(world, data, grant)[0] == 2


def test_no_grant_opens_keys_and_ledger(world: World, data: Path) -> None:
    """Two arms: what is beside them, in the same directories, is read."""
    grant = make(world, "--read", str(data), "--uses", "5")
    assert read(world, data, grant)[0] == 0
    (world.home / ".config/beside").write_text("x")
    state = world.home / ".local/state"
    (state / "beside").write_text("x")
    own = world.home / ".config/remit/keys/own.key"
    log = state / "remit/ledger/log"
    found = world.probes(
        {
            "beside": f"read({str(world.home / '.config/beside')!r})",
            "beside the ledger": f"read({str(state / 'beside')!r})",
            "key": f"read({str(own)!r})",
            "ledger": f"read({str(log)!r})",
            "trust": f"write({str(own.parent / 'trusted.pub')!r})",
            "list": f"os.listdir({str(own.parent)!r})",
            "remove": f"os.unlink({str(log)!r})",
            "rename": f"os.rename({str(world.home / '.config/remit')!r}, {str(world.home / '.config/other')!r})",
        },
        "--read", str(world.home / ".config"), "--write", str(world.home), "--read", str(state),
    )  # fmt: skip
    assert found.pop("beside") == "ok"
    assert found.pop("beside the ledger") == "ok"
    assert set(found.values()) <= {"EACCES", "EBUSY", "EPERM"}, found
    assert world.outside(f"read({str(own)!r})") == "ok"


def test_a_key_that_is_made_while_a_session_runs_is_out_of_its_reach(world: World) -> None:
    """What is absent when a session starts no mount could cover: Remit's own directories are made before."""
    config = world.home / ".config"
    config.mkdir(mode=0o700)
    (config / "remit-beside").mkdir(mode=0o755)
    code = (
        f"echo up; read go; cat {config}/remit-beside/x; cat {config}/remit/keys/own.key && echo EXPOSED; "
        f"mkdir -p {config}/remit/keys/trusted && echo PLANTED"
    )
    with world.start("sh", "-c", code, options=["--write", str(world.home)]) as process:
        assert first_line(process) == "up"
        make(world, "--read", str(world.home))
        (config / "remit-beside/x").write_text("made meanwhile\n")
        out, err = process.communicate("go\n")
    assert "made meanwhile" in out
    assert "EXPOSED" not in out
    assert "PLANTED" not in out
    assert err.count("Permission denied") == 2
    assert (config / "remit/keys/own.key").exists()


def test_starts_at_once_share_the_uses(world: World, data: Path) -> None:
    grant = make(world, "--read", str(data), "--uses", "2")
    words = ["cat", str(data)]
    options = ["--grant", str(grant)]
    with (
        world.start(*words, options=options) as one,
        world.start(*words, options=options) as two,
        world.start(*words, options=options) as three,
    ):
        found = sorted((process.communicate()[0], process.returncode) for process in (one, two, three))
    assert found == [("", 2), ("granted\n", 0), ("granted\n", 0)]
    assert os.path.exists(world.state / "ledger/log")


# --- a grant that was taken out of another one is inside it as what its names lead to ---------------------------------------


@pytest.fixture
def given(world: World) -> Path:
    """A directory of the user's to be granted, with ``sub`` in it; beside it, ``private``, which nobody grants."""
    for name in ("given", "given/sub", "private"):
        (world.home / name).mkdir()
    (world.home / "private/s").write_text("SECRET")
    return world.home / "given"


def planted(world: World, given: Path, parent: Path) -> None:
    """Whoever has the parent puts a link in the place of ``sub``."""
    script = f"cd {given} && mv sub old && ln -s ../private sub"
    done = world.run("sh", "-c", script, options=["--grant", str(parent)])
    assert done.status == 0, done.stderr


def test_a_grant_out_of_another_does_not_leave_it_through_a_link(world: World, given: Path) -> None:
    """Neither one that was made before the link was, and used, nor one that is made after it."""
    parent = make(world, "--write", str(given), "--principal", "agent", file="p.json")
    child = make(world, "--from", str(parent), "--write", f"{given}/sub", "--principal", "w", file="w.json")
    owned = ["sh", "-c", f"echo OWNED > {given}/sub/s"]
    # The other arm: what lies in the directory that was given is written under both, and the plan is in the cache.
    for grant in (parent, child, child):
        assert world.run(*owned, options=["--grant", str(grant)]).status == 0
    planted(world, given, parent)
    for _ in range(2):
        for command in (owned, ["sh", "-c", f"echo OWNED > {world.home}/private/s"]):
            result = world.run(*command, options=["--grant", str(child)])
            assert result.status == 2
            assert f"{given}/sub leads to {world.home}/private" in result.stderr
    assert (world.home / "private/s").read_text() == "SECRET"
    late = world.remit("grant", "new", "--from", str(parent), "--write", f"{given}/sub", "-o", f"{world.home}/l.json")
    assert late.status == 2
    assert f"{given}/sub leads to {world.home}/private" in late.stderr
    assert not (world.home / "l.json").exists()
    # Offline, names are all that there is; and it says so.
    verified = world.remit("grant", "verify", str(child))
    assert verified.status == 0
    assert "names" in verified.stdout
    # With the directory back in its place it is good again. A link to what the parent has, too, is inside.
    (given / "sub").unlink()
    (given / "sub").symlink_to("old")
    assert world.run(*owned, options=["--grant", str(child)]).status == 0
    assert (given / "old/s").read_text() == "OWNED\n"


def test_no_grant_in_the_middle_of_a_chain_may_leave_the_one_above(world: World, given: Path) -> None:
    (given / "sub/leaf").mkdir()
    (world.home / "private/leaf").mkdir()
    parent = make(world, "--write", str(given), "--principal", "agent", file="p.json")
    middle = make(world, "--from", str(parent), "--write", f"{given}/sub", "--principal", "m", file="m.json")
    leaf = make(world, "--from", str(middle), "--read", f"{given}/sub/leaf", "--principal", "l", file="l.json")
    look = ["ls", f"{given}/sub/leaf"]
    assert world.run(*look, options=["--grant", str(leaf)]).status == 0
    planted(world, given, parent)
    result = world.run(*look, options=["--grant", str(leaf)])
    assert result.status == 2
    assert "leads to" in result.stderr


def test_a_session_and_a_call_refuse_it_too(world: World, given: Path) -> None:
    parent = make(world, "--write", str(given), "--principal", "agent", file="p.json")
    child = make(world, "--from", str(parent), "--read", f"{given}/sub", "--principal", "w", file="w.json")
    start = ["session", "start", "-p", world.profile, "-w", str(world.workspace)]
    session = world.remit(*start, "--read", str(world.home / "given"), "--read", str(world.home / "private"))
    assert session.status == 0, session.stderr
    name = session.stdout.split()[0]
    try:
        call = ["exec", name, "--grant", str(child), "--", "ls", f"{given}/sub"]
        assert world.remit(*call).status == 0
        planted(world, given, parent)
        refused = world.remit(*call)
        assert refused.status == 2
        assert f"{given}/sub leads to" in refused.stderr
        refused = world.remit(*start, "--grant", str(child))
        assert refused.status == 2
        assert f"{given}/sub leads to" in refused.stderr
        # The session has both directories: it is the parent that has not.
        assert world.remit("exec", name, "--read", f"{world.home}/private", "--", "ls", f"{given}/sub/").status == 0
    finally:
        assert world.remit("session", "stop", name).status == 0
