"""How fast the link to one holder carries bytes, from what exchanges took beyond a ping. Pure: times are arguments."""

from collections import deque
from dataclasses import dataclass, field

NUM_PINGS = 3
"""When a holder is connected: the shortest counts, so two may be held up."""

MIN_EXCHANGES = 8
"""Fewer say nothing: the first ones open TCP's window."""

NUM_RECENT = 32
"""Exchanges of which the fastest counts. A busy machine holds most of them up by more than their bytes take (by the
mean, a link of 100 Mbit/s was taken for less than 9), but no link carries even one faster than it can."""


@dataclass(slots=True)
class LinkRate:
    """Bytes there and back over the seconds that they cost, at best, lately."""

    ping_s: float | None = None
    """The shortest round trip of a frame without a body."""
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_RECENT), repr=False)
    """Seconds a byte."""

    def pinged(self, rtt_s: float) -> None:
        """Learn a round trip without bytes."""
        self.ping_s = rtt_s if self.ping_s is None else min(self.ping_s, rtt_s)

    def carried(self, num_bytes: int, exchange_s: float, held_s: float) -> None:
        """Learn an exchange. num_bytes: both ways; held_s: the holder's word on its queue and kernel.

        A holder that says too much is sent what is exact; what it says does not change what a ping takes.
        """
        if self.ping_s is None:
            return
        self.ping_s = min(self.ping_s, exchange_s)
        self._recent.append(max(0.0, exchange_s - held_s - self.ping_s) / num_bytes)

    @property
    def bytes_per_s(self) -> float | None:
        """None: not known yet. Infinite: bytes cost nothing that could be measured."""
        if len(self._recent) < MIN_EXCHANGES:
            return None
        fastest = min(self._recent)
        return 1 / fastest if fastest > 0 else float("inf")
