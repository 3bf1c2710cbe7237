"""Frames: in whatever pieces the bytes come, the same frames; what is wrong is refused before it costs anything."""

import struct
from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol import limits
from shoal.protocol.errors import Malformed, RemoteError, TooLarge, UnsupportedVersion
from shoal.protocol.frames import PREFIX, PREFIX_BYTES, Frame, FrameDecoder, decode_prefix, encode_frame, encode_header
from shoal.protocol.messages import MESSAGE_TYPES, Cancel, Dispatch, Message, Partial, Ping, Refusal, Welcome

PING = encode_frame(0, Ping(b"12345678"))

byte32 = st.binary(min_size=32, max_size=32)
request_ids = st.integers(0, 2**64 - 1)


@st.composite
def dispatches(draw: st.DrawFn) -> Dispatch:
    num_tokens = draw(st.integers(1, 4))
    experts = sorted(draw(st.sets(st.integers(0, 65_535), min_size=1, max_size=8)))
    num_rows = draw(st.lists(st.integers(1, num_tokens), min_size=len(experts), max_size=len(experts)))
    return Dispatch(
        draw(byte32), draw(st.integers(0, limits.MAX_LAYER)), draw(st.integers(0, 1)), draw(st.integers(1, 7)),
        draw(st.integers(1, 2)), num_tokens, draw(st.integers(1, 64)), tuple(experts), tuple(num_rows),
        draw(st.integers(1, limits.MAX_DEADLINE_MS)),
    )  # fmt: skip


messages = st.one_of(
    dispatches(),
    st.builds(Partial, byte32, st.integers(1, 4), st.integers(1, 64), st.integers(0, 2**32 - 1), st.just(0)),
    st.builds(Refusal, st.integers(1, 13), st.integers(0, limits.MAX_DURATION_MS)),
    st.builds(Welcome, st.integers(1, 255), byte32, st.integers(1, 4096), st.just(limits.MAX_BODY_BYTES)),
    st.builds(Ping, st.binary(min_size=8, max_size=8)),
    st.just(Cancel()),
)


@given(st.lists(st.tuples(request_ids, messages), max_size=5), st.data())
def test_frames_survive_any_chunking(sent, data):
    stream = b"".join(encode_frame(request_id, message) + bytes(message.body_size()) for request_id, message in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder = FrameDecoder()
    frames = list[Frame]()
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        frames += decoder.feed(stream[start:end])
    assert [(frame.request_id, frame.message) for frame in frames] == sent
    assert all(frame.header_bytes == encode_header(frame.message) for frame in frames)
    assert all(bytes(frame.body) == bytes(frame.message.body_size()) for frame in frames)
    assert decoder.is_between_frames


def test_frames_survive_one_byte_at_a_time():
    message = Partial(bytes(32), 1, 3, 0, 0)
    stream = encode_frame(7, message) + b"abcdefghijkl" + PING
    decoder = FrameDecoder()
    frames = [frame for byte in stream for frame in decoder.feed(bytes([byte]))]
    assert [(frame.request_id, bytes(frame.body)) for frame in frames] == [(7, b"abcdefghijkl"), (0, b"")]


def test_frames_that_were_not_asked_for_are_not_lost():
    decoder = FrameDecoder()
    assert next(decoder.feed(PING + PING)).message == Ping(b"12345678")
    assert not decoder.is_between_frames
    assert len(list(decoder.feed(PING[:5]))) == 1
    assert len(list(decoder.feed(PING[5:]))) == 1


def test_a_body_that_came_whole_is_not_copied():
    message = Partial(bytes(32), 1, 3, 0, 0)
    data = encode_frame(7, message) + b"abcdefghijkl"
    (frame,) = FrameDecoder().feed(data)
    assert isinstance(frame.body, memoryview)
    assert frame.body.obj is data
    assert frame.body.readonly


@given(messages)
def test_headers_are_written_as_msgpack_writes_them(message):
    assert encode_header(message) == msgpack.packb(message.header())


@given(st.binary(max_size=200))
def test_garbage_raises_nothing_but_remote_errors(data):
    with suppress(RemoteError):
        list(FrameDecoder().feed(data))


@given(messages, st.data())
def test_a_flipped_bit_gives_an_error_or_another_message_but_no_crash(message, data):
    stream = bytearray(encode_frame(1, message))
    bit = data.draw(st.integers(0, 8 * len(stream) - 1))
    stream[bit // 8] ^= 1 << bit % 8
    with suppress(RemoteError):
        list(FrameDecoder().feed(bytes(stream)))


def prefix(**changes: int | bytes) -> bytes:
    fields = {"magic": b"SH", "version": 1, "type": Ping.TYPE, "header_len": 11, "reserved": 0, "body_len": 0, "id": 0}
    return struct.pack(">2sBBHHIQ", *(fields | changes).values())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"magic": b"HT"}, Malformed),
        ({"reserved": 1}, Malformed),
        ({"version": 2}, UnsupportedVersion),
        ({"version": 0}, UnsupportedVersion),
        ({"type": 0}, Malformed),
        ({"type": 255}, Malformed),
        ({"header_len": limits.MAX_HEADER_BYTES + 1}, TooLarge),
        ({"body_len": 2**32 - 1}, TooLarge),
        ({"body_len": limits.MAX_FRAME_BYTES}, TooLarge),
    ],
)
def test_a_bad_prefix_is_refused_before_anything_follows(changes, error):
    assert len(prefix()) == PREFIX_BYTES
    with pytest.raises(error):
        list(FrameDecoder().feed(prefix(**changes)))


