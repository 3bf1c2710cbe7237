"""How well ten thousand volunteers cover a model: placement and take-over under churn, beside a random choice.

Only who holds what and for how long is simulated: no frames, no kernels (`virtual` has those). DeepSeek-V3's shape and
sizes; lifetimes and the spread of expert popularity are the parameters that were fitted to published measurements, the
measurements themselves are not shipped. Every choice comes from a seed.
"""

import heapq
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from shoal.client.routing.choose import choose as choose_holders
from shoal.node.holdings.placement import (
    LIFETIME_SCALE_S,
    LIFETIME_SHAPE,
    TARGET_REPLICAS,
    Mask,
    Reals,
    Shape,
    SwarmView,
    choose,
    survival,
)
from shoal.node.holdings.takeover import GRACE_S, SPARE_REPLICAS, Means, Rarity, plan_move
from shoal.protocol.ids import ExpertId, LayerId, PeerId

V3 = Shape(tuple(LayerId(layer) for layer in range(3, 61)), 256, 32)
EXPERT_BYTES = 23_000_000
"""An expert of DeepSeek-V3 in int4."""

POPULARITY_SIGMA = 0.58
"""ln(load) of an expert is about normal with this sigma in decode (from counters of sglang's expert distribution)."""

SHARE_SIGMA = 0.6
"""Spread of ln(share): a third of the volunteers give less than three quarters of the median, a third more than 1.3
times. A guess."""

LOOK_S = 60.0
"""Between two looks of the simulated swarm at itself."""

AGES_EVERY = 15
"""Looks between two new counts of how old everybody is."""

TOP_K, GROUPS_PER_TOKEN, NUM_TOKENS = 8, 4, 40
HOUR_S = 3600.0


class Policy(StrEnum):
    """How nodes decide what to hold."""

    RANDOM = "random"
    """Random whole groups, for ever."""
    JOIN = "on joining"
    """The rarest when they join, for ever."""
    HEAL = "and take-over"
    """The same, and what is too rare for too long is taken over."""


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """One simulated swarm."""

    num_nodes: int
    share_bytes: int
    """Median."""
    hours: float = 24.0
    num_zones: int = 4
    rejoin_s: float = 600.0
    """Mean time until a newcomer takes a departed node's place."""
    exodus: float = 0.0
    """Share of the nodes that leave for good, all at once, when half of the time is over."""
    seed: int = 0
    expert_bytes: int = EXPERT_BYTES
    share_sigma: float = SHARE_SIGMA


@dataclass(frozen=True, slots=True)
class PlacementResult:
    """What became of a swarm. Replicas are at the end; coverage is over all looks."""

    policy: Policy
    num_nodes: int
    mean_replicas: float
    min_replicas: int
    median_replicas: float
    coverage_mean: float
    """Share of the experts that somebody holds."""
    coverage_least: float
    complete_share: float
    """Share of the time in which every expert had a holder."""
    rare_share: float
    """Share of (expert, time) below the target number of replicas."""
    popular_ratio: float
    """Replicas of the tenth of the experts with most load, relative to the mean."""
    holders_per_layer: float
    """Holders that a token's experts of one layer are asked of, by the client's own choice."""
    joins_per_h: float
    moves_per_h: float
    """Experts that nodes moved after they had joined."""
    least_after_giving_up: int | None
    """The fewest holders that an expert had left when a node gave it up for another; None: nobody gave one up."""
    decision_ms: float
    """Mean time of a choice on this machine."""


@dataclass(slots=True)
class _Node:
    peer: PeerId
    zone: int
    joined_s: float
    room: int
    held: npt.NDArray[np.int64]
    """Places of experts in [L * E]."""


