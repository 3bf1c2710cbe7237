"""Speculation for one engine: asks for drafts before a pass, learns from it afterwards, chooses width and depth.

Between the loop of `generate.py` and a drafter. Knows shares of passes; knows no trunk, no sampler and no swarm.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from weakref import WeakKeyDictionary

from torch import Tensor

from shoal.client.engine.engine_settings import PREFILL_CHUNK
from shoal.client.engine.passes import PassDone
from shoal.client.engine.scheduler import Share
from shoal.client.engine.sequence import Answering, AnySequence
from shoal.client.speculation.acceptance import Acceptance, RunChance
from shoal.client.speculation.depth import Pursued, best_depth
from shoal.client.speculation.drafter import Drafter, Drafts, Wish
from shoal.client.speculation.pass_times import PassTimes
from shoal.client.speculation.trials import TRIAL_WIDTH, Trials
from shoal.client.speculation.width import Measured, best_width, gain
from shoal.protocol.limits import MAX_TOKENS_PER_FRAME

MAX_VERIFIED_ROWS = MAX_TOKENS_PER_FRAME - PREFILL_CHUNK
"""Rows of decoding streams and their drafts in one pass: a chunk of a prompt must have room beside them."""

PAUSE_PASSES = 32
"""How long a stream goes without drafts after one of them, and not its own token, needed an expert nobody holds."""

MEMORY = 32
"""Draft times that are remembered."""

CLEAR_GAIN = 1.5
"""Drafts that promise so much need no proof. Where they promise less, passes without are measured in between:"""

COMPARES_EVERY = 4
"""The first passes of an answer find everything cold; without this drafts were compared with those for ever (40 passes
of 12.6 ms that brought 1.3 tokens, where one of 11 ms brought 1)."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Tokens of a stream that have been run and are there to stay."""

    sequence: AnySequence
    start: int
    states: Tensor
    """dtype[1.., H]"""


@dataclass(frozen=True, slots=True)
class Run:
    """Passes that followed one another are over: all guesses were right, or the first wrong one was found."""

    num_rows: int
    """Of every pass but perhaps the last."""
    num_right: int
    """Drafts that were right before the first wrong one."""
    is_whole: bool
    """Whether no wrong one was found."""
    draft_s: float
    """Making the first pass's drafts."""
    first_s: float
    """From the first pass's entry until its tokens were handed out."""
    enter_s: Sequence[float]
    """For each pass that followed, from when there was room until it entered."""


