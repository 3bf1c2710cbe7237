"""Tokens are chosen as transformers chooses them, and a seed repeats them.

Run: pytest tests/client/test_sampler.py
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from shoal.client.sampler import Sampler, Sampling, filtered_logits
from shoal.protocol.errors import InvalidRequest, NonFinite

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
    penalty=st.floats(0.5, 2.0),
    seen=st.sets(st.integers(0, VOCAB - 1), min_size=1),
)
def test_filters_are_those_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, penalty: float, seen: set[int]
) -> None:
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)])
    processors.extend([TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)])
    theirs = processors(torch.tensor([sorted(seen)]), random_logits(seed)[None])[0]
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    assert torch.equal(filtered_logits(random_logits(seed), sampling, seen), theirs)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=VOCAB))
def test_greedy_takes_the_largest_logit_and_the_lowest_id_among_equals(values: list[float]) -> None:
    assert sampler(Sampling()).sample(torch.tensor(values)).token_id == values.index(max(values))


def test_greedy_heeds_the_repetition_penalty() -> None:
    logits = torch.tensor([1.0, 0.9, 0.1])
    repeating = sampler(Sampling(repetition_penalty=2.0), prompt=(2,))
    assert [repeating.sample(logits).token_id for _ in range(3)] == [0, 1, 0]


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
