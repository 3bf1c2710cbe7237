"""Requests that are sent without waiting: the same answers and ends as requests that are awaited, in a future."""

import asyncio

import pytest

from shoal.protocol import limits
from shoal.protocol.errors import ChannelClosed, DeadlineExceeded, NotHeld
from shoal.protocol.frames import encode_header
from shoal.protocol.tensors import request_hash
from tests.protocol.networks import PAIRS, Gate, Kind, body_of, dispatch, echo


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Kind:
    return PAIRS[request.param]


def test_several_leave_together_and_each_has_its_own_answer(pair):
    async def test():
        async with pair(echo) as swarm:
            channel = await swarm.connect()
            message = dispatch()
            answers = [channel.begin(message, body_of(message, tag)) for tag in (1, 2, 3)]
            replies = await asyncio.gather(*answers)
            assert [reply.body[0] for reply in replies] == [1, 2, 3]
            digest = request_hash(encode_header(message), *body_of(message, 2))
            assert replies[1].message.request_hash == digest

    pair.run(test())


def test_cancelling_an_answer_reaches_the_handler_and_frees_its_credits(pair):
    async def test():
        gate = Gate()
        async with pair(gate) as swarm:
            channel = await swarm.connect()
            message = dispatch()
            for _ in range(2):
                answer = channel.begin(message, body_of(message))
                await gate.arrived.wait()
                assert answer.cancel()
                await gate.cancelled.wait()
                gate.arrived.clear()
                gate.cancelled.clear()
            gate.opened.set()
            asked = (channel.request(message, body_of(message)) for _ in range(limits.MAX_INFLIGHT_REQUESTS))
            await asyncio.gather(*asked)

    pair.run(test())


def test_without_credits_nothing_is_sent(pair):
    async def test():
        gate = Gate()
        async with pair(gate) as swarm:
            channel = await swarm.connect()
            message = dispatch()
            answers = [channel.begin(message, body_of(message)) for _ in range(limits.MAX_INFLIGHT_REQUESTS)]
            num_sent = channel.traffic.bytes_sent
            assert channel.begin(message, body_of(message)) is None
            assert channel.traffic.bytes_sent == num_sent
            gate.opened.set()
            await asyncio.gather(*answers)
            assert (await channel.begin(message, body_of(message, 4))).body[0] == 4

    pair.run(test())


def test_an_answer_fails_as_the_request_does(pair):
    async def refuse(request):
        raise NotHeld("no")

    async def test():
        async with pair(refuse) as swarm:
            channel = await swarm.connect()
            message = dispatch()
            with pytest.raises(NotHeld):
                await channel.begin(message, body_of(message))

    pair.run(test())


def test_an_answer_that_does_not_come_ends_with_its_deadline(pair):
    async def test():
        gate = Gate()
        async with pair(gate) as swarm:
            channel = await swarm.connect()
            message = dispatch(deadline_ms=30)
            with pytest.raises(DeadlineExceeded):
                await channel.begin(message, body_of(message))
            await gate.cancelled.wait()

    pair.run(test())


def test_a_closed_channel_ends_what_was_begun_and_begins_nothing(pair):
    async def test():
        gate = Gate()
        async with pair(gate) as swarm:
            channel = await swarm.connect()
            message = dispatch()
            answer = channel.begin(message, body_of(message))
            await gate.arrived.wait()
            await channel.aclose()
            with pytest.raises(ChannelClosed):
                await answer
            with pytest.raises(ChannelClosed):
                channel.begin(message, body_of(message))

    pair.run(test())
