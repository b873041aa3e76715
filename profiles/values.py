"""One value of a profile: from what TOML gave to its canonical form, or what is wrong with it.

Placeholders are checked here and filled in later (``expand``), because a profile is parsed once and used in many
workspaces. A path may only *begin* with a placeholder. So the authority's own parsers can check ``/{workspace}/x``
as if the placeholder were a directory, and filling it in later is replacing the first component: nothing is parsed
a second time, and no character in the name of a workspace can mean anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from remit.profiles.model import Value
from remit.profiles.schema import FORMAT, NAME_PATTERN, PACKAGE_INDEXES, PATH_PLACEHOLDERS, PLACEHOLDERS, Key, Kind
from remit.sandbox.authority.model import Source
from remit.sandbox.authority.parse import (
    ParseError,
    parse_endpoint,
    parse_env_name,
    parse_group,
    parse_limit,
    parse_path,
    parse_pattern,
    parse_port,
    parse_publish,
)
from remit.sandbox.authority.web import (
    Credential,
    HttpRule,
    parse_header,
    parse_http_host,
    parse_http_path,
    parse_method,
    parse_origin,
    parse_query_name,
)

_BRACES = re.compile(r"\{[^{}]*\}|[{}]")
_NAME = re.compile(NAME_PATTERN)
_PARENT_FILE = re.compile(r"\./(?:[^/\x00-\x1f\x7f]+/)*[^/\x00-\x1f\x7f]+\.toml")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_REFUSED_DEVICES = ("mem", "kmem", "port", "kmsg", "console")


class ValueProblem(Exception):
    """A value that is wrong: ``message`` names it, ``hint`` says what to write."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def show(text: str, limit: int = 80) -> str:
    """``text`` in quotes, control characters escaped, not longer than about ``limit``: fit for a terminal."""
    shown = text if len(text) <= limit else text[:limit] + "…"
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else repr(c)[1:-1] for c in shown) + '"'


def nearest(word: str, choices: tuple[str, ...] | list[str]) -> str:
    """The one of ``choices`` that was probably meant by ``word``, or ""."""
    from difflib import get_close_matches  # only on the way to an error: 10 ms

    lower = word.lower().replace("_", "-")
    plain = {choice.replace("_", "-"): choice for choice in choices}
    close = get_close_matches(lower, plain, n=1, cutoff=0.6)
    if close:
        return plain[close[0]]
    begins = [choice for folded, choice in plain.items() if len(lower) >= 3 and folded.startswith(lower)]
    return begins[0] if begins else ""


def type_name(value: object) -> str:
    """What people call the type of a TOML value."""
    if isinstance(value, bool):
        return "true or false"
    names: dict[type, str] = {str: "text", int: "a number", float: "a number", list: "an array", dict: "a table"}
    return names.get(type(value), "a date or time")


def check(key: Key, value: object) -> Value:
    """The canonical form of one ``value`` of ``key`` (a list's item, a map's value, a scalar).

    Raises ``ValueProblem``.
    """
    try:
        return _check(key, value)
    except ParseError as error:
        raise ValueProblem(error.message, error.hint) from None


def check_variable(name: str) -> str:
    """The name of an environment variable. Raises ``ValueProblem``."""
    try:
        return parse_env_name(name)
    except ParseError as error:
        raise ValueProblem(error.message, error.hint) from None


def _check(key: Key, value: object) -> Value:
    kind = key.kind
    if kind is Kind.BOOLEAN:
        if not isinstance(value, bool):
            raise ValueProblem(f"must be true or false, not {type_name(value)}")
        return value
    if kind is Kind.FORMAT:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueProblem(f"must be a number, not {type_name(value)}", f"format = {FORMAT}")
        if value != FORMAT:
            raise ValueProblem(
                f"format {value if abs(value) < 10**6 else '…'} is not known", f"this version reads format = {FORMAT}"
            )
        return value
    if kind is Kind.LIMIT:
        return _limit(key.name, value)
    if kind is Kind.PORT:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueProblem(f"must be a port number, not {type_name(value)}")
        return parse_port(_digits(value) if isinstance(value, int) else value)
    if not isinstance(value, str):
        raise ValueProblem(
            f"must be text, not {type_name(value)}", "put it in quotes" if isinstance(value, int) else ""
        )
    return _text(key, value)


