"""The record's chain: whatever is done to a record afterwards is found, with its place; whatever ends it, it stays whole."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.cli import main
from remit.sandbox.audit import housekeeping, journal, log, seal
from remit.sandbox.audit.record import Record, keep_plan
from remit.sandbox.authority import codec
from remit.sandbox.authority.errors import UsageError
from remit.sandbox.authority.model import Authority
from remit.sandbox.session import keys

SCHEMAS = Path(main.__file__).parent / "schemas"
PLAN: dict[str, Any] = {
    "audit": "writes",
    "grant": {"authority": codec.to_json(Authority())},
    "plan": {"operations": []},
}
ANYTHING = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)


def action(name: bytes = b"/w/x", *, verdict: str = "allowed", certainty: str = "exercised") -> tuple[object, ...]:
    return (1.0, 3, 7, b"/usr/bin/sh", 257, name, "write", verdict, certainty, "", 0, "/w")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    made = str(tmp_path / "state" / "remit")
    keep_plan(made, "d", json.dumps(PLAN))
    return made


def recorded(state: str, *names: bytes, ended: bool = True) -> Record:
    record = Record(state, "d", {"argv": ["true"], "workspace": "/w"})
    record.enforced({"landlock": "canary: Permission denied"})
    for name in names or (b"/w/a", b"/w/b", b"/w/c"):
        record.actions([action(name)])
    if ended:
        record.ended({"status": 0, "limit": None, "denials": 0})
    return record


def test_an_interruption_moves_no_action_on_the_wall_clock(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks at clocks another process may have its turn: an action would be before the one that it came after."""
    passed = [10.0]

    def monotonic() -> float:
        passed[0] += interrupted.pop() if interrupted else 0.0
        return passed[0]

    record = recorded(state, ended=False)
    clocks = SimpleNamespace(time=lambda: 1000.0 + passed[0], monotonic=monotonic)
    monkeypatch.setattr("remit.sandbox.audit.record.time", clocks)
    for seconds in (0.0, 0.5):
        interrupted = [seconds]
        record.actions([action()])
        interrupted = [seconds]
        record.whole(None, [("1", "", action())], {"kind": "returned"})
    lines = [json.loads(line) for line in Path(record.path, "events.jsonl").read_text().splitlines()]
    assert [line["time"] - line["mono"] for line in lines if line["kind"] == "action"][3:] == [1000.0] * 4
    record.ended({})


