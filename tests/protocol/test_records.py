"""Holder records: nobody speaks for another, nobody speaks too long, nobody says more than there is room for."""

from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol import limits
from shoal.protocol.errors import InvalidRequest, RecordRejected
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.records import HolderRecord, decode_record, directory_key, encode_record
from shoal.protocol.version import RECORD_CONTEXT

OWNER, MALLORY = Identity.from_seed(b"o" * 32), Identity.from_seed(b"m" * 32)
NOW_S = 1_800_000_000.0
RECORD = HolderRecord(
    peer=OWNER.peer, model_root=b"r" * 32, layer=LayerId(3), experts=frozenset(map(ExpertId, (0, 9, 255))),
    weight_format=1, roundings=2, kernel_class=1, capacity_mmacs=12_000, queue_ms=4,
    addresses=("192.0.2.7:4001", "/ip4/192.0.2.7/tcp/4002"), seq=7, expires_at_s=NOW_S + 90,
)  # fmt: skip


def fields_of(data: bytes) -> dict[int, object]:
    return msgpack.unpackb(data, strict_map_key=False)


def signed(fields: dict[int, object], identity: Identity = OWNER) -> bytes:
    """A record with the signature that `identity` would give, whatever the fields say."""
    fields = {key: value for key, value in fields.items() if key != 14}
    full = fields | {14: identity.sign(RECORD_CONTEXT + msgpack.packb(fields))}
    return msgpack.packb(dict(sorted(full.items())))


def test_a_record_survives_the_directory():
    data = encode_record(RECORD, OWNER)
    assert decode_record(data, OWNER.peer, NOW_S) == RECORD
    assert signed(fields_of(data)) == data


@given(
    st.frozensets(st.integers(0, 511)), st.integers(0, limits.MAX_LAYER), st.integers(0, 2**63 - 1),
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=32), max_size=8),
)  # fmt: skip
def test_every_honest_record_survives(experts, layer, seq, addresses):
    record = replace(RECORD, experts=experts, layer=layer, seq=seq, addresses=tuple(addresses))
    assert decode_record(encode_record(record, OWNER), OWNER.peer, NOW_S) == record


@given(
    st.frozensets(st.integers(0, 511)), st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), st.booleans(),
    st.from_regex(r"[a-z0-9-]{0,16}", fullmatch=True),
)  # fmt: skip
def test_what_a_holder_may_add_survives(coming, since_s, room, is_anchor, zone):
    record = replace(RECORD, coming=coming, since_s=since_s, room=room, is_anchor=is_anchor, zone=zone)
    assert decode_record(encode_record(record, OWNER), OWNER.peer, NOW_S) == record


@pytest.mark.parametrize(
    ("key", "value"),
    [(15, b""), (15, b"\x00"), (15, b"\x01" * 65), (16, 0), (17, 0), (17, 2**32), (18, 0), (18, 2), (18, True),
     (19, ""), (19, "Zone"), (19, "a" * 17), (19, b"za"), (20, 1)],
)  # fmt: skip
def test_an_addition_that_says_nothing_or_too_much_is_refused(key, value):
    with pytest.raises(RecordRejected):
        decode_record(signed(fields_of(encode_record(RECORD, OWNER)) | {key: value}), OWNER.peer, NOW_S)


def test_the_largest_record_fits():
    every = frozenset(ExpertId(i) for i in range(512))
    record = replace(
        RECORD, experts=every, coming=every, since_s=2**40, room=2**32 - 1, is_anchor=True, zone="z" * 16,
        addresses=("a" * limits.MAX_ADDRESS_BYTES,) * 8,
    )  # fmt: skip
    assert len(encode_record(record, OWNER)) <= limits.MAX_RECORD_BYTES


def test_nobody_signs_for_another():
    with pytest.raises(InvalidRequest):
        encode_record(RECORD, MALLORY)


def test_a_record_under_another_name_is_rejected():
    with pytest.raises(RecordRejected):
        decode_record(encode_record(RECORD, OWNER), MALLORY.peer, NOW_S)


def test_a_record_with_another_signature_is_rejected():
    fields = fields_of(encode_record(RECORD, OWNER))
    with pytest.raises(RecordRejected):
        decode_record(signed(fields, MALLORY), OWNER.peer, NOW_S)


