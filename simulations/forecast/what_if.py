"""The same swarm with one thing changed: what a change of ours, or one more machine, would bring."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shoal.client.routing.choose import Held, Plan
from shoal.node.holdings.placement import Layout
from shoal.protocol.ids import ExpertId, PeerId
from shoal.simulations.forecast.forecast import StreamsForecast, Swarm, Tally, forecast_streams
from shoal.simulations.forecast.peers import LayerView
from shoal.simulations.forecast.shape import BF16_BYTES


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A change and what it makes of the tokens per second in all."""

    change: str
    tokens_per_s: dict[int, float]
    """By streams."""


def spread(needed: Sequence[ExpertId], held: Held, cost: Mapping[PeerId, float]) -> Plan:
    """Most holders instead of fewest: every expert at the one that has least to do so far, the nearest among equals."""
    shares: dict[PeerId, list[ExpertId]] = {}
    uncovered: list[ExpertId] = []
    for expert in needed:
        able = [peer for peer, experts in held.items() if expert in experts]
        if able:
            best = min(able, key=lambda peer: (len(shares.get(peer, ())), cost[peer], peer))
            shares.setdefault(best, []).append(expert)
        else:
            uncovered.append(expert)
    return Plan({peer: tuple(experts) for peer, experts in shares.items()}, tuple(uncovered))


def what_ifs(
    swarm: Swarm,
    other: Layout,
    layers: Sequence[LayerView],
    baselines: Sequence[StreamsForecast],
    seed: int,
    tally: Tally,
) -> tuple[WhatIf, ...]:
    """Changes, for the numbers of streams of the baselines. other: the layout that nodes would not choose; layers: of a
    swarm whose nodes chose it all the same."""
    short = replace(swarm.model, sum_bytes=BF16_BYTES)
    changed = {
        "answers come back as bf16, not as fp32": replace(swarm, model=short),
        "a layer's experts are asked of as many holders as there are": replace(swarm, choose=spread),
        f"nodes hold groups of {other.value}": replace(swarm, layers=layers),
        "many holders are asked, and answer in bf16": replace(swarm, model=short, choose=spread),
    }
    counts = [each.streams for each in baselines]
    return tuple(
        WhatIf(change, {count: forecast_streams(other, count, seed, tally).tokens_per_s for count in counts})
        for change, other in changed.items()
    )
