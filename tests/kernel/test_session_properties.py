"""Random grants below random sessions, with real processes: what succeeds under the grant succeeds under the session, and
is what an oracle says that knows nothing but sets.

The universe is small, so that everything meets everything: nested directories, files, one program, and one thing of each
other axis. A session is a random authority over it, in which things are denied and protected; for some grants, a narrower
session is a random part of that; a grant is a random part of the one or the other; a case is one action under both. The
oracle is membership in sets of (axis, thing, right); it shares no code with Remit, and knows no paths but "is below".

``REMIT_PROPERTY_CASES``: how many cases (2,000).
"""

from __future__ import annotations

import json
import os
import random
import socket
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from remit import Grant, Session, Unenforceable
from tests.kernel.run_harness import World
from tests.kernel.session_harness import opened, python

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6), pytest.mark.slow]

CASES = int(os.environ.get("REMIT_PROPERTY_CASES", "2000"))
SEED = int(os.environ.get("REMIT_PROPERTY_SEED", "20260728"))
ACTIONS_OF_A_CALL = 40
GRANTS_OF_A_SESSION = 5

DIRECTORIES = ("a", "a/in", "a/in/deep", "b", "b/in", "c", "d", "d/in")
FILES = tuple(f"{directory}/{name}" for directory in DIRECTORIES for name in ("f", "g"))
PROGRAMS = tuple(f"{directory}/tool" for directory in DIRECTORIES)
OBJECTS = (*DIRECTORIES, *FILES, *PROGRAMS)
VARIABLES = ("RED", "GREEN", "BLUE", "GREY")
GROUPS = {"personality": "personality", "numa": "get_mempolicy", "keyring": "keyctl"}
LIMITS = {"files": (60, 200), "file-size": (1 << 20, 4 << 20)}
PORTS = (3001, 3002, 3003)
SOCKETS = ("one", "two", "three")
LEAST = 0.30


def below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")


@dataclass(frozen=True)
class Power:
    """An authority as sets, for the oracle and for writing it down as a grant."""

    read: frozenset[str]
    write: frozenset[str]
    exec: frozenset[str]
    env: frozenset[str]
    groups: frozenset[str]
    limits: tuple[tuple[str, int], ...]
    listen: frozenset[int]
    unix: frozenset[str]
    deny: frozenset[str] = frozenset()
    protect: frozenset[str] = frozenset()
    inherited: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
    """What the authorities that it is a part of deny and protect. Nobody says so again."""

    def keywords(self, sockets: Path, workspace: Path | None = None) -> dict[str, Any]:
        """As ``Grant`` and ``Session`` take it; absolute paths below ``workspace``. ``sockets``: where those outside are."""

        def paths(names: frozenset[str]) -> list[str]:
            return sorted(str(workspace / name) if workspace else name for name in names)

        return {
            "read": paths(self.read),
            "write": paths(self.write),
            "exec": paths(self.exec),
            "env": sorted(self.env),
            "allow_syscalls": sorted(self.groups),
            "limits": dict(self.limits),
            "listen": sorted(self.listen),
            "unix": sorted(str(sockets / name) for name in self.unix),
            "deny": paths(self.deny),
            "protect": paths(self.protect),
        }

    def denies(self, path: str) -> bool:
        return any(below(path, name) for name in self.deny | self.inherited[0])

    def protects(self, path: str) -> bool:
        return any(below(path, name) for name in self.protect | self.inherited[1])

    def has(self, path: str, right: str) -> bool:
        granted: set[str] = set()
        for names, rights in ((self.read, {"read"}), (self.write, {"read", "write"}), (self.exec, {"read", "exec"})):
            if any(below(path, name) for name in names):
                granted |= rights
        if self.denies(path):
            return False
        return right in granted and not (right == "write" and self.protects(path))

    def part(self, dice: random.Random) -> Power:
        """A random authority that is not more than this one."""

        def of(names: tuple[str, ...], right: str) -> frozenset[str]:
            return frozenset(name for name in names if self.has(name, right) and dice.random() < 0.35)

        def some(values: Any) -> frozenset[Any]:
            return frozenset(value for value in sorted(values) if dice.random() < 0.6)

        return Power(
            read=of(OBJECTS, "read"),
            write=of(OBJECTS, "write"),
            exec=of(OBJECTS, "exec"),
            env=some(self.env),
            groups=some(self.groups),
            limits=tuple(
                (name, dice.choice([value for value in LIMITS[name] if value <= most])) for name, most in self.limits
            ),
            listen=some(self.listen),
            unix=some(self.unix),
            deny=frozenset(name for name in OBJECTS if dice.random() < 0.04),
            protect=frozenset(name for name in OBJECTS if dice.random() < 0.04),
            inherited=(self.deny | self.inherited[0], self.protect | self.inherited[1]),
        )


