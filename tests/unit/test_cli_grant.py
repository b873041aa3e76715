"""``remit grant``: what it makes, prints and answers, its statuses, and its JSON against the shipped schemas."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from remit.cli import grant as cli
from remit.cli import main
from remit.sandbox.authority import proof
from remit.sandbox.authority.proof import parse
from remit.sandbox.session import keys
from remit.sandbox.session.ledger import Ledger
from tests.unit.grants import ALICE, MALLORY, NOW, chain, root

SCHEMAS = Path(cli.__file__).parent / "schemas"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, and a directory of one's own in it as the current one."""
    tmp_path.chmod(0o700)
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(keys, "SYSTEM", str(tmp_path / "system"))
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    monkeypatch.chdir(work)
    return work


Says = Callable[..., str]


@pytest.fixture
def remit(capsys: pytest.CaptureFixture[str]) -> Says:
    """Run ``remit grant WORDS`` and return what it printed, on both streams; ``status`` is what it has to exit with."""

    def run(*words: str, status: int = 0) -> str:
        found = main.run(["grant", *words])
        captured = capsys.readouterr()
        assert found == status, captured
        assert "internal error" not in captured.err
        return captured.out + captured.err

    return run


def document(remit: Says, name: str, *words: str, status: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(remit(*words, "--json", status=status))
    assert next(iter(found)) == "schema"
    jsonschema.validate(found, json.loads((SCHEMAS / f"{name}.schema.json").read_text()))
    return found


def test_new_makes_a_private_file_that_verifies(remit: Says, place: Path) -> None:
    made = document(
        remit, "grant-new", "new", "--read", "src", "--write", "out", "--deny", "**/.env", "--connect",
        "example.com:443", "--env", "CI=1", "--limit", "pids=5", "--purpose", "build", "--task", "T-1", "--uses", "3",
        "--expires", "1h", "--principal", "agent", "-o", "g.json",
    )  # fmt: skip
    path = place / "g.json"
    assert made["path"] == str(path)
    assert path.stat().st_mode & 0o777 == 0o600
    chain = parse(path.read_bytes())
    jsonschema.validate(json.loads(path.read_bytes()), json.loads((SCHEMAS / "grant-file.schema.json").read_text()))
    leaf = chain.leaf
    assert (leaf.grantor, leaf.principal, leaf.task, leaf.purpose, leaf.uses) == (
        f"uid:{os.geteuid()}", "agent", "T-1", "build", 3,
    )  # fmt: skip
    assert leaf.not_before is not None
    assert leaf.expires == pytest.approx(leaf.not_before + 3600)
    assert [rule.path for rule in leaf.authority.paths] == [f"{place}/out", f"{place}/src"]
    assert "holds; given to agent" in remit("verify", "g.json")
    assert made["grant"]["id"] == leaf.id


def test_new_never_overwrites_and_follows_no_link(remit: Says, place: Path) -> None:
    remit("new", "--read", ".", "-o", "g.json")
    before = (place / "g.json").read_bytes()
    assert "not overwritten" in remit("new", "--read", ".", "-o", "g.json", status=2)
    assert (place / "g.json").read_bytes() == before
    (place / "link").symlink_to(place / "victim")
    assert "not overwritten" in remit("new", "--read", ".", "-o", "link", status=2)
    assert not (place / "victim").exists()
    assert "No such file" in remit("new", "-o", "no/such/dir", status=2)


def test_every_error_is_said_at_once(remit: Says) -> None:
    said = remit("new", "--read", "a/../b", "--uses", "0", "--not-before", "soon", "--expires", "1d", "--from", "none",
                 status=2)  # fmt: skip
    for part in ("--read", "--uses", "--not-before", "--expires", "none: no such file", "--output"):
        assert part in said
    said = remit("new", "--raed=x", "--read", status=2)
    assert "did you mean --read?" in said
    assert "--read needs a value" in said
    assert "unexpected argument: word" in remit("new", "-o", "x", "word", status=2)


@pytest.mark.parametrize("uses", ["0", "-1", "1.5", "many", "1" * 30, "٣"])
def test_uses_is_a_whole_number(remit: Says, uses: str) -> None:
    assert "not a number of uses" in remit("new", f"--uses={uses}", "-o", "g", status=2)


@pytest.mark.parametrize("time", ["soon", "2030-01-31T12:00", "2030-13-01T00:00Z", "1e9", "nan", "0x10"])
def test_a_time_has_a_zone(remit: Says, time: str) -> None:
    remit("new", "-o", "g")
    assert "time" in remit("new", f"--not-before={time}", "-o", "h", status=2) or "2030-01-31T12:00Z" in remit(
        "verify", "g", f"--at={time}", status=2
    )


def test_times_are_seconds_or_iso_8601() -> None:
    assert cli.moment("0") == 0
    assert cli.moment("1.5") == 1.5
    assert cli.moment("1970-01-02T00:00Z") == 86400
    assert cli.moment("1970-01-01T01:00+01:00") == 0
    assert cli.shown(86400) == "1970-01-02T00:00:00Z"
    assert cli.shown(1e17)


def test_from_narrows_and_refuses_what_is_wider(remit: Says, place: Path) -> None:
    remit("new", "--read", "src", "--read", "lib", "--deny", "src/key", "--limit", "pids=5", "--uses", "3",
          "--expires", "1h", "--principal", "agent", "-o", "g")  # fmt: skip
    remit("new", "--from", "g", "--read", "src/a", "--uses", "1", "--principal", "tool", "-o", "h")
    made = parse((place / "h").read_bytes())
    assert len(made.links) == 2
    assert (made.leaf.grantor, made.leaf.principal, made.leaf.uses) == ("agent", "tool", 1)
    assert made.leaf.authority.limits == (("pids", 5),)
    assert made.leaf.expires == made.links[0].grant.expires
    remit("verify", "h")
    said = remit("new", "--from", "g", "--read", "etc", "--write", "src", "--limit", "pids=6", "--uses", "4", "--expires",
                 "2h", "-o", "i", status=2)  # fmt: skip
    for part in (f"read {place}/etc", f"write {place}/src", "6 is above", "uses", "expires"):
        assert part in said
    assert not (place / "i").exists()


def test_a_chain_has_eight_grants_at_most(remit: Says) -> None:
    remit("new", "--read", ".", "-o", "1")
    for number in range(2, 9):
        remit("new", "--from", f"{number - 1}", "--read", ".", "-o", f"{number}")
    assert "longer than 8" in remit("new", "--from", "8", "--read", ".", "-o", "9", status=2)


def test_from_takes_nothing_out_of_what_does_not_hold(remit: Says, place: Path) -> None:
    (place / "g").write_bytes(proof.dump(chain(root(), keys=(MALLORY,))))
    assert "not known here" in remit("new", "--from", "g", "-o", "h", status=2)
    remit("new", "--read", ".", "--expires", "1ms", "-o", "ended")
    assert "expired" in remit("new", "--from", "ended", "--read", ".", "-o", "h", status=2)


def test_a_profile_can_be_granted(remit: Says, place: Path) -> None:
    remit("new", "-p", "coding", "-w", ".", "-o", "g")
    leaf = parse((place / "g").read_bytes()).leaf
    assert str(place) in [rule.path for rule in leaf.authority.paths]
    assert leaf.authority.deny
    assert "no such profile" in remit("new", "-p", "nothing", "-o", "h", status=2)


def test_show_prints_every_link_and_no_control_character(remit: Says) -> None:
    remit("new", "--read", "src", "--purpose", "\x1b[2Jevil", "--principal", "agent", "-o", "g")
    remit("new", "--from", "g", "--read", "src", "--task", "T", "-o", "h")
    found = document(remit, "grant-show", "show", "h")
    assert len(found["links"]) == 2
    said = remit("show", "h")
    assert "\x1b" not in said
    assert "(root)" in said
    assert f"out of {found['links'][0]['grant']['id']}" in said
    assert "task T" in said


def test_verify_says_everything_that_is_wrong_and_exits_1(remit: Says, place: Path) -> None:
    remit("new", "--read", ".", "--session", "s1", "--not-before", "2030-01-01T00:00Z", "-o", "g")
    found = document(remit, "grant-verify", "verify", "g", "--session", "s2", status=1)
    assert found["valid"] is False
    assert len(found["problems"]) == 2
    said = remit("verify", "g", "--session", "s2", status=1)
    assert "not in force before" in said
    assert "belongs to session s1" in said
    assert said.count("hint:") == 1
    found = document(remit, "grant-verify", "verify", "g", "--session", "s1", "--at", "2030-01-01T00:00Z")
    assert found["valid"] is True
    assert found["problems"] == []
    (place / "m").write_bytes(proof.dump(chain(root(), keys=(MALLORY,))))
    assert "not known here" in remit("verify", "m", "--at", str(NOW), status=1)


def test_verify_can_be_told_which_key_to_believe(remit: Says, place: Path) -> None:
    (place / "m").write_bytes(proof.dump(chain(root(), keys=(MALLORY,))))
    (place / "m.pub").write_text(f"ed25519 {MALLORY.public}\n")
    (place / "bad.pub").write_text("ed25519 x\n")
    remit("verify", "m", "--key", MALLORY.public)
    remit("verify", "m", "--key", "m.pub")
    remit("verify", "m", "--key", ALICE.public, status=1)
    assert "not a public key" in remit("verify", "m", "--key", "bad.pub", status=2)
    assert "no such file" in remit("verify", "m", "--key", "none.pub", status=2)


def test_malformed_files_are_2(remit: Says, place: Path) -> None:
    (place / "bad").write_text("{}")
    for words in (("show", "bad"), ("verify", "bad"), ("revoke", "bad"), ("new", "--from", "bad", "-o", "x")):
        assert "missing key" in remit(*words, status=2)
    for words in (("show", "none"), ("verify", "none"), ("revoke", "none")):
        assert "no such file" in remit(*words, status=2)
    assert "did not expand ~" in remit("show", "~/x", status=2)


def test_a_file_that_others_can_write_is_refused(remit: Says, place: Path) -> None:
    remit("new", "--read", ".", "-o", "g")
    (place / "g").chmod(0o666)
    assert "everybody" in remit("verify", "g", status=2)


def test_revoke_by_file_and_by_id(remit: Says, place: Path) -> None:
    remit("new", "--read", ".", "--principal", "agent", "-o", "g")
    remit("new", "--from", "g", "--read", ".", "-o", "h")
    remit("new", "--read", ".", "-o", "other")
    above = parse((place / "g").read_bytes()).leaf.id
    found = document(remit, "grant-revoke", "revoke", "g", "--reason", "leaked")
    assert found["id"] == above
    for file in ("g", "h"):
        assert "revoked at" in remit("verify", file, status=1)
    assert "leaked" in remit("verify", "h", status=1)
    remit("verify", "other")
    remit("revoke", parse((place / "other").read_bytes()).leaf.id)
    remit("verify", "other", status=1)
    # Before it was revoked, it held.
    leaf = parse((place / "other").read_bytes()).leaf
    remit("verify", "other", "--at", str(leaf.not_before))


def test_verify_says_that_a_grant_is_spent(remit: Says, place: Path) -> None:
    remit("new", "--read", ".", "--uses", "1", "-o", "g")
    leaf = parse((place / "g").read_bytes()).leaf
    remit("verify", "g")
    Ledger(f"{os.environ['HOME']}/.local/state/remit").consume(leaf.id, 1, "s")
    assert "spent" in remit("verify", "g", status=1)
    remit("verify", "g", "--at", str(leaf.not_before))


def test_a_key_that_is_open_to_others_signs_nothing(remit: Says, tmp_path: Path) -> None:
    remit("new", "--read", ".", "-o", "g")
    (tmp_path / ".config/remit/keys/own.key").chmod(0o644)
    assert "open to others" in remit("new", "--read", ".", "-o", "h", status=2)


def test_help_and_completion_know_the_options() -> None:
    text = CliRunner().invoke(cli.command, ["new", "--help"]).output
    for name in ("--from FILE", "--uses N", "--not-before TIME", "--read PATH", "-o, --output FILE", "--session ID"):
        assert name in text
    assert not re.search(r"^ +--(grant|degrade|status-fd|chdir)\b", text, re.MULTILINE)
    new = cli.command.commands["new"]
    context = new.make_context("new", [], resilient_parsing=True)
    assert "--principal" in [item.value for item in new.shell_complete(context, "--pr")]
    assert [item.type for item in _parameter(new, "from").shell_complete(context, "x")] == ["file"]


def _parameter(command: Any, name: str) -> Any:
    return next(one for one in command.params if one.name == name)


@pytest.mark.parametrize(
    "principal", ["uid:x", "uid:", "uid:-1", "uid:4294967295", "uid:1e3", "key:zz", "key:", "key:" + "g" * 64]
)
def test_a_grant_for_nobody_is_not_made(remit: Says, place: Path, principal: str) -> None:
    told = remit("new", "--read", ".", "--principal", principal, "-o", "g", status=2)
    assert f"{principal!r} is no" in told
    assert "--principal" in told
    assert not (place / "g").exists()


@pytest.mark.parametrize("principal", ["uid:1000", "key:" + "a" * 64, "agent", "team:a", "uid"])
def test_a_grant_for_a_user_a_key_or_a_name_is_made(remit: Says, principal: str) -> None:
    remit("new", "--read", ".", "--principal", principal, "-o", "g")
