"""One forward pass for the streams that share it: their rows through the trunk, then head and sampler for each.

Between the loop of `generate.py` and the trunk. What goes wrong for one stream (its grammar, its numbers, an expert
that only it needs) is that stream's result and nobody else's. Knows no queue and no reader.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shoal.client.blame import Witness
from shoal.client.logprobs import TokenScore, score_tokens
from shoal.client.sampler import Sampled, Sampler
from shoal.client.scheduler import Share
from shoal.client.sequence import Answering, AnySequence, Scoring
from shoal.client.trunk.kv_cache import Rows
from shoal.client.trunk.model import Timing, Trunk
from shoal.client.trunk.moe import RoutedExperts
from shoal.protocol.errors import ShoalError

HEAD_ROWS = 32
"""Rows that go through the head at a time: 16 MB of logits for DeepSeek-V3's vocabulary."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """An answer's next token."""

    sequence: Answering
    sampled: Sampled


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of a part of a prompt."""

    sequence: Scoring
    scores: list[TokenScore]


@dataclass(frozen=True, slots=True)
class Failed:
    """What ends a stream."""

    sequence: AnySequence
    error: Exception


Outcome = Chosen | Scored | Failed
"""What a pass has brought a stream; a stream whose prompt goes on has none."""


@dataclass(frozen=True, slots=True)
class PassDone:
    """What a pass has brought and what it took besides the layers."""

    outcomes: Iterable[Outcome]
    head_s: float = 0.0
    sampling_s: float = 0.0


class Passes:
    """Runs passes of one trunk, one at a time."""

    def __init__(self, trunk: Trunk, routed_experts: RoutedExperts, timing: Timing) -> None:
        self._trunk = trunk
        self._routed_experts = routed_experts
        self._timing = timing

    async def run(self, shares: list[Share], pass_id: int) -> PassDone:
        """Run the shares' tokens. Each sequence stands in one share and has a cache.

        An error of the routed experts is the outcome of the streams that it is about, and the others stay as they were:
        their tokens are still pending and may be run again.

        Raises:
            What is no error of one stream: a closed worker, say.

        *Cancellation:* as `Trunk.forward_rows`.
        """
        ids = torch.tensor([token_id for share in shares for token_id in share.sequence.pending(share.count)])
        rows = [Rows(share.count, share.sequence.cache) for share in shares if share.sequence.cache]
        heads = list(_heads(shares))
        witness, timing = Witness(self._routed_experts), replace(self._timing, pass_id=pass_id)
        try:
            hidden = await self._trunk.forward_rows(ids, rows, witness, timing)
        except ShoalError as error:
            return PassDone(_blamed(shares, error, witness.rows_at_fault(error)))
        return await self._finish(heads, hidden)

    async def _finish(self, heads: "list[_Head]", hidden: Tensor) -> PassDone:
        """Samples and scores of the streams that are still there."""
        clock, outcomes, head_s = self._timing.clock, list[Outcome](), 0.0
        started = clock()
        present = [head for head in heads if head.sequence.cache is not None]
        answering = [(head, head.sequence) for head in present if isinstance(head.sequence, Answering)]
        for start in range(0, len(answering), HEAD_ROWS):
            some = answering[start : start + HEAD_ROWS]
            begun = clock()
            logits = await self._trunk.logits(hidden[[head.start for head, _ in some]])
            head_s += clock() - begun
            samplers = [sequence.sampler for _, sequence in some]
            results = await self._trunk.worker.run(_sample_each, samplers, logits)
            outcomes += [_outcome(sequence, result) for (_, sequence), result in zip(some, results, strict=True)]
        for head in present:
            if isinstance(head.sequence, Scoring):
                scores = await self._scores(head.sequence, hidden[head.start : head.stop], head.targets)
                outcomes.append(Scored(head.sequence, scores))
        return PassDone(outcomes, head_s, clock() - started - head_s)

    async def _scores(self, scoring: Scoring, hidden: Tensor, targets: list[int]) -> list[TokenScore]:
        scores: list[TokenScore] = []
        for start in range(0, len(targets), HEAD_ROWS):
            logits = await self._trunk.logits(hidden[start : start + HEAD_ROWS])
            ids = torch.tensor(targets[start : start + HEAD_ROWS])
            scores += await self._trunk.worker.run(score_tokens, logits, ids, scoring.top_logprobs)
        return scores


@dataclass(frozen=True, slots=True)
class _Head:
    """Rows of a pass that are to go through the head."""

    sequence: AnySequence
    start: int
    stop: int
    targets: list[int]
    """Whose likelihood is asked for in each row; none for an answer, whose next token is to be chosen."""


def _heads(shares: list[Share]) -> Iterator[_Head]:
    """Of an answer's last pending token, and of every token that is scored."""
    end = 0
    for share in shares:
        start, end = end, end + share.count
        if isinstance(share.sequence, Scoring):
            yield _Head(share.sequence, start, end, share.sequence.targets(share.count))
        elif share.is_last:
            yield _Head(share.sequence, end - 1, end, [])


def _blamed(shares: list[Share], error: ShoalError, rows_at_fault: Tensor | None) -> list[Failed]:
    """The error, as the outcome of those whose rows are at fault; of all where nobody knows."""
    if rows_at_fault is None:
        return [Failed(share.sequence, error) for share in shares]
    parts = rows_at_fault.split_with_sizes([share.count for share in shares])
    return [Failed(share.sequence, error) for share, part in zip(shares, parts, strict=True) if bool(part.any())]


def _outcome(sequence: Answering, result: Sampled | Exception) -> Outcome:
    return Chosen(sequence, result) if isinstance(result, Sampled) else Failed(sequence, result)


def _sample_each(samplers: list[Sampler], logits: Tensor) -> list[Sampled | Exception]:
    """The next token of each stream, or what prevents it. logits: f32[N, V]."""
    return [_sample(sampler, row) for sampler, row in zip(samplers, logits, strict=True)]


def _sample(sampler: Sampler, logits: Tensor) -> Sampled | Exception:
    try:
        return sampler.sample(logits)
    except Exception as error:  # a stream's own: it is told, and the others of the pass go on
        return error
