"""The cluster's certificate authority, its one server certificate and the token-signing key."""

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = dt.timedelta(days=2)
_CLOCK_SLACK = dt.timedelta(hours=1)


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files. All servers share one certificate, for 127.0.0.1 and localhost."""

    ca: Path
    server: Path
    server_key: Path
    token_key: Path

    def context(self) -> ssl.SSLContext:
        """Return a client context that trusts this authority only."""
        return ssl.create_default_context(cafile=str(self.ca))


def create_certificates(folder: Path) -> Certificates:
    """Write new keys and certificates, valid for two days, into `folder`."""
    ca_key, server_key, token_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    ca = authority(ca_key)
    own = server(server_key, ca, ca_key)
    pem = serialization.Encoding.PEM
    files = Certificates(
        ca=folder / "ca.crt",
        server=folder / "server.crt",
        server_key=folder / "server.key",
        token_key=folder / "token.key",
    )
    files.ca.write_bytes(ca.public_bytes(pem))
    files.server.write_bytes(own.public_bytes(pem))
    _write_key(files.server_key, server_key)
    _write_key(files.token_key, token_key)
    return files


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(pem_key(key))


def pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, without a passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def builder(
    subject: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    """Return what all certificates have in common."""
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Return the certificate of an authority that signs itself."""
    name = "archimedes-test-ca"
    return (
        builder(name, _name(name), key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def server(
    key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    """Return a certificate for a server on 127.0.0.1."""
    names = [
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.DNSName("localhost"),
    ]
    return (
        builder("archimedes-test-server", ca.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
