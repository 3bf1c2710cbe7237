"""How fast the link to one holder carries bytes, from what exchanges took beyond a ping. Pure: times are arguments."""

from dataclasses import dataclass

NUM_PINGS = 3
"""When a holder is connected: the shortest counts, so two may be held up."""

MIN_EXCHANGES = 8
"""Fewer say nothing: the first ones open TCP's window."""

DECAY = 1 - 1 / 32
"""Of what was measured, with every exchange: at 58 exchanges a token the last second counts."""


@dataclass(slots=True)
class LinkRate:
    """Bytes there and back over the seconds that they cost."""

    ping_s: float | None = None
    """The shortest round trip of a frame without a body."""
    num_exchanges: int = 0
    _num_bytes: float = 0.0
    _seconds: float = 0.0

    def pinged(self, rtt_s: float) -> None:
        """Learn a round trip without bytes."""
        self.ping_s = rtt_s if self.ping_s is None else min(self.ping_s, rtt_s)

    def carried(self, num_bytes: int, wire_s: float) -> None:
        """Learn an exchange. num_bytes: both ways; wire_s: what it took, the holder's queue and kernel taken off.

        Large frames weigh more, and they tell more: what we and the holder cost is in the time too.
        """
        if self.ping_s is None:
            return
        self.ping_s = min(self.ping_s, wire_s)  # no exchange is faster than light
        self._num_bytes = DECAY * self._num_bytes + num_bytes
        self._seconds = DECAY * self._seconds + wire_s - self.ping_s
        self.num_exchanges += 1

    @property
    def bytes_per_s(self) -> float | None:
        """None: not known yet. Infinite: bytes cost nothing that could be measured."""
        if self.num_exchanges < MIN_EXCHANGES:
            return None
        return self._num_bytes / self._seconds if self._seconds > 0 else float("inf")
