"""``remit explain`` and the assembly behind it: what is granted, from where, and refusals; nothing runs."""

from __future__ import annotations

import json
import marshal
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from remit.cli import doctor, explain, main
from remit.cli.options import Invocation
from remit.sandbox.authority.errors import RemitError, Unenforceable
from remit.sandbox.compile.plan import Environment
from remit.sandbox.compile.web import BUNDLE
from remit.sandbox.kernel.facts import HostFacts
from remit.sandbox.session import assemble as module
from remit.sandbox.session.assemble import assemble, describe, prepare
from remit.sandbox.session.place import own_code, own_directories

SCHEMAS = Path(explain.__file__).parent / "schemas"
FACTS = HostFacts(uid=os.geteuid(), gid=os.getegid(), idmapped_mounts=True)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o700)
    made = tmp_path / "work"
    made.mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "probe", lambda: FACTS)
    monkeypatch.setattr(doctor, "probe", lambda: FACTS)
    monkeypatch.chdir(made)
    return made


def asked(*grants: tuple[str, str], profile: str = "offline", **more: Any) -> Invocation:
    return Invocation("explain", ("true",), profile=profile, grants=grants, **more)


def json_of(argv: list[str], status: int, capsys: pytest.CaptureFixture[str], name: str = "explain") -> dict[str, Any]:
    assert main.run([*argv, "--json"]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, json.loads((SCHEMAS / f"{name}.schema.json").read_text()))
    return found


