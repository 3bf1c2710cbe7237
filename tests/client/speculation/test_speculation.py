"""Answers are the same with and without drafts, whoever drafts, however wrong, and whatever goes wrong meanwhile.

Run: pytest tests/client/speculation/test_speculation.py
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.client.engine.engine_settings import MAX_DRAFT_WIDTH
from shoal.client.engine.generate import Engine, Token
from shoal.client.engine.sampler import Sampling
from shoal.client.speculation.drafter import Drafts, Wish
from shoal.client.trunk.moe import RoutedExperts
from shoal.protocol.errors import CoverageGap, NoTokenAllowed
from shoal.protocol.events import Event, PassTaken
from shoal.protocol.ids import ExpertId, LayerId
from tests.client.speculation.drafted_model import GREEDY, LOGPROB_BOUND, PROMPT, SHAPE, Model, stream


@dataclass
class Oracle:
    """A drafter that knows the answers, and errs where it is told to: after `errs_every` right ones."""

    answers: Sequence[Sequence[int]]
    """Prompts with their answers."""
    errs_every: int
    wants_states = True
    num_seen: int = 0

    def saw(self, stream: object, start: int, states: Tensor) -> None:
        self.num_seen += len(states)

    async def draft(self, wishes: Sequence[Wish]) -> list[Drafts]:
        return [self._one(wish) for wish in wishes]

    def _one(self, wish: Wish) -> Drafts:
        ids = list(wish.ids)
        known = next((list(answer) for answer in self.answers if list(answer[: len(ids)]) == ids), ids)
        start = len(ids) + len(wish.guessed)
        right = known[start : start + wish.width]
        return tuple((t + 1) % 300 if (start + i) % self.errs_every == 0 else t for i, t in enumerate(right))


@dataclass
class Evens:
    """A grammar: even tokens only, `length` of them, then nothing may come."""

    length: int = 99

    def allowed(self) -> Tensor | None:
        mask = torch.zeros(SHAPE.vocab_size, dtype=torch.bool)
        if self.length:
            mask[::2] = True
        return mask

    def accept(self, token_id: int) -> None:
        assert token_id % 2 == 0
        self.length -= 1


def is_left_clean(engine: Engine) -> bool:
    load = engine.load
    return (load.num_running, load.num_waiting, load.kv_bytes) == (0, 0, 0)


def assert_same(tokens: list[Token], expected: list[Token]) -> None:
    def told(tokens: list[Token]) -> list[tuple[object, ...]]:
        return [(t.id, t.text, t.index, t.finish_reason, [i for i, _ in t.top_logprobs]) for t in tokens]

    assert told(tokens) == told(expected)
    assert [t.logprob for t in tokens] == pytest.approx([t.logprob for t in expected], abs=LOGPROB_BOUND)


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0]),
    top_k=st.sampled_from([0, 3]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    top_logprobs=st.sampled_from([0, 2]),
    seed=st.integers(0, 1000),
    max_tokens=st.integers(1, 14),
    stop=st.sampled_from([(), ("e",), ("th", "a")]),
    ignore_eos=st.booleans(),
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    asked=st.lists(st.tuples(st.lists(st.integers(0, 300), min_size=1, max_size=8), samplings), min_size=1, max_size=5),
    errs_every=st.sampled_from([1, 2, 3, 1000]),
    width=st.sampled_from([1, 4, MAX_DRAFT_WIDTH]),
    groups=st.sampled_from([1, 2, 3]),
)
def test_answers_are_the_same_however_wrong_the_drafts_are_and_whoever_shares_the_pass(
    model: Model, asked: list[tuple[list[int], Sampling]], errs_every: int, width: int, groups: int
) -> None:
    plain = model.engine()
    expected = [asyncio.run(stream(plain, prompt, sampling)) for prompt, sampling in asked]
    answers = [prompt + [t.id for t in tokens] for (prompt, _), tokens in zip(asked, expected, strict=True)]
    engine = model.engine(Oracle(answers, errs_every), width, decode_groups=groups)

    async def together() -> list[list[Token]]:
        return await asyncio.gather(*(stream(engine, prompt, sampling) for prompt, sampling in asked))

    for tokens, wanted in zip(asyncio.run(together()), expected, strict=True):
        assert_same(tokens, wanted)
    assert is_left_clean(engine)


def answer_of(model: Model, prompt: Sequence[int] = PROMPT) -> list[int]:
    return [*prompt, *(t.id for t in asyncio.run(stream(model.engine(), prompt, GREEDY)))]


def test_right_drafts_take_passes_away_and_every_figure_says_so(model: Model) -> None:
    events: list[Event] = []
    engine = model.engine(Oracle([answer_of(model)], errs_every=1000), width=3, events=events)
    generation = asyncio.run(engine.generate(PROMPT, GREEDY))
    passes = [event for event in events if isinstance(event, PassTaken)]
    assert [event.num_drafted for event in passes] == [0, 3, 3, 3]  # the prompt's brings the first token
    assert sum(event.num_accepted for event in passes) == generation.accepted_tokens == generation.drafted_tokens == 9
    assert generation.tokens_per_pass == pytest.approx(13 / 4)


def test_no_draft_goes_beyond_what_the_answer_may_have(model: Model) -> None:
    events: list[Event] = []
    engine = model.engine(Oracle([answer_of(model)], errs_every=1000), width=8, events=events)
    asyncio.run(stream(engine, PROMPT, replace(GREEDY, max_tokens=3)))
    assert [event.num_drafted for event in events if isinstance(event, PassTaken)] == [0, 1]


def test_a_grammar_sees_the_tokens_of_the_answer_and_no_draft(model: Model) -> None:
    sampling = replace(GREEDY, temperature=1.0, seed=4)
    expected = asyncio.run(stream(model.engine(), PROMPT, sampling, Evens()))
    answer = [*PROMPT, *(token.id for token in expected)]
    tokens = asyncio.run(stream(model.engine(Oracle([answer], errs_every=3)), PROMPT, sampling, Evens()))
    assert_same(tokens, expected)


def test_tokens_before_a_grammars_dead_end_are_handed_out_and_then_its_error(model: Model) -> None:
    expected = asyncio.run(stream(model.engine(), PROMPT, GREEDY, Evens()))
    answer = [*PROMPT, *(token.id for token in expected)]
    engine, got = model.engine(Oracle([answer], errs_every=1000)), list[int]()

    async def main() -> None:
        async with aclosing(engine.stream(PROMPT, GREEDY, Evens(length=4))) as tokens:
            async for token in tokens:
                got.append(token.id)

    with pytest.raises(NoTokenAllowed):
        asyncio.run(main())
    assert got == answer[len(PROMPT) :][:4]
    assert is_left_clean(engine)


@dataclass
class Gap:
    """Experts of which one layer is missing for the rows behind the first of a pass, or for all."""

    experts: RoutedExperts
    first_row: int
    num_gaps: int = 0

    async def __call__(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        mine = set(topk_idx[: self.first_row].flatten().tolist())
        missing = [e for e in topk_idx[self.first_row :].flatten().tolist() if e not in mine]
        if missing and len(x) in (1, 4):  # one token, or one and three drafts; a prompt has others
            self.num_gaps += 1
            raise CoverageGap(layer, [ExpertId(missing[0])], 1.0)
        return await self.experts(layer, x, topk_idx, topk_weights)


def test_an_expert_that_only_drafts_need_ends_nothing(model: Model) -> None:
    answer, gap = answer_of(model, (5, 17)), Gap(model.experts, first_row=1)
    engine = model.engine(Oracle([answer], errs_every=1000), width=3, experts=gap)
    assert [t.id for t in asyncio.run(stream(engine, (5, 17), GREEDY))] == answer[2:]
    assert gap.num_gaps == 1  # then it goes on without drafts


def test_an_expert_that_the_answer_needs_ends_it_with_drafts_too(model: Model) -> None:
    engine = model.engine(Oracle([answer_of(model, (5, 17))], 1000), 3, Gap(model.experts, first_row=0))
    with pytest.raises(CoverageGap):
        asyncio.run(stream(engine, (5, 17), GREEDY))
    assert is_left_clean(engine)


def test_drafts_take_no_memory_from_anybodys_cache(model: Model) -> None:
    """A budget for both caches and not for drafts behind them: drafts give way, no stream does."""
    prompts = [tuple(range(250)), tuple(range(1, 251))]
    expected = [answer_of(model, prompt)[250:] for prompt in prompts]
    answers = [[*prompt, *answer] for prompt, answer in zip(prompts, expected, strict=True)]
    engine = model.engine(Oracle(answers, 1000), 8, kv_cache_bytes=2 * 400 * model.trunk.cache_bytes_per_token)

    async def together() -> list[list[Token]]:
        return await asyncio.gather(*(stream(engine, prompt, GREEDY) for prompt in prompts))

    assert [[t.id for t in tokens] for tokens in asyncio.run(together())] == expected


class Endless(Oracle):
    """Drafts for ever."""

    async def draft(self, wishes: Sequence[Wish]) -> list[Drafts]:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody answers")


def test_leaving_while_drafts_are_made_frees_the_place_and_others_go_on(model: Model) -> None:
    engine = model.engine(Endless([], 1))

    async def main() -> list[Token]:
        async with aclosing(engine.stream(PROMPT, GREEDY)) as tokens:
            assert (await anext(tokens)).index == 0  # the next pass is waiting for its drafts
        assert is_left_clean(engine)
        return await stream(engine, PROMPT, replace(GREEDY, max_tokens=1))

    assert len(asyncio.run(main())) == 1


@dataclass
class Held(Oracle):
    """Drafts that come when somebody lets them."""

    is_asked: asyncio.Event = field(default_factory=asyncio.Event)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def draft(self, wishes: Sequence[Wish]) -> list[Drafts]:
        self.is_asked.set()
        await self.may_answer.wait()
        return await super().draft(wishes)


def test_who_stays_when_another_leaves_while_drafts_are_made_gets_the_same_answer(model: Model) -> None:
    answers = [answer_of(model), answer_of(model, (5, 17))]
    held, events = Held(answers, errs_every=3), list[Event]()
    engine = model.engine(held, width=3, events=events)

    async def main() -> list[Token]:
        leaving = engine.stream(PROMPT, GREEDY)
        staying = asyncio.create_task(stream(engine, (5, 17), GREEDY))
        async with aclosing(leaving):
            await anext(leaving)
            await held.is_asked.wait()
        held.may_answer.set()
        return await staying

    assert [token.id for token in asyncio.run(main())] == answers[1][2:]
    assert is_left_clean(engine)
    assert all(event.num_prefilled >= 0 for event in events if isinstance(event, PassTaken))


def test_without_a_drafter_nothing_is_drafted_timed_or_told(model: Model) -> None:
    events: list[Event] = []
    generation = asyncio.run(model.engine(events=events).generate(PROMPT, GREEDY))
    passes = [event for event in events if isinstance(event, PassTaken)]
    assert [(event.num_drafted, event.num_accepted, event.draft_s) for event in passes] == [(0, 0, 0.0)] * 13
    assert (generation.drafted_tokens, generation.accepted_tokens, generation.tokens_per_pass) == (0, 0, 1.0)
