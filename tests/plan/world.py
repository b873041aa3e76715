"""A made-up host for the compiler's tests: a table of objects, and authorities over them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from remit.sandbox.authority.model import Authority, PathPattern, PathRule, Right, Source
from remit.sandbox.compile.compiler import Compiled, compile_session
from remit.sandbox.compile.plan import Op
from remit.sandbox.kernel.facts import HostFacts
from remit.sandbox.resolve.binding import Kind, Named

CLI = Source("--option")
PROFILE = Source("test.toml", 3, "filesystem")
LETTERS = {"r": Right.READ, "w": Right.WRITE, "x": Right.EXEC}
FLOOR = (
    ("/usr", "rx"),
    ("/bin", "rx"),
    ("/lib", "rx"),
    ("/lib64", "rx"),
    ("/etc/ld.so.cache", "r"),
    ("/etc/passwd", "r"),
    ("/etc/resolv.conf", "r"),
    ("/etc/ssl/certs", "r"),
)


def rule(path: str, letters: str, source: Source = PROFILE, optional: bool = False) -> PathRule:
    return PathRule(path, frozenset(LETTERS[letter] for letter in letters), optional, source)


def literal(path: str) -> PathPattern:
    anchor, _, name = path.rpartition("/")
    return PathPattern(anchor or "/", (name,), source=PROFILE)


def anywhere(anchor: str, *tail: str) -> PathPattern:
    return PathPattern(anchor, tail, any_depth=True, source=PROFILE)


@dataclass
class World:
    """Objects by canonical path, and links by the path that crosses them."""

    files: set[str] = field(default_factory=lambda: {"/etc/ld.so.cache", "/etc/passwd"})
    directories: set[str] = field(
        default_factory=lambda: {"/usr", "/etc", "/etc/ssl/certs", "/home/u", "/home/u/p", "/tmp", "/var", "/home", "/"}
    )
    links: dict[str, tuple[str, str]] = field(
        default_factory=lambda: {
            "/bin": ("usr/bin", "/usr/bin"),
            "/lib": ("usr/lib", "/usr/lib"),
            "/lib64": ("usr/lib64", "/usr/lib64"),
        }
    )
    sockets: set[str] = field(default_factory=set[str])
    owner: int = 1000
    parent_writable: bool = False

    def named(self, path: str) -> Named:
        for link, (target, canonical) in self.links.items():
            if path == link or path.startswith(link + "/"):
                beyond = self.named(canonical + path.removeprefix(link))
                return Named(path, beyond.canonical, beyond.kind, ((link, target), *beyond.links), uid=self.owner)
        kind = Kind.ABSENT
        if path in self.files:
            kind = Kind.FILE
        elif path in self.directories or path.startswith("/usr/"):
            kind = Kind.DIRECTORY
        elif path in self.sockets:
            kind = Kind.SOCKET
        elif path.startswith("/dev/"):
            kind = Kind.DEVICE
        return Named(path, path, kind, uid=self.owner, parent_writable=self.parent_writable)

    def names(self, authority: Authority, also: Iterable[str]) -> dict[str, Named]:
        wanted = [r.path for r in authority.paths]
        for pattern in (*authority.deny, *authority.protect):
            wanted += [pattern.anchor, *([] if pattern.any_depth else [str(pattern)])]
        wanted += [name if name.startswith("/") else f"/dev/{name}" for name in authority.devices]
        return {path: self.named(path) for path in (*wanted, *authority.unix, *also)}


def floor() -> Authority:
    return Authority(paths=tuple(rule(path, letters, Source("base.toml", 9), True) for path, letters in FLOOR))


def authority(*paths: PathRule, **rest: Any) -> Authority:
    return Authority(paths=(*floor().paths, *paths), **rest)


def coding(**rest: Any) -> Authority:
    return authority(rule("/home/u/p", "rwx"), **rest)


def compiled(
    granted: Authority,
    *,
    world: World | None = None,
    facts: HostFacts | None = None,
    degrade: Iterable[str] = (),
    asked: Iterable[str] = (),
    explicit: Authority | None = None,
    workspace: str = "/home/u/p",
    home: str = "/home/u",
    chdir: str = "",
    secret: tuple[str, ...] = (),
    own_code: tuple[str, ...] = (),
    matches: dict[str, tuple[Named, ...]] | None = None,
) -> Compiled:
    host = world or World()
    also = (workspace, home, *([chdir] if chdir else []), *secret, *own_code)
    return compile_session(
        granted,
        floor(),
        host.names(granted, also),
        facts or HostFacts(),
        workspace=workspace,
        home=home,
        degrade=frozenset(degrade),
        degrade_asked=frozenset(asked),
        explicit=explicit or Authority(),
        deny_paths_of_remit=secret,
        own_code=own_code,
        matches=matches,
    )


OpT = TypeVar("OpT", bound=Op)


def only(result: Compiled, kind: type[OpT]) -> list[OpT]:
    return [op for op in result.plan.operations if isinstance(op, kind)]