def session_power(dice: random.Random) -> Power:
    def some(values: Any, chance: float) -> frozenset[Any]:
        return frozenset(value for value in sorted(values) if dice.random() < chance)

    return Power(
        read=some(OBJECTS, 0.35),
        write=some(OBJECTS, 0.45),
        exec=some(OBJECTS, 0.3),
        env=some(VARIABLES, 0.75),
        groups=some(GROUPS, 0.75),
        limits=tuple((name, dice.choice(values)) for name, values in LIMITS.items()),
        listen=some(PORTS, 0.75),
        unix=some(SOCKETS, 0.75),
        deny=some(OBJECTS, 0.04),
        protect=some(OBJECTS, 0.04),
    )


@dataclass(frozen=True)
class Action:
    """One thing to try: its axis, the code of it, and what it needs."""

    axis: str
    code: str
    needs: tuple[tuple[str, str], ...] = ()
    variable: str = ""
    group: str = ""
    limit: tuple[str, int] = ("", 0)
    port: int = 0
    socket: str = ""

    def allowed(self, power: Power, whole: bool) -> bool:
        """The oracle. ``whole``: of a session, which shows the directories on the way to what it grants."""
        if whole and self.axis == "list":
            ((directory, _),) = self.needs
            granted = {name for name in power.read | power.write | power.exec if not power.denies(name)}
            # A rule that lists a directory would list what is denied below it, where that is there.
            covers = {name for name in power.deny if any(below(name, other) for other in granted)}
            shown = not power.denies(directory) and not any(below(name, directory) for name in covers)
            if shown and any(below(name, directory) for name in granted):
                return True
        if self.variable:
            return self.variable in power.env
        if self.group:
            return self.group in power.groups
        if self.port:
            return self.port in power.listen
        if self.socket:
            return self.socket in power.unix
        if self.limit[0]:
            return self.limit[1] <= dict(power.limits)[self.limit[0]]
        return all(power.has(path, right) for path, right in self.needs)


SYSCALLS = {
    "personality": "syscall(135, 0x0400000)",
    "numa": "syscall(239, None, None, 0, None, 0)",
    "keyring": "syscall(250, 0, -3, 0)",
}


AXES = (
    "read",
    "list",
    "write",
    "create",
    "remove",
    "rename",
    "exec",
    "metadata",
    "environment",
    "syscalls",
    "limits",
    "network",
    "ipc",
)


def wished(dice: random.Random, power: Power) -> Action:
    """A random action of a random axis: one half of them, where there are such, within ``power``."""
    axis, wish = dice.choice(AXES), dice.random() < 0.65
    found = action(dice, axis)
    for _ in range(40):
        if found.allowed(power, False) == wish:
            break
        found = action(dice, axis)
    return found


