"""One forward pass for the streams that share it: their rows through the trunk, then head and sampler for each.

Between the loop of `generate.py` and the trunk. A pass goes in waves, which overlap (`wave_groups.py`). What goes wrong
for one stream (its grammar, its numbers, an expert that only it needs) is that stream's result and nobody else's. Knows
no queue and no reader.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, zip_longest

import torch
from torch import Tensor

from shoal.client.engine.blame import Witness, witness_of
from shoal.client.engine.logprobs import TokenScore, score_tokens
from shoal.client.engine.ping_pong import PingPong, Stopwatch
from shoal.client.engine.sampler import Sampled
from shoal.client.engine.scheduler import Share
from shoal.client.engine.sequence import Answering, AnySequence, Scoring
from shoal.client.engine.wave_groups import grouped, num_certain, num_rows
from shoal.client.trunk.kv_cache import Rows, commit
from shoal.client.trunk.line import Line
from shoal.client.trunk.model import Timing, Trunk, Wave
from shoal.client.trunk.moe import RoutedExperts
from shoal.client.trunk.wavefront import MayEnter, Turn
from shoal.protocol.errors import InvalidRequest, ShoalError

HEAD_ROWS = 32
"""Rows that go through the head at a time: 16 MB of logits for DeepSeek-V3's vocabulary."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """An answer's next tokens: as many more than one as its drafts were right."""

    sequence: Answering
    sampled: list[Sampled]
    num_drafted: int = 0
    """Drafts that were verified; every one has a row in the cache, right or wrong."""
    error: Exception | None = None
    """What prevents the token after them."""
    is_following: bool = False
    """Whether the first row was a draft too (`pursuit.py`)."""
    num_void: int = 0
    """Rows of passes that followed, thrown away by this one's result."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of a part of a prompt: of all its chunks in the pass."""

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
    shares: Sequence[Share]
    """What was run: all that was asked for, less chunks that were left for the next pass."""
    head_s: float = 0.0
    sampling_s: float = 0.0
    states: Tensor | None = None
    """dtype[T, H] of all rows, `shares` in turn; None: the layers did not come to an end."""
    spoiled: Sequence[AnySequence] = ()
    """Streams whose drafts, and not their own tokens, an error was about: they are as before."""


Landing = Tensor | ShoalError
"""What becomes of a pass that others follow: hidden states dtype[T, H], or the error that it is told in its turn."""


@dataclass(frozen=True, slots=True)
class Flight:
    """One stream's pass that is under way, others behind it."""

    ids: tuple[int, ...]
    """Its tokens: the first is pending, or guessed to be so by then; the others are drafts."""
    start: int
    """The position of the first."""
    rows: Rows
    pass_id: int
    witness: Witness
    task: asyncio.Task[Landing]


