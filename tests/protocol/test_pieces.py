"""FETCH and CHUNK between two peers: in memory, over TLS and through libp2p.

Run: pytest tests/protocol/test_pieces.py
"""

import asyncio
import os
from dataclasses import replace

import pytest

from shoal.protocol import limits
from shoal.protocol.errors import Busy, ChannelClosed, DeadlineExceeded, Draining, Malformed, NotHeld, PeerFailed
from shoal.protocol.frames import FrameDecoder, encode_frame
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Chunk, Fetch, Lane
from shoal.protocol.net.channel import PieceReply, PieceRequest
from shoal.protocol.net.libp2p import Libp2pConnector, listen_libp2p
from shoal.protocol.net.p2pd import start_p2pd
from tests.protocol.networks import CLIENT, PAIRS, SERVER, SOON_S, Gate, Kind, body_of, dispatch, echo

PIECE = bytes(range(256)) * 4096
ROOT, DIGEST = b"r" * 32, b"d" * 32
ASK = Fetch(ROOT, DIGEST, 0, limits.MAX_CHUNK_BYTES, 60_000)


@pytest.fixture(params=PAIRS.values(), ids=list(PAIRS))
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


async def give(request: PieceRequest) -> PieceReply:
    asked = request.message
    body = PIECE[asked.begin : asked.begin + asked.size]
    return PieceReply(Chunk(request.request_hash, len(PIECE), len(body)), body)


def test_a_piece_comes_chunk_by_chunk_from_wherever_it_is_asked_for(kind: Kind) -> None:
    async def run() -> None:
        seen: list[PeerId] = []

        async def serve(request: PieceRequest) -> PieceReply:
            seen.append(request.peer)
            return await give(request)

        async with kind(echo, serve) as pair:
            channel = await pair.connect()
            begins = range(0, len(PIECE), ASK.size)
            replies = await asyncio.gather(*(channel.fetch(replace(ASK, begin=begin)) for begin in begins))
            assert b"".join(bytes(reply.body) for reply in replies) == PIECE
            assert {reply.message.piece_bytes for reply in replies} == {len(PIECE)}
            odd = await channel.fetch(replace(ASK, begin=777, size=3))
            assert bytes(odd.body) == PIECE[777:780]
            assert set(seen) == {CLIENT.peer}

    kind.run(run())


def test_whoever_gives_no_weights_says_so_and_goes_on_answering(kind: Kind) -> None:
    async def run() -> None:
        async with kind(echo) as pair:
            channel = await pair.connect()
            with pytest.raises(NotHeld):
                await channel.fetch(ASK)
            message = dispatch()
            assert (await channel.request(message, body_of(message, 9))).body[0] == 9

    kind.run(run())


@pytest.mark.parametrize("error", [Busy("full", 1.5), Draining("leaving"), NotHeld("gone"), Malformed("beyond")])
def test_a_refusal_of_a_piece_arrives_as_its_error(error: Exception) -> None:
    async def refuse(request: PieceRequest) -> PieceReply:
        raise error

    async def run() -> None:
        async with PAIRS["memory"](echo, refuse) as pair:
            channel = await pair.connect()
            with pytest.raises(type(error)) as caught:
                await channel.fetch(ASK)
            if isinstance(error, Busy):
                assert isinstance(caught.value, Busy)
                assert caught.value.retry_after_s == 1.5

    PAIRS["memory"].run(run())


def test_a_bug_in_giving_is_the_peers_failure_and_ends_nothing_else() -> None:
    async def fail(request: PieceRequest) -> PieceReply:
        raise KeyError("a bug")

    async def run() -> None:
        async with PAIRS["memory"](echo, fail) as pair:
            channel = await pair.connect()
            with pytest.raises(PeerFailed):
                await channel.fetch(ASK)
            message = dispatch()
            await channel.request(message, body_of(message))

    PAIRS["memory"].run(run())


