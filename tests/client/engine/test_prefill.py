"""A prompt whose chunks overlap is the prompt that goes chunk by chunk: same bits, same errors, nobody else's business.

Run: pytest tests/client/engine/test_prefill.py
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from shoal.client.engine.engine_settings import CHUNKS_PER_PASS, PREFILL_CHUNK, EngineSettings
from shoal.client.engine.generate import Engine, Token
from shoal.client.engine.sampler import Sampling
from shoal.client.trunk.checkpoint import load_trunk
from shoal.client.trunk.local_experts import LocalExperts
from shoal.client.trunk.model import Timing, Trunk
from shoal.client.trunk.moe import RoutedExperts
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from shoal.protocol.errors import CoverageGap, PeerFailed
from shoal.protocol.events import Event, PassTaken
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Rounding
from tests.checkpoints import SHAPES, write_checkpoint

SHAPE = replace(SHAPES["plain"], vocab_size=800, max_positions=5 * PREFILL_CHUNK)
PROMPT = tuple(i * 7 % 800 for i in range(4 * PREFILL_CHUNK + 70))
"""Five chunks."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Model:
    trunk: Trunk
    experts: LocalExperts

    def engine(self, ahead: int, experts: RoutedExperts | None = None, timing: Timing | None = None) -> Engine:
        settings = EngineSettings(prefill_ahead=ahead)
        return Engine(self.trunk, experts or self.experts, settings=settings, timing=timing or Timing(0, zero, ignore))


def zero() -> float:
    return 0.0


def ignore(event: Event) -> None:
    return


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums as in every other run
    directory = tmp_path_factory.mktemp("prefill") / "model"
    write_checkpoint(directory, SHAPE, seed=3)
    worker = InlineWorker()
    with ModelStore.open(directory, directory.parent / "cache") as store:
        experts = LocalExperts(store, choose_backend(KernelChoice.AUTO, 1), Rounding.FP32, worker)
        yield Model(load_trunk(store, worker, torch.float32), experts)
    torch.set_num_threads(before)


