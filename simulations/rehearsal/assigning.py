"""Two hundred volunteers with 8 GB each: what each of them chooses, what it would fetch, and what churn moves.

The choice is `node/holdings/placement.py`'s own, moves are `node/holdings/takeover.py`'s; churn is that of
`shoal simulate placement`. Knows who holds what; fetches nothing.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shoal.experts.safetensors_header import LENGTH_BYTES
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.placement import Mask, Shape, SwarmView, choose, look, survival
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.simulations.placement import PlacementResult, PlacementSettings, Policy, simulate_placement


@dataclass(frozen=True, slots=True)
class Costs:
    """What a fetch pays for: bytes over the wire."""

    expert_bytes: int
    fixed_bytes: int
    """Index, manifest, config: once for each fetch."""
    header_bytes: Mapping[str, int]
    """Of each file."""
    files_of: Mapping[tuple[LayerId, ExpertId], frozenset[str]]
    """(layer, expert) to the files that it is in."""

    def wire_bytes(self, holding: Holding) -> int:
        """Of a fetch of these experts."""
        wanted = [(layer, expert) for layer, experts in holding.items() for expert in experts]
        touched = frozenset[str]().union(*(self.files_of[place] for place in wanted))
        headers = sum(LENGTH_BYTES + self.header_bytes[file] for file in touched)
        return self.fixed_bytes + headers + len(wanted) * self.expert_bytes


@dataclass(frozen=True, slots=True)
class Assigned:
    """A swarm that came together, then lived for some hours."""

    num_nodes: int
    experts_per_node: int
    mean_choice_ms: float
    min_replicas: int
    """When the last has joined."""
    mean_replicas: float
    median_ratio: float
    """Bytes over the wire for each byte of experts, by node."""
    worst_ratio: float
    median_layers: float
    """Layers that a node holds experts of."""
    fetched_bytes: int
    """By all together."""
    hours: float
    churn: PlacementResult


def own_choice(shape: Shape, num_experts: int, peer: PeerId) -> Holding:
    """What the first node of a swarm chooses."""
    return shape.holding(choose(shape, look(shape, []), num_experts, peer))


def assign(shape: Shape, costs: Costs, num_nodes: int, share_bytes: int, hours: float) -> Assigned:
    """Let `num_nodes` join one after another, then come and go for `hours`."""
    room = share_bytes // costs.expert_bytes
    masks, taken_s = _join(shape, num_nodes, room)
    holdings = [shape.holding(mask) for mask in masks]
    wire = [costs.wire_bytes(holding) for holding in holdings]
    replicas = np.sum(masks, axis=0)
    settings = PlacementSettings(num_nodes, share_bytes, hours, expert_bytes=costs.expert_bytes, share_sigma=0.0)
    ratios = [size / (room * costs.expert_bytes) for size in wire]
    return Assigned(
        num_nodes=num_nodes,
        experts_per_node=room,
        mean_choice_ms=1000 * taken_s / num_nodes,
        min_replicas=int(replicas.min()),
        mean_replicas=float(replicas.mean()),
        median_ratio=statistics.median(ratios),
        worst_ratio=max(ratios),
        median_layers=statistics.median(len(holding) for holding in holdings),
        fetched_bytes=sum(wire),
        hours=hours,
        churn=simulate_placement(settings, Policy.HEAL, shape),
    )


def _join(shape: Shape, num_nodes: int, room: int) -> tuple[Sequence[Mask], float]:
    """What each chose, in order, and the seconds of all choices."""
    expected, masks, taken_s = shape.zeros(), list[Mask](), 0.0
    for number in range(num_nodes):
        view = SwarmView(expected, shape.zeros(), np.ones(shape.size, np.float32))
        begun_s = time.perf_counter()
        mask = choose(shape, view, room, PeerId(f"rehearsal node {number}"))
        taken_s += time.perf_counter() - begun_s
        expected = expected + mask.astype(np.float32) * survival(0.0)
        masks.append(mask)
    return masks, taken_s
