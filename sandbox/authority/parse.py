"""Strict parsers for what people write: paths, patterns, endpoints, quantities, durations, names.

Each takes text and returns one canonical spelling, or raises ``ParseError``. What was checked here is what is resolved
and connected later, so a spelling that two programs could read in two ways is refused, with a hint that shows what to
write instead. Nothing here touches the file system or resolves a name.

``ipaddress``, ``difflib``, ``unicodedata`` and the codecs are imported where they are used: most runs never need them,
and the cold path pays for every import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remit.sandbox.authority.model import LIMIT_NAMES, NOWHERE, SYSCALL_GROUPS, Endpoint, PathPattern, Source

if TYPE_CHECKING:
    from collections.abc import Iterable

PATH_BYTES = 4095
"""PATH_MAX of limits.h without its NUL: the longest path that a system call takes."""

NAME_BYTES = 255
"""NAME_MAX of limits.h."""

_DIGITS = frozenset("0123456789")
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_LDH = _LETTERS | _DIGITS | {"-"}
_SIZE_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_TIME_UNITS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_GREATEST = (1 << 63) - 1


class ParseError(ValueError):
    """Text that is not what it should be: ``message`` names the wrong value, ``hint`` (maybe empty) what fixes it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, or the empty string."""
    import difflib

    folded = {k.casefold(): k for k in known}
    found = difflib.get_close_matches(word.casefold(), folded, n=1)
    return folded[found[0]] if found else ""


def _choice(word: str, known: tuple[str, ...]) -> str:
    near = nearest(word, known)
    return f"did you mean {near}?" if near else f"one of: {', '.join(known)}"


def _number(text: str) -> int | None:
    """ASCII digits and nothing else. ``int()`` also takes signs, spaces, underscores and other scripts' digits."""
    return int(text) if text and len(text) <= 20 and _DIGITS.issuperset(text) else None


def _check_text(what: str, text: str) -> None:
    """Refuse the empty string, NUL, control characters (C0, DEL, C1) and what cannot be a file system's bytes."""
    if not text:
        raise ParseError(f"empty {what}")
    for char in text:
        if char < " " or "\x7f" <= char <= "\x9f":
            raise ParseError(f"{what} {text!r} contains the control character {char!r}", "remove it")
        if "\u2028" <= char <= "\u2029":
            raise ParseError(f"{what} {text!r} contains the line separator {char!r}", "remove it")
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ParseError(f"{what} {text!r} contains a lone surrogate", "write it as UTF-8") from None


def parse_path(text: str) -> str:
    """An absolute, lexically normal path: ``.``, ``//`` and a trailing slash are removed.

    ``..`` is refused, not removed: ``/a/link/..`` is not ``/a`` where ``link`` is a symbolic link.

    Raises:
        ParseError: relative, ``..``, control characters, longer than PATH_MAX or a component longer than NAME_MAX.
    """
    _check_text("path", text)
    if not text.startswith("/"):
        hint = "write the home directory in full" if text.startswith("~") else f"did you mean /{text}?"
        raise ParseError(f"path {text!r} is not absolute", f"a path starts with /; {hint}")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ParseError(f"path {text!r} contains '..'", f"name the directory itself, such as {_without_dots(parts)}")
    for part in parts:
        if len(part.encode("utf-8", "surrogateescape")) > NAME_BYTES:
            raise ParseError(f"path component {part[:24]!r}… is longer than {NAME_BYTES} bytes")
    path = "/" + "/".join(parts)
    if len(path.encode("utf-8", "surrogateescape")) > PATH_BYTES:
        raise ParseError(f"path {path[:40]!r}… is longer than {PATH_BYTES} bytes")
    return path


def _without_dots(parts: list[str]) -> str:
    kept: list[str] = []
    for part in parts:
        if part != "..":
            kept.append(part)
        elif kept:
            kept.pop()
    return "/" + "/".join(kept)


def parse_pattern(text: str, source: Source = NOWHERE) -> PathPattern:
    """A name to take away: ``/literal/path``, ``**/NAME[/NAME...]`` or ``/anchor/**/NAME[/NAME...]``.

    Raises:
        ParseError: as ``parse_path``, and for any other glob, and for ``/`` itself.
    """
    _check_text("pattern", text)
    possible = "possible are /literal/path, **/NAME and /anchor/**/NAME"
    whole = "/" + text if text == "**" or text.startswith("**/") else text
    parts = parse_path(whole).split("/")[1:]
    stars = parts.count("**")
    if any(char in part for part in parts if part != "**" for char in "*?["):
        raise ParseError(f"pattern {text!r} contains a glob", possible)
    if stars > 1:
        raise ParseError(f"pattern {text!r} contains '**' more than once", possible)
    if stars:
        at = parts.index("**")
        if at == len(parts) - 1:
            above = "/" + "/".join(parts[:at])
            hint = f"a path takes everything below it: write {above}" if at else possible
            raise ParseError(f"pattern {text!r} ends in '**'", hint)
        return PathPattern("/" + "/".join(parts[:at]), tuple(parts[at + 1 :]), True, source)
    if parts == [""]:
        raise ParseError("pattern '/' takes everything away", "name what is to be taken away below /")
    return PathPattern("/" + "/".join(parts[:-1]), (parts[-1],), False, source)


