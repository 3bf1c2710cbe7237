"""When a client asks an anchor and when not: the real client and nodes in virtual time, so that no machine's load is in
it."""

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from shoal.client.engine.sampler import Sampling
from shoal.client.routing.health import MIN_DEADLINE_S, MIN_RTO_S
from shoal.protocol.errors import Busy
from shoal.protocol.events import DispatchSent, Event
from shoal.protocol.ids import ExpertId, PeerId
from shoal.protocol.net.channel import Handler, Reply, Request
from shoal.protocol.net.memory import untouched
from shoal.simulations.virtual.injector import BASE_DELAY_S
from shoal.simulations.virtual.loop import run_virtual
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.promises import check_nodes
from shoal.simulations.virtual.run import Oracle
from shoal.simulations.virtual.soak import demo_model_in_memory
from shoal.simulations.virtual.world import World, open_world

PROMPT, SAMPLING = "Once upon a time", Sampling(max_tokens=8, ignore_eos=True)
HOLDER, ANCHOR = 0, 1
TROUBLE_AFTER = 2
"""Tokens before it begins."""

Strike = Callable[[World], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedModel]:
    with demo_model_in_memory(tmp_path_factory.mktemp("cache")) as model:
        yield model


@pytest.fixture(scope="module")
def expected(model: SimulatedModel) -> list[int]:
    return Oracle(model).tokens(PROMPT, SAMPLING)


@dataclass
class Told:
    """What one answer came to. Requests are those that were sent after the trouble began."""

    tokens: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    asked: list[PeerId] = field(default_factory=list)
    peers: list[PeerId] = field(default_factory=list)
    replicas: list[set[int]] = field(default_factory=list)
    """What the client counts of any expert, at the beginning and at the end."""

    def num_asked(self, place: int) -> int:
        return self.asked.count(self.peers[place])


class Holder:
    """The only holder beside the anchor: honest, then late or busy."""

    def __init__(self) -> None:
        self.late_s = 0.0
        self.busy_until_s = 0.0

    def wrap(self, place: int, honest: Handler) -> Handler:
        async def handle(request: Request) -> Reply:
            if place == HOLDER:
                if asyncio.get_running_loop().time() < self.busy_until_s:
                    raise Busy("a test", 0.1)
                await asyncio.sleep(self.late_s)
            return await honest(request)

        return handle if place == HOLDER else honest


def replicas(world: World) -> set[int]:
    return {count for layer in world.swarm.coverage().values() for count in layer.values()}


def answer(
    model: SimulatedModel, strike: Strike, holder: Holder, num_cached: int = 4, max_wait_s: float = 30.0
) -> Told:
    """One answer of a swarm of one holder and one anchor, both of everything."""
    everything = {layer: tuple(map(ExpertId, range(model.store.spec.router.num_experts))) for layer in model.layers}
    rng, told = random.Random(1), Told()

    def observe(event: Event) -> None:
        if isinstance(event, DispatchSent) and len(told.tokens) > TROUBLE_AFTER:
            told.asked.append(event.peer)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with open_world(
            model, [everything] * 2, [0.0] * 2, rng, lambda sender, receiver: BASE_DELAY_S, untouched, holder.wrap,
            observe, max_wait_s=max_wait_s, anchors={ANCHOR: num_cached},
        ) as world:  # fmt: skip
            told.peers = [node.identity.peer for node in world.nodes]
            before_s = loop.time()
            told.replicas.append(replicas(world))
            async for token in world.swarm.stream(PROMPT, SAMPLING):
                told.tokens.append(token.id)
                told.times_s.append(loop.time() - before_s)
                before_s = loop.time()
                if token.index == TROUBLE_AFTER:
                    strike(world)
            told.replicas.append(replicas(world))
            check_nodes(world)

    run_virtual(main, random.Random(1), 600.0)
    return told


def test_an_anchor_gets_nothing_while_a_holder_lives_however_slow(model: SimulatedModel, expected: list[int]) -> None:
    """Slower than its timeout, within its deadline: a replica would be asked, an anchor is not."""
    for late_s in (0.0, 2 * MIN_RTO_S, 0.8 * MIN_DEADLINE_S):
        holder = Holder()

        def strike(world: World, holder: Holder = holder, late_s: float = late_s) -> None:
            holder.late_s = late_s

        told = answer(model, strike, holder)
        assert told.tokens == expected
        assert told.num_asked(HOLDER) == len(told.asked) > 0


@pytest.mark.parametrize("num_cached", [1, 3, 1000], ids="{} experts in memory".format)
def test_when_the_last_holder_dies_the_answer_goes_on_at_the_anchor_with_the_same_tokens(
    model: SimulatedModel, expected: list[int], num_cached: int
) -> None:
    def strike(world: World) -> None:
        world.network.kill(world.nodes[HOLDER].identity.peer)

    told = answer(model, strike, Holder(), num_cached)
    assert told.tokens == expected
    assert told.num_asked(ANCHOR) > 0
    assert told.num_asked(HOLDER) <= 1


def test_a_silent_holder_costs_one_deadline_and_is_pinged_from_then_on(
    model: SimulatedModel, expected: list[int]
) -> None:
    def strike(world: World) -> None:
        world.network.silence(world.nodes[HOLDER].identity.peer)

    told = answer(model, strike, Holder())
    assert told.tokens == expected
    assert told.num_asked(HOLDER) == 1
    assert sum(time_s > MIN_DEADLINE_S for time_s in told.times_s[TROUBLE_AFTER:]) == 1


def test_a_busy_holder_is_waited_for(model: SimulatedModel, expected: list[int]) -> None:
    holder = Holder()

    def strike(world: World) -> None:
        holder.busy_until_s = asyncio.get_running_loop().time() + 5.0

    told = answer(model, strike, holder)
    assert told.tokens == expected
    assert told.num_asked(ANCHOR) == 0


def test_where_the_layer_can_not_wait_for_a_busy_holder_any_longer_the_anchor_answers(
    model: SimulatedModel, expected: list[int]
) -> None:
    holder = Holder()

    def strike(world: World) -> None:
        holder.busy_until_s = asyncio.get_running_loop().time() + 1e6

    told = answer(model, strike, holder, max_wait_s=2.0)
    assert told.tokens == expected
    assert told.num_asked(ANCHOR) > 0


def test_an_anchor_is_no_replica_beside_a_holder_and_no_gap_without_one(model: SimulatedModel) -> None:
    def strike(world: World) -> None:
        world.network.kill(world.nodes[HOLDER].identity.peer)

    assert answer(model, lambda world: None, Holder()).replicas == [{1}, {1}]
    assert answer(model, strike, Holder()).replicas == [{1}, {1}]
