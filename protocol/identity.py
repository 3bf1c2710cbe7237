"""Who a peer is: an Ed25519 key, and the libp2p peer id that contains it.

Knows key files and signatures. Does not know what is signed: contexts live in `version.py`, next to their users' bytes.
Source of the peer id: libp2p/specs `peer-ids`: identity multihash (0x00, length 36) of the protobuf
`PublicKey{Type: Ed25519 = 1, Data: 32 bytes}`, in base58btc.
"""

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import mkstemp

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shoal.protocol.errors import AuthenticationFailed, InvalidRequest, Malformed
from shoal.protocol.ids import PeerId

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_PEER_ID_CHARACTERS = 64
"""An Ed25519 peer id has 52; checked before base58 (quadratic in the length) is decoded."""

_MULTIHASH_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])
"""identity multihash, 36 bytes; protobuf field 1 = Ed25519; field 2 = 32 bytes."""
_LIBP2P_PRIVATE_PREFIX = bytes([0x08, 0x01, 0x12, 0x40])
"""protobuf PrivateKey: field 1 = Ed25519; field 2 = 64 bytes (seed, public key)."""


def peer_id_of(public_key: bytes) -> PeerId:
    """Return the peer id of a raw Ed25519 public key (32 bytes)."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise Malformed(f"an Ed25519 public key has 32 bytes, this one {len(public_key)}")
    return PeerId(base58.b58encode(_MULTIHASH_PREFIX + public_key).decode("ascii"))


def public_key_of(peer: PeerId) -> bytes:
    """Return the raw Ed25519 public key (32 bytes) that a peer id contains.

    Raises:
        Malformed: not an Ed25519 peer id (RSA ids contain no key and are not accepted: R2).
    """
    if len(peer) > MAX_PEER_ID_CHARACTERS:
        raise Malformed(f"a peer id of {len(peer)} characters")
    try:
        raw: bytes = base58.b58decode(peer)
    except ValueError as error:
        raise Malformed("a peer id that is not base58") from error
    if not raw.startswith(_MULTIHASH_PREFIX) or len(raw) != len(_MULTIHASH_PREFIX) + PUBLIC_KEY_BYTES:
        raise Malformed("a peer id that contains no Ed25519 key")
    return raw[len(_MULTIHASH_PREFIX) :]


def verify(peer: PeerId, signature: bytes, message: bytes) -> None:
    """Check an Ed25519 signature against the key inside `peer`.

    Raises:
        AuthenticationFailed: the signature does not fit.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key_of(peer)).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise AuthenticationFailed(f"{peer} did not sign this") from error


@dataclass(frozen=True)
class Identity:
    """Our own key pair. Its `repr` shows the peer id only."""

    _seed: bytes

    @staticmethod
    def from_seed(seed: bytes) -> "Identity":
        """Make the identity of a 32-byte secret seed (RFC 8032)."""
        if len(seed) != 32:
            raise InvalidRequest(f"an Ed25519 seed has 32 bytes, this one {len(seed)}")
        return Identity(seed)

    @property
    def private_key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._seed)

    @cached_property
    def public_key(self) -> bytes:
        return self.private_key.public_key().public_bytes_raw()

    @cached_property
    def peer(self) -> PeerId:
        return peer_id_of(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """Sign `message`, which must begin with a context of `version.py`."""
        return self.private_key.sign(message)

    def libp2p_private_key(self) -> bytes:
        """The key as a libp2p `PrivateKey` protobuf, which is what p2pd reads from its identity file."""
        return _LIBP2P_PRIVATE_PREFIX + self._seed + self.public_key

    def __repr__(self) -> str:
        return f"Identity({self.peer})"


def load_or_create_identity(path: Path, entropy: bytes) -> Identity:
    """Read the 32-byte seed in `path`, or create the file (mode 0600) from `entropy` (32 random bytes).

    The file appears whole or not at all, also when two programs start at once: then both read the first one's.

    Raises:
        InvalidRequest: the file is readable by others, or is not a seed.
    """
    if not path.exists():
        Identity.from_seed(entropy)  # refuses what is no seed before it becomes a file
        _publish(path, entropy)
    return _load_identity(path)


def _publish(path: Path, seed: bytes) -> None:
    """Write a private temporary file beside `path` and link it into place unless somebody was faster."""
    descriptor, temporary = mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(seed)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)


def _load_identity(path: Path) -> Identity:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise InvalidRequest(f"the key file {path} is open to other users (mode {mode:04o}); try: chmod 600 {path}")
    seed = path.read_bytes()
    if len(seed) != 32:
        raise InvalidRequest(f"{path} is not a key file: {len(seed)} bytes instead of 32")
    return Identity.from_seed(seed)
