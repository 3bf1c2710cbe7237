"""What a node should hold: a pure function of what a swarm has, in numpy, so that ten thousand nodes are no work.

Rarity first, in whole routing groups (a token uses at most `topk_groups` groups, so holders of whole groups bound the
fan-out of a layer, DESIGN §1); above the target number of replicas popularity and nearness decide. Ties fall to what
our zone lacks, then by `Layout`: groups of few layers where peers are far, of many where they are near. Knows no
directory, no clock and no randomness: equal inputs give equal choices. Arrays are [L, E]: layers by place, experts by
id.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from shoal.experts.family import ModelSpec
from shoal.node.holdings.assignment import Holding
from shoal.protocol.ids import ExpertId, LayerId, PeerId

Mask = npt.NDArray[np.bool_]
Reals = npt.NDArray[np.float32]
Levels = npt.NDArray[np.int64]

TARGET_REPLICAS = 2
"""Below this an expert counts as rare, whatever its popularity: the next death would be a gap."""

LIFETIME_SHAPE, LIFETIME_SCALE_S = 0.55, 86_400.0
"""Weibull lifetimes of volunteers' nodes, fitted to five curves of BitTorrent's Mainline DHT (pubky/pkarr-churn, MIT:
k 0.49-0.59, scale 20-25 h). k < 1: who has stayed long will stay longer."""

HORIZON_S = 3600.0
"""A holder counts as much as it is likely to be here in an hour."""

LEVELS_PER_REPLICA = 4
"""Steps of rarity: two groups within a quarter of a replica are equally rare."""

LAYER_SLACK = 1 / 8
"""Above the target, groups of one layer are taken together if they are so much less rare than the rarest of them."""

POPULARITY_WEIGHT, LEAST_WEIGHT, MOST_WEIGHT = 0.5, 0.5, 2.0
"""Half of a group's load above the mean asks for replicas, within bounds: DeepSeek-V3's groups carry 1.3 to 3.5 times
their share, and availability outweighs load."""

LAYERS_AT_ONCE = 20
"""Spread over many layers, the nodes of a named zone still begin with the same so many: a zone that has no room for the
whole model then has whole layers of it (docs/adr/0044: three rooms 20 ms apart, 1.65 tokens/s instead of 0.98)."""

LEAST_PARTS = 4
"""A layer in one group or two, as most models have them, is cut into so many parts for nodes that spread: as many
machines as one of DeepSeek's tokens asks."""


