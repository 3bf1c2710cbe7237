"""Holder records: "I hold these experts of this layer, in this format, and here is where I am", signed (PROTOCOL.md
§7).

Sans-IO: time and identity are arguments. A record's owner is the key that signed it; the directory's subkey must be
that peer id, so nobody can speak for another. Validation order (R12): size, map shape, signature, time; only then is a
value used. A record is a hint until its holder passes a known-answer challenge.
"""

import re
from dataclasses import dataclass

import msgpack
from blake3 import blake3

from shoal.protocol import limits
from shoal.protocol.errors import AuthenticationFailed, InvalidRequest, Malformed, RecordRejected
from shoal.protocol.identity import SIGNATURE_BYTES, Identity, peer_id_of, verify
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.messages import MAX_U32, BytesField, IntField
from shoal.protocol.version import DIRECTORY_KEY_CONTEXT, RECORD_CONTEXT

MAX_BITMAP_BYTES = limits.MAX_EXPERTS_PER_FRAME // 8
MAX_SEQ = 2**63 - 1
MAX_ZONE_BYTES = 16
MAX_FIELDS = 19

_SCALARS = (
    IntField(1, "version", 1, 1),
    BytesField(2, "public_key", 32),
    BytesField(3, "model_root", 32),
    IntField(4, "layer", 0, limits.MAX_LAYER),
    IntField(6, "weight_format", 1, 7),
    IntField(7, "roundings", 1, 3),
    IntField(8, "kernel_class", 0, 255),
    IntField(9, "capacity_mmacs", 0, MAX_U32),
    IntField(10, "queue_ms", 0, limits.MAX_DURATION_MS),
    IntField(12, "seq", 0, MAX_SEQ),
    IntField(13, "expires_ms", 0, MAX_SEQ),
)
_BITMAP_KEY, _ADDRESSES_KEY, _SIGNATURE_KEY = 5, 11, 14

_OPTIONAL_SCALARS = (
    IntField(16, "since_s", 1, MAX_SEQ),
    IntField(17, "room", 1, MAX_U32),
    IntField(18, "role", 1, 1),
)
_COMING_KEY, _ZONE_KEY = 15, 19
_OPTIONAL_KEYS = {_COMING_KEY, _ZONE_KEY, *(field.key for field in _OPTIONAL_SCALARS)}
"""Left out where they would say nothing, so that there is one way to write a record."""


@dataclass(frozen=True, slots=True)
class HolderRecord:
    """One holder's claim for one layer.

    `roundings`: bit r set = serves rounding r. `kernel_class`: 0 reference, 1 cpu, 2 cuda. `capacity_mmacs`: millions
    of multiply-accumulates per second that it offers, 0 = not measured. `addresses`: `direct` ones as `host:port`,
    libp2p ones as multiaddrs. An empty `experts` withdraws the holder; what is `coming` is not served yet.
    """

    peer: PeerId
    model_root: bytes
    layer: LayerId
    experts: frozenset[ExpertId]
    weight_format: int
    roundings: int
    kernel_class: int
    capacity_mmacs: int
    queue_ms: int
    addresses: tuple[str, ...]
    seq: int
    expires_at_s: float
    """Unix time, to the millisecond."""
    coming: frozenset[ExpertId] = frozenset()
    """Experts that it is about to hold: others need not take them."""
    since_s: int = 0
    """Unix time at which it began to be a holder, whatever it held then; 0: not said."""
    room: int = 0
    """Experts, of any layer, that it would hold besides."""
    is_anchor: bool = False
    """Everything is on its disk and slow: the last resort."""
    zone: str = ""
    """A name for its part of the network, chosen by its owner; at most 16 bytes of a-z, 0-9 and -. Empty: not said."""


def directory_key(model_root: bytes, layer: LayerId) -> bytes:
    """The 32-byte name under which the holders of a layer are found."""
    return blake3(DIRECTORY_KEY_CONTEXT + model_root + layer.to_bytes(4, "big")).digest()


def encode_record(record: HolderRecord, identity: Identity) -> bytes:
    """Sign and encode our own record; at most 2 KiB.

    Raises:
        InvalidRequest: not our record, or over a limit.
    """
    if record.peer != identity.peer:
        raise InvalidRequest(f"{identity.peer} can not sign a record of {record.peer}")
    fields: dict[int, object] = {
        1: 1,
        2: identity.public_key,
        3: record.model_root,
        4: int(record.layer),
        5: _bitmap(record.experts),
        6: int(record.weight_format),
        7: record.roundings,
        8: record.kernel_class,
        9: record.capacity_mmacs,
        10: record.queue_ms,
        11: list(record.addresses),
        12: record.seq,
        13: round(record.expires_at_s * 1000),
        _COMING_KEY: _bitmap(record.coming),
        16: record.since_s,
        17: record.room,
        18: int(record.is_anchor),
        _ZONE_KEY: record.zone,
    }
    fields = {key: value for key, value in fields.items() if key not in _OPTIONAL_KEYS or value}
    try:
        _check_fields(fields)
    except Malformed as error:
        raise InvalidRequest(f"our own record is out of bounds: {error}") from error
    encoded = _packed(fields, identity.sign(RECORD_CONTEXT + msgpack.packb(fields)))
    if len(encoded) > limits.MAX_RECORD_BYTES:
        raise InvalidRequest(f"our own record has {len(encoded)} bytes; the limit is {limits.MAX_RECORD_BYTES}")
    return encoded