def action(dice: random.Random, axis: str) -> Action:
    """A random one of an axis. Every action leaves the universe as it found it, whoever performs it."""
    file, directory = dice.choice((*FILES, *PROGRAMS)), dice.choice(DIRECTORIES)
    if axis == "read":
        return Action(axis, f"read('{file}')", ((file, "read"),))
    if axis == "list":
        return Action(axis, f"os.listdir('{directory}')", ((directory, "read"),))
    if axis == "write":
        how = dice.choice(("0", "os.O_APPEND", "os.O_CREAT", "os.O_TRUNC"))
        if file in PROGRAMS:
            how = "0"
        return Action(axis, f"os.close(os.open('{file}', os.O_WRONLY | {how}))", ((file, "write"),))
    if axis == "create":
        name = f"{directory}/new{dice.randrange(1000)}"
        code = dice.choice(
            (
                "made('{0}')",
                "(os.mkdir('{0}'), os.rmdir('{0}'))",
                "(os.symlink('f', '{0}'), os.unlink('{0}'))",
                "(os.mkfifo('{0}'), os.unlink('{0}'))",
            )
        )
        return Action(axis, code.format(name), ((directory, "write"),))
    if axis == "remove":
        return Action(axis, f"os.unlink('{directory}/spare')", ((f"{directory}/spare", "write"),))
    if axis == "rename":
        other = dice.choice((directory, directory, directory, dice.choice(DIRECTORIES)))
        name = f"moved{dice.randrange(1000)}"
        code = f"(os.rename('{directory}/still', '{other}/{name}'), os.rename('{other}/{name}', '{directory}/still'))"
        return Action(axis, code, ((f"{directory}/still", "write"), (f"{other}/{name}", "write")))
    if axis == "exec":
        program = dice.choice(PROGRAMS)
        return Action(axis, f"ran('{program}')", ((program, "exec"),))
    if axis == "metadata":
        code = dice.choice(
            (
                "os.utime('{0}', (1, 1))",
                "os.chmod('{0}', 0o777)",
                "os.chown('{0}', -1, -1)",
                "os.setxattr('{0}', 'user.x', b'1')",
            )
        )
        return Action(axis, code.format(file), ((file, "write"),))
    if axis == "environment":
        name = dice.choice(VARIABLES)
        return Action(axis, f"named('{name}')", variable=name)
    if axis == "syscalls":
        group = dice.choice(tuple(GROUPS))
        return Action(axis, SYSCALLS[group], group=group)
    if axis == "network":
        port = dice.choice(PORTS)
        return Action(axis, dice.choice((f"served({port})", f"reached({port})")), port=port)
    if axis == "ipc":
        name = dice.choice(SOCKETS)
        return Action(axis, f"spoken('{name}')", socket=name)
    what, values = dice.choice(tuple(LIMITS.items()))
    value = dice.choice(values)
    code = f"descriptors({value})" if what == "files" else f"sized({value})"
    return Action(axis, code, limit=(what, value))


HELPERS = """
import posix
def served(port):
    with socket.socket() as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(('127.0.0.1', port))
        listener.listen()
        client.connect(listener.getsockname())
def reached(port):
    with socket.socket() as client:
        try:
            client.connect(('127.0.0.1', port))
        except ConnectionRefusedError:
            pass  # nobody is there; but it may be tried
def spoken(name):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f'SOCKETS/{name}')
def made(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    os.unlink(path)
def ran(path):
    pid = posix.posix_spawn(path, [path], {})
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
def named(name):
    if name not in os.environ:
        raise OSError(errno.ENOENT, name)
def descriptors(count):
    held = []
    try:
        while len(held) < count - 4:
            held.append(os.dup(1))
    finally:
        for fd in held:
            os.close(fd)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def sized(count):
    fd = os.memfd_create('x')
    try:
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)
    path = '/tmp/size'
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(fd, b'x', count - 1)
    finally:
        os.close(fd)
        os.unlink(path)
"""


def universe(world: World) -> None:
    owner = world.workspace.stat()
    for directory in DIRECTORIES:
        path = world.workspace / directory
        path.mkdir()
        path.chmod(0o777)
        os.chown(path, owner.st_uid, owner.st_gid)
    for name in (*FILES, *(f"{directory}/still" for directory in DIRECTORIES), *PROGRAMS):
        path = world.workspace / name
        path.write_text("#!/bin/sh\nexit 0\n")
        path.chmod(0o777)
        os.chown(path, owner.st_uid, owner.st_gid)


@contextmanager
def servers(world: World) -> Generator[list[socket.socket]]:
    """Sockets outside, which everybody may connect to who sees them."""
    (world.base / "sockets").mkdir(mode=0o755)
    with ExitStack() as stack:
        made: list[socket.socket] = []
        for name in SOCKETS:
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(str(world.base / "sockets" / name))
            (world.base / "sockets" / name).chmod(0o777)
            server.listen(1000)
            server.setblocking(False)
            made.append(server)
        yield made


def renew(world: World, listening: list[socket.socket]) -> None:
    """What actions take away, put back from outside."""
    for server in listening:
        with suppress(BlockingIOError):
            while True:
                server.accept()[0].close()
    owner = world.workspace.stat()
    for directory in DIRECTORIES:
        path = world.workspace / directory / "spare"
        if not path.exists():
            path.touch()
            os.chown(path, owner.st_uid, owner.st_gid)
    for name in FILES:
        (world.workspace / name).write_text("content")


