"""Speculative sampling draws what sampling draws.

Run: pytest tests/client/speculation/test_verified_sampling.py
"""

import torch

from shoal.client.engine.passes import Chosen, _choose
from shoal.client.engine.sampler import Sampler, Sampling
from shoal.client.engine.sequence import Answering, Ending
from shoal.client.text.answer_text import AnswerText

CHI_SQUARE_LIMIT = 29.588
"""The 99.9th percentile with 10 degrees of freedom."""


def test_verified_samples_keep_the_samplers_distribution() -> None:
    """Chi-square over 11 tokens: of the first token, and of the second where the draft before it was right."""

    logits = torch.randn(2, 11, generator=torch.Generator().manual_seed(5))
    sampling = Sampling(temperature=0.9)
    draft = int(logits[0].argmax())
    counts = torch.zeros(2, 11)
    for seed in range(6000):
        sampler = Sampler(sampling, [0], torch.Generator().manual_seed(seed))
        answering = Answering([0], sampler, AnswerText(None, ()), Ending(9, frozenset()), 0.0)
        outcome = _choose(answering, logits, [draft])
        assert isinstance(outcome, Chosen)
        assert (len(outcome.sampled) == 2) == (outcome.sampled[0].token_id == draft)
        for place, sampled in enumerate(outcome.sampled):
            counts[place, sampled.token_id] += 1
    expected = (logits / 0.9).softmax(dim=-1) * counts.sum(dim=1, keepdim=True)
    assert counts[1].sum() > 1000
    assert (((counts - expected) ** 2 / expected).sum(dim=1) < CHI_SQUARE_LIMIT).all()
