"""Peers as one source: who is asked, who fetches what nobody has, and what becomes of those that lie, leave or stall.

Real seeders and fetcher between simulated machines, under a virtual clock.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace

import pytest

from shoal.experts.pieces.fetching import FetchSettings, fetch_pieces
from shoal.experts.pieces.store import PieceStore
from shoal.node.holdings.assignment import Holding
from shoal.node.seeding.first_copies import HELP_SHARE
from shoal.node.seeding.peers import LINE_PATIENCE_S, MAX_STREAMS, NUM_STREAMS, PATIENCE_S, Peers, Wanted
from shoal.node.seeding.standing import FOR_EVER, LACKS_S, REST_S, Standing
from shoal.node.seeding.taking import Partial, Taking
from shoal.protocol.errors import Busy, ChannelClosed, Malformed, NotHeld, ShoalError, SourceLied
from shoal.protocol.frames import Buffer
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.messages import Chunk, Dispatch, DType, Fetch
from shoal.protocol.net.channel import PieceReply, Reply, Traffic
from shoal.simulations.seeding.machines import ROOT, Machine, MachineSettings, MemoryDisk, Model, World
from shoal.simulations.seeding.run import SCENARIOS, SeedingSettings, simulate
from shoal.simulations.virtual.loop import run_virtual

MODEL = Model(num_layers=2, num_experts=4, piece_bytes=300_000)
ALL: Holding = {LayerId(layer): tuple(map(ExpertId, range(4))) for layer in range(2)}
FAST = 10_000_000.0
LIMIT_S = 100_000.0


def in_virtual_time(test: Callable[[World], Coroutine[object, object, None]]) -> None:
    run_virtual(lambda: test(World(MODEL, random.Random(1))), random.Random(2), LIMIT_S)


def settings(holding: Holding, up: float = FAST, has_hub: bool = False, is_lying: bool = False) -> MachineSettings:
    return MachineSettings(holding, up, FAST, has_hub=has_hub, is_lying=is_lying)


async def start(world: World, *machines: MachineSettings) -> list[Machine]:
    """The first is a newcomer; the others have what they hold."""
    made = [Machine(world, each) for each in machines]
    for number, each in enumerate(made):
        await each.start(is_full=number > 0)
    return made


async def stop(machines: list[Machine]) -> None:
    for each in machines:
        await each.stop()


def is_whole(machine: Machine) -> bool:
    world = machine.world
    return all(machine.store.read(piece.digest) == world.bytes_of[piece.digest] for piece in world.pieces.values())


def test_all_comes_from_a_peer_and_nothing_from_the_hub() -> None:
    async def test(world: World) -> None:
        machines = await start(world, settings(ALL, has_hub=True), settings(ALL))
        await machines[0].fill()
        assert is_whole(machines[0])
        assert world.hub_bytes == 0
        assert machines[1].metrics.pieces_given == len(world.pieces)
        await stop(machines)

    in_virtual_time(test)


def test_what_no_peer_has_comes_from_the_hub() -> None:
    async def test(world: World) -> None:
        half: Holding = {LayerId(0): ALL[LayerId(0)]}
        machines = await start(world, settings(ALL, has_hub=True), settings(half))
        await machines[0].fill()
        assert is_whole(machines[0])
        assert world.hub_bytes == 4 * MODEL.piece_bytes
        await stop(machines)

    in_virtual_time(test)


def test_each_expert_is_held_and_announced_before_the_last_has_come() -> None:
    async def test(world: World) -> None:
        newcomer, holder = machines = await start(world, settings(ALL), settings(ALL, up=30_000.0))
        filling = asyncio.create_task(newcomer.fill())
        seen: set[int] = set()
        while not filling.done():
            await asyncio.sleep(1.0)
            found = await holder.directory.lookup(ROOT, tuple(ALL))
            seen.add(
                sum(len(r.experts) for records in found.values() for r in records if r.peer != holder.identity.peer)
            )
        await filling
        assert {0, 1, 2} <= seen
        assert is_whole(newcomer)
        await stop(machines)

    in_virtual_time(test)


def test_a_liar_is_dropped_and_its_pieces_come_from_another() -> None:
    async def test(world: World) -> None:
        liars = [settings(ALL, is_lying=True) for _ in range(3)]
        machines = await start(world, settings(ALL), *liars, settings(ALL))
        await machines[0].fill()
        newcomer, peers = machines[0], machines[0].peers
        assert peers is not None
        assert is_whole(newcomer)
        dropped = [peers.standing(each.identity.peer).is_dropped for each in machines[1:]]
        assert dropped[-1] is False
        assert any(dropped[:-1])
        pieces_of_liars = [peers.standing(each.identity.peer).num_pieces for each in machines[1:-1]]
        assert pieces_of_liars == [0, 0, 0]
        await stop(machines)

    in_virtual_time(test)


def test_where_all_peers_lie_the_hub_gives() -> None:
    async def test(world: World) -> None:
        machines = await start(world, settings(ALL, has_hub=True), settings(ALL, is_lying=True))
        await machines[0].fill()
        assert is_whole(machines[0])
        assert world.hub_bytes == world.copy_bytes
        await stop(machines)

    in_virtual_time(test)


def test_a_piece_that_a_dying_peer_began_is_continued_from_another() -> None:
    """Not a byte that came is asked for again: what both gave is one copy, and what was on its way when one died."""

    async def test(world: World) -> None:
        newcomer, dying, other = await start(
            world, settings(ALL), settings(ALL, up=100_000.0), settings(ALL, up=100_000.0)
        )
        filling = asyncio.create_task(newcomer.fill())
        await asyncio.sleep(5.0)  # virtual: in mid-piece, at a third of a piece a second
        assert 0 < len(newcomer.store.pieces()) < len(world.pieces)
        await dying.stop()
        await filling
        assert is_whole(newcomer)
        given = dying.metrics.bytes_given + other.metrics.bytes_given
        assert given < world.copy_bytes + MODEL.piece_bytes
        await stop([newcomer, other])

    in_virtual_time(test)


def test_of_two_that_want_the_same_one_fetches_it_and_the_other_takes_it_from_there() -> None:
    async def test(world: World) -> None:
        machines = [Machine(world, settings(ALL, has_hub=True)) for _ in range(2)]
        for each in machines:
            await each.start()
        await asyncio.gather(*(each.fill() for each in machines))
        assert all(map(is_whole, machines))
        assert world.hub_bytes == world.copy_bytes
        await stop(machines)

    in_virtual_time(test)


def test_who_says_it_will_fetch_and_never_does_holds_nobody_up_for_long() -> None:
    async def test(world: World) -> None:
        newcomer, idler = machines = [Machine(world, settings(ALL, has_hub=True)) for _ in range(2)]
        for each in machines:
            await each.start()
        begun_s = asyncio.get_running_loop().time()
        await newcomer.fill()
        assert is_whole(newcomer)
        assert PATIENCE_S < asyncio.get_running_loop().time() - begun_s < 2 * PATIENCE_S
        await stop([newcomer, idler])

    in_virtual_time(test)


def test_a_node_waits_for_somebody_who_has_what_nobody_had() -> None:
    async def test(world: World) -> None:
        (newcomer,) = await start(world, settings(ALL))
        filling = asyncio.create_task(newcomer.fill())
        await asyncio.sleep(2 * LINE_PATIENCE_S)
        assert not filling.done()
        late = Machine(world, settings(ALL))
        await late.start(is_full=True)
        await filling
        assert is_whole(newcomer)
        await stop([newcomer, late])

    in_virtual_time(test)


def test_rarest_comes_first() -> None:
    async def test(world: World) -> None:
        rare, common = world.pieces[LayerId(0), ExpertId(0)], world.pieces[LayerId(0), ExpertId(1)]
        both: Holding = {LayerId(0): (ExpertId(0), ExpertId(1))}
        one: Holding = {LayerId(0): (ExpertId(1),)}
        machines = await start(world, settings(ALL), settings(both), settings(one), settings(one))
        wanted = Wanted(ROOT, (LayerId(0),), 10**6, PeerId("me"))
        peers = Peers(wanted, machines[0].directory, NOBODY, lambda: 0.5, lambda: 0)
        await peers.look()
        assert peers.rarity(rare) < peers.rarity(common)
        await peers.aclose()
        await stop(machines)

    in_virtual_time(test)


class _Nobody:
    """Implements `PieceConnector`: nobody answers."""

    async def connect(self, peer: PeerId, addresses: object, timeout_s: float) -> "Told":
        raise ChannelClosed("nobody")

    async def aclose(self) -> None: ...


NOBODY = _Nobody()


def test_what_was_stored_before_an_interruption_is_not_fetched_again() -> None:
    async def test(world: World) -> None:
        newcomer, holder = machines = await start(world, settings(ALL), settings(ALL, up=100_000.0))
        filling = asyncio.create_task(newcomer.fill())
        await asyncio.sleep(10.0)
        filling.cancel()
        await asyncio.wait({filling})
        num_there, given = len(newcomer.store.pieces()), holder.metrics.pieces_given
        assert 0 < num_there < len(world.pieces)
        await newcomer.fill()
        assert is_whole(newcomer)
        assert holder.metrics.pieces_given <= given + len(world.pieces) - num_there
        await stop(machines)

    in_virtual_time(test)


def test_the_last_pieces_come_from_an_idle_hub_where_their_only_peer_is_slow() -> None:
    """Of the twenty that a slow peer has, one: the share that may be fetched though a peer has it."""

    async def test(world: World) -> None:
        first: Holding = {LayerId(0): tuple(map(ExpertId, range(20)))}
        both: Holding = {**first, LayerId(1): tuple(map(ExpertId, range(20)))}
        machines = await start(world, settings(both, has_hub=True), settings(first, up=30_000.0))
        await machines[0].fill()
        assert is_whole(machines[0])
        assert world.hub_bytes == (20 + int(HELP_SHARE * 40)) * MODEL.piece_bytes
        await stop(machines)

    run_virtual(lambda: test(World(replace(MODEL, num_experts=20), random.Random(1))), random.Random(2), LIMIT_S)


def test_who_wants_many_takes_more_at_a_time() -> None:
    async def test(world: World) -> None:
        newcomer, *_ = machines = await start(world, settings(ALL), settings(ALL))
        await newcomer.fill()
        assert newcomer.peers is not None
        assert newcomer.peers.num_streams(1) == newcomer.peers.num_streams(61) == NUM_STREAMS
        assert NUM_STREAMS < newcomer.peers.num_streams(200) < newcomer.peers.num_streams(10_000) == MAX_STREAMS
        await stop(machines)

    in_virtual_time(test)


def test_many_newcomers_take_little_more_than_one_copy_from_the_hub() -> None:
    """`python -m shoal.simulations.seeding` says it of fifty; these are twelve, for three replicas."""
    given = SeedingSettings(num_nodes=12, model=replace(MODEL, num_experts=12))
    outcome = simulate(SCENARIOS["newcomers"], given)
    assert outcome.is_whole
    assert outcome.hub_copies <= 1.2
    assert outcome.peer_copies >= 1.8


# ------------------------------------------------------------------------------------------------ one piece, one peer


class Told:
    """Implements `PieceChannel`: gives what a test says."""

    peer = PeerId("told")
    is_closed = is_draining = False
    traffic = Traffic()
    dtypes = frozenset[DType]()

    def __init__(self, answer: Callable[[Fetch], PieceReply]) -> None:
        self.asked: list[Fetch] = []
        self._answer = answer

    def begin(self, message: Dispatch, body: object) -> "asyncio.Future[Reply] | None":
        return None

    async def request(self, message: Dispatch, body: object) -> Reply:
        raise ChannelClosed("no work here")

    async def fetch(self, message: Fetch) -> PieceReply:
        self.asked.append(message)
        await asyncio.sleep(0.01)
        return self._answer(message)

    async def ping(self, timeout_s: float) -> float:
        return 0.0

    async def aclose(self) -> None: ...


DATA = bytes(range(251)) * 2000


def chunk(begin: int, size: int, piece_bytes: int = len(DATA)) -> PieceReply:
    body: Buffer = DATA[begin : begin + size]
    return PieceReply(Chunk(bytes(32), piece_bytes, len(body)), body)


def take(answer: Callable[[Fetch], PieceReply], partial: Partial, max_bytes: int = 10**6) -> Told:
    channel = Told(answer)

    async def run() -> None:
        await Taking(channel, ROOT, b"d" * 32, max_bytes, lambda _: None).run(partial)

    run_virtual(run, random.Random(0), LIMIT_S)
    return channel


@pytest.mark.parametrize("most", [1, 997, 16_384, 10**6])
def test_chunks_of_whatever_length_are_put_together(most: int) -> None:
    partial = Partial()
    take(lambda asked: chunk(asked.begin, min(asked.size, max(most, len(DATA) // 200))), partial)
    assert bytes(partial.data) == DATA


def test_a_piece_that_claims_to_be_longer_than_any_is_not_made_room_for() -> None:
    partial = Partial()
    with pytest.raises(Malformed):
        take(lambda asked: chunk(0, 10, piece_bytes=2**30), partial)
    assert not partial.is_begun


def test_who_changes_the_length_of_a_piece_is_not_believed() -> None:
    def answer(asked: Fetch) -> PieceReply:
        return chunk(asked.begin, asked.size, len(DATA) + (asked.begin > 0))

    with pytest.raises(BaseExceptionGroup) as caught:
        take(answer, Partial())
    assert caught.group_contains(Malformed)


def test_what_did_not_come_is_asked_of_the_next() -> None:
    partial, num_asked = Partial(), 0

    def fail_later(asked: Fetch) -> PieceReply:
        nonlocal num_asked
        num_asked += 1
        if num_asked > 2:
            raise ChannelClosed("it left")
        return chunk(asked.begin, asked.size)

    with pytest.raises(BaseExceptionGroup):
        take(fail_later, partial)
    missing = sum(end - begin for begin, end in partial.gaps)
    assert 0 < missing < len(DATA)
    second = take(lambda asked: chunk(asked.begin, asked.size), partial)
    assert bytes(partial.data) == DATA
    assert sum(asked.size for asked in second.asked) == missing


# ------------------------------------------------------------------------------------------------ standing


@pytest.mark.parametrize(
    ("error", "until_s"),
    [
        (Busy("full", 3.0), 103.15),
        (Malformed("nonsense"), 100 + REST_S),
        (SourceLied("it", "a piece"), FOR_EVER),
        (ChannelClosed("gone"), 101.0),
    ],
)
def test_who_fails_is_left_in_peace_for_as_long_as_its_fault_asks(error: ShoalError, until_s: float) -> None:
    standing = Standing()
    standing.failed(error, b"d", 100.0, 0.5)
    assert standing.paused_until_s == pytest.approx(until_s)
    assert not standing.may_be_asked(b"d", 100.0)
    assert standing.may_be_asked(b"d", 1000.0) is (until_s < FOR_EVER)


def test_who_lacks_one_piece_is_asked_for_others() -> None:
    standing = Standing()
    standing.failed(NotHeld("not here"), b"d", 0.0, 0.5)
    assert standing.may_be_asked(b"e", 0.0)
    assert not standing.may_be_asked(b"d", LACKS_S - 1)
    assert standing.may_be_asked(b"d", LACKS_S)


def test_a_store_that_has_all_asks_nobody() -> None:
    async def test(world: World) -> None:
        store = PieceStore(MemoryDisk(world.bytes_of))
        for piece in world.pieces.values():
            store.put(piece.digest, world.bytes_of[piece.digest])
        fetched = await fetch_pieces(world.pieces.values(), [], store, FetchSettings())
        assert fetched.num_pieces == 0

    in_virtual_time(test)
