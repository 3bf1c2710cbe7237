"""What a network does to a packet, as arithmetic: when it arrives, or that it never does. Time and chance are given.

Hosts hang on one hub. A packet crosses its sender's link, then its receiver's. Knows no sockets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal.protocol.errors import InvalidRequest

MAX_QUEUE_S = 0.5
"""What a paced link holds back at most, in time; more is dropped, as by a home router's buffer (some hold seconds)."""

MIN_QUEUE_BYTES = 65_536
"""A link as slow as a modem still takes one burst of a TCP connection that begins (ten packets), four times over."""


@dataclass(frozen=True, slots=True)
class Link:
    """One host's link to all others."""

    rtt_ms: float = 0.0
    """Round trip to a host with the same link; to another, the mean of both."""
    loss: float = 0.0
    """Share of packets that are lost, each way; of two links the worse counts."""
    rate_bytes_per_s: float | None = None
    """Of IP packets, each direction of its own. None: no limit."""
    is_cut: bool = False
    """Nothing passes."""

    def __post_init__(self) -> None:
        if not 0 <= self.rtt_ms <= 60_000:
            raise InvalidRequest(f"a round trip is 0 to 60000 ms, not {self.rtt_ms}")
        if not 0 <= self.loss < 1:
            raise InvalidRequest(f"a loss is a share of 0 to 1, not {self.loss}")
        if self.rate_bytes_per_s is not None and self.rate_bytes_per_s <= 0:
            raise InvalidRequest(f"a rate is above 0, not {self.rate_bytes_per_s} bytes/s")


class Fabric:
    """All links, and until when each is busy."""

    def __init__(self, links: Sequence[Link], draw: Callable[[], float]) -> None:
        """draw: a number in [0, 1), for losses."""
        self._links = list(links)
        self._draw = draw
        self._up_free_at = [0.0] * len(links)
        self._down_free_at = [0.0] * len(links)

    def set_link(self, host: int, link: Link) -> None:
        """From now on; what is on its way stays so."""
        self._links[host] = link

    def arrival(self, source: int, target: int, size_bytes: int, now: float) -> float | None:
        """When a packet that is sent now arrives; None: it is lost. Seconds of the caller's clock."""
        ours, theirs = self._links[source], self._links[target]
        if ours.is_cut or theirs.is_cut:
            return None
        loss = max(ours.loss, theirs.loss)
        if loss and self._draw() < loss:
            return None
        sent_at = _paced(self._up_free_at, source, ours, size_bytes, now)
        if sent_at is None:
            return None
        half_way = sent_at + (ours.rtt_ms + theirs.rtt_ms) / 4000
        return _paced(self._down_free_at, target, theirs, size_bytes, half_way)


def _paced(free_at: list[float], host: int, link: Link, size_bytes: int, now: float) -> float | None:
    """When a link has passed a packet on; None: its queue is full."""
    rate = link.rate_bytes_per_s
    if rate is None:
        return now
    starts_at = max(free_at[host], now)
    if starts_at - now > max(MAX_QUEUE_S, MIN_QUEUE_BYTES / rate):
        return None
    free_at[host] = starts_at + size_bytes / rate
    return free_at[host]
