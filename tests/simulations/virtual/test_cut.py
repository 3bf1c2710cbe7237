"""A replica of every expert is cut off, and the one that is left stumbles: no token waits for the one that is gone."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.client.engine.sampler import Sampling
from shoal.client.routing.dispatch import FIRST_PAUSE_S
from shoal.client.routing.health import MIN_RTO_S
from shoal.protocol.errors import Busy, PeerFailed, ShoalError
from shoal.protocol.events import DispatchSent, Event
from shoal.protocol.ids import PeerId
from shoal.protocol.net.channel import Handler, Reply, Request
from shoal.protocol.net.memory import untouched
from shoal.simulations.virtual.injector import BASE_DELAY_S
from shoal.simulations.virtual.loop import run_virtual
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.recovery import _delay, _pairs
from shoal.simulations.virtual.soak import demo_model_in_memory
from shoal.simulations.virtual.world import World, open_world

CUT_AFTER, NUM_TOKENS = 24, 32
BUSY_S = 0.1
PAUSES_S = 4 * FIRST_PAUSE_S
"""The longest second pause of a layer: two failures in one, or a first pause in each of two."""

RTT_S = 2 * BASE_DELAY_S


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedModel]:
    cache: Path = tmp_path_factory.mktemp("cache")
    with demo_model_in_memory(cache) as model:
        yield model


class Cut:
    """Every holder that is asked first is cut off at one moment; those that are left fail their first request."""

    def __init__(self, error: ShoalError | None) -> None:
        self._error = error
        self._cut: frozenset[PeerId] = frozenset()
        self._has_failed: set[int] = set()
        self._last_asked: dict[PeerId, int] = {}
        self._num_asked = 0
        self.asked: list[PeerId] = []
        """The cut ones: whom each request since went to."""

    def observe(self, event: Event) -> None:
        if isinstance(event, DispatchSent):
            self._num_asked += 1
            self._last_asked[event.peer] = self._num_asked
            if event.peer in self._cut:
                self.asked.append(event.peer)

    def wrap(self, place: int, honest: Handler) -> Handler:
        async def handle(request: Request) -> Reply:
            if self._cut and self._error is not None and place not in self._has_failed:
                self._has_failed.add(place)
                raise self._error
            return await honest(request)

        return handle

    def strike(self, world: World) -> None:
        """Cut the replica of each half of the experts off that was asked last."""
        peers = [node.identity.peer for node in world.nodes]
        replicas = zip(peers[:2], peers[2:], strict=True)
        self._cut = frozenset(max(pair, key=lambda peer: self._last_asked.get(peer, 0)) for pair in replicas)
        for peer in self._cut:
            world.network.silence(peer)


def extras_s(model: SimulatedModel, cut: Cut, seed: int) -> list[float]:
    """Seconds that each token took from the cut on beyond the slowest before."""

    async def tokens() -> list[float]:
        rng, loop, times_s = random.Random(seed), asyncio.get_running_loop(), list[float]()
        async with open_world(
            model, _pairs(model), [0.0] * 4, rng, _delay(rng), untouched, cut.wrap, cut.observe
        ) as world:
            before = loop.time()
            async for token in world.swarm.stream("Once upon a time", Sampling(max_tokens=NUM_TOKENS, ignore_eos=True)):
                times_s.append(loop.time() - before)
                before = loop.time()
                if token.index == CUT_AFTER:
                    cut.strike(world)
        return times_s[1:]

    times_s = run_virtual(tokens, random.Random(seed), 600.0)
    usual_s = max(times_s[:CUT_AFTER])
    return [time_s - usual_s for time_s in times_s[CUT_AFTER:]]


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_costs_a_token_for_each_holder_at_most_and_six_round_trips(model: SimulatedModel, seed: int) -> None:
    cut = Cut(None)
    extra_s = extras_s(model, cut, seed)
    assert cut.asked
    assert max(extra_s) <= 6 * RTT_S
    assert sum(extra > RTT_S for extra in extra_s) <= 2


@pytest.mark.parametrize("seed", range(3))
def test_a_replica_that_fails_once_is_asked_again_and_not_the_holder_that_is_cut_off(
    model: SimulatedModel, seed: int
) -> None:
    cut = Cut(PeerFailed("once"))
    extra_s = extras_s(model, cut, seed)
    assert cut.asked
    assert len(cut.asked) == len(set(cut.asked))
    assert max(extra_s) <= 6 * RTT_S + 2 * MIN_RTO_S + PAUSES_S


@pytest.mark.parametrize("seed", range(3))
def test_a_busy_replica_is_waited_for_as_long_as_it_says_and_not_for_the_holder_that_is_cut_off(
    model: SimulatedModel, seed: int
) -> None:
    cut = Cut(Busy("full", BUSY_S))
    extra_s = extras_s(model, cut, seed)
    assert cut.asked
    assert len(cut.asked) == len(set(cut.asked))
    assert max(extra_s) <= 1.5 * BUSY_S + 6 * RTT_S + 2 * MIN_RTO_S
