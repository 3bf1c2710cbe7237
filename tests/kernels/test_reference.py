"""The reference kernel against transformers' expert module, fp64, and itself split over holders."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

from shoal.kernels import formats
from shoal.kernels.reference import SwiGLU, grouped_swiglu

HIDDEN, INTER, NUM_EXPERTS, TOP_K = 72, 40, 8, 3


def _experts(seed: int = 0, hidden: int = HIDDEN, inter: int = INTER) -> list[SwiGLU]:
    generator = torch.Generator().manual_seed(seed)

    def matrix(out_size: int, in_size: int) -> torch.Tensor:
        return torch.randn(out_size, in_size, generator=generator) * in_size**-0.5

    return [SwiGLU(matrix(inter, hidden), matrix(inter, hidden), matrix(hidden, inter)) for _ in range(NUM_EXPERTS)]


def _routing(num_tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_tokens, NUM_EXPERTS, generator=generator)
    weights, idx = scores.topk(TOP_K)
    return idx, weights


def _group(
    topk_idx: torch.Tensor, topk_weights: torch.Tensor, experts: list[int]
) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """row_idx, offsets and weights of the pairs that go to `experts`."""
    rows, offsets, weights = [torch.zeros(0, dtype=torch.int64)], [0], [torch.zeros(0)]
    for expert in experts:
        row, position = torch.where(topk_idx == expert)
        rows.append(row)
        weights.append(topk_weights[row, position])
        offsets.append(offsets[-1] + len(row))
    return torch.cat(rows), offsets, torch.cat(weights)


def _run(experts: list[SwiGLU], chosen: list[int], x: torch.Tensor, seed: int, *, is_rounded: bool) -> torch.Tensor:
    row_idx, offsets, weights = _group(*_routing(len(x), seed), chosen)
    return grouped_swiglu([experts[i] for i in chosen], x, row_idx, offsets, weights, is_rounded=is_rounded)


def _relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def test_fp32_equals_transformers_expert_module() -> None:
    config = DeepseekV3Config(hidden_size=HIDDEN, moe_intermediate_size=INTER, n_routed_experts=NUM_EXPERTS)
    module = DeepseekV3Experts(config)
    experts, x = _experts(), torch.randn(17, HIDDEN)
    with torch.no_grad():
        for i, expert in enumerate(experts):
            module.gate_up_proj[i] = torch.cat([expert.gate, expert.up])
            module.down_proj[i] = expert.down
        theirs = module(x, *_routing(17, seed=1))
    assert _relative(_run(experts, list(range(NUM_EXPERTS)), x, 1, is_rounded=False), theirs) <= 1e-6


@given(num_tokens=st.integers(1, 40), cut=st.integers(0, NUM_EXPERTS), seed=st.integers(0, 999), rounded=st.booleans())
def test_a_split_over_two_holders_changes_only_the_order_of_the_sum(
    num_tokens: int, cut: int, seed: int, rounded: bool
) -> None:
    experts, x = _experts(seed), torch.randn(num_tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))
    whole = _run(experts, list(range(NUM_EXPERTS)), x, seed, is_rounded=rounded)
    left = _run(experts, list(range(cut)), x, seed, is_rounded=rounded)
    right = _run(experts, list(range(cut, NUM_EXPERTS)), x, seed, is_rounded=rounded)
    assert _relative(left + right, whole) <= 1e-6


def test_a_row_has_the_same_answer_whoever_shares_its_batch() -> None:
    experts, x = _experts(), torch.randn(9, HIDDEN)
    whole = _run(experts, list(range(NUM_EXPERTS)), x, 3, is_rounded=False)
    topk_idx, weights = _routing(9, 3)
    for row in range(9):
        pairs = _group(topk_idx[row : row + 1], weights[row : row + 1], list(range(NUM_EXPERTS)))
        alone = grouped_swiglu(experts, x[row : row + 1], *pairs, is_rounded=False)
        assert _relative(alone, whole[row : row + 1]) <= 1e-6


@pytest.mark.parametrize(("hidden", "inter"), [(72, 40), (256, 128), (1024, 300)])
def test_rounding_1_stays_within_half_a_percent_of_fp64_on_the_same_weights(hidden: int, inter: int) -> None:
    plain = _experts(5, hidden, inter)[0]
    gate, up, down = (formats.dequantize_fp8_block(*formats.quantize_fp8_block(w)) for w in plain.matrices)
    expert = SwiGLU(gate, up, down)
    x = torch.randn(32, hidden).bfloat16()
    ones, rows = torch.ones(32), torch.arange(32)
    rounded = grouped_swiglu([expert], x, rows, [0, 32], ones, is_rounded=True)
    gate, up, down = (w.double() for w in expert.matrices)
    exact = torch.nn.functional.linear(torch.nn.functional.silu(x.double() @ gate.T) * (x.double() @ up.T), down)
    assert _relative(rounded, exact) <= 5e-3
    assert _relative(rounded, exact) > 1e-4, "rounding 1 rounds"


def test_in_rounding_1_the_answer_does_not_depend_on_who_holds_what() -> None:
    """Terms of 8 bits add up exactly in 24, so any split gives the same sum; a rare last bit dies in the cast."""
    experts, x = _experts(9), torch.randn(400, HIDDEN, generator=torch.Generator().manual_seed(9))
    whole = _run(experts, list(range(NUM_EXPERTS)), x, 9, is_rounded=True)
    parts = [_run(experts, list(range(i, NUM_EXPERTS, 3)), x, 9, is_rounded=True) for i in range(3)]
    split = parts[0] + parts[1] + parts[2]
    assert float((split != whole).float().mean()) <= 1e-3
    assert torch.equal(split.bfloat16(), whole.bfloat16())


def test_rounding_1_is_bf16_gate_up_product_and_weighted_result() -> None:
    expert, x = _experts(7)[0], torch.randn(4, HIDDEN).bfloat16()
    y = grouped_swiglu([expert], x, torch.arange(4), [0, 4], torch.full((4,), 0.5), is_rounded=True)
    gate, up = (x.float() @ expert.gate.T).bfloat16().float(), (x.float() @ expert.up.T).bfloat16().float()
    product = (gate * torch.sigmoid(gate) * up).bfloat16().float()
    assert _relative(y, (0.5 * product @ expert.down.T).bfloat16().float()) <= 5e-4


def test_honest_replicas_in_rounding_1_differ_by_less_than_half_a_percent() -> None:
    # an honest replica: fp64 accumulation in another order, the same roundings
    experts, x = _experts(8, 512, 256), torch.randn(16, 512).bfloat16()
    ones, rows = torch.ones(16), torch.arange(16)
    for expert in experts:
        ours = grouped_swiglu([expert], x, rows, [0, 16], ones, is_rounded=True)
        gate = (x.double() @ expert.gate.double().T).bfloat16().double()
        up = (x.double() @ expert.up.double().T).bfloat16().double()
        theirs = (torch.nn.functional.silu(gate) * up).bfloat16().double() @ expert.down.double().T
        assert _relative(ours, theirs) <= 5e-3


def test_rows_that_no_pair_names_are_zero_and_empty_groups_are_skipped() -> None:
    experts, x = _experts(), torch.randn(5, HIDDEN)
    y = grouped_swiglu(experts[:3], x, torch.tensor([4, 1]), [0, 0, 2, 2], torch.ones(2), is_rounded=False)
    assert y[[0, 2, 3]].abs().max() == 0
    assert y[[1, 4]].abs().min() > 0
    nothing = grouped_swiglu([], x, torch.zeros(0, dtype=torch.int64), [0], torch.zeros(0), is_rounded=False)
    assert torch.equal(nothing, torch.zeros(5, HIDDEN))


def test_a_row_that_an_expert_gets_twice_counts_twice() -> None:
    experts, x = _experts(), torch.randn(2, HIDDEN)
    twice = grouped_swiglu(experts[:1], x, torch.tensor([1, 1]), [0, 2], torch.ones(2), is_rounded=False)
    once = grouped_swiglu(experts[:1], x, torch.tensor([1]), [0, 1], torch.tensor([2.0]), is_rounded=False)
    assert _relative(twice, once) <= 1e-6
