"""Drafts from the model's own MTP layer, chained: its state and its guess give its next guess (arXiv 2412.19437 §2.2).

DeepSeek-V3 was trained to look one token further; feeding the layer its own output looks further still, less surely
(the demonstration model: 0.73, 0.49, 0.32, 0.20 of first, second, … drafts right). The layer sees the hidden states of
the tokens that were run. They are kept until drafts are asked for, the last `MAX_TAIL` of them: a stream that does not
speculate pays nothing, and one that begins to pays at most so many rows. Rotary attention knows distances only, so that
a cache may begin anywhere in the text. Where guesses are being verified, the states of their tokens are not there yet:
the chain goes on from the layer's own states, through the given guesses, whoever made them. Knows no sampling and no
acceptance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from shoal.client.speculation.drafter import Drafts, Wish
from shoal.client.trunk.kv_cache import LatentCache, Rows
from shoal.client.trunk.moe import RoutedExperts
from shoal.client.trunk.mtp import Mtp
from shoal.protocol.limits import MAX_TOKENS_PER_FRAME

MAX_TAIL = 256
"""Hidden states that are run for a stream that has gone without drafts: 3.7 MB of DeepSeek-V3 in bf16."""

SLACK = 256
"""How many more may wait: only then are they cut back to `MAX_TAIL`, which copies them."""


@dataclass(slots=True)
class _Tail:
    """What the layer knows of one stream."""

    cache: LatentCache
    start: int = 0
    """The first token whose state waits."""
    waiting: list[Tensor] = field(default_factory=list)
    """States dtype[1.., H] of tokens start, start + 1, …"""
    num_waiting: int = 0
    num_known: int = 0
    """Rows of the cache that came from the trunk's states; those after them from guesses."""
    fed: list[int] = field(default_factory=list)
    """The guesses that were run after what is known."""
    states: list[Tensor] = field(default_factory=list)
    """The layer's states, dtype[H]: after what is known, and after each guess."""

    def append(self, states: Tensor) -> None:
        self.waiting.append(states)
        self.num_waiting += len(states)

    def forget_guesses(self, num_kept: int = 0) -> None:
        """Go back to the first guesses, or to what is known."""
        del self.fed[num_kept:]
        del self.states[num_kept + 1 :]
        self.cache.truncate(self.num_known + num_kept)


@dataclass(frozen=True, slots=True)
class _Job:
    """A stream whose tail is to be run, then guesses that are given, and how many drafts it wants after them."""

    tail: _Tail
    next_ids: list[int]
    guessed: Drafts
    width: int
    drafts: list[int] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return len(self.drafts) == self.width

    @property
    def next_guess(self) -> int | None:
        """What to run next; None: the layer's own guess, which is not known yet."""
        path = (*self.guessed, *self.drafts)
        num_fed = len(self.tail.fed)
        return path[num_fed] if num_fed < len(path) else None


