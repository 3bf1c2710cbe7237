"""What a node holds while that changes: loads what it takes over, lets go of what it gives up, and says so in time.

Between the healer, which decides, and server and announcer, which go on meanwhile. New experts are announced when they
are verified and can be asked for; old ones are withdrawn first and let go when clients have seen that.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from types import MappingProxyType

from shoal.experts.backend import PackedExpert
from shoal.node.announcer import Announcer, Claim
from shoal.node.holdings.assignment import Holding
from shoal.node.serving.anchor import Anchor
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
    """One node's experts. Its changes must not overlap: one healer calls them."""

    def __init__(
        self,
        held: Held,
        announcer: Announcer,
        pack: Pack,
        capacity: int,
        expert_bytes: int,
        arriving: Arriving = all_here,
        anchor: Anchor | None = None,
    ) -> None:
        """capacity: experts that fit, those that are held included. anchor: what we offer without holding it; such a
        node takes nothing over."""
        self._arriving = arriving
        self._anchor = anchor
        self._held = held
        self._announcer = announcer
        self._pack = pack
        self._capacity = capacity
        self._expert_bytes = expert_bytes

    @property
    def holding(self) -> Holding:
        """What can be asked for now."""
        if self._anchor is not None:
            return self._anchor.offered
        return {layer: tuple(sorted(experts)) for layer, experts in sorted(self._held.experts.items()) if experts}

    @property
    def announcer(self) -> Announcer:
        return self._announcer

    @property
    def num_experts(self) -> int:
        return _count(self.holding)

    @property
    def resident_bytes(self) -> int:
        num_resident = self.num_experts if self._anchor is None else len(self._anchor.latest)
        return num_resident * self._expert_bytes

    @property
    def room(self) -> int:
        """Experts that fit besides."""
        return 0 if self._anchor is not None else max(0, self._capacity - self.num_experts)

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
        return replace(self._announcer.claim, holding=holding, coming=dict(coming), room=max(0, room))

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
            async with aclosing(self._arriving(coming)) as arriving:
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


def _without(holding: Holding, dropped: Wished) -> Holding:
    kept = {layer: tuple(e for e in experts if e not in dropped.get(layer, ())) for layer, experts in holding.items()}
    return {layer: experts for layer, experts in kept.items() if experts}
