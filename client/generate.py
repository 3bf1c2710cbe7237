"""The visible loop: prefill, then decode, sample, detokenize and stop, token by token.

Where a prompt's journey begins and ends. Knows a trunk and the seam to its routed experts; it cannot tell a swarm
from one process, and knows no peers.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from shoal.client.constraint import TokenConstraint
from shoal.client.logprobs import MAX_TOP_LOGPROBS, TokenScore, TopLogprobs, score_tokens
from shoal.client.sampler import Sampler, Sampling
from shoal.client.stop_strings import StopStrings
from shoal.client.tokenizer import Tokenizer
from shoal.client.trunk.kv_cache import LatentCache
from shoal.client.trunk.model import Trunk
from shoal.client.trunk.moe import RoutedExperts
from shoal.protocol.errors import ContextLengthExceeded, InvalidRequest

PREFILL_CHUNK = 256
"""Prompt tokens per forward pass: half of `limits.MAX_TOKENS_PER_FRAME`, so that a frame stays at 7 MB for DeepSeek-V3
and a decode step of another stream waits for no more than that."""

SCORED_ROWS = 32
"""Rows of a scored prompt that go through the head at a time: 16 MB of logits for DeepSeek-V3's vocabulary."""


class FinishReason(Enum):
    """Why a generation ended (OpenAI's words)."""

    STOP = "stop"
    """An end-of-sequence token or a stop string."""
    LENGTH = "length"
    """`max_tokens`, or the model's context."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. `text` may be empty while bytes or a possible stop string are held back."""

    id: int
    text: str
    index: int
    """0 for the first generated token."""
    logprob: float
    """Natural log of its probability under the model, before penalty, temperature and filters."""
    finish_reason: FinishReason | None = None
    """Set on the last token of a generation, and only there. An end-of-sequence token is one too, without text."""
    top_logprobs: TopLogprobs = ()
    """The likeliest tokens in its place, as many as `Sampling.top_logprobs`; under the model, as `logprob` is."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation; times are of the event loop's clock."""

    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    finish_reason: FinishReason
    ttft_s: float
    """From the call to the first token."""
    tokens_per_s: float
    """Of the tokens after the first; 0 if there is only one."""


class Recorder:
    """Turns a stream of tokens into a `Generation`; its times count from its making. clock: seconds."""

    def __init__(self, num_prompt_tokens: int, clock: Callable[[], float]) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._clock = clock
        self._started = clock()
        self._tokens: list[Token] = []
        self._times: list[float] = []

    def add(self, token: Token) -> None:
        """Take the next token, now."""
        self._tokens.append(token)
        self._times.append(self._clock())

    def generation(self) -> Generation:
        """What was recorded; at least one token."""
        tokens, times = self._tokens, self._times
        return Generation(
            text="".join(token.text for token in tokens),
            token_ids=tuple(token.id for token in tokens),
            num_prompt_tokens=self._num_prompt_tokens,
            finish_reason=tokens[-1].finish_reason or FinishReason.LENGTH,
            ttft_s=times[0] - self._started,
            tokens_per_s=(len(tokens) - 1) / (times[-1] - times[0]) if times[-1] > times[0] else 0.0,
        )