class MtpDrafter:
    """Implements `Drafter`."""

    wants_states = True

    def __init__(self, mtp: Mtp, routed_experts: RoutedExperts) -> None:
        """routed_experts: of the MTP layer."""
        self._mtp = mtp
        self._routed_experts = routed_experts
        self._tails: WeakKeyDictionary[object, _Tail] = WeakKeyDictionary()

    def saw(self, stream: object, start: int, states: Tensor) -> None:
        """See `Drafter`."""
        tail = self._tails.get(stream)
        if tail is None or start != tail.start + tail.num_waiting:
            tail = self._tails[stream] = _Tail(self._mtp.new_cache(), start)
        tail.append(states)
        if tail.num_waiting > MAX_TAIL + SLACK:
            self._tails[stream] = self._cut(tail)

    async def draft(self, wishes: Sequence[Wish]) -> list[Drafts]:
        """See `Drafter`. None for a stream whose newest state is not known."""
        jobs = {place: job for place, wish in enumerate(wishes) if (job := self._job(wish))}
        drafts: list[Drafts] = [()] * len(wishes)
        for places in _groups(jobs):
            await self._chain([jobs[place] for place in places])
            for place in places:
                drafts[place] = tuple(jobs[place].drafts)
        return drafts

    def _job(self, wish: Wish) -> _Job | None:
        tail = self._tails.get(wish.stream)
        if tail is None or tail.start + tail.num_waiting != len(wish.ids) - 1:
            return None
        if tail.num_waiting > MAX_TAIL:
            tail = self._tails[wish.stream] = self._cut(tail)
        return _Job(tail, list(wish.ids[tail.start + 1 :]), wish.guessed, wish.width)

    def _cut(self, tail: _Tail) -> _Tail:
        """One that begins with the newest `MAX_TAIL` states."""
        shorter = _Tail(self._mtp.new_cache(), tail.start + tail.num_waiting - MAX_TAIL)
        shorter.append(torch.cat(tail.waiting)[-MAX_TAIL:].clone())
        return shorter

    async def _chain(self, jobs: list[_Job]) -> None:
        """Run what is known, then the guesses that are given, then each stream's own, as far as its width goes.

        Guesses that were run already, in the same order, are not run again: a stream that is asked for more of the same
        chain goes on where it stopped.
        """
        await self._run_tails([job for job in jobs if job.tail.waiting])
        for job in jobs:
            job.tail.forget_guesses(_num_common(job.tail.fed, job.guessed))
        while jobs := [job for job in jobs if not job.is_done]:
            await self._guess([job for job in jobs if job.next_guess is None])
            await self._feed([job for job in jobs if not job.is_done])

    async def _run_tails(self, jobs: list[_Job]) -> None:
        """The layer over every state that waits."""
        if not jobs:
            return
        for job in jobs:
            job.tail.forget_guesses()
        rows = [Rows(len(job.next_ids), job.tail.cache) for job in jobs]
        states = torch.cat([state for job in jobs for state in job.tail.waiting])
        last = await self._forward(states, [next_id for job in jobs for next_id in job.next_ids], rows)
        for job, state in zip(jobs, last, strict=True):
            tail = job.tail
            tail.start += len(job.next_ids)
            tail.waiting, tail.num_waiting = [], 0
            tail.num_known, tail.states = tail.cache.num_tokens, [state]

    async def _guess(self, jobs: list[_Job]) -> None:
        """The likeliest token by each stream's last state is its next draft."""
        if jobs:
            likeliest = await self._mtp.likeliest(torch.stack([job.tail.states[-1] for job in jobs]))
            for job, draft in zip(jobs, likeliest, strict=True):
                job.drafts.append(draft)

    async def _feed(self, jobs: list[_Job]) -> None:
        """One guess further."""
        fed = [(job.tail, guess) for job in jobs if (guess := job.next_guess) is not None]
        if fed:
            states = torch.stack([tail.states[-1] for tail, _ in fed])
            rows = [Rows(1, tail.cache) for tail, _ in fed]
            last = await self._forward(states, [guess for _, guess in fed], rows)
            for (tail, guess), state in zip(fed, last, strict=True):
                tail.fed.append(guess)
                tail.states.append(state)

    async def _forward(self, states: Tensor, ids: list[int], rows: list[Rows]) -> Tensor:
        """One pass of the layer: the last state of each stream, dtype[N, H]."""
        drafted = await self._mtp.forward_rows(states, torch.tensor(ids), rows, self._routed_experts)
        ends = torch.tensor([some.count for some in rows]).cumsum(0) - 1
        return drafted[ends]


def _num_common(fed: list[int], guessed: Drafts) -> int:
    """How many of the first guesses that were run are those that are given."""
    return next((n for n, (a, b) in enumerate(zip(fed, guessed, strict=False)) if a != b), min(len(fed), len(guessed)))


def _groups(jobs: dict[int, _Job]) -> Iterator[list[int]]:
    """Places of jobs whose tails go through the layer together: as many as a pass has room for."""
    places = iter(jobs)
    while group := list(islice(places, MAX_TOKENS_PER_FRAME // MAX_TAIL)):
        yield group
