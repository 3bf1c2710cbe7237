"""Invite tokens: what one friend sends another to join a swarm (PROTOCOL.md §7).

    shoal2 | base64url without padding of the canonical msgpack map
             {1: version, 2: model root, 3: [multiaddr, …], 4: founder key, 5: directory secret, 6: token seed,
              7: certificate, 8: digest of the list of small files}
    shoal1 | the same without keys 4-7: an open swarm

Key 8 may be missing: such a token is for those who have the model's small files already.

Sans-IO. A `shoal2` token is a secret: whoever has it is a member until it is revoked. A `shoal1` token holds none: it
says which model and through whom.
"""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

import msgpack

from shoal.protocol import limits
from shoal.protocol.errors import InvalidRequest, Malformed
from shoal.protocol.identity import public_key_of
from shoal.protocol.ids import PeerId
from shoal.protocol.membership import Membership
from shoal.protocol.messages import BytesField, IntField

TOKEN_PREFIX = "shoal1"
"""Makes a token of an open swarm recognizable in a chat, and carries the version of its form."""

PRIVATE_PREFIX = "shoal2"
"""The same for a private swarm."""

MAX_TOKEN_CHARACTERS = 2048
"""Eight addresses of the greatest length need 1,800; a token should still fit into one message."""

_OWN_FIRST = 4
"""Of a token's eight addresses, those of whoever invites that come before other members'."""

_VERSION = IntField(1, "version", 1, 2)
_MODEL_ROOT = BytesField(2, "model_root", 32)
_BOOTSTRAP_KEY = 3
_MEMBERSHIP = (
    BytesField(4, "founder_key", 32),
    BytesField(5, "directory_secret", 32),
    BytesField(6, "token_seed", 32),
    BytesField(7, "certificate", 64),
)
_FILES = BytesField(8, "files", 32)
_OPEN_KEYS = {1, 2, _BOOTSTRAP_KEY}
_PRIVATE_KEYS = _OPEN_KEYS | {field.key for field in _MEMBERSHIP}


@dataclass(frozen=True, slots=True)
class Invite:
    """The way into a swarm. `bootstrap`: 1 to 8 multiaddrs of peers, each ending in `/p2p/<peer id>`.

    `membership`: what lets us into a private swarm; None: the swarm is open. `files`: BLAKE3 of the list of the model's
    small files (`model_files.py`), which the inviter vouches for; None: not said.
    """

    model_root: bytes
    bootstrap: tuple[str, ...]
    membership: Membership | None = None
    files: bytes | None = None


def is_token(word: str) -> bool:
    """Whether a word wants to be a token; `decode_invite` says whether it is one."""
    return word.startswith((TOKEN_PREFIX, PRIVATE_PREFIX))


def memberships(words: Iterable[str]) -> list[Membership]:
    """The memberships in the tokens among `words`.

    Raises:
        InvalidRequest: one of them is mangled.
    """
    invites = [decode_invite(word) for word in words if is_token(word)]
    return [invite.membership for invite in invites if invite.membership is not None]


def is_loopback(address: str) -> bool:
    """Whether a multiaddr leads back to the machine that dials it."""
    parts = address.split("/")
    try:
        return len(parts) > 2 and parts[1] in ("ip4", "ip6") and ip_address(parts[2]).is_loopback
    except ValueError:
        return False


def bootstrap_of(own: Iterable[str], others: Iterable[str] = ()) -> tuple[str, ...]:
    """Addresses for a token that goes to another machine: a few of our own, then one of each other member, then more.

    Loopback is named only if there is nothing else, for then the whole swarm is on this machine, where any member's is
    as good as ours. At most `limits.MAX_ADDRESSES`, all different.
    """
    ours, theirs = list(own), list(others)
    outside = [address for address in ours if not is_loopback(address)]
    wanted = [*outside[:_OWN_FIRST], *(each for each in theirs if not is_loopback(each)), *outside[_OWN_FIRST:]]
    inside = [*ours[:_OWN_FIRST], *theirs, *ours[_OWN_FIRST:]]
    return tuple(dict.fromkeys(wanted or inside))[: limits.MAX_ADDRESSES]


def encode_invite(invite: Invite) -> str:
    """Make the token of an invite.

    Raises:
        InvalidRequest: the root is not 32 bytes, or the addresses are too many, too long or not multiaddrs of peers.
    """
    member = invite.membership
    fields: dict[int, object] = {
        1: 1 if member is None else 2,
        2: invite.model_root,
        _BOOTSTRAP_KEY: list(invite.bootstrap),
    }
    if member is not None:
        fields |= {field.key: getattr(member, field.name) for field in _MEMBERSHIP}
    if invite.files is not None:
        fields[_FILES.key] = invite.files
    prefix = TOKEN_PREFIX if member is None else PRIVATE_PREFIX
    _read(fields, prefix)
    return prefix + base64.urlsafe_b64encode(msgpack.packb(fields)).decode().rstrip("=")


def decode_invite(token: str) -> Invite:
    """Read a token that a user was given; surrounding white space is forgiven.

    Raises:
        InvalidRequest: not a token, mangled on its way, or of a version that we do not know. It never quotes the token.
    """
    token = token.strip()
    if not is_token(token) or len(token) > MAX_TOKEN_CHARACTERS:
        raise InvalidRequest(
            f"an invite token is {PRIVATE_PREFIX}… or {TOKEN_PREFIX}… of at most {MAX_TOKEN_CHARACTERS} characters"
        )
    prefix = token[: len(TOKEN_PREFIX)]
    invite = _read(_unpack(token.removeprefix(prefix)), prefix)
    if encode_invite(invite) != token:
        raise InvalidRequest("the invite token is damaged: ask for it again")
    return invite


def _unpack(text: str) -> object:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgpack.unpackb(
            data, strict_map_key=False, max_str_len=limits.MAX_ADDRESS_BYTES, max_bin_len=64,
            max_array_len=limits.MAX_ADDRESSES, max_map_len=len(_PRIVATE_KEYS) + 1, max_ext_len=0,
        )  # fmt: skip
    except (ValueError, binascii.Error) as error:  # msgpack's errors are ValueErrors
        raise InvalidRequest("the invite token is damaged: ask for it again") from error


def _read(fields: object, prefix: str) -> Invite:
    is_private = prefix == PRIVATE_PREFIX
    if not isinstance(fields, dict) or fields.keys() - {_FILES.key} != (_PRIVATE_KEYS if is_private else _OPEN_KEYS):
        raise InvalidRequest("an invite has a version, a model root and addresses, and a private one its keys")
    try:
        if _VERSION.check(fields[1]) != (2 if is_private else 1):
            raise Malformed("a version that its first word denies")
        member = Membership(*(field.check(fields[field.key]) for field in _MEMBERSHIP)) if is_private else None
        files = _FILES.check(fields[_FILES.key]) if _FILES.key in fields else None
        return Invite(_MODEL_ROOT.check(fields[2]), _addresses(fields[_BOOTSTRAP_KEY]), member, files)
    except Malformed as error:
        raise InvalidRequest(f"an invite that leads nowhere: {error}") from error


def _addresses(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= limits.MAX_ADDRESSES:
        raise Malformed(f"not 1 to {limits.MAX_ADDRESSES} addresses")
    for address in value:
        if type(address) is not str or not (address.startswith("/") and address.isascii() and address.isprintable()):
            raise Malformed(f"{address!r} is no multiaddr")
        if len(address) > limits.MAX_ADDRESS_BYTES:
            raise Malformed(f"an address of {len(address)} characters")
        public_key_of(PeerId(address.rpartition("/p2p/")[2]))
    return tuple(value)