@dataclass(slots=True)
class _Swarm:
    settings: PlacementSettings
    policy: Policy
    shape: Shape
    rng: random.Random
    popularity: Reals
    nodes: dict[int, _Node] = field(default_factory=dict)
    replicas: npt.NDArray[np.int32] = field(init=False)
    expected: Reals = field(init=False)
    near: Reals = field(init=False)
    num_joins: int = 0
    num_moves: int = 0
    num_decisions: int = 0
    decisions_s: float = 0.0
    left_after_giving_up: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.replicas = np.zeros(self.shape.size, np.int32)
        self.expected = self.shape.zeros()
        self.near = np.zeros((self.settings.num_zones, *self.shape.size), np.float32)

    def join(self, place: int, now_s: float) -> None:
        """A new node chooses and holds."""
        rng, share = self.rng, self.settings.share_bytes * self.rng.lognormvariate(0, self.settings.share_sigma)
        node = _Node(
            PeerId(f"{rng.getrandbits(128):032x}"), rng.randrange(self.settings.num_zones), now_s,
            max(1, int(share / self.settings.expert_bytes)), np.empty(0, np.int64),
        )  # fmt: skip
        self.num_joins += 1
        self.nodes[place] = node
        mask = self._random(node.room) if self.policy is Policy.RANDOM else self._best(node)
        self._hold(node, mask, now_s)

    def leave(self, place: int, now_s: float) -> None:
        """Gone without a word."""
        node = self.nodes.pop(place)
        self._count(node, node.held, -1, now_s)

    def count_ages(self, now_s: float) -> None:
        """Everybody's chance to be here in an hour, anew."""
        self.expected[:] = 0
        self.near[:] = 0
        for node in self.nodes.values():
            chance = survival(now_s - node.joined_s)
            self.expected.ravel()[node.held] += chance
            self.near[node.zone].ravel()[node.held] += chance

    def heal(self, overdue: Mask, now_s: float) -> None:
        """The oldest nodes take over what is overdue, until nothing is."""
        for node in sorted(self.nodes.values(), key=lambda node: (node.joined_s, node.peer)):
            mine = self.mask(node)
            if not (overdue & ~mine).any():
                continue
            may_drop = mine & (self.replicas > TARGET_REPLICAS + SPARE_REPLICAS)
            means = Means(node.peer, mine, may_drop, node.room - len(node.held))
            move = plan_move(self.shape, self._view(node), means, overdue)
            if move.num_dropped:
                self._drop(node, move.drop, now_s)
                self.left_after_giving_up.append(int(self.replicas[move.drop].min()))
            self._hold(node, move.take, now_s)
            self.num_moves += move.num_taken
            overdue = overdue & ~move.take
            if not overdue.any():
                return

    def _best(self, node: _Node) -> Mask:
        self.num_decisions += 1
        before = time.perf_counter()
        mask = choose(self.shape, self._view(node), node.room, node.peer)
        self.decisions_s += time.perf_counter() - before
        return mask

    def _random(self, room: int) -> Mask:
        """Whole groups, and a part of one more."""
        num_groups = self.shape.num_experts // self.shape.group_size * len(self.shape.layers)
        mask = np.zeros((num_groups, self.shape.group_size), np.bool_)
        whole, rest = divmod(min(room, mask.size), self.shape.group_size)
        groups = self.rng.sample(range(num_groups), min(num_groups, whole + 1))
        mask[groups[:whole]] = True
        if rest:
            mask[groups[-1], self.rng.sample(range(self.shape.group_size), rest)] = True
        return mask.reshape(self.shape.size)

    def _view(self, node: _Node) -> SwarmView:
        return SwarmView(self.expected, self.near[node.zone], self.popularity)

    def mask(self, node: _Node) -> Mask:
        """What a node holds."""
        mask = np.zeros(self.shape.size, np.bool_)
        mask.ravel()[node.held] = True
        return mask

    def _hold(self, node: _Node, mask: Mask, now_s: float) -> None:
        taken = np.flatnonzero(mask)
        node.held = np.concatenate([node.held, taken])
        self._count(node, taken, 1, now_s)

    def _drop(self, node: _Node, mask: Mask, now_s: float) -> None:
        dropped = np.flatnonzero(mask)
        node.held = np.setdiff1d(node.held, dropped)
        self._count(node, dropped, -1, now_s)

    def _count(self, node: _Node, places: npt.NDArray[np.int64], sign: int, now_s: float) -> None:
        chance = sign * survival(now_s - node.joined_s)
        self.replicas.ravel()[places] += sign
        for sums in (self.expected, self.near[node.zone]):
            sums.ravel()[places] = np.maximum(sums.ravel()[places] + chance, 0)


def simulate_placement(settings: PlacementSettings, policy: Policy, shape: Shape = V3) -> PlacementResult:
    """Let a swarm come together, then live for `hours`."""
    rng = random.Random(settings.seed)
    swarm = _Swarm(settings, policy, shape, rng, _popularity(settings.seed, shape))
    churn = _Churn(swarm)
    rarity, looks, num_first = Rarity(shape), _Looks(), swarm.num_joins
    num_looks = int(settings.hours * HOUR_S / LOOK_S)
    for number in range(num_looks):
        now_s = number * LOOK_S
        churn.advance(now_s)
        if number == num_looks // 2:
            churn.exodus(now_s)
        if number % AGES_EVERY == 0:
            swarm.count_ages(now_s)
        rarity.update(swarm.replicas, now_s)
        overdue = rarity.overdue(GRACE_S, now_s)
        if policy is Policy.HEAL and overdue.any():
            swarm.heal(overdue, now_s)
        looks.add(swarm.replicas)
    return _result(swarm, looks, num_first)


