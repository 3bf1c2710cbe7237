"""A lane writes what its messages say: small frames in one piece, large bodies in pieces that make the body."""

from typing import Any, cast

import pytest

from shoal.protocol.frames import Frame, FrameDecoder, encode_frame
from shoal.protocol.messages import Dispatch, DType
from shoal.protocol.net.lane import JOIN_BYTES, SLICE_BYTES, LaneStream


class Pieces:
    """A writer that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.transport = self

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | memoryview) -> None:
        self.written.append(bytes(data))


def message_of(num_tokens: int) -> Dispatch:
    return Dispatch(bytes(32), 0, 1, 1, DType.BF16, num_tokens, 8192, (0,), (num_tokens,), 1000)


def written(message: Dispatch, *body: bytes | memoryview) -> list[bytes]:
    writer = Pieces()
    lane = LaneStream(cast(Any, None), cast(Any, writer), frozenset())
    lane.write(7, message, body)
    assert lane.traffic.bytes_sent == sum(map(len, writer.written))
    return writer.written


def decoded(pieces: list[bytes]) -> Frame:
    decoder, frames = FrameDecoder(), list[Frame]()
    for piece in pieces:
        frames += decoder.feed(piece)
    (frame,) = frames
    return frame


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_a_small_frame_is_one_write(num_tokens: int) -> None:
    message = message_of(num_tokens)
    body = bytes(range(256)) * (message.body_size() // 256 + 1)
    pieces = written(message, memoryview(body)[: message.body_size()])
    assert pieces == [encode_frame(7, message) + body[: message.body_size()]]
    assert len(pieces[0]) <= JOIN_BYTES


@pytest.mark.parametrize("num_tokens", [4, 8, 64])
def test_a_large_body_goes_in_pieces_that_make_it(num_tokens: int) -> None:
    message = message_of(num_tokens)
    size = message.body_size()
    body = (bytes(range(251)) * (size // 251 + 1))[:size]
    pieces = written(message, body[: size - 6 * num_tokens], body[size - 6 * num_tokens :])
    assert max(map(len, pieces)) <= SLICE_BYTES
    frame = decoded(pieces)
    assert (frame.request_id, frame.message, bytes(frame.body)) == (7, message, body)