def test_the_handshakes_limit_bounds_header_and_body():
    decode_prefix(prefix(header_len=limits.MAX_HANDSHAKE_BYTES), limits.MAX_HANDSHAKE_BYTES)
    with pytest.raises(TooLarge):
        decode_prefix(prefix(header_len=limits.MAX_HANDSHAKE_BYTES, body_len=1), limits.MAX_HANDSHAKE_BYTES)


def test_a_message_out_of_place_is_refused_before_its_header_is_parsed():
    decoder = FrameDecoder(expected=frozenset({Welcome}))
    with pytest.raises(Malformed, match="Ping"):
        list(decoder.feed(PING[:PREFIX_BYTES]))


def test_a_wrong_body_length_is_refused_before_the_body_is_read():
    message = Partial(bytes(32), 1, 3, 0, 0)
    header = encode_header(message)
    stream = PREFIX.pack(b"SH", 1, Partial.TYPE, len(header), 0, 13, 1) + header
    with pytest.raises(Malformed, match="13 bytes where the header implies 12"):
        list(FrameDecoder().feed(stream))


def framed(message_type: type[Message], header: bytes, body_len: int = 0) -> bytes:
    return PREFIX.pack(b"SH", 1, message_type.TYPE, len(header), 0, body_len, 1) + header


REFUSAL = {1: 6, 2: 50}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\x82\x01\x06",
        msgpack.packb({1: 6}),
        msgpack.packb({1: 6, 2: 50, 3: 0}),
        msgpack.packb({2: 50, 1: 6}),
        msgpack.packb(REFUSAL) + b"\x00",
        msgpack.packb([6, 50]),
        msgpack.packb({1: 6, 2: 50.0}),
        msgpack.packb({1: 6, 2: "x"}),
        msgpack.packb({1: 6, 2: b"x"}),
        msgpack.packb({1: 6, 2: True}),
        msgpack.packb({1: 6, 2: None}),
        msgpack.packb({1: 6, 2: -1}),
        msgpack.packb({1: 14, 2: 0}),
        msgpack.packb({1: 0, 2: 0}),
        msgpack.packb({1: 6, 2: limits.MAX_DURATION_MS + 1}),
        msgpack.packb({"1": 6, "2": 50}),
        msgpack.packb({1: 6, 2: msgpack.ExtType(5, b"x")}),
        msgpack.packb({1: 6, 2: msgpack.Timestamp(1)}),
        msgpack.packb({1: 6, 2: [[[]]]}),
        b"\x82\x01\x06\x02\xcd\x00\x32",  # 50 as a u16: not the shortest form
        b"\x83\x01\x06\x02\x32\x02\x32",  # a duplicate key
        b"\xde\x00\x02\x01\x06\x02\x32",  # a map of the long form
        b"\x82\xcc\x01\x06\x02\x32",  # a key of the long form
        b"\x91" * 1500,  # nesting
        b"\xdf\xff\xff\xff\xff",  # a map of 4 billion entries
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    ],
)
def test_a_header_that_is_not_exactly_the_canonical_one_is_malformed(header):
    with pytest.raises(Malformed):
        list(FrameDecoder().feed(framed(Refusal, header)))


def test_the_canonical_header_is_read():
    (frame,) = FrameDecoder().feed(framed(Refusal, msgpack.packb(REFUSAL)))
    assert frame.message == Refusal(6, 50)


def test_every_message_type_has_its_own_number():
    assert len(MESSAGE_TYPES) == 13
    assert all(number == message.TYPE for number, message in MESSAGE_TYPES.items())


def test_the_largest_header_fits_its_limit():
    experts = tuple(range(65_536 - limits.MAX_EXPERTS_PER_FRAME, 65_536))
    num_rows = (limits.MAX_TOKENS_PER_FRAME // 32,) * len(experts)
    message = Dispatch(bytes(32), 1023, 1, 7, 2, 512, 16_384 // 2, experts, num_rows, 60_000)
    assert len(encode_header(message)) <= limits.MAX_HEADER_BYTES