def parse_port(text: str) -> int:
    """A port number, 1 to 65535, in plain decimal digits.

    Raises:
        ParseError: anything else, leading zeros, signs and service names among it.
    """
    value = _number(text)
    if value is None or not 1 <= value <= 65535:
        raise ParseError(f"port {text!r} is not a number from 1 to 65535", "such as 443")
    if text[0] == "0":
        raise ParseError(f"port {text!r} has leading zeros", f"write {value}")
    return value


def parse_endpoint(text: str, source: Source = NOWHERE) -> Endpoint:
    """``HOST:PORT[/tcp|udp]``: HOST a name, ``*.name``, ``*`` (every name), an address (IPv6 in brackets), a CIDR; PORT a
    number or ``*``.

    Names become lower-case A-labels without a trailing dot; addresses become canonical networks (``/32``, ``/128``);
    IPv4-mapped IPv6 becomes IPv4 (RFC 4291, 2.5.5.2), because that is the host that the kernel connects to.

    Raises:
        ParseError: everything else; a spelling that some resolver reads as an address is refused with that address.
    """
    _check_text("endpoint", text)
    if any(char.isspace() for char in text):
        raise ParseError(f"endpoint {text!r} contains a space", "write HOST:PORT")
    scheme, found, rest = text.partition("://")
    if found:
        ports = {"https": 443, "http": 80, "ssh": 22, "git": 9418}
        host = rest.partition("/")[0]
        hint = host if ":" in host else f"{host}:{ports.get(scheme.lower(), 'PORT')}"
        raise ParseError(f"endpoint {text!r} is a URL", f"write HOST:PORT: {hint}")
    if "@" in text:
        raise ParseError(f"endpoint {text!r} contains user information", f"write {text.rpartition('@')[2]}")
    if text.startswith("["):
        inner, bracket, after = text[1:].partition("]")
        if not bracket:
            raise ParseError(f"endpoint {text!r} has no closing bracket", "such as [2001:db8::1]:443")
        prefix, colon, rest = after.partition(":")
        host, literal = inner + prefix, True
    else:
        host, colon, rest = text.rpartition(":")
        literal = False
        if ":" in host:
            raise ParseError(
                f"endpoint {text!r} has more than one colon", "IPv6 is written in brackets: [2001:db8::1]:443"
            )
    if not colon:
        raise ParseError(f"endpoint {text!r} has no port", f"write {text}:443, or {text}:* for every port")
    port_text, slash, protocol = rest.partition("/")
    if slash and protocol not in ("tcp", "udp"):
        raise ParseError(f"endpoint {text!r}: unknown protocol {protocol!r}", _choice(protocol, ("tcp", "udp")))
    port = 0 if port_text == "*" else parse_port(port_text)
    protocol = protocol or "tcp"
    if literal or "/" in host:
        if literal and ":" not in host:
            raise ParseError(f"endpoint {text!r}: only IPv6 is written in brackets", f"write {host}:{rest}")
        return Endpoint("", False, _network(host), port, protocol, source)
    if _numeric(host):
        return Endpoint("", False, f"{_dotted(host)}/32", port, protocol, source)
    if host == "*":
        return Endpoint("", True, "", port, protocol, source)
    wildcard = host.startswith("*.")
    return Endpoint(parse_host(host[2:] if wildcard else host), wildcard, "", port, protocol, source)


