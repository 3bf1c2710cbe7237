"""A connection that has died without a word is opened anew, in virtual time."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.client.engine.sampler import Sampling
from shoal.client.routing.holders import CONNECT_TIMEOUT_S, GIVE_UP_SILENT_S, REFRESH_S
from shoal.protocol.events import DispatchSent, Event, HolderJoined
from shoal.protocol.ids import PeerId
from shoal.protocol.net.memory import no_delay, untouched
from shoal.simulations.virtual.loop import run_virtual
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.recovery import _pairs
from shoal.simulations.virtual.soak import demo_model_in_memory
from shoal.simulations.virtual.world import open_world


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedModel]:
    cache: Path = tmp_path_factory.mktemp("cache")
    with demo_model_in_memory(cache) as model:
        yield model


def test_a_holder_behind_a_dead_connection_is_connected_anew_as_soon_as_it_can_be(model: SimulatedModel) -> None:
    """Its old connection stays silent for ever, as one that a router forgot; a new one gets through."""
    events: list[Event] = []
    sampling = Sampling(max_tokens=4, ignore_eos=True)

    async def silence_one_and_wait() -> list[PeerId]:
        async with open_world(
            model,
            _pairs(model),
            [0.0] * 4,
            random.Random(0),
            no_delay,
            untouched,
            lambda _, honest: honest,
            events.append,
        ) as world:
            await world.swarm.generate("Once upon a time", sampling)
            victim = next(event.peer for event in events if isinstance(event, DispatchSent))
            world.network.silence(victim)
            await world.swarm.generate("Once upon a time", sampling)
            world.network.mend(victim)
            events.clear()
            await asyncio.sleep(GIVE_UP_SILENT_S + REFRESH_S + 4 * CONNECT_TIMEOUT_S)
            return [event.peer for event in events if isinstance(event, HolderJoined) and event.peer == victim]

    assert len(run_virtual(silence_one_and_wait, random.Random(0), 600.0)) == 1
