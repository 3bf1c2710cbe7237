"""Adds up what events say about one client: exchanges, fail-overs, holders. For answers' statistics and benchmarks."""

from dataclasses import dataclass, field

from shoal.protocol.events import Event, FailedOver, ReplyReceived
from shoal.protocol.ids import PeerId

MAX_SAMPLES = 100_000
"""Exchange times that are kept: an hour of a fast swarm; later ones are counted and not kept."""


@dataclass(slots=True)
class Tally:
    """An observer of events that counts."""

    exchanges_s: list[float] = field(default_factory=list)
    """Seconds from send to receive, the holder's work included."""
    failovers: list[FailedOver] = field(default_factory=list)
    holders: set[PeerId] = field(default_factory=set)

    def __call__(self, event: Event) -> None:
        if isinstance(event, ReplyReceived):
            self.holders.add(event.peer)
            if len(self.exchanges_s) < MAX_SAMPLES:
                self.exchanges_s.append(event.exchange_s)
        elif isinstance(event, FailedOver):
            self.failovers.append(event)
