"""Node records: nobody speaks for another, nobody says more than there is room for."""

from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol import limits
from shoal.protocol.errors import InvalidRequest, RecordRejected
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.record_codec import decode_record, encode_record, owner_of
from shoal.protocol.records import NodeRecord, of_layer, roster_name
from shoal.protocol.version import RECORD_CONTEXT

OWNER, MALLORY = Identity.from_seed(b"o" * 32), Identity.from_seed(b"m" * 32)
RECORD = NodeRecord(
    peer=OWNER.peer, model_root=b"r" * 32,
    experts={LayerId(3): frozenset(map(ExpertId, (0, 9, 255))), LayerId(200): frozenset({ExpertId(1)})},
    weight_format=1, roundings=2, kernel_class=1, capacity_mmacs=12_000, queue_ms=4,
    addresses=("192.0.2.7:4001", "/ip4/192.0.2.7/tcp/4002"), issued_ms=1_800_000_000_000, pulse=b"p" * 16,
)  # fmt: skip

experts_by_layer = st.dictionaries(
    st.integers(0, limits.MAX_LAYER), st.frozensets(st.integers(0, 511), min_size=1, max_size=9), max_size=9
)


def fields_of(data: bytes) -> dict[int, Any]:
    return msgpack.unpackb(data, strict_map_key=False)


def signed(fields: dict[int, object], identity: Identity = OWNER) -> bytes:
    """A record with the signature that `identity` would give, whatever the fields say."""
    fields = {key: value for key, value in sorted(fields.items()) if key != 13}
    full = fields | {13: identity.sign(RECORD_CONTEXT + msgpack.packb(fields))}
    return msgpack.packb(dict(sorted(full.items())))


def test_a_record_survives_the_directory():
    data = encode_record(RECORD, OWNER)
    assert decode_record(data, OWNER.peer) == RECORD
    assert owner_of(data) == OWNER.peer
    assert signed(fields_of(data)) == data


@given(
    experts_by_layer, experts_by_layer, st.integers(0, 2**63 - 1),
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=32), max_size=8),
)  # fmt: skip
def test_every_honest_record_survives(experts, coming, issued_ms, addresses):
    record = replace(RECORD, experts=experts, coming=coming, issued_ms=issued_ms, addresses=tuple(addresses))
    assert decode_record(encode_record(record, OWNER), OWNER.peer) == record


@given(
    st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), experts_by_layer, st.integers(0, limits.MAX_DURATION_MS),
    st.from_regex(r"[a-z0-9-]{0,16}", fullmatch=True),
)  # fmt: skip
def test_what_a_holder_may_add_survives(since_s, room, cold, read_ms, zone):
    record = replace(RECORD, since_s=since_s, room=room, cold=cold, read_ms=read_ms, zone=zone)
    assert decode_record(encode_record(record, OWNER), OWNER.peer) == record


def test_roles_that_are_not_known_yet_are_passed_over():
    fields = fields_of(encode_record(RECORD, OWNER))
    assert decode_record(signed(fields | {17: 0b1000_0000}), OWNER.peer) == RECORD
    assert decode_record(signed(fields | {17: 255}), OWNER.peer) == replace(RECORD, gives_trunk=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [(14, {}), (14, {3: b""}), (14, {3: b"\x00"}), (14, {3: b"\x01" * 65}), (15, 0), (16, 0), (16, 2**32), (17, 0),
     (17, 256), (17, True), (18, ""), (18, "Zone"), (18, "a" * 17), (18, b"za"), (19, {}), (19, 1),
     (19, {3: b""}), (19, {3: b"\x00"}),
     (19, {3: b"\x01" * 65}), (19, {limits.MAX_LAYER + 1: b"\x01"}), (20, 0), (20, limits.MAX_DURATION_MS + 1),
     (20, 1.0), (21, 1)],
)  # fmt: skip
def test_an_addition_that_says_nothing_or_too_much_is_refused(key, value):
    with pytest.raises(RecordRejected):
        decode_record(signed(fields_of(encode_record(RECORD, OWNER)) | {key: value}), OWNER.peer)


def full_record(num_layers: int, num_experts: int) -> NodeRecord:
    """A record that says all that can be said of a model."""
    every = {LayerId(layer): frozenset(map(ExpertId, range(num_experts))) for layer in range(num_layers)}
    return replace(
        RECORD, experts=every, coming=every, since_s=2**40, room=2**32 - 1, zone="z" * 16,
        read_ms=limits.MAX_DURATION_MS, addresses=("a" * limits.MAX_ADDRESS_BYTES,) * 8,
    )  # fmt: skip


def test_a_holder_of_all_of_kimi_k2_with_as_much_coming_fits():
    assert len(encode_record(full_record(61, 384), OWNER)) <= limits.MAX_RECORD_BYTES


def test_a_holder_of_all_of_deepseek_v3_with_as_much_coming_and_on_disk_fits():
    record = full_record(62, 256)
    assert len(encode_record(replace(record, cold=record.experts), OWNER)) <= limits.MAX_RECORD_BYTES


def test_an_anchor_of_all_of_kimi_k2_with_as_much_coming_fits():
    record = full_record(61, 384)
    assert len(encode_record(replace(record, experts={}, cold=record.experts), OWNER)) <= limits.MAX_RECORD_BYTES


def test_a_record_that_does_not_fit_is_our_mistake():
    with pytest.raises(InvalidRequest, match="the limit is"):
        encode_record(full_record(200, 384), OWNER)


