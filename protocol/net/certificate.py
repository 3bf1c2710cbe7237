"""The TLS side of `direct`: a certificate that is nothing but a peer's key, and the check that it is the right one.

The certificate's names, dates and issuer mean nothing and are not read: only the key counts, and TLS 1.3 itself proves
that the server has it (CertificateVerify). Knows no sockets and no addresses.
"""

import ssl
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from shoal.protocol.errors import AuthenticationFailed
from shoal.protocol.identity import Identity, public_key_of
from shoal.protocol.ids import PeerId

ALPN = "shoal/1"
"""TLS application protocol: a web server on the same port, or another version of ours, does not answer it."""

_NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "shoal")])
_NOT_BEFORE = datetime(2020, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(9999, 12, 31, tzinfo=UTC)
"""A key is valid as long as it is somebody's; dates would make a wrong clock an outage."""


def make_certificate(identity: Identity) -> bytes:
    """The self-signed Ed25519 certificate of a peer, PEM. The same bytes each time."""
    builder = x509.CertificateBuilder(_NAME, _NAME, identity.private_key.public_key(), 1, _NOT_BEFORE, _NOT_AFTER)
    return builder.sign(identity.private_key, None).public_bytes(Encoding.PEM)


def server_context(identity: Identity) -> ssl.SSLContext:
    """TLS 1.3 with our peer key as certificate; no session tickets, so no resumption and no 0-RTT data (replay)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _restrict(context)
    context.num_tickets = 0
    pem = identity.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with TemporaryDirectory() as folder:  # mode 0700; `ssl` takes keys from files only
        file = Path(folder, "key.pem")
        file.touch(mode=0o600)
        file.write_bytes(pem + make_certificate(identity))
        context.load_cert_chain(file)
    return context


def client_context() -> ssl.SSLContext:
    """TLS 1.3 without any certificate authority: `check_server_key` must follow, before a byte is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _restrict(context)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def check_server_key(certificate_der: bytes | None, expected: PeerId) -> None:
    """Compare the key in the server's certificate with the one in the peer id we mean to talk to.

    Raises:
        AuthenticationFailed: another key, or none.
    """
    try:
        key = x509.load_der_x509_certificate(certificate_der or b"").public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AuthenticationFailed(f"the server that should be {expected} shows no certificate we can read") from error
    if not isinstance(key, Ed25519PublicKey) or key.public_bytes_raw() != public_key_of(expected):
        raise AuthenticationFailed(f"the server that should be {expected} has another key")


def _restrict(context: ssl.SSLContext) -> None:
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
