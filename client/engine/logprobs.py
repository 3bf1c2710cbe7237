"""Log-probabilities that the model itself gives: of tokens, and of the likeliest tokens in their place.

Beside the sampler, before penalties, temperature and filters. Knows rows of logits; knows no sampling and no text.
"""

from dataclasses import dataclass

from torch import Tensor

TopLogprobs = tuple[tuple[int, float], ...]
"""(token id, natural log of its probability), likeliest first; among equals the lowest id first."""

MAX_TOP_LOGPROBS = 20
"""Alternatives that a request may ask for at every token (OpenAI's limit)."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token of a prompt and how likely the model found it, given those before it."""

    token_id: int
    logprob: float | None
    """Natural log; None for the first token, which nothing precedes."""
    top_logprobs: TopLogprobs = ()


def top_logprobs(logits: Tensor, log_total: Tensor, count: int) -> TopLogprobs:
    """The `count` likeliest tokens. logits: f32[V] · log_total: f32[], their logsumexp."""
    if count == 0:
        return ()
    least = logits.topk(min(count, len(logits))).values[-1]
    ids = (logits >= least).nonzero()[:, 0]  # ascending; `topk` does not promise which of equals it takes
    values, order = logits[ids].sort(descending=True, stable=True)
    chosen, logprobs = ids[order[:count]], values[:count] - log_total
    return tuple(zip(chosen.tolist(), logprobs.tolist(), strict=True))


def score_tokens(logits: Tensor, ids: Tensor, count: int) -> list[TokenScore]:
    """How likely each token was where it stands. logits: f32[N, V] before each · ids: i64[N] the tokens themselves."""
    log_totals = logits.logsumexp(dim=-1)  # [N]
    logprobs = logits.gather(1, ids[:, None])[:, 0] - log_totals  # [N]
    rows = zip(ids.tolist(), logprobs.tolist(), logits.unbind(), log_totals.unbind(), strict=True)
    return [TokenScore(token_id, logprob, top_logprobs(row, total, count)) for token_id, logprob, row, total in rows]
