"""The whole-system oracle: transformers, one process, a swarm, and a swarm that loses a holder give the same tokens."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import DeepseekV3ForCausalLM

from shoal.client.engine.engine_settings import EngineSettings
from shoal.client.engine.sampler import Sampling
from shoal.client.single_process import single_process_engine
from shoal.client.speculation.choice import Speculation
from shoal.experts.worker import InlineWorker
from shoal.protocol.errors import ChannelClosed
from shoal.protocol.events import DispatchSent, Event, ExpertsTimed, FailedOver, PassTaken, ReplyReceived
from shoal.protocol.messages import Rounding
from shoal.simulations.local import holdings
from tests.checkpoints import SHAPES, dequantized_copy, write_checkpoint
from tests.swarm.world import World, memory_swarm


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """How many threads torch uses decides how it sums, here and in transformers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


NUM_NEW_TOKENS = 32
PROMPT = [5, 17, 3, 90, 41, 8, 8, 61]
PROMPTS = [PROMPT, PROMPT[:1], PROMPT[2:], [7, 7, 7, 7]]


def their_tokens(model: Path, prompt: list[int]) -> list[int]:
    """Greedy tokens of transformers, in fp32 with eager attention."""
    oracle = DeepseekV3ForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        out = oracle.generate(
            torch.tensor([prompt]), max_new_tokens=NUM_NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return [int(token) for token in out[0, len(prompt) :]]


async def tokens_of(world: World, kill_after: int | None = None, prompt: Sequence[int] = tuple(PROMPT)) -> list[int]:
    """Greedy tokens of the swarm; at the first request after that many tokens, its holder dies."""
    tokens: list[int] = []
    sampling = Sampling(max_tokens=NUM_NEW_TOKENS, ignore_eos=True)
    async for token in world.swarm.stream(prompt, sampling):
        tokens.append(token.id)
        if len(tokens) == kill_after:
            kill_at_next_request(world)
    return tokens


def kill_at_next_request(world: World) -> None:
    """The holder of the next request dies while it works on it."""
    for peer, server in world.servers.items():

        async def die(request, peer=peer, server=server):  # type: ignore[no-untyped-def]
            world.network.kill(peer)
            world.handlers.update({other: each.handle for other, each in world.servers.items()})
            return await server.handle(request)

        world.handlers[peer] = die


@pytest.fixture(scope="module", params=sorted(SHAPES))
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param) / "model"
    write_checkpoint(directory, SHAPES[request.param], seed=11)
    return directory


def test_greedy_tokens_are_equal_in_transformers_locally_in_a_swarm_and_through_a_death(
    published: Path, tmp_path: Path
) -> None:
    dequantized_copy(published, tmp_path / "copy")
    theirs = their_tokens(tmp_path / "copy", PROMPT)
    sampling = Sampling(max_tokens=NUM_NEW_TOKENS, ignore_eos=True)
    with single_process_engine(published, Rounding.FP32, InlineWorker(), tmp_path / "cache") as engine:
        assert list(asyncio.run(engine.generate(PROMPT, sampling)).token_ids) == theirs

    async def swarm_tokens(kill_after: int | None) -> tuple[list[int], int]:
        words = holdings(4, 2, num_experts_of(published))
        async with memory_swarm(published, words, tmp_path / "cache") as world:
            tokens = await tokens_of(world, kill_after)
            # on a busy machine a living holder may be overtaken besides
            broken = [e for e in world.events if isinstance(e, FailedOver) and e.reason == ChannelClosed.__name__]
            return tokens, len(broken)

    assert asyncio.run(swarm_tokens(None)) == (theirs, 0)
    tokens, failovers = asyncio.run(swarm_tokens(5))
    assert tokens == theirs
    assert failovers == 1


def num_experts_of(model: Path) -> int:
    import json

    return int(json.loads((model / "config.json").read_text())["n_routed_experts"])


