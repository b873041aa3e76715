"""The host's certificates with the session's: as a list, and as a keystore that Java's own tool reads."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from remit.sandbox.egress import ca
from remit.sandbox.launch.certificates import added

OWN, _ = ca.make("one", ["api.example.com"])
OTHER, _ = ca.make("two", ["other.example.com"])


def test_a_list_has_both() -> None:
    assert added(OTHER.rstrip(), OWN) == OTHER.rstrip() + b"\n" + OWN
    assert added(b"", OWN) == OWN


def test_a_file_of_another_kind_is_left_as_it_is() -> None:
    assert added(b"\x30\x82 a keystore that is not known", OWN).startswith(b"\x30\x82")
    assert OWN not in added(b"\x30\x82 a keystore that is not known", OWN)


@pytest.mark.skipif(shutil.which("keytool") is None, reason="no Java")
def test_a_keystore_has_one_more(tmp_path: Path) -> None:
    store, file = tmp_path / "store", tmp_path / "other.pem"
    file.write_bytes(OTHER)
    tool = ["keytool", "-keystore", str(store), "-storepass", "changeit"]
    made = [*tool, "-importcert", "-noprompt", "-storetype", "JKS", "-alias", "other", "-file", str(file)]
    subprocess.run(made, check=True, capture_output=True)
    store.write_bytes(added(store.read_bytes(), OWN))
    shown = subprocess.run([*tool, "-list"], check=True, capture_output=True, text=True).stdout  # checks the digest
    assert "other," in shown
    assert "remit-session," in shown
    exported = subprocess.run(
        [*tool, "-exportcert", "-rfc", "-alias", "remit-session"], check=True, capture_output=True
    )
    assert b"".join(exported.stdout.split()) == b"".join(OWN.split())
