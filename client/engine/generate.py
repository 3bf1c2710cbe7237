"""The visible loop: choose whose tokens go into a pass, run it, sample, hand out; all streams share one trunk.

Where a prompt's journey begins and ends. A task runs while there is something to do: whoever submits the first stream
starts it, and with the last one it ends. Knows a trunk and the seam to its routed experts; it cannot tell a swarm from
one process, and knows no peers. Who goes first is `scheduler.py`'s question, a stream's own state `sequence.py`'s.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable
from collections.abc import Sequence as Ids
from contextlib import aclosing
from dataclasses import replace
from functools import partial

import torch

from shoal.client.engine.constraint import TokenConstraint
from shoal.client.engine.engine_load import EngineLoad
from shoal.client.engine.engine_settings import PREFILL_CHUNK, EngineSettings
from shoal.client.engine.generation import FinishReason, Generation, Recorder, Token
from shoal.client.engine.logprobs import MAX_TOP_LOGPROBS, TokenScore
from shoal.client.engine.passes import Chosen, Failed, Outcome, PassDone, Passes, Scored
from shoal.client.engine.pursuit import Landed, Pursuit, Rules
from shoal.client.engine.sampler import Sampler, Sampling
from shoal.client.engine.scheduler import Scheduler, Share, no_drafts
from shoal.client.engine.sequence import Answering, AnySequence, Ending, Result, Scoring, Sequence
from shoal.client.speculation.drafter import Drafter
from shoal.client.speculation.speculator import Speculator
from shoal.client.text.answer_text import AnswerText
from shoal.client.text.tokenizer import Tokenizer
from shoal.client.trunk.model import UNTIMED, Timing, Trunk
from shoal.client.trunk.moe import ExpertsHere, RoutedExperts
from shoal.protocol.errors import ContextLengthExceeded, Draining, InvalidRequest
from shoal.protocol.events import PassTaken, PrefillDone

__all__ = ["PREFILL_CHUNK", "Engine", "EngineLoad", "FinishReason", "Generation", "Recorder", "Token"]

MIN_RETRY_S, MAX_RETRY_S = 0.5, 60.0
"""What a full engine asks for: no less than a polite client would wait anyway, no more than it would believe."""


class Engine:
    """One model, ready to generate: trunk, routed experts and, if the model has one, a tokenizer.

    Streams that are open at the same time share every pass. Each gets the tokens that it would get alone, as far as a
    row of the trunk's linear maps does not depend on how many there are (docs/adr/0010-continuous-batching.md).
    """

    def __init__(
        self,
        trunk: Trunk,
        routed_experts: RoutedExperts,
        tokenizer: Tokenizer | None = None,
        draw_seed: Callable[[], int] = lambda: secrets.randbits(63),
        settings: EngineSettings = EngineSettings(),  # noqa: B008  # frozen
        timing: Timing = UNTIMED,
        drafter: Drafter | None = None,
    ) -> None:
        """draw_seed: the seed of a generation that names none. timing: who is told how long everything took.

        drafter: who guesses tokens for passes to verify; None: every pass brings one token.
        """
        self.trunk = trunk
        self.routed_experts = routed_experts
        self.tokenizer = tokenizer
        self.settings = settings
        self.drafter = drafter
        self.context_length = min(
            trunk.config.max_position_embeddings, settings.kv_cache_bytes // trunk.cache_bytes_per_token
        )
        """Tokens of prompt and answer together: the model's context, or what of it fits the budget for KV caches."""
        self._draw_seed = draw_seed
        self._passes = Passes(trunk, routed_experts, timing, settings.prefill_ahead, settings.decode_groups)
        self._speculator = Speculator(drafter, settings.draft_width, settings.draft_depth) if drafter else None
        self._timing = timing
        self._scheduler = Scheduler(settings, lambda room: trunk.new_cache(room, self.context_length))
        self._current: list[Share] = []
        """What the pass under way is made of."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self._num_passes = 0
        self._mean_stay_s = 0.0
        """How long finished streams stayed, the late ones counting most."""

    async def stream(
        self, prompt_ids: Ids[int], sampling: Sampling, constraint: TokenConstraint | None = None
    ) -> AsyncGenerator[Token, None]:
        """Generate token by token. constraint: this answer's own; it is used up.

        *Limits:* a reader that falls eight tokens behind holds up its own stream only.

        Raises:
            InvalidRequest: an empty prompt, an id outside the vocabulary, or stop strings without a tokenizer.
            ContextLengthExceeded: prompt and `max_tokens` do not fit `context_length`.
            Busy: too many streams run and wait already. Draining: the engine was closed.
            NoTokenAllowed: the constraint has come to a dead end. Whatever it raises. What the experts raise, if it is
            about a token of this stream or may be.

        *Cancellation:* closing the generator, or cancelling its task, frees its place and its memory at once. A pass
        that other streams need goes on; else it is cancelled, at the holders too. Tokens given so far stay.
        """
        answering = self._answering(prompt_ids, sampling, constraint)
        self._submit(answering)
        try:
            while True:
                token = await self._next(answering)
                yield token
                if token.finish_reason is not None:
                    return
        finally:
            await self._leave(answering)

    async def generate(self, prompt_ids: Ids[int], sampling: Sampling) -> Generation:
        """Generate to the end. Raises and cancels as `stream`."""
        recorder = Recorder(len(prompt_ids), asyncio.get_running_loop().time)
        async with aclosing(self.stream(prompt_ids, sampling)) as stream:
            async for token in stream:
                recorder.add(token)
        return recorder.generation()

    async def score(self, prompt_ids: Ids[int], top_logprobs: int = 0) -> list[TokenScore]:
        """How likely the model finds each token of a prompt, given those before it: one score a token.

        Equal to the log-softmax of transformers' logits within 2e-5 in fp32.

        Raises:
            InvalidRequest: as `stream`, or `top_logprobs` outside 0..20. Else as `stream`.

        *Cancellation:* as `stream`.
        """
        if not 0 <= top_logprobs <= MAX_TOP_LOGPROBS:
            raise InvalidRequest(f"top_logprobs is {top_logprobs}, expected 0..{MAX_TOP_LOGPROBS}")
        self._check_ids(prompt_ids, 0)
        scores = [TokenScore(prompt_ids[0], None)]
        if len(prompt_ids) == 1:
            return scores
        scoring = Scoring(prompt_ids, top_logprobs, self._timing.clock())
        self._submit(scoring)
        try:
            while len(scores) < len(prompt_ids):
                more: list[TokenScore] = await self._next(scoring)
                scores += more
        finally:
            await self._leave(scoring)
        return scores

    def check(self, prompt_ids: Ids[int], sampling: Sampling) -> int:
        """Refuse, before anything runs, what `stream` would refuse; return the most tokens it will generate."""
        self._check_ids(prompt_ids, sampling.max_tokens or 1)
        biased = max((token_id for token_id, _ in sampling.logit_bias), default=0)
        if biased >= self.trunk.config.vocab_size:
            raise InvalidRequest(f"logit_bias names token {biased} of a vocabulary of {self.trunk.config.vocab_size}")
        if sampling.stop and self.tokenizer is None:
            raise InvalidRequest("stop strings need a tokenizer, and the model has no tokenizer.json")
        return sampling.max_tokens or self.context_length - len(prompt_ids)

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer: those of the model's config, and the tokenizer's own."""
        return frozenset(self.trunk.config.eos_token_ids + (self.tokenizer.end_token_ids if self.tokenizer else ()))

    @property
    def load(self) -> EngineLoad:
        """What it is busy with now."""
        scheduler = self._scheduler
        return EngineLoad(
            scheduler.num_running, scheduler.num_waiting, scheduler.kv_bytes, self.settings.kv_cache_bytes
        )

    async def aclose(self) -> None:
        """End all streams with Draining and take no more. Idempotent."""
        self._is_closed = True
        self._fail(self._scheduler.sequences, Draining("the engine was closed"))
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    def _check_ids(self, prompt_ids: Ids[int], num_new: int) -> None:
        vocab_size = self.trunk.config.vocab_size
        if not prompt_ids:
            raise InvalidRequest("the prompt is empty")
        if not 0 <= min(prompt_ids) <= max(prompt_ids) < vocab_size:
            raise InvalidRequest(f"prompt ids must be in 0..{vocab_size - 1}")
        if len(prompt_ids) + num_new > self.context_length:
            raise ContextLengthExceeded(len(prompt_ids) + num_new, self.context_length)

    def _answering(self, prompt_ids: Ids[int], sampling: Sampling, constraint: TokenConstraint | None) -> Answering:
        max_tokens = self.check(prompt_ids, sampling)
        seed = self._draw_seed() if sampling.seed is None else sampling.seed
        sampler = Sampler(sampling, prompt_ids, torch.Generator().manual_seed(seed), constraint)
        text = AnswerText(self.tokenizer, sampling.stop)
        return Answering(prompt_ids, sampler, text, Ending(max_tokens, self._end_ids(sampling)), self._timing.clock())

    def _end_ids(self, sampling: Sampling) -> frozenset[int]:
        return frozenset() if sampling.ignore_eos else self.end_token_ids

    # A stream's life: it is submitted, it reads its results, it leaves.

    def _submit(self, sequence: AnySequence) -> None:
        if self._is_closed:
            raise Draining("the engine was closed")
        retry_after_s = self._mean_stay_s / self.settings.max_running
        self._scheduler.submit(sequence, min(max(retry_after_s, MIN_RETRY_S), MAX_RETRY_S))
        if self._task is None or self._task.done():
            self._start()
        self._wake.set()

    def _start(self) -> None:
        self._wake = asyncio.Event()  # of this event loop
        self._task = asyncio.create_task(self._run(), name="engine")

    async def _next(self, sequence: Sequence[Result]) -> Result:
        result = await sequence.next()
        self._wake.set()  # it may have been held up because it was not read
        return result

    async def _leave(self, sequence: AnySequence) -> None:
        """Forget a stream, and end what is under way if nobody is left who needs it."""
        self._scheduler.remove(sequence)
        task = self._task
        if task is None or task.done():
            return
        is_needed = any(share.sequence.cache is not None for share in self._current)
        if self._current and not is_needed:
            self._current = []
            task.cancel()
            if self._scheduler.sequences:
                self._start()
            await asyncio.wait({task})
        elif not self._scheduler.sequences:
            self._wake.set()
            await asyncio.wait({task})

    # The loop.

    async def _run(self) -> None:
        """Run passes until no stream is left. Started anew if it was cancelled for the sake of a pass."""
        while self._scheduler.sequences:
            self._wake.clear()
            width = self._speculator.width if self._speculator else no_drafts
            shares = self._scheduler.next_pass(self._timing.clock(), width)
            if not shares:
                await self._wake.wait()
                continue
            self._current = shares
            try:
                await self._step(shares)
            except Exception as error:  # the task's boundary: whoever had a share is told
                self._fail(dict.fromkeys(share.sequence for share in shares), error)
            finally:
                if self._current is shares:
                    self._current = []

    async def _step(self, shares: list[Share]) -> None:
        """One pass: draft, forward, sample, hand out."""
        started, draft_s = self._timing.clock(), 0.0
        if self._speculator:
            shares, draft_s = await self._drafted(self._speculator, shares)
            if not shares:
                return
            if (depth := self._depth(self._speculator, shares)) > 1:
                await self._pursue(self._speculator, shares[0], depth, draft_s)
                return
        self._num_passes += 1
        num_decoding = sum(share.sequence.is_decoding for share in shares)
        began = asyncio.get_running_loop().time() if self._speculator else 0.0
        done = await self._passes.run(shares, self._num_passes, self._may_go_on(shares))
        num_accepted = sum(map(self._hand_out, done.outcomes))
        if self._speculator:
            self._speculator.took(done.shares, draft_s, asyncio.get_running_loop().time() - began)
            self._speculator.learn_from(done)
        taken = self._taken(done, self._num_passes, num_decoding)
        num_drafted, total_s = sum(len(share.drafts) for share in shares), self._timing.clock() - started
        self._timing.observe(
            replace(taken, total_s=total_s, num_drafted=num_drafted, num_accepted=num_accepted, draft_s=draft_s)
        )

    def _taken(self, done: PassDone, pass_id: int, num_decoding: int) -> PassTaken:
        return PassTaken(
            pass_id=pass_id,
            num_decoding=num_decoding,
            num_prefilled=sum(share.count for share in done.shares) - num_decoding,
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            head_s=done.head_s,
            sampling_s=done.sampling_s,
            total_s=0.0,
        )

    def _depth(self, speculator: Speculator, shares: list[Share]) -> int:
        """Passes of one stream that should be under way at a time: more than one only where nobody else waits for the
        trunk, and where the trunk waits for somebody."""
        sequence = shares[0].sequence
        is_alone = len(shares) == 1 and sequence.is_decoding and self._scheduler.is_alone(sequence)
        has_waits = not isinstance(self.routed_experts, ExpertsHere)
        return speculator.depth(shares[0]) if is_alone and has_waits else 1

    async def _pursue(self, speculator: Speculator, share: Share, depth: int, draft_s: float) -> None:
        """Passes of one stream, each under way behind the last."""
        sequence = share.sequence
        rules = Rules(
            depth,
            may_follow=lambda: sequence.cache is not None and self._scheduler.is_alone(sequence),
            has_room=partial(self._scheduler.has_room, sequence),
            next_id=self._next_pass_id,
            clock=asyncio.get_running_loop().time,
        )
        await Pursuit(self._passes, speculator, share, rules).run(self._hand_out_landed, draft_s)

    def _hand_out_landed(self, landed: Landed) -> None:
        done = landed.done
        num_accepted = sum(map(self._hand_out, done.outcomes))
        self._timing.observe(
            replace(
                self._taken(done, landed.pass_id, num_decoding=1),
                total_s=landed.total_s,
                num_drafted=landed.num_drafted,
                num_void=landed.num_void,
                num_accepted=num_accepted,
                draft_s=landed.draft_s,
            )
        )

    def _next_pass_id(self) -> int:
        self._num_passes += 1
        return self._num_passes

    def _may_go_on(self, shares: list[Share]) -> Callable[[], bool]:
        """Whether a pass should take up its next chunk: not when somebody has come who waits for the next pass, and
        not when somebody has left, for it may be theirs."""
        before = self._scheduler.sequences
        return lambda: self._scheduler.sequences == before

    async def _drafted(self, speculator: Speculator, shares: list[Share]) -> tuple[list[Share], float]:
        """The shares, with drafts, of streams that are still there when those are made; and the seconds that took."""
        clock = asyncio.get_running_loop().time
        began = clock()
        drafted = await speculator.drafted(shares)
        return [share for share in drafted if share.sequence.cache is not None], clock() - began

    def _hand_out(self, outcome: Outcome) -> int:
        """Give a stream that is still there what the pass has brought it; count the drafts that were right."""
        if outcome.sequence.cache is None:
            return 0
        match outcome:
            case Failed(sequence, error):
                self._fail([sequence], error)
            case Scored(scoring, scores):
                scoring.put(scores)
                if not scoring.num_pending:
                    self._finish(scoring)
            case Chosen():
                return self._continue(outcome.sequence, outcome)
        return 0

    def _continue(self, answering: Answering, chosen: Chosen) -> int:
        """Hand out the tokens of one pass up to the answer's end, and forget the rows of drafts that were wrong."""
        for place, sampled in enumerate(chosen.sampled):
            num_drafted = chosen.num_drafted + chosen.is_following + chosen.num_void
            token = answering.take(sampled, 0 if place else num_drafted, place > 0 or chosen.is_following)
            answering.put(token)
            if token.index == 0:
                self._tell_prefill(answering)
            if token.finish_reason is not None:
                self._finish(answering)
                return place + chosen.is_following
        if chosen.num_drafted and answering.cache is not None:
            answering.cache.truncate(len(answering.ids) - 1)
        if chosen.error is not None:
            self._fail([answering], chosen.error)
        return len(chosen.sampled) - 1 + chosen.is_following

    def _tell_prefill(self, answering: Answering) -> None:
        admitted_at = answering.admitted_at or answering.submitted_at
        queue_s, prefill_s = admitted_at - answering.submitted_at, self._timing.clock() - admitted_at
        self._timing.observe(PrefillDone(answering.num_prompt_tokens, queue_s, prefill_s))

    def _finish(self, sequence: AnySequence) -> None:
        """A stream has all its results: its place is free."""
        stay_s = self._timing.clock() - sequence.submitted_at
        self._mean_stay_s += (stay_s - self._mean_stay_s) / 8 if self._mean_stay_s else stay_s
        self._scheduler.remove(sequence)

    def _fail(self, sequences: Iterable[AnySequence], error: Exception) -> None:
        for sequence in sequences:
            sequence.put(error)
            self._scheduler.remove(sequence)
