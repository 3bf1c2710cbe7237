"""Who holds what in a simulated swarm: every node in turn chooses with the real node's own function.

`node/holdings/placement.py` decides; here it is asked by ten thousand nodes, one after another. All nodes count as
likely to stay: the ages of its nodes are not what a scenario is about.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from shoal.experts.specs import RouterSpec
from shoal.node.holdings.placement import FAR, Around, Shape, SwarmView, choose
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

    def choose(
        self, counts: Counts, num_experts: int, peer: PeerId, near: Counts | None = None, around: Around = FAR
    ) -> Held:
        """What a node takes that joins now and has room for so many. near: replicas in its zone; None: all are near.
        Does not change the counts."""
        replicas = counts.astype(np.float32)
        view = SwarmView(replicas, replicas if near is None else near.astype(np.float32), self._popularity)
        return np.flatnonzero(choose(self._shape, view, num_experts, peer, around=around))

    def fill(
        self,
        counts: Counts,
        capacities: Sequence[int],
        peers: Sequence[PeerId],
        progress: Progress,
        around: Sequence[Around] | None = None,
    ) -> list[Held]:
        """Let nodes join one after another; `counts` is brought up to date. capacities: experts that fit, by node;
        around: by node, None: nothing is known."""
        holdings, zones = list[Held](), Zones(self.nobody())
        for place, (capacity, peer) in enumerate(zip(capacities, peers, strict=True)):
            its = FAR if around is None else around[place]
            held = self.choose(counts, capacity, peer, zones.near(its.zone), its)
            add(counts, held, 1)
            zones.add(its.zone, held, 1)
            holdings.append(held)
            progress("placement", len(holdings), len(capacities))
        return holdings


class Zones:
    """Replicas by zone."""

    def __init__(self, nobody: Counts) -> None:
        self._nobody = nobody
        self._counts: dict[str, Counts] = {}

    def near(self, zone: str) -> Counts:
        """Those of one."""
        return self._counts.get(zone, self._nobody)

    def add(self, zone: str, held: npt.NDArray[np.int64], sign: int) -> None:
        """Count a node that comes (1) or goes (-1)."""
        if zone not in self._counts:
            self._counts[zone] = self._nobody.copy()
        add(self._counts[zone], held, sign)


def add(counts: Counts, held: npt.NDArray[np.int64], sign: int) -> None:
    """Count a node that comes (1) or goes (-1)."""
    counts.ravel()[held] += sign
