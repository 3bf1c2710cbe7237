"""Grouping by expert and combining by holder lose nothing: any split over holders gives the same sum."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.routing.combine import PartialSum, combine
from shoal.client.routing.grouping import ExpertRows, group_by_expert
from shoal.protocol.ids import ExpertId


def routing(num_tokens: int, top_k: int, num_experts: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    choices = [torch.randperm(num_experts, generator=generator)[:top_k].sort().values for _ in range(num_tokens)]
    return torch.stack(choices), torch.rand(num_tokens, top_k, generator=generator)


def partial_of(rows: ExpertRows, x: torch.Tensor) -> PartialSum:
    """A stand-in for an expert: expert e multiplies by e + 1."""
    token_idx, local = torch.unique(rows.row_idx, return_inverse=True)
    factor = torch.repeat_interleave(torch.tensor(rows.experts) + 1.0, torch.tensor(rows.num_rows))
    values = torch.zeros(len(token_idx), x.shape[1])
    values.index_add_(0, local, x[rows.row_idx] * (factor * rows.topk_weights)[:, None])
    return PartialSum(rows.experts, token_idx, values)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31), st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_any_split_over_holders_gives_the_dense_sum(num_tokens: int, top_k: int, seed: int, holder: list[int]) -> None:
    topk_idx, topk_weights = routing(num_tokens, top_k, 8, seed)
    x = torch.randn(num_tokens, 5, generator=torch.Generator().manual_seed(seed))
    rows = group_by_expert(topk_idx, topk_weights)
    shares = {h: tuple(expert for expert in rows.experts if holder[expert] == h) for h in range(4)}
    partials = [partial_of(rows.select(share), x) for share in shares.values() if share]
    dense = ((topk_idx + 1.0) * topk_weights).sum(dim=1, keepdim=True) * x
    torch.testing.assert_close(combine(reversed(partials), num_tokens, 5), dense)


def test_the_sum_does_not_depend_on_who_answered_first() -> None:
    values = [torch.tensor([[1e8]]), torch.tensor([[1.0]]), torch.tensor([[-1e8]])]
    partials = [PartialSum((ExpertId(i),), torch.tensor([0]), value) for i, value in enumerate(values)]
    assert combine(partials, 1, 1).item() == combine(partials[::-1], 1, 1).item()


def test_experts_come_ascending_and_tokens_ascending_within_them() -> None:
    rows = group_by_expert(torch.tensor([[1, 4], [1, 2], [2, 4]]), torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]))
    assert rows.experts == (1, 2, 4)
    assert rows.offsets == (0, 2, 4, 6)
    assert rows.row_idx.tolist() == [0, 1, 1, 2, 0, 2]
    torch.testing.assert_close(rows.topk_weights, torch.tensor([0.1, 0.3, 0.4, 0.5, 0.2, 0.6]))
