"""A long prompt through a swarm, its chunks overlapping: the tokens of one process, through a death in the middle too.

Run: pytest tests/swarm/test_prefill.py
"""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from shoal.client.engine.engine_settings import PREFILL_CHUNK, EngineSettings
from shoal.client.engine.sampler import Sampling
from shoal.client.single_process import single_process_engine
from shoal.experts.worker import InlineWorker
from shoal.protocol.errors import ShoalError
from shoal.protocol.events import PassTaken, ReplyReceived
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Rounding
from shoal.protocol.net.channel import Reply, Request
from tests.checkpoints import SHAPES, write_checkpoint
from tests.swarm.world import World, memory_swarm

SHAPE = replace(SHAPES["plain"], max_positions=4 * PREFILL_CHUNK)
PROMPT = [i * 5 % SHAPE.vocab_size for i in range(3 * PREFILL_CHUNK + 40)]
"""Four chunks."""
SAMPLING = Sampling(max_tokens=12, ignore_eos=True)
HALVES = [f"0-{SHAPE.num_experts // 2 - 1}", f"{SHAPE.num_experts // 2}-{SHAPE.num_experts - 1}"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("long") / "model"
    write_checkpoint(directory, SHAPE, seed=11)
    return directory


@pytest.fixture(scope="module")
def expected(model: Path) -> list[int]:
    """Of one process, chunk after chunk."""
    with single_process_engine(model, Rounding.FP32, InlineWorker(), model.parent / "cache") as engine:
        return list(asyncio.run(engine.generate(PROMPT, SAMPLING)).token_ids)


async def tokens_of(world: World, sampling: Sampling = SAMPLING) -> list[int]:
    return [token.id async for token in world.swarm.stream(PROMPT, sampling)]


@pytest.mark.parametrize("ahead", [1, 4])
def test_a_long_prompt_is_one_frame_per_chunk_layer_and_holder_and_the_same_tokens(
    model: Path, expected: list[int], ahead: int
) -> None:
    async def main() -> World:
        settings = EngineSettings(prefill_ahead=ahead)
        async with memory_swarm(model, HALVES, model.parent / "cache", settings=settings) as world:
            assert await tokens_of(world) == expected
            world.events.clear()
            assert await tokens_of(world, Sampling(max_tokens=1)) == expected[:1]
            return world

    world = asyncio.run(main())
    frames = [event for event in world.events if isinstance(event, ReplyReceived)]  # one that was late is sent twice
    prefills = [event for event in world.events if isinstance(event, PassTaken) and event.num_prefilled]
    num_moe_layers = len([layer for layer in world.store.spec.moe_layers if layer < world.store.spec.num_layers])
    assert len(frames) == 4 * num_moe_layers * len(HALVES)
    assert len(prefills) == (1 if ahead > 1 else 4)


@pytest.mark.parametrize("request_at_death", [1, 4, 9])
def test_a_holder_that_dies_in_mid_prefill_costs_no_token(
    model: Path, expected: list[int], request_at_death: int
) -> None:
    async def main() -> list[int]:
        async with memory_swarm(model, [*HALVES, *HALVES], model.parent / "cache") as world:
            left = request_at_death

            async def maybe_die(peer: PeerId, request: Request) -> Reply:
                nonlocal left
                left -= 1
                if left == 0:
                    world.network.kill(peer)
                return await world.servers[peer].handle(request)

            for peer in world.servers:
                world.handlers[peer] = partial(maybe_die, peer)
            tokens = await tokens_of(world)
            assert left < 0, "the prompt was over before the death"
            return tokens

    assert asyncio.run(main()) == expected


def test_experts_that_nobody_holds_any_more_end_the_prompt_with_an_error(model: Path) -> None:
    async def main() -> None:
        async with memory_swarm(model, HALVES, model.parent / "cache") as world:
            gone, asked = world.peers[1], 0

            async def die(request: Request) -> Reply:
                nonlocal asked
                asked += 1
                if asked == 3:
                    world.network.kill(gone)
                    await world.announcers[gone].withdraw()
                return await world.servers[gone].handle(request)

            world.handlers[gone] = die
            with pytest.raises(ShoalError):
                await tokens_of(world)
            assert world.swarm.engine.load.num_running == 0

    asyncio.run(main())