def verify(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    status = main.run(["audit", "verify", *argv, "--json"])
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    jsonschema.validate(made, json.loads((SCHEMAS / "audit-verify.schema.json").read_text()))
    return status, made["sessions"][0]


def test_a_record_verifies_and_is_signed_once(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = recorded(state)
    status, found = verify([record.identifier], capsys)
    assert (status, found["lines"], found["unsigned"], found["signed_now"]) == (0, 6, 6, True)
    status, found = verify(["--last"], capsys)
    assert (status, found["signed"], found["unsigned"], found["signed_now"]) == (0, 6, 0, False)
    assert found["keys"] == [keys.own_public(os.environ, "/nonexistent")]


@ANYTHING
@given(where=st.integers(0, 1 << 20), change=st.integers(1, 255))
def test_any_edit_of_any_byte_is_found_at_its_line(state: str, where: int, change: int) -> None:
    record = recorded(state)
    path = Path(record.path) / "events.jsonl"
    content = bytearray(path.read_bytes())
    at = where % len(content)
    line = content[:at].count(b"\n") + 1
    content[at] ^= change
    path.write_bytes(content)
    problem = log.check(record.path).problem
    assert problem is not None
    assert problem.line == line
    assert problem.offset == content.rfind(b"\n", 0, at) + 1


@ANYTHING
@given(data=st.data())
def test_lines_removed_moved_or_doubled_are_found(state: str, data: st.DataObject) -> None:
    record = recorded(state)
    path = Path(record.path) / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    how = data.draw(st.sampled_from(["remove", "swap", "double", "append"]))
    at = data.draw(st.integers(0, len(lines) - 1))
    changed = list(lines)
    if how == "remove":
        del changed[at]
        expected = at + 1
    elif how == "swap":
        other = data.draw(st.integers(0, len(lines) - 1).filter(lambda one: one != at))
        changed[at], changed[other] = changed[other], changed[at]
        expected = min(at, other) + 1
    elif how == "double":
        changed.insert(at, changed[at])
        expected = at + 2
    else:
        changed.append(lines[at])
        expected = len(lines) + 1
    path.write_bytes(b"".join(changed))
    problem = log.check(record.path).problem
    assert problem is not None
    assert problem.line == expected


@ANYTHING
@given(left=st.integers(0, 1 << 20))
def test_a_truncated_record_is_found(state: str, left: int) -> None:
    record = recorded(state)
    path = Path(record.path) / "events.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: left % len(content)])
    problem = log.check(record.path).problem
    assert problem is not None
    assert problem.what.startswith("truncated: 6 lines")


def test_without_its_head_a_signature_still_finds_what_is_missing(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = recorded(state)
    assert verify(["--last"], capsys)[1]["signed_now"]
    path = Path(record.path) / "events.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    (Path(record.path) / "head").unlink()
    status, found = verify(["--last"], capsys)
    assert (status, found["problem"]["what"], found["problem"]["line"]) == (1, "truncated: 6 lines were signed", 5)


def test_a_whole_record_made_anew_is_not_what_was_signed(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = recorded(state)
    verify(["--last"], capsys)
    other = recorded(state, b"/w/innocent")
    forged = Path(other.path, "events.jsonl").read_bytes()
    # With the right id everywhere and every hash computed: what somebody who knows this code can do.
    from remit.sandbox.audit.chain import chain
    from remit.sandbox.audit.record import SCHEMA

    head, lines = chain(b"", f"{SCHEMA} {record.identifier}".encode()), list[bytes]()
    for line in forged.replace(other.identifier.encode(), record.identifier.encode()).splitlines():
        body = line.rpartition(b',"hash":"')[0]
        head = chain(head, body + b"}")
        lines.append(body + b',"hash":"' + head + b'"}\n')
    Path(record.path, "events.jsonl").write_bytes(b"".join(lines))
    Path(record.path, "head").write_bytes(b"%d %s\n" % (len(lines), head))
    assert log.check(record.path).problem is None
    status, found = verify([record.identifier], capsys)
    assert status == 1
    assert "signed" in found["problem"]["what"]


@pytest.mark.parametrize("name", ["signature", "key", "sequence", "hash", "session", "plan", "time"])
def test_a_changed_checkpoint_is_found(state: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = recorded(state)
    verify(["--last"], capsys)
    path = Path(record.path) / seal.NAME
    made = json.loads(path.read_text())
    made[name] = {"sequence": 3, "time": 0}.get(name, "00" * 32)
    path.write_text(json.dumps(made) + "\n")
    assert verify(["--last"], capsys)[0] == 1


def test_a_changed_plan_is_found_once_it_is_signed(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = recorded(state)
    verify(["--last"], capsys)
    plan = Path(record.path) / "plan.json"
    plan.write_text(plan.read_text().replace("writes", "full"))
    status, found = verify(["--last"], capsys)
    assert (status, found["problem"]["what"]) == (1, "plan.json was changed")


def test_nobody_signs_what_was_changed(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = recorded(state)
    path = Path(record.path) / "events.jsonl"
    path.write_bytes(path.read_bytes().replace(b"/w/b", b"/w/z"))
    status, found = verify(["--last"], capsys)
    assert (status, found["signed_now"], found["problem"]["line"]) == (1, False, 4)
    assert not (Path(record.path) / seal.NAME).exists()


def test_a_record_that_runs_is_not_one_that_was_killed(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    ready, go = os.pipe()
    done, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        recorded(state, ended=False)
        os.write(go, b"x")
        os.close(end)
        os.read(done, 1)
        os._exit(0)
    os.close(done)
    os.read(ready, 1)
    try:
        status, found = verify(["--last"], capsys)
        assert (status, found["running"], found["ended"]) == (0, True, False)
    finally:
        os.close(end)
        os.waitpid(pid, 0)
    assert not verify(["--last"], capsys)[1]["running"]


def test_killed_at_any_moment_it_verifies_to_its_last_whole_line(state: str) -> None:
    chance = random.Random(11)
    torn = 0
    for trial in range(220):
        readable, writable = os.pipe()
        pid = os.fork()
        if pid == 0:
            record = recorded(state, ended=False)
            os.write(writable, record.identifier.encode())
            while True:
                record.actions([action(b"/w/%d" % trial * 40)] * 40)
        identifier = os.read(readable, 64).decode()
        directory = f"{state}/sessions/{identifier}"
        wanted = chance.randrange(1, 60_000)
        while os.stat(f"{directory}/events.jsonl").st_size < wanted:
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(readable)
        os.close(writable)
        checked = log.check(directory)
        assert checked.problem is None
        content = Path(directory, "events.jsonl").read_bytes()
        assert len(checked.hashes) == content.count(b"\n")
        assert checked.size == content.rfind(b"\n") + 1
        torn += checked.torn
        assert log.read(state, identifier).torn == checked.torn
        Path(directory, "events.jsonl").write_bytes(content + b'{"id":"')
        assert log.check(directory).problem is None


def test_what_cannot_be_written_whole_is_taken_back_and_counted(state: str) -> None:
    import resource

    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        record = recorded(state, ended=False)
        size = os.stat(f"{record.path}/events.jsonl").st_size
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 700, unlimited))
        failed = 0
        for _ in range(5):
            try:
                record.actions([action(b"/w/" + b"n" * 200)])
            except OSError:
                failed += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
        record.actions([action(b"/w/after")])
        record.ended({"status": 0})
        os.write(writable, f"{record.identifier} {failed}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    identifier, times = os.read(readable, 64).decode().split()
    assert int(times) >= 4
    found = log.read(state, identifier)
    assert found.lost == int(times)
    assert found.events[-1].object == "/w/after"
    assert log.check(found.directory).problem is None


# --- the journal


def _entry(data: bytes) -> dict[str, str]:
    """The native protocol's fields, read by its description."""
    found: dict[str, str] = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
        assert name.decode() not in found
        found[name.decode()] = value.decode(errors="surrogateescape")
        data = rest
    return found


def test_events_are_entries_of_the_journal(
    state: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = recorded(state, b"/w/a", b"/w/b\nREMIT_VERDICT=denied\nX=", b"/w/\xff")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, tempfile.TemporaryDirectory() as place:
        monkeypatch.setattr(journal, "SOCKET", f"{place}/socket")
        assert main.run(["audit", "export", "--last", "--journald"]) == 2
        assert "cannot be written: No such file" in capsys.readouterr().err
        listener.bind(f"{place}/socket")
        listener.setblocking(False)
        assert main.run(["audit", "export", "--last", "--journald"]) == 0
        entries = [_entry(listener.recv(1 << 16)) for _ in range(3)]
        with pytest.raises(BlockingIOError):
            listener.recv(1)
    assert f"3 events: journalctl REMIT_SESSION={record.identifier}" in capsys.readouterr().out
    names = ["/w/a", "/w/b\nREMIT_VERDICT=denied\nX=", "/w/\udcff"]
    assert [entry["REMIT_OBJECT"] for entry in entries] == names
    assert {entry["REMIT_VERDICT"] for entry in entries} == {"allowed"}
    assert {entry["PRIORITY"] for entry in entries} == {"6"}
    assert main.run(["audit", "export", "--last", "--journald", "--ocsf"]) == 2


def test_what_came_since_is_read_from_anywhere_in_a_record(state: str) -> None:
    """Where a record ended for whoever looked while a line was being written, that line is of before."""
    record = recorded(state, b"/w/a", b"/w/b", ended=False)
    record.event({"kind": "returned", "call": "x", "status": 0})
    data = Path(f"{record.path}/events.jsonl").read_bytes()
    lines = data.splitlines(keepends=True)
    begins = [sum(map(len, lines[:number])) for number in range(len(lines))]
    names = [str(json.loads(line).get("object", "")) for line in lines]
    for begin in range(len(data) + 1):
        events, ended = log.since(record.path, begin, "x")
        later = [name for at, name in zip(begins, names, strict=True) if at >= begin and name]
        assert [event.object for event in events] == later, begin
        assert ended == (begin <= begins[-1])
    assert log.since(record.path, 0, "y")[1] is False


def test_a_journal_that_reads_nothing_is_given_up(
    state: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(state, *[b"/w/%d" % n for n in range(2000)])
    monkeypatch.setattr(journal, "_PATIENCE", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, tempfile.TemporaryDirectory() as place:
        monkeypatch.setattr(journal, "SOCKET", f"{place}/socket")
        listener.bind(f"{place}/socket")
        assert main.run(["audit", "export", "--last", "--journald"]) == 2
        read = len(listener.recv(1 << 16))
    told = capsys.readouterr().err
    assert read
    assert "it takes no more, after " in told
    assert "after 0 events" not in told


# --- what is kept


def test_only_the_newest_ended_sessions_are_kept(state: str) -> None:
    names = sorted(recorded(state).identifier for _ in range(5))
    removed = housekeeping.prune(state, housekeeping.Keep(sessions=2, bytes=0, days=0), 0)
    assert removed == names[:3]
    assert log.sessions(state) == names[3:]


def test_bytes_and_age_bound_what_is_kept(state: str) -> None:
    names = sorted(recorded(state).identifier for _ in range(3))
    os.utime(f"{state}/sessions/{names[0]}/events.jsonl", (0, 0))
    assert housekeeping.prune(state, housekeeping.Keep(0, 0, 90), 91 * 86400) == names[:1]
    assert housekeeping.prune(state, housekeeping.Keep(0, 1, 0), 0) == names[1:]


def test_a_session_that_runs_is_kept(state: str) -> None:
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        recorded(state, ended=False)
        os.write(writable, b"x")
        signal.pause()
    os.read(readable, 1)
    try:
        assert housekeeping.prune(state, housekeeping.Keep(1, 1, 1), 1e12) == []
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert len(housekeeping.prune(state, housekeeping.Keep(0, 1, 0), 1e12)) == 1


def test_the_users_file_says_how_much(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert housekeeping.keep(environ) == housekeeping.Keep()
    file = tmp_path / "remit" / "audit.toml"
    file.parent.mkdir()
    file.write_text("[keep]\nsessions = 3\ndays = 0\n")
    assert housekeeping.keep(environ) == housekeeping.Keep(sessions=3, days=0)
    for wrong in ("[keep]\nsesions = 3", "[keep]\ndays = -1", "keep = 3", "x = 1", "[", "[keep]\ndays = true"):
        file.write_text(wrong)
        with pytest.raises(UsageError, match=r"audit\.toml"):
            housekeeping.keep(environ)