class Speculator:
    """Makes passes wider where that pays, and lets more of them follow where that does."""

    def __init__(self, drafter: Drafter, width: int | None = None, depth: int | None = None) -> None:
        """width: drafts per stream and pass · depth: passes of a stream under way at a time; None: as many as pay, by
        measurement."""
        self._drafter = drafter
        self._fixed_width = width
        self._fixed_depth = depth
        self._times = PassTimes()
        self._acceptance = Acceptance()
        self._trials = Trials()
        self._num_drafted = 0  # passes on end that had drafts
        self._draft_s: deque[float] = deque(maxlen=MEMORY)  # per draft of each stream
        self._paused: WeakKeyDictionary[AnySequence, int] = WeakKeyDictionary()
        self._on_a_roll: WeakKeyDictionary[AnySequence, bool] = WeakKeyDictionary()
        self._run_chance = RunChance()  # of streams on a roll
        self._followed = PassTimes()
        self._enter_s: deque[float] = deque(maxlen=MEMORY)

    def width(self, num_streams: int) -> int:
        """Drafts that each of so many decoding streams should ask for in the next pass."""
        most = max(0, MAX_VERIFIED_ROWS // max(1, num_streams) - 1)
        if self._fixed_width is not None:
            return min(self._fixed_width, most)
        if self._trials.is_resting or not self._times.has_baseline(num_streams):
            return 0
        if self._trials.is_trying:
            return min(TRIAL_WIDTH, most)
        measured = self._measured(num_streams)
        width = best_width(measured, MAX_VERIFIED_ROWS)
        if width == 0:
            self._trials.in_vain()
        elif self._num_drafted >= COMPARES_EVERY and gain(measured, width) < CLEAR_GAIN:
            return 0
        return width

    def depth(self, share: Share) -> int:
        """Passes of a stream that decodes alone that should be under way at a time: this one, and those that follow.

        More than one where the stream's last drafts were all right and that is expected to go on for long enough.
        """
        if not share.drafts:
            return 1
        if self._fixed_depth is not None:
            return self._fixed_depth
        if not self._on_a_roll.get(share.sequence, False):
            return 1
        rows = share.num_rows
        pass_s, draft_s = self._times.estimate(rows), self._median_draft_s()
        more_s = self._times.estimate(2 * rows) - pass_s  # what another pass takes of the trunk, before that is known
        is_known = self._followed.has_baseline(rows)
        pursued = Pursued(
            num_rows=rows,
            pass_s=pass_s + (rows - 1) * draft_s,
            followed_s=(self._followed.estimate(rows) if is_known else pass_s + more_s) + (rows - 1) * draft_s,
            enter_s=median(self._enter_s) if self._enter_s else more_s + rows * draft_s,
            chance=self._run_chance.value,
        )
        return best_depth(pursued)

    async def drafted(self, shares: Sequence[Share]) -> list[Share]:
        """The shares, with drafts where there is room for some and the drafter has some.

        Raises and *Cancellation:* as `Drafter.draft`.
        """
        wishes = {
            place: Wish(share.sequence, share.sequence.ids, share.max_drafts)
            for place, share in enumerate(shares)
            if share.max_drafts and not self._is_paused(share.sequence)
        }
        result = [share if place in wishes else replace(share, max_drafts=0) for place, share in enumerate(shares)]
        if wishes:
            found = await self._drafter.draft(list(wishes.values()))
            for place, drafts in zip(wishes, found, strict=True):
                result[place] = replace(shares[place], drafts=drafts)
        return result

    async def drafts_after(self, sequence: AnySequence, guessed: Drafts, width: int) -> Drafts:
        """What may come after guesses that are being verified. Raises and *Cancellation:* as `Drafter.draft`."""
        return (await self._drafter.draft([Wish(sequence, sequence.ids, width, guessed)]))[0]

    def took(self, shares: Sequence[Share], draft_s: float, pass_s: float) -> None:
        """What drafting and the pass after it took, in seconds. Passes that carry a chunk of a prompt say nothing."""
        width = max((share.max_drafts for share in shares), default=0)
        if all(share.sequence.num_prompt_tokens <= share.start for share in shares):
            self._times.add(sum(share.num_rows for share in shares), pass_s)
            self._trials.passed(has_drafted=width > 0)
            self._num_drafted = self._num_drafted + 1 if width else 0
        if width and draft_s > 0:
            self._draft_s.append(draft_s / width)

    def learn_from(self, done: PassDone) -> None:
        """A pass is over and its tokens are handed out: how far drafts were right, and what the drafter may look at."""
        for seen in self.seen(done):
            self.show(seen)
        self.judge(done)

    def judge(self, done: PassDone) -> None:
        """How far drafts were right."""
        for share in done.shares if done.states is not None else ():
            cache = share.sequence.cache
            if cache is not None and share.start >= share.sequence.num_prompt_tokens:
                num_right = cache.num_tokens - share.start - 1
                self._acceptance.add(share.max_drafts, num_right)
                if share.drafts:
                    self._rolls(share.sequence, num_right, len(share.drafts))

    def seen(self, done: PassDone) -> list[Seen]:
        """What a pass has left that the drafter may look at, for the streams that are still there."""
        for sequence in done.spoiled:
            self._paused[sequence] = PAUSE_PASSES
        if done.states is None or not self._drafter.wants_states:
            return []
        parts = done.states.split_with_sizes([share.num_rows for share in done.shares])
        return [
            Seen(share.sequence, share.start, states[: cache.num_tokens - share.start].clone())
            for share, states in zip(done.shares, parts, strict=True)
            if (cache := share.sequence.cache) is not None and isinstance(share.sequence, Answering)
        ]

    def show(self, seen: Seen) -> None:
        """Let the drafter look."""
        self._drafter.saw(seen.sequence, seen.start, seen.states)

    def ran(self, sequence: AnySequence, run: Run) -> None:
        """Passes that followed one another, at least two of them, are over."""
        self._on_a_roll[sequence] = run.is_whole or run.num_right >= run.num_rows
        self._acceptance.add(run.num_rows - 1, run.num_right)
        self._run_chance.add(run.num_right, run.is_whole)
        self._followed.add(run.num_rows, run.first_s)
        self._enter_s.extend(run.enter_s)
        self._trials.passed(has_drafted=True)
        if run.draft_s > 0 and run.num_rows > 1:
            self._draft_s.append(run.draft_s / (run.num_rows - 1))

    def _rolls(self, sequence: AnySequence, num_right: int, num_drafts: int) -> None:
        """How far a stream's last drafts were right."""
        if self._on_a_roll.get(sequence, False):
            self._run_chance.add(num_right, num_right == num_drafts)
        self._on_a_roll[sequence] = num_right == num_drafts

    def _measured(self, num_streams: int) -> Measured:
        draft_s = self._median_draft_s()
        return Measured(num_streams, self._times.estimate, lambda k: k * draft_s, self._acceptance.chances)

    def _median_draft_s(self) -> float:
        return median(self._draft_s) if self._draft_s else 0.0

    def _is_paused(self, sequence: AnySequence) -> bool:
        left = self._paused.get(sequence, 0)
        if left:
            self._paused[sequence] = left - 1
        return left > 0
