"""Logits to token.

Stands between the head and the next embedding. Knows a vector of logits and the tokens so far; knows no text (stop
strings are matched in `stop_strings.py`) and no model. The order of operations is transformers': repetition penalty,
temperature, top-k, top-p.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.protocol.errors import InvalidRequest, NonFinite

MAX_STOP_STRINGS = 16
"""Stop strings of one request: OpenAI allows 4; each is compared at every character."""

MAX_STOP_CHARS = 256
"""Length of one stop string: that much text may be held back."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 100.0
"""Far beyond use (OpenAI allows 0..2); logits / temperature must neither overflow nor vanish."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen and when to stop; the defaults are greedy up to the model's context.

    Raises:
        InvalidRequest: a value out of its range.
    """

    temperature: float = 0.0
    """0: always the likeliest token; else 0.001..100."""
    top_p: float = 1.0
    """Keep the likeliest tokens whose probabilities add up to this; 1: all. In (0, 1]."""
    top_k: int = 0
    """Keep this many of the likeliest tokens; 0: all."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen before (arXiv 1909.05858); 1: none."""
    seed: int | None = None
    """The same seed gives the same tokens; None: drawn anew for every generation."""
    max_tokens: int | None = None
    """None: up to the model's context."""
    stop: tuple[str, ...] = ()
    """Text that ends the generation; it is not part of the answer."""
    ignore_eos: bool = False
    """Go on after an end-of-sequence token (benchmarks)."""

    def __post_init__(self) -> None:
        is_warm = MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE
        _require("temperature", self.temperature, self.temperature == 0 or is_warm, "0, or 0.001..100")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "in (0, 1]")
        _require("top_k", self.top_k, self.top_k >= 0, ">= 0")
        _require("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < math.inf, "> 0")
        _require("seed", self.seed, self.seed is None or 0 <= self.seed < 2**63, "0..2^63-1")
        _require("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, ">= 1")
        _require("stop", self.stop, len(self.stop) <= MAX_STOP_STRINGS, f"at most {MAX_STOP_STRINGS} strings")
        for text in self.stop:
            _require("stop", text, 1 <= len(text) <= MAX_STOP_CHARS, f"strings of 1..{MAX_STOP_CHARS} characters")


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token and the log-probability that the model itself gave it."""

    token_id: int
    logprob: float


class Sampler:
    """Chooses the tokens of one generation. `generator` is its only source of randomness."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], generator: torch.Generator) -> None:
        self.sampling = sampling
        self._generator = generator
        self._seen = set(prompt_ids)

    def sample(self, logits: Tensor) -> Sampled:
        """Choose the next token. logits: f32[V] of the last position; not changed.

        Raises:
            NonFinite: logits that are no numbers; finite but absurd answers of holders can overflow to that.
        """
        log_total = logits.logsumexp(dim=-1)
        if not bool(log_total.isfinite()):
            raise NonFinite("the model's logits are not finite")
        token_id = self._choose(filtered_logits(logits, self.sampling, self._seen))
        self._seen.add(token_id)
        return Sampled(token_id, float(logits[token_id] - log_total))

    def _choose(self, logits: Tensor) -> int:
        if self.sampling.temperature == 0:
            # argmax may return any of equal maxima; the lowest id is what every replica can agree on
            return int((logits == logits.max()).nonzero()[0])
        return int(torch.multinomial(logits.softmax(dim=-1), 1, generator=self._generator))


def filtered_logits(logits: Tensor, sampling: Sampling, seen: set[int]) -> Tensor:
    """The logits that the next token is drawn from: f32[V] -> f32[V], -inf where a token is excluded."""
    logits = _penalize_repetition(logits, sampling.repetition_penalty, seen)
    if sampling.temperature == 0:
        return logits
    logits = logits / sampling.temperature
    logits = _keep_top_k(logits, sampling.top_k)
    return _keep_top_p(logits, sampling.top_p)


def _penalize_repetition(logits: Tensor, penalty: float, seen: set[int]) -> Tensor:
    if penalty == 1 or not seen:
        return logits
    ids = torch.tensor(sorted(seen))
    values = logits[ids]
    return logits.index_copy(0, ids, torch.where(values < 0, values * penalty, values / penalty))


def _keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    if top_k == 0 or top_k >= len(logits):
        return logits
    smallest_kept = logits.topk(top_k).values[-1]
    return logits.masked_fill(logits < smallest_kept, -math.inf)


def _keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    if top_p == 1:
        return logits
    ascending, order = logits.sort()
    is_removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p  # the tail; the likeliest token always stays
    is_removed[-1] = False
    return logits.masked_fill(torch.empty_like(is_removed).index_copy(0, order, is_removed), -math.inf)


def _require(name: str, value: object, is_met: bool, expected: str) -> None:
    if not is_met:
        raise InvalidRequest(f"{name} is {value!r}, expected {expected}")
