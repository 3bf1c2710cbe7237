"""Every field of every message keeps its bounds, ours as well as a peer's."""

from dataclasses import replace

import pytest

from shoal.protocol import limits
from shoal.protocol.errors import Malformed
from shoal.protocol.frames import FrameDecoder, encode_frame
from shoal.protocol.messages import (
    MESSAGE_TYPES,
    BytesField,
    Challenge,
    Dispatch,
    DType,
    Field,
    Hello,
    IntField,
    IntsField,
    Message,
    Partial,
    Refusal,
    Welcome,
)

DISPATCH = Dispatch(bytes(32), 3, 1, 2, 2, 4, 64, (1, 9), (4, 2), 1000)


def lowest(field: Field) -> object:
    match field:
        case IntField():
            return field.low
        case BytesField():
            return bytes(field.size)
        case IntsField():
            return (field.low,)


def outside(field: Field) -> list[object]:
    match field:
        case IntField():
            return [field.low - 1, field.high + 1, -1, True, 1.0, "1", b"1", None, (1,)]
        case BytesField():
            return [bytes(field.size - 1), bytes(field.size + 1), "x" * field.size, bytearray(field.size), None, 0]
        case IntsField():
            return [
                (), (field.low - 1,), (field.high + 1,), (True,), (1.0,), (None,), 1, None, b"\x01",
                tuple(range(field.low, field.low + field.max_items + 1)),
            ]  # fmt: skip


CASES = [
    pytest.param(message, field, value, id=f"{message.__name__}-{field.name}-{value!r:.20}")
    for message in MESSAGE_TYPES.values()
    for field in message.FIELDS
    for value in outside(field)
]


@pytest.mark.parametrize(("message", "field", "value"), CASES)
def test_a_value_out_of_bounds_is_malformed(message: type[Message], field: Field, value: object):
    header = {known.key: lowest(known) for known in message.FIELDS}
    with pytest.raises(Malformed):
        message.from_header(header | {field.key: value})


@pytest.mark.parametrize("message", MESSAGE_TYPES.values(), ids=lambda message: message.__name__)
def test_the_lowest_values_are_inside(message: type[Message]):
    header = {known.key: lowest(known) for known in message.FIELDS}
    made = message.from_header(header)
    assert made.header() == header
    (frame,) = FrameDecoder().feed(encode_frame(1, made) + bytes(made.body_size()))
    assert frame.message == made


@pytest.mark.parametrize("message", MESSAGE_TYPES.values(), ids=lambda message: message.__name__)
def test_keys_are_ascending_and_fit_a_small_map(message: type[Message]):
    keys = [field.key for field in message.FIELDS]
    assert keys == list(range(1, len(keys) + 1))
    assert len(keys) < 16  # what the decoder's max_map_len allows


@pytest.mark.parametrize(
    "changes",
    [
        {"experts": (9, 1)},
        {"experts": (9, 9)},
        {"experts": (1, 2, 3)},
        {"num_rows": (5, 1)},
        {"num_tokens": 1},
        {"experts": tuple(range(20)), "num_rows": (4,) * 20},
        {"num_tokens": 512, "hidden": 16_384 * 2},
    ],
    ids=["descending", "twice", "lengths", "rows", "fewer tokens", "more than top-k", "hidden"],
)
def test_a_dispatch_that_routing_can_not_make_is_malformed(changes):
    with pytest.raises(Malformed):
        replace(DISPATCH, **changes)


def test_the_size_of_a_body_follows_from_the_header():
    assert DISPATCH.num_pairs == 6
    assert DISPATCH.body_size() == 4 * 64 * 2 + 6 * (4 + 2)
    assert replace(DISPATCH, dtype=DType.F32).body_size() == 4 * 64 * 4 + 6 * (4 + 2)
    assert Partial(bytes(32), 4, 64, 0, 0).body_size() == 4 * 64 * 4
    assert Refusal(1, 0).body_size() == 0


def test_the_largest_bodies_keep_their_limit():
    assert Partial(bytes(32), 512, 16_384, 0, 0).body_size() == limits.MAX_BODY_BYTES
    largest = replace(DISPATCH, dtype=DType.F32, num_tokens=512, hidden=16_000)
    assert largest.body_size() <= limits.MAX_BODY_BYTES
    with pytest.raises(Malformed, match="body"):
        replace(DISPATCH, dtype=DType.F32, num_tokens=512, hidden=16_384)


def test_credits_allow_the_largest_frame():
    with pytest.raises(Malformed):
        Welcome(1, bytes(32), 1, limits.MAX_BODY_BYTES - 1)
    assert limits.MAX_INFLIGHT_BYTES >= 2 * limits.MAX_BODY_BYTES


def test_messages_of_the_handshake_fit_its_limit():
    for message in (Challenge, Hello, Welcome):
        header = {known.key: lowest(known) for known in message.FIELDS}
        assert len(encode_frame(0, message.from_header(header))) < limits.MAX_HANDSHAKE_BYTES