class Passes:
    """Runs passes of one trunk, one at a time."""

    def __init__(
        self,
        trunk: Trunk,
        routed_experts: RoutedExperts,
        timing: Timing,
        num_at_once: int = 1,
        decode_groups: int | None = None,
    ) -> None:
        """num_at_once: waves of a pass that overlap; 1: all of its rows are one wave. decode_groups: of them for those
        who decode; None: as many as pay."""
        self._trunk = trunk
        self._ping_pong = PingPong(num_at_once, decode_groups)
        self._num_at_once = num_at_once
        self._routed_experts = routed_experts
        self._timing = timing

    async def run(self, shares: list[Share], pass_id: int, may_go_on: Callable[[], bool] = lambda: True) -> PassDone:
        """Run the shares' tokens. Each sequence has a cache, and stands in one share or in consecutive chunks.

        may_go_on: asked before every chunk but the first; if not, what is left stays pending.

        An error of the routed experts is the outcome of the streams that it is about, and the others stay as they were:
        their tokens are still pending and may be run again.

        Raises:
            What is no error of one stream: a closed worker, say.

        *Cancellation:* as `Trunk.forward_rows`.
        """
        groups = self._grouped(shares)
        is_decoding = all(share.sequence.is_decoding for share in shares)
        watch = Stopwatch(self._timing)
        witnesses = [witness_of(self._routed_experts) for _ in groups]
        try:
            waves = [*map(_wave, groups, witnesses)]
            timing = replace(self._timing, pass_id=pass_id, observe=watch)
            hidden = await self._forward(waves, _after(num_certain(groups), may_go_on), timing)
        except ShoalError as error:
            return _blamed(shares, groups, witnesses, error)
        if is_decoding:
            self._ping_pong.took(watch.pass_time(num_rows(shares), len(groups)))
        ran = [share for group in groups[: len(hidden)] for share in group]
        return await self._finish(ran, hidden[0] if len(hidden) == 1 else torch.cat(hidden))

    def send(
        self, line: Line[Landing], sequence: AnySequence, ids: tuple[int, ...], start: int, pass_id: int
    ) -> Flight:
        """Send tokens of a sequence in at some position, behind those that are under way. It has a cache."""
        if sequence.cache is None:
            raise InvalidRequest("a sequence without a cache can not be run")
        witness = witness_of(self._routed_experts)
        rows = Rows(len(ids), sequence.cache, is_one_by_one=True, at=start)
        wave = Wave(torch.tensor(ids), [rows], witness)
        timing = replace(self._timing, pass_id=pass_id)

        async def run(turn: Turn) -> Landing:
            try:
                return await self._trunk.run_wave(wave, turn, timing)
            except ShoalError as error:
                return error

        return Flight(ids, start, rows, pass_id, witness, line.enter(run))

    async def land(self, flight: Flight, share: Share) -> PassDone:
        """What a pass has brought, once all before it were judged and it follows from them.

        share: its tokens, the first of which is the sequence's pending one by now. Raises and *Cancellation:* as `run`.
        """
        landing = await flight.task
        if isinstance(landing, ShoalError):
            return _blamed([share], [[share]], [flight.witness], landing)
        done = await self._finish([share], landing)
        commit([flight.rows])
        return done

    def _grouped(self, shares: list[Share]) -> list[list[Share]]:
        """Which shares go together, each group a wave."""
        if self._num_at_once == 1:
            return [shares]
        decoding = [share for share in shares if share.sequence.is_decoding]
        has_prompts = len(decoding) < len(shares)  # which need not wait for a group's end
        num_parts = min(self._ping_pong.num_groups(num_rows(decoding)), self._num_at_once - has_prompts)
        return grouped(decoding, shares[len(decoding) :], num_parts)

    async def _forward(self, waves: list[Wave], may_enter: MayEnter[Wave], timing: Timing) -> list[Tensor]:
        """The hidden states of the waves that were run."""
        if len(waves) == 1:
            ids, rows, experts = waves[0].ids, waves[0].rows, waves[0].routed_experts
            return [await self._trunk.forward_rows(ids, rows, experts, timing)]
        return await self._trunk.forward_waves(waves, self._num_at_once, may_enter, timing)

    async def _finish(self, shares: list[Share], hidden: Tensor) -> PassDone:
        """Samples and scores of the streams that are still there."""
        clock, outcomes, head_s = self._timing.clock, list[Outcome](), 0.0
        started = clock()
        present = [head for head in _heads(shares) if head.sequence.cache is not None]
        answering = [(head, head.sequence) for head in present if isinstance(head.sequence, Answering)]
        for some in _batches(answering):
            begun = clock()
            rows = [row for head, _ in some for row in range(head.start, head.stop)]
            logits = await self._trunk.logits(hidden[rows])
            head_s += clock() - begun
            logits_of_each = logits.split_with_sizes([head.stop - head.start for head, _ in some])
            outcomes += await self._trunk.worker.run(_choose_each, some, logits_of_each)
        scored = dict[Scoring, list[TokenScore]]()
        for head in present:
            if isinstance(head.sequence, Scoring):
                scores = await self._scores(head.sequence, hidden[head.start : head.stop], head.targets)
                scored.setdefault(head.sequence, []).extend(scores)
        outcomes += [Scored(scoring, scores) for scoring, scores in scored.items()]
        return PassDone(outcomes, shares, head_s, clock() - started - head_s, hidden)

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
    """Whose likelihood is asked for in each row; for an answer, whose next tokens are to be chosen, its drafts."""


