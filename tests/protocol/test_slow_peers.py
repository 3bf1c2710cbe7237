"""Who is slow, silent or gone holds nothing for long, and who is merely quiet or far away is left alone.

In virtual time, which no busy machine disturbs.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from shoal.protocol import limits
from shoal.protocol.errors import ShoalError
from shoal.protocol.frames import encode_frame
from shoal.protocol.handshake import ClientHandshake
from shoal.protocol.identity import Identity
from shoal.protocol.messages import Challenge, Lane, Refusal, Welcome
from shoal.protocol.net.channel import Channel
from shoal.protocol.net.lane import LaneStream
from shoal.protocol.net.memory import MemoryListener, MemoryNetwork
from shoal.simulations.virtual.loop import run_virtual
from tests.protocol.networks import CLIENT, OTHER, SERVER, body_of, dispatch, echo

HOUR_S = 3600.0


@dataclass
class Net:
    """A server, and the clients that come to it."""

    network: MemoryNetwork
    listener: MemoryListener

    async def connect(self, identity: Identity) -> Channel:
        connector = self.network.connector(identity, os.urandom)
        return await connector.connect(SERVER.peer, self.listener.addresses, 5.0)

    async def raw_lane(self, identity: Identity, lane: Lane = Lane.ACT) -> LaneStream:
        """A lane of a client that then does what no honest client does."""
        stream = LaneStream(
            *await self.network.open_stream(identity.peer, SERVER.peer), frozenset({Challenge, Welcome, Refusal})
        )
        handshake = ClientHandshake(identity, SERVER.peer, os.urandom(32), b"S" * 16, lane)
        stream.write(0, handshake.answer((await stream.receive()).message))
        handshake.finish((await stream.receive()).message)
        return stream


@asynccontextmanager
async def a_server() -> AsyncIterator[Net]:
    network = MemoryNetwork(lambda sender, receiver: 0.01)
    listener = await network.listen(SERVER, echo, os.urandom)
    yield Net(network, listener)
    await listener.aclose()


def run(test: Callable[[Net], Coroutine[object, object, None]]) -> None:
    async def whole() -> None:
        async with a_server() as net:
            await test(net)

    run_virtual(whole, random.Random(0), 3 * HOUR_S)


async def cut_after_s(lane: LaneStream, write: Callable[[LaneStream], None], every_s: float) -> float:
    """Virtual seconds until the server cuts a lane on which `write` is called again and again."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    while not lane._reader.at_eof() and lane._reader.exception() is None:
        write(lane)
        await asyncio.sleep(every_s)
        assert loop.time() < started + HOUR_S, "never cut"
    lane.abort()
    return loop.time() - started


def test_a_byte_a_second_in_the_middle_of_a_frame_is_cut() -> None:
    async def test(net: Net) -> None:
        lane = await net.raw_lane(CLIENT)
        frame = iter(encode_frame(1, dispatch()) + body_of(dispatch())[0])
        cut_s = await cut_after_s(lane, lambda lane: lane._writer.write(bytes([next(frame)])), 1.0)
        assert limits.FRAME_GRACE_S <= cut_s <= limits.FRAME_GRACE_S + 3

    run(test)


def test_a_frame_that_comes_slowly_but_comes_is_served() -> None:
    async def test(net: Net) -> None:
        message = dispatch(num_tokens=512, hidden=512)
        lane = await net.raw_lane(CLIENT)
        data = encode_frame(1, message) + body_of(message)[0]
        for start in range(0, len(data), 2 * limits.MIN_FRAME_BYTES_PER_S):  # half a minute
            lane._writer.write(data[start : start + 2 * limits.MIN_FRAME_BYTES_PER_S])
            await asyncio.sleep(1.0)
        assert await lane._reader.read(100)
        lane.abort()

    run(test)


def test_a_frame_that_stands_still_is_cut_wherever_it_stands() -> None:
    async def test(net: Net) -> None:
        data = encode_frame(1, dispatch()) + body_of(dispatch())[0]
        for length in (1, 8, 20, 21, len(encode_frame(1, dispatch())), len(data) - 1):
            lane = await net.raw_lane(CLIENT)
            lane._writer.write(data[:length])
            cut_s = await cut_after_s(lane, lambda _: None, 1.0)
            assert limits.FRAME_GRACE_S <= cut_s <= limits.FRAME_GRACE_S + 3, length

    run(test)


def test_unfinished_frames_are_bounded_in_all_and_whoever_passes_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_UNFINISHED_BYTES", 100 * limits.KIB)

    async def test(net: Net) -> None:
        message = dispatch(num_tokens=512, hidden=512)
        part = (encode_frame(1, message) + body_of(message)[0])[: 60 * limits.KIB]
        first, second = await net.raw_lane(CLIENT), await net.raw_lane(OTHER)
        first._writer.write(part)
        await asyncio.sleep(1)
        second._writer.write(part)
        await asyncio.sleep(1)
        assert second._reader.at_eof() or second._reader.exception() is not None
        first._writer.write(part[: 20 * limits.KIB])  # what the second held was given back
        await asyncio.sleep(1)
        assert not first._reader.at_eof()
        for lane in (first, second):
            lane.abort()

    run(test)


def test_a_client_that_is_quiet_for_hours_stays_and_is_served_at_once() -> None:
    async def test(net: Net) -> None:
        channel = await net.connect(CLIENT)
        await asyncio.sleep(2 * HOUR_S)
        assert not channel.is_closed
        await channel.request(dispatch(), body_of(dispatch()))
        await channel.aclose()

    run(test)


@pytest.mark.parametrize("lane", [Lane.CTL, Lane.ACT])
def test_a_session_that_answers_no_ping_is_cut(lane: Lane) -> None:
    async def test(net: Net) -> None:
        silent = await net.raw_lane(CLIENT, lane)
        cut_s = await cut_after_s(silent, lambda _: None, 1.0)
        assert limits.IDLE_S <= cut_s <= limits.IDLE_S + limits.PONG_TIMEOUT_S + 3
        assert not net.listener.clients()

    run(test)


def test_a_client_whose_cable_is_cut_loses_its_places() -> None:
    async def test(net: Net) -> None:
        channel = await net.connect(CLIENT)
        net.network.silence(CLIENT.peer)
        await asyncio.sleep(limits.IDLE_S + limits.PONG_TIMEOUT_S + 3)
        assert not net.listener.clients()
        await channel.aclose()

    run(test)


def test_when_lanes_run_out_who_asks_for_nothing_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 6)

    async def test(net: Net) -> None:
        idle, busy = await net.connect(CLIENT), await net.connect(OTHER)
        with pytest.raises(ShoalError):
            await net.connect(Identity.from_seed(b"n" * 32))  # nobody has been idle for long
        await asyncio.sleep(limits.IDLE_S)
        await busy.request(dispatch(), body_of(dispatch()))
        with pytest.raises(ShoalError):
            await net.connect(Identity.from_seed(b"n" * 32))
        await asyncio.sleep(5)
        newcomer = await net.connect(Identity.from_seed(b"n" * 32))
        assert idle.is_closed
        assert not busy.is_closed
        for channel in (newcomer, busy, idle):
            await channel.aclose()

    run(test)
