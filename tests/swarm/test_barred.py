"""A client in the middle of an answer leaves the node of a member whose token was revoked, and loses nothing."""

import asyncio
from pathlib import Path

import pytest

from shoal.client.engine.sampler import Sampling
from shoal.protocol.events import HolderLost
from shoal.protocol.ids import PeerId
from shoal.protocol.net.channel import Handler, Reply, Request
from tests.checkpoints import SHAPES, write_checkpoint
from tests.swarm.world import World, memory_swarm

SAMPLING = Sampling(max_tokens=8, ignore_eos=True)


def counting(world: World, peer: PeerId, asked: list[PeerId]) -> Handler:
    """The peer's own handler, with a note of every request."""
    own = world.handlers[peer]

    async def handle(request: Request) -> Reply:
        asked.append(peer)
        return await own(request)

    return handle


def test_a_client_leaves_a_barred_holder_in_mid_answer_and_goes_on_with_its_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "model", SHAPES["plain"], seed=21)
    asked: list[PeerId] = []

    async def run() -> tuple[list[int], list[int]]:
        async with memory_swarm(tmp_path / "model", ["all", "all"], tmp_path / "cache") as world:
            whole = [token.id async for token in world.swarm.stream([5, 17, 3], SAMPLING)]
            for peer in world.peers:
                world.handlers[peer] = counting(world, peer, asked)
            streaming, holders = world.swarm.stream([5, 17, 3], SAMPLING), world.client.holders
            ids = [(await anext(streaming)).id, (await anext(streaming)).id]
            victim = asked[-1]
            monkeypatch.setattr(world.client.directory, "is_barred", lambda peer: peer == victim)
            await holders.refresh()
            assert not holders.holder(victim).is_connected
            assert victim in [event.peer for event in world.events if isinstance(event, HolderLost)]
            ids += [token.id async for token in streaming]
            await holders.refresh()
            assert not holders.holder(victim).is_connected, "it is not connected to again"
            asked.clear()
            again = [token.id async for token in world.swarm.stream([5, 17, 3], SAMPLING)]
            assert set(asked) == set(world.peers) - {victim}
            assert again == whole
            return whole, ids

    whole, ids = asyncio.run(run())
    assert ids == whole
