"""Activations through a swarm: exact by default; each holder gets a format that it takes, whoever was asked first."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from shoal.client.engine.sampler import Sampling
from shoal.client.routing.activations import Activations
from shoal.client.routing.exchange import check_answers
from shoal.client.routing.link_rate import LinkRate
from shoal.protocol.dtypes import TAKEN, DType
from shoal.protocol.errors import Malformed, PeerFailed
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Dispatch, Partial, Rounding
from shoal.protocol.net.channel import Handler, Reply, Request
from shoal.simulations.wan.link import Link
from shoal.simulations.wan.shaped_channel import ShapedChannel
from tests.checkpoints import SHAPES, write_checkpoint
from tests.swarm.world import World, memory_swarm

PROMPT = [5, 17, 3]
SAMPLING = Sampling(max_tokens=6, ignore_eos=True)
INEXACT = (Activations.BF16, Activations.FP8, Activations.INT8)
EXACT = {"fp32": (DType.F32, 0), "bf16": (DType.BF16, 0)}

Result = TypeVar("Result")
Formats = tuple[int, int]
"""`dtype` and `reply_dtype` of a DISPATCH."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("activations") / "model"
    write_checkpoint(directory, SHAPES["plain"], seed=21)
    return directory


class OldChannel(ShapedChannel):
    """A channel to a holder that has named no formats."""

    @property
    def dtypes(self) -> frozenset[DType]:
        return frozenset()


def old(world: World, peer: PeerId) -> None:
    """Make the client see a holder as one that has named nothing."""
    holder = world.client.holders.holder(peer)
    assert holder.channel is not None
    holder.channel = OldChannel(holder.channel, Link(), lambda: 1.0)


def listening(world: World) -> dict[PeerId, set[Formats]]:
    """What formats each node is asked in from now on."""
    heard: dict[PeerId, set[Formats]] = {peer: set() for peer in world.peers}

    def wrapped(peer: PeerId, honest: Handler) -> Handler:
        async def handle(request: Request) -> Reply:
            heard[peer].add((request.message.dtype, request.message.reply_dtype))
            return await honest(request)

        return handle

    for peer, honest in tuple(world.handlers.items()):
        world.handlers[peer] = wrapped(peer, honest)
    return heard


async def tokens(world: World) -> list[int]:
    return [token.id async for token in world.swarm.stream(PROMPT, SAMPLING)]


def in_swarm(
    model: Path,
    cache: Path,
    words: list[str],
    act: Callable[[World], Awaitable[Result]],
    activations: Activations,
    dtype: str = "fp32",
) -> Result:
    async def main() -> Result:
        async with memory_swarm(model, words, cache, dtype, activations=activations) as world:
            return await act(world)

    return asyncio.run(main())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_unless_told_otherwise_a_client_sends_what_loses_nothing(model, tmp_path, dtype):
    async def act(world: World) -> dict[PeerId, set[Formats]]:
        heard = listening(world)
        await tokens(world)
        return heard

    heard = in_swarm(model, tmp_path, ["0-3", "4-7"], act, Activations.EXACT, dtype)
    assert list(heard.values()) == [{EXACT[dtype]}, {EXACT[dtype]}]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("activations", INEXACT)
def test_every_format_goes_both_ways_and_answers(model, tmp_path, activations, dtype):
    async def act(world: World) -> tuple[dict[PeerId, set[Formats]], list[int], list[int]]:
        heard = listening(world)
        first = await tokens(world)
        return heard, first, await tokens(world)

    heard, first, second = in_swarm(model, tmp_path, ["0-3", "4-7"], act, activations, dtype)
    wire = DType[activations.name]
    assert list(heard.values()) == [{(wire, wire)}, {(wire, wire)}]
    assert first == second
    assert len(first) == SAMPLING.max_tokens


def test_a_holder_that_has_named_nothing_gets_what_is_exact_and_its_neighbour_does_not(model, tmp_path):
    async def act(world: World) -> list[set[Formats]]:
        heard = listening(world)
        old(world, world.peers[0])
        await tokens(world)
        return [heard[peer] for peer in world.peers]

    heard = in_swarm(model, tmp_path, ["0-3", "4-7"], act, Activations.FP8)
    assert heard == [{EXACT["fp32"]}, {(DType.FP8, DType.FP8)}]