class Far(RoutedExperts):
    """Experts whose answers take some turns of the loop, each another number of them."""

    def __init__(self, experts: RoutedExperts, at_call: Callable[[int, Tensor], None] = lambda call, x: None) -> None:
        self._experts = experts
        self._at_call = at_call
        self._chance = random.Random(5)
        self.num_calls = 0
        self.num_waiting = 0
        self.most_waiting = 0

    async def __call__(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        self.num_calls += 1
        self._at_call(self.num_calls, x)
        self.num_waiting += 1
        self.most_waiting = max(self.most_waiting, self.num_waiting)
        try:
            for _ in range(self._chance.randrange(60)):
                await asyncio.sleep(0)
            return await self._experts(layer, x, topk_idx, topk_weights)
        finally:
            self.num_waiting -= 1


def run(engine: Engine, work: Coroutine[None, None, Result]) -> Result:
    """Run it, and see that nothing is left."""

    async def main() -> Result:
        result = await work
        load = engine.load
        assert (load.num_running, load.num_waiting, load.kv_bytes) == (0, 0, 0)
        assert len(asyncio.all_tasks()) == 1
        return result

    return asyncio.run(main())


async def answer(engine: Engine, prompt: tuple[int, ...], num_tokens: int = 4) -> list[Token]:
    async with aclosing(engine.stream(prompt, Sampling(max_tokens=num_tokens, ignore_eos=True, seed=1))) as stream:
        return [token async for token in stream]


def read(tokens: list[Token]) -> list[tuple[int, float]]:
    return [(token.id, token.logprob) for token in tokens]


@pytest.mark.parametrize("ahead", [2, 4, CHUNKS_PER_PASS])
def test_chunks_that_overlap_give_the_bits_of_chunks_that_do_not(model: Model, ahead: int) -> None:
    plain = model.engine(ahead=1)
    expected = read(run(plain, answer(plain, PROMPT)))
    far = Far(model.experts)
    engine = model.engine(ahead, far)
    assert read(run(engine, answer(engine, PROMPT))) == expected
    assert far.most_waiting == min(ahead, 5)


def test_one_after_another_there_is_one_call_at_a_time(model: Model) -> None:
    far = Far(model.experts)
    engine = model.engine(1, far)
    run(engine, answer(engine, PROMPT))
    assert far.most_waiting == 1


def test_a_scored_prompt_has_the_same_bits_too(model: Model) -> None:
    plain, engine = model.engine(1), model.engine(4, Far(model.experts))
    scores, expected = run(engine, engine.score(PROMPT)), run(plain, plain.score(PROMPT))
    assert [score.logprob for score in scores] == [score.logprob for score in expected]


def test_prompts_of_many_streams_overlap_and_each_gets_its_own(model: Model) -> None:
    prompts = [PROMPT[start : start + length] for start, length in ((0, 600), (5, 9), (1, 300), (70, 1), (2, 65))]
    plain, far = model.engine(1), Far(model.experts)
    engine = model.engine(4, far)

    async def together() -> list[list[Token]]:
        return await asyncio.gather(*(answer(engine, prompt) for prompt in prompts))

    for prompt, tokens in zip(prompts, run(engine, together()), strict=True):
        alone = run(plain, answer(plain, prompt))
        assert [token.id for token in tokens] == [token.id for token in alone]
        assert [token.logprob for token in tokens] == pytest.approx([token.logprob for token in alone], abs=1e-4)
    assert far.most_waiting > 1


def gap_in(layer: LayerId) -> CoverageGap:
    return CoverageGap(layer, [ExpertId(expert) for expert in range(SHAPE.num_experts)], 1.0)


class Gone(RoutedExperts):
    """Experts of which nobody answers a chunk of a prompt once some chunks are under way."""

    def __init__(self, experts: RoutedExperts, error: Callable[[LayerId], Exception], after: int) -> None:
        self._far = Far(experts)
        self._error = error
        self._left = after

    async def __call__(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        self._left -= len(x) == PREFILL_CHUNK
        if len(x) == PREFILL_CHUNK and self._left <= 0:
            raise self._error(layer)
        return await self._far(layer, x, topk_idx, topk_weights)


@pytest.mark.parametrize("error", [gap_in, lambda layer: PeerFailed("all replicas")], ids=["gap", "unknown rows"])
@pytest.mark.parametrize("after", [1, 3, 6])
def test_an_error_in_mid_prefill_ends_that_stream_and_those_who_decode_go_on(
    model: Model, error: Callable[[LayerId], Exception], after: int
) -> None:
    engine, plain = model.engine(4, Gone(model.experts, error, after)), model.engine(1)

    async def main() -> list[Token]:
        decoding = asyncio.create_task(answer(engine, PROMPT[:5], 40))
        while not engine.load.num_running:  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0)
        with pytest.raises((CoverageGap, PeerFailed)):
            await answer(engine, PROMPT)
        return await decoding

    assert [token.id for token in run(engine, main())] == [t.id for t in run(plain, answer(plain, PROMPT[:5], 40))]


def test_a_failed_pass_leaves_the_cache_as_it_was(model: Model) -> None:
    """The error is about one prompt; the other one's chunks, some of them done, are run again."""

    def fail(call: int, x: Tensor) -> None:
        if len(x) == 65 + 2 and not failed:
            failed.append(call)
            raise PeerFailed("all replicas")

    failed = list[int]()
    engine, plain = model.engine(4, Far(model.experts, fail)), model.engine(1)

    async def main() -> list[Token]:
        tokens, error = await asyncio.gather(
            answer(engine, PROMPT), answer(engine, PROMPT[: 65 + 2]), return_exceptions=True
        )
        assert isinstance(error, PeerFailed)
        assert isinstance(tokens, list)
        return tokens

    assert read(run(engine, main())) == read(run(plain, answer(plain, PROMPT)))


@pytest.mark.parametrize("call", [1, 4, 9])
def test_who_leaves_in_mid_prefill_leaves_nothing_behind_and_the_next_is_served(model: Model, call: int) -> None:
    has_come = asyncio.Event()
    far = Far(model.experts, lambda now, x: has_come.set() if now == call else None)
    engine, plain = model.engine(4, far), model.engine(1)

    async def main() -> list[Token]:
        leaver = asyncio.create_task(answer(engine, PROMPT))
        await has_come.wait()
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        assert (engine.load.num_running, far.num_waiting) == (0, 0)
        return await answer(engine, PROMPT[3:])

    assert read(run(engine, main())) == read(run(plain, answer(plain, PROMPT[3:])))


def test_a_newcomer_ends_a_pass_of_many_chunks_early(model: Model) -> None:
    passes, has_begun = list[PassTaken](), asyncio.Event()

    def note(event: Event) -> None:
        if isinstance(event, PassTaken):
            passes.append(event)

    far = Far(model.experts, lambda call, x: has_begun.set())
    engine, plain = model.engine(2, far, Timing(0, zero, note)), model.engine(1)

    async def main() -> list[list[Token]]:
        first = asyncio.create_task(answer(engine, PROMPT))
        await has_begun.wait()
        return list(await asyncio.gather(first, answer(engine, PROMPT[:9])))

    long, short = run(engine, main())
    assert passes[0].num_prefilled <= 2 * PREFILL_CHUNK, "those under way, and no more"
    assert read(long)[0][0] == read(run(plain, answer(plain, PROMPT)))[0][0]
    assert [token.id for token in short] == [t.id for t in run(plain, answer(plain, PROMPT[:9]))]


def test_beside_those_who_decode_a_pass_takes_a_chunk_in_a_frame_of_its_own(model: Model) -> None:
    sizes = list[int]()
    engine = model.engine(4, Far(model.experts, lambda call, x: sizes.append(len(x))))

    async def main() -> list[list[Token]]:
        first = asyncio.create_task(answer(engine, PROMPT[:3], 40))
        while not any(size == 1 for size in sizes):  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0)
        return list(await asyncio.gather(first, answer(engine, PROMPT[: 2 * PREFILL_CHUNK])))

    run(engine, main())
    assert set(sizes) <= {1, 2, 3, PREFILL_CHUNK}
