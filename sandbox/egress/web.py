"""What a session with HTTP rules or credentials needs before it starts: placeholders, secrets, certificates.

Runs in the user's own process, which may read the user's environment, files and keyring. What it gives goes two ways and
never crosses: ``options`` to the gateway, ``environment`` and ``bundle`` inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remit.sandbox.authority.web import Credential, HttpRule
from remit.sandbox.egress import ca
from remit.sandbox.egress.secrets import obtain, placeholder


@dataclass(frozen=True, slots=True)
class Prepared:
    """``options`` are for the gateway's config (they hold secrets, and do not show them); ``environment`` is for inside.

    ``bundle``: the bytes of the file that every one of ``ca.VARIABLES`` has to name inside; b"" for none.
    """

    environment: dict[str, str]
    bundle: bytes
    options: dict[str, Any] = field(repr=False)


def prepare(
    session: str,
    http: Sequence[HttpRule],
    credentials: Sequence[Credential],
    environ: Mapping[str, str],
    home: str,
) -> Prepared:
    """Get the secrets, make what stands for them, and the session's own certificate authority.

    Raises:
        SecretError: a secret cannot be had. A session without it would only fail later and less clearly.
    """
    if not http and not credentials:
        return Prepared({}, b"", {})
    holders: dict[str, str] = {}
    exchanged: list[tuple[str, str, str, str, str, str]] = []
    for one in credentials:
        secret = obtain(one, environ, home).reveal().decode("utf-8", "surrogateescape")
        # One variable is one placeholder, wherever it may go: each host has its own secret for it.
        holder = holders.setdefault(one.variable, placeholder()) if one.variable else placeholder()
        kind, name = ("query", one.query) if one.query else ("header", one.header)
        name = f"{name}: {one.template}" if one.template else name
        exchanged.append((one.host, kind, name, holder, secret, str(one.source)))
    names = [("*." if rule.wildcard else "") + rule.host for rule in http] + [one.host for one in credentials]
    certificate, key = ca.make(session, names)
    options: dict[str, Any] = {
        "http": tuple(
            [(name, rule.methods, rule.paths, str(rule.source)) for name, rule in zip(names, http, strict=False)]
        ),
        "credentials": tuple(exchanged),
        "authority": (certificate, key),
    }
    return Prepared(holders, ca.bundle(certificate), options)


def certificate_variables(path: str) -> dict[str, str]:
    """The variables that make programs inside trust the bundle at ``path``."""
    return dict.fromkeys(ca.VARIABLES, path)