def test_nobody_signs_for_another():
    with pytest.raises(InvalidRequest):
        encode_record(RECORD, MALLORY)


def test_a_record_under_another_name_is_rejected():
    with pytest.raises(RecordRejected):
        decode_record(encode_record(RECORD, OWNER), MALLORY.peer)


def test_a_record_with_another_signature_is_rejected():
    fields = fields_of(encode_record(RECORD, OWNER))
    with pytest.raises(RecordRejected):
        decode_record(signed(fields, MALLORY), OWNER.peer)


@pytest.mark.parametrize("key", range(1, 14))
def test_changing_any_field_breaks_the_signature(key):
    fields = fields_of(encode_record(RECORD, OWNER))
    value = fields[key]
    changed = {
        int: lambda: value ^ 2,
        bytes: lambda: bytes([value[0] ^ 1]) + value[1:],
        list: lambda: ["elsewhere:1"],
        dict: lambda: {3: b"\x01"},
    }
    with pytest.raises(RecordRejected):
        decode_record(msgpack.packb(fields | {key: changed[type(value)]()}), OWNER.peer)


def test_an_oversize_record_is_rejected_before_it_is_decoded():
    for read in (owner_of, lambda data: decode_record(data, OWNER.peer)):
        with pytest.raises(RecordRejected, match="8193 bytes"):
            read(b"\xc1" * 8193)


@pytest.mark.parametrize(
    "changes",
    [
        {1: 1},
        {3: bytes(31)},
        {4: b"\x01"},
        {4: {limits.MAX_LAYER + 1: b"\x01"}},
        {4: {-1: b"\x01"}},
        {4: {"3": b"\x01"}},
        {4: {True: b"\x01"}},
        {4: {3: b""}},
        {4: {3: b"\x01\x00"}},
        {4: {3: bytes(64) + b"\x01"}},
        {4: {3: "text"}},
        {4: {4: b"\x01", 3: b"\x01"}},
        {5: 0},
        {6: 0},
        {6: 4},
        {7: 256},
        {9: limits.MAX_DURATION_MS + 1},
        {10: ["a:1"] * 9},
        {10: [""]},
        {10: ["a" * 129]},
        {10: [1]},
        {10: "a:1"},
        {11: -1},
        {11: 2**63},
        {11: 1.0},
        {11: True},
        {12: bytes(15)},
        {14: 0},
    ],
    ids=repr,
)
def test_a_field_out_of_bounds_is_rejected_even_if_signed(changes):
    fields = fields_of(encode_record(RECORD, OWNER))
    with pytest.raises(RecordRejected):
        decode_record(signed(fields | changes), OWNER.peer)


@pytest.mark.parametrize("key", range(1, 14))
def test_a_missing_field_is_rejected(key):
    fields = fields_of(encode_record(RECORD, OWNER))
    del fields[key]
    with pytest.raises(RecordRejected):
        decode_record(msgpack.packb(fields) if key == 13 else signed(fields), OWNER.peer)


def test_a_record_that_is_not_canonical_is_rejected():
    data = encode_record(RECORD, OWNER)
    shuffled = msgpack.packb(dict(reversed(fields_of(data).items())))
    long_form = data.replace(b"\x06\x02", b"\x06\xcc\x02", 1)
    for other in (shuffled, long_form, data + b"\x00", data[:-1], b"\x8e" + data[1:] + b"\x0f\xc0"):
        assert other != data
        with pytest.raises(RecordRejected):
            decode_record(other, OWNER.peer)


@given(st.binary(max_size=300))
def test_garbage_is_rejected_and_nothing_else(data):
    for read in (owner_of, lambda noise: decode_record(noise, OWNER.peer)):
        with pytest.raises(RecordRejected):
            read(data)


def test_a_record_of_ours_out_of_bounds_is_our_mistake():
    for changes in (
        {"queue_ms": -1},
        {"experts": {LayerId(1): frozenset({ExpertId(512)})}},
        {"experts": {LayerId(1024): frozenset({ExpertId(1)})}},
        {"addresses": ("a:1",) * 9},
    ):
        with pytest.raises(InvalidRequest):
            encode_record(replace(RECORD, **changes), OWNER)


def test_of_a_layer_that_a_node_holds_nothing_of_its_record_says_so():
    here, elsewhere = of_layer(RECORD, LayerId(3), 7.0), of_layer(RECORD, LayerId(4), 7.0)
    assert here.experts == {0, 9, 255}
    assert (elsewhere.experts, elsewhere.coming) == (frozenset(), frozenset())
    assert here.seq == elsewhere.seq == RECORD.issued_ms
    assert here.expires_at_s == 7.0


def test_what_is_in_memory_and_on_disk_counts_as_in_memory():
    both = replace(RECORD, cold={LayerId(3): frozenset(map(ExpertId, (0, 10)))}, read_ms=20)
    here, elsewhere = of_layer(both, LayerId(3), 7.0), of_layer(both, LayerId(200), 7.0)
    assert (here.experts, here.cold, here.read_ms) == ({0, 9, 255}, {10}, 20)
    assert (elsewhere.experts, elsewhere.cold) == ({1}, frozenset())


def test_a_models_name_in_the_directory_depends_on_the_model():
    names = {roster_name(root) for root in (bytes(32), b"r" * 32)}
    assert len(names) == 2
    assert all(len(name) == 32 for name in names)
