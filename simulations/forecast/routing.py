"""Which experts tokens choose: random draws with the popularity and the group limits of a real DeepSeek router.

A layer's experts get an attraction that is the sum of two normal numbers, its group's and its own; a token adds Gumbel
noise to each, keeps the best groups by their top two, then takes its top k (the router of model-and-kernels §A3 with
noise for logits). The spreads are chosen so that choices come out as in twelve recordings of a DeepSeek-V3-class model
(sglang issue 6017, 58 layers each): see `tests/simulations/forecast/test_scenarios.py` and docs/SIMULATE.md.
"""

from collections.abc import Sequence

import numpy as np

from shoal.experts.specs import RouterSpec

Generator = np.random.Generator
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Choices = np.ndarray[tuple[int, int], np.dtype[np.int64]]
"""i64[T, K]: experts of each token."""

GROUP_SPREAD, EXPERT_SPREAD = 0.35, 0.5
"""Standard deviations of log attraction. Recorded: ln(load) of an expert 0.56 to 0.68, of a group 0.25 to 0.38; hottest
expert 5.2 to 5.8 times the mean, hottest group 1.5 to 2.0 times, the hottest tenth has 27 to 30 % of all choices."""


POOL = 512
"""Tokens whose choices are drawn for every layer; passes take theirs from them."""


class Routes:
    """What tokens choose in every MoE layer of a model."""

    def __init__(self, pools: Sequence[Choices]) -> None:
        """pools: tokens' choices for each MoE layer."""
        self._pools = pools

    def draw(self, layer: int, num_tokens: int, rng: Generator) -> Choices:
        """Experts of some tokens in one layer (counted among the MoE layers)."""
        pool = self._pools[layer]
        return pool[rng.integers(0, len(pool), num_tokens)]


def draw_routes(router: RouterSpec, num_layers: int, rng: Generator, pool: int = POOL) -> Routes:
    """Routes of a model of this kind; another seed is another model."""
    return Routes([_draw(router, pool, rng) for _ in range(num_layers)])


def _draw(router: RouterSpec, num_tokens: int, rng: Generator) -> Choices:
    size = router.num_experts // router.num_groups
    attraction = np.repeat(rng.normal(0.0, GROUP_SPREAD, router.num_groups), size)
    attraction = attraction + rng.normal(0.0, EXPERT_SPREAD, router.num_experts)
    scores = attraction + rng.gumbel(size=(num_tokens, router.num_experts))
    if router.topk_groups < router.num_groups:
        scores += np.repeat(_group_mask(scores, router), size, axis=1)
    return np.argpartition(-scores, router.top_k - 1, axis=1)[:, : router.top_k]


def _group_mask(scores: Floats, router: RouterSpec) -> Floats:
    """0 for the groups that a token may use, -inf for others: f64[T, G]."""
    grouped = scores.reshape(len(scores), router.num_groups, -1)
    best = -np.partition(-grouped, 1, axis=2)[:, :, :2].sum(axis=2)
    kept = np.argpartition(-best, router.topk_groups - 1, axis=1)[:, : router.topk_groups]
    mask = np.full(best.shape, -np.inf)
    np.put_along_axis(mask, kept, 0.0, axis=1)
    return mask