def parse_publish(text: str) -> str:
    """``[ADDRESS:]PORT:INNER``: a port of the host, at one of its addresses (127.0.0.1 unless given), and the port inside.

    Raises:
        ParseError: anything else; a name (it could mean several addresses); port 0.
    """
    _check_text("port to publish", text)
    rest, colon, inner = text.rpartition(":")
    host, _, port = rest.rpartition(":")
    if not colon:
        raise ParseError(
            f"port to publish {text!r} has no port inside", f"write {text}:{text}: HOST PORT, then PORT inside"
        )
    if host == "":
        host = "127.0.0.1"
    elif host.startswith("[") and host.endswith("]"):
        if ":" not in host or "/" in host:
            raise ParseError(f"port to publish {text!r}: {host!r} is not an IPv6 address", "such as [::1]:8080:3000")
        host = f"[{_network(host[1:-1]).partition('/')[0]}]"
        if ":" not in host:
            raise ParseError(f"port to publish {text!r}: an IPv4 address in IPv6's form", f"write {host[1:-1]}")
    elif ":" in host:
        raise ParseError(
            f"port to publish {text!r} has too many colons", "IPv6 is written in brackets: [::1]:8080:3000"
        )
    elif not _numeric(host):
        raise ParseError(f"port to publish {text!r}: {host!r} is not an address", "such as 127.0.0.1:8080:3000")
    else:
        host = _dotted(host)
    return f"{host}:{parse_port(port)}:{parse_port(inner)}"


def parse_host(text: str) -> str:
    """A host name as lower-case A-labels, without a trailing dot.

    Non-ASCII labels go through IDNA. Refused, because readers differ on them: characters that map to plain ASCII (full
    width letters, other dots), letters on which IDNA 2003 and 2008 disagree, labels that mix Latin, Greek and Cyrillic.
    An ``xn--`` label must be what its decoding encodes to.

    Raises:
        ParseError: not such a name.
    """
    if not text or text == ".":
        raise ParseError("empty host", "write HOST:PORT")
    if "*" in text:
        raise ParseError(f"host {text!r} contains '*'", "a wildcard is a whole leading label: *.example.com")
    for dot in "\u3002\uff0e\uff61":
        if dot in text:
            raise ParseError(f"host {text!r} contains {dot!r}, which some programs read as a dot", "write a plain dot")
    labels = (text[:-1] if text.endswith(".") else text).split(".")
    name = ".".join(_label(text, label) for label in labels)
    if len(name) > 253:
        raise ParseError(f"host {text[:40]!r}… is longer than 253 characters")
    if _numeric(name):
        raise ParseError(f"host {text!r} ends in a number: it is neither a name nor an address")
    return name


def _label(host: str, label: str) -> str:
    if not label:
        raise ParseError(f"host {host!r} has an empty label", "remove the extra dot")
    plain = label.lower() if label.isascii() else _a_label(host, label)
    if len(plain) > 63:
        raise ParseError(f"host {host[:40]!r}…: label {plain[:24]!r}… is longer than 63 characters")
    for char in plain:
        if char not in _LDH:
            raise ParseError(f"host {host!r} contains {char!r}", "a name has letters, digits and hyphens, between dots")
    if plain[0] == "-" or plain[-1] == "-":
        raise ParseError(f"host {host!r}: label {label!r} begins or ends with a hyphen")
    if plain.startswith("xn--"):
        _check_a_label(host, plain)
    return plain


