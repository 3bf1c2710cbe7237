"""Which experts a token goes to, and how much each counts: `topk_idx` and `topk_weights`.

Stands after attention, before dispatch. Driven by `RouterSpec`, which is data of the model family; computed in fp32
whatever the trunk's dtype (DeepSeek-V3.2; model-and-kernels §A3). Knows no expert's whereabouts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from shoal.client.trunk.linear import Linear
from shoal.experts.family import GroupReduce, RouterSpec, Score


@dataclass(frozen=True, slots=True)
class Routing:
    """What the router chose for T tokens."""

    topk_idx: Tensor
    """i64[T, K], ascending in each row: the order in which experts are summed, everywhere."""
    topk_weights: Tensor
    """f32[T, K], normalized and scaled as the family wants."""


@dataclass(frozen=True, slots=True)
class Router:
    """One layer's router. choice_bias: f32[E] (`e_score_correction_bias`) or None."""

    spec: RouterSpec
    gate: Linear
    """f32[T, H] -> f32[T, E]"""
    choice_bias: Tensor | None

    def __call__(self, x: Tensor) -> Routing:
        """x: dtype[T, H] -> the experts of each token."""
        return route(self.gate(x.float()), self.choice_bias, self.spec)


def route(logits: Tensor, choice_bias: Tensor | None, spec: RouterSpec) -> Routing:
    """logits: f32[T, E] -> routing (DeepSeek-V3 `Gate`). The bias chooses and never weighs; ties: lowest expert id."""
    scores = _scores(logits, spec.score)  # [T, E]
    choice = scores if choice_bias is None else scores + choice_bias
    topk_idx = _largest(_within_best_groups(choice, spec), spec.top_k).sort(dim=-1).values  # [T, K]
    topk_weights = scores.gather(1, topk_idx)
    if spec.score is Score.SOFTMAX_OF_CHOSEN:
        topk_weights = topk_weights.softmax(dim=-1)
    if spec.is_renormalized:
        topk_weights = topk_weights / (topk_weights.sum(dim=-1, keepdim=True) + spec.epsilon)
    return Routing(topk_idx, topk_weights * spec.scale)


def _scores(logits: Tensor, score: Score) -> Tensor:
    match score:
        case Score.SIGMOID:
            return logits.sigmoid()
        case Score.SOFTMAX:
            return logits.softmax(dim=-1)
        case Score.SQRT_SOFTPLUS:
            return softplus(logits).sqrt()
        case Score.SOFTMAX_OF_CHOSEN:
            return logits


def _within_best_groups(choice: Tensor, spec: RouterSpec) -> Tensor:
    """-inf for the experts of all but the best `topk_groups` groups."""
    if spec.topk_groups == spec.num_groups:
        return choice
    groups = choice.view(len(choice), spec.num_groups, -1)  # [T, G, E/G]
    best = _largest(_group_scores(groups, spec.group_reduce), spec.topk_groups)  # [T, topk_groups]
    is_dropped = groups.new_ones(groups.shape[:2], dtype=torch.bool).scatter(1, best, False)
    return groups.masked_fill(is_dropped.unsqueeze(-1), float("-inf")).flatten(1)


def _group_scores(groups: Tensor, reduce: GroupReduce) -> Tensor:
    if reduce is GroupReduce.MAX:
        return groups.amax(dim=-1)
    return groups.topk(2, dim=-1).values.sum(dim=-1)


def _largest(values: Tensor, count: int) -> Tensor:
    """Indices of the largest values of each row; among equals the lowest index, which `topk` does not promise."""
    return values.sort(dim=-1, descending=True, stable=True).indices[:, :count]
