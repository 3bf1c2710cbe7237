"""A node with some experts in memory and others on disk: the real client and nodes in virtual time, so that no
machine's load is in it."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from shoal.client.engine.sampler import Sampling
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.healer import HealSettings
from shoal.protocol.events import DispatchSent, Event, FailedOver
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.net.memory import untouched
from shoal.simulations.virtual.injector import BASE_DELAY_S
from shoal.simulations.virtual.loop import run_virtual
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.promises import check_nodes
from shoal.simulations.virtual.run import Oracle
from shoal.simulations.virtual.soak import demo_model_in_memory
from shoal.simulations.virtual.world import World, open_world

PROMPT, SAMPLING = "Once upon a time", Sampling(max_tokens=8, ignore_eos=True)
HOLDER, TIERED = 0, 1
KILL_AFTER = 2
"""Tokens."""

MENDING = HealSettings(grace_s=60.0, step_s=15.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedModel]:
    with demo_model_in_memory(tmp_path_factory.mktemp("cache")) as model:
        yield model


@pytest.fixture(scope="module")
def expected(model: SimulatedModel) -> list[int]:
    return Oracle(model).tokens(PROMPT, SAMPLING)


@dataclass
class Told:
    """What was asked, with the number of tokens that were there by then."""

    tokens: list[int] = field(default_factory=list)
    asked: list[tuple[int, PeerId, LayerId, tuple[ExpertId, ...]]] = field(default_factory=list)
    failed: list[PeerId] = field(default_factory=list)


Scenario = Callable[[World, Told], Awaitable[None]]


def halves(model: SimulatedModel) -> tuple[Holding, Holding]:
    half = model.store.spec.router.num_experts // 2
    lower, upper = tuple(map(ExpertId, range(half))), tuple(map(ExpertId, range(half, 2 * half)))
    return dict.fromkeys(model.layers, lower), dict.fromkeys(model.layers, upper)


async def an_answer(world: World, told: Told, *, kills: bool) -> None:
    told.tokens.clear()
    async for token in world.swarm.stream(PROMPT, SAMPLING):
        told.tokens.append(token.id)
        if kills and token.index == KILL_AFTER:
            world.network.kill(world.nodes[HOLDER].identity.peer)


def run(
    model: SimulatedModel, scenario: Scenario, capacities: tuple[int, ...] = (), cached: int = 4, read_s: float = 0.05
) -> Told:
    """A swarm of one holder of everything, and one that has half of everything in memory and half on disk."""
    (lower, upper), told = halves(model), Told()
    everything = {layer: (*lower[layer], *upper[layer]) for layer in model.layers}

    def observe(event: Event) -> None:
        if isinstance(event, DispatchSent):
            told.asked.append((len(told.tokens), event.peer, event.layer, event.experts))
        if isinstance(event, FailedOver):
            told.failed.append(event.peer)

    async def main() -> None:
        async with open_world(
            model, [everything, lower], [0.0] * 2, random.Random(1), lambda sender, receiver: BASE_DELAY_S, untouched,
            lambda place, honest: honest, observe, capacities, MENDING, anchors={TIERED: cached}, cold={TIERED: upper},
            read_cost_s=read_s,
        ) as world:  # fmt: skip
            await scenario(world, told)
            check_nodes(world)

    run_virtual(main, random.Random(1), 3600.0)
    return told


def of_tiered(told: Told, world_peer: PeerId, upper: Mapping[LayerId, tuple[ExpertId, ...]]) -> tuple[int, int]:
    """Requests to the node with a disk: for what is in its memory, for what is on its disk. None is for both."""
    kinds = [[e in upper[layer] for e in experts] for _, peer, layer, experts in told.asked if peer == world_peer]
    assert all(all(kind) or not any(kind) for kind in kinds)
    return sum(not any(kind) for kind in kinds), sum(all(kind) for kind in kinds)


def test_while_a_holder_lives_only_what_is_in_memory_is_asked_of_the_other(
    model: SimulatedModel, expected: list[int]
) -> None:
    async def scenario(world: World, told: Told) -> None:
        await an_answer(world, told, kills=False)
        assert of_tiered(told, world.nodes[TIERED].identity.peer, halves(model)[1])[1] == 0

    assert run(model, scenario).tokens == expected


@pytest.mark.parametrize("cached", [1, 3, 1000], ids="{} experts stay of those that were read".format)
def test_when_the_only_holder_in_memory_dies_the_answer_goes_on_from_disk_with_the_same_tokens(
    model: SimulatedModel, expected: list[int], cached: int
) -> None:
    async def scenario(world: World, told: Told) -> None:
        await an_answer(world, told, kills=True)
        in_memory, on_disk = of_tiered(told, world.nodes[TIERED].identity.peer, halves(model)[1])
        assert in_memory > 0
        assert on_disk > 0

    assert run(model, scenario, cached=cached).tokens == expected


@pytest.mark.parametrize("read_s", [0.5, 3.0], ids="{} s a read".format)
def test_a_slow_disk_that_says_so_is_not_taken_for_a_stall(
    model: SimulatedModel, expected: list[int], read_s: float
) -> None:
    """Reading takes as long as a holder's whole deadline, and more."""

    async def scenario(world: World, told: Told) -> None:
        await an_answer(world, told, kills=True)
        tiered = world.nodes[TIERED].identity.peer
        assert of_tiered(told, tiered, halves(model)[1])[1] > 0
        assert tiered not in told.failed

    assert run(model, scenario, read_s=read_s).tokens == expected


def test_what_nobody_else_has_comes_from_disk_into_memory_and_is_in_one_of_the_two_at_every_moment(
    model: SimulatedModel, expected: list[int]
) -> None:
    """Healing: what is asked for from disk again and again is rare, and is taken over by who has it on disk."""
    (lower, upper), seen = halves(model), list[tuple[Holding, Holding]]()
    capacity = 2 * sum(map(len, upper.values()))

    async def scenario(world: World, told: Told) -> None:
        await an_answer(world, told, kills=True)
        keeper = world.nodes[TIERED].keeper
        assert keeper is not None
        while keeper.cold:
            said = keeper.announcer.claim
            seen.append((said.holding, said.cold))
            await asyncio.sleep(0.5)
        told.asked.clear()
        await an_answer(world, told, kills=False)
        assert world.nodes[TIERED].server is not None
        assert of_tiered(told, world.nodes[TIERED].identity.peer, upper)[0] > 0
        holders = world.clients[0].holders
        await holders.refresh()
        assert not holders.holder(world.nodes[TIERED].identity.peer).cold

    told = run(model, scenario, capacities=(0, capacity))
    assert told.tokens == expected
    assert len(seen) > 1
    for holding, cold in seen:
        for layer in model.layers:
            assert sorted((*holding.get(layer, ()), *cold.get(layer, ()))) == [*lower[layer], *upper[layer]]
