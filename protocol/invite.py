"""Invite tokens: what one friend sends another to join a private swarm (PROTOCOL.md §7).

    shoal1 | base64url without padding of the canonical msgpack map {1: version, 2: model root, 3: [multiaddr, …]}

Sans-IO. A token holds no secret: it says which model and through whom, and whoever has it can find the swarm.
"""

import base64
import binascii
from dataclasses import dataclass

import msgpack

from shoal.protocol import limits
from shoal.protocol.errors import InvalidRequest, Malformed
from shoal.protocol.identity import public_key_of
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import BytesField, IntField

TOKEN_PREFIX = "shoal1"
"""Makes a token recognizable in a chat, and carries the version of its form."""

MAX_TOKEN_CHARACTERS = 2048
"""Eight addresses of the greatest length need 1,500; a token should still fit into one message."""

_VERSION = IntField(1, "version", 1, 1)
_MODEL_ROOT = BytesField(2, "model_root", 32)
_BOOTSTRAP_KEY = 3


@dataclass(frozen=True, slots=True)
class Invite:
    """The way into a swarm. `bootstrap`: 1 to 8 multiaddrs of peers, each ending in `/p2p/<peer id>`."""

    model_root: bytes
    bootstrap: tuple[str, ...]


def encode_invite(invite: Invite) -> str:
    """Make the token of an invite.

    Raises:
        InvalidRequest: the root is not 32 bytes, or the addresses are too many, too long or not multiaddrs of peers.
    """
    fields = {1: 1, 2: invite.model_root, _BOOTSTRAP_KEY: list(invite.bootstrap)}
    _read(fields)
    return TOKEN_PREFIX + base64.urlsafe_b64encode(msgpack.packb(fields)).decode().rstrip("=")


def decode_invite(token: str) -> Invite:
    """Read a token that a user was given; surrounding white space is forgiven.

    Raises:
        InvalidRequest: not a token, mangled on its way, or of a version that we do not know.
    """
    token = token.strip()
    if not token.startswith(TOKEN_PREFIX) or len(token) > MAX_TOKEN_CHARACTERS:
        raise InvalidRequest(f"an invite token is {TOKEN_PREFIX}… of at most {MAX_TOKEN_CHARACTERS} characters")
    invite = _read(_unpack(token.removeprefix(TOKEN_PREFIX)))
    if encode_invite(invite) != token:
        raise InvalidRequest("the invite token is damaged: ask for it again")
    return invite


def _unpack(text: str) -> object:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgpack.unpackb(
            data, strict_map_key=False, max_str_len=limits.MAX_ADDRESS_BYTES, max_bin_len=32,
            max_array_len=limits.MAX_ADDRESSES, max_map_len=3, max_ext_len=0,
        )  # fmt: skip
    except (ValueError, binascii.Error) as error:  # msgpack's errors are ValueErrors
        raise InvalidRequest("the invite token is damaged: ask for it again") from error


def _read(fields: object) -> Invite:
    if not isinstance(fields, dict) or fields.keys() != {1, 2, _BOOTSTRAP_KEY}:
        raise InvalidRequest("an invite has a version, a model root and addresses")
    try:
        _VERSION.check(fields[1])
        return Invite(_MODEL_ROOT.check(fields[2]), _addresses(fields[_BOOTSTRAP_KEY]))
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
