"""The last resort: a client asks an anchor when nobody else has an expert, and not before; the answer is the same."""

import asyncio
from pathlib import Path

import pytest

from shoal.client.engine.sampler import Sampling
from shoal.protocol.events import DispatchSent
from tests.checkpoints import SHAPES, write_checkpoint
from tests.swarm.world import World, memory_swarm

PROMPT = [5, 17, 3]
SAMPLING = Sampling(max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("anchor") / "model"
    write_checkpoint(directory, SHAPES["plain"], seed=21)
    return directory


async def tokens_of(world: World, kill_after: int | None = None) -> list[int]:
    tokens = []
    async for token in world.swarm.stream(PROMPT, SAMPLING):
        tokens.append(token.id)
        if token.index == kill_after:
            world.network.kill(world.peers[0])
    return tokens


def asked(world: World) -> set[str]:
    return {event.peer for event in world.events if isinstance(event, DispatchSent)}


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    async def main() -> list[int]:
        async with memory_swarm(model, ["all"], tmp_path_factory.mktemp("cache")) as world:
            return await tokens_of(world)

    return asyncio.run(main())


def test_an_anchor_gets_no_request_while_a_holder_lives(model: Path, tmp_path: Path, expected: list[int]) -> None:
    async def main() -> None:
        async with memory_swarm(model, ["all", "all"], tmp_path, anchors={1: 2}) as world:
            assert await tokens_of(world) == expected
            assert asked(world) == {world.peers[0]}

    asyncio.run(main())


@pytest.mark.parametrize("capacity", [1, 3, 1000], ids="{} experts fit".format)
def test_when_the_last_holder_dies_the_anchor_answers_the_same(
    model: Path, tmp_path: Path, expected: list[int], capacity: int
) -> None:
    async def main() -> None:
        async with memory_swarm(model, ["all", "all"], tmp_path, anchors={1: capacity}) as world:
            assert await tokens_of(world, kill_after=1) == expected
            assert asked(world) == set(world.peers)

    asyncio.run(main())
