"""Requests, replies, and everything that may come between them, over every kind of channel."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from shoal.protocol import limits
from shoal.protocol.errors import (
    AddressInUse,
    Busy,
    Cancelled,
    ChannelClosed,
    ConnectFailed,
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    Malformed,
    NotHeld,
    PeerFailed,
    ShoalError,
    WireCode,
)
from shoal.protocol.frames import Frame, encode_frame, encode_header
from shoal.protocol.messages import Cancel, Drain, Lane, Message, Partial, Ping, Pong, Refusal, Welcome
from shoal.protocol.net.channel import Channel, Reply, Request, Traffic
from shoal.protocol.net.lane import LaneStream
from shoal.protocol.net.memory import MemoryNetwork
from shoal.protocol.tensors import request_hash
from tests.protocol.networks import (
    CLIENT,
    OTHER,
    PAIRS,
    SERVER,
    Gate,
    Kind,
    Pair,
    body_of,
    dispatch,
    echo,
    reply_to,
    run,
)

FROM_SERVER: frozenset[type[Message]] = frozenset({Partial, Refusal, Ping, Pong, Drain})


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Kind:
    return PAIRS[request.param]


async def ask(channel: Channel, tag: int = 0, **shape: int) -> Reply:
    message = dispatch(**shape)
    return await channel.request(message, body_of(message, tag))


async def next_frame(lane: LaneStream) -> Frame:
    return await lane.receive()


def begun(lane: LaneStream) -> LaneStream:
    lane.begin(FROM_SERVER, Traffic())
    return lane


def test_a_request_is_answered_with_its_own_partial(pair):
    async def test():
        async with pair(echo) as swarm:
            channel = await swarm.connect()
            reply = await ask(channel, 9)
            message = dispatch()
            assert reply.message.request_hash == request_hash(encode_header(message), *body_of(message, 9))
            assert reply.body[0] == 9
            assert channel.peer == SERVER.peer
            assert channel.traffic.bytes_sent > message.body_size()
            assert channel.traffic.bytes_received > reply.message.body_size()

    pair.run(test())


def test_bodies_of_every_size_survive(pair):
    async def test():
        async with pair(echo) as swarm:
            channel = await swarm.connect()
            for hidden in (1, 300, 7168, 16_384):
                for num_tokens in (1, 3, 64):
                    reply = await ask(channel, 5, hidden=hidden, num_tokens=num_tokens)
                    assert len(reply.body) == 4 * hidden * num_tokens
                    assert reply.body[0] == 5

    pair.run(test())


def test_the_handler_knows_who_asks_and_until_when(pair):
    async def test():
        seen: list[Request] = []

        async def handler(request: Request) -> Reply:
            seen.append(request)
            return reply_to(request)

        async with pair(handler) as swarm:
            channel = await swarm.connect()
            before = asyncio.get_running_loop().time()
            await ask(channel, deadline_ms=3000)
            assert seen[0].peer == CLIENT.peer
            assert before + 3 <= seen[0].deadline < before + 4
            assert seen[0].message == dispatch(deadline_ms=3000)

    pair.run(test())


def test_replies_may_overtake_each_other(pair):
    async def test():
        second_is_done = asyncio.Event()

        async def handler(request: Request) -> Reply:
            if request.body[0] == 1:
                await second_is_done.wait()
            return reply_to(request)

        async with pair(handler) as swarm:
            channel = await swarm.connect()
            first = asyncio.ensure_future(ask(channel, 1))
            second = await ask(channel, 2)
            assert not first.done()
            second_is_done.set()
            assert ((await first).body[0], second.body[0]) == (1, 2)

    pair.run(test())


def test_a_big_frame_does_not_delay_a_small_one_behind_a_slow_handler(pair):
    async def test():
        gate = Gate()

        async def handler(request: Request) -> Reply:
            return await gate(request) if request.message.num_tokens > 1 else reply_to(request)

        async with pair(handler) as swarm:
            channel = await swarm.connect()
            big = asyncio.ensure_future(ask(channel, 1, num_tokens=512, hidden=2048))
            await gate.arrived.wait()
            await ask(channel, 2)
            gate.opened.set()
            assert len((await big).body) == 512 * 2048 * 4

    pair.run(test())


def test_cancelling_a_request_reaches_the_handler_and_frees_its_credits(pair):
    async def test():
        gate = Gate()
        async with pair(gate) as swarm:
            channel = await swarm.connect()
            for _ in range(2):
                asking = asyncio.ensure_future(ask(channel))
                await gate.arrived.wait()
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
                await gate.cancelled.wait()
                gate.arrived.clear()
                gate.cancelled.clear()
            gate.opened.set()
            await asyncio.gather(*(ask(channel) for _ in range(limits.MAX_INFLIGHT_REQUESTS)))

    pair.run(test())


def test_a_deadline_ends_the_wait_and_the_handler(pair):
    async def test():
        gate = Gate()
        async with pair(gate) as swarm:
            channel = await swarm.connect()
            with pytest.raises(DeadlineExceeded):
                await ask(channel, deadline_ms=30)
            await gate.cancelled.wait()

    pair.run(test())


def test_the_server_keeps_the_deadline_by_itself(pair):
    async def test():
        gate = Gate()
        async with pair(gate) as swarm:
            lane, _ = await swarm.raw_lane()
            message = dispatch(deadline_ms=20)
            begun(lane).write(1, message, body_of(message))
            answer = await next_frame(lane)
            assert (answer.request_id, answer.message) == (1, Refusal(WireCode.DEADLINE, 0))
            assert gate.cancelled.is_set()
            lane.close()

    pair.run(test())


def test_over_the_limit_is_busy_at_once_and_never_queued(pair):
    async def test():
        gate = Gate()
        async with pair(gate) as swarm:
            lane, welcome = await swarm.raw_lane()
            assert isinstance(welcome, Welcome)
            begun(lane)
            message = dispatch()
            for request_id in range(1, welcome.credit_requests + 2):
                lane.write(request_id, message, body_of(message))
            answer = await next_frame(lane)
            assert answer.request_id == welcome.credit_requests + 1
            assert isinstance(answer.message, Refusal)
            assert answer.message.code == WireCode.BUSY
            assert answer.message.retry_after_ms > 0
            lane.close()

    pair.run(test())


def test_a_client_waits_for_credits_within_its_deadline(pair):
    async def test():
        gate = Gate()
        async with pair(gate) as swarm:
            channel = await swarm.connect()
            first = [asyncio.ensure_future(ask(channel)) for _ in range(limits.MAX_INFLIGHT_REQUESTS)]
            await gate.arrived.wait()
            with pytest.raises(DeadlineExceeded, match="credits"):
                await ask(channel, deadline_ms=30)
            late = asyncio.ensure_future(ask(channel, 7))
            gate.opened.set()
            assert (await late).body[0] == 7
            await asyncio.gather(*first)

    pair.run(test())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NotHeld("no"), NotHeld),
        (Busy("full", 0.25), Busy),
        (Draining("bye"), Draining),
        (Malformed("bad"), Malformed),
        (InvalidRequest("our own fault"), PeerFailed),
        (RuntimeError("secret payload"), PeerFailed),
    ],
)
def test_a_handlers_error_arrives_as_its_type_without_its_text(pair, error, expected, caplog):
    async def handler(request: Request) -> Reply:
        raise error

    async def test():
        async with pair(handler) as swarm:
            channel = await swarm.connect()
            with pytest.raises(expected) as caught:
                await ask(channel)
            assert not isinstance(caught.value, Busy) or caught.value.retry_after_s == 0.25
            assert str(error) not in str(caught.value)

    with caplog.at_level(logging.DEBUG):
        pair.run(test())
    assert "secret payload" not in caplog.text
    assert ("RuntimeError" in caplog.text) == isinstance(error, RuntimeError)


def test_a_reply_to_another_request_is_malformed(pair):
    async def handler(request: Request) -> Reply:
        reply = reply_to(request)
        return replace(reply, message=replace(reply.message, request_hash=bytes(32)))

    async def test():
        async with pair(handler) as swarm:
            channel = await swarm.connect()
            with pytest.raises(Malformed):
                await ask(channel)
            assert channel.is_closed

    pair.run(test())


def test_a_reply_of_the_wrong_size_never_leaves_the_server(pair):
    async def handler(request: Request) -> Reply:
        return replace(reply_to(request), body=b"")

    async def test():
        async with pair(handler) as swarm:
            channel = await swarm.connect()
            with pytest.raises(PeerFailed):
                await ask(channel)

    pair.run(test())


def test_a_body_of_the_wrong_size_is_our_own_mistake(pair):
    async def test():
        async with pair(echo) as swarm:
            channel = await swarm.connect()
            with pytest.raises(InvalidRequest):
                await channel.request(dispatch(), [b"short"])
            await ask(channel)

    pair.run(test())


def cut_by(write: Callable[[LaneStream], None]) -> Callable[[Pair], Awaitable[None]]:
    async def check(swarm: Pair) -> None:
        lane, _ = await swarm.raw_lane()
        write(begun(lane))
        with pytest.raises(ChannelClosed):
            await next_frame(lane)
        lane.close()

    return check


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        encode_frame(1, dispatch())[:8] + (2**32 - 1).to_bytes(4, "big") + bytes(8),
        encode_frame(1, dispatch(), header=b"\x80"),
        encode_frame(1, Refusal(1, 0)),
        encode_frame(1, Welcome(1, bytes(32), 1, limits.MAX_BODY_BYTES)),
    ],
    ids=["garbage", "oversize", "header", "refusal", "welcome"],
)
def test_a_client_that_breaks_the_protocol_is_cut(pair, data):
    async def test():
        async with pair(echo) as swarm:
            await cut_by(lambda lane: lane._writer.write(data))(swarm)
            await ask(await swarm.connect())

    pair.run(test())


def test_a_request_id_in_use_is_refused_by_cutting_the_lane(pair):
    def twice(lane: LaneStream) -> None:
        for _ in range(2):
            lane.write(5, dispatch(), body_of(dispatch()))

    async def test():
        async with pair(Gate()) as swarm:
            await cut_by(twice)(swarm)

    pair.run(test())


def test_a_slow_handshake_is_cut(pair, monkeypatch):
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.2)

    async def test():
        async with pair(echo) as swarm:
            reader, writer = await swarm.open_stream()
            with suppress(ConnectionError):
                while await reader.read(100):  # CHALLENGE, then the end
                    pass
            writer.close()

    pair.run(test())


def test_who_hesitates_in_the_handshake_makes_room_for_newcomers(pair, monkeypatch):
    monkeypatch.setattr(limits, "MAX_HALF_OPEN", 4)

    async def test():
        async with pair(echo) as swarm:
            silent = [await swarm.open_stream() for _ in range(4)]
            for reader, _ in silent:
                assert await reader.read(100)  # CHALLENGE
            await ask(await swarm.connect())
            with suppress(ConnectionError):
                assert await silent[0][0].read(100) == b""  # the oldest was cut
            for _, writer in silent:
                writer.close()

    pair.run(test())


def test_a_peers_connections_are_limited_and_the_refusal_says_so(pair):
    async def test():
        async with pair(echo) as swarm:
            channels = [await swarm.connect() for _ in range(limits.MAX_CONNECTIONS_PER_PEER // 3)]
            with pytest.raises(Busy):
                await swarm.connect()
            await channels[0].aclose()
            await ask(channels[1])

    pair.run(test())


def test_a_lane_exists_once_in_a_session(pair):
    async def test():
        async with pair(echo) as swarm:
            first, _ = await swarm.raw_lane(Lane.ACT)
            with pytest.raises(ChannelClosed):
                await swarm.raw_lane(Lane.ACT)
            first.close()

    pair.run(test())


def test_another_peer_can_not_join_a_session_or_cancel_its_requests(pair):
    async def test():
        gate = Gate()
        async with pair(gate) as swarm:
            act, _ = await swarm.raw_lane(Lane.ACT)
            begun(act).write(1, dispatch(), body_of(dispatch()))
            await gate.arrived.wait()
            foreign, _ = await swarm.raw_lane(Lane.CTL, identity=OTHER)
            begun(foreign).write(1, Cancel())
            foreign.write(0, Ping(bytes(8)))
            await next_frame(foreign)
            assert not gate.cancelled.is_set()
            gate.opened.set()
            assert isinstance((await next_frame(act)).message, Partial)
            foreign.close()
            act.close()

    pair.run(test())


def test_a_cancel_that_overtakes_its_request_still_cancels_it(pair):
    async def test():
        async with pair(echo) as swarm:
            act, _ = await swarm.raw_lane(Lane.ACT)
            ctl, _ = await swarm.raw_lane(Lane.CTL)
            begun(ctl).write(1, Cancel())
            ctl.write(0, Ping(bytes(8)))
            await next_frame(ctl)
            begun(act).write(1, dispatch(), body_of(dispatch()))
            assert (await next_frame(act)).message == Refusal(WireCode.CANCELLED, 0)
            ctl.close()
            act.close()

    pair.run(test())


def test_a_client_that_disappears_cancels_its_handlers(pair):
    async def test():
        gate = Gate()
        async with pair(gate) as swarm:
            lane, _ = await swarm.raw_lane()
            begun(lane).write(1, dispatch(), body_of(dispatch()))
            await gate.arrived.wait()
            lane.abort()
            await gate.cancelled.wait()

    pair.run(test())


async def is_cut(swarm: Pair, name: Lane) -> None:
    """Wait until the server has ended a lane: then, and not before, the session may have another."""
    while True:
        with suppress(ChannelClosed):
            successor, _ = await swarm.raw_lane(name)
            successor.close()
            return
        await asyncio.sleep(0.01)  # or trying alone keeps the loop busy


def test_a_client_that_leaves_its_answers_unread_until_their_deadline_is_cut(pair):
    async def test():
        async with pair(echo) as swarm:
            lane, _ = await swarm.raw_lane(Lane.ACT)
            begun(lane)
            message = dispatch(num_tokens=64, hidden=16_384, deadline_ms=2000)  # 4 MiB come back, well before
            for request_id in range(1, 5):
                lane.write(request_id, message, body_of(message))
            await is_cut(swarm, Lane.ACT)
            lane.abort()

    pair.run(test())


def test_a_flood_of_pings_is_not_answered_faster_than_it_is_read(pair, monkeypatch):
    monkeypatch.setattr("shoal.protocol.net.lane.STALL_TIMEOUT_S", 0.2)

    async def test():
        async with pair(echo) as swarm:
            lane, _ = await swarm.raw_lane(Lane.CTL)
            begun(lane)._writer.write(encode_frame(0, Ping(bytes(8))) * 300_000)  # 10 MB of pongs
            await is_cut(swarm, Lane.CTL)
            lane.abort()

    pair.run(test())


def test_draining_finishes_what_is_in_flight_and_takes_nothing_new(pair):
    async def test():
        gate = Gate()
        async with pair(gate) as swarm:
            channel = await swarm.connect()
            asking = asyncio.ensure_future(ask(channel, 4))
            await gate.arrived.wait()
            draining = asyncio.ensure_future(swarm.listener.drain(10.0))
            while not channel.is_draining:
                await channel.ping(5.0)
            with pytest.raises(Draining):
                await ask(channel)
            with pytest.raises((Draining, ConnectFailed)):
                await swarm.connect()
            gate.opened.set()
            assert (await asking).body[0] == 4
            await draining
            assert channel.is_closed

    pair.run(test())


def test_draining_waits_no_longer_than_its_grace(pair):
    async def test():
        gate = Gate()
        async with pair(gate) as swarm:
            channel = await swarm.connect()
            asking = asyncio.ensure_future(ask(channel))
            await gate.arrived.wait()
            await swarm.listener.drain(0.02)
            await swarm.listener.aclose()
            assert gate.cancelled.is_set()
            with pytest.raises(ChannelClosed):
                await asking

    pair.run(test())


def test_a_ping_measures_the_round_trip(pair):
    async def test():
        async with pair(echo) as swarm:
            channel = await swarm.connect()
            assert 0 <= await channel.ping(5.0) < 5.0

    pair.run(test())


def test_a_closed_channel_says_so(pair):
    async def test():
        gate = Gate()
        async with pair(gate) as swarm:
            channel = await swarm.connect()
            asking = asyncio.ensure_future(ask(channel))
            await gate.arrived.wait()
            await channel.aclose()
            await channel.aclose()
            for attempt in (asking, ask(channel), channel.ping(1.0)):
                with pytest.raises(ChannelClosed):
                    await attempt

    pair.run(test())


def test_nobody_listening_is_connect_failed(pair):
    async def test():
        async with pair(echo) as swarm:
            await swarm.listener.aclose()
            with pytest.raises(ConnectFailed):
                await swarm.connect()

    pair.run(test())


def test_a_killed_server_ends_requests_at_once():
    async def test():
        network = MemoryNetwork()
        gate = Gate()
        listener = await network.listen(SERVER, gate, lambda size: bytes(size))
        connector = network.connector(CLIENT, lambda size: bytes(range(size)))
        channel = await connector.connect(SERVER.peer, listener.addresses, 1.0)
        asking = asyncio.ensure_future(ask(channel))
        await gate.arrived.wait()
        network.kill(SERVER.peer)
        with pytest.raises(ChannelClosed):
            await asking
        assert gate.cancelled.is_set() or await gate.cancelled.wait()
        with pytest.raises(ConnectFailed):
            await connector.connect(SERVER.peer, listener.addresses, 1.0)
        await connector.aclose()
        await listener.aclose()

    run(test())


def test_a_silenced_server_is_noticed_by_the_deadline():
    async def test():
        network = MemoryNetwork(delay_s=lambda sender, receiver: 0.001)
        listener = await network.listen(SERVER, echo, lambda size: bytes(size))
        connector = network.connector(CLIENT, lambda size: bytes(range(size)))
        channel = await connector.connect(SERVER.peer, listener.addresses, 1.0)
        assert await channel.ping(1.0) >= 0.002
        network.silence(SERVER.peer)
        with pytest.raises(DeadlineExceeded):
            await ask(channel, deadline_ms=20)
        with pytest.raises(DeadlineExceeded):
            await channel.ping(0.02)
        with pytest.raises(ConnectFailed):
            await connector.connect(SERVER.peer, listener.addresses, 0.02)
        await connector.aclose()
        await listener.aclose()

    run(test())


def test_a_peer_listens_once_in_memory():
    async def test():
        network = MemoryNetwork()
        listener = await network.listen(SERVER, echo, bytes)
        with pytest.raises(AddressInUse):
            await network.listen(SERVER, echo, bytes)
        await listener.aclose()

    run(test())


def test_every_error_type_survives_the_wire():
    from shoal.protocol.net.refusals import ERROR_TYPES, error_of, refusal_of

    assert set(ERROR_TYPES) == set(WireCode)
    for code, error_type in ERROR_TYPES.items():
        error: ShoalError = error_of(Refusal(code, 1500), SERVER.peer)
        assert type(error) is error_type
        assert refusal_of(error).code == (code if code is not WireCode.RATE else WireCode.BUSY)
    assert issubclass(Cancelled, ShoalError)
