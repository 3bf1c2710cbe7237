"""What the events of a swarm add up to: a log, the passes with their layers, and how quickly each peer answers.

An observer like any other: called in the event loop for every event, a few hundred times per token, so each call is a
few appends. Everything is bounded. Knows no screen.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from shoal.protocol.events import (
    DispatchSent,
    Event,
    ExpertsTimed,
    FailedOver,
    Hedged,
    HolderLost,
    LayerTimed,
    PassTaken,
    ReplyReceived,
)
from shoal.protocol.ids import LayerId, PeerId

MAX_NOTES = 2000
"""Events that are kept for the log, exchanges apart: hours of an ordinary swarm."""

MAX_EXCHANGES = 2000
"""Exchanges kept for the log: a few tokens of DeepSeek-V3's 58 layers and 8 holders."""

MAX_PASSES = 256
"""Passes that percentiles are taken over."""

MAX_SAMPLES = 512
"""Exchanges per peer that percentiles are taken over."""

SEGMENTS = ("attention", "route", "wire", "expert", "wait", "other")
"""Where a layer's time goes, in the order in which it is spent."""


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """One layer of one pass, in seconds, by segment."""

    layer: LayerId
    attention: float
    route: float
    wire: float
    expert: float
    """The first holder's queue and compute."""
    wait: float
    """For the slowest holder after the first, and for calls that failed before."""
    other: float
    """Grouping, summing, and whatever the shared expert takes longer than the swarm."""
    slowest: PeerId | None = None

    def seconds(self) -> tuple[float, ...]:
        """In the order of SEGMENTS."""
        return (self.attention, self.route, self.wire, self.expert, self.wait, self.other)

    @property
    def total(self) -> float:
        return sum(self.seconds())


@dataclass(frozen=True, slots=True)
class PassTimes:
    """One forward pass: for a decoding stream, one token."""

    pass_id: int
    layers: tuple[LayerTimes, ...]
    head_s: float
    total_s: float
    num_prefilled: int

    def by_segment(self) -> tuple[float, ...]:
        """Seconds by segment over all layers; the head counts as other."""
        sums = [sum(column) for column in zip(*(layer.seconds() for layer in self.layers), strict=True)]
        return (*sums[:-1], sums[-1] + self.head_s) if sums else (0.0,) * (len(SEGMENTS) - 1) + (self.head_s,)


@dataclass(frozen=True, slots=True)
class Entry:
    """An event and when it came, in seconds since the book was opened."""

    at_s: float
    event: Event


@dataclass(frozen=True, slots=True)
class PeerTimes:
    """How a peer has answered lately, in milliseconds."""

    peer: PeerId
    num_exchanges: int
    p50_ms: float
    p99_ms: float


class EventBook:
    """Counts and remembers; read it whenever a screen is drawn."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds, for durations."""
        self._clock = clock
        self._opened = clock()
        self._notes: deque[Entry] = deque(maxlen=MAX_NOTES)
        self._exchanges: deque[Entry] = deque(maxlen=MAX_EXCHANGES)
        self._passes: deque[PassTimes] = deque(maxlen=MAX_PASSES)
        self._layers: list[LayerTimes] = []
        self._experts: ExpertsTimed | None = None
        self._samples: dict[PeerId, deque[float]] = {}
        self.num_events = 0
        self.num_failovers = 0
        self.num_lost = 0
        self.num_hedged = 0

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self.num_events += 1
        entry = Entry(self._clock() - self._opened, event)
        if isinstance(event, ReplyReceived):
            self._samples.setdefault(event.peer, deque(maxlen=MAX_SAMPLES)).append(event.exchange_s)
        if isinstance(event, DispatchSent | ReplyReceived):
            self._exchanges.append(entry)
        elif not self._takes_time(event):
            self._notes.append(entry)
            self.num_failovers += isinstance(event, FailedOver)
            self.num_lost += isinstance(event, HolderLost)
            self.num_hedged += isinstance(event, Hedged)

    def entries(self, with_exchanges: bool = False) -> list[Entry]:
        """The log, oldest first."""
        if not with_exchanges:
            return list(self._notes)
        return sorted([*self._notes, *self._exchanges], key=lambda entry: entry.at_s)

    @property
    def passes(self) -> Sequence[PassTimes]:
        """The latest passes, oldest first."""
        return self._passes

    def decoding(self) -> Iterator[PassTimes]:
        """The passes that gave a token and prefilled nothing: their times are what a reader feels."""
        return (each for each in self._passes if not each.num_prefilled)

    def peer_times(self) -> list[PeerTimes]:
        """The peers that have answered, the slowest first."""
        times = [_peer_times(peer, samples) for peer, samples in self._samples.items()]
        return sorted(times, key=lambda each: (-each.p99_ms, each.peer))

    def _takes_time(self, event: Event) -> bool:
        """Add a timing to the pass that it belongs to; False if it is none."""
        if isinstance(event, ExpertsTimed):
            self._experts = event
        elif isinstance(event, LayerTimed):
            self._layers.append(_layer_times(event, self._experts))
            self._experts = None
        elif isinstance(event, PassTaken):
            times = PassTimes(event.pass_id, tuple(self._layers), event.head_s, event.total_s, event.num_prefilled)
            self._passes.append(times)
            self._layers = []
        else:
            return False
        return True


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of the values lie, by nearest rank; 0 of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def _layer_times(timed: LayerTimed, experts: ExpertsTimed | None) -> LayerTimes:
    if experts is None or experts.layer != timed.layer:
        return LayerTimes(timed.layer, timed.attention_s, timed.route_s, 0.0, 0.0, 0.0, timed.experts_s)
    expert_s, wait_s = experts.queue_s + experts.compute_s, experts.straggling_s + experts.failed_s
    other_s = max(0.0, timed.experts_s - experts.wire_s - expert_s - wait_s)
    return LayerTimes(
        timed.layer, timed.attention_s, timed.route_s, experts.wire_s, expert_s, wait_s, other_s, experts.slowest
    )


def _peer_times(peer: PeerId, samples: Sequence[float]) -> PeerTimes:
    return PeerTimes(peer, len(samples), 1000 * percentile(samples, 0.5), 1000 * percentile(samples, 0.99))
