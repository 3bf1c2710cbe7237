"""SYNC, the directory's one exchange: a peer tells a keeper that it is alive and hears who else is (PROTOCOL.md §7.3).

Sans-IO codec. A request says our pulse, and our record where the keeper lacks it; asks for the summary of a model's
roster (a tag and a pulse for each holder) or for the records of some tags; and passes a revocation list on. All bounds
are checked before a value is used, and there is one way to write a message.
"""

from dataclasses import dataclass
from enum import IntEnum

import msgpack

from shoal.protocol import limits
from shoal.protocol.errors import Malformed
from shoal.protocol.identity import SIGNATURE_BYTES
from shoal.protocol.messages import BytesField, IntField
from shoal.protocol.pulses import PULSE_BYTES
from shoal.protocol.record_book import TAG_BYTES
from shoal.protocol.version import DIRECTORY_VERSION

SEAL_BYTES = 28
"""What a sealed record or list is longer (`record_seal.py`)."""

INDEX_BYTES = 2
ENTRY_BYTES = TAG_BYTES + INDEX_BYTES + PULSE_BYTES
MAX_SEALED_RECORD_BYTES = limits.MAX_RECORD_BYTES + SEAL_BYTES
MAX_SEALED_LIST_BYTES = limits.MAX_REVOCATION_BYTES + SEAL_BYTES

_VERSION = IntField(1, "version", DIRECTORY_VERSION, DIRECTORY_VERSION)
_PLACE = BytesField(2, "place", 32)
_INDEX = IntField(4, "index", 0, limits.MAX_PULSE)
_PULSE = BytesField(5, "pulse", PULSE_BYTES)
_SUMMARY_WANTED = IntField(6, "summary_wanted", 1, 1)
_WORD = BytesField(10, "word", 16)
_LIST_NUMBER = IntField(8, "list_number", 1, limits.MAX_REVOKED_TOKENS)
_STATUS = IntField(2, "status", 0, 3)
_KEY = BytesField(0, "public_key", 32)


class Status(IntEnum):
    """What a keeper did with what it was told."""

    NOTHING = 0
    """It was told nothing."""
    KEPT = 1
    UNKNOWN = 2
    """It lacks the record that the pulse is of."""
    REFUSED = 3


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """`place`: the roster's name. `record`: sealed, empty where the keeper should have it; `pulse`: empty to tell
    nothing. `tags`: whose records are wanted. `list_number`: of the latest revocation list that we know, 0 for none;
    `revocations`: that list, sealed, where the keeper lacks it. `word`: that we are a member (`record_seal.py`); empty
    in an open swarm."""

    place: bytes
    record: bytes = b""
    index: int = 0
    pulse: bytes = b""
    is_summary_wanted: bool = False
    tags: tuple[bytes, ...] = ()
    list_number: int = 0
    revocations: bytes = b""
    word: bytes = b""


@dataclass(frozen=True, slots=True)
class Sign:
    """That the holder whose record has this tag is alive."""

    tag: bytes
    index: int
    pulse: bytes


@dataclass(frozen=True, slots=True)
class SentRecord:
    """A record as its keeper passes it on. `sealed`: see `record_seal.py`."""

    public_key: bytes
    sealed: bytes
    index: int
    pulse: bytes


@dataclass(frozen=True, slots=True)
class SyncReply:
    """`list_number`, `revocations`: as in the request; the list itself where the asker lacks it."""

    status: Status
    summary: tuple[Sign, ...] = ()
    records: tuple[SentRecord, ...] = ()
    list_number: int = 0
    revocations: bytes = b""


def encode_request(request: SyncRequest) -> bytes:
    """The bytes of a request of ours."""
    fields: dict[int, object] = {
        1: DIRECTORY_VERSION, 2: request.place, 3: request.record,
        4: request.index if request.pulse else None, 5: request.pulse,
        6: int(request.is_summary_wanted), 7: b"".join(request.tags), 8: request.list_number, 9: request.revocations,
        10: request.word,
    }  # fmt: skip
    return _pack({key: value for key, value in fields.items() if value or (value == 0 and key == 4)})


