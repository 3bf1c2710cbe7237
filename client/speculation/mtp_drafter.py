"""Drafts from the model's own MTP layer, chained: its state and its guess give its next guess (arXiv 2412.19437 §2.2).

DeepSeek-V3 was trained to look one token further; feeding the layer its own output looks further still, less surely
(the demonstration model: 0.73, 0.49, 0.32, 0.20 of first, second, … drafts right). The layer sees the hidden states of
the tokens that were run. They are kept until drafts are asked for, the last `MAX_TAIL` of them: a stream that does not
speculate pays nothing, and one that begins to pays at most so many rows. Rotary attention knows distances only, so that
a cache may begin anywhere in the text. Knows no sampling and no acceptance.
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
"""Hidden states that wait to be run, per stream: 3.7 MB of DeepSeek-V3 in bf16."""


@dataclass(slots=True)
class _Tail:
    """What the layer knows of one stream."""

    cache: LatentCache
    start: int = 0
    """The first token whose state waits."""
    waiting: list[Tensor] = field(default_factory=list)
    """States dtype[1.., H] of tokens start, start + 1, …"""

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self.waiting))


@dataclass(frozen=True, slots=True)
class _Job:
    """A stream whose tail is to be run, and how many drafts it wants."""

    tail: _Tail
    next_ids: list[int]
    width: int


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
        tail.waiting.append(states)
        if tail.num_waiting > MAX_TAIL:
            kept = torch.cat(tail.waiting)[-MAX_TAIL:].clone()
            end = tail.start + tail.num_waiting
            self._tails[stream] = _Tail(self._mtp.new_cache(), end - MAX_TAIL, [kept])

    async def draft(self, wishes: Sequence[Wish]) -> list[Drafts]:
        """See `Drafter`. None for a stream whose newest state is not known."""
        jobs = {place: job for place, wish in enumerate(wishes) if (job := self._job(wish))}
        drafts: list[Drafts] = [()] * len(wishes)
        for places in _groups(jobs):
            found = await self._chain([jobs[place] for place in places])
            for place, guesses in zip(places, found, strict=True):
                drafts[place] = guesses
        return drafts

    def _job(self, wish: Wish) -> _Job | None:
        tail = self._tails.get(wish.stream)
        if tail is None or not tail.waiting or tail.start + tail.num_waiting != len(wish.ids) - 1:
            return None
        return _Job(tail, list(wish.ids[tail.start + 1 :]), wish.width)

    async def _chain(self, jobs: list[_Job]) -> list[Drafts]:
        """Run the tails, then each stream's own guesses, as far as its width goes; the caches forget the guesses."""
        drafts: list[list[int]] = [[] for _ in jobs]
        states, guesses = await self._run_tails(jobs)
        known = [job.tail.cache.num_tokens for job in jobs]
        try:
            places = list(range(len(jobs)))
            while True:
                for place, guess in zip(places, guesses, strict=True):
                    drafts[place].append(guess)
                going_on = [i for i, place in enumerate(places) if len(drafts[place]) < jobs[place].width]
                if not going_on:
                    return [tuple(each) for each in drafts]
                places, states = [places[i] for i in going_on], states[going_on]
                rows = [Rows(1, jobs[place].tail.cache) for place in places]
                states, guesses = await self._step(states, [guesses[i] for i in going_on], rows)
        finally:
            for job, num_tokens in zip(jobs, known, strict=True):
                job.tail.cache.truncate(num_tokens)

    async def _run_tails(self, jobs: list[_Job]) -> tuple[Tensor, list[int]]:
        """The layer over every state that waits: its last state and guess for each stream."""
        rows = [Rows(len(job.next_ids), job.tail.cache) for job in jobs]
        states = torch.cat([state for job in jobs for state in job.tail.waiting])
        ids = [next_id for job in jobs for next_id in job.next_ids]
        last = await self._forward(states, ids, rows)
        for job in jobs:
            job.tail.start += len(job.next_ids)
            job.tail.waiting.clear()
        return last, await self._mtp.likeliest(last)

    async def _step(self, states: Tensor, ids: list[int], rows: list[Rows]) -> tuple[Tensor, list[int]]:
        """One guess further: the streams' states, dtype[N, H], and the likeliest tokens by them."""
        last = await self._forward(states, ids, rows)
        return last, await self._mtp.likeliest(last)

    async def _forward(self, states: Tensor, ids: list[int], rows: list[Rows]) -> Tensor:
        """One pass of the layer: the last state of each stream, dtype[N, H]."""
        drafted = await self._mtp.forward_rows(states, torch.tensor(ids), rows, self._routed_experts)
        ends = torch.tensor([some.count for some in rows]).cumsum(0) - 1
        return drafted[ends]


def _groups(jobs: dict[int, _Job]) -> Iterator[list[int]]:
    """Places of jobs whose tails go through the layer together: as many as a pass has room for."""
    places = iter(jobs)
    while group := list(islice(places, MAX_TOKENS_PER_FRAME // MAX_TAIL)):
        yield group
