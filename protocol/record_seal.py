"""How a private swarm hides its directory from whoever has not its secret (PROTOCOL.md §7).

Sans-IO. Records lie under names that only members can derive, sealed with ChaCha20-Poly1305 under a key for each owner.
Every call of the directory begins with a word that only members can make: a stranger is told nothing, not even
ciphertext, and takes no place among keepers. Inside, records are signed as everywhere. Without a secret (an open swarm)
names are public, nothing is sealed and there are no words.
"""

from dataclasses import dataclass, field
from hmac import compare_digest

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from shoal.protocol.errors import RecordRejected
from shoal.protocol.ids import PeerId
from shoal.protocol.records import roster_name
from shoal.protocol.version import SEAL_CONTEXT, TAG_CONTEXT, WORD_CONTEXT

NONCE_BYTES = 12
TAG_BYTES = 8
WORD_BYTES = 16
"""Nobody guesses it: a wrong one costs a call."""
SEAL_BYTES = NONCE_BYTES + 16
"""What a sealed record is longer: its nonce and the tag."""


@dataclass(frozen=True, slots=True)
class RecordSeal:
    """`secret`: the swarm's directory secret, 32 bytes; None: an open swarm."""

    secret: bytes | None = field(default=None, repr=False)

    def name(self, model_root: bytes) -> bytes:
        """The 32-byte name under which the holders of a model are found."""
        public = roster_name(model_root)
        return public if self.secret is None else blake3(public, key=self.secret).digest()

    @property
    def swarm_tag(self) -> str:
        """Part of the names of the directory's RPCs, so that swarms do not mix; empty for open ones. No secret: peers
        tell whoever connects which protocols they speak."""
        return "" if self.secret is None else blake3(TAG_CONTEXT, key=self.secret).hexdigest()[: 2 * TAG_BYTES]

    def word(self, teller: PeerId, hearer: PeerId) -> bytes:
        """What shows to `hearer` that `teller`, with whom it talks as libp2p has proven, has the secret. It is of use
        to nobody else, not even to `hearer`. Empty in an open swarm."""
        if self.secret is None:
            return b""
        both = teller.encode("ascii", "replace") + hearer.encode("ascii", "replace")
        return blake3(WORD_CONTEXT + both, key=self.secret).digest(WORD_BYTES)

    def is_word(self, word: bytes, teller: PeerId, hearer: PeerId) -> bool:
        """Whether `teller` has said what `word` makes."""
        return compare_digest(word, self.word(teller, hearer))

    def seal(self, record: bytes, owner: PeerId) -> bytes:
        """What is stored. The nonce is a keyed hash of the record: the same only for the same record."""
        if self.secret is None:
            return record
        key = self._key(self.secret, owner)
        nonce = blake3(record, key=key).digest()[:NONCE_BYTES]
        return nonce + ChaCha20Poly1305(key).encrypt(nonce, record, None)

    def open(self, data: bytes, owner: PeerId) -> bytes:
        """The record inside.

        Raises:
            RecordRejected: no member has sealed this for `owner`.
        """
        if self.secret is None:
            return data
        try:
            return ChaCha20Poly1305(self._key(self.secret, owner)).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], None)
        except (InvalidTag, ValueError) as error:
            raise RecordRejected("a record that no member has sealed") from error

    @staticmethod
    def _key(secret: bytes, owner: PeerId) -> bytes:
        return blake3(SEAL_CONTEXT + owner.encode("ascii", "replace"), key=secret).digest()
