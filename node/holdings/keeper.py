"""What a node holds while that changes: loads what it takes over, lets go of what it gives up, and says so in time.

Between the healer, which decides, and server and announcer, which go on meanwhile. New experts are announced when they
are verified and can be asked for; old ones are withdrawn first and let go when clients have seen that.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from types import MappingProxyType

from shoal.experts.backend import PackedExpert
from shoal.node.announcer import Announcer, Claim
from shoal.node.holdings.assignment import Holding
from shoal.node.serving.cold import ColdExperts
from shoal.node.serving.server import Held
from shoal.protocol.errors import Busy, NetworkError
from shoal.protocol.ids import ExpertId, LayerId

DROP_GRACE_S = 20.0
"""From a withdrawal to letting go: clients read the directory every 15 s. Who asks later is told NOT_HELD and asks a
replica."""

BUSY_PAUSE_S = 0.2
"""Before the kernel's thread is asked again to load: clients go first."""

ANNOUNCE_PAUSE_S = 5.0
"""Between two announcements while experts come one by one: each writes all our records."""

COLD_BATCH = 16
"""Experts that come to the disk before one that is taken over may: 704 MB of DeepSeek-V3."""

Wished = Mapping[LayerId, tuple[ExpertId, ...]]

NOTHING: Wished = MappingProxyType({})

Pack = Callable[[LayerId, ExpertId], Awaitable[PackedExpert]]
"""Reads, verifies and packs one expert. Raises CheckpointError, IntegrityError, Busy."""

Arriving = Callable[[Holding], AsyncGenerator[tuple[LayerId, ExpertId]]]
"""The experts of a holding as they come to this machine. Raises what keeps them from coming."""


async def all_here(holding: Holding) -> AsyncGenerator[tuple[LayerId, ExpertId]]:
    """For a node that has its model."""
    for layer, experts in holding.items():
        for expert in experts:
            yield layer, expert


