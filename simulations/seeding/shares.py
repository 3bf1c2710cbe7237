"""Who is to hold what in a simulation of filling: replicas dealt out, evenly or by what machines' lines bear."""

import random
from collections.abc import Sequence

from shoal.node.holdings.assignment import Holding
from shoal.protocol.ids import ExpertId, LayerId

Place = tuple[LayerId, ExpertId]


def share_out(
    places: Sequence[Place], replicas: int, weights: Sequence[float], entropy: random.Random
) -> list[Holding]:
    """So many replicas of each expert, each to the machine that has the least for its weight and not this one yet."""
    taken: list[set[Place]] = [set() for _ in weights]
    for _ in range(replicas):
        for place in entropy.sample(list(places), len(places)):
            free = [number for number, has in enumerate(taken) if place not in has]
            taken[min(free, key=lambda number: (len(taken[number]) + 1) / weights[number])].add(place)
    return [_holding(each) for each in taken]


def _holding(places: set[Place]) -> Holding:
    holding: Holding = {}
    for layer, expert in sorted(places):
        holding[layer] = (*holding.get(layer, ()), expert)
    return holding
