"""Delay in the client's channels, under a virtual clock."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence

import pytest

from shoal.protocol.errors import ChannelClosed, DeadlineExceeded
from shoal.protocol.frames import Buffer
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Dispatch, DType, Partial
from shoal.protocol.net.channel import Reply, Traffic
from shoal.simulations.virtual.loop import run_virtual
from shoal.simulations.wan.link import Link
from shoal.simulations.wan.shaped_channel import FRAME_BYTES, MIN_REPAIR_S, ShapedChannel, Ways

ASKED = Dispatch(bytes(32), 1, 0, 1, 1, 1, 128, (3,), (1,), 1000)
ANSWER = Reply(Partial(bytes(32), 1, 128, 0, 0), bytes(512))


class Instant:
    """A channel without any delay."""

    peer = PeerId("somebody")
    is_closed = is_draining = False
    traffic = Traffic()
    dtypes = frozenset[DType]()

    def __init__(self, is_dead: bool = False) -> None:
        self._is_dead = is_dead

    def begin(self, message: Dispatch, body: Sequence[Buffer]) -> "asyncio.Future[Reply] | None":
        return None

    async def request(self, message: Dispatch, body: Sequence[Buffer]) -> Reply:
        if self._is_dead:
            raise ChannelClosed("it died")
        return ANSWER

    async def ping(self, timeout_s: float) -> float:
        return 0.0

    async def aclose(self) -> None: ...


def seconds_of(
    link: Link, act: Callable[[ShapedChannel], Coroutine[None, None, object]], is_dead: bool = False
) -> float:
    """What something takes over a channel of this link, in virtual seconds; every second packet is lost, if any."""
    draws = iter([0.0, 0.9] * 1000)

    async def measure() -> float:
        loop = asyncio.get_running_loop()
        channel = ShapedChannel(Instant(is_dead), link, lambda: next(draws))
        started = loop.time()
        await act(channel)
        return loop.time() - started

    return run_virtual(measure, random.Random(0), 60.0)


async def ask(channel: ShapedChannel) -> None:
    assert await channel.request(ASKED, ()) is ANSWER


def test_an_exchange_takes_one_round_trip() -> None:
    assert seconds_of(Link(80), ask) == pytest.approx(0.080)


def test_an_error_takes_one_too() -> None:
    async def fail(channel: ShapedChannel) -> None:
        with pytest.raises(ChannelClosed):
            await channel.request(ASKED, ())

    assert seconds_of(Link(80), fail, is_dead=True) == pytest.approx(0.080)


def test_a_rate_adds_the_time_of_the_bytes_each_way() -> None:
    num_bytes = ASKED.body_size() + 512 + 2 * FRAME_BYTES
    assert seconds_of(Link(rate_bytes_per_s=1000), ask) == pytest.approx(num_bytes / 1000)


def test_a_lost_packet_costs_tcps_repair() -> None:
    """One packet each way, each lost once."""
    assert seconds_of(Link(80, loss=0.5), ask) == pytest.approx(0.080 + 2 * (MIN_REPAIR_S + 0.080))


def test_a_ping_over_a_slow_link_is_late() -> None:
    async def ping(channel: ShapedChannel) -> None:
        assert await channel.ping(1.0) == pytest.approx(0.3)
        with pytest.raises(DeadlineExceeded):
            await channel.ping(0.2)

    assert seconds_of(Link(300), ping) == pytest.approx(0.5)


def test_channels_that_share_a_link_wait_for_one_another_and_its_bytes_are_counted() -> None:
    """The two answers, on the link one after the other, take twice what one takes; so do the requests before them."""
    frame_s, ways = 0.010, Ways(Link(0, rate_bytes_per_s=(512 + FRAME_BYTES) / 0.010))

    async def measure() -> float:
        loop = asyncio.get_running_loop()
        channels = [ShapedChannel(Instant(), ways.link, lambda: 1.0, ways) for _ in range(2)]
        started = loop.time()
        await asyncio.gather(*map(ask, channels))
        return loop.time() - started

    request_bytes = ASKED.body_size() + FRAME_BYTES
    request_s = request_bytes / (512 + FRAME_BYTES) * frame_s
    expected_s = max(2 * request_s + frame_s, request_s + 2 * frame_s)
    assert run_virtual(measure, random.Random(0), 60.0) == pytest.approx(expected_s)
    assert ways.num_bytes == {True: 2 * request_bytes, False: 2 * (512 + FRAME_BYTES)}