def _after(num_certain: int, may_go_on: Callable[[], bool]) -> MayEnter[Wave]:
    """So many waves enter in any case, the first one unasked."""
    places = count(1)
    return lambda _: next(places) < num_certain or may_go_on()


def _wave(shares: list[Share], witness: Witness) -> Wave:
    ids = torch.tensor([token_id for share in shares for token_id in share.ids])
    rows = [
        Rows(share.num_rows, share.sequence.cache, is_one_by_one=bool(share.drafts))
        for share in shares
        if share.sequence.cache
    ]
    return Wave(ids, rows, witness)


def _heads(shares: list[Share]) -> Iterator[_Head]:
    """Of an answer's last pending token and its drafts, and of every token that is scored."""
    end = 0
    for share in shares:
        start, end = end, end + share.num_rows
        if isinstance(share.sequence, Scoring):
            yield _Head(share.sequence, start, end, share.sequence.targets(share.start, share.count))
        elif share.is_last:
            yield _Head(share.sequence, start + share.count - 1, end, list(share.drafts))


def _batches(answering: "list[tuple[_Head, Answering]]") -> "Iterator[list[tuple[_Head, Answering]]]":
    """Parts of about `HEAD_ROWS` rows; an answer's rows stay together."""
    batch, num_rows = list[tuple[_Head, Answering]](), 0
    for head, sequence in answering:
        if batch and num_rows + head.stop - head.start > HEAD_ROWS:
            yield batch
            batch, num_rows = [], 0
        batch.append((head, sequence))
        num_rows += head.stop - head.start
    if batch:
        yield batch


def _blamed(shares: list[Share], groups: list[list[Share]], witnesses: list[Witness], error: ShoalError) -> PassDone:
    """The error, as the outcome of those whose rows are at fault; of all of its wave where nobody knows.

    Drafts may be wrong, and then their rows are nobody's: a stream does not end by them.
    """
    for group, witness in zip(groups, witnesses, strict=True):
        if witness.has_seen(error):
            return _blamed_in(group, error, witness.rows_at_fault(error))
    return _blamed_in(shares, error, None)


def _blamed_in(shares: list[Share], error: ShoalError, rows_at_fault: Tensor | None) -> PassDone:
    if rows_at_fault is None:
        sequences = dict.fromkeys(share.sequence for share in shares)
        return PassDone([Failed(sequence, error) for sequence in sequences], shares)
    parts = list(zip(shares, rows_at_fault.split_with_sizes([share.num_rows for share in shares]), strict=True))
    failed = [share.sequence for share, part in parts if bool(part[: share.count].any())]
    spoiled = [share.sequence for share, part in parts if bool(part.any()) and share.sequence not in failed]
    return PassDone([Failed(sequence, error) for sequence in failed], shares, spoiled=spoiled)


def _choose_each(answering: "list[tuple[_Head, Answering]]", logits: Sequence[Tensor]) -> list[Outcome]:
    """The next tokens of each stream, or what prevents them. logits: f32[1 + drafts, V] of each."""
    return [_choose(sequence, rows, head.targets) for (head, sequence), rows in zip(answering, logits, strict=True)]


def _choose(sequence: Answering, logits: Tensor, drafts: list[int]) -> Outcome:
    """Choose a token from each row, as decoding would, until one is not what its draft said.

    The token of the first row is the sampler's own choice, whatever was drafted. If that is what the draft said, the
    next row was computed from it, and so on. A draft is thus right with the probability that the sampler gives it, and
    if it is wrong the token comes from the rest of the distribution: speculative sampling (Leviathan et al. 2023, arXiv
    2211.17192 §2.3) with all of a draft's probability on one token. The generator is used as if there were no drafts.
    """
    chosen: list[Sampled] = []
    for row, draft in zip_longest(logits, drafts):
        try:
            chosen.append(sequence.sampler.sample(row))
        except Exception as error:  # a stream's own: it is told, and the others of the pass go on
            return Chosen(sequence, chosen, len(drafts), error) if chosen else Failed(sequence, error)
        if chosen[-1].token_id != draft or draft in sequence.end_ids:
            break
    return Chosen(sequence, chosen, len(drafts))
