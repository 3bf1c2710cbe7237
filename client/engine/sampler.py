"""Logits to token.

Stands between the head and the next embedding. Knows a vector of logits and the tokens so far; knows no text (stop
strings are matched in `stop_strings.py`) and no model. The order of operations: a grammar's mask, OpenAI's bias and
penalties, and then transformers' own order: repetition penalty, temperature, top-k, top-p, min-p.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from shoal.client.engine.constraint import TokenConstraint
from shoal.client.engine.logprobs import MAX_TOP_LOGPROBS, TopLogprobs, top_logprobs
from shoal.protocol.errors import InvalidRequest, NonFinite, NoTokenAllowed

MAX_STOP_STRINGS = 16
"""Stop strings of one request: OpenAI allows 4; each is compared at every character."""

MAX_STOP_CHARS = 256
"""Length of one stop string: that much text may be held back."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 100.0
"""Far beyond use (OpenAI allows 0..2); logits / temperature must neither overflow nor vanish."""

MAX_PENALTY = 2.0
"""Of frequency and presence, both ways (OpenAI's range)."""

MAX_BIAS = 100.0
"""Of a token's logit, both ways (OpenAI's range): as good as forbidding or forcing it."""

MAX_BIASED_TOKENS = 1024
"""Entries of one `logit_bias`: each request's tensor stays small; OpenAI's own clients send a few."""


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
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the likeliest (arXiv 2407.01082); 0: all. In 0..1."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for every time it is in the answer so far; -2..2 (OpenAI)."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that is in the answer so far; -2..2 (OpenAI)."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit, -100..100), each id once (OpenAI)."""
    top_logprobs: int = 0
    """How many of the likeliest tokens to tell beside every token; 0..20."""
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
        self._check_openai()
        _require("seed", self.seed, self.seed is None or 0 <= self.seed < 2**63, "0..2^63-1")
        _require("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, ">= 1")
        _require("stop", self.stop, len(self.stop) <= MAX_STOP_STRINGS, f"at most {MAX_STOP_STRINGS} strings")
        for text in self.stop:
            _require("stop", text, 1 <= len(text) <= MAX_STOP_CHARS, f"strings of 1..{MAX_STOP_CHARS} characters")

    def _check_openai(self) -> None:
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "0..1")
        for name, penalty in (("frequency", self.frequency_penalty), ("presence", self.presence_penalty)):
            _require(f"{name}_penalty", penalty, abs(penalty) <= MAX_PENALTY, f"-{MAX_PENALTY:g}..{MAX_PENALTY:g}")
        is_in_range = 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS
        _require("top_logprobs", self.top_logprobs, is_in_range, f"0..{MAX_TOP_LOGPROBS}")
        ids = [token_id for token_id, _ in self.logit_bias]
        _require("logit_bias", len(ids), len(ids) <= MAX_BIASED_TOKENS, f"at most {MAX_BIASED_TOKENS} tokens")
        _require("logit_bias", ids, len(set(ids)) == len(ids) and min(ids, default=0) >= 0, "distinct token ids >= 0")
        for _, bias in self.logit_bias:
            _require("logit_bias", bias, abs(bias) <= MAX_BIAS, f"-{MAX_BIAS:g}..{MAX_BIAS:g}")


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token and the log-probabilities that the model itself gave it and the likeliest tokens."""

    token_id: int
    logprob: float
    top_logprobs: TopLogprobs = ()


class Sampler:
    """Chooses the tokens of one generation. `generator` is its only source of randomness."""

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Sequence[int],
        generator: torch.Generator,
        constraint: TokenConstraint | None = None,
    ) -> None:
        self.sampling = sampling
        self._generator = generator
        self._constraint = constraint
        self._seen = set(prompt_ids)
        self._counts: dict[int, int] = {}

    def sample(self, logits: Tensor) -> Sampled:
        """Choose the next token. logits: f32[V] of the last position; not changed.

        Raises:
            NonFinite: logits that are no numbers; finite but absurd answers of holders can overflow to that.
            NoTokenAllowed: the constraint has come to a dead end. Whatever the constraint raises.
        """
        log_total = logits.logsumexp(dim=-1)
        if not math.isfinite(log_total.item()):
            raise NonFinite("the model's logits are not finite")
        allowed = self._constraint.allowed() if self._constraint else None
        token_id = self._choose(filtered_logits(logits, self.sampling, self._seen, self._counts, allowed))
        self._remember(token_id)
        likeliest = top_logprobs(logits, log_total, self.sampling.top_logprobs)
        return Sampled(token_id, (logits[token_id] - log_total).item(), likeliest)

    def _choose(self, logits: Tensor) -> int:
        if self.sampling.temperature == 0:
            # argmax may return any of equal maxima; the lowest id is what every replica can agree on
            return int((logits == logits.max()).nonzero()[0])
        return int(torch.multinomial(logits.softmax(dim=-1), 1, generator=self._generator))

    def _remember(self, token_id: int) -> None:
        self._seen.add(token_id)
        self._counts[token_id] = self._counts.get(token_id, 0) + 1
        if self._constraint:
            self._constraint.accept(token_id)


def filtered_logits(
    logits: Tensor,
    sampling: Sampling,
    seen: set[int],
    counts: Mapping[int, int] = MappingProxyType({}),
    allowed: Tensor | None = None,
) -> Tensor:
    """The logits that the next token is drawn from: f32[V] -> f32[V], -inf where a token is excluded.

    seen: tokens of prompt and answer · counts: how often each token is in the answer · allowed: bool[V].

    Raises:
        NoTokenAllowed: every token is excluded. InvalidRequest: a mask of another width.
    """
    logits = _keep_allowed(logits, allowed)
    logits = _add_bias(logits, sampling.logit_bias)
    logits = _penalize_counts(logits, sampling, counts)
    logits = _penalize_repetition(logits, sampling.repetition_penalty, seen)
    if sampling.temperature == 0:
        return logits
    if sampling.temperature != 1:  # the commonest, and a pass over the vocabulary for every stream
        logits = logits / sampling.temperature
    logits = _keep_top_k(logits, sampling.top_k)
    logits = _keep_top_p(logits, sampling.top_p)
    return _keep_min_p(logits, sampling.min_p)


def _keep_allowed(logits: Tensor, allowed: Tensor | None) -> Tensor:
    if allowed is None:
        return logits
    if allowed.shape != logits.shape or allowed.dtype != torch.bool:
        found = f"{allowed.dtype}{list(allowed.shape)}"
        raise InvalidRequest(f"a constraint's mask is {found}, expected torch.bool{list(logits.shape)}")
    kept = logits.masked_fill(~allowed, -math.inf)
    if bool(kept.max() == -math.inf):
        raise NoTokenAllowed("the answer's grammar allows no token here")
    return kept


def _add_bias(logits: Tensor, bias: Sequence[tuple[int, float]]) -> Tensor:
    if not bias:
        return logits
    ids, values = zip(*bias, strict=True)
    return logits.index_add(0, torch.tensor(ids), torch.tensor(values, dtype=logits.dtype))


def _penalize_counts(logits: Tensor, sampling: Sampling, counts: Mapping[int, int]) -> Tensor:
    """OpenAI's formula: logit[j] -= count[j] * frequency_penalty + (count[j] > 0) * presence_penalty."""
    if not counts or sampling.frequency_penalty == sampling.presence_penalty == 0:
        return logits
    values = [-count * sampling.frequency_penalty - sampling.presence_penalty for count in counts.values()]
    return logits.index_add(0, torch.tensor(list(counts)), torch.tensor(values, dtype=logits.dtype))


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


def _keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    if min_p == 0:
        return logits
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < min_p * probabilities.max(), -math.inf)


def _require(name: str, value: object, is_met: bool, expected: str) -> None:
    if not is_met:
        raise InvalidRequest(f"{name} is {value!r}, expected {expected}")
