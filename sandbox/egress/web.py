"""What a session with credentials needs before it starts: placeholders for inside, the secrets for the gateway.

Runs in the user's own process, which may read the user's environment, files and keyring. What it makes goes two ways and
never crosses: the placeholders inside, the secrets into a file in memory that only the gateway reads.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Mapping

from remit.sandbox.authority.web import Credential
from remit.sandbox.egress.secrets import obtain, placeholder
from remit.sandbox.kernel import memfd


def placeholders(credentials: Iterable[Credential]) -> dict[str, str]:
    """By variable, what stands for a secret inside. One variable is one placeholder, wherever it may go: each host has its
    own secret for it."""
    return {one.variable: placeholder() for one in credentials if one.variable}


def secrets_file(
    credentials: Iterable[Credential], holders: Mapping[str, str], environ: Mapping[str, str], home: str
) -> int:
    """Get the secrets: a descriptor of the file that goes with the gateway's config (``wire``), to be closed.

    Raises:
        SecretError: a secret cannot be had. A session without it would only fail later and less clearly.
        OSError: no file in memory.
    """
    exchanged: list[tuple[str, str, str, str, str, str, str]] = []
    for one in credentials:
        secret = obtain(one, environ, home).reveal().decode("utf-8", "surrogateescape")
        kind, name = ("query", one.query) if one.query else ("header", one.header)
        name = f"{name}: {one.template}" if one.template else name
        holder = holders.get(one.variable) or placeholder()
        exchanged.append((one.host, kind, name, holder, secret, str(one.source), one.variable))
    return memfd.sealed(marshal.dumps({"credentials": tuple(exchanged)}), "secrets")