def test_a_call_that_fails_over_uses_a_format_that_the_second_holder_takes(model, tmp_path):
    async def act(world: World) -> tuple[set[Formats], list[int]]:
        heard = listening(world)
        first, second = world.peers
        old(world, second)
        plain = world.handlers[first]

        async def handle(request: Request) -> Reply:
            await plain(request)
            raise PeerFailed("a test's")

        world.handlers[first] = handle
        return heard[second], await tokens(world)

    formats, answer = in_swarm(model, tmp_path, ["all", "all"], act, Activations.INT8)
    assert formats == {EXACT["fp32"]}
    assert len(answer) == SAMPLING.max_tokens


def test_a_call_whose_holder_is_silent_is_hedged_in_a_format_that_the_second_takes(model, tmp_path):
    async def act(world: World) -> tuple[set[Formats], list[int]]:
        heard = listening(world)
        first, second = world.peers
        old(world, second)

        async def handle(request: Request) -> Reply:
            await asyncio.Event().wait()
            raise AssertionError("nobody sets it")

        world.handlers[first] = handle
        return heard[second], await tokens(world)

    formats, answer = in_swarm(model, tmp_path, ["all", "all"], act, Activations.BF16)
    assert formats == {EXACT["fp32"]}
    assert len(answer) == SAMPLING.max_tokens


class SlowLink(LinkRate):
    """A modem's, whatever is measured; a rate that depends on this machine would be no promise."""

    @property
    def bytes_per_s(self) -> float | None:
        return 1000.0


class FastLink(LinkRate):
    """As fast as memory."""

    @property
    def bytes_per_s(self) -> float | None:
        return 1e12


def test_auto_sends_fewer_bytes_to_the_holder_behind_the_slow_link_alone(model, tmp_path):
    async def act(world: World) -> list[set[Formats]]:
        heard = listening(world)
        for peer, link in zip(world.peers, (SlowLink(), FastLink()), strict=True):
            world.client.holders.holder(peer).health.link = link
        await tokens(world)
        return [heard[peer] for peer in world.peers]

    slow, fast = in_swarm(model, tmp_path, ["0-3", "4-7"], act, Activations.AUTO)
    assert fast == {EXACT["fp32"]}
    assert slow == {(DType.INT8, DType.INT8)}


def test_auto_pings_a_holder_when_it_is_connected_and_measures_its_link_by_exchanges(model, tmp_path):
    async def act(world: World) -> list[tuple[bool, bool]]:
        links = [world.client.holders.holder(peer).health.link for peer in world.peers]
        before = [link.ping_s is not None and link.bytes_per_s is None for link in links]
        await tokens(world)
        await tokens(world)
        return list(zip(before, [link.bytes_per_s is not None for link in links], strict=True))

    assert in_swarm(model, tmp_path, ["0-3", "4-7"], act, Activations.AUTO) == [(True, True), (True, True)]


def test_a_holder_is_not_pinged_where_nothing_depends_on_its_link(model, tmp_path):
    async def act(world: World) -> list[float | None]:
        return [world.client.holders.holder(peer).health.link.ping_s for peer in world.peers]

    assert in_swarm(model, tmp_path, ["0-3", "4-7"], act, Activations.INT8) == [None, None]


def test_a_node_names_every_format_when_a_client_comes(model, tmp_path):
    async def act(world: World) -> list[frozenset[DType]]:
        channels = [world.client.holders.holder(peer).channel for peer in world.peers]
        return [channel.dtypes for channel in channels if channel is not None]

    assert in_swarm(model, tmp_path, ["all"], act, Activations.EXACT) == [TAKEN]


REQUEST = Dispatch(bytes(32), 3, Rounding.FP32, 3, DType.FP8, 2, 64, (1,), (2,), 1000, DType.FP8)
ANSWER = Partial(bytes(32), 2, 64, 0, 0, DType.FP8)


@pytest.mark.parametrize("change", [{"num_tokens": 1}, {"hidden": 65}, {"dtype": 0}, {"dtype": DType.INT8}])
def test_an_answer_of_another_shape_or_format_is_refused(change):
    check_answers(REQUEST, ANSWER)
    with pytest.raises(Malformed):
        check_answers(REQUEST, replace(ANSWER, **change))