def test_chunks_travel_on_bulk_whatever_their_size() -> None:
    """So a request on `act` is never behind one, nor its answer."""

    async def run() -> None:
        async with PAIRS["memory"](echo, give) as pair:
            lanes = {}
            for lane in Lane:
                lanes[lane], _ = await pair.raw_lane(lane)
            lanes[Lane.BULK].begin(frozenset({Chunk}), lanes[Lane.BULK].traffic)
            lanes[Lane.BULK].write(7, replace(ASK, size=16))
            frame = await lanes[Lane.BULK].receive()
            assert (frame.request_id, bytes(frame.body)) == (7, PIECE[:16])
            for stream in lanes.values():
                stream.abort()

    PAIRS["memory"].run(run())


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 17, "body": PIECE[:17]},
        {"piece_bytes": 15},
        {"request_hash": bytes(32)},
    ],
    ids=["more than asked", "beyond its own end", "of another request"],
)
def test_an_answer_that_does_not_fit_closes_the_channel(wrong: dict[str, object]) -> None:
    async def lie(request: PieceRequest) -> PieceReply:
        fields: dict[str, object] = {"request_hash": request.request_hash, "piece_bytes": 4096, "size": 16}
        fields |= {name: value for name, value in wrong.items() if name != "body"}
        body = wrong.get("body", PIECE[:16])
        assert isinstance(body, bytes)
        return PieceReply(Chunk(**fields), body)  # type: ignore[arg-type]  # the table above says which

    async def run() -> None:
        async with PAIRS["memory"](echo, lie) as pair:
            channel = await pair.connect()
            with pytest.raises(Malformed):
                await channel.fetch(replace(ASK, size=16))
            with pytest.raises(ChannelClosed):
                await channel.fetch(ASK)
            assert channel.is_closed

    PAIRS["memory"].run(run())


def test_a_chunk_in_answer_to_work_and_a_partial_in_answer_to_a_fetch_are_refused() -> None:
    """Types have their place: a peer can not pass one off as the other."""
    (frame,) = FrameDecoder().feed(encode_frame(1, Chunk(bytes(32), 4, 4)) + b"1234")
    assert isinstance(frame.message, Chunk)
    with pytest.raises(Malformed):
        list(FrameDecoder().feed(encode_frame(1, Chunk(bytes(32), 4, 4), body_bytes=5) + b"12345"))


def test_a_fetch_ends_with_its_deadline_and_its_handler_is_stopped() -> None:
    async def run() -> None:
        gate = Gate()

        async def wait(request: PieceRequest) -> PieceReply:
            gate.arrived.set()
            try:
                await gate.opened.wait()
            except asyncio.CancelledError:
                gate.cancelled.set()
                raise
            return await give(request)

        async with PAIRS["memory"](echo, wait) as pair:
            channel = await pair.connect()
            with pytest.raises(DeadlineExceeded):
                await channel.fetch(replace(ASK, deadline_ms=20))
            await asyncio.wait_for(gate.cancelled.wait(), SOON_S)

    PAIRS["memory"].run(run())


def test_a_fetch_takes_credits_for_the_bytes_it_asks_for() -> None:
    """As many as WELCOME granted are in flight; one more waits, and is given when one is answered."""

    async def run() -> None:
        gate, num_arrived = Gate(), 0

        async def wait(request: PieceRequest) -> PieceReply:
            nonlocal num_arrived
            num_arrived += 1
            await gate.opened.wait()
            return await give(request)

        async with PAIRS["memory"](echo, wait) as pair:
            channel = await pair.connect()
            tasks = [asyncio.create_task(channel.fetch(ASK)) for _ in range(limits.MAX_INFLIGHT_REQUESTS + 1)]
            await channel.ping(SOON_S)
            while num_arrived < limits.MAX_INFLIGHT_REQUESTS:
                await channel.ping(SOON_S)
            assert not any(task.done() for task in tasks)
            gate.opened.set()
            await asyncio.gather(*tasks)
            assert num_arrived == limits.MAX_INFLIGHT_REQUESTS + 1

    PAIRS["memory"].run(run())


def test_a_drained_server_gives_no_weights() -> None:
    async def run() -> None:
        async with PAIRS["memory"](echo, give) as pair:
            lane, _ = await pair.raw_lane(Lane.BULK)
            pair.listener.suspend(0.1)
            lane.begin(frozenset({Chunk}), lane.traffic)
            channel_closed = None
            try:
                await pair.connect()
            except (Draining, ChannelClosed) as error:
                channel_closed = error
            assert channel_closed is not None
            lane.abort()

    PAIRS["memory"].run(run())


def test_a_piece_comes_through_libp2p() -> None:
    async def run() -> None:
        server, client = await asyncio.gather(start_p2pd(SERVER), start_p2pd(CLIENT))
        try:
            listener = await listen_libp2p(SERVER, server, echo, os.urandom, pieces=give)
            connector = Libp2pConnector(CLIENT, client, os.urandom)
            channel = await connector.connect(SERVER.peer, listener.addresses, SOON_S)
            begins = range(0, len(PIECE), ASK.size)
            replies = await asyncio.gather(*(channel.fetch(replace(ASK, begin=begin)) for begin in begins))
            assert b"".join(bytes(reply.body) for reply in replies) == PIECE
            await connector.aclose()
            await listener.aclose()
        finally:
            await client.aclose()
            await server.aclose()

    asyncio.run(run())