class Layout(Enum):
    """In which layers a node's groups lie where rarity leaves it free."""

    FEW_LAYERS = "few layers"
    """One holder has most of what a token asks of a layer: fewest answers, fewest round trips to wait for."""
    MANY_LAYERS = "many layers"
    """A token's groups lie on as many machines, which read their experts at the same time."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What placement must know of a model."""

    layers: tuple[LayerId, ...]
    num_experts: int
    group_size: int

    @classmethod
    def of(cls, spec: ModelSpec) -> "Shape":
        """The shape of a checkpoint's model."""
        return cls(spec.moe_layers, spec.router.num_experts, spec.router.num_experts // spec.router.num_groups)

    @property
    def size(self) -> tuple[int, int]:
        return len(self.layers), self.num_experts

    def by_group(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """[L, E] seen as [L, G, experts of a group]."""
        return values.reshape(len(self.layers), -1, self.group_size)

    def zeros(self) -> Reals:
        return np.zeros(self.size, np.float32)

    def mask(self, holding: Holding) -> Mask:
        """A holding as bool[L, E]; layers that the model lacks are left out."""
        found = np.zeros(self.size, np.bool_)
        for place, layer in enumerate(self.layers):
            found[place, list(holding.get(layer, ()))] = True
        return found

    def holding(self, mask: Mask) -> Holding:
        """bool[L, E] as a holding; layers without an expert are left out."""
        return {
            layer: tuple(ExpertId(int(e)) for e in np.flatnonzero(row))
            for layer, row in zip(self.layers, mask, strict=True)
            if row.any()
        }


@dataclass(frozen=True, slots=True)
class HolderFacts:
    """What the directory says of one holder in one layer."""

    layer: LayerId
    experts: frozenset[ExpertId]
    age_s: float
    """Since it began to hold; negative (clocks differ) counts as 0."""
    is_near: bool
    capacity_mmacs: int
    """0: not measured."""


@dataclass(frozen=True, slots=True, eq=False)
class SwarmView:
    """Who holds what, added up: f32[L, E] each."""

    expected: Reals
    """Holders, each as likely as it is to be here in an hour."""
    near: Reals
    """Those of our zone, each times what it offers relative to the median holder."""
    popularity: Reals
    """Load of each expert; 1 is the mean of its layer."""


def survival(age_s: float | Reals) -> Reals:
    """Probability that a holder of this age is here `HORIZON_S` later."""
    age = np.maximum(np.asarray(age_s, np.float64), 0.0)
    hazard = ((age + HORIZON_S) / LIFETIME_SCALE_S) ** LIFETIME_SHAPE - (age / LIFETIME_SCALE_S) ** LIFETIME_SHAPE
    return np.exp(-hazard).astype(np.float32)


def look(shape: Shape, holders: Sequence[HolderFacts], popularity: Reals | None = None) -> SwarmView:
    """Add up what is known. popularity: f32[L, E], None: all experts alike. Experts beyond the model are ignored."""
    expected, near = shape.zeros(), shape.zeros()
    places = {layer: place for place, layer in enumerate(shape.layers)}
    known = [holder.capacity_mmacs for holder in holders if holder.capacity_mmacs]
    median = float(np.median(known)) if known else 1.0
    chances = survival(np.asarray([holder.age_s for holder in holders], np.float32))
    for holder, chance in zip(holders, chances, strict=True):
        experts = [expert for expert in holder.experts if expert < shape.num_experts]
        if holder.layer not in places or not experts:
            continue
        expected[places[holder.layer], experts] += chance
        if holder.is_near:
            capacity = (holder.capacity_mmacs or median) / median
            near[places[holder.layer], experts] += chance * min(max(capacity, 0.25), 4.0)
    return SwarmView(expected, near, np.ones(shape.size, np.float32) if popularity is None else popularity)


@dataclass(frozen=True, slots=True)
class Around:
    """What a node knows of the network that it is in."""

    layout: Layout = Layout.FEW_LAYERS
    zone: str = ""
    """Our zone's name; empty: not said."""


FAR = Around()
"""Where nothing is known of it."""


def choose(
    shape: Shape, view: SwarmView, num_experts: int, peer: PeerId, allowed: Mask | None = None, around: Around = FAR
) -> Mask:
    """Choose up to `num_experts` of the `allowed` experts (None: all): whole groups, rarest first, then single experts.

    Returns bool[L, E]. A group of which a part is allowed is taken for that part.
    """
    free = np.ones(shape.size, np.bool_) if allowed is None else allowed
    ties = _ties(peer, len(shape.layers))
    if around.layout is Layout.MANY_LAYERS:
        shape = _cut(shape)
    levels = np.where(shape.by_group(free).any(axis=2), _with_their_layer(rarity(shape, view)), np.iinfo(np.int64).max)
    has_near = shape.by_group(view.near).min(axis=2) > 0
    if around.layout is Layout.MANY_LAYERS:
        order = _over_layers(levels, has_near, peer, around.zone)
    else:
        order = _layer_by_layer(levels, has_near, ties)
    chosen = _whole_groups(shape, num_experts, order, free)
    left = num_experts - int(chosen.sum())
    if left > 0:
        chosen |= _single_experts(shape, view, left, ties, free & ~chosen, chosen)
    return chosen


def _cut(shape: Shape) -> Shape:
    """The same with groups of which a layer has `LEAST_PARTS` and more."""
    sizes = range(max(1, shape.num_experts // LEAST_PARTS), 0, -1)
    return replace(shape, group_size=next(size for size in sizes if shape.group_size % size == 0))


def rarity(shape: Shape, view: SwarmView) -> Levels:
    """i64[L, G]: how much a group is wanted, the lower the more; below `TARGET_REPLICAS * LEVELS_PER_REPLICA` it is
    rare."""
    load = shape.by_group(view.popularity).mean(axis=2)
    return _levels(shape.by_group(view.expected).min(axis=2), shape.by_group(view.near).min(axis=2), load)


def _levels(expected: Reals, near: Reals, load: Reals) -> Levels:
    weight = np.clip(1 + POPULARITY_WEIGHT * (load - 1), LEAST_WEIGHT, MOST_WEIGHT)
    enough = LEVELS_PER_REPLICA * TARGET_REPLICAS
    below = np.floor(LEVELS_PER_REPLICA * expected)
    above = enough + np.floor(LEVELS_PER_REPLICA * near / weight)
    return np.where(expected + 1e-4 < TARGET_REPLICAS, np.minimum(below, enough - 1), above).astype(np.int64)


def _whole_groups(shape: Shape, num_experts: int, order: Levels, free: Mask) -> Mask:
    """As many groups as fit. order: i64[L * G], the most wanted first."""
    sizes = shape.by_group(free).sum(axis=2)
    wanted = sizes.ravel()[order]
    fitting = np.cumsum(wanted) <= num_experts  # the first that does not fit ends it: what is rarer comes first
    groups = np.zeros(sizes.size, np.bool_)
    groups[order[fitting & (wanted > 0)]] = True
    found: Mask = free & np.repeat(groups.reshape(sizes.shape), shape.group_size, axis=1)
    return found


def _layer_by_layer(levels: Levels, has_near: Mask, ties: Levels) -> Levels:
    """i64[L * G]: groups in the order in which a node takes them that stays in few layers. ties: i64[L]."""
    own = np.repeat(ties, levels.shape[1])
    return np.lexsort((np.arange(levels.size), own, has_near.ravel(), levels.ravel()))


def _over_layers(levels: Levels, has_near: Mask, peer: PeerId, zone: str) -> Levels:
    """The same for one that goes round the layers: a group of each, then a second of each."""
    num_layers, num_groups = levels.shape
    layers = np.repeat(np.arange(num_layers), num_groups)
    ties = _ties(peer, levels.size)
    together = np.zeros(num_layers, np.int64)
    if zone:
        together[np.argsort(_ties(zone, num_layers))] = np.arange(num_layers) // LAYERS_AT_ONCE
    wish = (together[layers], has_near.ravel(), levels.ravel())
    return np.lexsort((ties, _turns((layers, *wish), ties), *wish))


def _turns(keys: tuple[npt.NDArray[np.generic], ...], ties: Levels) -> Levels:
    """i64[N]: how many with equal keys come before each, by `ties`."""
    order = np.lexsort((ties, *keys))
    is_first = np.ones(len(ties), np.bool_)
    is_first[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
    places = np.arange(len(ties))
    turns = np.empty(len(ties), np.int64)
    turns[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return turns


def _with_their_layer(levels: Levels) -> Levels:
    """Groups that are nearly as much wanted as the most wanted one of their layer are wanted as much as that."""
    best = levels.min(axis=1, keepdims=True)
    enough = LEVELS_PER_REPLICA * TARGET_REPLICAS
    slack = np.where(best < enough, 0, (LAYER_SLACK * best).astype(np.int64))
    return np.where(levels <= best + slack, best, levels)


def _single_experts(shape: Shape, view: SwarmView, num_experts: int, ties: Levels, free: Mask, chosen: Mask) -> Mask:
    """What is left of a node takes the experts that are most wanted by themselves, of its own layers where it can."""
    levels = _levels(view.expected, view.near, view.popularity)
    levels = np.where(free, levels, np.iinfo(np.int64).max)
    is_foreign = np.repeat(~chosen.any(axis=1), shape.num_experts)
    order = np.lexsort((np.arange(levels.size), np.repeat(ties, shape.num_experts), is_foreign, levels.ravel()))
    found = np.zeros(levels.size, np.bool_)
    found[order[:num_experts]] = True
    return found.reshape(shape.size) & free


def _ties(name: str, count: int) -> Levels:
    """Numbers whose order is each name's own."""
    digest = blake3(name.encode()).digest(8 * count)
    return (np.frombuffer(digest, "<u8") >> 1).astype(np.int64)


def count_replicas(shape: Shape, holdings: Iterable[tuple[LayerId, Iterable[ExpertId]]]) -> npt.NDArray[np.int32]:
    """i32[L, E]: holders of each expert. Layers and experts beyond the model are ignored."""
    counts = np.zeros(shape.size, np.int32)
    places = {layer: place for place, layer in enumerate(shape.layers)}
    for layer, experts in holdings:
        if layer in places:
            counts[places[layer], [expert for expert in experts if expert < shape.num_experts]] += 1
    return counts
