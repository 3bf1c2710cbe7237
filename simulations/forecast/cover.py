"""How often the client's greedy choice asks one holder too many: `python -m shoal.simulations.forecast.cover`.

Held against an exact search, for swarms whose nodes chose by themselves and for holdings that nobody's choice made
(docs/adr/0047). The client's own function, the nodes' own function, routes as the forecast draws them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from operator import or_

import numpy as np

from shoal.client.routing.choose import Held, choose
from shoal.experts.specs import GroupReduce, RouterSpec, Score
from shoal.protocol.ids import ExpertId, PeerId
from shoal.simulations.forecast.peers import Held as Places
from shoal.simulations.forecast.placement import Placement
from shoal.simulations.forecast.routing import Generator, draw_routes

NUM_LAYERS, NUM_TOKENS = 6, 150
"""Looked at, of each kind of swarm."""

SIZE_SPREAD = 0.8
"""Standard deviation of ln(memory) where nodes are unequal."""


@dataclass(frozen=True, slots=True)
class Covered:
    """Holders of a layer and token, on average over all that were looked at."""

    greedy: float
    fewest: float
    too_many_share: float
    """Layers and tokens in which greedy asked more than the fewest."""
    most_too_many: int


def fewest(needed: Sequence[ExpertId], held: Held) -> int:
    """As few holders as cover what is needed. Tries all; for few needed experts.

    Raises:
        ValueError: nobody holds one of them.
    """
    bits = {expert: 1 << place for place, expert in enumerate(needed)}
    masks = {sum(bits[expert] for expert in needed if expert in experts) for experts in held.values()}
    largest = [mask for mask in masks if not any(mask != other and mask & other == mask for other in masks)]
    for count in range(len(needed) + 1):
        if any(reduce(or_, chosen, 0) == sum(bits.values()) for chosen in combinations(largest, count)):
            return count
    raise ValueError("nobody holds one of the experts that are needed")


def compare(layers: Sequence[Held], router: RouterSpec, rng: Generator) -> Covered:
    """Greedy and fewest over some layers' holders."""
    routes, counts = draw_routes(router, len(layers), rng), list[tuple[int, int]]()
    for place, held in enumerate(layers):
        cost = {peer: 1 + order / 100 for order, peer in enumerate(held)}
        for row in routes.draw(place, NUM_TOKENS, rng):
            needed = sorted(ExpertId(int(expert)) for expert in row)
            counts.append((len(choose(needed, held, cost).shares), fewest(needed, held)))
    greedy, least = np.array(counts).T
    return Covered(
        float(greedy.mean()), float(least.mean()), float((greedy > least).mean()), int((greedy - least).max())
    )


def chosen_by_nodes(
    router: RouterSpec, num_layers: int, copies: float, num_nodes: int, spread: float, rng: Generator
) -> list[Held]:
    """What nodes hold that joined one after another, in some of the layers."""
    placement = Placement(router, num_layers)
    weights = rng.lognormal(0.0, spread, num_nodes) if spread else np.ones(num_nodes)
    rooms = [int(copies * num_layers * router.num_experts * weight / weights.sum()) for weight in weights]
    names = [PeerId(f"peer{number:03}") for number in range(num_nodes)]
    holdings = placement.fill(placement.nobody(), rooms, names, lambda what, done, total: None)
    step = max(1, num_layers // NUM_LAYERS)
    return [_layer(dict(zip(names, holdings, strict=True)), layer, router) for layer in range(0, num_layers, step)]


def _layer(holdings: Mapping[PeerId, Places], layer: int, router: RouterSpec) -> Held:
    first = layer * router.num_experts
    held = {
        peer: frozenset(ExpertId(int(each) - first) for each in experts if 0 <= each - first < router.num_experts)
        for peer, experts in holdings.items()
    }
    return {peer: experts for peer, experts in held.items() if experts}


def by_chance(router: RouterSpec, num_nodes: int, groups: int, singles: int, rng: Generator) -> list[Held]:
    """Layers in which nodes hold whole groups by chance and single experts beside. Made anew until all are held."""
    names, layers = [PeerId(f"peer{number:03}") for number in range(num_nodes)], list[Held]()
    while len(layers) < NUM_LAYERS:
        held = {name: _by_chance(router, groups, singles, rng) for name in names}
        if len(frozenset().union(*held.values())) == router.num_experts:
            layers.append(held)
    return layers


def _by_chance(router: RouterSpec, groups: int, singles: int, rng: Generator) -> frozenset[ExpertId]:
    size = router.num_experts // router.num_groups
    whole = rng.choice(router.num_groups, groups, replace=False)
    experts = {int(group) * size + place for group in whole for place in range(size)}
    return frozenset(map(ExpertId, experts | {int(each) for each in rng.choice(router.num_experts, singles)}))


def router_of(num_experts: int, top_k: int) -> RouterSpec:
    """DeepSeek-V3's router with eight groups, of which a token uses four."""
    return RouterSpec(Score.SIGMOID, True, num_experts, top_k, 8, 4, GroupReduce.TOP2_SUM, True, 1.0)


def main() -> None:
    """A table, the same on every machine."""
    rng, large, small = np.random.default_rng(0), router_of(256, 8), router_of(32, 4)
    kinds: dict[str, tuple[RouterSpec, list[Held]]] = {
        "DeepSeek-V3, 50 equal nodes, 2 copies": (large, chosen_by_nodes(large, 58, 2, 50, 0.0, rng)),
        "DeepSeek-V3, 200 unequal nodes, 3 copies": (large, chosen_by_nodes(large, 58, 3, 200, SIZE_SPREAD, rng)),
        "DeepSeek-V3, 12 nodes, 2 copies": (large, chosen_by_nodes(large, 58, 2, 12, 0.0, rng)),
        "the demonstration model, 4 nodes, 2 copies": (small, chosen_by_nodes(small, 4, 2, 4, 0.0, rng)),
        "the demonstration model, 6 unequal nodes, 3 copies": (small, chosen_by_nodes(small, 4, 3, 6, 0.4, rng)),
        "whole groups by chance, 20 nodes with 3": (large, by_chance(large, 20, 3, 0, rng)),
        "the same with 2 and 24 single experts, 30 nodes": (large, by_chance(large, 30, 2, 24, rng)),
        "single experts by chance, 40 nodes with 64": (large, by_chance(large, 40, 0, 64, rng)),
    }
    print("| who holds what | greedy | fewest | layers with too many | most too many |\n|---|---|---|---|---|")
    for name, (router, layers) in kinds.items():
        found = compare(layers, router, rng)
        share = f"{100 * found.too_many_share:.1f} %"
        print(f"| {name} | {found.greedy:.3f} | {found.fewest:.3f} | {share} | {found.most_too_many} |")


if __name__ == "__main__":
    main()
