"""Whether a swarm can answer now, and what it is busy with: one snapshot for health checks and screens.

Beside `swarm.py`, which takes it. Knows counts; knows no holders by name (`peers.py` does).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.client.engine.engine_load import EngineLoad
from shoal.protocol.ids import ExpertId, LayerId


@dataclass(frozen=True, slots=True)
class SwarmHealth:
    """A swarm at one moment."""

    num_experts: int
    """Routed experts of all layers together."""
    num_missing: int
    """Of them, without a usable holder."""
    first_missing: tuple[LayerId, ExpertId] | None
    min_replicas: int
    """Usable holders of the rarest expert."""
    num_holders: int
    """Holders that may be asked now."""
    load: EngineLoad

    @property
    def is_whole(self) -> bool:
        """Whether every expert has a usable holder: any token can be computed."""
        return self.num_missing == 0


def swarm_health(coverage: Mapping[LayerId, Mapping[ExpertId, int]], num_holders: int, load: EngineLoad) -> SwarmHealth:
    """Sum up. coverage: usable replicas of every expert, by layer."""
    counts = {(layer, expert): count for layer, experts in coverage.items() for expert, count in experts.items()}
    missing = [place for place, count in counts.items() if count == 0]
    return SwarmHealth(
        num_experts=len(counts),
        num_missing=len(missing),
        first_missing=missing[0] if missing else None,
        min_replicas=min(counts.values(), default=0),
        num_holders=num_holders,
        load=load,
    )
