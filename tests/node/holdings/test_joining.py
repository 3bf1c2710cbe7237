"""Nodes that join at the same moment part the work, in virtual time, over a directory that all of them share."""

import asyncio
import random
import socket
import time
from dataclasses import replace

import pytest

from shoal.node.announcer import Announcer, Claim, Load
from shoal.node.holdings.joining import Choice, Place, find_place, look_around
from shoal.node.holdings.placement import FAR, Around, Layout, Shape
from shoal.node.holdings.survey import Me
from shoal.protocol.identity import Identity
from shoal.protocol.ids import LayerId
from shoal.protocol.messages import WeightFormat
from shoal.protocol.net.memory_directory import MemoryDirectory
from shoal.protocol.record_book import RecordBook
from shoal.simulations.virtual.loop import run_virtual

SHAPE = Shape((LayerId(1), LayerId(2), LayerId(3)), 16, 4)
EPOCH_S = 1_800_000_000.0


def place_of(book: RecordBook, rng: random.Random, capacity: int, around: Around = FAR) -> Place:
    identity, loop = Identity.from_seed(rng.randbytes(32)), asyncio.get_running_loop()

    def clock() -> float:
        return EPOCH_S + loop.time()

    directory = MemoryDirectory(book, identity, clock)
    claim = Claim(identity.peer, b"r" * 32, {}, WeightFormat.FP8_BLOCK, 1, (), since_s=int(clock()))
    me = Me(identity.peer, claim.since_s, WeightFormat.FP8_BLOCK, "")
    announcer = Announcer(directory, claim, lambda: Load(0, 0))
    return Place(SHAPE, me, capacity, directory, announcer, rng.random, clock, around)


async def join(place: Place, is_alone: bool = False) -> Choice:
    choice = await find_place(place, is_alone)
    await place.announcer.declare(replace(place.announcer.claim, holding=choice.holding, coming={}))
    return choice


def together(num_nodes: int, capacity: int, seed: int, around: Around = FAR) -> list[Choice]:
    rng = random.Random(seed)

    async def main() -> list[Choice]:
        book = RecordBook()
        return await asyncio.gather(*(join(place_of(book, rng, capacity, around)) for _ in range(num_nodes)))

    return run_virtual(main, rng, 600.0)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("around", [FAR, Around(Layout.MANY_LAYERS), Around(Layout.MANY_LAYERS, "room-1")])
def test_those_who_join_at_the_same_moment_leave_no_gap_between_them(seed: int, around: Around) -> None:
    choices = together(num_nodes=3, capacity=16, seed=seed, around=around)
    held = [(layer, expert) for choice in choices for layer, ids in choice.holding.items() for expert in ids]
    assert len(held) == len(set(held)) == 48


@pytest.mark.parametrize("seed", range(10))
def test_five_at_once_hold_nothing_three_times_while_something_is_held_once(seed: int) -> None:
    choices = together(num_nodes=5, capacity=16, seed=seed)
    counts = {(layer, expert): 0 for layer in SHAPE.layers for expert in range(16)}
    for choice in choices:
        for layer, ids in choice.holding.items():
            for expert in ids:
                counts[layer, expert] += 1
    assert set(counts.values()) == {1, 2}


def test_the_first_of_a_swarm_waits_for_nobody_and_says_what_it_chose() -> None:
    async def main() -> tuple[Choice, float]:
        choice = await join(place_of(RecordBook(), random.Random(0), 20), is_alone=True)
        return choice, asyncio.get_running_loop().time()

    choice, waited_s = run_virtual(main, random.Random(0), 60.0)
    assert waited_s == 0
    assert choice.figures == (20, 20, 20, 5, 0)


def test_a_newcomer_says_what_nobody_held_before_it() -> None:
    async def main() -> Choice:
        book, rng = RecordBook(), random.Random(1)
        await join(place_of(book, rng, 16), is_alone=True)
        return await join(place_of(book, rng, 48))

    choice = run_virtual(main, random.Random(0), 60.0)
    assert (choice.num_experts, choice.num_missing, choice.num_rare, choice.num_holders) == (48, 32, 48, 1)


def test_a_newcomer_measures_those_whom_it_joins_by_and_spreads_among_near_ones() -> None:
    """Real sockets: what answers is a listener on loopback."""

    async def main() -> list[Around]:
        with socket.create_server(("127.0.0.1", 0)) as peer, socket.create_server(("127.0.0.1", 0)) as ours:
            place = place_of(RecordBook(), random.Random(0), 20)
            join = [f"/ip4/127.0.0.1/tcp/{peer.getsockname()[1]}/p2p/somebody"]
            own = [f"/ip4/127.0.0.1/tcp/{ours.getsockname()[1]}/p2p/{place.me.peer}"]
            looks = ((own, join, 60.0), (own, join, 0.0), (join, join, 60.0), (own, own, 60.0))
            return [await look_around(place, *each, time.perf_counter) for each in looks]

    found = [around.layout for around in asyncio.run(main())]
    assert found == [Layout.MANY_LAYERS, Layout.FEW_LAYERS, Layout.FEW_LAYERS, Layout.FEW_LAYERS]
