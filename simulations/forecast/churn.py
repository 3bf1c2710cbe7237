"""Nodes that come and go, and what stays covered meanwhile: a simulation of hours, event by event.

Lifetimes are heavy-tailed as measured (pkarr-churn's five runs on BitTorrent's DHT, MIT; a published uptime curve of
IPFS): docs/SIMULATE.md has the fits. A node that leaves is followed, after a while, by one that begins with an empty
disk: it serves what it chose when its download has ended.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from shoal.node.holdings.placement import Around
from shoal.protocol.ids import PeerId
from shoal.simulations.forecast.peers import Counts, Held
from shoal.simulations.forecast.placement import Placement, Zones, add

HOUR_S = 3600.0
MEAN_VACANCY_S = 0.5 * HOUR_S
"""Until somebody comes in the place of a node that left (a guess: the population stays what it was)."""

Generator = np.random.Generator


class Lifetimes(StrEnum):
    """How long nodes stay."""

    STABLE = "stable"
    """Weibull k 0.55, scale 24 h: BitTorrent nodes (k 0.49 to 0.59, scale 19.5 to 24.7 h)."""
    CASUAL = "casual"
    """IPFS: more than half stay some minutes; of the others a half about 0.5 h, a half about 4 h, few for days."""
    ANCHOR = "anchor"
    """Exponential, a week: servers."""
    FOREVER = "forever"
    """Machines of a room that nobody turns off."""


@dataclass(frozen=True, slots=True)
class Population:
    """Nodes of a swarm over time."""

    capacities: Sequence[int]
    """Experts that fit, by place."""
    load_s: Sequence[float]
    """To fetch them."""
    lifetimes: Lifetimes
    around: Sequence[Around]
    """What each place's network is like."""


@dataclass(frozen=True, slots=True)
class CoverageAt:
    """The swarm at a moment."""

    hour: float
    nodes: int
    covered: float
    """Share of experts with a replica."""
    fewest_replicas: int
    rarest_tenth: float
    """Mean replicas of the tenth of the experts that has fewest."""


def lifetime_s(kind: Lifetimes, rng: Generator) -> float:
    """How long a node stays that comes now."""
    if kind is Lifetimes.FOREVER:
        return float("inf")
    if kind is Lifetimes.ANCHOR:
        return float(rng.exponential(7 * 24 * HOUR_S))
    if kind is Lifetimes.STABLE:
        return float(24 * HOUR_S * rng.weibull(0.55))
    mean_h = (0.1, 0.49, 3.97, 100.0)[int(rng.choice(4, p=[0.56, 0.195, 0.19, 0.055]))]
    return float(rng.exponential(mean_h * HOUR_S))


def remaining_s(kind: Lifetimes, rng: Generator) -> float:
    """How long a node stays that is met at a random moment: who stays long is met often."""
    if kind is Lifetimes.FOREVER:
        return float("inf")
    lives = np.array([lifetime_s(kind, rng) for _ in range(32)])
    return float(rng.choice(lives, p=lives / lives.sum()) * rng.random())


def deaths_per_s(kind: Lifetimes) -> float:
    """Of a node met at a random moment: one over the mean lifetime."""
    hours = {Lifetimes.FOREVER: float("inf"), Lifetimes.ANCHOR: 168.0, Lifetimes.STABLE: 40.9, Lifetimes.CASUAL: 6.4}
    return 1 / (hours[kind] * HOUR_S)


def coverage_over_time(
    counts: Counts,
    holdings: Sequence[Held],
    population: Population,
    placement: Placement,
    hours: int,
    rng: Generator,
    progress: Callable[[int], None] = lambda hour: None,
) -> list[CoverageAt]:
    """Let `hours` pass over a swarm that stands now; one row an hour. `counts` is changed."""
    world = _World(counts, list(holdings), population, placement, rng)
    rows = [world.look(0)]
    for hour in range(1, hours + 1):
        world.advance(hour * HOUR_S)
        rows.append(world.look(hour))
        progress(hour)
    return rows


class _World:
    """Places that are empty, loading or serving, and the queue of what happens next to each."""

    def __init__(
        self,
        counts: Counts,
        holdings: list[Held],
        population: Population,
        placement: Placement,
        rng: Generator,
    ) -> None:
        self._counts = counts
        self._holdings = holdings
        self._population = population
        self._placement = placement
        self._zones = Zones(placement.nobody())
        for around, held in zip(population.around, holdings, strict=True):
            self._zones.add(around.zone, held, 1)
        self._num_come = 0
        self._rng = rng
        self._num_serving = len(holdings)
        self._events = [(remaining_s(population.lifetimes, rng), node, _LEAVES) for node in range(len(holdings))]
        heapq.heapify(self._events)

    def advance(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            at_s, node, what = heapq.heappop(self._events)
            if what == _LEAVES:
                self._count(node, -1)
                self._num_serving -= 1
                self._put(at_s + self._rng.exponential(MEAN_VACANCY_S), node, _COMES)
            elif what == _COMES:
                self._come(at_s, node)
            else:
                self._count(node, 1)
                self._num_serving += 1

    def look(self, hour: int) -> CoverageAt:
        flat = np.sort(self._counts.ravel())
        covered = float((flat > 0).mean())
        tenth = flat[: max(1, len(flat) // 10)]
        return CoverageAt(hour, self._num_serving, covered, int(flat[0]), float(tenth.mean()))

    def _come(self, at_s: float, node: int) -> None:
        stays_s, load_s = lifetime_s(self._population.lifetimes, self._rng), self._population.load_s[node]
        if stays_s <= load_s:  # gone before it has served
            self._put(at_s + stays_s + self._rng.exponential(MEAN_VACANCY_S), node, _COMES)
            return
        self._num_come += 1
        peer = PeerId(f"newcomer-{self._num_come}")
        around, room = self._population.around[node], self._population.capacities[node]
        near = self._zones.near(around.zone)
        self._holdings[node] = self._placement.choose(self._counts, room, peer, near, around)
        self._put(at_s + load_s, node, _SERVES)
        self._put(at_s + stays_s, node, _LEAVES)

    def _count(self, node: int, sign: int) -> None:
        add(self._counts, self._holdings[node], sign)
        self._zones.add(self._population.around[node].zone, self._holdings[node], sign)

    def _put(self, at_s: float, node: int, what: str) -> None:
        heapq.heappush(self._events, (at_s, node, what))


_LEAVES, _COMES, _SERVES = "leaves", "comes", "serves"
