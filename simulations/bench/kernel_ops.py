"""What `shoal bench kernels` multiplies: an expert and the plain linears of DeepSeek-V3, ours and torch's of each.

Each side holds enough copies of its weights that none is in a cache when its turn comes, as in a node or a trunk.
torch's side is its fastest on a CPU: oneDNN with bf16 weights reordered at load. Knows no clock and no table.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import silu

from shoal.kernels.cpu import CpuKernels, Format, PackedMatrix, PackedSwiGLU
from shoal.kernels.formats import quantize_fp8_block
from shoal.kernels.int_groups import quantize_int4, quantize_int8
from shoal.kernels.mxfp4 import quantize_mxfp4
from shoal.simulations.bench.turns import Call

HIDDEN, INTER = 7168, 2048
"""DeepSeek-V3: `hidden_size`, `moe_intermediate_size`."""

EXPERT_ROTATED_BYTES = 900_000_000
"""Weights that calls of an expert rotate over: far above any L3."""

LINEAR_ROTATED_BYTES = 300_000_000
"""The same for linears, of which there are many: nine times the 32 MB of L3 that cores of one complex share."""


class Side(Protocol):
    """One library's weights of an operation."""

    size_bytes: int
    """Bytes of weights that a call reads."""

    def call_of(self, num_tokens: int) -> Call:
        """A call with `num_tokens` rows."""


class Op(Protocol):
    """An operation whose cost is measured."""

    @property
    def name(self) -> str: ...

    @property
    def macs_per_token(self) -> int: ...

    def ours(self, kernels: CpuKernels, weight_format: Format) -> Side: ...

    def torch_bf16(self) -> Side: ...


@dataclass(frozen=True, slots=True)
class ExpertOp:
    """A whole expert: gate, up, SwiGLU, down, weighted."""

    name: str = "expert"
    macs_per_token: int = 3 * HIDDEN * INTER

    def ours(self, kernels: CpuKernels, weight_format: Format) -> Side:
        return _OurExpert(kernels, weight_format)

    def torch_bf16(self) -> Side:
        return _TorchExpert()


@dataclass(frozen=True, slots=True)
class LinearOp:
    """A plain linear `[rows, columns]`."""

    name: str
    rows: int
    columns: int
    rotated_bytes: int = LINEAR_ROTATED_BYTES

    @property
    def macs_per_token(self) -> int:
        return self.rows * self.columns

    def ours(self, kernels: CpuKernels, weight_format: Format) -> Side:
        return _OurLinear(self, kernels, weight_format)

    def torch_bf16(self) -> Side:
        return _TorchLinear(self)


LINEARS = (
    LinearOp("q_b", 24576, 1536),
    LinearOp("o", HIDDEN, 16384),
    LinearOp("dense_gate", 18432, HIDDEN),
    LinearOp("shared_up", INTER, HIDDEN),
)
"""Plain linears of DeepSeek-V3's trunk: attention's two widest, the dense MLP's, the shared expert's (§A2)."""

OPS: Mapping[str, Op] = {op.name: op for op in (ExpertOp(), *LINEARS)}


class _OurExpert(Side):
    def __init__(self, kernels: CpuKernels, weight_format: Format) -> None:
        self._kernels = kernels
        stored = [(shape, _store(_random(*shape), weight_format)) for shape in _expert_shapes()]

        def packed() -> PackedSwiGLU:
            gate, up, down = (PackedMatrix(weight_format, *shape, *weight) for shape, weight in stored)
            return PackedSwiGLU(gate, up, down)

        self._experts = [packed()]
        self.size_bytes = self._experts[0].size_bytes
        self._experts += [packed() for _ in range(EXPERT_ROTATED_BYTES // self.size_bytes)]

    def call_of(self, num_tokens: int) -> Call:
        x = torch.randn(num_tokens, HIDDEN).bfloat16()
        row_idx, weights = torch.arange(num_tokens), torch.rand(num_tokens)

        def call(i: int) -> Tensor:
            experts = [self._experts[i % len(self._experts)]]
            return self._kernels.grouped_swiglu(experts, x, row_idx, (0, num_tokens), weights, is_rounded=True)

        return call


class _TorchExpert(Side):
    def __init__(self) -> None:
        plain = [_random(*shape).bfloat16() for shape in _expert_shapes()]
        self.size_bytes = sum(matrix.nbytes for matrix in plain)
        num_copies = EXPERT_ROTATED_BYTES // self.size_bytes + 1
        self._experts = [[reordered(matrix) for matrix in plain] for _ in range(num_copies)]

    def call_of(self, num_tokens: int) -> Call:
        x, weights = torch.randn(num_tokens, HIDDEN).bfloat16(), torch.rand(num_tokens, 1)

        def call(i: int) -> Tensor:
            gate, up, down = self._experts[i % len(self._experts)]
            with torch.no_grad():
                hidden = silu(onednn_linear(x, gate)) * onednn_linear(x, up)
                return onednn_linear(hidden, down).float() * weights

        return call


class _OurLinear(Side):
    def __init__(self, op: LinearOp, kernels: CpuKernels, weight_format: Format) -> None:
        self._kernels, self._columns, shape = kernels, op.columns, (op.rows, op.columns)
        stored = _store(_random(*shape), weight_format)
        self._matrices = [PackedMatrix(weight_format, *shape, *stored)]
        self.size_bytes = self._matrices[0].size_bytes
        num_more = op.rotated_bytes // self.size_bytes
        self._matrices += [PackedMatrix(weight_format, *shape, *stored) for _ in range(num_more)]

    def call_of(self, num_tokens: int) -> Call:
        x = torch.randn(num_tokens, self._columns).bfloat16()

        def call(i: int) -> Tensor:  # as the trunk does
            matrix = self._matrices[i % len(self._matrices)]
            return self._kernels.linear(matrix, x, is_rounded=True, dtype=torch.bfloat16)

        return call


class _TorchLinear(Side):
    def __init__(self, op: LinearOp) -> None:
        plain, self._columns = _random(op.rows, op.columns).bfloat16(), op.columns
        self.size_bytes = plain.nbytes
        self._matrices = [reordered(plain) for _ in range(op.rotated_bytes // self.size_bytes + 1)]

    def call_of(self, num_tokens: int) -> Call:
        x = torch.randn(num_tokens, self._columns).bfloat16()

        def call(i: int) -> Tensor:
            with torch.no_grad():
                return onednn_linear(x, self._matrices[i % len(self._matrices)])

        return call


def reordered(weight: Tensor) -> Tensor:
    """bf16[out, in] in oneDNN's own layout."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T in bf16 of a weight from `reordered`."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return result


def _expert_shapes() -> tuple[tuple[int, int], ...]:
    return (INTER, HIDDEN), (INTER, HIDDEN), (HIDDEN, INTER)


def _random(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) / math.sqrt(columns)


def _store(weight: Tensor, weight_format: Format) -> tuple[Tensor, Tensor | None]:
    match weight_format:
        case Format.FP8_BLOCK:
            return quantize_fp8_block(weight)
        case Format.BF16:
            return weight.bfloat16(), None
        case Format.F32:
            return weight, None
        case Format.MXFP4:
            data, scale = quantize_mxfp4(weight)
            return data, scale.view(torch.uint8)
        case Format.INT8_G128:
            return quantize_int8(weight)
        case _:
            return quantize_int4(weight, 32 if weight_format is Format.INT4_G32 else 128)
