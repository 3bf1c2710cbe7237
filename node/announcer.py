"""Keeps our record alive in the directory: said anew when something has changed, else renewed, withdrawn at the end.

Knows the directory only by its seam. What fails is logged and tried again soon: a renewal may fail several times before
the record dies.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from shoal.node.holdings.assignment import Holding
from shoal.node.log_events import RecordsNotRenewed, log_event
from shoal.protocol.errors import ShoalError
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.limits import PULSE_PERIOD_S
from shoal.protocol.messages import Rounding
from shoal.protocol.net.directory import Directory
from shoal.protocol.records import Experts, NodeRecord

RETRY_S = PULSE_PERIOD_S / 4
"""After a renewal that failed: three more before the record dies."""

SAME_CAPACITY = 1.5
"""A measured capacity within this factor of what we said is no news: every change costs a signed record."""

SAME_QUEUE_MS = 500
"""Nor is a queue that is longer or shorter by no more than this."""

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
    zone: str = ""
    gives_trunk: bool = False
    cold: dict[LayerId, tuple[ExpertId, ...]] = field(default_factory=dict)
    """What it reads from disk when it is asked for it."""
    read_ms: int = 0
    """What reading one of these takes; 0: not said."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy this node is at the moment of a renewal."""

    capacity_mmacs: int
    queue_ms: int


class Announcer:
    """Publishes one node's claim."""

    def __init__(self, directory: Directory, claim: Claim, load: Callable[[], Load]) -> None:
        self._directory = directory
        self._claim = claim
        self._load = load
        self._is_present = True
        self._is_settled = False
        self._changed = asyncio.Event()
        self._publishing = asyncio.Lock()
        self._said_load = Load(0, 0)
        self._is_known = False

    @property
    def claim(self) -> Claim:
        return self._claim

    @property
    def is_present(self) -> bool:
        return self._is_present

    async def declare(self, claim: Claim) -> None:
        """Say this from now on, and at once unless we are withdrawn.

        Raises:
            NetworkError: the directory does not take it now; `run` tries again.
        """
        self.note(claim)
        if self._is_present:
            await self.announce()

    def note(self, claim: Claim) -> None:
        """Say this from the next turn of `run` on."""
        self._claim = claim

    def set_present(self, is_present: bool) -> None:
        """Whether `run` is to announce what we hold, or to withdraw it; it begins at once."""
        if is_present != self._is_present:
            self._is_present, self._is_settled = is_present, False
            self._changed.set()

    async def announce(self) -> None:
        """Say what we hold, or renew it."""
        await self._say(self._claim)

    async def run(self) -> None:
        """Renew, or withdraw, for ever. Cancellation: the record stays until it expires; call `withdraw`."""
        pause_s = PULSE_PERIOD_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
            self._changed.clear()
            try:
                await self._publish()
                pause_s = PULSE_PERIOD_S
            except ShoalError as error:
                log_event(RecordsNotRenewed(type(error).__name__))
                pause_s = RETRY_S

    async def _publish(self) -> None:
        if self._is_present:
            await self.announce()
        elif not self._is_settled:  # what is withdrawn need not be renewed
            await self.withdraw()
            self._is_settled = True

    async def withdraw(self) -> None:
        """Tell the directory that we hold nothing any more."""
        await self._say(replace(self._claim, holding={}, coming={}, cold={}, read_ms=0))

    async def _say(self, claim: Claim) -> None:
        async with self._publishing:
            if self._is_known or claim.holding or claim.coming or claim.cold:  # else there is nothing to take back
                self._is_known = True
                await self._directory.publish(self._record(claim))

    def _record(self, claim: Claim) -> NodeRecord:
        load = self._load_to_say()
        return NodeRecord(
            peer=claim.peer,
            model_root=claim.model_root,
            experts=_by_layer(claim.holding),
            weight_format=claim.weight_format,
            roundings=SERVED_ROUNDINGS,
            kernel_class=claim.kernel_class,
            capacity_mmacs=load.capacity_mmacs,
            queue_ms=load.queue_ms,
            addresses=claim.addresses,
            coming=_by_layer(claim.coming),
            since_s=claim.since_s,
            room=claim.room,
            zone=claim.zone,
            gives_trunk=claim.gives_trunk,
            cold=_by_layer(claim.cold),
            read_ms=claim.read_ms,
        )

    def _load_to_say(self) -> Load:
        """Our load, or what we last said of it where that is still about right."""
        now, said = self._load(), self._said_load
        low, high = sorted((now.capacity_mmacs, said.capacity_mmacs))
        if high > SAME_CAPACITY * low or abs(now.queue_ms - said.queue_ms) > SAME_QUEUE_MS:
            self._said_load = now
        return self._said_load


def _by_layer(holding: Holding) -> Experts:
    return {layer: frozenset(experts) for layer, experts in holding.items() if experts}
