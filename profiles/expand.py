"""From a profile to the authority it means in one workspace. Pure: nothing is opened, nothing is looked up."""

from __future__ import annotations

import re
from dataclasses import dataclass

from remit.profiles.errors import Problem, ProfileError
from remit.profiles.model import Entry, Profile
from remit.profiles.schema import BY_DOTTED, keys_of
from remit.sandbox.authority.model import Authority, AutoExec, Endpoint, PathPattern, PathRule, Right
from remit.sandbox.authority.parse import parse_endpoint, parse_pattern
from remit.sandbox.authority.web import Credential, HttpRule

_READ = frozenset({Right.READ})
_RIGHTS = {
    "read": _READ,
    "write": frozenset({Right.READ, Right.WRITE}),
    "exec": frozenset({Right.READ, Right.EXEC}),
    "allow": frozenset({Right.READ, Right.EXEC}),  # exec.allow
}
_LIMITS = frozenset(key.dotted for key in keys_of("limits"))
_IF_PRESENT = "_if_present"
_IN_VALUE = re.compile(r"\{(workspace|home|runtime)\}")


@dataclass(frozen=True, slots=True)
class Context:
    """What the placeholders mean now: absolute, lexically normal paths, ``home`` and ``runtime`` "" for none."""

    workspace: str
    home: str = ""
    runtime: str = ""
    toolchains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Expanded:
    """What a profile comes to. ``authority`` does not hold the floor.

    A variable that both name has the value of ``authority`` in both, so that their union has one. ``package_index``
    are the ``{package_index}`` entries of ``network.connect``, which stand for endpoints that only the package
    managers' configuration knows. ``audit`` and ``audit_on_full`` are ``audit.level`` and ``audit.on_full``, ``on_expiry`` is
    ``enforcement.on_expiry``.
    ``http`` and ``credentials`` say what connections that ``authority`` allows may carry. ``notes`` are for people.
    """

    floor: Authority
    authority: Authority
    degrade: tuple[str, ...]
    audit: str
    audit_on_full: str
    on_expiry: str
    package_index: tuple[Entry, ...]
    http: tuple[HttpRule, ...]
    credentials: tuple[Credential, ...]
    notes: tuple[str, ...]


def expand(profile: Profile, context: Context) -> Expanded:
    """The authority that ``profile`` means in ``context``.

    Raises ``ProfileError`` where a deny or protect comes to the root directory, ``ValueError`` for a context that
    is not absolute paths.
    """
    filler = _Filler(context)
    fixed = _variables(profile, "floor", context)
    variables = _variables(profile, "environment", context)
    floor = Authority(
        paths=filler.paths(profile, "floor"),
        environment=tuple(sorted((name, variables.get(name, value)) for name, value in fixed.items())),
        devices=_words(profile, "floor.devices"),
    )
    connect = profile.items("network.connect")
    authority = Authority(
        paths=filler.paths(profile, "filesystem") + filler.paths(profile, "exec"),
        deny=filler.patterns(profile, "filesystem.deny"),
        protect=filler.patterns(profile, "filesystem.protect"),
        auto_exec=AutoExec(_choice(profile, "filesystem.auto_exec")),
        connect=tuple(_endpoint(entry) for entry in connect if not _is_index(entry)),
        listen=tuple(int(str(entry.value)) for entry in profile.items("network.listen")),
        publish=tuple(str(entry.value) for entry in profile.items("network.publish")),
        loopback=_loopback(profile),
        unix=filler.names(profile, "ipc.unix"),
        syscalls=_words(profile, "syscalls.allow"),
        devices=_words(profile, "devices.allow"),
        environment=tuple(sorted(variables.items())),
        limits=_limits(profile),
    )
    http = tuple(entry.value for entry in profile.items("network.http") if isinstance(entry.value, HttpRule))
    credentials = tuple(entry.value for entry in profile.items("credentials") if isinstance(entry.value, Credential))
    return Expanded(
        floor=floor,
        authority=authority,
        degrade=_words(profile, "enforcement.degrade"),
        audit=_choice(profile, "audit.level"),
        audit_on_full=_choice(profile, "audit.on_full"),
        on_expiry=_choice(profile, "enforcement.on_expiry"),
        package_index=tuple(entry for entry in connect if _is_index(entry)),
        http=http,
        credentials=credentials,
        notes=(*filler.notes, *_unreached(http, credentials, authority.connect)),
    )


