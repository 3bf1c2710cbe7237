"""The loop stops where it must, refuses what it cannot do, and leaves nothing behind.

Run: pytest tests/client/engine/test_generate.py
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoal.client.engine.generate import PREFILL_CHUNK, Engine, FinishReason, Token
from shoal.client.engine.sampler import Sampling
from shoal.client.text.tokenizer import Tokenizer
from shoal.client.trunk.checkpoint import load_trunk
from shoal.client.trunk.local_experts import LocalExperts
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.store import ModelStore
from shoal.experts.worker import Args, InlineWorker, Result, Worker
from shoal.protocol.errors import ContextLengthExceeded, CoverageGap, InvalidRequest, NoTokenAllowed
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Rounding
from tests.checkpoints import SHAPES, write_checkpoint
from tests.client.text.tiny_tokenizer import CONFIG, train

CONTEXT = 600
VOCABULARY = train()
SHAPE = replace(SHAPES["plain"], vocab_size=VOCABULARY.get_vocab_size(), max_positions=CONTEXT)
PROMPT = [5, 17, 300, 2]
GREEDY = Sampling(max_tokens=12, ignore_eos=True)


def open_engine(directory: Path, tokenizer: Tokenizer | None = None, worker: Worker | None = None) -> Engine:
    store, worker = ModelStore.open(directory, directory.parent / "cache"), worker or InlineWorker()
    experts = LocalExperts(store, ReferenceBackend(), Rounding.FP32, worker)
    return Engine(load_trunk(store, worker, torch.float32), experts, tokenizer, draw_seed=lambda: 7)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("engine") / "model"
    write_checkpoint(directory, SHAPE, seed=3)
    return directory


@pytest.fixture
def engine(model: Path) -> Engine:
    return open_engine(model)


@pytest.fixture
def talking(model: Path) -> Engine:
    return open_engine(model, Tokenizer(VOCABULARY.to_str().encode(), CONFIG))


def stream(engine: Engine, prompt: list[int], sampling: Sampling) -> list[Token]:
    async def collect() -> list[Token]:
        async with aclosing(engine.stream(prompt, sampling)) as tokens:
            return [token async for token in tokens]

    return asyncio.run(collect())


def test_tokens_are_numbered_and_only_the_last_one_tells_why_it_ended(engine: Engine) -> None:
    tokens = stream(engine, PROMPT, GREEDY)
    assert [token.index for token in tokens] == list(range(12))
    assert [token.finish_reason for token in tokens] == [None] * 11 + [FinishReason.LENGTH]
    assert all(token.logprob < 0 for token in tokens)


def test_a_prompt_longer_than_a_chunk_gives_what_one_pass_gives(engine: Engine) -> None:
    prompt = torch.randint(0, SHAPE.vocab_size, (PREFILL_CHUNK + 50,), generator=torch.Generator().manual_seed(1))

    async def in_one_pass() -> int:
        hidden = await engine.trunk.forward(prompt, engine.trunk.new_cache(), engine.routed_experts)
        return int((await engine.trunk.logits(hidden[-1:])).argmax())

    assert stream(engine, prompt.tolist(), Sampling(max_tokens=1))[0].id == asyncio.run(in_one_pass())


def with_end_token(model: Path, root: Path, token_id: object) -> Engine:
    directory = root / "model"
    directory.mkdir()
    for file in model.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    config = json.loads((directory / "config.json").read_text()) | {"eos_token_id": token_id}
    (directory / "config.json").write_text(json.dumps(config))
    return open_engine(directory)


def test_an_end_token_ends_the_answer_and_is_its_last_token(engine: Engine, model: Path, tmp_path: Path) -> None:
    third = stream(engine, PROMPT, GREEDY)[2].id
    ending = with_end_token(model, tmp_path, [third, 1])
    tokens = stream(ending, PROMPT, replace(GREEDY, ignore_eos=False))
    assert (len(tokens), tokens[-1].id, tokens[-1].finish_reason) == (3, third, FinishReason.STOP)
    assert len(stream(ending, PROMPT, GREEDY)) == 12


def test_without_max_tokens_it_goes_on_to_the_end_of_the_context(engine: Engine) -> None:
    tokens = stream(engine, [3] * (CONTEXT - 9), Sampling(ignore_eos=True))
    assert (len(tokens), tokens[-1].finish_reason) == (9, FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens"), [(CONTEXT, None), (CONTEXT + 1, 1), (CONTEXT - 9, 10), (1, CONTEXT)]
)
def test_what_does_not_fit_the_context_is_refused(engine: Engine, num_prompt: int, max_tokens: int | None) -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        stream(engine, [3] * num_prompt, Sampling(max_tokens=max_tokens))
    assert (caught.value.num_tokens, caught.value.limit) == (num_prompt + (max_tokens or 1), CONTEXT)


@pytest.mark.parametrize("prompt", [[], [-1], [SHAPE.vocab_size]])
def test_prompts_that_are_none_are_refused(engine: Engine, prompt: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        stream(engine, prompt, GREEDY)


def test_stop_strings_need_a_tokenizer(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match=r"tokenizer\.json"):
        stream(engine, PROMPT, Sampling(stop=("x",)))


def test_a_bias_on_a_token_that_the_model_does_not_have_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="logit_bias"):
        stream(engine, PROMPT, Sampling(logit_bias=((SHAPE.vocab_size, 1.0),)))


class Forced:
    """A grammar that knows one answer."""

    def __init__(self, ids: list[int]) -> None:
        self._left = ids

    def allowed(self) -> Tensor:
        return torch.arange(SHAPE.vocab_size) == (self._left[0] if self._left else -1)

    def accept(self, token_id: int) -> None:
        self._left = self._left[1:]


def test_a_constraint_decides_the_answer_and_its_dead_end_is_an_error_after_it(engine: Engine) -> None:
    async def run() -> list[int]:
        tokens = engine.stream(PROMPT, GREEDY, Forced([9, 8, 7]))
        ids = [(await anext(tokens)).id for _ in range(3)]
        with pytest.raises(NoTokenAllowed):
            await anext(tokens)
        return ids

    assert asyncio.run(run()) == [9, 8, 7]


def test_a_prompt_is_scored_as_its_tokens_would_have_been_had_they_been_chosen(engine: Engine) -> None:
    tokens = stream(engine, PROMPT, replace(GREEDY, top_logprobs=2))
    scores = asyncio.run(engine.score([*PROMPT, *(token.id for token in tokens)], top_logprobs=2))
    for token, score in zip(tokens, scores[len(PROMPT) :], strict=True):
        assert token.id == score.token_id == score.top_logprobs[0][0]
        assert [token_id for token_id, _ in token.top_logprobs] == [token_id for token_id, _ in score.top_logprobs]
        assert token.logprob == pytest.approx(score.logprob, abs=1e-5)


def test_a_prompt_longer_than_a_chunk_is_scored_as_in_one_pass(engine: Engine) -> None:
    prompt = torch.randint(0, SHAPE.vocab_size, (PREFILL_CHUNK + 50,), generator=torch.Generator().manual_seed(2))

    async def in_one_pass() -> Tensor:
        hidden = await engine.trunk.forward(prompt, engine.trunk.new_cache(), engine.routed_experts)
        return (await engine.trunk.logits(hidden)).log_softmax(dim=-1)

    expected = asyncio.run(in_one_pass())[:-1].gather(1, prompt[1:, None])[:, 0]
    scores = asyncio.run(engine.score(prompt.tolist()))
    assert [score.logprob for score in scores[1:]] == pytest.approx(expected.tolist(), abs=2e-5)


@pytest.mark.parametrize("count", [-1, 21])
def test_scores_tell_at_most_twenty_alternatives(engine: Engine, count: int) -> None:
    with pytest.raises(InvalidRequest, match="top_logprobs"):
        asyncio.run(engine.score(PROMPT, top_logprobs=count))


def test_a_prompt_longer_than_the_context_is_not_scored(engine: Engine) -> None:
    assert len(asyncio.run(engine.score([3] * CONTEXT))) == CONTEXT
    with pytest.raises(ContextLengthExceeded):
        asyncio.run(engine.score([3] * (CONTEXT + 1)))


def test_the_text_is_that_of_all_tokens_and_generate_says_how_it_went(talking: Engine) -> None:
    assert talking.tokenizer is not None
    generation = asyncio.run(talking.generate(PROMPT, GREEDY))
    assert generation.text == talking.tokenizer.decode(generation.token_ids)
    assert generation.text == "".join(token.text for token in stream(talking, PROMPT, GREEDY))
    assert (generation.num_prompt_tokens, generation.finish_reason) == (4, FinishReason.LENGTH)
    assert generation.ttft_s > 0
    assert generation.tokens_per_s > 0


def test_a_stop_string_ends_the_answer_and_is_not_in_it(talking: Engine) -> None:
    whole = asyncio.run(talking.generate(PROMPT, GREEDY)).text
    stop = whole[1:3]
    generation = asyncio.run(talking.generate(PROMPT, replace(GREEDY, stop=(stop, "never there"))))
    assert generation.text == whole[: whole.index(stop)]
    assert generation.finish_reason is FinishReason.STOP
    assert len(generation.token_ids) < 12


def test_a_seed_repeats_an_answer_and_without_one_it_is_drawn(engine: Engine) -> None:
    def ids(seed: int | None) -> list[int]:
        sampling = Sampling(temperature=1.5, max_tokens=12, ignore_eos=True, seed=seed)
        return [token.id for token in stream(engine, PROMPT, sampling)]

    assert ids(1) == ids(1) != ids(2)
    assert ids(None) == ids(7)


class Scripted:
    """Routed experts that do as they are told at one call."""

    def __init__(self, inner: LocalExperts, at_call: int, act: Callable[[], Awaitable[None]]) -> None:
        self._inner = inner
        self._left = at_call
        self._act = act

    async def __call__(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        self._left -= 1
        if self._left == 0:
            await self._act()
        return await self._inner(layer, x, topk_idx, topk_weights)


def scripted(engine: Engine, at_call: int, act: Callable[[], Awaitable[None]]) -> Engine:
    assert isinstance(engine.routed_experts, LocalExperts)
    return Engine(engine.trunk, Scripted(engine.routed_experts, at_call, act))


def test_an_error_of_the_experts_arrives_as_itself_after_the_tokens_so_far(engine: Engine) -> None:
    async def fail() -> None:
        raise CoverageGap(LayerId(1), [ExpertId(4)], retry_after_s=2.0)

    async def run() -> list[int]:
        tokens = scripted(engine, 6, fail).stream(PROMPT, GREEDY)
        ids = [(await anext(tokens)).id for _ in range(2)]
        with pytest.raises(CoverageGap, match="expert 4 of layer 1"):
            await anext(tokens)
        assert len(asyncio.all_tasks()) == 1
        return ids

    assert asyncio.run(run()) == [token.id for token in stream(engine, PROMPT, GREEDY)[:2]]


def test_cancelling_leaves_no_task_behind(engine: Engine) -> None:
    async def run() -> None:
        is_waiting = asyncio.Event()

        async def wait_for_ever() -> None:
            is_waiting.set()
            await asyncio.Event().wait()

        generation = asyncio.create_task(scripted(engine, 4, wait_for_ever).generate(PROMPT, GREEDY))
        await is_waiting.wait()
        generation.cancel()
        with pytest.raises(asyncio.CancelledError):
            await generation
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_closing_the_stream_stops_it(engine: Engine) -> None:
    async def run() -> int:
        async with aclosing(engine.stream(PROMPT, GREEDY)) as tokens:
            async for token in tokens:
                if token.index == 2:
                    break
        assert len(asyncio.all_tasks()) == 1
        return token.index

    assert asyncio.run(run()) == 2


def test_a_pass_that_failed_may_simply_be_run_again(engine: Engine) -> None:
    async def fail() -> None:
        raise CoverageGap(LayerId(1), [ExpertId(0)], retry_after_s=0.0)

    async def run() -> tuple[Tensor, Tensor]:
        cache, ids = engine.trunk.new_cache(), torch.tensor(PROMPT)
        with pytest.raises(CoverageGap):
            await engine.trunk.forward(ids, cache, scripted(engine, 2, fail).routed_experts)
        again = await engine.trunk.forward(ids, cache, engine.routed_experts)
        return again, await engine.trunk.forward(ids, engine.trunk.new_cache(), engine.routed_experts)

    again, at_once = asyncio.run(run())
    assert torch.equal(again, at_once)


class NoticingWorker(InlineWorker):
    """Sets an event when it gets a job."""

    def __init__(self) -> None:
        super().__init__()
        self.has_job = asyncio.Event()

    async def run(self, fn: Callable[[*Args], Result], *args: *Args) -> Result:
        self.has_job.set()
        return await super().run(fn, *args)


def test_the_shared_expert_is_computed_while_the_routed_ones_are_away(model: Path) -> None:
    worker = NoticingWorker()

    async def wait_until_the_worker_has_another_job() -> None:
        worker.has_job.clear()
        async with asyncio.timeout(5):
            await worker.has_job.wait()

    engine = scripted(open_engine(model, worker=worker), 1, wait_until_the_worker_has_another_job)
    assert len(stream(engine, PROMPT, Sampling(max_tokens=1))) == 1


@pytest.mark.parametrize("num_tokens", [0, 513])
def test_a_pass_takes_no_more_tokens_than_a_frame(engine: Engine, num_tokens: int) -> None:
    ids = torch.zeros(num_tokens, dtype=torch.int64)
    with pytest.raises(InvalidRequest, match=r"1\.\.512"):
        asyncio.run(engine.trunk.forward(ids, engine.trunk.new_cache(), engine.routed_experts))
