"""The founder's word on which tokens are no good any more, signed, so that any member may carry it (PROTOCOL.md §7.2).

Sans-IO. A list only grows: each revocation makes the next one, numbered by how many tokens it names, and whoever has
seen a list refuses every earlier one. So nobody, not even a member who keeps the directory's entries alive, can bring
a token back. Knows no files and no directory.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import msgpack

from shoal.protocol import limits
from shoal.protocol.errors import InvalidRequest, Malformed, RecordRejected
from shoal.protocol.identity import SIGNATURE_BYTES, Identity, peer_id_of, verify
from shoal.protocol.membership import TOKEN_ID_BYTES
from shoal.protocol.messages import BytesField, IntField
from shoal.protocol.version import REVOCATION_CONTEXT

_VERSION = IntField(1, "version", 1, 1)
_FOUNDER_KEY = BytesField(2, "founder_key", 32)
_NUMBER = IntField(3, "number", 1, limits.MAX_REVOKED_TOKENS)
_SIGNATURE = BytesField(5, "signature", SIGNATURE_BYTES)
_IDS_KEY = 4
_KEYS = {1, 2, 3, _IDS_KEY, 5}


@dataclass(frozen=True, slots=True)
class RevocationList:
    """Ids of revoked tokens, in hex; `encoded` is what the founder signed, for others."""

    token_ids: frozenset[str]
    encoded: bytes

    @property
    def number(self) -> int:
        """A list with a higher one is later."""
        return len(self.token_ids)


def sign_revocations(token_ids: Iterable[str], founder: Identity) -> RevocationList:
    """Make the list of these tokens. `founder`: the swarm's founder key.

    Raises:
        InvalidRequest: none, too many, or something that is no token's id.
    """
    ids = frozenset(token_ids)
    if not 1 <= len(ids) <= limits.MAX_REVOKED_TOKENS:
        raise InvalidRequest(
            f"{len(ids)} revoked tokens; a swarm carries up to {limits.MAX_REVOKED_TOKENS}: begin a new one"
        )
    try:
        packed = [bytes.fromhex(each) for each in sorted(ids)]
    except ValueError:
        packed = []
    if not packed or any(len(each) != TOKEN_ID_BYTES for each in packed):
        raise InvalidRequest(f"a token's id has {2 * TOKEN_ID_BYTES} hex digits")
    fields: dict[int, object] = {1: 1, 2: founder.public_key, 3: len(ids), _IDS_KEY: b"".join(packed)}
    signature = founder.sign(REVOCATION_CONTEXT + msgpack.packb(fields))
    return RevocationList(ids, msgpack.packb({**fields, 5: signature}))


def read_revocations(encoded: bytes, founder_key: bytes) -> RevocationList:
    """Check and decode a list that anybody may have handed us.

    Raises:
        RecordRejected: oversize, malformed, not canonical, or another founder's. AuthenticationFailed: not signed.
    """
    if len(encoded) > limits.MAX_REVOCATION_BYTES:
        raise RecordRejected(f"a revocation list of {len(encoded)} bytes")
    fields = _unpack(encoded)
    try:
        _VERSION.check(fields[1])
        number, signature = _NUMBER.check(fields[3]), _SIGNATURE.check(fields[5])
        if _FOUNDER_KEY.check(fields[2]) != founder_key:
            raise RecordRejected("a revocation list of another swarm")
    except Malformed as error:
        raise RecordRejected(f"a revocation list out of bounds: {error}") from error
    unsigned = {key: fields[key] for key in sorted(_KEYS - {5})}
    if msgpack.packb({**unsigned, 5: signature}) != encoded:
        raise RecordRejected("a revocation list that is not canonical")
    verify(peer_id_of(founder_key), signature, REVOCATION_CONTEXT + msgpack.packb(unsigned))
    return RevocationList(_ids(fields[_IDS_KEY], number), encoded)


def list_name(founder_key: bytes) -> str:
    """What a file with the list is called, so that those of several swarms can lie side by side."""
    return founder_key.hex()[:16]


class RevocationBook:
    """The latest list that was seen, and all that earlier ones said; nothing in it is ever taken back."""

    def __init__(self, founder_key: bytes) -> None:
        self.latest: RevocationList | None = None
        self._founder_key = founder_key
        self._revoked: frozenset[str] = frozenset()

    def __call__(self, token_id: str) -> bool:
        """Whether this token was revoked."""
        return token_id in self._revoked

    def take(self, encoded: bytes) -> bool:
        """Take a list if it is later than what we know; False: we have this very one.

        Raises:
            RecordRejected: forged, damaged, or a roll-back to an earlier one. AuthenticationFailed: not the founder's.
        """
        if self.latest is not None and encoded == self.latest.encoded:
            return False
        found = read_revocations(encoded, self._founder_key)
        if self.latest is not None and found.number <= self.latest.number:
            raise RecordRejected(f"revocation list {found.number} after {self.latest.number}")
        self.latest = found
        self._revoked |= found.token_ids
        return True


def _unpack(encoded: bytes) -> dict[int, object]:
    try:
        fields = msgpack.unpackb(
            encoded, strict_map_key=False, max_bin_len=limits.MAX_REVOKED_TOKENS * TOKEN_ID_BYTES, max_str_len=0,
            max_array_len=0, max_map_len=len(_KEYS), max_ext_len=0,
        )  # fmt: skip
    except Exception as error:  # msgpack raises ValueError and a tree of its own
        raise RecordRejected("a revocation list that is not msgpack") from error
    if type(fields) is not dict or fields.keys() != _KEYS:
        raise RecordRejected("a revocation list with other fields")
    return fields


def _ids(packed: object, number: int) -> frozenset[str]:
    if type(packed) is not bytes or len(packed) != number * TOKEN_ID_BYTES:
        raise RecordRejected("a revocation list whose number is not that of its tokens")
    ids = [packed[start : start + TOKEN_ID_BYTES].hex() for start in range(0, len(packed), TOKEN_ID_BYTES)]
    if any(first >= second for first, second in pairwise(ids)):
        raise RecordRejected("a revocation list that is not in ascending order")
    return frozenset(ids)
