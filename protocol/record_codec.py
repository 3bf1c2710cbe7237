"""A node's record as signed bytes (PROTOCOL.md §7).

Sans-IO. A record's owner is the key that signed it, so nobody can speak for another. Validation order (R12): size, map
shape and bounds, key and owner, signature, canonical form; only then is a value used. Time is `record_book.py`'s.
"""

import msgpack

from shoal.protocol import limits
from shoal.protocol.errors import AuthenticationFailed, InvalidRequest, Malformed, RecordRejected
from shoal.protocol.identity import SIGNATURE_BYTES, Identity, peer_id_of, verify
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.membership import VOUCHER_BYTES
from shoal.protocol.messages import MAX_U32, BytesField, IntField
from shoal.protocol.pulses import PULSE_BYTES
from shoal.protocol.records import Experts, NodeRecord, is_zone
from shoal.protocol.version import DIRECTORY_VERSION, RECORD_CONTEXT

MAX_BITMAP_BYTES = limits.MAX_EXPERTS_PER_FRAME // 8
MAX_MS = 2**63 - 1
MAX_FIELDS = 21
GIVES_TRUNK = 2
"""Bit of `roles`; the other seven are for roles to come, and mean nothing yet."""

_SCALARS = (
    IntField(1, "version", DIRECTORY_VERSION, DIRECTORY_VERSION),
    BytesField(2, "public_key", 32),
    BytesField(3, "model_root", 32),
    IntField(5, "weight_format", 1, 7),
    IntField(6, "roundings", 1, 3),
    IntField(7, "kernel_class", 0, 255),
    IntField(8, "capacity_mmacs", 0, MAX_U32),
    IntField(9, "queue_ms", 0, limits.MAX_DURATION_MS),
    IntField(11, "issued_ms", 0, MAX_MS),
    BytesField(12, "pulse", PULSE_BYTES),
)
_EXPERTS_KEY, _ADDRESSES_KEY = 4, 10
_SIGNATURE = BytesField(13, "signature", SIGNATURE_BYTES)

_OPTIONAL_SCALARS: tuple[IntField | BytesField, ...] = (
    IntField(15, "since_s", 1, MAX_MS),
    IntField(16, "room", 1, MAX_U32),
    IntField(17, "roles", 1, 255),
    IntField(20, "read_ms", 1, limits.MAX_DURATION_MS),
    BytesField(21, "voucher", VOUCHER_BYTES),
)
_COMING_KEY, _ZONE_KEY, _COLD_KEY = 14, 18, 19
_OPTIONAL_KEYS = {_COMING_KEY, _ZONE_KEY, _COLD_KEY, *(field.key for field in _OPTIONAL_SCALARS)}
"""Left out where they would say nothing, so that there is one way to write a record."""

_REQUIRED_KEYS = {_EXPERTS_KEY, _ADDRESSES_KEY, *(field.key for field in _SCALARS)}


def encode_record(record: NodeRecord, identity: Identity) -> bytes:
    """Sign and encode our own record; at most 8 KiB.

    Raises:
        InvalidRequest: not our record, or over a limit.
    """
    if record.peer != identity.peer:
        raise InvalidRequest(f"{identity.peer} can not sign a record of {record.peer}")
    try:
        fields = _fields_of(record, identity)
        _check_fields(fields)
    except Malformed as error:
        raise InvalidRequest(f"our own record is out of bounds: {error}") from error
    encoded = _packed(fields, identity.sign(RECORD_CONTEXT + msgpack.packb(fields)))
    if len(encoded) > limits.MAX_RECORD_BYTES:
        raise InvalidRequest(f"our own record has {len(encoded)} bytes; the limit is {limits.MAX_RECORD_BYTES}")
    return encoded


def decode_record(data: bytes, owner: PeerId) -> NodeRecord:
    """Check and decode a record that the directory gave as `owner`'s.

    Raises:
        RecordRejected: oversize, malformed, not canonical, or not signed by `owner`.
    """
    if len(data) > limits.MAX_RECORD_BYTES:
        raise RecordRejected(f"a record of {len(data)} bytes")
    fields = _unpack(data)
    try:
        signature = _SIGNATURE.check(fields.pop(_SIGNATURE.key, None))
        _check_fields(fields)
        if peer_id_of(BytesField(2, "public_key", 32).check(fields[2])) != owner:
            raise RecordRejected("a record under somebody else's name")
        verify(owner, signature, RECORD_CONTEXT + msgpack.packb(fields))
    except (Malformed, AuthenticationFailed) as error:
        raise RecordRejected(f"a record of {owner} that is malformed or forged: {error}") from error
    if _packed(fields, signature) != data:
        raise RecordRejected("a record that is not canonical")
    return _from_fields(fields, owner)


def owner_of(data: bytes) -> PeerId:
    """Whose record this claims to be; the signature is not checked.

    Raises:
        RecordRejected: not a record.
    """
    if len(data) > limits.MAX_RECORD_BYTES:
        raise RecordRejected(f"a record of {len(data)} bytes")
    try:
        return peer_id_of(BytesField(2, "public_key", 32).check(_unpack(data).get(2)))
    except (Malformed, AuthenticationFailed) as error:
        raise RecordRejected("a record without an owner") from error


