"""Experts in every weight format, packed and dequantized, for the tests of the C++ kernels."""

from typing import NamedTuple

import torch

from shoal.kernels.activation import SILU, Activation
from shoal.kernels.cpu import Format, PackedMatrix, PackedSwiGLU
from shoal.kernels.formats import dequantize_fp8_block, quantize_fp8_block
from shoal.kernels.int_groups import dequantize_int4, dequantize_int8, quantize_int4, quantize_int8
from shoal.kernels.mxfp4 import dequantize_mxfp4, quantize_mxfp4
from shoal.kernels.reference import Biases, SwiGLU

INT4_GROUP = {Format.INT4_G32: 32, Format.INT4_G128: 128}


class Between(NamedTuple):
    """What stands between an expert's matrices."""

    activation: Activation = SILU
    has_biases: bool = False


class Stored(NamedTuple):
    """A weight in a format, and what it means in fp32."""

    data: torch.Tensor
    scale: torch.Tensor | None
    values: torch.Tensor


class Case(NamedTuple):
    """Arguments of a call, with the experts in both forms."""

    packed: list[PackedSwiGLU]
    plain: list[SwiGLU]
    x: torch.Tensor
    row_idx: torch.Tensor
    offsets: list[int]
    topk_weights: torch.Tensor


def store(weight: torch.Tensor, weight_format: Format) -> Stored:
    """Quantize a weight."""
    if weight_format is Format.FP8_BLOCK:
        data, scale = quantize_fp8_block(weight)
        return Stored(data, scale, dequantize_fp8_block(data, scale))
    if weight_format is Format.MXFP4:
        data, scale = quantize_mxfp4(weight)
        return Stored(data, scale.view(torch.uint8), dequantize_mxfp4(data, scale))
    if weight_format is Format.INT8_G128:
        data, scale = quantize_int8(weight)
        return Stored(data, scale, dequantize_int8(data, scale))
    if weight_format in INT4_GROUP:
        group = INT4_GROUP[weight_format]
        data, scale = quantize_int4(weight, group)
        return Stored(data, scale, dequantize_int4(data, scale, group))
    data = weight.bfloat16() if weight_format is Format.BF16 else weight
    return Stored(data, None, data.float())


def pack(stored: Stored, weight_format: Format) -> PackedMatrix:
    """As the back end does."""
    rows, columns = stored.values.shape
    return PackedMatrix(weight_format, rows, columns, stored.data, stored.scale)


def expert(
    weight_format: Format, hidden: int, inter: int, generator: torch.Generator, between: Between | None = None
) -> tuple[PackedSwiGLU, SwiGLU]:
    """One random expert."""
    activation, has_biases = between or Between()
    shapes = ((inter, hidden), (inter, hidden), (hidden, inter))
    stored = [store(torch.randn(shape, generator=generator) / shape[1] ** 0.5, weight_format) for shape in shapes]
    gate, up, down = (pack(weight, weight_format) for weight in stored)
    biases = Biases(*(torch.randn(shape[0], generator=generator) for shape in shapes)) if has_biases else None
    plain = [weight.values for weight in stored]
    return PackedSwiGLU(gate, up, down, activation, biases), SwiGLU(plain[0], plain[1], plain[2], activation, biases)


def case(
    weight_format: Format,
    hidden: int,
    inter: int,
    group_sizes: list[int],
    seed: int = 0,
    between: Between | None = None,
) -> Case:
    """Random experts, one for each group of rows."""
    generator = torch.Generator().manual_seed(seed)
    experts = [expert(weight_format, hidden, inter, generator, between) for _ in group_sizes]
    num_rows = max(group_sizes, default=0) + 1
    rows = [torch.randperm(num_rows, generator=generator)[:size] for size in group_sizes]
    row_idx = torch.cat([torch.empty(0, dtype=torch.int64), *rows])
    offsets = [0, *torch.tensor(group_sizes, dtype=torch.int64).cumsum(0).tolist()]
    x = torch.randn(num_rows, hidden, generator=generator)
    weights = torch.rand(len(row_idx), generator=generator)
    return Case([packed for packed, _ in experts], [plain for _, plain in experts], x, row_idx, offsets, weights)


def exact(of: Case) -> torch.Tensor:
    """The answer in fp64 on the dequantized weights, without any rounding."""
    y = torch.zeros(of.x.shape, dtype=torch.float64)
    for plain, begin, end in zip(of.plain, of.offsets, of.offsets[1:], strict=False):
        rows = of.row_idx[begin:end]
        y.index_add_(0, rows, exact_swiglu(plain, of.x[rows].double()) * of.topk_weights[begin:end, None].double())
    return y


def exact_swiglu(of: SwiGLU, x: torch.Tensor) -> torch.Tensor:
    """One expert in fp64, as the families' own code writes it. x: f64[N, H]."""
    gate, up = x @ of.gate.double().T, x @ of.up.double().T
    if of.biases:
        gate, up = gate + of.biases.gate.double(), up + of.biases.up.double()
    gate, up = gate.clamp(max=of.activation.limit), up.clamp(-of.activation.limit, of.activation.limit)
    h = gate * torch.sigmoid(of.activation.alpha * gate) * (up + of.activation.up_offset)
    down = h @ of.down.double().T
    return down + of.biases.down.double() if of.biases else down


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative L2."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
