"""Speculation for one engine: asks for drafts before a pass, learns from it afterwards, chooses the next width.

Between the loop of `generate.py` and a drafter. Knows shares of passes; knows no trunk, no sampler and no swarm.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from weakref import WeakKeyDictionary

from torch import Tensor

from shoal.client.engine.engine_settings import PREFILL_CHUNK
from shoal.client.engine.passes import PassDone
from shoal.client.engine.scheduler import Share
from shoal.client.engine.sequence import Answering, AnySequence
from shoal.client.speculation.acceptance import Acceptance
from shoal.client.speculation.drafter import Drafter, Wish
from shoal.client.speculation.pass_times import PassTimes
from shoal.client.speculation.width import Measured, best_width
from shoal.protocol.limits import MAX_TOKENS_PER_FRAME

MAX_VERIFIED_ROWS = MAX_TOKENS_PER_FRAME - PREFILL_CHUNK
"""Rows of decoding streams and their drafts in one pass: a chunk of a prompt must have room beside them."""

PAUSE_PASSES = 32
"""How long a stream goes without drafts after one of them, and not its own token, needed an expert nobody holds."""

MEMORY = 32
"""Draft times that are remembered."""


class Speculator:
    """Makes passes wider where that pays."""

    def __init__(self, drafter: Drafter, width: int | None = None) -> None:
        """width: drafts per stream and pass; None: as many as pay, by measurement."""
        self._drafter = drafter
        self._fixed_width = width
        self._times = PassTimes()
        self._acceptance = Acceptance()
        self._draft_s: deque[float] = deque(maxlen=MEMORY)  # per draft of each stream
        self._paused: WeakKeyDictionary[AnySequence, int] = WeakKeyDictionary()

    def width(self, num_streams: int) -> int:
        """Drafts that each of so many decoding streams should ask for in the next pass."""
        most = MAX_VERIFIED_ROWS // max(1, num_streams) - 1
        if self._fixed_width is not None:
            return max(0, min(self._fixed_width, most))
        if not self._times.has_baseline(num_streams):
            return 0
        draft_s = median(self._draft_s) if self._draft_s else 0.0
        measured = Measured(num_streams, self._times.estimate, lambda k: k * draft_s, self._acceptance.chances)
        return best_width(measured, MAX_VERIFIED_ROWS)

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

    def took(self, shares: Sequence[Share], draft_s: float, pass_s: float) -> None:
        """What drafting and the pass after it took, in seconds. Passes that carry a chunk of a prompt say nothing."""
        if all(share.sequence.num_prompt_tokens <= share.start for share in shares):
            self._times.add(sum(share.num_rows for share in shares), pass_s)
        width = max((share.max_drafts for share in shares), default=0)
        if width and draft_s > 0:
            self._draft_s.append(draft_s / width)

    def learn_from(self, done: PassDone) -> None:
        """A pass is over and its tokens are handed out: how far drafts were right, and what the drafter may look at."""
        for sequence in done.spoiled:
            self._paused[sequence] = PAUSE_PASSES
        if done.states is None:
            return
        parts = done.states.split_with_sizes([share.num_rows for share in done.shares])
        for share, states in zip(done.shares, parts, strict=True):
            cache = share.sequence.cache
            if cache is not None and isinstance(share.sequence, Answering):
                self._saw(share, states[: cache.num_tokens - share.start])

    def _saw(self, share: Share, kept: Tensor) -> None:
        """kept: dtype[1.., H] of the tokens that are there to stay."""
        if self._drafter.wants_states:
            self._drafter.saw(share.sequence, share.start, kept.clone())
        if share.start >= share.sequence.num_prompt_tokens:
            self._acceptance.add(share.max_drafts, len(kept) - 1)

    def _is_paused(self, sequence: AnySequence) -> bool:
        left = self._paused.get(sequence, 0)
        if left:
            self._paused[sequence] = left - 1
        return left > 0
