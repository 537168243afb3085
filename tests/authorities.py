"""Certificate authorities for tests: each signs servers and clients."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from extender.settings import TlsSettings
from tests.controlplane import certs

_PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Authority:
    """An authority with a key of its own."""

    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    @property
    def certificate(self) -> bytes:
        """The authority's own certificate, PEM."""
        return certs.authority(self.key).public_bytes(_PEM)

    def server(self) -> tuple[bytes, bytes]:
        """A certificate for 127.0.0.1 and its key, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        signed = certs.server(key, certs.authority(self.key), self.key)
        return signed.public_bytes(_PEM), certs.pem_key(key)

    def client(self, name: str) -> tuple[bytes, bytes]:
        """A client's certificate and its key, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        own = certs.authority(self.key)
        signed = (
            certs.builder(name, own.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return signed.public_bytes(_PEM), certs.pem_key(key)


@dataclass(frozen=True)
class Files:
    """The three files that the extender reads, and who wrote them."""

    folder: Path

    def write(self, server: Authority, clients: Authority) -> None:
        """Write all three, as a rotation would."""
        certificate, key = server.server()
        (self.folder / "tls.crt").write_bytes(certificate)
        (self.folder / "tls.key").write_bytes(key)
        (self.folder / "ca.crt").write_bytes(clients.certificate)

    def settings(self, *names: str, reload_seconds: float = 10.0) -> TlsSettings:
        """Settings that name the files."""
        return TlsSettings(
            cert_file=str(self.folder / "tls.crt"),
            key_file=str(self.folder / "tls.key"),
            client_ca_file=str(self.folder / "ca.crt"),
            client_names=list(names),
            reload_seconds=reload_seconds,
        )


def client_context(
    folder: Path, server: Authority, own: tuple[bytes, bytes] | None
) -> ssl.SSLContext:
    """A client that trusts the server's authority and shows its own certificate, if it has one."""
    context = ssl.create_default_context(cadata=server.certificate.decode())
    if own is not None:
        certificate, key = folder / "client.crt", folder / "client.key"
        certificate.write_bytes(own[0])
        key.write_bytes(own[1])
        context.load_cert_chain(certificate, key)
    return context
