"""The two sides of the kernel benchmark compute the same thing, each from copies of its own.

Run: pytest tests/simulations/test_bench_kernel_ops.py
"""

import pytest
import torch
from torch import Tensor

from shoal.kernels.cpu import CpuKernels, Format
from shoal.simulations.bench.kernel_ops import OPS, LinearOp
from shoal.simulations.bench.kernels import table

TINY = LinearOp("tiny", 128, 256, rotated_bytes=200_000)


@pytest.mark.parametrize(
    ("weight_format", "bound"),
    [(Format.BF16, 0.01), (Format.FP8_BLOCK, 0.06), (Format.INT8_G128, 0.02), (Format.INT4_G32, 0.15)],
)
def test_both_sides_of_a_linear_give_the_same_product(weight_format: Format, bound: float) -> None:
    results = list[Tensor]()
    for side in (TINY.ours(CpuKernels(1), weight_format), TINY.torch_bf16()):
        torch.manual_seed(1)  # both draw their rows when the call is made
        call = side.call_of(3)
        first, second = call(0), call(1)
        assert isinstance(first, Tensor)
        assert isinstance(second, Tensor)
        results.append(first)
        assert torch.equal(second, first)
        assert side.size_bytes >= 128 * 256 / 2
    ours, theirs = results
    assert ours.dtype is theirs.dtype is torch.bfloat16
    assert float((ours.float() - theirs.float()).norm() / theirs.float().norm()) <= bound


def test_linears_are_those_of_the_real_trunk() -> None:
    assert [(op.name, op.macs_per_token) for op in OPS.values()] == [
        ("expert", 3 * 7168 * 2048),
        ("q_b", 128 * 192 * 1536),
        ("o", 7168 * 128 * 128),
        ("dense_gate", 18432 * 7168),
        ("shared_up", 2048 * 7168),
    ]


def test_a_table_needs_a_result() -> None:
    with pytest.raises(TypeError, match="bench_kernels"):
        table({"rows": None})
