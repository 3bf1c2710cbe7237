"""What the public client says of the peers it uses."""

import asyncio
from pathlib import Path

import pytest

from shoal.client.engine.sampler import Sampling
from shoal.client.routing.peers import Breaker, PeerSnapshot
from shoal.experts.shard import read_shard
from shoal.protocol.errors import Malformed
from shoal.protocol.ids import ExpertId
from tests.checkpoints import SHAPES, write_checkpoint
from tests.swarm.world import memory_swarm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("peers") / "model"
    write_checkpoint(directory, SHAPES["plain"], seed=5)
    return directory


def test_peers_say_what_they_hold_and_how_they_answer(model: Path, tmp_path: Path) -> None:
    async def main() -> tuple[PeerSnapshot, ...]:
        async with memory_swarm(model, ["all", "0-3"], tmp_path) as world:
            async for _ in world.swarm.stream([5, 17], Sampling(max_tokens=2, ignore_eos=True)):
                pass
            return world.swarm.peers()

    peers = asyncio.run(main())
    assert [each.peer for each in peers] == sorted(each.peer for each in peers)
    assert all(each.is_usable and each.breaker is Breaker.CLOSED and each.version == 1 for each in peers)
    assert all(each.rtt_ms is not None and each.retry_in_s == 0 for each in peers)
    assert sorted(len(experts) for experts in peers[0].holdings.values()) != sorted(
        len(experts) for experts in peers[1].holdings.values()
    )


def test_pings_tell_of_round_trips_without_any_work(model: Path, tmp_path: Path) -> None:
    async def main() -> tuple[list[float | None], list[float | None]]:
        async with memory_swarm(model, ["all", "0-3"], tmp_path) as world:
            before = [each.ping_ms for each in world.swarm.peers()]
            await world.swarm.ping(3)
            return before, [each.ping_ms for each in world.swarm.peers()]

    before, after = asyncio.run(main())
    assert before == [None, None]
    assert all(each is not None and each >= 0 for each in after)


def test_a_banned_peer_says_when_it_is_asked_again(model: Path, tmp_path: Path) -> None:
    async def main() -> tuple[PeerSnapshot, ...]:
        async with memory_swarm(model, ["all", "all"], tmp_path) as world:
            world.client.holders.failed(world.peers[0], Malformed("garbage"))
            return world.swarm.peers()

    by_state = {each.breaker: each for each in asyncio.run(main())}
    assert by_state.keys() == {Breaker.BANNED, Breaker.CLOSED}
    assert not by_state[Breaker.BANNED].is_usable
    assert 599 < by_state[Breaker.BANNED].retry_in_s <= 600
    assert by_state[Breaker.BANNED].failures == 1


def test_an_expert_has_its_stored_size(model: Path, tmp_path: Path) -> None:
    async def main() -> tuple[int, int]:
        async with memory_swarm(model, ["all"], tmp_path) as world:
            layer = world.store.spec.moe_layers[0]
            shard = read_shard(world.store.checkpoint, world.store.spec, layer, ExpertId(0))
            return world.swarm.expert_bytes, shard.size_bytes

    expert_bytes, stored_bytes = asyncio.run(main())
    assert expert_bytes == stored_bytes
