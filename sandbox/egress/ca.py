"""The session's certificate authority: made at its start, good for the hosts whose requests are read, gone with it.

Its key exists in the gateway's memory only. Its certificate is constrained by name (RFC 5280, 4.2.1.10) to the hosts that
the profile's HTTP rules and credentials name, and to no address at all: whoever got at the key could not pretend to be
any other host, even inside.

``cryptography`` is imported where it is used: a session without HTTP rules does not pay for it.
"""

from __future__ import annotations

import datetime
import os
import ssl
from collections import OrderedDict
from typing import TYPE_CHECKING

from remit.sandbox.authority.web import SYSTEM_BUNDLES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

_DAYS = 7
_LEAVES = 256


def make(session: str, names: Iterable[str]) -> tuple[bytes, bytes]:
    """A new authority's certificate and key, as PEM. ``names``: host names, and ``*.`` patterns, that it may certify.

    The certificate is for inside, the key for nobody but the gateway.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Remit"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Remit session {session}".strip()[:64]),
        ]
    )
    made = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(_constraints(names), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return _pem(made), private


class Authority:
    """An authority at work: makes the certificates of the hosts that it stands in for."""

    def __init__(self, certificate: bytes, key: bytes) -> None:
        """What ``make`` gave. Raises ``ValueError`` for anything else."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        loaded = serialization.load_pem_private_key(key, None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError("not the key of a session's authority")
        self._key = loaded
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._leaves: OrderedDict[str, ssl.SSLContext] = OrderedDict()
        self._name = x509.load_pem_x509_certificate(certificate).subject
        self._certificate = certificate

    def context(self, name: str) -> ssl.SSLContext:
        """What a server called ``name`` (canonical) needs to speak TLS; kept for the next connection."""
        context = self._leaves.get(name)
        if context is None:
            context = self._leaves[name] = self._make(name)
            while len(self._leaves) > _LEAVES:
                self._leaves.popitem(last=False)
        self._leaves.move_to_end(name)
        return context

    def _make(self, name: str) -> ssl.SSLContext:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        # A common name has 64 characters at most; nothing has read it for years where there is an alternative name.
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if len(name) <= 64 else [])
        public = self._leaf_key.public_key()
        leaf = (
            _builder(self._name, subject, public)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=len(name) > 64)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        key = self._leaf_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2", "http/1.1"])
        _load(context, _pem(leaf) + self._certificate + key)
        return context


def _builder(issuer: x509.Name, subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # a container's clock may be behind
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
    )


def _constraints(names: Iterable[str]) -> x509.NameConstraints:
    from ipaddress import ip_network

    from cryptography import x509

    permitted = sorted({name.removeprefix("*.") for name in names})
    return x509.NameConstraints(
        # A name in a constraint stands for itself and everything below it: there is no way to say less.
        permitted_subtrees=[x509.DNSName(name) for name in permitted] or [x509.DNSName("invalid")],
        # Names of a kind that is not mentioned would not be constrained at all.
        excluded_subtrees=[x509.IPAddress(ip_network("0.0.0.0/0")), x509.IPAddress(ip_network("::/0"))],
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _load(context: ssl.SSLContext, chain: bytes) -> None:
    """``load_cert_chain`` takes file names only: a file that has none, and that no disk ever sees."""
    descriptor = os.memfd_create("leaf", os.MFD_CLOEXEC)
    try:
        view = memoryview(chain)
        while view:
            view = view[os.write(descriptor, view) :]
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def upstream_context(ca_file: str = "") -> ssl.SSLContext:
    """For connections to the real servers: verified, by name, against the host's certificates or ``ca_file``.

    Raises:
        OSError: ``ca_file`` cannot be read (``ssl.SSLError``: is no list of certificates).
    """
    context = ssl.create_default_context(cafile=ca_file or None)
    if not ca_file and not context.get_ca_certs():
        # A Python that was not built for this distribution looks where nothing is.
        for path in SYSTEM_BUNDLES:
            if os.path.isfile(path):
                context.load_verify_locations(path)
                break
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