def test_bf16_tokens_are_equal_locally_and_in_a_swarm(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", SHAPES["two_dense_two_shared_bf16"], seed=3)
    sampling = Sampling(max_tokens=NUM_NEW_TOKENS, ignore_eos=True)
    with single_process_engine(tmp_path / "model", Rounding.BF16, InlineWorker(), tmp_path) as engine:
        expected = list(asyncio.run(engine.generate(PROMPT, sampling)).token_ids)

    async def main() -> list[int]:
        async with memory_swarm(tmp_path / "model", ["0-3", "4-7"], tmp_path, dtype="bf16") as world:
            return await tokens_of(world)

    assert asyncio.run(main()) == expected


def test_streams_that_share_a_swarm_get_the_tokens_of_transformers_through_a_death(
    published: Path, tmp_path: Path
) -> None:
    dequantized_copy(published, tmp_path / "copy")

    async def main() -> list[list[int]]:
        words = holdings(4, 2, num_experts_of(published))
        async with memory_swarm(published, words, tmp_path / "cache") as world:
            return await asyncio.gather(
                *(tokens_of(world, 5 if prompt is PROMPT else None, prompt) for prompt in PROMPTS)
            )

    assert asyncio.run(main()) == [their_tokens(tmp_path / "copy", prompt) for prompt in PROMPTS]


SPECULATING = EngineSettings(draft_width=3)


@pytest.mark.parametrize("kill_after", [None, 5])
def test_streams_that_speculate_get_the_tokens_of_transformers_alone_together_and_through_a_death(
    published: Path, tmp_path: Path, kill_after: int | None
) -> None:
    dequantized_copy(published, tmp_path / "copy")

    async def main() -> tuple[list[int], list[list[int]], int]:
        words = holdings(4, 2, num_experts_of(published))
        async with memory_swarm(
            published, words, tmp_path / "cache", settings=SPECULATING, speculation=Speculation.AUTO
        ) as world:
            alone = await tokens_of(world)
            together = await asyncio.gather(
                *(tokens_of(world, kill_after if prompt is PROMPT else None, prompt) for prompt in PROMPTS)
            )
            return alone, together, sum(e.num_drafted for e in world.events if isinstance(e, PassTaken))

    alone, together, num_drafted = asyncio.run(main())
    theirs = [their_tokens(tmp_path / "copy", prompt) for prompt in PROMPTS]
    assert alone == theirs[0]
    assert together == theirs
    assert num_drafted


@pytest.mark.parametrize("kill_after", [2, 9])
def test_passes_that_follow_one_another_give_the_tokens_of_transformers_through_a_death(
    published: Path, tmp_path: Path, kill_after: int
) -> None:
    dequantized_copy(published, tmp_path / "copy")

    async def main() -> list[int]:
        words, following = holdings(4, 2, num_experts_of(published)), EngineSettings(draft_width=2, draft_depth=4)
        async with memory_swarm(
            published, words, tmp_path / "cache", settings=following, speculation=Speculation.AUTO
        ) as world:
            return await tokens_of(world, kill_after)

    assert asyncio.run(main()) == their_tokens(tmp_path / "copy", PROMPT)


def test_a_pass_of_one_group_of_streams_is_one_frame_per_layer_and_holder(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", SHAPES["plain"], seed=4)

    async def main() -> list[Event]:
        one_group = EngineSettings(decode_groups=1)
        async with memory_swarm(tmp_path / "model", ["0-3", "4-7"], tmp_path, settings=one_group) as world:
            await asyncio.gather(*(tokens_of(world, None, [5, 17, i]) for i in range(6)))
            return list(world.events)

    events = asyncio.run(main())
    num_passes = sum(isinstance(event, PassTaken) for event in events)
    assert num_passes <= NUM_NEW_TOKENS + 6
    assert sum(isinstance(event, DispatchSent) for event in events) <= num_passes * 2 * 2  # MoE layers, holders


def test_one_frame_per_layer_and_holder(tmp_path: Path) -> None:
    """A prompt of one chunk and one token: each MoE layer is one request to each holder that it needs, no more."""
    write_checkpoint(tmp_path / "model", SHAPES["plain"], seed=4)

    async def main() -> list[tuple[int, str]]:
        async with memory_swarm(tmp_path / "model", ["0-3", "4-7"], tmp_path) as world:
            async for _ in world.swarm.stream(PROMPT, Sampling(max_tokens=1)):
                pass
            return [(event.layer, event.peer) for event in world.events if isinstance(event, DispatchSent)]

    sent = asyncio.run(main())
    assert len(sent) == len(set(sent)) <= 2 * 2


def test_the_durations_of_a_layers_experts_add_up_to_what_its_exchanges_took(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", SHAPES["plain"], seed=4)

    async def main() -> list[Event]:
        async with memory_swarm(tmp_path / "model", ["0-3", "4-7"], tmp_path) as world:
            async for _ in world.swarm.stream(PROMPT, Sampling(max_tokens=3)):
                pass
            return list(world.events)

    exchanges: list[ReplyReceived] = []
    num_timed = 0
    for event in asyncio.run(main()):
        if isinstance(event, ReplyReceived):
            exchanges.append(event)
        elif isinstance(event, ExpertsTimed):
            first = exchanges[0]
            assert event.slowest == exchanges[-1].peer
            assert event.num_holders == len(exchanges)
            assert event.wire_s + event.queue_s + event.compute_s == pytest.approx(first.exchange_s)
            assert min(event.wire_s, event.straggling_s, event.local_s) >= 0 == event.failed_s
            exchanges, num_timed = [], num_timed + 1
    assert num_timed == 3 * 2  # passes, MoE layers
