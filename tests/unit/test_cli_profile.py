"""``remit profile``: what it prints, its statuses, and its JSON against the shipped schemas."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from remit.cli import main, profile

SCHEMAS = Path(profile.__file__).parent / "schemas"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "remit" / "profiles"


def document(argv: list[str], name: str, status: int, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main.run([*argv, "--json"]) == status
    captured = capsys.readouterr()
    assert captured.err == ""
    found: dict[str, Any] = json.loads(captured.out)
    assert found["schema"] == f"remit.{name}/1"
    assert next(iter(found)) == "schema"
    jsonschema.validate(found, json.loads((SCHEMAS / f"{name}.schema.json").read_text()))
    return found


def test_every_schema_is_itself_valid_and_closed() -> None:
    files = sorted(SCHEMAS.glob("*.json"))
    assert len(files) >= 7
    for file in files:
        schema = json.loads(file.read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["additionalProperties"] is False
        assert "schema" in schema["required"]


def test_list_names_the_ten_shipped_profiles(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(["profile", "list"], "profile-list", 0, capsys)
    rows = found["profiles"]
    assert {
        "base",
        "readonly",
        "coding",
        "python",
        "node",
        "build",
        "mcp-server",
        "research",
        "offline",
        "service",
    } <= {row["name"] for row in rows}
    assert main.run(["profile", "list"]) == 0
    assert "offline" in capsys.readouterr().out


def test_show_has_the_place_of_each_entry(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(["profile", "show", "coding"], "profile", 0, capsys)
    entries = found["entries"]
    write = [entry for entry in entries if entry["key"] == "filesystem.write"]
    assert write
    assert write[0]["source"]["file"].endswith("coding.toml")
    assert write[0]["source"]["line"] > 0
    main.run(["profile", "show", "coding"])
    assert "coding.toml:" in capsys.readouterr().out


def test_new_is_valid_private_and_never_overwrites(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(["profile", "new", "mine"], "profile-new", 0, capsys)
    path = config / "mine.toml"
    assert found["path"] == str(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert main.run(["profile", "check", "mine"]) == 0
    before = path.read_bytes()
    assert main.run(["profile", "new", "mine"]) == 2
    assert "not overwritten" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_new_never_follows_a_link(config: Path, tmp_path: Path) -> None:
    config.mkdir(parents=True)
    victim = tmp_path / "victim"
    (config / "mine.toml").symlink_to(victim)
    assert main.run(["profile", "new", "mine"]) == 2
    assert not victim.exists()


def test_the_starters_examples_are_valid_too(config: Path) -> None:
    main.run(["profile", "new", "mine"])
    path = config / "mine.toml"
    text = path.read_text()
    active = text[text.index("[filesystem]") :]
    path.write_text(text[: text.index("[filesystem]")] + active.replace("\n# ", "\n"))
    assert main.run(["profile", "check", "mine"]) == 0


def test_check_prints_every_problem(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.mkdir(parents=True, mode=0o700)
    path = config / "bad.toml"
    path.write_text('format = 1\nname = "bad"\n[filesystem]\nraed = ["/x"]\nwrite = ["relative"]\n')
    path.chmod(0o600)
    found = document(["profile", "check", "bad", "coding"], "profile-check", 2, capsys)
    problems = found["problems"]
    assert [problem["line"] for problem in problems] == [4, 5]
    assert main.run(["profile", "check", "bad"]) == 2
    printed = capsys.readouterr().err
    assert f"{path}:4: " in printed
    assert f"{path}:5: " in printed
    assert "read" in printed


def test_check_refuses_a_profile_that_others_can_write(config: Path) -> None:
    main.run(["profile", "new", "mine"])
    assert main.run(["profile", "check", "mine"]) == 0
    (config / "mine.toml").chmod(0o666)
    assert main.run(["profile", "check", "mine"]) == 2


def test_diff_is_1_when_they_differ_and_0_when_not(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(["profile", "diff", "coding", "offline"], "profile-diff", 1, capsys)
    assert found["equal"] is False
    assert document(["profile", "diff", "coding", "coding"], "profile-diff", 0, capsys)["equal"] is True
    main.run(["profile", "diff", "coding", "offline"])
    assert "- network.connect = {package_index}" in capsys.readouterr().out


def test_schema_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["profile", "schema"]) == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(capsys.readouterr().out))


def test_what_is_printed_cannot_drive_the_terminal(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.mkdir(parents=True, mode=0o700)
    path = config / "evil.toml"
    path.write_text('format = 1\nname = "evil"\ndescription = "a\\u001b[2Jb"\nextends = ["base"]\n')
    path.chmod(0o600)
    main.run(["profile", "list"])
    main.run(["profile", "show", "evil"])
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err


def test_home_is_the_users_even_without_home_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    assert profile.home().startswith("/")
    monkeypatch.setenv("HOME", "relative")
    assert os.path.isabs(profile.home())
