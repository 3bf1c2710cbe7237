"""Holders as a user sees them: copies of a moment, without channels and without torch.

Made from the live view in `holders.py`; shown by the swarm and peers screens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from shoal.client.routing.health import Standing
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.version import PROTOCOL_VERSION

if TYPE_CHECKING:
    from shoal.client.routing.holders import Holder


class Breaker(StrEnum):
    """Whether a holder is asked."""

    CLOSED = "closed"
    """It is: current flows."""
    PAUSED = "paused"
    """It failed or was busy lately; asked again in a while, or when nobody else is left."""
    BANNED = "banned"
    """It sent garbage."""
    DRAINING = "draining"
    """It finishes its work and leaves."""
    OFFLINE = "offline"
    """Announced, or known from before, and not connected."""


@dataclass(frozen=True, slots=True)
class PeerSnapshot:
    """One holder as the client sees it at this moment."""

    peer: PeerId
    rtt_ms: float | None
    """Smoothed round trip without the holder's work; None before the first answer."""
    version: int | None
    """The protocol that it speaks; None while not connected."""
    holdings: Mapping[LayerId, frozenset[ExpertId]]
    failures: int
    """In a row."""
    breaker: Breaker
    retry_in_s: float
    """Until a paused or banned holder is asked again; 0 for the others."""
    is_anchor: bool = False
    """It has nothing in memory: a last resort, asked for what nobody else is left for."""
    addresses: tuple[str, ...] = ()
    """Where it says that it is."""
    num_cold: int = 0
    """Experts on its disk, asked for as an anchor's are; not in `holdings`."""
    read_ms: float = 0.0
    """What reading one of them takes; 0: not known."""
    ping_ms: float | None = None
    """The shortest round trip of a frame without a body, so far; None where links are not measured."""

    @property
    def is_usable(self) -> bool:
        return self.breaker is Breaker.CLOSED

    @property
    def num_experts(self) -> int:
        return sum(len(experts) for experts in self.holdings.values())


def snapshot(holder: "Holder", now: float) -> PeerSnapshot:
    """A copy of one holder. now: loop time in seconds."""
    health = holder.health
    return PeerSnapshot(
        peer=holder.peer,
        rtt_ms=1000 * health.srtt_s if health.has_sample else None,
        version=PROTOCOL_VERSION if holder.is_connected else None,  # the handshake takes no other
        holdings={layer: experts for layer, experts in sorted(holder.experts.items()) if experts},
        failures=health.failures,
        breaker=_breaker(holder, now),
        retry_in_s=max(0.0, health.doubted_until - now, health.busy_until - now, health.banned_until - now),
        is_anchor=holder.is_anchor,
        addresses=holder.addresses,
        num_cold=sum(map(len, holder.cold.values())),
        read_ms=1000 * health.read_s,
        ping_ms=None if health.link.ping_s is None else 1000 * health.link.ping_s,
    )


def _breaker(holder: "Holder", now: float) -> Breaker:
    standing = holder.health.standing(now)
    if standing is Standing.BANNED:
        return Breaker.BANNED
    if holder.channel is None or holder.channel.is_closed:
        return Breaker.OFFLINE
    if holder.channel.is_draining:
        return Breaker.DRAINING
    return Breaker.CLOSED if standing is Standing.USABLE else Breaker.PAUSED
