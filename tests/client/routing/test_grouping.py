"""Grouping by expert and combining by holder lose nothing: any split over holders gives the same sum."""

import numpy as np
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
    row_idx, weights = torch.from_numpy(rows.row_idx), torch.from_numpy(rows.topk_weights)
    token_idx, local = torch.unique(row_idx, return_inverse=True)
    factor = torch.repeat_interleave(torch.tensor(rows.experts) + 1.0, torch.tensor(rows.num_rows))
    values = torch.zeros(len(token_idx), x.shape[1])
    values.index_add_(0, local, x[row_idx] * (factor * weights)[:, None])
    return PartialSum(rows.experts, token_idx.numpy(), values)


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
    partials = [PartialSum((ExpertId(i),), np.array([0]), value) for i, value in enumerate(values)]
    assert combine(partials, 1, 1).item() == combine(partials[::-1], 1, 1).item()


def test_experts_come_ascending_and_tokens_ascending_within_them() -> None:
    rows = group_by_expert(torch.tensor([[1, 4], [1, 2], [2, 4]]), torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]))
    assert rows.experts == (1, 2, 4)
    assert rows.offsets == (0, 2, 4, 6)
    assert rows.row_idx.tolist() == [0, 1, 1, 2, 0, 2]
    torch.testing.assert_close(torch.from_numpy(rows.topk_weights), torch.tensor([0.1, 0.3, 0.4, 0.5, 0.2, 0.6]))


@given(st.integers(1, 8), st.integers(0, 2**31))
def test_one_token_is_grouped_as_a_token_of_many_is(top_k: int, seed: int) -> None:
    topk_idx, topk_weights = routing(1, top_k, 8, seed)
    topk_idx = topk_idx.flip(1)
    alone = group_by_expert(topk_idx, topk_weights)
    twice = group_by_expert(topk_idx.repeat(2, 1), topk_weights.repeat(2, 1))
    assert alone.experts == twice.experts
    assert alone.offsets == tuple(offset // 2 for offset in twice.offsets)
    assert alone.topk_weights.tolist() == twice.topk_weights[::2].tolist()
    some = alone.select(alone.experts[::2])
    assert some.num_rows == (1,) * len(some.experts)
    assert some.topk_weights.tolist() == alone.topk_weights[::2].tolist()
    assert [each.tolist() for each in some.own_tokens(1)] == [[0], [0] * len(some.experts)]


def test_a_router_that_chooses_an_expert_twice_is_not_hidden() -> None:
    rows = group_by_expert(torch.tensor([[3, 1, 3]]), torch.tensor([[0.1, 0.2, 0.3]]))
    assert (rows.experts, rows.num_rows) == ((1, 3), (1, 2))