def _text(key: Key, text: str) -> str:
    match key.kind:
        case Kind.PATH:
            return _path(key, text)
        case Kind.PATTERN:
            return _pattern(text)
        case Kind.ENDPOINT:
            return _endpoint(text)
        case Kind.PUBLISH:
            return parse_publish(text)
        case Kind.CHOICE:
            if text not in key.choices:
                near = nearest(text, key.choices)
                hint = f"did you mean {show(near)}?" if near else f"one of: {', '.join(key.choices)}"
                raise ValueProblem(f"{show(text)} is not a choice here", hint)
            return text
        case Kind.SYSCALL_GROUP:
            return parse_group(text)
        case Kind.ENVIRONMENT_NAME:
            return parse_env_name(text)
        case Kind.ENVIRONMENT_VALUE:
            if "\0" in text:
                raise ValueProblem("a variable's value cannot hold a NUL byte")
            return text
        case Kind.NAME:
            if not _NAME.fullmatch(text):
                raise ValueProblem(
                    f"{show(text)} is not a profile name", "lower-case letters, digits and dashes, a letter first"
                )
            return text
        case Kind.PARENT:
            return _parent(text)
        case Kind.DEVICE:
            return _device(text)
        case Kind.METHOD:
            return parse_method(text)
        case Kind.HTTP_PATH:
            return parse_http_path(text)
        case Kind.HTTP_HOST:
            parse_http_host(text)
            return text
        case Kind.HEADER:
            parse_header(text)
            return text
        case Kind.QUERY:
            return parse_query_name(text)
        case Kind.ORIGIN:
            parse_origin(text)
            return text
        case _:
            if not all(character.isprintable() for character in text):
                raise ValueProblem("must be one line without control characters")
            return text