class _Filler:
    """Replaces the placeholder that a canonical path begins with; says in ``notes`` what came to nothing."""

    def __init__(self, context: Context) -> None:
        self.values = {"workspace": context.workspace, "home": context.home, "runtime": context.runtime}
        self.toolchains = context.toolchains
        self.notes: list[str] = []
        for path in (*self.values.values(), *self.toolchains):
            if path and not path.startswith("/"):
                raise ValueError(f"not an absolute path: {path!r}")
        if not context.workspace:
            raise ValueError("a context needs a workspace")

    def path(self, text: str, entry: Entry) -> str | None:
        """``text``, absolute; ``None`` and a note where its placeholder has no value."""
        if not text.startswith("{"):
            return text
        name, _, rest = text[1:].partition("}")
        value = self.values[name]
        if not value:
            self.notes.append(f"{entry.source}: {text} comes to nothing: there is no {{{name}}} here")
            return None
        return (value.rstrip("/") + rest) or "/"

    def paths(self, profile: Profile, table: str) -> tuple[PathRule, ...]:
        rules: list[PathRule] = []
        for entry in profile.entries:
            owner, _, key = entry.key.partition(".")
            rights = _RIGHTS.get(key.removesuffix(_IF_PRESENT))
            if owner != table or rights is None:
                continue
            if entry.value == "{toolchains}":
                # Both lists come to the same: a toolchain that can be read and not run is of no use.
                rules += (PathRule(path, _RIGHTS["exec"], True, entry.source) for path in self.toolchains)
                continue
            path = self.path(str(entry.value), entry)
            if path is not None:
                rules.append(PathRule(path, rights, key.endswith(_IF_PRESENT), entry.source))
        return tuple(rules)

    def patterns(self, profile: Profile, key: str) -> tuple[PathPattern, ...]:
        patterns: list[PathPattern] = []
        for entry in profile.items(key):
            text = str(entry.value)
            # The placeholder is still a component here: what it stands for may hold any character.
            pattern = parse_pattern("/" + text if text.startswith("{") else text)
            if pattern.any_depth:
                anchor = self.path(_plain(pattern.anchor), entry)
                tail = pattern.tail
            else:
                whole = self.path(_plain(str(pattern)), entry)
                if whole == "/":
                    problem = Problem(
                        entry.source.file,
                        entry.source.line,
                        key,
                        f"{text} is the root directory here",
                        "name what is meant",
                    )
                    raise ProfileError((problem,))
                anchor, _, last = (whole or "").rpartition("/")
                anchor = anchor or "/" if whole is not None else None
                tail = (last,)
            if anchor is not None:
                patterns.append(PathPattern(anchor, tail, pattern.any_depth, entry.source))
        return tuple(patterns)

    def names(self, profile: Profile, key: str) -> tuple[str, ...]:
        paths = (self.path(str(entry.value), entry) for entry in profile.items(key))
        return tuple(path for path in paths if path is not None)


def _plain(path: str) -> str:
    return path[1:] if path.startswith("/{") else path


def _words(profile: Profile, key: str) -> tuple[str, ...]:
    return tuple(sorted({str(entry.value) for entry in profile.items(key)}))


def _limits(profile: Profile) -> tuple[tuple[str, int], ...]:
    split = ((entry.key.partition("."), int(str(entry.value))) for entry in profile.entries if entry.key in _LIMITS)
    return tuple(sorted((name, value) for (_, _, name), value in split))


def _choice(profile: Profile, key: str) -> str:
    entry = profile.scalar(key)
    return BY_DOTTED[key].default if entry is None else str(entry.value)


def _loopback(profile: Profile) -> bool:
    entry = profile.scalar("network.loopback")
    return True if entry is None else bool(entry.value)


def _unreached(
    http: tuple[HttpRule, ...], credentials: tuple[Credential, ...], connect: tuple[Endpoint, ...]
) -> list[str]:
    """A note for each rule about a host that ``network.connect`` does not grant: it allows nothing by itself."""
    notes: list[str] = []
    given: tuple[HttpRule | Credential, ...] = (*http, *credentials)
    for one in given:
        wildcard = isinstance(one, HttpRule) and one.wildcard
        below = "." + one.host
        if not any(
            [
                (end.wildcard and not end.name)
                or end.name == one.host
                or (end.wildcard and one.host.endswith("." + end.name))
                or (wildcard and end.name.endswith(below))
                for end in connect
            ]
        ):
            notes.append(f"{one.source}: {one.host} is not granted by network.connect: this allows nothing by itself")
    return notes


def _is_index(entry: Entry) -> bool:
    return str(entry.value).startswith("{package_index")


def _endpoint(entry: Entry) -> Endpoint:
    return parse_endpoint(str(entry.value), entry.source)


def _variables(profile: Profile, table: str, context: Context) -> dict[str, str | None]:
    """Name to value, or to ``None`` for one that is passed. In a value, the path placeholders stand for their paths."""
    values = {"workspace": context.workspace, "home": context.home, "runtime": context.runtime}
    found: dict[str, str | None] = {str(entry.value): None for entry in profile.items(f"{table}.pass")}
    for entry in profile.items(f"{table}.set"):
        found[entry.name] = _IN_VALUE.sub(lambda match: values[match.group(1)], str(entry.value))
    return found