def decode_record(data: bytes, owner: PeerId, now_s: float) -> HolderRecord:
    """Check and decode a record that the directory gave under `owner`'s subkey.

    `now_s`: Unix time. Raises:
        RecordRejected: oversize, malformed, not canonical, not signed by `owner`, expired, or too long-lived.
    """
    if len(data) > limits.MAX_RECORD_BYTES:
        raise RecordRejected(f"a record of {len(data)} bytes")
    fields = _unpack(data)
    try:
        signature = BytesField(_SIGNATURE_KEY, "signature", SIGNATURE_BYTES).check(fields.pop(_SIGNATURE_KEY, None))
        _check_fields(fields)
        if peer_id_of(BytesField(2, "public_key", 32).check(fields[2])) != owner:
            raise RecordRejected("a record under somebody else's name")
        verify(owner, signature, RECORD_CONTEXT + msgpack.packb(fields))
    except (Malformed, AuthenticationFailed) as error:
        raise RecordRejected(f"a record of {owner} that is malformed or forged: {error}") from error
    if _packed(fields, signature) != data:
        raise RecordRejected("a record that is not canonical")
    record = _from_fields(fields, owner)
    if not now_s < record.expires_at_s <= now_s + limits.MAX_RECORD_TTL_S + limits.MAX_CLOCK_SKEW_S:
        raise RecordRejected(f"a record that expires {record.expires_at_s - now_s:.0f} s from now")
    return record


def _packed(fields: dict[int, object], signature: bytes) -> bytes:
    """All fields, by key."""
    packed: bytes = msgpack.packb(dict(sorted({**fields, _SIGNATURE_KEY: signature}.items())))
    return packed


def _bitmap(experts: frozenset[ExpertId]) -> bytes:
    """Bit e of byte e // 8 (least significant first) is set if expert e is held; no trailing zero bytes."""
    bitmap = bytearray(max(experts, default=-1) // 8 + 1)
    for expert in experts:
        bitmap[expert // 8] |= 1 << expert % 8
    return bytes(bitmap)


def _experts(bitmap: bytes) -> frozenset[ExpertId]:
    return frozenset(ExpertId(i) for i in range(8 * len(bitmap)) if bitmap[i // 8] >> i % 8 & 1)


def _unpack(data: bytes) -> dict[int, object]:
    try:
        fields = msgpack.unpackb(
            data, strict_map_key=False, max_str_len=limits.MAX_ADDRESS_BYTES, max_bin_len=64,
            max_array_len=limits.MAX_ADDRESSES, max_map_len=MAX_FIELDS, max_ext_len=0,
        )  # fmt: skip
    except Exception as error:  # msgpack raises ValueError and a tree of its own
        raise RecordRejected("a record that is not msgpack") from error
    if type(fields) is not dict or any(type(key) is not int for key in fields):
        raise RecordRejected("a record that is not a map with integer keys")
    return fields


def _check_fields(fields: dict[int, object]) -> None:
    if fields.keys() - _OPTIONAL_KEYS != {_BITMAP_KEY, _ADDRESSES_KEY, *(field.key for field in _SCALARS)}:
        raise Malformed(f"fields {sorted(fields)}")
    for field in _scalars_in(fields):
        field.check(fields[field.key])
    _check_bitmap(fields[_BITMAP_KEY])
    if _COMING_KEY in fields and not _check_bitmap(fields[_COMING_KEY]):
        raise Malformed("an empty bitmap that should have been left out")
    if _ZONE_KEY in fields:
        _check_zone(fields[_ZONE_KEY])
    addresses = fields[_ADDRESSES_KEY]
    if not isinstance(addresses, list) or len(addresses) > limits.MAX_ADDRESSES:
        raise Malformed("too many addresses")
    for address in addresses:
        if type(address) is not str or not 0 < len(address.encode()) <= limits.MAX_ADDRESS_BYTES:
            raise Malformed("an address that is no short text")


def _scalars_in(fields: dict[int, object]) -> list[IntField | BytesField]:
    return [*_SCALARS, *(field for field in _OPTIONAL_SCALARS if field.key in fields)]


def _check_bitmap(bitmap: object) -> bytes:
    if type(bitmap) is not bytes or len(bitmap) > MAX_BITMAP_BYTES or bitmap.endswith(b"\x00"):
        raise Malformed("a bitmap that is too long or ends in zeros")
    return bitmap


def _check_zone(zone: object) -> None:
    if type(zone) is not str or not is_zone(zone):
        raise Malformed("a zone that is not 1 to 16 bytes of a-z, 0-9 and -")


def is_zone(words: str) -> bool:
    """Whether this can be the name of a zone."""
    return re.fullmatch(rf"[a-z0-9-]{{1,{MAX_ZONE_BYTES}}}", words) is not None


def _from_fields(fields: dict[int, object], owner: PeerId) -> HolderRecord:
    values = {field.name: fields[field.key] for field in _scalars_in(fields)}
    values["is_anchor"] = bool(values.pop("role", 0))
    bitmap, addresses, expires_ms = fields[_BITMAP_KEY], fields[_ADDRESSES_KEY], values.pop("expires_ms")
    del values["version"], values["public_key"]
    return HolderRecord(
        peer=owner,
        experts=_experts(bitmap),  # type: ignore[arg-type]  # checked by _check_fields
        addresses=tuple(addresses),  # type: ignore[arg-type]
        coming=_experts(fields.get(_COMING_KEY, b"")),  # type: ignore[arg-type]  # as checked
        zone=str(fields.get(_ZONE_KEY, "")),
        expires_at_s=expires_ms / 1000,  # type: ignore[operator]
        **values,  # type: ignore[arg-type]
    )
