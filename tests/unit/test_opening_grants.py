"""Opening a session with grant files: a use is taken before its first call, and without one there is no session."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from remit.cli import main
from remit.sandbox.authority.errors import GrantError
from remit.sandbox.kernel.facts import HostFacts
from remit.sandbox.session import assemble as module
from remit.sandbox.session.ledger import Ledger
from remit.sandbox.session.link import Link
from remit.sandbox.session.opening import Wanted, open_session

FACTS = HostFacts(uid=os.geteuid(), gid=os.getegid(), idmapped_mounts=True)


class FakeLink:
    """A template that starts nothing, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.opened: list[dict[str, object]] = []
        self.stopped: list[str] = []
        self.inside: list[socket.socket] = []

    def open(
        self, wire: Any, about: dict[str, object], state: str, secrets: int = -1
    ) -> tuple[str, dict[str, str], socket.socket]:
        ours, theirs = socket.socketpair()
        self.inside.append(theirs)
        self.opened.append(about)
        return f"s{len(self.opened)}", {}, ours

    def stop(self, session: str) -> None:
        self.stopped.append(session)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o700)
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(module, "probe", lambda: FACTS)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return tmp_path


def open_with(link: FakeLink, file: Path) -> str:
    core, _, door, _ = open_session(
        cast(Link, link), Wanted(profile="offline", grants=(("grant", str(file)),)), os.environ
    )
    door.close()
    return core.shared.session


def test_a_session_takes_a_use_and_without_one_there_is_none(home: Path) -> None:
    file, link = home / "g", FakeLink()
    assert main.run(["grant", "new", "--read", ".", "--uses", "2", "-o", str(file)]) == 0
    assert [open_with(link, file) for _ in range(2)] == ["s1", "s2"]
    assert link.stopped == []
    with pytest.raises(GrantError, match="spent"):
        open_with(link, file)
    assert link.stopped == ["s3"]
    (id,) = cast("list[str]", link.opened[0]["grants"])
    assert Ledger(str(home / ".local/state/remit")).used(id) == 2
    # Nobody holds the other end any more: the session's first process hears that it is over.
    assert link.inside[-1].recv(1) == b""
    for one in link.inside:
        one.close()


def test_own_directories_are_there_before_a_session_is(home: Path) -> None:
    file, link = home / "g", FakeLink()
    assert main.run(["grant", "new", "--read", ".", "-o", str(file)]) == 0
    open_with(link, file)
    for directory in (".config/remit", ".local/state/remit", ".cache/remit"):
        assert (home / directory).stat().st_mode & 0o777 == 0o700
    link.inside[0].close()