def tried(session: Session, actions: list[Action], grant: Grant | None, sockets: Path) -> list[str]:
    body = [HELPERS.replace("SOCKETS", str(sockets)), "import json", "results = []"]
    for one in actions:
        body.append(f"results.append(attempt(lambda: {one.code}))")
        # One that was removed is missed by nobody who tries it again.
        if one.axis == "remove":
            path = one.code.partition("'")[2].rpartition("'")[0]
            body.append(f"results[-1] == 'ok' and os.close(os.open('{path}', os.O_WRONLY | os.O_CREAT))")
    body.append("print(json.dumps(results))")
    result = session.run(python("\n".join(body)), grant=grant)
    assert result.returncode == 0, result
    assert result.stdout is not None
    found: list[str] = json.loads(result.stdout)
    return found


def cases(
    world: World, dice: random.Random, refused: list[str]
) -> Iterator[tuple[Action, Power, Power, bool, str, str]]:
    """(action, what is around the grant, the grant, whether the former is the whole session, how it ended under each).

    ``refused``: grants that cannot be held: what they deny lies below what they may execute, which nobody can open for them.
    """
    sockets, environ = world.base / "sockets", dict.fromkeys(VARIABLES, "set")
    with servers(world) as listening:
        while True:
            ceiling = session_power(dice)
            # The universe is there to be seen, and nothing of it granted but what the dice say.
            keywords = ceiling.keywords(sockets, world.workspace)
            with opened(world, profile(world), environ=environ, **keywords) as session:
                for _ in range(GRANTS_OF_A_SESSION):
                    narrowed = dice.random() < 0.5
                    around = ceiling.part(dice) if narrowed else ceiling
                    power = around.part(dice)
                    actions = [wished(dice, power) for _ in range(ACTIONS_OF_A_CALL)]
                    try:
                        outer = session.narrow(Grant(**around.keywords(sockets))) if narrowed else session
                        renew(world, listening)
                        wide = tried(outer, actions, None, sockets)
                        renew(world, listening)
                        narrow = tried(outer, actions, Grant(**power.keywords(sockets)), sockets)
                    except Unenforceable as error:
                        refused.append(f"{error}: {power}")
                        continue
                    for one, outer_end, end in zip(actions, wide, narrow, strict=True):
                        yield one, around, power, not narrowed, outer_end, end


def profile(world: World) -> str:
    path = world.home / "bare.toml"
    path.write_text(
        'format = 1\nname = "bare"\nextends = ["base"]\n[network]\nloopback = false\n'
        '[limits]\nmemory = "4GiB"\n[enforcement]\ndegrade = ["limits"]\n'
    )
    path.chmod(0o644)
    return str(path)


@pytest.mark.needs(x86_64=True)
def test_what_succeeds_under_a_grant_is_what_the_oracle_says(world: World) -> None:
    universe(world)
    dice = random.Random(SEED)
    counts: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    done = 0
    refused: list[str] = []
    for one, around, power, session, wide, narrow in cases(world, dice, refused):
        for who, authority, outcome in (("session" if session else "narrowed", around, wide), ("grant", power, narrow)):
            expected = one.allowed(authority, session and authority is around)
            # What is granted by itself is a mount by itself: a rename from one to another is EXDEV, as outside.
            if (outcome == "ok") != expected and not (expected and outcome == "EXDEV" and one.axis == "rename"):
                wrong.append(f"{who}: {one.code}: {outcome}, oracle {expected}: {authority}")
        if narrow == "ok" and wide != "ok":
            wrong.append(f"more under the grant: {one.code}: {wide} -> {narrow}")
        if narrow != "EXDEV":
            counts[one.axis, "allowed" if narrow == "ok" else "denied"] += 1
        done += 1
        if done >= CASES or len(wrong) > 20:
            break
    axes = sorted({axis for axis, _ in counts})
    for axis in axes:
        print(f"{axis:12} {counts[axis, 'allowed']:5} allowed {counts[axis, 'denied']:5} denied")
    print(f"{len(refused)} grants refused: what they deny is below what they may execute")
    assert not wrong, "\n".join(wrong)
    assert all("may be executed" in text for text in refused), refused
    assert len(refused) * ACTIONS_OF_A_CALL < done
    assert done >= CASES
    for axis in axes:
        every = counts[axis, "allowed"] + counts[axis, "denied"]
        assert counts[axis, "allowed"] >= LEAST * every, (axis, counts)
        assert counts[axis, "denied"] >= LEAST * every, (axis, counts)
