"""The router chooses and weighs as the paper says, ties and all.

Run: pytest tests/client/trunk/test_router.py
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV4Config, GptOssConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4TopKRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

from shoal.client.trunk.linear import DenseLinear
from shoal.client.trunk.router import Router, Routing, route
from shoal.experts.family import GroupReduce, RouterSpec, Score

NUM_EXPERTS = 16
SPEC = RouterSpec(
    score=Score.SIGMOID,
    has_choice_bias=True,
    num_experts=NUM_EXPERTS,
    top_k=4,
    num_groups=4,
    topk_groups=2,
    group_reduce=GroupReduce.TOP2_SUM,
    is_renormalized=True,
    scale=2.5,
)

few_values = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0])
"""Few different ones, so that equal scores are the rule."""

specs = st.builds(
    lambda groups, kept, top_k, score, reduce, renorm: RouterSpec(
        score, True, NUM_EXPERTS, min(top_k, min(kept, groups) * NUM_EXPERTS // groups), groups, min(kept, groups),
        reduce, renorm, 2.5,
    ),
    groups=st.sampled_from([1, 2, 4, 8]),
    kept=st.integers(1, 8),
    top_k=st.integers(1, 8),
    score=st.sampled_from(Score),
    reduce=st.sampled_from(GroupReduce),
    renorm=st.booleans(),
)  # fmt: skip
rows = st.lists(few_values, min_size=NUM_EXPERTS, max_size=NUM_EXPERTS).map(torch.tensor)


SCORES = {
    Score.SIGMOID: torch.sigmoid,
    Score.SOFTMAX: lambda logits: logits.softmax(dim=-1),
    Score.SQRT_SOFTPLUS: lambda logits: torch.nn.functional.softplus(logits).sqrt(),
    Score.SOFTMAX_OF_CHOSEN: lambda logits: logits,
}


def scores_of(logits: Tensor, spec: RouterSpec) -> Tensor:
    return SCORES[spec.score](logits)


def chosen_by_hand(choice: Tensor, spec: RouterSpec) -> list[int]:
    """One token's experts, in plain Python."""
    size = spec.num_experts // spec.num_groups
    groups = [range(start, start + size) for start in range(0, spec.num_experts, size)]

    def group_score(group: range) -> float:
        best = sorted((choice[expert] for expert in group), reverse=True)
        return float(best[0] if spec.group_reduce is GroupReduce.MAX else sum(best[:2]))

    kept = sorted(groups, key=lambda group: (-group_score(group), group.start))[: spec.topk_groups]
    candidates = [expert for group in kept for expert in group]
    return sorted(sorted(candidates, key=lambda expert: (-float(choice[expert]), expert))[: spec.top_k])


@given(logits=rows, bias=rows, spec=specs)
def test_choice_is_the_best_experts_of_the_best_groups_and_ties_go_to_the_lowest_id(
    logits: Tensor, bias: Tensor, spec: RouterSpec
) -> None:
    routing = route(logits[None], bias, spec)
    assert routing.topk_idx[0].tolist() == chosen_by_hand(scores_of(logits, spec) + bias, spec)


@given(logits=rows, bias=rows, spec=specs)
def test_bias_never_weighs(logits: Tensor, bias: Tensor, spec: RouterSpec) -> None:
    routing = route(logits[None], bias, spec)
    weights = scores_of(logits, spec)[routing.topk_idx[0]]
    if spec.score is Score.SOFTMAX_OF_CHOSEN:
        weights = weights.softmax(dim=-1)
    if spec.is_renormalized:
        weights = weights / weights.sum()
    torch.testing.assert_close(routing.topk_weights[0], weights * spec.scale)


@given(logits=rows, bias=rows, spec=specs)
def test_a_token_touches_no_more_groups_than_allowed(logits: Tensor, bias: Tensor, spec: RouterSpec) -> None:
    topk_idx = route(logits[None], bias, spec).topk_idx[0]
    assert len(set((topk_idx // (spec.num_experts // spec.num_groups)).tolist())) <= spec.topk_groups
    assert topk_idx.tolist() == sorted(set(topk_idx.tolist()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_router_agrees_with_transformers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = DeepseekV3Config(hidden_size=32, n_routed_experts=16, n_group=4, topk_group=2, num_experts_per_tok=4)
    theirs = DeepseekV3TopkRouter(config).to(dtype)
    with torch.no_grad():
        theirs.weight.normal_()
        theirs.e_score_correction_bias.uniform_(-0.2, 0.2)
        x = torch.randn(50, 32).to(dtype)
        _, weights, experts = theirs(x)
    bias = theirs.e_score_correction_bias.float()
    ours = Router(SPEC, DenseLinear(theirs.weight.detach().float()), bias)(x)
    order = experts.argsort(dim=-1)
    assert torch.equal(ours.topk_idx, experts.gather(1, order))
    torch.testing.assert_close(ours.topk_weights, weights.gather(1, order).float())


def test_router_of_gpt_oss_agrees_with_transformers() -> None:
    torch.manual_seed(0)
    theirs = GptOssTopKRouter(GptOssConfig(hidden_size=32, num_local_experts=16, num_experts_per_tok=4))
    with torch.no_grad():
        theirs.weight.normal_()
        theirs.bias.normal_()
        x = torch.randn(50, 32)
        _, weights, experts = theirs(x)
        logits = torch.nn.functional.linear(x, theirs.weight, theirs.bias)
    spec = RouterSpec(Score.SOFTMAX_OF_CHOSEN, False, 16, 4, 1, 1, GroupReduce.TOP2_SUM, False, 1.0, 0.0)
    _agree(route(logits, None, spec), weights, experts)


def test_router_of_deepseek_v4_agrees_with_transformers() -> None:
    torch.manual_seed(0)
    theirs = DeepseekV4TopKRouter(DeepseekV4Config(hidden_size=32, n_routed_experts=16, num_experts_per_tok=4))
    with torch.no_grad():
        theirs.weight.normal_()
        theirs.e_score_correction_bias.uniform_(-0.2, 0.2)
        x = torch.randn(50, 32)
        _, weights, experts = theirs(x)
        logits = torch.nn.functional.linear(x, theirs.weight)
    spec = RouterSpec(Score.SQRT_SOFTPLUS, True, 16, 4, 1, 1, GroupReduce.TOP2_SUM, True, 1.5, 1e-20)
    _agree(route(logits, theirs.e_score_correction_bias, spec), weights, experts)


def _agree(ours: Routing, weights: Tensor, experts: Tensor) -> None:
    order = experts.argsort(dim=-1)
    assert torch.equal(ours.topk_idx, experts.gather(1, order))
    torch.testing.assert_close(ours.topk_weights, weights.gather(1, order))


def test_negative_scores_of_kept_groups_win_over_dropped_groups() -> None:
    """Older transformers masked dropped groups with 0, which beats a negative biased score."""
    bias = torch.full((NUM_EXPERTS,), -3.0)
    bias[:4] = -2.0
    routing = route(torch.zeros(1, NUM_EXPERTS), bias, SPEC)
    assert routing.topk_idx[0].tolist() == [0, 1, 2, 3]
