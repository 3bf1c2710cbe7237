"""How well a swarm holds a model, in the few figures that a person needs. Pure: replica counts in, facts out.

Between `Swarm.coverage()` and whoever shows it: the swarm screen, the line mode, `/ready`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from shoal.protocol.ids import ExpertId, LayerId

Coverage = Mapping[LayerId, Mapping[ExpertId, int]]
"""Usable replicas of every expert, by layer."""


@dataclass(frozen=True, slots=True)
class CoverageSummary:
    """A swarm's coverage in figures."""

    num_experts: int
    num_missing: int
    """Experts without any usable holder: the model can not answer while there is one."""
    num_single: int
    """Experts with exactly one: the next death may be a gap."""
    min_replicas: int
    mean_replicas: float
    worst_layer: LayerId | None
    """The layer with most missing experts, else most single ones, else fewest replicas. None: no layers."""

    @property
    def percent(self) -> float:
        """Experts with at least one holder, of all; rounded down to a tenth, so that 100.0 means all."""
        held = self.num_experts - self.num_missing
        return math.floor(1000 * held / self.num_experts) / 10 if self.num_experts else 0.0

    @property
    def is_complete(self) -> bool:
        return self.num_experts > 0 and self.num_missing == 0


@dataclass(frozen=True, slots=True)
class NextNode:
    """What one more node would mend first."""

    layer: LayerId
    size_bytes: int
    """Memory that it takes to hold the experts in question, as stored."""
    num_experts: int
    closes_gap: bool
    """True: experts nobody holds. False: a second holder for those that have one."""


def summarize(coverage: Coverage) -> CoverageSummary:
    """The figures of a swarm."""
    counts = [count for replicas in coverage.values() for count in replicas.values()]
    return CoverageSummary(
        num_experts=len(counts),
        num_missing=sum(count == 0 for count in counts),
        num_single=sum(count == 1 for count in counts),
        min_replicas=min(counts, default=0),
        mean_replicas=sum(counts) / len(counts) if counts else 0.0,
        worst_layer=min(coverage, key=lambda layer: _weakness(coverage[layer], layer), default=None),
    )


def next_node(coverage: Coverage, expert_bytes: int) -> NextNode | None:
    """The smallest contribution that mends the worst layer; None where every expert has two holders or more.

    expert_bytes: bytes of one expert as stored.
    """
    worst = summarize(coverage).worst_layer
    if worst is None:
        return None
    counts = list(coverage[worst].values())
    for replicas, closes_gap in ((0, True), (1, False)):
        needy = counts.count(replicas)
        if needy:
            return NextNode(worst, needy * expert_bytes, needy, closes_gap)
    return None


def _weakness(replicas: Mapping[ExpertId, int], layer: LayerId) -> tuple[int, int, int, int]:
    """Sorts the weakest layer first."""
    counts = list(replicas.values())
    return (-counts.count(0), -counts.count(1), sum(counts), layer)
