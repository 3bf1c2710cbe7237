"""A copy of a swarm's model from its peers: planned to the byte, past those that lie or leave, from where it was.

Real seeders over a real model, channels without a network, under a virtual clock.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shoal.experts.pieces.model import PieceModel
from shoal.node.announcer import Announcer, Claim, Load
from shoal.node.daemon import no_progress
from shoal.node.holdings.assignment import Holding, parse_holding
from shoal.node.weights.pulling import Wish
from shoal.node.weights.pulling_from_peers import PeerPull, planned_from
from shoal.protocol.errors import DiskFull, InvalidRequest, SourceFailed
from shoal.protocol.identity import Identity
from shoal.protocol.net.channel import PieceReply, PieceRequest
from shoal.protocol.net.memory_directory import MemoryDirectory
from tests.node.weights.test_by_token import EPOCH_S, Give, Swarm, asking, in_swarm, model, wish_for, wrong  # noqa: F401


async def hold(swarm: Swarm, seed: bytes, give: Give, words: str = "all", gives_trunk: bool = True) -> None:
    """A peer that says it has these experts."""
    identity = Identity.from_seed(seed.ljust(32))
    holding: Holding = parse_holding(words, swarm.model.spec)
    claim = Claim(
        identity.peer, swarm.manifest.root, holding, swarm.model.weight_format, 0, ("nowhere:1",),
        gives_trunk=gives_trunk,
    )  # fmt: skip
    directory = MemoryDirectory(swarm.book, identity, lambda: EPOCH_S)
    await Announcer(directory, claim, lambda: Load(0, 0)).announce()
    swarm.gives[identity.peer] = give


@asynccontextmanager
async def pulling(swarm: Swarm, wish: Wish) -> AsyncIterator[PeerPull]:
    async with asking(swarm) as peers, planned_from(peers, wish, wish_for(swarm), swarm.shelf, no_progress) as pull:
        yield pull


def no_bar(done: int, total: int) -> None:
    assert 0 <= done <= total


def test_all_of_it_comes_and_takes_the_bytes_that_were_told(model: Path) -> None:  # noqa: F811
    async def test(swarm: Swarm, honest: Give) -> None:
        await hold(swarm, b"one", honest)
        await hold(swarm, b"two", honest, gives_trunk=False)
        async with pulling(swarm, Wish("copy")) as pull:
            assert swarm.shelf.models() == []
            assert pull.plan.num_nowhere == 0
            forecast_s = await pull.forecast_s()
            assert forecast_s is not None
            assert forecast_s > 0
            fetched = await pull.run(no_bar)
        assert fetched.num_pieces == len(pull.plan.pieces)
        assert swarm.shelf.store.size_bytes == pull.plan.missing_bytes == fetched.size_bytes
        opened = PieceModel.open_folder(swarm.shelf.find("copy").directory)
        assert opened.has_trunk()
        assert all(opened.has_experts(layer) for layer in opened.spec.moe_layers)

    in_swarm(model, test)


def test_a_part_is_pulled_and_the_rest_later_under_the_name_that_it_has(model: Path) -> None:  # noqa: F811
    async def test(swarm: Swarm, honest: Give) -> None:
        await hold(swarm, b"one", honest)
        async with pulling(swarm, Wish("copy", experts="1:0-2", has_trunk=False)) as pull:
            assert (await pull.run(no_bar)).num_pieces == 3
        async with pulling(swarm, Wish("", experts="1:0-4", has_trunk=False)) as pull:
            assert (pull.plan.name, len(pull.plan.missing)) == ("copy", 2)
            assert (await pull.run(no_bar)).num_pieces == 2
        async with pulling(swarm, Wish("", experts="1:0-4", has_trunk=False)) as pull:
            assert (await pull.run(no_bar)).num_pieces == 0
            assert await pull.forecast_s() == 0.0

    in_swarm(model, test)


def test_a_liar_gives_nothing_and_the_other_everything(model: Path) -> None:  # noqa: F811
    async def test(swarm: Swarm, honest: Give) -> None:
        await hold(swarm, b"honest", honest)
        async with pulling(swarm, Wish("copy", experts="none", has_trunk=False)) as pull:
            await pull.run(no_bar)  # the small files are here
        await hold(swarm, b"liar", wrong(honest))
        async with pulling(swarm, Wish("copy")) as pull:
            await pull.run(no_bar)
        digests = [piece.digest for piece in pull.plan.pieces]
        assert swarm.shelf.store.verify(digests) == []
        assert len(swarm.shelf.store.pieces()) == len(set(digests))

    in_swarm(model, test)


def test_what_nobody_has_is_told_beforehand_and_the_rest_comes_and_stays(model: Path) -> None:  # noqa: F811
    async def test(swarm: Swarm, honest: Give) -> None:
        await hold(swarm, b"one", honest, "1:0-3")
        async with pulling(swarm, Wish("copy", experts="1:0-5", has_trunk=False)) as pull:
            assert pull.plan.num_nowhere == 2
            with pytest.raises(SourceFailed, match="2 pieces of it nobody had"):
                await pull.run(no_bar)
        assert len(swarm.shelf.store.pieces()) == 4

    in_swarm(model, test)


def test_what_no_peer_has_comes_from_another_source(model: Path) -> None:  # noqa: F811
    async def test(swarm: Swarm, honest: Give) -> None:
        await hold(swarm, b"one", honest, "1:0-3", gives_trunk=False)
        async with pulling(swarm, Wish("copy", (str(model),), experts="1:0-5")) as pull:
            assert pull.plan.num_nowhere == 0
            fetched = await pull.run(no_bar)
        by_name = {source.name: source.num_pieces for source in fetched.sources}
        assert by_name["peers"] + by_name[str(model)] == len(pull.plan.pieces)
        assert by_name[str(model)] >= 2 + len(swarm.manifest.trunk)
        assert swarm.shelf.store.size_bytes == pull.plan.missing_bytes

    in_swarm(model, test)


def test_peers_that_leave_in_the_middle_cost_what_was_not_whole_and_the_next_run_goes_on(
    model: Path,  # noqa: F811
) -> None:
    async def test(swarm: Swarm, honest: Give) -> None:
        left = 60

        async def give(request: PieceRequest) -> PieceReply:
            nonlocal left
            left -= 1
            if left == 0:
                swarm.gives.clear()
            return await honest(request)

        await hold(swarm, b"one", give)
        async with pulling(swarm, Wish("copy")) as pull:
            with pytest.raises(SourceFailed, match="nobody has given"):
                await pull.run(no_bar)
        came = len(swarm.shelf.store.pieces())
        assert 0 < came < len(pull.plan.pieces)
        await hold(swarm, b"one", honest)
        async with pulling(swarm, Wish("copy")) as again:
            assert len(again.plan.missing) == len(pull.plan.pieces) - came
            assert (await again.run(no_bar)).num_pieces == len(again.plan.missing)

    in_swarm(model, test)


def test_what_can_not_fit_is_refused_before_the_first_byte_and_no_such_expert_is_an_error(
    model: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(swarm: Swarm, honest: Give) -> None:
        await hold(swarm, b"one", honest)
        with pytest.raises(InvalidRequest):
            async with pulling(swarm, Wish("copy", experts="99:0")):
                pass
        free = type("Usage", (), {"free": 1000})()
        monkeypatch.setattr("shoal.node.weights.pulling_from_peers.shutil.disk_usage", lambda path: free)
        async with pulling(swarm, Wish("copy")) as pull:
            with pytest.raises(DiskFull, match="free"):
                await pull.run(no_bar)
        assert swarm.shelf.models() == []

    in_swarm(model, test)