def test_json_follows_the_shipped_schema(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of(["explain", "-p", "offline"], 0, capsys)
    assert found["enforceable"] is True
    assert found["workspace"] == str(workspace)


def test_every_option_shows_with_its_source(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "data").mkdir()
    (workspace / "secret").touch()
    argv = [
        "explain",
        "-p",
        "readonly",
        "--write",
        "data",
        "--deny",
        "secret",
        "--env",
        "SPECIAL=1",
        "--limit",
        "pids=7",
    ]
    assert main.run([*argv, "--purpose", "look", "--plan", "--", "true"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert [x for x in lines if f"{workspace}/data" in x and "write" in x and "command line --write" in x]
    assert [x for x in lines if f"{workspace}/secret" in x and "deny" in x and "command line --deny" in x]
    assert [x for x in lines if "SPECIAL" in x]
    assert [x for x in lines if "limit pids to 7" in x]
    assert "purpose look" in lines
    assert [x for x in lines if x.strip().startswith("1. new namespaces")]


def test_text_names_the_profiles_line(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["explain", "-p", "offline"]) == 0
    printed = capsys.readouterr().out
    assert "base.toml:" in printed
    assert "offline.toml" in printed
    assert "Plan " not in printed


def test_what_cannot_be_enforced_is_125_with_reasons(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "probe", lambda: replace(FACTS, landlock_abi=0, user_namespaces=False))
    found = json_of(["explain", "-p", "offline"], 125, capsys)
    assert found["enforceable"] is False
    reasons = found["reasons"]
    assert len(reasons) >= 2
    assert all(reason["fix"] for reason in reasons)
    assert main.run(["explain", "-p", "offline"]) == 125
    assert "fix: " in capsys.readouterr().err


def test_network_grants_are_shown_with_what_holds_them(workspace: Path) -> None:
    found = assemble(asked(("connect", "example.com:443")), facts=FACTS).lowering
    line = next(line for line in found.granted if line.right == "connect" and line.object == "example.com:443/tcp")
    assert (line.layers, line.source) == (("namespaces", "gateway"), "command line --connect")
    with pytest.raises(Unenforceable):
        assemble(asked(("connect", "example.com:53/udp")), facts=FACTS)


def test_http_rules_and_credentials_are_said_without_a_secret(workspace: Path, tmp_path: Path) -> None:
    profile, token = tmp_path / "web.toml", tmp_path / "token"
    profile.write_text(
        'format = 1\nname = "web"\nextends = ["offline"]\n[network]\nconnect = ["a.example.com:443"]\n'
        '[[network.http]]\nhost = "a.example.com"\nmethods = ["GET"]\n[[network.http]]\nhost = "b.example.com"\n'
        f'[[credentials]]\nhost = "a.example.com"\nheader = "x-key"\nfrom = "file:{token}"\nvariable = "KEY"\n'
        '[[credentials]]\nhost = "c.example.com"\nheader = "x-key"\nfrom = "command:print s3cret"\nvariable = "C"\n'
    )
    made = assemble(asked(profile=str(profile)), {**os.environ, "KEY": "s3cret"}, facts=FACTS)
    lines = {(line.right, line.object): line for line in made.lowering.granted}
    assert lines["request", "GET a.example.com/"].layers == ("gateway",)
    assert lines["credential", "a.example.com"].note == f"header x-key, from file:{token}; KEY holds a placeholder"
    assert any(line.object == str(token) for line in made.lowering.denied)  # wherever it lies, it is not read inside
    assert not any("fronting" in line.note for line in made.lowering.slack)
    assert [line.object for line in made.lowering.deficit if line.right == "credential"] == ["c.example.com"]
    assert any("b.example.com is not granted" in note for note in made.lowering.notes)
    assert "s3cret" not in json.dumps([made.plan.json(), describe(made)])
    assert "s3cret" not in repr(made.plan.wire())
    assert made.inputs == ()  # how to get a secret is in no cache
    environment = next(op for op in made.plan.operations if isinstance(op, Environment))
    assert "KEY" not in environment.passed
    assert dict(environment.set_)["SSL_CERT_FILE"] == BUNDLE


def test_the_package_index_is_what_pip_is_configured_to_use(workspace: Path, tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://index.example.com:8443/simple\n")
    environ = {**os.environ, "PIP_CONFIG_FILE": str(config), "npm_config_registry": "http://npm.example.com/"}
    environ = {name: value for name, value in environ.items() if name not in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")}
    made = assemble(asked(profile="coding"), environ, facts=FACTS)
    granted = {line.object: line.source for line in made.lowering.granted if line.right == "connect"}
    assert "coding.toml" in granted["index.example.com:8443/tcp"]
    assert "npm.example.com:80/tcp" in granted
    assert any("{package_index} is index.example.com:8443/tcp for pip" in note for note in made.notes)
    assert str(config) in made.inputs
    assert dict(made.grant.authority.environment)["PIP_INDEX_URL"] == "https://index.example.com:8443/simple"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"workspace": "/nonexistent"}, "--workspace"),
        ({"workspace": "/etc/passwd"}, "not a directory"),
        ({"chdir": "nowhere"}, "--chdir"),
        ({"profile": "nope"}, "no such profile"),
        ({"profile": "./nope.toml"}, "no such"),
        ({"grants": (("read", "/nonexistent/x"),)}, "does not exist"),
    ],
)
def test_what_is_not_there_is_2(workspace: Path, more: dict[str, Any], says: str) -> None:
    values: dict[str, Any] = {"profile": "offline", **more}
    with pytest.raises(RemitError) as error:
        assemble(Invocation("explain", ("true",), **values), facts=FACTS)
    assert error.value.exit_status == 2
    assert says in str(error.value)


def test_all_phases_report_together(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main.run(["explain", "-p", "nope", "-w", "/nonexistent", "--limit", "x", "--read", "a/../b", "--exec", "/gone"])
        == 2
    )
    printed = capsys.readouterr().err
    for part in ("nope", "/nonexistent", "--limit", "--read", "/gone does not exist"):
        assert part in printed


def test_a_suggestion_is_named_and_not_applied(workspace: Path) -> None:
    outside = workspace.parent / "outside"
    outside.mkdir()
    (workspace / "remit.toml").write_text(f'format = 1\nname = "s"\n[filesystem]\nwrite = ["{outside}"]\n')
    plain = assemble(asked(), facts=FACTS)
    assert not [rule for rule in plain.grant.authority.paths if rule.path == str(outside)]
    assert [one for one in plain.warnings if "remit.toml" in one]
    accepted = assemble(asked(accept_suggestion=True), facts=FACTS)
    assert [rule for rule in accepted.grant.authority.paths if rule.path == str(outside)]
    assert accepted.warnings == ()


def test_a_broken_suggestion_stops_only_who_accepts_it(workspace: Path) -> None:
    (workspace / "remit.toml").write_text("[filesystem\n")
    assert [one for one in assemble(asked(), facts=FACTS).warnings if "remit.toml" in one]
    with pytest.raises(RemitError):
        assemble(asked(accept_suggestion=True), facts=FACTS)


def test_a_grant_that_ends_limits_the_time(workspace: Path) -> None:
    made = assemble(asked(("expires", "90s")), facts=FACTS)
    assert dict(made.grant.authority.limits)["time"] == 90_000
    assert made.grant.expires is not None
    shorter = assemble(asked(("expires", "90s"), ("limit", "time=5s")), facts=FACTS)
    assert dict(shorter.grant.authority.limits)["time"] == 5_000


def test_remits_own_places_are_denied_whatever_is_granted(workspace: Path, tmp_path: Path) -> None:
    own = tmp_path / "config" / "remit"
    own.mkdir(parents=True)
    made = assemble(asked(("write", str(tmp_path))), facts=FACTS)
    (mediate,) = [operation.json() for operation in made.plan.operations if operation.name == "mediate"]
    assert str(own) in json.dumps(mediate) or [
        operation
        for operation in made.plan.operations
        if operation.name == "cover" and str(own) in operation.describe()
    ]


def test_own_directories_follow_the_environment() -> None:
    found = own_directories(
        {"XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "relative", "XDG_RUNTIME_DIR": "/run/u"}, "/home/u"
    )
    assert found == ("/c/remit", "/home/u/.local/state/remit", "/home/u/.cache/remit", "/run/u/remit", "/etc/remit")


def test_own_code_covers_this_package_under_its_real_name() -> None:
    covered = own_code()
    for path in (os.path.abspath(explain.__file__), os.path.realpath(explain.__file__), os.__file__):
        assert [root for root in covered if path.startswith(root + "/")], path


def test_what_is_prepared_can_be_cached(workspace: Path) -> None:
    prepared, inputs = prepare(asked(profile="coding"))
    entry: Any = (prepared.wire, prepared.warnings)
    assert marshal.loads(marshal.dumps(entry)) == entry
    assert [path for path in inputs if path.endswith("/coding.toml")]
    assert str(workspace / "remit.toml") in inputs
    assert os.path.join(os.environ["XDG_CONFIG_HOME"], "remit", "profiles") in inputs
    assert json.loads(prepared.description)["plan"]["digest"] == prepared.wire[1]


def test_a_grant_that_ends_is_good_for_one_start(workspace: Path) -> None:
    """What is left of its time is a limit in the plan, and another one at every start."""
    workspace.chmod(0o700)
    for options, cached in (([], True), (["--expires", "1h"], False)):
        file = workspace / f"{cached}.json"
        assert main.run(["grant", "new", "--read", str(workspace), *options, "-o", str(file)]) == 0
        prepared, inputs = prepare(asked(("grant", str(file))))
        assert bool(inputs) is cached
        assert (str(file) in inputs) is cached
        assert len(prepared.claims) == 1


def test_the_same_request_gives_the_same_plan(workspace: Path) -> None:
    assert prepare(asked())[0].wire == prepare(asked())[0].wire
    assert prepare(asked())[0].wire != prepare(asked(("deny", "x")))[0].wire


def test_doctor_says_whether_run_would_start(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json_of(["doctor"], 0, capsys, "doctor")["would_run"] is True
    monkeypatch.setattr(doctor, "probe", lambda: replace(FACTS, seccomp_notify=False))
    found = json_of(["doctor"], 1, capsys, "doctor")
    assert found["would_run"] is False
    assert found["refusal"]
    assert main.run(["doctor"]) == 1
    assert "would refuse" in capsys.readouterr().out


def test_doctor_leaves_nothing_behind(workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(os.listdir(tmp_path))
    main.run(["doctor"])
    assert sorted(os.listdir(tmp_path)) == before