class _Churn:
    """Who leaves when, and who comes in his place."""

    def __init__(self, swarm: _Swarm) -> None:
        self._swarm, self._rng = swarm, swarm.rng
        self._departures: list[tuple[float, int]] = []
        self._arrivals: list[tuple[float, int]] = []
        for place in range(swarm.settings.num_nodes):
            self._join(place, 0.0)

    def advance(self, now_s: float) -> None:
        """Everything that was to happen until now."""
        while self._departures and self._departures[0][0] <= now_s:
            _, place = heapq.heappop(self._departures)
            if place in self._swarm.nodes:
                self._swarm.leave(place, now_s)
                pause_s = self._rng.expovariate(1 / self._swarm.settings.rejoin_s)
                heapq.heappush(self._arrivals, (now_s + pause_s, place))
        while self._arrivals and self._arrivals[0][0] <= now_s:
            self._join(heapq.heappop(self._arrivals)[1], now_s)

    def exodus(self, now_s: float) -> None:
        """Some leave for good."""
        places = sorted(self._swarm.nodes)
        for place in self._rng.sample(places, int(self._swarm.settings.exodus * len(places))):
            self._swarm.leave(place, now_s)

    def _join(self, place: int, now_s: float) -> None:
        self._swarm.join(place, now_s)
        lifetime_s = self._rng.weibullvariate(LIFETIME_SCALE_S, LIFETIME_SHAPE)
        heapq.heappush(self._departures, (now_s + lifetime_s, place))


@dataclass(slots=True)
class _Looks:
    """Coverage over time."""

    covered: list[float] = field(default_factory=list)
    rare: list[float] = field(default_factory=list)

    def add(self, replicas: npt.NDArray[np.int32]) -> None:
        self.covered.append(float((replicas > 0).mean()))
        self.rare.append(float((replicas < TARGET_REPLICAS).mean()))


def _result(swarm: _Swarm, looks: _Looks, num_first: int) -> PlacementResult:
    settings, replicas = swarm.settings, swarm.replicas
    popular = swarm.popularity >= np.quantile(swarm.popularity, 0.9, axis=1, keepdims=True)
    return PlacementResult(
        policy=swarm.policy,
        num_nodes=len(swarm.nodes),
        mean_replicas=float(replicas.mean()),
        min_replicas=int(replicas.min()),
        median_replicas=float(np.median(replicas)),
        coverage_mean=float(np.mean(looks.covered)),
        coverage_least=min(looks.covered),
        complete_share=float(np.mean(np.asarray(looks.covered) == 1.0)),
        rare_share=float(np.mean(looks.rare)),
        popular_ratio=float(replicas[popular].mean() / max(replicas.mean(), 1e-9)),
        holders_per_layer=_holders_per_layer(swarm),
        joins_per_h=(swarm.num_joins - num_first) / settings.hours,
        moves_per_h=swarm.num_moves / settings.hours,
        least_after_giving_up=min(swarm.left_after_giving_up, default=None),
        decision_ms=1000 * swarm.decisions_s / max(swarm.num_decisions, 1),
    )


def _holders_per_layer(swarm: _Swarm) -> float:
    """Mean over some tokens, each in one layer; a token takes its experts from a few groups, by popularity."""
    rng = np.random.default_rng(swarm.settings.seed)
    masks = {node.peer: swarm.mask(node) for node in swarm.nodes.values()}
    counts = []
    for _ in range(NUM_TOKENS):
        layer = int(rng.integers(len(swarm.shape.layers)))
        needed = [ExpertId(expert) for expert in _token(rng, swarm.popularity[layer], swarm.shape)]
        held = {peer: frozenset(e for e in needed if mask[layer, e]) for peer, mask in masks.items()}
        held = {peer: experts for peer, experts in held.items() if experts}
        counts.append(len(choose_holders(needed, held, dict.fromkeys(held, 0.0)).shares))
    return float(np.mean(counts))


def _token(rng: np.random.Generator, popularity: Reals, shape: Shape) -> Sequence[int]:
    load = popularity.astype(np.float64).reshape(-1, shape.group_size)
    groups = rng.choice(len(load), GROUPS_PER_TOKEN, replace=False, p=load.sum(axis=1) / load.sum())
    experts = np.concatenate([np.arange(g * shape.group_size, (g + 1) * shape.group_size) for g in groups])
    chance = load.ravel()[experts]
    return [int(e) for e in rng.choice(experts, TOP_K, replace=False, p=chance / chance.sum())]


def _popularity(seed: int, shape: Shape) -> Reals:
    load = np.random.default_rng(seed).lognormal(0, POPULARITY_SIGMA, shape.size)
    return np.asarray(load / load.mean(axis=1, keepdims=True), np.float32)
