"""What a node with a disk says of itself while experts come to its disk and go into its memory: each expert is in
exactly one of the two, in every record."""

import asyncio
import random
from collections.abc import AsyncGenerator

import pytest

from shoal.experts.backend import PackedExpert
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.node.announcer import Claim
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.keeper import COLD_BATCH, Keeper
from shoal.node.serving.cold import ColdExperts, LatestExperts
from shoal.node.serving.server import Held
from shoal.protocol.errors import NetworkError
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import WeightFormat
from shoal.protocol.record_book import RecordBook
from shoal.simulations.virtual.loop import run_virtual
from tests.node.holdings.test_joining import place_of
from tests.node.serving.test_batcher import SPEC, packed_experts

LAYER = LayerId(1)
PACKED = packed_experts(choose_backend(KernelChoice.REFERENCE, 1), WeightFormat.BF16)[0]


def some(*experts: int) -> Holding:
    return {LAYER: tuple(map(ExpertId, experts))}


class Scene:
    """A keeper of expert 0, with others on its disk, and every claim that it made."""

    def __init__(self, on_disk: Holding, capacity: int = 10) -> None:
        self.claims: list[Claim] = []
        self.announcer = place_of(RecordBook(), random.Random(1), 0).announcer
        self.held = Held(b"r" * 32, WeightFormat.BF16, SPEC, {LAYER: {ExpertId(0): PACKED}})
        self.cold = ColdExperts(on_disk, LatestExperts(lambda layer, expert: PACKED, 2, iter(range(1000)).__next__))
        self.fails_after: int | None = None
        note = self.announcer.note

        def noting(claim: Claim) -> None:
            self.claims.append(claim)
            note(claim)

        self.announcer.note = noting  # type: ignore[method-assign]
        self.keeper = Keeper(
            self.held, self.announcer, self.pack, capacity, 1, self.arriving, self.cold
        )  # fmt: skip

    async def pack(self, layer: LayerId, expert: ExpertId) -> PackedExpert:
        await asyncio.sleep(7.0)
        return PACKED

    async def arriving(self, holding: Holding) -> AsyncGenerator[tuple[LayerId, ExpertId]]:
        for layer, experts in holding.items():
            for expert in experts:
                await asyncio.sleep(1.0)
                if self.fails_after == 0:
                    raise NetworkError("a test")
                if self.fails_after is not None:
                    self.fails_after -= 1
                yield layer, expert


def test_what_is_taken_over_from_disk_is_said_to_be_in_memory_or_on_disk_in_every_record() -> None:
    async def main() -> None:
        scene = Scene(some(1, 2, 3))
        await scene.keeper.announce()
        await scene.keeper.announce(some(2, 3))
        await scene.keeper.take(some(2, 3))
        for claim in scene.claims:
            assert sorted((*claim.holding[LAYER], *claim.cold.get(LAYER, ()))) == [0, 1, 2, 3]
        assert scene.claims[-1].holding == some(0, 2, 3)
        assert scene.claims[-1].cold == scene.keeper.cold == some(1)
        assert scene.keeper.num_experts == 3

    run_virtual(main, random.Random(1), 600.0)


def test_what_is_dropped_from_memory_and_is_on_disk_is_read_from_there_again_from_its_withdrawal_on() -> None:
    async def main() -> None:
        scene = Scene(some(0, 1))
        await scene.keeper.announce()
        assert scene.claims[-1].cold == some(1)
        await scene.keeper.announce(dropped=some(0))
        assert (scene.claims[-1].holding, scene.claims[-1].cold) == ({}, some(0, 1))
        await scene.keeper.drop(some(0))
        assert scene.keeper.cold == some(0, 1)

    run_virtual(main, random.Random(1), 600.0)


def test_what_comes_to_the_disk_is_said_a_few_at_a_time_and_keeps_what_is_coming() -> None:
    wished = some(*range(1, 2 * COLD_BATCH))

    async def main() -> None:
        scene = Scene({})
        await scene.keeper.announce(coming=some(40))
        assert scene.keeper.lacking_cold(wished) == wished
        await scene.keeper.bring_cold(wished)
        assert [len(claim.cold.get(LAYER, ())) for claim in scene.claims] == [0, COLD_BATCH, 2 * COLD_BATCH - 1]
        assert all(claim.coming == some(40) for claim in scene.claims)
        assert scene.keeper.lacking_cold(wished) == {}

    run_virtual(main, random.Random(1), 600.0)


def test_what_came_to_the_disk_before_a_failure_stays() -> None:
    async def main() -> None:
        scene = Scene({})
        scene.fails_after = 3
        with pytest.raises(NetworkError):
            await scene.keeper.bring_cold(some(*range(1, 9)))
        assert scene.keeper.cold == some(1, 2, 3)
        assert scene.keeper.lacking_cold(some(*range(1, 9))) == some(4, 5, 6, 7, 8)

    run_virtual(main, random.Random(1), 600.0)


def test_who_takes_something_over_waits_for_a_few_that_come_to_the_disk_and_not_for_all() -> None:
    async def main() -> float:
        scene, loop = Scene({}, capacity=100), asyncio.get_running_loop()
        filling = asyncio.create_task(scene.keeper.bring_cold(some(*range(1, 1 + 8 * COLD_BATCH))))
        await asyncio.sleep(0.5)
        await scene.keeper.take(some(200))
        took_s = loop.time()
        assert not filling.done()
        filling.cancel()
        await asyncio.wait({filling})
        return took_s

    assert run_virtual(main, random.Random(1), 6000.0) < 2 * COLD_BATCH + 8


def test_room_is_what_may_stay_in_memory_and_a_node_of_disk_alone_has_none() -> None:
    async def main() -> None:
        assert Scene(some(1, 2), capacity=4).keeper.room == 3
        scene = Scene(some(1, 2), capacity=0)
        scene.held.experts.clear()
        assert (scene.keeper.room, scene.keeper.holding, scene.keeper.cold) == (0, {}, some(1, 2))

    run_virtual(main, random.Random(1), 60.0)
