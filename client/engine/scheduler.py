"""Whose tokens go into the next pass: continuous batching as a pure policy, without clock, tensors or tasks.

Between the streams and the trunk. Every pass takes one token of each stream that decodes, and of prompts no more tokens
than a chunk has, so that no decode step ever waits for more than that. Where nobody decodes it takes several chunks,
which overlap (docs/adr/0028-prefill.md). Prompts take turns, a chunk each; where they are cut does not depend on who
else is there. Places are given first come, first served, as long as the KV
caches fit their budget. A cache that outgrows the budget costs the youngest stream its place: it
goes back to the head of the queue and is run again from its tokens, which loses time and no token.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from shoal.client.engine.engine_settings import CHUNKS_PER_PASS, PREFILL_CHUNK, EngineSettings
from shoal.client.engine.sequence import AnySequence
from shoal.client.trunk.kv_cache import LatentCache
from shoal.protocol.errors import Busy

NewCache = Callable[[int], LatentCache]
"""Makes an empty cache with room for so many tokens at first."""


@dataclass(frozen=True, slots=True)
class Share:
    """A sequence's part of a pass: its next `count` pending tokens, and drafts of what may come after them."""

    sequence: AnySequence
    count: int
    start: int
    """The position of the first of them."""
    max_drafts: int = 0
    """Drafts that there is room for."""
    drafts: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        return self.count + len(self.drafts)

    @property
    def is_last(self) -> bool:
        """Whether nothing is pending after it, so that the next token can be chosen. Until one is."""
        return self.start + self.count == len(self.sequence.ids)

    @property
    def ids(self) -> list[int]:
        """Its tokens, then its drafts."""
        return [*self.sequence.ids[self.start : self.start + self.count], *self.drafts]


def no_drafts(num_streams: int) -> int:
    """The width of passes that bring one token to a stream."""
    return 0


class Scheduler:
    """The running and the waiting sequences of one engine."""

    def __init__(self, settings: EngineSettings, new_cache: NewCache) -> None:
        self._settings = settings
        self._new_cache = new_cache
        self._running: list[AnySequence] = []  # in the order of their admission
        self._waiting: deque[AnySequence] = deque()
        self._turn = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def sequences(self) -> list[AnySequence]:
        """All of them, running ones first."""
        return [*self._running, *self._waiting]

    @property
    def kv_bytes(self) -> int:
        """Memory that the running sequences' caches take."""
        return sum(sequence.cache.size_bytes for sequence in self._running if sequence.cache)

    def is_alone(self, sequence: AnySequence) -> bool:
        """Whether nobody else would have a part in the next pass."""
        others = [known for known in self._running if known is not sequence]
        return sequence.is_read and not self._waiting and not any(other.is_read for other in others)

    def has_room(self, sequence: AnySequence, num_tokens: int) -> bool:
        """Whether a running sequence's cache may grow to so many tokens and nobody has to give way."""
        needed = sum(
            known.cache.size_bytes_at(num_tokens if known is sequence else len(known.ids))
            for known in self._running
            if known.cache
        )
        return needed <= self._settings.kv_cache_bytes

    def submit(self, sequence: AnySequence, retry_after_s: float) -> None:
        """Queue a sequence.

        Raises:
            Busy: as many run and wait as the settings allow. *Limits:* `max_running` + `max_waiting`.
        """
        if len(self._running) + len(self._waiting) >= self._settings.max_running + self._settings.max_waiting:
            raise Busy(f"{len(self._running)} streams run and {len(self._waiting)} wait", retry_after_s)
        self._waiting.append(sequence)

    def remove(self, sequence: AnySequence) -> None:
        """Forget a sequence and free its cache; no harm if it is not known."""
        self._running = [known for known in self._running if known is not sequence]
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        sequence.cache = None

    def next_pass(self, now: float, width: Callable[[int], int] = no_drafts) -> list[Share]:
        """Shares of the next pass, decoding ones first; none if every sequence waits for its reader.

        A prompt may have several, each a chunk, in the order of its tokens.

        width: how many drafts each decoding sequence should have, by how many of them there are.
        """
        self._admit(now)
        ready = [sequence for sequence in self._running if sequence.is_read]
        decoding = [sequence for sequence in ready if sequence.is_decoding]
        num_drafts = width(len(decoding)) if decoding else 0
        shares = [
            Share(sequence, 1, len(sequence.ids) - 1, min(num_drafts, sequence.max_drafts) if num_drafts else 0)
            for sequence in decoding
        ]
        prompts = [sequence for sequence in ready if not sequence.is_decoding]
        is_alone = not decoding and self._settings.prefill_ahead > 1
        shares += self._chunks(prompts, PREFILL_CHUNK * (CHUNKS_PER_PASS if is_alone else 1))
        return self._within_budget(shares)

    def _chunks(self, prompts: list[AnySequence], room: int) -> list[Share]:
        """Chunks of prompts, one of each in turn, of `room` tokens in all.

        The round in which a prompt comes to its end is the last: its first token shall not wait for the others' rest.
        """
        shares: list[Share] = []
        starts = {sequence: len(sequence.ids) - sequence.num_pending for sequence in prompts}
        while True:
            for sequence in sorted(starts, key=lambda sequence: sequence.last_turn):
                share = Share(sequence, min(len(sequence.ids) - starts[sequence], PREFILL_CHUNK), starts[sequence])
                if share.count > room:
                    return shares
                shares.append(share)
                room -= share.count
                starts[sequence] += share.count
                self._turn += 1
                sequence.last_turn = self._turn
            if not shares or any(share.is_last for share in shares):
                return shares

    def _admit(self, now: float) -> None:
        """Give places to those who wait longest, as many as fit."""
        while self._waiting and len(self._running) < self._settings.max_running:
            sequence = self._waiting[0]
            cache = self._new_cache(len(sequence.ids) + 1)
            needed = cache.size_bytes_at(len(sequence.ids)) + sum(_reserved(known) for known in self._running)
            if self._running and needed > self._settings.kv_cache_bytes:
                return
            self._running.append(self._waiting.popleft())
            sequence.cache = cache
            if sequence.admitted_at is None:
                sequence.admitted_at = now

    def _within_budget(self, shares: list[Share]) -> list[Share]:
        """The shares that are left when drafts, then the youngest sequences have given up their place, if need be."""
        if any(share.max_drafts for share in shares) and self._bytes_after(shares) > self._settings.kv_cache_bytes:
            shares = [replace(share, max_drafts=0) for share in shares]
        while len(self._running) > 1 and self._bytes_after(shares) > self._settings.kv_cache_bytes:
            youngest = self._running.pop()
            youngest.cache = None
            self._waiting.appendleft(youngest)
            shares = [share for share in shares if share.sequence is not youngest]
        return shares

    def _bytes_after(self, shares: list[Share]) -> int:
        grown: Counter[int] = Counter()
        for share in shares:
            grown[id(share.sequence)] += share.count + share.max_drafts
        return sum(
            sequence.cache.size_bytes_at(sequence.cache.num_tokens + grown[id(sequence)])
            for sequence in self._running
            if sequence.cache
        )


def _reserved(sequence: AnySequence) -> int:
    """Memory that a running sequence takes when all its tokens have been run."""
    return sequence.cache.size_bytes_at(len(sequence.ids)) if sequence.cache else 0