def decode_request(data: bytes) -> SyncRequest:
    """
    Raises:
        Malformed: anything but what `encode_request` makes.
    """
    fields = _unpack(data, 10, MAX_SEALED_RECORD_BYTES + MAX_SEALED_LIST_BYTES + 1024)
    _VERSION.check(fields.get(1))
    if (4 in fields) != (5 in fields) or (3 in fields and 5 not in fields):
        raise Malformed("a record or an index without a pulse")
    return SyncRequest(
        _PLACE.check(fields.get(2)),
        _bytes_of(fields, 3, MAX_SEALED_RECORD_BYTES),
        _INDEX.check(fields.get(4, 0)),
        _PULSE.check(fields[5]) if 5 in fields else b"",
        bool(_SUMMARY_WANTED.check(fields[6])) if 6 in fields else False,
        tuple(_split(_bytes_of(fields, 7, limits.MAX_TAGS_PER_SYNC * TAG_BYTES), TAG_BYTES)),
        _LIST_NUMBER.check(fields[8]) if 8 in fields else 0,
        _bytes_of(fields, 9, MAX_SEALED_LIST_BYTES),
        _WORD.check(fields[10]) if 10 in fields else b"",
    )


def encode_reply(reply: SyncReply) -> bytes:
    """The bytes of a reply of ours."""
    fields: dict[int, object] = {
        1: DIRECTORY_VERSION, 2: int(reply.status), 3: b"".join(map(_entry, reply.summary)),
        4: [[sent.public_key, sent.sealed, sent.index, sent.pulse] for sent in reply.records],
        5: reply.list_number, 6: reply.revocations,
    }  # fmt: skip
    return _pack({key: value for key, value in fields.items() if value or key == 2})


def decode_reply(data: bytes) -> SyncReply:
    """
    Raises:
        Malformed: anything but what `encode_reply` makes.
    """
    fields = _unpack(data, 6, limits.MAX_SYNC_BYTES)
    _VERSION.check(fields.get(1))
    records = fields.get(4, ())
    if 4 in fields and (type(records) is not list or not records):
        raise Malformed("records that are no list")
    return SyncReply(
        Status(_STATUS.check(fields.get(2))),
        tuple(map(_sign, _split(_bytes_of(fields, 3, limits.MAX_HOLDERS_PER_MODEL * ENTRY_BYTES), ENTRY_BYTES))),
        tuple(map(_sent, records)),  # type: ignore[call-overload]  # a list or empty
        _LIST_NUMBER.check(fields[5]) if 5 in fields else 0,
        _bytes_of(fields, 6, MAX_SEALED_LIST_BYTES),
    )


def _pack(fields: dict[int, object]) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return packed


def _unpack(data: bytes, max_fields: int, max_bytes: int) -> dict[int, object]:
    if len(data) > max_bytes:
        raise Malformed(f"a SYNC of {len(data)} bytes")
    try:
        fields = msgpack.unpackb(
            data, strict_map_key=False, max_str_len=0, max_bin_len=limits.MAX_HOLDERS_PER_MODEL * ENTRY_BYTES,
            max_array_len=limits.MAX_TAGS_PER_SYNC, max_map_len=max_fields, max_ext_len=0,
        )  # fmt: skip
    except Exception as error:  # msgpack raises ValueError and a tree of its own
        raise Malformed("a SYNC that is not msgpack") from error
    if type(fields) is not dict or any(type(key) is not int or not 1 <= key <= max_fields for key in fields):
        raise Malformed("a SYNC with other fields")
    if list(fields) != sorted(fields) or msgpack.packb(fields) != data:
        raise Malformed("a SYNC that is not canonical")
    return fields


def _bytes_of(fields: dict[int, object], key: int, max_bytes: int) -> bytes:
    """An optional byte string: absent or 1 to `max_bytes` long."""
    if key not in fields:
        return b""
    value = fields[key]
    if type(value) is not bytes or not 0 < len(value) <= max_bytes:
        raise Malformed(f"field {key} is not 1 to {max_bytes} bytes")
    return value


def _split(data: bytes, size: int) -> list[bytes]:
    if len(data) % size:
        raise Malformed(f"{len(data)} bytes are no multiple of {size}")
    return [data[start : start + size] for start in range(0, len(data), size)]


def _entry(sign: Sign) -> bytes:
    return sign.tag + sign.index.to_bytes(INDEX_BYTES, "big") + sign.pulse


def _sign(entry: bytes) -> Sign:
    index = int.from_bytes(entry[TAG_BYTES : TAG_BYTES + INDEX_BYTES], "big")
    return Sign(entry[:TAG_BYTES], _INDEX.check(index), entry[TAG_BYTES + INDEX_BYTES :])


def _sent(item: object) -> SentRecord:
    match item:
        case [key, bytes(sealed), index, pulse] if SIGNATURE_BYTES < len(sealed) <= MAX_SEALED_RECORD_BYTES:
            return SentRecord(_KEY.check(key), sealed, _INDEX.check(index), _PULSE.check(pulse))
    raise Malformed("a record that is no list of key, record, index and pulse")
