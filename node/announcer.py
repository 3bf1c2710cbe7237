"""Keeps our holder records alive in the directory: one per layer, renewed at a third of their life, withdrawn at the
end.

Knows the directory only by its seam. What fails is logged and tried again at the next turn: two renewals may be lost
before a record dies.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from shoal.node.log_events import RecordsNotRenewed, log_event
from shoal.protocol.errors import ShoalError
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.limits import RECORD_TTL_S
from shoal.protocol.messages import Rounding
from shoal.protocol.net.directory import Directory
from shoal.protocol.records import HolderRecord

SERVED_ROUNDINGS = (1 << Rounding.FP32) | (1 << Rounding.BF16)


@dataclass(frozen=True, slots=True)
class Claim:
    """What this node says of itself in every record."""

    peer: PeerId
    model_root: bytes
    holding: dict[LayerId, tuple[ExpertId, ...]]
    weight_format: int
    kernel_class: int
    addresses: tuple[str, ...]
    coming: dict[LayerId, tuple[ExpertId, ...]] = field(default_factory=dict)
    """What it is about to hold."""
    since_s: int = 0
    """Unix time at which it became a holder."""
    room: int = 0
    """Experts that it would hold besides."""
    is_anchor: bool = False
    zone: str = ""

    @property
    def layers(self) -> set[LayerId]:
        return {*self.holding, *self.coming}


@dataclass(frozen=True, slots=True)
class Load:
    """How busy this node is at the moment of a renewal."""

    capacity_mmacs: int
    queue_ms: int


class Announcer:
    """Publishes one node's claim. `clock`: Unix time in seconds."""

    def __init__(
        self, directory: Directory, claim: Claim, load: Callable[[], Load], clock: Callable[[], float]
    ) -> None:
        self._directory = directory
        self._claim = claim
        self._load = load
        self._clock = clock
        self._is_present = True
        self._is_settled = False
        self._changed = asyncio.Event()
        self._publishing = asyncio.Lock()
        self._left: set[LayerId] = set()
        self._last_ms = 0

    @property
    def claim(self) -> Claim:
        return self._claim

    @property
    def is_present(self) -> bool:
        return self._is_present

    async def declare(self, claim: Claim) -> None:
        """Say this from now on, and at once unless we are withdrawn. Layers that it lacks are withdrawn.

        Raises:
            NetworkError: the directory does not take it now; `run` tries again.
        """
        self.note(claim)
        if self._is_present:
            await self.announce()

    def note(self, claim: Claim) -> None:
        """Say this from the next turn of `run` on. Layers that it lacks are withdrawn."""
        self._left = (self._left | self._claim.layers) - claim.layers
        self._claim = claim

    def set_present(self, is_present: bool) -> None:
        """Whether `run` is to announce what we hold, or to withdraw it; it begins at once."""
        if is_present != self._is_present:
            self._is_present, self._is_settled = is_present, False
            self._changed.set()

    async def announce(self) -> None:
        """Publish or renew all records once."""
        async with self._publishing:
            left, claim = frozenset(self._left), self._claim
            records = [self._record(layer, claim.holding.get(layer, ())) for layer in sorted(claim.layers | left)]
            if records:
                await self._directory.publish(records)
            self._left -= left - self._claim.layers

    async def run(self) -> None:
        """Renew, or withdraw, for ever. Cancellation: records stay until they expire; call `withdraw`."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RECORD_TTL_S / 3):
                    await self._changed.wait()
            self._changed.clear()
            try:
                await self._publish()
            except ShoalError as error:
                log_event(RecordsNotRenewed(type(error).__name__))

    async def _publish(self) -> None:
        if self._is_present:
            await self.announce()
        elif not self._is_settled:  # what is withdrawn need not be renewed
            await self.withdraw()
            self._is_settled = True

    async def withdraw(self) -> None:
        """Tell the directory that we hold nothing any more."""
        async with self._publishing:
            layers = sorted(self._claim.layers | self._left)
            records = [replace(self._record(layer, ()), coming=frozenset()) for layer in layers]
            if records:
                await self._directory.publish(records)
            self._left.clear()

    def _record(self, layer: LayerId, experts: tuple[ExpertId, ...]) -> HolderRecord:
        claim, load, now_ms = self._claim, self._load(), self._now_ms()
        return HolderRecord(
            peer=claim.peer,
            model_root=claim.model_root,
            layer=layer,
            experts=frozenset(experts),
            weight_format=claim.weight_format,
            roundings=SERVED_ROUNDINGS,
            kernel_class=claim.kernel_class,
            capacity_mmacs=load.capacity_mmacs,
            queue_ms=load.queue_ms,
            addresses=claim.addresses,
            seq=now_ms,  # grows from run to run without being stored
            expires_at_s=round(now_ms + RECORD_TTL_S * 1000) / 1000,
            coming=frozenset(claim.coming.get(layer, ())),
            since_s=claim.since_s,
            room=claim.room,
            is_anchor=claim.is_anchor,
            zone=claim.zone,
        )

    def _now_ms(self) -> int:
        """Unix time that never stands still: a directory keeps the older of two records of one moment."""
        self._last_ms = max(self._last_ms + 1, round(self._clock() * 1000))
        return self._last_ms
