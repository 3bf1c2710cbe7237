"""Who belongs to a private swarm: keys that follow from the founder's secret, and proofs of it (PROTOCOL.md §4, §7).

Sans-IO. The founder's secret never leaves the founder. A token holds a key of its own, which the founder has certified,
and the directory's secret. So no member can make a token, no node can pose as a client that visited it, and a single
token can be revoked. A client proves its token in each handshake; a node's record carries a *voucher*, the token's
word that the node's peer key is its member's, so that whoever reads the record need not ask. Knows no files and no
addresses.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from blake3 import blake3

from shoal.protocol.errors import AuthenticationFailed, InvalidRequest
from shoal.protocol.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, peer_id_of, verify
from shoal.protocol.version import CERTIFICATE_CONTEXT, FOUNDER_DERIVATION, MEMBERSHIP_CONTEXT, VOUCHER_CONTEXT

SECRET_BYTES = 32
SERIAL_BYTES = 16
TOKEN_ID_BYTES = 8
"""Enough to name a token in a list; what is checked is the whole key."""

VOUCHER_BYTES = PUBLIC_KEY_BYTES + 2 * SIGNATURE_BYTES
"""The token's public key, its certificate, and its signature over a peer's key."""

IsRevoked = Callable[[str], bool]
"""Asked at every handshake with a token's id."""


@dataclass(frozen=True, slots=True)
class Membership:
    """What a token gives its holder. Its `repr` shows no secret.

    `founder_key`: Ed25519 public key. `certificate`: the founder's signature over the token's public key.
    """

    founder_key: bytes
    directory_secret: bytes = field(repr=False)
    token_seed: bytes = field(repr=False)
    certificate: bytes = field(repr=False)

    def __post_init__(self) -> None:
        sizes = (len(self.founder_key), len(self.directory_secret), len(self.token_seed), len(self.certificate))
        if sizes != (SECRET_BYTES, SECRET_BYTES, SECRET_BYTES, SIGNATURE_BYTES):
            raise InvalidRequest(f"a membership of {sizes} bytes")

    @property
    def token_key(self) -> bytes:
        """The token's public key."""
        return Identity.from_seed(self.token_seed).public_key

    def prove(self, transcript: bytes) -> bytes:
        """Sign what the client's own key signs as well: both peers, both nonces, session and lane."""
        return Identity.from_seed(self.token_seed).sign(MEMBERSHIP_CONTEXT + transcript)

    def vouch(self, peer_key: bytes) -> bytes:
        """Our word that the peer with this public key is ours, for its records: of no use to any other peer."""
        token = Identity.from_seed(self.token_seed)
        return token.public_key + self.certificate + token.sign(VOUCHER_CONTEXT + peer_key)


@dataclass(frozen=True, slots=True)
class Founder:
    """The founder's side of a swarm: everything follows from 32 random bytes."""

    secret: bytes = field(repr=False)

    @property
    def identity(self) -> Identity:
        """The founder's key: it certifies tokens and signs revocation lists, and is no peer's."""
        return Identity.from_seed(self._derive(b"founder"))

    def member(self, serial: bytes) -> Membership:
        """The membership of the token with this serial number (16 random bytes)."""
        founder, seed = self.identity, self._derive(b"token" + serial)
        token_key = Identity.from_seed(seed).public_key
        certificate = founder.sign(CERTIFICATE_CONTEXT + token_key)
        return Membership(founder.public_key, self._derive(b"directory"), seed, certificate)

    def _derive(self, purpose: bytes) -> bytes:
        if len(self.secret) != SECRET_BYTES:
            raise InvalidRequest(f"a swarm's secret has {SECRET_BYTES} bytes, this one {len(self.secret)}")
        return blake3(self.secret + purpose, derive_key_context=FOUNDER_DERIVATION).digest()


def token_id(token_key: bytes) -> str:
    """The name of a token, in hex; tells nothing of what is in it."""
    return blake3(token_key).hexdigest()[: 2 * TOKEN_ID_BYTES]


def never_revoked(_: str) -> bool:
    """For members that were told of no revocation."""
    return False


@dataclass(frozen=True, slots=True)
class MemberGate:
    """Whom a server of a private swarm lets in, and whose records its members believe."""

    founder_key: bytes
    is_revoked: IsRevoked = never_revoked

    def admit(self, token_key: bytes, certificate: bytes, signature: bytes, transcript: bytes) -> None:
        """Check a client's membership.

        Raises:
            AuthenticationFailed: another swarm's token or none, a proof of another handshake, or a revoked token.
        """
        verify(peer_id_of(self.founder_key), certificate, CERTIFICATE_CONTEXT + token_key)
        verify(peer_id_of(token_key), signature, MEMBERSHIP_CONTEXT + transcript)
        self._check_token(token_key)

    def check_voucher(self, voucher: bytes, peer_key: bytes) -> str:
        """Check the voucher in a peer's record; the id of the token that gave it.

        Raises:
            AuthenticationFailed: none, another swarm's, another peer's, or a revoked token's.
        """
        if len(voucher) != VOUCHER_BYTES:
            raise AuthenticationFailed("no member vouches for this peer")
        token_key, rest = voucher[:PUBLIC_KEY_BYTES], voucher[PUBLIC_KEY_BYTES:]
        verify(peer_id_of(self.founder_key), rest[:SIGNATURE_BYTES], CERTIFICATE_CONTEXT + token_key)
        verify(peer_id_of(token_key), rest[SIGNATURE_BYTES:], VOUCHER_CONTEXT + peer_key)
        return self._check_token(token_key)

    def _check_token(self, token_key: bytes) -> str:
        identifier = token_id(token_key)
        if self.is_revoked(identifier):
            raise AuthenticationFailed(f"token {identifier} was revoked")
        return identifier
