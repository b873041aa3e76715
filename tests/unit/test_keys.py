"""Keys: made once, private or refused, and what is trusted is only what the user or root could have put there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from remit.sandbox.authority.errors import GrantError
from remit.sandbox.authority.proof import problems
from remit.sandbox.session import keys
from tests.unit.grants import ALICE, BOB, MALLORY, NOW, chain, root

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(keys, "SYSTEM", str(tmp_path / "system"))
    return str(tmp_path)


def place(home: str) -> Path:
    return Path(home) / ".config/remit/keys"


def trust(directory: Path, name: str, text: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = directory / name
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_key_is_made_once_and_is_private(home: str) -> None:
    first = keys.own({}, home)
    assert keys.own({}, home).public == first.public == keys.own_public({}, home)
    assert place(home).stat().st_mode & 0o777 == 0o700
    assert (place(home) / "own.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in place(home).iterdir()) == ["own.key", "own.pub"]
    assert keys.read_public(str(place(home) / "own.pub")) == first.public
    assert first.public not in (place(home) / "own.key").read_text()


def test_asking_for_a_key_makes_none(home: str) -> None:
    assert keys.own_public({}, home) == ""
    assert keys.trusted({}, home).keys == {}
    assert not place(home).exists()


def test_the_directory_is_the_configurations(home: str) -> None:
    assert keys.directory({"XDG_CONFIG_HOME": "/x"}, home) == "/x/remit/keys"
    assert keys.directory({"XDG_CONFIG_HOME": "relative"}, home) == f"{home}/.config/remit/keys"
    with pytest.raises(GrantError, match="no place for keys"):
        keys.directory({}, "")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644])
def test_a_key_that_is_open_to_others_is_refused(home: str, mode: int) -> None:
    keys.own({}, home)
    path = place(home) / "own.key"
    path.chmod(mode)
    for use in (keys.own, keys.own_public, keys.trusted):
        with pytest.raises(GrantError, match="open to others") as caught:
            use({}, home)
        assert caught.value.hint.startswith(f"chmod 600 {path}")
    path.chmod(0o600)
    assert keys.own({}, home).public


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o770, 0o701])
def test_a_directory_that_is_open_to_others_is_refused(home: str, mode: int) -> None:
    place(home).mkdir(parents=True)
    place(home).chmod(mode)
    with pytest.raises(GrantError, match="directory is open to others"):
        keys.own({}, home)
    assert list(place(home).iterdir()) == []
    place(home).chmod(0o700)
    keys.own({}, home)
    place(home).chmod(mode)
    with pytest.raises(GrantError, match="directory is open to others"):
        keys.own({}, home)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_somebody_elses_is_refused(home: str) -> None:
    keys.own({}, home)
    os.chown(place(home) / "own.key", 1234, 1234)
    with pytest.raises(GrantError, match="belongs to uid 1234"):
        keys.own({}, home)


@pytest.mark.parametrize(
    "text", ["", "ed25519-secret", "ed25519-secret 00", "ed25519 " + "0" * 64, "ed25519-secret " + "G" * 64]
)
def test_a_key_that_is_none_is_refused_and_not_shown(home: str, text: str) -> None:
    place(home).mkdir(parents=True, mode=0o700)
    path = place(home) / "own.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(GrantError, match="not a key that Remit made") as caught:
        keys.own({}, home)
    assert "0000" not in str(caught.value)
    assert path.read_text() == text


def test_a_link_or_a_fifo_in_the_keys_place_is_refused(home: str, tmp_path: Path) -> None:
    keys.own({}, home)
    path = place(home) / "own.key"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GrantError, match="symbolic links"):
        keys.own({}, home)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(GrantError, match="not a regular file"):
        keys.own({}, home)


def test_processes_that_make_a_key_at_once_get_one(home: str) -> None:
    code = (
        f"import sys; sys.path.append({str(ROOT / 'src')!r})\nfrom remit.sandbox.session import keys\n"
        "print('ready', flush=True); sys.stdin.readline(); print(keys.own({}, sys.argv[1]).public)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, home], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for one in started:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    found = {one.communicate("go\n")[0].strip() for one in started}
    assert found == {keys.own_public({}, home)}
    assert sorted(path.name for path in place(home).iterdir()) == ["own.key", "own.pub"]


def test_a_key_that_another_process_made_meanwhile_stays(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make = keys._make_directory  # pyright: ignore[reportPrivateUsage]  # the moment between looking and making

    def meanwhile(path: str) -> None:
        make(path)
        trust(Path(path), "own.key", f"ed25519-secret {'02' * 32}\n")

    monkeypatch.setattr(keys, "_make_directory", meanwhile)
    assert keys.own({}, home).public == BOB.public
    assert [path.name for path in place(home).iterdir()] == ["own.key"]


def test_trusted_keys_are_the_own_one_the_users_and_the_machines(home: str, tmp_path: Path) -> None:
    mine = keys.own({}, home).public
    trust(place(home) / "trusted", "bob.pub", f"# a colleague\ned25519 {BOB.public} bob@example.com\n")
    trust(tmp_path / "system", "alice.pub", f"ed25519 {ALICE.public}\n")
    trust(place(home) / "trusted", "notes.txt", "not a key")
    found = keys.trusted({}, home)
    assert set(found.keys) == {mine, BOB.public, ALICE.public}
    assert found.keys[BOB.public].endswith("trusted/bob.pub")
    assert problems(chain(root(), keys=(BOB,)), found, at=NOW) == ()
    assert problems(chain(root(), keys=(MALLORY,)), found, at=NOW) != ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ed25519",
        "ed25519 00",
        f"rsa {'0' * 64}",
        "ed25519 " + "G" * 64,
        f"ed25519 {'0' * 64}\ned25519 {'1' * 64}",
        "\0",
    ],
)
def test_a_trusted_file_that_is_no_key_is_an_error(home: str, text: str) -> None:
    path = trust(place(home) / "trusted", "bob.pub", text)
    with pytest.raises(GrantError, match="not a public key") as caught:
        keys.trusted({}, home)
    assert caught.value.where == str(path)


def test_a_trusted_key_that_others_could_have_put_there_is_refused(home: str) -> None:
    path = trust(place(home) / "trusted", "bob.pub", f"ed25519 {BOB.public}\n")
    assert keys.trusted({}, home).trusts(BOB.public)
    path.chmod(0o622)
    with pytest.raises(GrantError, match="can be written"):
        keys.trusted({}, home)
    path.chmod(0o600)
    path.parent.chmod(0o777)
    with pytest.raises(GrantError, match="directory can be written by everybody"):
        keys.trusted({}, home)


def test_what_a_verdict_depends_on(home: str, tmp_path: Path) -> None:
    path = trust(place(home) / "trusted", "bob.pub", f"ed25519 {BOB.public}\n")
    found = keys.inputs({}, home)
    assert {str(place(home) / "own.key"), str(path), str(path.parent), str(tmp_path / "system")} <= set(found)


def test_the_signature_is_rfc_8032s() -> None:
    """Its first test vector."""
    secret = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
    own = keys.Own(bytes.fromhex(secret))
    assert own.public == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    signature = own.sign(b"")
    assert signature.hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155")
    assert keys.Trusted({}).verified(own.public, b"", signature)
    assert not keys.Trusted({}).verified(own.public, b"x", signature)
    assert not keys.Trusted({}).verified(own.public, b"", signature[:-1])


def test_the_module_imports_no_cryptography_by_itself() -> None:
    code = f"import sys; sys.path.append({str(ROOT / 'src')!r}); import remit.sandbox.session.keys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert "cryptography" not in result.stdout.split()
