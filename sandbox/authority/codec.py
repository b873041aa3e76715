"""Authorities as JSON, and their digest.

The JSON keeps every line, ``source`` and ``optional`` among it. Reading is strict: an unknown or missing key, a wrong
type or a value that is not canonical is an error, never repaired, because what was signed or shown is what has to be
enforced.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TypeVar, cast

from remit.sandbox.authority.errors import GrantError
from remit.sandbox.authority.lattice import normal
from remit.sandbox.authority.model import (
    LIMIT_NAMES,
    NOWHERE,
    SYSCALL_GROUPS,
    Authority,
    AutoExec,
    Endpoint,
    PathPattern,
    PathRule,
    Right,
    Source,
)
from remit.sandbox.authority.parse import (
    ParseError,
    parse_endpoint,
    parse_env_name,
    parse_host,
    parse_path,
    parse_publish,
)
from remit.sandbox.authority.pattern import shape

T = TypeVar("T")

SCHEMA = "remit.authority/1"

NOT_RECORDED = "(not recorded)"
"""What stands for the value of a variable in a record."""


def canonical_json(value: object) -> bytes:
    """The one encoding of a JSON value: sorted keys, no spaces, ASCII. Digests and hash chains are over this."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def blake2b(data: bytes) -> str:
    """BLAKE2b-256 (RFC 7693), in hexadecimal."""
    import hashlib

    return hashlib.blake2b(data, digest_size=32).hexdigest()


def digest(a: Authority) -> str:
    """BLAKE2b-256 (hex) over the canonical JSON of the normal form, without sources.

    The normal form and not the extent: authorities that denote one set by name may resolve to different objects, and
    must not stand for each other in a grant's hash chain or a plan's cache.
    """
    return blake2b(canonical_json(to_json(normal(a), sources=False)))


def recorded(a: Authority) -> dict[str, object]:
    """As ``to_json``, for a record: what variables are set to is nobody's to read there."""
    hidden = tuple((name, None if value is None else NOT_RECORDED) for name, value in a.environment)
    return to_json(replace(a, environment=hidden))


def to_json(a: Authority, *, sources: bool = True) -> dict[str, object]:
    """The authority as plain JSON values; ``from_json`` reads them back to an equal value. ``sources`` are optional."""

    def line(made: dict[str, object], source: Source, key: str = "source") -> dict[str, object]:
        if sources and source != NOWHERE:
            made[key] = {"file": source.file, "line": source.line, "key": source.key}
        return made

    limits: dict[str, int] = {}
    for name, most in a.limits:
        limits[name] = min(most, limits.get(name, most))

    def patterns(many: tuple[PathPattern, ...]) -> list[dict[str, object]]:
        return [line({"anchor": p.anchor, "tail": list(p.tail), "any_depth": p.any_depth}, p.source) for p in many]

    return {
        "schema": SCHEMA,
        "paths": [
            line(
                line({"path": r.path, "rights": sorted(map(str, r.rights)), "optional": r.optional}, r.source),
                r.exec_source,
                "exec_source",
            )
            for r in a.paths
        ],
        "deny": patterns(a.deny),
        "protect": patterns(a.protect),
        "auto_exec": str(a.auto_exec),
        "opened": list(a.opened),
        "connect": [
            line(
                {
                    "name": e.name,
                    "wildcard": e.wildcard,
                    "network": e.network,
                    "port": e.port,
                    "protocol": e.protocol,
                },
                e.source,
            )
            for e in a.connect
        ],
        "listen": list(a.listen),
        # Named only where there is one: grants that were signed before there were any stay what they are.
        **({"publish": list(a.publish)} if a.publish else {}),
        "loopback": a.loopback,
        "unix": list(a.unix),
        "syscalls": list(a.syscalls),
        "devices": list(a.devices),
        "environment": [{"name": name, "value": value} for name, value in a.environment],
        "limits": limits,
    }


def wrong(where: str, message: str, hint: str = "") -> GrantError:
    """The error for a malformed value at ``where`` (keys and indices, joined by dots)."""
    return GrantError(message, where=where, hint=hint)


def object_of(value: object, where: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, object]:
    """A JSON object with exactly these keys.

    Raises:
        GrantError: not an object, a missing key, an unknown key.
    """
    if not isinstance(value, dict):
        raise wrong(where, f"expected an object, not {value!r}")
    known = cast("dict[object, object]", value)
    for key in known:
        if key not in keys and key not in optional:
            raise wrong(where, f"unknown key {key!r}", f"known are {', '.join((*keys, *optional))}")
    for key in keys:
        if key not in known:
            raise wrong(where, f"missing key {key!r}")
    return cast("dict[str, object]", value)