class Keeper:
    """One node's experts. `take` and `drop` must not overlap: one healer calls them; `bring_cold` may go beside."""

    def __init__(
        self,
        held: Held,
        announcer: Announcer,
        pack: Pack,
        capacity: int,
        expert_bytes: int,
        arriving: Arriving = all_here,
        cold: ColdExperts | None = None,
    ) -> None:
        """capacity: experts that fit, those that are held included, those of `cold` that are in memory for a while not.
        cold: what we read from disk when it is asked for; what is taken over goes from there into memory, for what is
        both counts as held."""
        self._arriving = arriving
        self._cold = cold
        self._bringing = asyncio.Lock()
        self._held = held
        self._announcer = announcer
        self._pack = pack
        self._capacity = capacity
        self._expert_bytes = expert_bytes

    @property
    def holding(self) -> Holding:
        """What is in memory."""
        return {layer: tuple(sorted(experts)) for layer, experts in sorted(self._held.experts.items()) if experts}

    @property
    def cold(self) -> Holding:
        """What else can be asked for, and is read then."""
        return self._cold.beside(self.holding) if self._cold else {}

    @property
    def read_ms(self) -> int:
        """What reading one of those takes; 0: not measured."""
        return self._cold.read_ms if self._cold else 0

    @property
    def announcer(self) -> Announcer:
        return self._announcer

    @property
    def num_experts(self) -> int:
        return _count(self.holding)

    @property
    def resident_bytes(self) -> int:
        num_latest = len(self._cold.latest) if self._cold else 0
        return (self.num_experts + num_latest) * self._expert_bytes

    @property
    def room(self) -> int:
        """Experts that fit besides."""
        return max(0, self._capacity - self.num_experts)

    async def announce(self, coming: Wished = NOTHING, dropped: Wished = NOTHING) -> None:
        """Say what we hold, what is coming, and nothing of what is about to be dropped.

        Raises:
            NetworkError: the directory does not take it now; the announcer tries again.
        """
        await self._announcer.declare(self._claim(coming, dropped))

    def forget_plans(self) -> None:
        """Say only what we hold, at the announcer's next turn."""
        self._announcer.note(self._claim(NOTHING, NOTHING))

    def _claim(self, coming: Wished, dropped: Wished) -> Claim:
        room = self.room - _count(coming) + _count(dropped)
        holding = _without(self.holding, dropped)
        claim = replace(self._announcer.claim, holding=holding, coming=dict(coming), room=max(0, room))
        return self._with_cold(claim)

    def _with_cold(self, claim: Claim) -> Claim:
        """What of our disk it does not say to be in memory."""
        if self._cold is None:
            return claim
        return replace(claim, cold=self._cold.beside(claim.holding), read_ms=self._cold.read_ms)

    async def drop(self, holding: Holding) -> None:
        """Let go of what has been withdrawn, when clients know it."""
        if not holding:
            return
        await asyncio.sleep(DROP_GRACE_S)
        for layer, experts in holding.items():
            for expert in experts:
                self._held.experts.get(layer, {}).pop(expert, None)

    async def take(self, coming: Holding) -> None:
        """Load, and serve each expert as soon as it is there; say so soon after.

        Raises:
            CheckpointError, IntegrityError: a weight is not what the manifest says. NetworkError: see `announce`.
            Whatever keeps experts from coming. What came before stays.
        """
        changed = asyncio.Event()
        telling = asyncio.create_task(self._tell(coming, changed), name="announce what came")
        try:
            async with self._bringing, aclosing(self._arriving(coming)) as arriving:
                async for layer, expert in arriving:
                    packed = await self._packed(layer, expert)
                    self._held.experts.setdefault(layer, {})[expert] = packed
                    changed.set()
        finally:
            telling.cancel()
            await asyncio.wait({telling})
            failure = None if telling.cancelled() else telling.exception()
        if failure is not None:
            raise failure
        await self.announce(self.lacking(coming))

    async def bring_cold(self, missing: Holding) -> None:
        """Bring these to the disk, a few at a time so that `take` need not wait for all, and offer each as it comes.

        Raises:
            Whatever keeps experts from coming. What came before stays.
        """
        if self._cold is None:
            return
        for few in _batches(missing, COLD_BATCH):
            async with self._bringing, aclosing(self._arriving(few)) as arriving:
                async for layer, expert in arriving:
                    self._cold.offer(layer, expert)
            with suppress(NetworkError):  # the announcer tries again
                await self._announcer.declare(self._with_cold(self._announcer.claim))

    def lacking_cold(self, wished: Holding) -> Holding:
        """What of this is not on disk to be read yet."""
        left = {
            layer: tuple(expert for expert in experts if self._cold and not self._cold.has(layer, expert))
            for layer, experts in wished.items()
        }
        return {layer: experts for layer, experts in left.items() if experts}

    async def _tell(self, coming: Holding, changed: asyncio.Event) -> None:
        """Announce what came, again and again."""
        while True:
            await changed.wait()
            changed.clear()
            with suppress(NetworkError):  # the announcer tries again
                await self.announce(self.lacking(coming))
            await asyncio.sleep(ANNOUNCE_PAUSE_S)

    def lacking(self, coming: Holding) -> Holding:
        """What of this is not held yet."""
        left = {
            layer: tuple(expert for expert in experts if expert not in self._held.experts.get(layer, {}))
            for layer, experts in coming.items()
        }
        return {layer: experts for layer, experts in left.items() if experts}

    async def _packed(self, layer: LayerId, expert: ExpertId) -> PackedExpert:
        while True:
            try:
                return await self._pack(layer, expert)
            except Busy:
                await asyncio.sleep(BUSY_PAUSE_S)


def _count(holding: Wished) -> int:
    return sum(map(len, holding.values()))


def _batches(holding: Holding, size: int) -> Iterator[Holding]:
    places = [(layer, expert) for layer, experts in holding.items() for expert in experts]
    for first in range(0, len(places), size):
        few: Holding = {}
        for layer, expert in places[first : first + size]:
            few[layer] = (*few.get(layer, ()), expert)
        yield few


def _without(holding: Holding, dropped: Wished) -> Holding:
    kept = {layer: tuple(e for e in experts if e not in dropped.get(layer, ())) for layer, experts in holding.items()}
    return {layer: experts for layer, experts in kept.items() if experts}
