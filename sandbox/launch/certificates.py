"""The host's certificates with one more: as PEM, and in the keystore that Java reads.

A ``JKS`` keystore (version 2) is a list of entries in plain, and a digest over it with a password that everybody knows; a
host whose Java has another kind of store keeps it as it is, and Java does not trust the session's certificate there.
"""

from __future__ import annotations

from binascii import a2b_base64
from hashlib import sha1

_JKS = b"\xfe\xed\xfe\xed\0\0\0\2"
_DIGEST_SIZE = 20
_PASSWORD = "changeit".encode("utf-16-be") + b"Mighty Aphrodite"
_TRUSTED = 2
_ALIAS, _KIND = b"remit-session", b"X.509"
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


def added(host: bytes, own: bytes) -> bytes:
    """The file ``host`` with the certificate ``own`` (PEM)."""
    if host.startswith(_JKS):
        return _in_keystore(host, own)
    if host and _BEGIN not in host:
        return host
    return host.rstrip() + b"\n" + own if host else own


def _in_keystore(host: bytes, own: bytes) -> bytes:
    certificate = a2b_base64(own.partition(_BEGIN)[2].partition(_END)[0])
    start = len(_JKS)
    count = int.from_bytes(host[start : start + 4], "big") + 1
    entry = _number(_TRUSTED) + _text(_ALIAS) + bytes(8) + _text(_KIND) + _number(len(certificate)) + certificate
    body = _JKS + _number(count) + host[start + 4 : -_DIGEST_SIZE] + entry
    return body + sha1(_PASSWORD + body).digest()


def _number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _text(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value
