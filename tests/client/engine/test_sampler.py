"""Tokens are chosen as transformers chooses them, and a seed repeats them.

Run: pytest tests/client/engine/test_sampler.py
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from shoal.client.engine.logprobs import score_tokens
from shoal.client.engine.sampler import MAX_BIASED_TOKENS, Sampler, Sampling, filtered_logits
from shoal.protocol.errors import InvalidRequest, NonFinite, NoTokenAllowed

VOCAB = 50


def random_logits(seed: int) -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def sampler(sampling: Sampling, prompt: tuple[int, ...] = (), seed: int = 0) -> Sampler:
    return Sampler(sampling, prompt, torch.Generator().manual_seed(seed))


@given(
    seed=st.integers(0, 2**31),
    temperature=st.floats(0.1, 4.0),
    top_k=st.integers(1, VOCAB),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
    penalty=st.floats(0.5, 2.0),
    seen=st.sets(st.integers(0, VOCAB - 1), min_size=1),
)
def test_filters_are_those_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, seen: set[int]
) -> None:
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)])
    processors.extend([TopKLogitsWarper(top_k), TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)])
    theirs = processors(torch.tensor([sorted(seen)]), random_logits(seed)[None])[0]
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    assert torch.equal(filtered_logits(random_logits(seed), sampling, seen), theirs)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=VOCAB))
def test_greedy_takes_the_largest_logit_and_the_lowest_id_among_equals(values: list[float]) -> None:
    assert sampler(Sampling()).sample(torch.tensor(values)).token_id == values.index(max(values))


def test_greedy_heeds_the_repetition_penalty() -> None:
    logits = torch.tensor([1.0, 0.9, 0.1])
    repeating = sampler(Sampling(repetition_penalty=2.0), prompt=(2,))
    assert [repeating.sample(logits).token_id for _ in range(3)] == [0, 1, 0]


@given(
    seed=st.integers(0, 2**31),
    frequency=st.floats(-2, 2),
    presence=st.floats(-2, 2),
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100)),
    counts=st.dictionaries(st.integers(0, VOCAB - 1), st.integers(1, 9)),
)
def test_penalties_and_bias_are_openais_formula(
    seed: int, frequency: float, presence: float, bias: dict[int, float], counts: dict[int, int]
) -> None:
    sampling = Sampling(frequency_penalty=frequency, presence_penalty=presence, logit_bias=tuple(bias.items()))
    logits = random_logits(seed)
    expected = [
        float(logit) + bias.get(token, 0.0) - counts.get(token, 0) * frequency - (token in counts) * presence
        for token, logit in enumerate(logits)
    ]
    filtered = filtered_logits(logits, sampling, set(), counts)
    assert filtered.tolist() == pytest.approx(expected, abs=1e-4)


def test_penalties_count_the_answer_and_not_the_prompt() -> None:
    logits = torch.tensor([1.0, 0.9, 0.8])
    repeating = sampler(Sampling(frequency_penalty=0.15), prompt=(0, 0, 0))
    assert [repeating.sample(logits).token_id for _ in range(4)] == [0, 1, 0, 2]


def test_the_likeliest_tokens_are_told_in_order_and_as_the_model_has_them() -> None:
    logits = torch.tensor([0.5, 2.0, -1.0, 2.0, 0.0])
    sampled = sampler(Sampling(top_logprobs=3, temperature=2.0, logit_bias=((2, 100.0),))).sample(logits)
    logprobs = logits.log_softmax(dim=-1)
    assert sampled.token_id == 2
    assert [token_id for token_id, _ in sampled.top_logprobs] == [1, 3, 0]
    assert [logprob for _, logprob in sampled.top_logprobs] == pytest.approx(logprobs[[1, 3, 0]].tolist(), abs=1e-6)
    assert sampler(Sampling()).sample(logits).top_logprobs == ()
    assert len(sampler(Sampling(top_logprobs=20)).sample(logits).top_logprobs) == 5


def test_scores_are_log_softmax_of_each_row() -> None:
    rows, ids = torch.stack([random_logits(i) for i in range(6)]), torch.arange(6) * 7
    scores = score_tokens(rows, ids, 2)
    expected = rows.log_softmax(dim=-1)
    assert [score.token_id for score in scores] == ids.tolist()
    assert [score.logprob for score in scores] == pytest.approx(
        expected.gather(1, ids[:, None])[:, 0].tolist(), abs=1e-6
    )
    assert [[token for token, _ in score.top_logprobs] for score in scores] == expected.topk(2).indices.tolist()


class OnlyThese:
    """A grammar: one of these tokens at each place, then token 0."""

    def __init__(self, *choices: set[int] | None) -> None:
        self._choices = [*choices, {0}]
        self.accepted: list[int] = []

    def allowed(self) -> torch.Tensor | None:
        choice = self._choices[len(self.accepted)]
        return None if choice is None else torch.tensor([token in choice for token in range(VOCAB)])

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_constraint_masks_before_everything_else_and_is_told_every_token(temperature: float) -> None:
    grammar = OnlyThese({7}, {3, 4}, None)
    sampling = Sampling(temperature=temperature, logit_bias=((20, 100.0),), top_k=1)
    masked = Sampler(sampling, (), torch.Generator().manual_seed(0), grammar)
    ids = [masked.sample(random_logits(i)).token_id for i in range(4)]
    assert ids[0] == 7
    assert ids[1] in (3, 4)
    assert ids[2:] == [20, 0]
    assert grammar.accepted == ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constraint_that_allows_nothing_is_a_typed_error(temperature: float) -> None:
    stuck = Sampler(Sampling(temperature=temperature), (), torch.Generator(), OnlyThese(set()))
    with pytest.raises(NoTokenAllowed):
        stuck.sample(random_logits(0))


def test_a_mask_of_another_width_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="mask"):
        filtered_logits(random_logits(0), Sampling(), set(), {}, torch.ones(VOCAB + 1, dtype=torch.bool))


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    sampling = Sampling(temperature=1.0)

    def draw(seed: int) -> list[int]:
        drawing = sampler(sampling, seed=seed)
        return [drawing.sample(random_logits(i)).token_id for i in range(40)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    drawing, logits = sampler(Sampling(temperature=1.0)), torch.tensor([0.5, 0.3, 0.2]).log()
    counts = torch.bincount(torch.tensor([drawing.sample(logits).token_id for _ in range(4000)])) / 4000
    assert (counts - torch.tensor([0.5, 0.3, 0.2])).abs().max() < 0.03


def test_logprob_is_the_models_own() -> None:
    sampled = sampler(Sampling(temperature=0.1, top_k=2, repetition_penalty=1.5), prompt=(0,)).sample(random_logits(3))
    assert sampled.logprob == pytest.approx(float(random_logits(3).log_softmax(dim=-1)[sampled.token_id]), abs=1e-6)


def test_the_logits_are_left_as_they_were() -> None:
    logits = random_logits(4)
    sampler(Sampling(temperature=0.7, top_k=3, top_p=0.5, repetition_penalty=1.2), prompt=(1, 2)).sample(logits)
    assert torch.equal(logits, random_logits(4))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_a_typed_error(value: float, temperature: float) -> None:
    with pytest.raises(NonFinite):
        sampler(Sampling(temperature=temperature)).sample(torch.tensor([0.0, value, 1.0]))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": 1e-4},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"frequency_penalty": 2.1},
        {"presence_penalty": math.nan},
        {"logit_bias": ((1, 101.0),)},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((1, 1.0), (1, 2.0))},
        {"logit_bias": tuple((i, 1.0) for i in range(MAX_BIASED_TOKENS + 1))},
        {"top_logprobs": 21},
        {"top_logprobs": -1},
        {"seed": -1},
        {"seed": 2**63},
        {"max_tokens": 0},
        {"stop": ("",)},
        {"stop": ("x" * 257,)},
        {"stop": ("x",) * 17},
    ],
)
def test_values_out_of_range_are_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(values))):
        Sampling(**values)  # type: ignore[arg-type]