@pytest.mark.parametrize("key", range(1, 15))
def test_changing_any_field_breaks_the_signature(key):
    fields = fields_of(encode_record(RECORD, OWNER))
    value = fields[key]
    changed = {int: lambda: value ^ 2, bytes: lambda: bytes([value[0] ^ 1]) + value[1:], list: lambda: ["elsewhere:1"]}
    with pytest.raises(RecordRejected):
        decode_record(msgpack.packb(fields | {key: changed[type(value)]()}), OWNER.peer, NOW_S)


@pytest.mark.parametrize("expires_in_s", [-1, 0, limits.MAX_RECORD_TTL_S + limits.MAX_CLOCK_SKEW_S + 1, 1e6])
def test_a_record_out_of_its_time_is_rejected(expires_in_s):
    data = encode_record(replace(RECORD, expires_at_s=NOW_S + expires_in_s), OWNER)
    with pytest.raises(RecordRejected, match="expires"):
        decode_record(data, OWNER.peer, NOW_S)


def test_a_record_of_a_fast_clock_within_the_skew_is_accepted():
    expires_in_s = limits.MAX_RECORD_TTL_S + limits.MAX_CLOCK_SKEW_S - 1
    data = encode_record(replace(RECORD, expires_at_s=NOW_S + expires_in_s), OWNER)
    assert decode_record(data, OWNER.peer, NOW_S).expires_at_s == NOW_S + expires_in_s


def test_an_oversize_record_is_rejected_before_it_is_decoded():
    with pytest.raises(RecordRejected, match="2049 bytes"):
        decode_record(b"\xc1" * 2049, OWNER.peer, NOW_S)


@pytest.mark.parametrize(
    "changes",
    [
        {1: 2},
        {3: bytes(31)},
        {4: limits.MAX_LAYER + 1},
        {5: b"\x01\x00"},
        {5: bytes(64) + b"\x01"},
        {5: "text"},
        {6: 0},
        {7: 0},
        {7: 4},
        {8: 256},
        {10: limits.MAX_DURATION_MS + 1},
        {11: ["a:1"] * 9},
        {11: [""]},
        {11: ["a" * 129]},
        {11: [1]},
        {11: "a:1"},
        {12: -1},
        {12: 2**63},
        {12: 1.0},
        {13: True},
        {15: 0},
    ],
    ids=repr,
)
def test_a_field_out_of_bounds_is_rejected_even_if_signed(changes):
    fields = fields_of(encode_record(RECORD, OWNER))
    with pytest.raises(RecordRejected):
        decode_record(signed(dict(sorted((fields | changes).items()))), OWNER.peer, NOW_S)


@pytest.mark.parametrize("key", range(1, 15))
def test_a_missing_field_is_rejected(key):
    fields = fields_of(encode_record(RECORD, OWNER))
    del fields[key]
    with pytest.raises(RecordRejected):
        decode_record(msgpack.packb(fields) if key == 14 else signed(fields), OWNER.peer, NOW_S)


def test_a_record_that_is_not_canonical_is_rejected():
    data = encode_record(RECORD, OWNER)
    fields = fields_of(data)
    shuffled = signed(dict(reversed(fields.items())))
    long_form = data.replace(b"\x04\x03", b"\x04\xcc\x03", 1)
    for other in (shuffled, long_form, data + b"\x00", data[:-1], b"\x8f" + data[1:] + b"\x0e\xc0"):
        assert other != data
        with pytest.raises(RecordRejected):
            decode_record(other, OWNER.peer, NOW_S)


@given(st.binary(max_size=300))
def test_garbage_is_rejected_and_nothing_else(data):
    with pytest.raises(RecordRejected):
        decode_record(data, OWNER.peer, NOW_S)


def test_a_record_of_ours_out_of_bounds_is_our_mistake():
    for changes in ({"queue_ms": -1}, {"experts": frozenset({ExpertId(512)})}, {"addresses": ("a:1",) * 9}):
        with pytest.raises(InvalidRequest):
            encode_record(replace(RECORD, **changes), OWNER)


def test_a_layers_name_in_the_directory_depends_on_model_and_layer():
    keys = {directory_key(root, LayerId(layer)) for root in (bytes(32), b"r" * 32) for layer in (0, 1, 256)}
    assert len(keys) == 6
    assert all(len(key) == 32 for key in keys)
