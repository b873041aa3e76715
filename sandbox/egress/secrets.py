"""Credentials: a placeholder inside, the secret outside, exchanged in the gateway for one host.

A ``Secret`` does not show itself: not in ``repr``, not in a format string, not in an exception. ``reveal`` is the one way
to the bytes, so that a reader can find every place that does it.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from remit.sandbox.authority.web import Credential

LONGEST = 1 << 14
"""Bytes of a secret: no server takes a longer header."""

Headers = list[tuple[bytes, bytes]]


class SecretError(Exception):
    """A secret that could not be had. The message says from where, never what."""


class Secret:
    """Bytes that do not show themselves. Cannot be pickled or copied into a message by accident."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The bytes."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> Any:
        raise TypeError("a secret is not serialised")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One credential in force: where it may go, what stands for it, what it is."""

    host: str
    header: str
    query: str
    template: str
    placeholder: str
    secret: Secret
    variable: str = ""


def placeholder() -> str:
    """A new one: nothing that anybody could have written before, of characters that need no encoding anywhere."""
    return f"remit-placeholder-{secrets.token_hex(16)}"


def obtain(credential: Credential, environ: Mapping[str, str], home: str) -> Secret:
    """The secret that ``credential`` names. Runs in the user's own process, with the user's environment, never inside.

    Raises:
        SecretError: it is not there, is empty, or holds what no header can.
    """
    where = credential.shown
    try:
        value = _fetch(credential, environ, home)
    except SecretError as error:
        raise SecretError(f"{where}: {error}") from None
    value = value.removesuffix(b"\n").removesuffix(b"\r")
    if not value:
        raise SecretError(f"{where}: empty")
    if len(value) > LONGEST:
        raise SecretError(f"{where}: longer than {LONGEST} bytes")
    if any(byte < 0x20 or byte == 0x7F for byte in value):
        raise SecretError(f"{where}: holds control characters (a file of several lines?)")
    return Secret(value)


def _fetch(credential: Credential, environ: Mapping[str, str], home: str) -> bytes:
    origin, place = credential.origin, credential.place
    if origin == "env":
        if place not in environ:
            raise SecretError("is not set")
        return environ[place].encode("utf-8", "surrogateescape")
    if origin == "file":
        try:
            with open(credential.path(home), "rb") as file:
                return file.read(LONGEST + 3)
        except OSError as error:
            raise SecretError(error.strerror or "cannot be read") from None
    if origin == "keyring":
        return _from_keyring(*place.partition("/")[::2])
    return _from_command(place)


def _from_keyring(service: str, user: str) -> bytes:
    import importlib

    try:
        keyring = importlib.import_module("keyring")  # the user's choice, and not a dependency of ours
    except ImportError:
        raise SecretError("the package keyring is not installed") from None
    try:
        value: object = keyring.get_password(service, user)
    except Exception as error:  # a backend's own errors share no base class, and their text is not ours to show
        raise SecretError(f"the keyring failed ({type(error).__name__})") from None
    if not isinstance(value, str):
        raise SecretError("the keyring has no such entry")
    return value.encode()


def _from_command(command: str) -> bytes:
    import shlex
    import subprocess

    try:
        done = subprocess.run(
            shlex.split(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise SecretError(f"cannot be run ({type(error).__name__})") from None
    if done.returncode:
        raise SecretError(f"ended with status {done.returncode}")
    return done.stdout


def put_in(exchanges: Iterable[Exchange], target: bytes, headers: Headers) -> tuple[bytes, Headers]:
    """The request line's target and the headers of a request that was *allowed*, with its host's secrets in them.

    ``exchanges`` are those of the request's host, and nobody else's.
    """
    for one in exchanges:
        if one.query:
            target = _in_query(target, one)
        if one.header:
            headers = _in_headers(headers, one)
    return target, headers


def _in_query(target: bytes, one: Exchange) -> bytes:
    path, mark, query = target.partition(b"?")
    if not mark:
        return target
    name, holder = one.query.encode(), one.placeholder.encode()
    value = quote_plus(one.secret.reveal()).encode()
    parts = [part.replace(holder, value) if part.partition(b"=")[0] == name else part for part in query.split(b"&")]
    return path + b"?" + b"&".join(parts)


def _in_headers(headers: Headers, one: Exchange) -> Headers:
    wanted = one.header.encode()
    if one.template:
        before, _, after = one.template.encode().partition(b"{}")
        kept = [(name, value) for name, value in headers if name.lower() != wanted]
        return [*kept, (wanted, before + one.secret.reveal() + after)]
    return [(name, _replaced(value, one) if name.lower() == wanted else value) for name, value in headers]


def _replaced(value: bytes, one: Exchange) -> bytes:
    holder, secret = one.placeholder.encode(), one.secret.reveal()
    if holder in value:
        return value.replace(holder, secret)
    scheme, _, coded = value.partition(b" ")
    if scheme.lower() == b"basic":  # user and password, as git and curl -u send them
        try:
            plain = base64.b64decode(coded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return value
        if holder in plain:
            return scheme + b" " + base64.b64encode(plain.replace(holder, secret))
    return value
