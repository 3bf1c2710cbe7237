"""A swarm that loses one node after another for good, in virtual time: what its nodes mend and what an answer sees.

Every expert has two holders; each node could hold more. A node dies, the others notice when its records expire, take
over what has become rare, and the next one dies. In the end a few nodes hold everything, and no token was lost.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from shoal.client.engine.sampler import Sampling
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.healer import REST_S, HealSettings
from shoal.protocol.ids import ExpertId
from shoal.protocol.net.memory import Delay, untouched
from shoal.simulations.virtual.injector import BASE_DELAY_S, JITTER
from shoal.simulations.virtual.loop import run_virtual
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.node import EPOCH_S
from shoal.simulations.virtual.promises import BrokenPromise, check_nodes, check_tokens
from shoal.simulations.virtual.run import Oracle
from shoal.simulations.virtual.world import World, open_world

LIMIT_S = 7200.0
NUM_NODES, NUM_DEATHS = 6, 3
HEAL = HealSettings(grace_s=20.0, step_s=5.0)
BETWEEN_DEATHS_S = 240.0
"""A record lives 90 s, then 20 s of grace, then the turns of those who are older; twice over."""

FULL_FOR_S = 3600.0
"""Long enough for every node to have tried, failed and rested, twice."""

ASK_EVERY_S = 30.0
GAP_WAIT_S = 300.0
PROMPT = "Once upon a time"
SAMPLING = Sampling(max_tokens=3, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Healed:
    """What became of a swarm that lost nodes for good. Replicas are by the directory at the end, of any expert."""

    num_answers: int
    num_left: int
    min_replicas: int
    max_replicas: int
    slowest_s: float
    """The longest answer."""


def run_healing(model: SimulatedModel, oracle: Oracle, seed: int, is_healing: bool = True) -> Healed:
    """Nodes die one by one, with time to heal in between. Every answer is held against the oracle's.

    Raises:
        CoverageGap: nobody took over what was lost. BrokenPromise: a token was wrong.
    """
    expected = oracle.tokens(PROMPT, SAMPLING)
    return run_virtual(lambda: _one_by_one(model, expected, seed, is_healing), random.Random(seed), LIMIT_S)


def run_gap(model: SimulatedModel, oracle: Oracle, seed: int) -> Healed:
    """Both holders of some experts die at once in the middle of an answer, which waits and goes on at the same token.

    Raises:
        CoverageGap: nobody took over what was lost within `GAP_WAIT_S`. BrokenPromise: a token was wrong.
    """
    expected = oracle.tokens(PROMPT, SAMPLING)
    return run_virtual(lambda: _gap(model, expected, seed), random.Random(seed), LIMIT_S)


def run_full_disks(model: SimulatedModel, oracle: Oracle, seed: int) -> tuple[Healed, Healed]:
    """A node dies for good while no disk takes a byte, and somebody makes room an hour later: the swarm before and
    after that. Every answer is held against the oracle's.

    Raises:
        BrokenPromise: a token was wrong, or a node is not as it should be.
    """
    expected = oracle.tokens(PROMPT, SAMPLING)
    return run_virtual(lambda: _full_disks(model, expected, seed), random.Random(seed), 2 * LIMIT_S)


async def _full_disks(model: SimulatedModel, expected: Sequence[int], seed: int) -> tuple[Healed, Healed]:
    rng = random.Random(seed)
    async with open_world(
        model, _two_holders_each(model, rng), [0.0] * NUM_NODES, rng, _delay(rng), untouched,
        lambda _, honest: honest, lambda event: None, [_num_experts(model)] * NUM_NODES, HEAL,
    ) as world:  # fmt: skip
        for node in world.nodes:
            node.disk.is_full = True
        await world.nodes[0].crash(world.network)
        await asyncio.sleep(FULL_FOR_S)
        full = _healed(world, [await _ask(world, expected)])
        if not any(node.disk.num_refused for node in world.nodes):
            raise BrokenPromise("an hour of rare experts, and no node tried to store one")
        for node in world.nodes:
            node.disk.is_full = False
        await asyncio.sleep(REST_S + BETWEEN_DEATHS_S)
        check_nodes(world)
        return full, _healed(world, [await _ask(world, expected)])


async def _one_by_one(model: SimulatedModel, expected: Sequence[int], seed: int, is_healing: bool) -> Healed:
    rng, times_s = random.Random(seed), list[float]()
    capacities = [_num_experts(model)] * NUM_NODES if is_healing else []
    async with open_world(
        model, _two_holders_each(model, rng), [0.0] * NUM_NODES, rng, _delay(rng), untouched,
        lambda _, honest: honest, lambda event: None, capacities, HEAL,
    ) as world:  # fmt: skip
        dying = asyncio.create_task(_die_one_by_one(world, rng), name="deaths")
        try:
            while not dying.done():
                await asyncio.sleep(ASK_EVERY_S)
                times_s.append(await _ask(world, expected))
        finally:
            dying.cancel()
            await asyncio.wait({dying})
        return _healed(world, times_s)


async def _gap(model: SimulatedModel, expected: Sequence[int], seed: int) -> Healed:
    rng = random.Random(seed)
    capacities = [_num_experts(model)] * NUM_NODES
    async with open_world(
        model, _pairs(model), [0.0] * NUM_NODES, rng, _delay(rng), untouched,
        lambda _, honest: honest, lambda event: None, capacities, HEAL, GAP_WAIT_S,
    ) as world:  # fmt: skip

        async def both_die() -> None:
            for node in world.nodes[:2]:
                await node.crash(world.network)

        return _healed(world, [await _ask(world, expected, both_die)])


async def _nothing() -> None: ...


async def _ask(world: World, expected: Sequence[int], after_first: Callable[[], Awaitable[None]] = _nothing) -> float:
    """One answer; its seconds."""
    loop, got = asyncio.get_running_loop(), list[int]()
    started_s = loop.time()
    async for token in world.swarm.stream(PROMPT, SAMPLING):
        got.append(token.id)
        if token.index == 0:
            await after_first()
    check_tokens(got, expected)
    return loop.time() - started_s


async def _die_one_by_one(world: World, rng: random.Random) -> None:
    for node in rng.sample(world.nodes, NUM_DEATHS):
        await asyncio.sleep(BETWEEN_DEATHS_S * (0.9 + 0.2 * rng.random()))
        await node.crash(world.network)
    await asyncio.sleep(BETWEEN_DEATHS_S)


def _healed(world: World, times_s: Sequence[float]) -> Healed:
    counts = _replicas(world)
    num_left = sum(node.is_up for node in world.nodes)
    return Healed(len(times_s), num_left, min(counts), max(counts), max(times_s))


def _num_experts(model: SimulatedModel) -> int:
    return len(model.layers) * model.store.spec.router.num_experts


def _two_holders_each(model: SimulatedModel, rng: random.Random) -> list[Holding]:
    parts: list[Holding] = [{} for _ in range(NUM_NODES)]
    for layer in model.layers:
        holders = [rng.sample(range(NUM_NODES), 2) for _ in range(model.store.spec.router.num_experts)]
        for place, part in enumerate(parts):
            mine = tuple(ExpertId(expert) for expert, both in enumerate(holders) if place in both)
            if mine:
                part[layer] = mine
    return parts


def _pairs(model: SimulatedModel) -> list[Holding]:
    """Nodes 0 and 1 hold one third of every layer, 2 and 3 the next, 4 and 5 the last."""
    num_experts = model.store.spec.router.num_experts
    bounds = [num_experts * third // 3 for third in range(4)]
    return [
        {layer: tuple(map(ExpertId, range(bounds[place // 2], bounds[place // 2 + 1]))) for layer in model.layers}
        for place in range(NUM_NODES)
    ]


def _replicas(world: World) -> list[int]:
    """Holders of each expert, by the directory."""
    model = world.model
    found = world.book.lookup(model.id.root, model.layers, EPOCH_S + asyncio.get_running_loop().time())
    return [
        sum(expert in record.experts for record in found[layer])
        for layer in model.layers
        for expert in range(model.store.spec.router.num_experts)
    ]


def _delay(rng: random.Random) -> Delay:
    return lambda sender, receiver: BASE_DELAY_S * (1 + JITTER * rng.random())