def _a_label(host: str, label: str) -> str:
    import unicodedata
    from encodings import idna

    for char in label:
        if char in "\u00df\u1e9e\u03c2\u200c\u200d":
            raise ParseError(
                f"host {host!r} contains {char!r}, which IDNA 2003 and 2008 map differently", "write its xn-- form"
            )
    try:
        mapped = idna.nameprep(label)
        plain = "" if mapped.isascii() else idna.ToASCII(mapped).decode("ascii")
    except UnicodeError:
        raise ParseError(f"host {host!r}: {label!r} is not a valid internationalised label") from None
    if mapped.isascii():
        raise ParseError(
            f"host {host!r}: {label!r} is a disguise of {mapped!r}", f"write {mapped}, if that is what is meant"
        )
    scripts = {unicodedata.name(char, "").partition(" ")[0] for char in mapped if char.isalpha()}
    if len(scripts & {"LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "CHEROKEE"}) > 1:
        raise ParseError(f"host {host!r}: {label!r} mixes scripts", f"if that is what is meant, write {plain}")
    return plain


def _check_a_label(host: str, label: str) -> None:
    import unicodedata

    wrong = ParseError(f"host {host!r}: {label!r} is not a valid A-label", "write the name in Unicode")
    coded = label[4:]
    try:
        decoded = coded.encode("ascii").decode("punycode")
        again = decoded.encode("punycode").decode("ascii")
    except ValueError:
        raise wrong from None
    stable = unicodedata.normalize("NFKC", decoded) == decoded == decoded.lower()
    visible = not any(unicodedata.category(char)[0] in "CZ" for char in decoded if char not in "\u200c\u200d")
    if decoded.isascii() or again != coded or not stable or not visible:
        raise wrong


def _numeric(host: str) -> bool:
    """Whether resolvers take it for IPv4: the last label is a number (inet_aton(3), and the WHATWG URL host parser)."""
    last = host.rstrip(".").rpartition(".")[2].lower()
    return bool(last) and (_DIGITS.issuperset(last) or (last[:2] == "0x" and set(last[2:]) <= set("0123456789abcdef")))


def _dotted(host: str) -> str:
    parts = host.split(".")
    values = [_number(part) for part in parts]
    if len(parts) == 4 and all(v is not None and v <= 255 and str(v) == p for v, p in zip(values, parts, strict=True)):
        return host
    meaning = _inet_aton(host)
    if meaning:
        raise ParseError(
            f"host {host!r} is an odd spelling of an IPv4 address", f"write {meaning}, if that is what is meant"
        )
    raise ParseError(
        f"host {host!r} is neither a name nor an IPv4 address", "an address has four numbers from 0 to 255"
    )


def _inet_aton(host: str) -> str:
    """What inet_aton(3) reads: one to four numbers, decimal, octal (0...) or hexadecimal (0x...); the last fills up."""
    parts = host.removesuffix(".").lower().split(".")
    if not 1 <= len(parts) <= 4 or max(map(len, parts)) > 20:
        return ""
    numbers: list[int] = []
    for part in parts:
        if not part or not part.isalnum() or not part.isascii():
            return ""
        base, digits = (16, part[2:] or "0") if part[:2] == "0x" else (8, part) if part[0] == "0" else (10, part)
        try:
            numbers.append(int(digits, base))
        except ValueError:
            # A leading zero with an 8 or 9 in it: some readers take it as decimal.
            if not _DIGITS.issuperset(part):
                return ""
            numbers.append(int(part))
    *head, last = numbers
    if any(number > 255 for number in head) or last >= 256 ** (4 - len(head)):
        return ""
    value = last + sum(number << (24 - 8 * i) for i, number in enumerate(head))
    return ".".join(str(value >> shift & 255) for shift in (24, 16, 8, 0))


def _network(text: str) -> str:
    """The canonical CIDR of an address, with or without ``/LENGTH``."""
    import ipaddress

    host, slash, length_text = text.partition("/")
    if "%" in host:
        raise ParseError(f"address {text!r} has a zone", "a zone is local to one host: leave it out")
    if ":" in host:
        try:
            address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv6Address(host)
        except ValueError:
            raise ParseError(f"address {text!r} is not an IPv6 address", "such as [2001:db8::1]:443") from None
    elif _numeric(host):
        address = ipaddress.IPv4Address(_dotted(host))
    else:
        raise ParseError(f"host {text!r} contains '/'", "a path does not belong to an endpoint: write HOST:PORT")
    bits = address.max_prefixlen
    length = _number(length_text) if slash else bits
    if length is None or length > bits or (slash and str(length) != length_text):
        raise ParseError(f"network {text!r}: {length_text!r} is not a prefix length from 0 to {bits}")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None and length >= 96:
        address, length = address.ipv4_mapped, length - 96
    network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    if network.network_address != address:
        raise ParseError(
            f"network {text!r} has host bits set", f"write {network}, or {address}/{address.max_prefixlen}"
        )
    return str(network)


def parse_size(text: str) -> int:
    """Bytes: a whole number, plain or with KiB, MiB, GiB or TiB.

    Raises:
        ParseError: fractions, signs, and the units (KB, G, ...) that some programs read as 1000 and others as 1024.
    """
    _check_text("size", text)
    unit = text.lstrip("0123456789")
    value = _number(text[: len(text) - len(unit)])
    if value is None:
        raise ParseError(f"size {text!r} does not begin with a whole number", "such as 4GiB, 512MiB or 65536")
    if unit not in _SIZE_UNITS:
        if unit.startswith("."):
            raise ParseError(f"size {text!r} is a fraction", "use the next smaller unit: 1536MiB for 1.5GiB")
        likely = {"k": "KiB", "m": "MiB", "g": "GiB", "t": "TiB"}.get(unit.strip().casefold()[:1])
        hint = f"write {value}{likely}" if likely else "one of: KiB, MiB, GiB, TiB"
        raise ParseError(f"size {text!r}: unknown unit {unit!r}", hint)
    if value * _SIZE_UNITS[unit] > _GREATEST:
        raise ParseError(f"size {text!r} is too large")
    return value * _SIZE_UNITS[unit]


def parse_duration(text: str) -> int:
    """Milliseconds: whole numbers with h, m, s and ms, each at most once and in this order, such as ``1h30m``.

    Raises:
        ParseError: no unit, unknown unit, fraction, wrong order, zero.
    """
    _check_text("duration", text)
    units = tuple(_TIME_UNITS)
    rest, total, last = text, 0, -1
    while rest:
        after = rest.lstrip("0123456789")
        value = _number(rest[: len(rest) - len(after)])
        unit = after[: len(after) - len(after.lstrip("".join(_LETTERS)))]
        if value is None:
            raise ParseError(
                f"duration {text!r}: a whole number should stand before {rest!r}", "such as 30s, 5m or 1h30m"
            )
        if not after:
            raise ParseError(f"duration {text!r} has no unit", f"write {text}s for seconds, {text}m for minutes")
        if unit not in _TIME_UNITS:
            if after.startswith("."):
                raise ParseError(f"duration {text!r} is a fraction", "use the next smaller unit: 90s for 1.5m")
            if unit.casefold() in ("d", "day", "days"):
                raise ParseError(f"duration {text!r}: unknown unit {unit!r}", f"write {24 * value}h")
            likely = {"h": "h", "m": "m", "s": "s"}.get(unit.casefold()[:1], "")
            hint = f"write {value}{likely}" if likely and unit.casefold() != "ms" else f"one of: {', '.join(units)}"
            raise ParseError(f"duration {text!r}: unknown unit {unit!r}", hint)
        if units.index(unit) <= last:
            raise ParseError(f"duration {text!r}: units repeat or are out of order", "the order is h, m, s, ms")
        last = units.index(unit)
        total += value * _TIME_UNITS[unit]
        rest = after[len(unit) :]
    if not 0 < total <= _GREATEST:
        raise ParseError(f"duration {text!r} is {'too long' if total else 'zero'}")
    return total


def parse_limit(name: str, value: str | int | float) -> int:
    """The maximum for a limit, in the units of ``model.LIMIT_NAMES``.

    ``value`` is text from the command line, or what a profile holds. A bare number is bytes for ``memory``,
    ``file-size``, ``tmp`` and ``traffic``, a count for ``pids``, ``files`` and ``connections``, CPUs for ``cpu``; ``time``,
    ``cpu-time`` and ``connection-time`` need a unit.

    Raises:
        ParseError: unknown name, malformed or zero value.
    """
    if name not in LIMIT_NAMES:
        raise ParseError(f"unknown limit {name!r}", _choice(name, LIMIT_NAMES))
    if isinstance(value, bool) or (isinstance(value, float) and name != "cpu"):
        raise ParseError(f"limit {name}: {value!r} is not a whole number")
    text = str(value)
    try:
        if name in ("memory", "file-size", "tmp", "traffic"):
            number = parse_size(text)
        elif name in ("time", "cpu-time", "connection-time"):
            number = parse_duration(text)
        elif name == "cpu":
            number = _thousandths(text)
        else:
            count = _number(text)
            if count is None or count > _GREATEST:
                raise ParseError(f"{text!r} is not a whole number", "such as 512")
            number = count
    except ParseError as wrong:
        raise ParseError(f"limit {name}: {wrong.message}", wrong.hint) from None
    if number == 0:
        raise ParseError(f"limit {name} is zero", "leave it out for no limit, or give at least 1")
    return number


def _thousandths(text: str) -> int:
    whole, point, fraction = text.partition(".")
    number = _number(whole)
    part = _number(fraction.ljust(3, "0")) if point else 0
    if number is None or part is None or (point and not 1 <= len(fraction) <= 3) or number > 1_000_000:
        raise ParseError(f"{text!r} is not a number of CPUs with at most three decimals", "such as 2 or 1.5")
    return number * 1000 + part


def parse_env_name(text: str) -> str:
    """The name of an environment variable: letters, digits, underscores, not beginning with a digit (POSIX, XBD 8.1).

    Raises:
        ParseError: anything else.
    """
    _check_text("environment name", text)
    name, equals, _ = text.partition("=")
    if equals:
        raise ParseError(
            f"environment name {name!r} is followed by a value", "a value is given where it is set, not here"
        )
    if text[0] in _DIGITS or not (_LETTERS | _DIGITS | {"_"}).issuperset(text):
        raise ParseError(
            f"environment name {text!r} is malformed", "letters, digits and underscores, not beginning with a digit"
        )
    return text


def parse_group(text: str) -> str:
    """The name of a group of system calls (``model.SYSCALL_GROUPS``).

    Raises:
        ParseError: unknown; the hint names the group that was probably meant.
    """
    if text not in SYSCALL_GROUPS:
        raise ParseError(f"unknown group of system calls {text!r}", _choice(text, SYSCALL_GROUPS))
    return text