def _fields_of(record: NodeRecord, identity: Identity) -> dict[int, object]:
    fields: dict[int, object] = {
        1: DIRECTORY_VERSION,
        2: identity.public_key,
        3: record.model_root,
        _EXPERTS_KEY: _bitmaps(record.experts),
        5: int(record.weight_format),
        6: record.roundings,
        7: record.kernel_class,
        8: record.capacity_mmacs,
        9: record.queue_ms,
        _ADDRESSES_KEY: list(record.addresses),
        11: record.issued_ms,
        12: record.pulse,
        _COMING_KEY: _bitmaps(record.coming),
        15: record.since_s,
        16: record.room,
        17: GIVES_TRUNK * record.gives_trunk,
        _ZONE_KEY: record.zone,
        _COLD_KEY: _bitmaps(record.cold),
        20: record.read_ms,
        21: record.voucher,
    }
    return {key: value for key, value in fields.items() if key not in _OPTIONAL_KEYS or value}


def _packed(fields: dict[int, object], signature: bytes) -> bytes:
    """All fields, by key."""
    packed: bytes = msgpack.packb(dict(sorted({**fields, _SIGNATURE.key: signature}.items())))
    return packed


def _bitmaps(experts: Experts) -> dict[int, bytes]:
    """By layer: bit e of byte e // 8 (least significant first) is set if expert e is held; no trailing zero bytes."""
    return {int(layer): _bitmap(held) for layer, held in sorted(experts.items()) if held}


def _bitmap(experts: frozenset[ExpertId]) -> bytes:
    bitmap = bytearray(max(experts) // 8 + 1)
    for expert in experts:
        bitmap[expert // 8] |= 1 << expert % 8
    return bytes(bitmap)


def _experts(bitmap: bytes) -> frozenset[ExpertId]:
    return frozenset(ExpertId(i) for i in range(8 * len(bitmap)) if bitmap[i // 8] >> i % 8 & 1)


def _unpack(data: bytes) -> dict[int, object]:
    try:
        fields = msgpack.unpackb(
            data, strict_map_key=False, max_str_len=limits.MAX_ADDRESS_BYTES, max_bin_len=VOUCHER_BYTES,
            max_array_len=limits.MAX_ADDRESSES, max_map_len=limits.MAX_LAYER + 1, max_ext_len=0,
        )  # fmt: skip
    except Exception as error:  # msgpack raises ValueError and a tree of its own
        raise RecordRejected("a record that is not msgpack") from error
    if type(fields) is not dict or len(fields) > MAX_FIELDS or any(type(key) is not int for key in fields):
        raise RecordRejected("a record that is not a map with integer keys")
    return fields


def _check_fields(fields: dict[int, object]) -> None:
    if fields.keys() - _OPTIONAL_KEYS != _REQUIRED_KEYS:
        raise Malformed(f"fields {sorted(fields)}")
    for field in _scalars_in(fields):
        field.check(fields[field.key])
    _check_bitmaps(fields[_EXPERTS_KEY])
    for key in (_COMING_KEY, _COLD_KEY):
        if key in fields and not _check_bitmaps(fields[key]):
            raise Malformed("an empty map that should have been left out")
    if _ZONE_KEY in fields:
        _check_zone(fields[_ZONE_KEY])
    _check_addresses(fields[_ADDRESSES_KEY])


def _scalars_in(fields: dict[int, object]) -> list[IntField | BytesField]:
    return [*_SCALARS, *(field for field in _OPTIONAL_SCALARS if field.key in fields)]


def _check_bitmaps(bitmaps: object) -> dict[int, bytes]:
    if type(bitmaps) is not dict or any(type(layer) is not int for layer in bitmaps):
        raise Malformed("experts that are not a map by layer")
    if list(bitmaps) != sorted(bitmaps) or any(not 0 <= layer <= limits.MAX_LAYER for layer in bitmaps):
        raise Malformed(f"layers that are not ascending within 0..{limits.MAX_LAYER}")
    for bitmap in bitmaps.values():
        if type(bitmap) is not bytes or not 0 < len(bitmap) <= MAX_BITMAP_BYTES or bitmap.endswith(b"\x00"):
            raise Malformed("a bitmap that is empty, too long or ends in zeros")
    return bitmaps


def _check_zone(zone: object) -> None:
    if type(zone) is not str or not is_zone(zone):
        raise Malformed("a zone that is not 1 to 16 bytes of a-z, 0-9 and -")


def _check_addresses(addresses: object) -> None:
    if not isinstance(addresses, list) or len(addresses) > limits.MAX_ADDRESSES:
        raise Malformed("too many addresses")
    for address in addresses:
        if type(address) is not str or not 0 < len(address.encode()) <= limits.MAX_ADDRESS_BYTES:
            raise Malformed("an address that is no short text")


def _from_fields(fields: dict[int, object], owner: PeerId) -> NodeRecord:
    values = {field.name: fields[field.key] for field in _scalars_in(fields)}
    roles = values.pop("roles", 0)
    del values["version"], values["public_key"]
    return NodeRecord(
        peer=owner,
        experts=_by_layer(fields[_EXPERTS_KEY]),
        addresses=tuple(fields[_ADDRESSES_KEY]),  # type: ignore[arg-type]  # checked by _check_fields
        coming=_by_layer(fields.get(_COMING_KEY, {})),
        gives_trunk=bool(roles & GIVES_TRUNK),  # type: ignore[operator]  # as checked
        zone=str(fields.get(_ZONE_KEY, "")),
        cold=_by_layer(fields.get(_COLD_KEY, {})),
        **values,  # type: ignore[arg-type]  # the scalars that _check_fields has checked, by name
    )


def _by_layer(bitmaps: object) -> Experts:
    return {LayerId(layer): _experts(bitmap) for layer, bitmap in bitmaps.items()}  # type: ignore[attr-defined]
