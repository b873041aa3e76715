"""Who reaches for a secret that is not shown: seen where reads are not recorded, with the same answer as without that.

Two arms: what is granted is read, and nothing is said of it; and with the record off, the name leads nowhere either.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from remit import Grant
from remit.sandbox.kernel import fuse
from remit.sandbox.launch.hidden import Hidden
from tests.kernel.run_harness import World
from tests.kernel.session_harness import opened
from tests.kernel.test_run_audit import of, profile

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=2, fuse=True)]


@pytest.fixture
def house(world: World, secret: Path) -> World:
    """A home with two directories of secrets."""
    cloud = world.home / ".aws" / "credentials"
    cloud.parent.mkdir()
    cloud.write_text("CLOUD\n")
    subprocess.run(["chown", "-R", f"--reference={world.home}", str(cloud.parent), str(secret.parent)], check=True)
    return world


def seen(world: World, name: str) -> list[tuple[str, str, str, str]]:
    found = of(world, world.home / name)
    return [(e["verdict"], e["right"], e["errno"], Path(e["exe"]).name) for e in found]


def test_reaching_for_a_secret_is_seen_and_counted(house: World) -> None:
    result = house.shell("cat ~/.ssh/id_ed25519; ls ~/.aws; ls -A ~; ls -d ~/.ssh/; test -e ~/.netrc; true")
    assert result.stderr.count("No such file or directory") == 2  # ls names a link that leads nowhere
    assert {".ssh", ".aws"} <= set(result.lines)
    assert seen(house, ".ssh/id_ed25519") == [("denied", "read", "ENOENT", "cat")]
    assert seen(house, ".ssh") == [("denied", "read", "ENOENT", "ls")]
    assert seen(house, ".aws") == [("denied", "read", "ENOENT", "ls")]
    assert {e["syscall"] for e in of(house, house.home / ".ssh")} == {"lookup"}
    # What is not there is not there without a sandbox either.
    assert house.shell("cat ~/.ssh/nothing").status == 1
    assert seen(house, ".ssh/nothing") == [("moot", "read", "ENOENT", "cat")]
    status = house.base / "status"
    with status.open("w") as file:
        house.run(
            "cat",
            f"{house.home}/.ssh/id_ed25519",
            options=["--status-fd", str(file.fileno())],
            pass_fds=[file.fileno()],
        )
    ended = [json.loads(line) for line in status.read_text().splitlines()][-1]
    assert ended["denials"] == 1, ended


def test_what_is_granted_is_read_and_not_watched(house: World) -> None:
    """Not of what the profile denies, which no grant opens."""
    kept = house.home / ".thunderbird" / "logins"
    kept.parent.mkdir()
    kept.write_text("KEPT")
    subprocess.run(["chown", "-R", f"--reference={house.home}", str(kept.parent)], check=True)
    assert house.run("cat", str(kept)).stdout == ""
    assert seen(house, ".thunderbird/logins") == [("denied", "read", "ENOENT", "cat")]
    for granted in (kept, kept.parent):
        result = house.shell(f"cat {kept}; ls -A {kept.parent}", "--read", str(granted))
        assert result.lines == ["KEPTlogins"], result
        assert seen(house, ".thunderbird") + seen(house, ".thunderbird/logins") == []


def test_only_what_is_there_has_a_name(house: World) -> None:
    (house.home / ".aws" / "credentials").unlink()
    (house.home / ".aws").rmdir()
    result = house.shell("ls -A ~; cat ~/.aws/credentials")
    assert ".ssh" in result.lines
    assert ".aws" not in result.lines
    assert seen(house, ".aws") + seen(house, ".aws/credentials") == []


@pytest.mark.parametrize("level", ["off", "full"])
def test_other_levels_need_no_names(house: World, secret: Path, level: str) -> None:
    """At ``full`` the mediator sees the read itself."""
    result = house.run("sh", "-c", f"ls -A ~; cat {secret}", options=["-p", profile(house, level)])
    assert ".ssh" not in result.lines
    assert "No such file or directory" in result.stderr
    if level == "full":
        assert [(e["verdict"], e["right"]) for e in of(house, secret)] == [("denied", "read")]


WAYS = {
    "execute": "os.execv(NAME, ['x'])",
    "connect": "socket.socket(socket.AF_UNIX).connect(NAME)",
    "write": "write(NAME)",
    "make": "os.mkdir(NAME)",
    "rename into": "(write('mine'), os.rename('mine', NAME))",
    "rename out": "os.rename(NAME, 'stolen')",
    "link": "os.link(NAME, 'stolen')",
    "through a link": "(os.path.lexists('l') or os.symlink(NAME, 'l'), read('l'))",
    "through /proc": "read('/proc/self/root' + NAME)",
    "where it lies": "os.listdir('/.remit/hidden/.ssh')",
}


def test_every_way_to_it_ends(house: World, secret: Path) -> None:
    """The mediator walks the same names, and must not wait for its own answer."""
    actions = {name: action.replace("NAME", repr(str(secret))) for name, action in WAYS.items()}
    found = house.probes(actions)
    assert set(found.values()) <= {"ENOENT", "EACCES", "EROFS", "EXDEV"}, found
    assert {found[name] for name in ("execute", "connect", "through a link", "through /proc")} == {"ENOENT"}
    assert secret.read_text() == "SECRET-OF-THE-USER\n"
    assert sorted(os.listdir(secret.parent)) == [secret.name]
    touched = [(e["verdict"], e["right"], e["syscall"]) for e in of(house, secret)]
    assert {verdict for verdict, _, _ in touched} == {"denied"}
    # What the mediator said more about is not said again; what it hears nothing of is said.
    assert {right for _, right, call in touched if call == "lookup"} == {"read"}
    assert {right for _, right, call in touched if call != "lookup"} >= {"write", "remove"}
    assert ("denied", "write", "mkdir") in touched


def test_the_file_system_behind_the_names_is_empty_and_nobodys_to_change(house: World) -> None:
    place = "/.remit/hidden"
    result = house.shell(f"ls -A {place}; stat -c %F {place}; touch {place}/x; umount {place}; rm ~/.ssh")
    assert result.lines[0] == "directory"
    assert "Read-only file system" in result.stderr
    assert house.shell("cat ~/.ssh/id_ed25519").status == 1
    assert len(seen(house, ".ssh/id_ed25519")) == 1
    told = house.shell("cat ~/.ssh/id_ed25519; cat <>/.remit/why")
    assert f"Denied by the sandbox: read {house.home}/.ssh/id_ed25519 by /usr/bin/cat" in told.stdout


def test_calls_have_what_was_theirs(house: World, secret: Path) -> None:
    narrow = Grant(read=["."])
    with opened(house) as session:
        plain = session.run(["cat", str(secret)])
        clean = session.run(["true"])
        command = ["sh", "-c", f"cat {secret}; test -e ~/.aws"]
        with session.popen(command) as one, session.popen(command, grant=narrow) as other:
            one.communicate()
            other.communicate()
        again = session.run(["cat", f"{house.home}/.aws/credentials"], grant=narrow)
    assert [(d.object, d.right) for d in plain.denials] == [(str(secret), "read")]
    assert clean.denied == 0
    assert [(d.object, d.right) for d in again.denials] == [(f"{house.home}/.aws/credentials", "read")]
    found: dict[str, set[str]] = {}
    for event in of(house, secret) + of(house, house.home / ".aws") + of(house, house.home / ".aws/credentials"):
        found.setdefault(event["call"], set()).add(event["object"])
    assert sorted(len(objects) for objects in found.values()) == [1, 1, 2, 2]


def test_many_look_at_once_and_some_are_killed(house: World) -> None:
    code = """
    import subprocess
    looks = "import os\\nwhile True:\\n  os.path.exists(os.path.expanduser('~/.ssh/x'))"
    running = [subprocess.Popen(["/usr/bin/python3", "-I", "-S", "-c", looks]) for _ in range(8)]
    count = 0
    while count < 300:
        count += not os.path.exists(os.path.expanduser("~/.ssh/x"))
    for one in running:
        one.kill()
    print(count, {one.wait() for one in running})
    """
    result = house.python(code)
    assert result.stdout == "300 {-9}\n", result
    assert len(seen(house, ".ssh/x")) >= 300


@pytest.mark.parametrize("device", ["/nonexistent/fuse", "/dev/null"])
def test_without_fuse_the_names_are_simply_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(fuse, "DEVICE", device)
    (tmp_path / ".ssh").mkdir()
    hidden = Hidden([f"{tmp_path}/.ssh", f"{tmp_path}/.aws"])
    assert hidden.filesystem() == -1
    assert hidden.device == -1


def test_requests_and_answers() -> None:
    """By ``include/uapi/linux/fuse.h``: struct fuse_in_header and its answers."""

    def request(operation: int, body: bytes = b"") -> bytes:
        words: list[Any] = [(40 + len(body), 4), (operation, 4), (7, 8), (3, 8), (1000, 4), (1000, 4), (42, 4), (0, 4)]
        return b"".join(value.to_bytes(size, "little") for value, size in words) + body

    assert fuse.asked(request(fuse.LOOKUP, b".ssh\0")) == (fuse.LOOKUP, 7, 3, 42, b".ssh")
    assert fuse.asked(request(fuse.GETATTR, bytes(16))) == (fuse.GETATTR, 7, 3, 42, b"")
    sizes = {fuse.INIT: 16 + 64, fuse.GETATTR: 16 + 104, fuse.OPENDIR: 16, fuse.READDIR: 16, 2: 0, 36: 0, 42: 0}
    answers = {operation: fuse.answered(operation, 7, 1000, 1000) for operation in sizes}
    assert {operation: len(answer) for operation, answer in answers.items()} == sizes
    for answer in (*answers.values(), fuse.found(7, 2, 1000, 1000)):
        assert not answer or int.from_bytes(answer[:4], "little") == len(answer)
    assert len(fuse.found(7, 2, 1000, 1000)) == 16 + 128
    assert int.from_bytes(fuse.nothing(7)[4:8], "little", signed=True) == -2