def a_string(value: object, where: str) -> str:
    """A JSON string that UTF-8 (or the file system's escape for other bytes) can hold, without NUL.

    Raises:
        GrantError: anything else.
    """
    if not isinstance(value, str) or "\0" in value:
        raise wrong(where, f"expected a string without NUL, not {value!r}")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise wrong(where, f"{value!r} contains a lone surrogate") from None
    return value


def a_bool(value: object, where: str) -> bool:
    """A JSON true or false.

    Raises:
        GrantError: anything else.
    """
    if not isinstance(value, bool):
        raise wrong(where, f"expected true or false, not {value!r}")
    return value


def an_int(value: object, where: str, least: int, most: int) -> int:
    """A JSON whole number in a range.

    Raises:
        GrantError: anything else; true and false among it, which Python takes for numbers.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise wrong(where, f"expected a whole number from {least} to {most}, not {value!r}")
    return value


def _list(value: object, where: str) -> list[tuple[str, object]]:
    if not isinstance(value, list):
        raise wrong(where, f"expected a list, not {value!r}")
    return [(f"{where}.{i}", one) for i, one in enumerate(cast("list[object]", value))]


def _unique(many: list[T], where: str) -> tuple[T, ...]:
    seen: set[T] = set()
    for one in many:
        if one in seen:
            raise wrong(where, f"{one!r} stands there twice")
        seen.add(one)
    return tuple(many)


def _path(value: object, where: str) -> str:
    text = a_string(value, where)
    try:
        path = parse_path(text)
    except ParseError as error:
        raise wrong(where, error.message, error.hint) from None
    if path != text:
        raise wrong(where, f"path {text!r} is not canonical", f"write {path}")
    return path


def _source(made: dict[str, object], where: str, key: str = "source") -> Source:
    if key not in made:
        return NOWHERE
    held = object_of(made[key], f"{where}.{key}", ("file", "line", "key"))
    return Source(
        a_string(held["file"], f"{where}.{key}.file"),
        an_int(held["line"], f"{where}.{key}.line", 0, 1 << 31),
        a_string(held["key"], f"{where}.{key}.key"),
    )


def _rule(value: object, where: str) -> PathRule:
    made = object_of(value, where, ("path", "rights", "optional"), ("source", "exec_source"))
    rights: list[Right] = []
    for at, one in _list(made["rights"], f"{where}.rights"):
        if one not in tuple(Right):
            raise wrong(at, f"unknown right {one!r}", f"one of: {', '.join(Right)}")
        rights.append(Right(cast("str", one)))
    held = frozenset(_unique(rights, f"{where}.rights"))
    optional = a_bool(made["optional"], f"{where}.optional")
    return PathRule(
        _path(made["path"], f"{where}.path"), held, optional, _source(made, where), _source(made, where, "exec_source")
    )


def _pattern(value: object, where: str) -> PathPattern:
    made = object_of(value, where, ("anchor", "tail", "any_depth"), ("source",))
    tail = tuple(a_string(one, at) for at, one in _list(made["tail"], f"{where}.tail"))
    anchor = _path(made["anchor"], f"{where}.anchor")
    pattern = PathPattern(anchor, tail, a_bool(made["any_depth"], f"{where}.any_depth"), _source(made, where))
    try:
        shape(pattern)
        parse_path("/" + "/".join(tail))
    except ParseError as error:
        raise wrong(f"{where}.tail", error.message, error.hint) from None
    except ValueError as error:
        raise wrong(where, str(error)) from None
    return pattern


def _endpoint(value: object, where: str) -> Endpoint:
    made = object_of(value, where, ("name", "wildcard", "network", "port", "protocol"), ("source",))
    name, network = a_string(made["name"], f"{where}.name"), a_string(made["network"], f"{where}.network")
    wildcard = a_bool(made["wildcard"], f"{where}.wildcard")
    port = an_int(made["port"], f"{where}.port", 0, 65535)
    protocol = a_string(made["protocol"], f"{where}.protocol")
    if protocol not in ("tcp", "udp"):
        raise wrong(f"{where}.protocol", f"unknown protocol {protocol!r}", "one of: tcp, udp")
    if not (name or network or wildcard):
        raise wrong(where, "an endpoint has a name or a network", "every name is a wildcard without a name")
    try:
        if name and parse_host(name) != name:
            raise wrong(f"{where}.name", f"name {name!r} is not canonical", f"write {parse_host(name)}")
        bracketed = f"[{network}]:1" if ":" in network else f"{network}:1"
        if network and parse_endpoint(bracketed).network != network:
            raise wrong(f"{where}.network", f"network {network!r} is not a canonical CIDR")
    except ParseError as error:
        raise wrong(where, error.message, error.hint) from None
    return Endpoint(name, wildcard, network, port, protocol, _source(made, where))


def _published(value: object, where: str) -> str:
    text = a_string(value, where)
    try:
        canonical = parse_publish(text)
    except ParseError as error:
        raise wrong(where, error.message, error.hint) from None
    if canonical != text:
        raise wrong(where, f"{text!r} is not canonical", f"write {canonical}")
    return text


def _variable(value: object, where: str) -> tuple[str, str | None]:
    made = object_of(value, where, ("name", "value"))
    try:
        name = parse_env_name(a_string(made["name"], f"{where}.name"))
    except ParseError as error:
        raise wrong(f"{where}.name", error.message, error.hint) from None
    return name, None if made["value"] is None else a_string(made["value"], f"{where}.value")


def from_json(value: object, where: str = "authority") -> Authority:
    """Read what ``to_json`` wrote.

    Raises:
        GrantError: anything that ``to_json`` would not have written; ``where`` of the error names the place.
    """
    keys = tuple(to_json(Authority()))
    made = object_of(value, where, keys, ("publish",))
    if made["schema"] != SCHEMA:
        raise wrong(f"{where}.schema", f"unknown schema {made['schema']!r}", f"expected {SCHEMA}")

    def strings(key: str) -> tuple[str, ...]:
        return _unique([a_string(one, at) for at, one in _list(made[key], f"{where}.{key}")], f"{where}.{key}")

    def paths(key: str) -> tuple[str, ...]:
        return _unique([_path(one, at) for at, one in _list(made[key], f"{where}.{key}")], f"{where}.{key}")

    def patterns(key: str) -> tuple[PathPattern, ...]:
        return tuple(_pattern(one, at) for at, one in _list(made[key], f"{where}.{key}"))

    auto_exec = a_string(made["auto_exec"], f"{where}.auto_exec")
    if auto_exec not in tuple(AutoExec):
        raise wrong(f"{where}.auto_exec", f"unknown value {auto_exec!r}", f"one of: {', '.join(AutoExec)}")
    for name in strings("syscalls"):
        if name not in SYSCALL_GROUPS:
            raise wrong(f"{where}.syscalls", f"unknown group {name!r}", f"one of: {', '.join(SYSCALL_GROUPS)}")
    ports = [an_int(one, at, 1, 65535) for at, one in _list(made["listen"], f"{where}.listen")]
    published = [_published(one, at) for at, one in _list(made.get("publish", []), f"{where}.publish")]
    if "publish" in made and not published:
        raise wrong(f"{where}.publish", "empty", "leave it out")
    environment = tuple(_variable(one, at) for at, one in _list(made["environment"], f"{where}.environment"))
    _unique([name for name, _ in environment], f"{where}.environment")
    limits = object_of(made["limits"], f"{where}.limits", (), LIMIT_NAMES)
    devices = strings("devices")
    for name in devices:
        # Relative to /dev, as profiles write them: "null", "dri/renderD128".
        if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
            raise wrong(f"{where}.devices", f"{name!r} is not a name below /dev", "such as null or dri/renderD128")
    return Authority(
        paths=tuple(_rule(one, at) for at, one in _list(made["paths"], f"{where}.paths")),
        deny=patterns("deny"),
        protect=patterns("protect"),
        auto_exec=AutoExec(auto_exec),
        opened=strings("opened"),
        connect=tuple(_endpoint(one, at) for at, one in _list(made["connect"], f"{where}.connect")),
        listen=_unique(ports, f"{where}.listen"),
        publish=_unique(published, f"{where}.publish"),
        loopback=a_bool(made["loopback"], f"{where}.loopback"),
        unix=paths("unix"),
        syscalls=strings("syscalls"),
        devices=devices,
        environment=environment,
        limits=tuple((name, an_int(most, f"{where}.limits.{name}", 1, (1 << 63) - 1)) for name, most in limits.items()),
    )
