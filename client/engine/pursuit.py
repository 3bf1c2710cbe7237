"""One stream's passes of drafts, each under way behind the last: pipelined verification (docs/adr/0035).

While a pass waits for its experts, the next one follows it through the layers. It begins with a guess of the very token
that the pass ahead is to bring, and its rows attend to the rows that the pass ahead writes: it is computed as if every
guess before it were right. Passes are judged in their order, by the sampler's own choice from their own logits. At the
first wrong guess all that follow are cancelled and their rows forgotten; nobody has sampled from them.
Between the loop of `generate.py` and `passes.py`. Knows one stream; knows no queue, no reader and no drafter.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from shoal.client.engine.passes import Chosen, Flight, Landing, PassDone, Passes
from shoal.client.engine.scheduler import Share
from shoal.client.speculation.drafter import Drafts
from shoal.client.speculation.speculator import Run, Seen, Speculator
from shoal.client.trunk.line import Line


@dataclass(frozen=True, slots=True)
class Rules:
    """How far a pursuit may go."""

    depth: int
    """Passes under way at a time, the first one included."""
    may_follow: Callable[[], bool]
    """Whether another pass may enter: nobody else waits for the trunk, and the reader keeps up."""
    has_room: Callable[[int], bool]
    """Whether the stream's cache may hold so many tokens."""
    next_id: Callable[[], int]
    """A pass's number."""
    clock: Callable[[], float]
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Landed:
    """A pass that was judged."""

    done: PassDone
    pass_id: int
    is_following: bool
    num_void: int
    """Rows behind it that are thrown away by what it brought."""
    total_s: float
    """Since the one before it landed, or since drafting began."""
    draft_s: float
    """Of that, making drafts while nothing was under way."""

    @property
    def num_drafted(self) -> int:
        """Guesses that are decided now."""
        return len(self.done.shares[0].drafts) + self.is_following + self.num_void


HandOut = Callable[[Landed], None]


class Pursuit:
    """A pass of one stream and those that follow it, until a guess is wrong or nothing follows any more."""

    def __init__(self, passes: Passes, speculator: Speculator, share: Share, rules: Rules) -> None:
        """share: all of the first pass, drafts among it."""
        self._passes = passes
        self._speculator = speculator
        self._sequence = share.sequence
        self._first = share
        self._num_rows = share.max_drafts + 1
        self._rules = rules
        self._flights: deque[Flight] = deque()
        self._landed = asyncio.Event()
        self._unseen: list[Seen] = []  # shown to the drafter between two of its answers: it may be at work
        self._num_right = 0
        self._is_whole = True
        self._enter_s: list[float] = []
        self._landed_s: list[float] = []  # when each pass was judged, since the first one entered

    async def run(self, hand_out: HandOut, draft_s: float) -> None:
        """Run the first pass and whatever follows. draft_s: seconds that the first one's drafts took.

        Raises:
            What is no error of one stream, and what the drafter raises. An error of the experts is handed out in the
            turn of its pass.

        *Cancellation:* passes that were not handed out are as if they had not been; their exchanges are cancelled.
        """
        began, first = self._rules.clock(), list[PassDone]()
        try:
            async with asyncio.TaskGroup() as group:
                line = Line[Landing](group)
                self._enter(line, tuple(self._first.ids), self._first.start)
                feeding = group.create_task(self._feed(line))
                try:
                    while self._flights:
                        landed = await self._land(began, 0.0 if first else draft_s, bool(first))
                        first = first or [landed.done]
                        hand_out(landed)
                        self._unseen += self._speculator.seen(landed.done)
                        if self._sequence.cache is None or not self._is_whole:
                            break
                finally:
                    feeding.cancel()
                    for flight in self._flights:
                        flight.task.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        self._show()
        self._learn(first[0], draft_s)

    def _enter(self, line: Line[Landing], ids: Drafts, start: int) -> None:
        self._flights.append(self._passes.send(line, self._sequence, ids, start, self._rules.next_id()))

    async def _land(self, began: float, draft_s: float, is_following: bool) -> Landed:
        """Wait for the oldest pass and judge it."""
        flight = self._flights[0]
        share = replace(self._first, start=flight.start, drafts=flight.ids[1:])
        done = await self._passes.land(flight, share)
        self._flights.popleft()
        self._landed.set()
        outcome = next(iter(done.outcomes), None)
        self._is_whole = isinstance(outcome, Chosen) and self._judge(outcome, share)
        num_void = 0 if self._is_whole else sum(len(each.ids) for each in self._flights)
        if isinstance(outcome, Chosen):
            done = replace(done, outcomes=[replace(outcome, is_following=is_following, num_void=num_void)])
        self._landed_s.append(self._rules.clock() - began)
        total_s = draft_s + self._landed_s[-1] - (self._landed_s[-2] if is_following else 0.0)
        return Landed(done, flight.pass_id, is_following, num_void, total_s, draft_s)

    def _judge(self, outcome: Chosen, share: Share) -> bool:
        """Count right drafts; whether all were, and the guess that the pass behind begins with."""
        num_right = len(outcome.sampled) - 1
        is_right = outcome.error is None and num_right == len(share.drafts)
        self._num_right += num_right
        if is_right and self._flights:
            is_right = self._flights[0].ids[0] == outcome.sampled[-1].token_id
            self._num_right += is_right
        return is_right

    async def _feed(self, line: Line[Landing]) -> None:
        """Send passes in behind the last one, as long as somebody has guesses and there is room."""
        while self._rules.may_follow():
            self._landed.clear()
            began = self._rules.clock()
            drafts = await self._drafts() if len(self._flights) < self._rules.depth else ()
            if drafts:
                await line.until_idle()
            if not drafts or line.is_empty:  # too late for the one ahead: it is being judged
                await self._landed.wait()
            elif self._rules.may_follow():
                last = self._flights[-1]
                self._enter(line, drafts, last.start + len(last.ids))
                self._enter_s.append(self._rules.clock() - began)

    async def _drafts(self) -> Drafts:
        """What the next pass is to verify: the token that the last one under way should bring, and what comes then."""
        self._show()
        guessed = tuple(token_id for flight in self._flights for token_id in flight.ids)[1:]
        num_rows = min(self._num_rows, self._sequence.max_drafts - len(guessed))
        if num_rows < 1 or not self._rules.has_room(len(self._sequence.ids) + len(guessed) + num_rows):
            return ()
        return await self._speculator.drafts_after(self._sequence, guessed, num_rows)

    def _show(self) -> None:
        for seen in self._unseen:
            self._speculator.show(seen)
        self._unseen.clear()

    def _learn(self, done: PassDone, draft_s: float) -> None:
        first_s = self._landed_s[0]
        if not self._enter_s:
            self._speculator.took(done.shares, draft_s, first_s)
            self._speculator.judge(done)
            return
        run = Run(self._first.num_rows, self._num_right, self._is_whole, draft_s, first_s, tuple(self._enter_s))
        self._speculator.ran(self._sequence, run)