def _limit(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueProblem(f"must be a quantity, not {type_name(value)}")
    if isinstance(value, float):
        if name != "cpu":
            raise ValueProblem("must be a whole number, or text with a unit")
        return parse_limit(name, repr(value))
    if isinstance(value, int):
        _digits(value)
    return parse_limit(name, value)


def _digits(number: int) -> str:
    """``number`` in decimal; one that no quantity can have is refused first (converting it could take for ever)."""
    if number.bit_length() > 64:
        raise ValueProblem("the number is too large")
    return str(number)


def _braces(text: str) -> None:
    """Every brace in ``text`` belongs to a placeholder that exists."""
    for match in _BRACES.finditer(text):
        token = match.group()
        if len(token) == 1:
            raise ValueProblem(
                f"{show(text)}: a brace that belongs to no placeholder", f"placeholders: {_all_placeholders()}"
            )
        name, colon, index = token[1:-1].partition(":")
        if name not in PLACEHOLDERS:
            near = nearest(name, tuple(PLACEHOLDERS))
            hint = f"did you mean {{{near}}}?" if near else f"placeholders: {_all_placeholders()}"
            raise ValueProblem(f"{show(token)} is not a placeholder", hint)
        if colon and (name != "package_index" or index not in PACKAGE_INDEXES):
            near = nearest(index, PACKAGE_INDEXES) if name == "package_index" else ""
            hint = f"did you mean {{package_index:{near}}}?" if near else f"placeholders: {_all_placeholders()}"
            raise ValueProblem(f"{show(token)} is not a placeholder", hint)


def _all_placeholders() -> str:
    return " ".join(f"{{{name}}}" for name in PLACEHOLDERS)


def _anchored(text: str) -> str:
    """``text`` as an absolute path, its placeholder checked and made a component: ``/{home}/x`` for ``~/x``."""
    written = text
    if text == "~" or text.startswith("~/"):
        text = "{home}" + text[1:]
    elif text.startswith("~"):
        raise ValueProblem(f"{show(written)}: only the user's own home can be named by ~", "write the path in full")
    _braces(text)
    head, slash, rest = text.partition("/")
    if head[:1] == "{":
        name, _, more = head[1:].partition("}")
        if name in PATH_PLACEHOLDERS and more:
            raise ValueProblem(f"{show(written)}: a slash must follow {{{name}}}", f'"{{{name}}}/{more}"')
        if name == "toolchains":
            raise ValueProblem(f"{show(written)}: {{toolchains}} is a whole entry of a read or exec list, nothing else")
        if name not in PATH_PLACEHOLDERS:
            raise ValueProblem(f"{show(written)}: {{{name}}} belongs in network.connect")
        if "{" in rest:
            raise ValueProblem(f"{show(written)}: a path can only begin with a placeholder")
        text = f"/{{{name}}}{slash}{rest}"
    elif "{" in text:
        raise ValueProblem(f"{show(written)}: a path can only begin with a placeholder")
    elif not text.startswith("/"):
        inside = text.removeprefix("./")
        raise ValueProblem(
            f"{show(written)} is a relative path",
            f"did you mean {show('{workspace}/' + inside)}?" if inside else "write an absolute path",
        )
    if ".." in text.split("/"):
        raise ValueProblem(
            f'{show(written)}: ".." could name something outside what is written', "write the path that is meant"
        )
    return text


def _path(key: Key, text: str) -> str:
    if text == "{toolchains}":
        if key.toolchains:
            return text
        raise ValueProblem(
            "{toolchains} cannot stand here: toolchains are read and executed, never written",
            "put it in filesystem.read or filesystem.exec",
        )
    if "*" in text:
        raise ValueProblem(
            f"{show(text)}: patterns exist only in deny and protect", "a path means itself and everything below it"
        )
    return _plain(parse_path(_anchored(text)))


def _pattern(text: str) -> str:
    if text.startswith("**/"):
        text = "/" + text
    return _plain(str(parse_pattern(_anchored(text))))


def _plain(path: str) -> str:
    """``/{home}/x`` back to ``{home}/x``."""
    return path[1:] if path.startswith("/{") else path


def _endpoint(text: str) -> str:
    if "{" in text or "}" in text:
        _braces(text)
        if not (text.startswith("{package_index") and text.endswith("}") and text.count("{") == 1):
            raise ValueProblem(f"{show(text)}: only {{package_index}} can stand in network.connect, as a whole entry")
        return text
    parse_endpoint(text)
    return text


def _parent(text: str) -> str:
    if "/" in text or text.endswith(".toml"):
        if not _PARENT_FILE.fullmatch(text) or any(part in (".", "..") for part in text[2:].split("/")):
            raise ValueProblem(
                f"{show(text)} is not a file beside or below this one", 'write "./FILE.toml", or a profile\'s name'
            )
        return text
    if not _NAME.fullmatch(text):
        raise ValueProblem(
            f"{show(text)} is neither a profile name nor a file", 'names are like "base", files like "./FILE.toml"'
        )
    return text


def _device(text: str) -> str:
    if text.startswith("/dev/"):
        raise ValueProblem(f"{show(text)}: devices are named below /dev", f"write {show(text[5:])}")
    if not _DEVICE.fullmatch(text) or text in _REFUSED_DEVICES:
        raise ValueProblem(
            f"{show(text)} is not a device that can be granted", "a name below /dev, such as null or dri/renderD128"
        )
    return text


def record(key: Key, fields: Mapping[str, tuple[Value, ...]], source: Source) -> Value:
    """A record of ``key`` from the checked values of its fields (those that are there), and where it stands.

    Raises ``ValueProblem`` for fields that do not go together.
    """

    def one(name: str) -> str:
        return str(fields[name][0]) if name in fields else ""

    def listed(name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(value) for value in fields.get(name, ())))

    host, wildcard = parse_http_host(one("host"))
    if key.kind is Kind.HTTP_RULE:
        for name in ("methods", "paths"):
            if name in fields and not fields[name]:
                raise ValueProblem(f"{name} is empty: nothing would be allowed", f"leave {name} out for all")
        return HttpRule(host, wildcard, listed("methods"), listed("paths"), source)
    if wildcard:
        raise ValueProblem(f"{show(one('host'))} is many hosts", "a secret is for one: name it")
    if bool(one("header")) == bool(one("query")):
        raise ValueProblem("needs one of header and query", 'such as header = "Authorization: Bearer {}"')
    header, template = parse_header(one("header")) if one("header") else ("", "")
    origin, place = parse_origin(one("from"))
    variable = one("variable") or (place if origin == "env" else "")
    if not variable and not template:
        raise ValueProblem(
            "no program inside would see the placeholder",
            'name a variable for it, or the whole header: header = "Authorization: Bearer {}"',
        )
    return Credential(host, header, one("query"), origin, place, variable, template, source)
