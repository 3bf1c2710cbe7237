"""Adds up what events say while one answer grows: exchanges, fail-overs, holders. For statistics and benchmarks."""

from dataclasses import dataclass, field

from shoal.protocol.events import Event, FailedOver, Hedged, Observer, ReplyReceived
from shoal.protocol.ids import PeerId

MAX_SAMPLES = 100_000
"""Exchange times that are kept: an hour of a fast swarm; later ones are counted and not kept."""


class Observers:
    """Several observers as one; they may come and go while events flow."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = list(observers)

    def __call__(self, event: Event) -> None:
        for observe in tuple(self._observers):
            observe(event)

    def add(self, observe: Observer) -> None:
        self._observers.append(observe)

    def remove(self, observe: Observer) -> None:
        """Stop telling this one; no harm if it was not told."""
        self._observers = [known for known in self._observers if known is not observe]


@dataclass(slots=True)
class Tally:
    """An observer of events that counts."""

    exchanges_s: list[float] = field(default_factory=list)
    """Seconds from send to receive, the holder's work included."""
    failovers: list[FailedOver | Hedged] = field(default_factory=list)
    """Calls that a replica answered because their holder failed, or was late and lost the race."""
    holders: set[PeerId] = field(default_factory=set)

    def __call__(self, event: Event) -> None:
        if isinstance(event, ReplyReceived):
            self.holders.add(event.peer)
            if len(self.exchanges_s) < MAX_SAMPLES:
                self.exchanges_s.append(event.exchange_s)
        elif isinstance(event, FailedOver) or (isinstance(event, Hedged) and event.has_won):
            self.failovers.append(event)
