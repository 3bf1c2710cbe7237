"""Who holds what in a simulated swarm: every node in turn chooses with the real node's own function.

`node/holdings/placement.py` decides; here it is asked by ten thousand nodes, one after another. All nodes count as near
and as likely to stay: a scenario is one neighbourhood, and the ages of its nodes are not what it is about.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from shoal.experts.specs import RouterSpec
from shoal.node.holdings.placement import Shape, SwarmView, choose
from shoal.protocol.ids import LayerId, PeerId
from shoal.simulations.forecast.peers import Counts, Held

Progress = Callable[[str, int, int], None]
"""(what, done, in all)"""


class Placement:
    """A model's experts and how nodes choose among them."""

    def __init__(self, router: RouterSpec, num_layers: int) -> None:
        layers = tuple(LayerId(layer) for layer in range(num_layers))
        self._shape = Shape(layers, router.num_experts, router.num_experts // router.num_groups)
        self._popularity = np.ones(self._shape.size, np.float32)

    def nobody(self) -> Counts:
        """Replicas of a swarm without nodes."""
        return np.zeros(self._shape.size, np.int64)

    def choose(self, counts: Counts, num_experts: int, peer: PeerId) -> Held:
        """What a node takes that joins now and has room for so many. Does not change the counts."""
        replicas = counts.astype(np.float32)
        mask = choose(self._shape, SwarmView(replicas, replicas, self._popularity), num_experts, peer)
        return np.flatnonzero(mask)

    def scatter(self, counts: Counts, num_experts: int, rng: np.random.Generator) -> Held:
        """Another rule, to compare with: rarest groups, ties by chance, so that a node's lie in many layers.

        `counts` is brought up to date.
        """
        size = self._shape.group_size
        rarity = self._shape.by_group(counts).min(axis=2).ravel()
        groups = np.argsort(rarity + rng.random(len(rarity)))[: -(-num_experts // size)]  # < 1: only ties are drawn
        held = (groups[:, None] * size + np.arange(size)).ravel()[:num_experts]
        add(counts, held, 1)
        return np.sort(held)

    def fill(
        self, counts: Counts, capacities: Sequence[int], peers: Sequence[PeerId], progress: Progress
    ) -> list[Held]:
        """Let nodes join one after another; `counts` is brought up to date. capacities: experts that fit, by node."""
        holdings = []
        for capacity, peer in zip(capacities, peers, strict=True):
            held = self.choose(counts, capacity, peer)
            add(counts, held, 1)
            holdings.append(held)
            progress("placement", len(holdings), len(capacities))
        return holdings


def add(counts: Counts, held: npt.NDArray[np.int64], sign: int) -> None:
    """Count a node that comes (1) or goes (-1)."""
    counts.ravel()[held] += sign