class Engine:
    """One model, ready to generate: trunk, routed experts and, if the model has one, a tokenizer."""

    def __init__(
        self,
        trunk: Trunk,
        routed_experts: RoutedExperts,
        tokenizer: Tokenizer | None = None,
        draw_seed: Callable[[], int] = lambda: secrets.randbits(63),
    ) -> None:
        """draw_seed: the seed of a generation that names none."""
        self.trunk = trunk
        self.routed_experts = routed_experts
        self.tokenizer = tokenizer
        self._draw_seed = draw_seed

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, constraint: TokenConstraint | None = None
    ) -> AsyncGenerator[Token, None]:
        """Generate token by token. constraint: this answer's own; it is used up.

        Raises:
            InvalidRequest: an empty prompt, an id outside the vocabulary, or stop strings without a tokenizer.
            NoTokenAllowed: the constraint has come to a dead end. Whatever it raises.
            ContextLengthExceeded: prompt and `max_tokens` do not fit the model's context. What the experts raise.

        *Cancellation:* closing the generator, or cancelling its task, leaves no task behind; tokens given so far stay.
        """
        max_tokens = self.check(prompt_ids, sampling)
        sampler, answer = self._sampler(prompt_ids, sampling, constraint), Answer(self.tokenizer, sampling.stop)
        cache = self.trunk.new_cache()
        logits = await self._prefill(torch.tensor(prompt_ids), cache)
        for index in range(max_tokens):
            sampled = await self.trunk.worker.run(sampler.sample, logits)
            is_end = sampled.token_id in self._end_ids(sampling)
            is_last = is_end or index + 1 == max_tokens
            piece = "" if is_end else answer.push(sampled.token_id)
            if is_last:
                piece += answer.end()
            reason = FinishReason.STOP if is_end or answer.is_stopped else FinishReason.LENGTH if is_last else None
            yield Token(sampled.token_id, piece, index, sampled.logprob, reason, sampled.top_logprobs)
            if reason is not None:
                return
            logits = await self._decode(sampled.token_id, cache)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """Generate to the end. Raises and cancels as `stream`."""
        recorder = Recorder(len(prompt_ids), asyncio.get_running_loop().time)
        async with aclosing(self.stream(prompt_ids, sampling)) as stream:
            async for token in stream:
                recorder.add(token)
        return recorder.generation()

    async def score(self, prompt_ids: Sequence[int], top_logprobs: int = 0) -> list[TokenScore]:
        """How likely the model finds each token of a prompt, given those before it: one score a token.

        Equal to the log-softmax of transformers' logits within 2e-5 in fp32.

        Raises:
            InvalidRequest: as `stream`, or `top_logprobs` outside 0..20. ContextLengthExceeded: as `stream`. What the
            experts raise.

        *Cancellation:* leaves no task behind.
        """
        if not 0 <= top_logprobs <= MAX_TOP_LOGPROBS:
            raise InvalidRequest(f"top_logprobs is {top_logprobs}, expected 0..{MAX_TOP_LOGPROBS}")
        self._check_ids(prompt_ids)
        if len(prompt_ids) > self.trunk.config.max_position_embeddings:
            raise ContextLengthExceeded(len(prompt_ids), self.trunk.config.max_position_embeddings)
        scores = [TokenScore(prompt_ids[0], None)]
        ids, cache = torch.tensor(prompt_ids), self.trunk.new_cache()
        for start in range(0, len(ids), PREFILL_CHUNK):
            hidden = await self.trunk.forward(ids[start : start + PREFILL_CHUNK], cache, self.routed_experts)
            scores += await self._score_rows(hidden, ids[start + 1 : start + 1 + PREFILL_CHUNK], top_logprobs)
        return scores

    async def _score_rows(self, hidden: Tensor, next_ids: Tensor, count: int) -> list[TokenScore]:
        """hidden: dtype[T, H] · next_ids: i64[T], or one fewer at the prompt's end."""
        scores: list[TokenScore] = []
        for start in range(0, len(next_ids), SCORED_ROWS):
            some_ids = next_ids[start : start + SCORED_ROWS]
            logits = await self.trunk.logits(hidden[start : start + len(some_ids)])
            scores += await self.trunk.worker.run(score_tokens, logits, some_ids, count)
        return scores

    def check(self, prompt_ids: Sequence[int], sampling: Sampling) -> int:
        """Refuse, before anything runs, what `stream` would refuse; return the most tokens it will generate."""
        config = self.trunk.config
        self._check_ids(prompt_ids)
        biased = max((token_id for token_id, _ in sampling.logit_bias), default=0)
        if biased >= config.vocab_size:
            raise InvalidRequest(f"logit_bias names token {biased}; ids must be in 0..{config.vocab_size - 1}")
        if sampling.stop and self.tokenizer is None:
            raise InvalidRequest("stop strings need a tokenizer, and the model has no tokenizer.json")
        num_tokens = len(prompt_ids) + (sampling.max_tokens or 1)
        if num_tokens > config.max_position_embeddings:
            raise ContextLengthExceeded(num_tokens, config.max_position_embeddings)
        return sampling.max_tokens or config.max_position_embeddings - len(prompt_ids)

    def _check_ids(self, prompt_ids: Sequence[int]) -> None:
        vocab_size = self.trunk.config.vocab_size
        if not prompt_ids:
            raise InvalidRequest("the prompt is empty")
        if not 0 <= min(prompt_ids) <= max(prompt_ids) < vocab_size:
            raise InvalidRequest(f"prompt ids must be in 0..{vocab_size - 1}")

    async def _prefill(self, ids: Tensor, cache: LatentCache) -> Tensor:
        """ids: i64[T] -> logits of the last one, f32[V]."""
        for start in range(0, len(ids), PREFILL_CHUNK):
            hidden = await self.trunk.forward(ids[start : start + PREFILL_CHUNK], cache, self.routed_experts)
        return (await self.trunk.logits(hidden[-1:]))[0]

    async def _decode(self, token_id: int, cache: LatentCache) -> Tensor:
        hidden = await self.trunk.forward(torch.tensor([token_id]), cache, self.routed_experts)
        return (await self.trunk.logits(hidden))[0]

    def _sampler(self, prompt_ids: Sequence[int], sampling: Sampling, constraint: TokenConstraint | None) -> Sampler:
        seed = self._draw_seed() if sampling.seed is None else sampling.seed
        return Sampler(sampling, prompt_ids, torch.Generator().manual_seed(seed), constraint)

    def _end_ids(self, sampling: Sampling) -> Sequence[int]:
        if sampling.ignore_eos:
            return ()
        return self.trunk.config.eos_token_ids + (self.tokenizer.end_token_ids if self.tokenizer else ())


class Answer:
    """The text of an answer as it grows: detokenized, and cut at the first stop string."""

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str]) -> None:
        self._detokenizer = tokenizer.detokenizer() if tokenizer else None
        self._stop = StopStrings(stop)
        self.is_stopped = False
        """Whether a stop string has ended the answer."""

    def push(self, token_id: int) -> str:
        """Text that may be shown now. Without a tokenizer there is none."""
        return self._cut(self._detokenizer.push(token_id)) if self._detokenizer else ""

    def end(self) -> str:
        """What was held back, when no more tokens come."""
        rest = self._cut(self._detokenizer.flush()) if self._detokenizer and not self.is_stopped else ""
        return rest if self.is_stopped else rest + self._stop.flush()

    def _cut(self, piece: str) -> str:
        matched = self._stop.push(piece)
        self.is_stopped = self.is_stopped or matched.is_stopped
        return matched.text
