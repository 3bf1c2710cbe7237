"""A lane writes what its messages say: small frames in one piece, large bodies in pieces that make the body."""

import asyncio
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


class Endless(Pieces):
    """A writer whose end does not come: as a `StreamWriter`, it has one future for all who wait."""

    def __init__(self) -> None:
        super().__init__()
        self.end = asyncio.get_running_loop().create_future()
        self.num_aborts = 0

    def abort(self) -> None:
        self.num_aborts += 1

    async def wait_closed(self) -> None:
        await self.end


def test_a_close_that_takes_too_long_is_cut_and_may_be_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.protocol.net.lane.CLOSE_TIMEOUT_S", 0.0)

    async def main() -> None:
        writer = Endless()
        lane = LaneStream(cast(Any, None), cast(Any, writer), frozenset())
        await lane.wait_closed()
        await lane.wait_closed()
        assert writer.num_aborts == 1

    asyncio.run(main())


def test_who_is_cancelled_while_it_waits_for_a_close_cancels_nobody_else() -> None:
    async def main() -> None:
        writer = Endless()
        lane = LaneStream(cast(Any, None), cast(Any, writer), frozenset())
        waiting = asyncio.create_task(lane.wait_closed())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        await lane.wait_closed()

    asyncio.run(main())
