"""A world for each test: the installed command, a home, a workspace, nothing inherited."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests import needs
from tests.kernel.net_harness import Internet, internet
from tests.kernel.run_harness import World

NOBODY = 65534


@pytest.fixture(scope="session")
def remit_command() -> str:
    """The installed command: ``REMIT_COMMAND``, or the one beside the interpreter that runs the tests."""
    command = os.environ.get("REMIT_COMMAND", str(Path(sys.executable).parent / "remit"))
    assert os.access(command, os.X_OK), f"{command} is not installed: pip install -e ."
    return command


@pytest.fixture
def world(remit_command: str) -> Iterator[World]:
    """A home and a workspace of whoever runs the tests."""
    with _world(remit_command) as made:
        yield made


@pytest.fixture(scope="module")
def shared_world(remit_command: str) -> Iterator[World]:
    """A world for all tests of a module: for those that leave nothing in it that another would see."""
    with _world(remit_command) as made:
        yield made


@pytest.fixture(scope="module")
def online(shared_world: World) -> Iterator[Internet]:
    """The module's world with an internet."""
    with internet(shared_world) as made:
        yield made


@pytest.fixture
def net(online: Internet) -> Internet:
    """It, with nothing seen yet."""
    online.forget()
    return online


@contextmanager
def _world(remit_command: str) -> Generator[World, None, None]:
    """Started as root where file systems cannot map owners, the workspace belongs to somebody else, as Remit asks there."""
    # Not below /tmp or /var/tmp: a session has its own, and what is seen there proves nothing.
    place = "/home" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_dir
    base = Path(tempfile.mkdtemp(prefix="remit-world-", dir=place if os.access(place, os.W_OK) else "/var/tmp"))
    base.chmod(0o755)
    made = World(remit_command, base)
    for directory in (made.home, made.workspace, base / "runtime"):
        directory.mkdir()
    made.home.chmod(0o700)
    (base / "runtime").chmod(0o700)
    mask = os.umask(0o022)
    if os.geteuid() == 0 and needs.missing("idmap"):
        os.chown(made.workspace, NOBODY, NOBODY)
        os.umask(0)  # what tests put into it is root's, and has to be of use to its owner
    try:
        yield made
    finally:
        os.umask(mask)
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def secret(world: World) -> Path:
    """A file of the user's own that no profile grants."""
    path = world.home / ".ssh" / "id_ed25519"
    path.parent.mkdir(mode=0o700)
    path.write_text("SECRET-OF-THE-USER\n")
    return path


@pytest.fixture
def ordinary_world(world: World) -> World:
    """The world as an ordinary user: the tests' own, or ``REMIT_TEST_USER`` where root runs them."""
    user = os.environ.get("REMIT_TEST_USER", "")
    if os.geteuid() != 0:
        return world
    if not user:
        pytest.skip("for an ordinary user: REMIT_TEST_USER names none")
    given = replace(world, user=user)
    for path in (given.home, given.workspace, given.base / "runtime"):
        given.give(path)
    return given
