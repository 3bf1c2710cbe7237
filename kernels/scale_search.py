"""The scale of a group of weights that leaves the smallest squared error on a grid of integers.

A step of quantization, long before any token. Knows groups of numbers; knows no layouts and no files.

Why a search: `amax / 7` spends the grid of 15 steps on the group's one extreme. For 128 gaussian values the best scale
is about 0.8 of it; where the grid is -8..7 its sign matters too, because one extreme gets a step more than the other.

The same weights give the same scales on every machine and with any number of threads, because only elementwise IEEE
operations are used; squares are added in a fixed tree, not by `sum`, whose order depends on the vector width. So
csrc/quantize.inl gives these very bytes, 4 to 8 times as fast; 1 / scale is multiplied with here as it is there.
"""

from dataclasses import dataclass

import torch

from shoal.kernels.formats import is_finite

MAX_MAGNITUDE = 2.0**100
"""Larger weights are refused: nothing that was trained comes near, and products with scales stay finite."""

MIN_MAGNITUDE = 2.0**-100
"""Groups that stay below are stored as zeros: their scales would be subnormal or nearly so."""

CHUNK_VALUES = 1 << 18
"""Values that are searched at a time, 1 MiB of fp32: the candidates then run over a cache, not over memory."""

_BF16_SIGNIFICANT_BITS = 8


@dataclass(frozen=True, slots=True)
class Grid:
    """Integers `low`..`high` times a scale, and which scales are tried."""

    low: int
    high: int
    scale_bits: int
    """Significant bits of a scale, at most bf16's 8."""
    num_steps: int
    """Scales tried: the smallest that reaches the extreme of the group, and the next smaller ones of `scale_bits`."""
    is_signed: bool = False
    """Negative scales are tried too, so that either extreme can be the one that gets `low`."""


def quantize_groups(weight: torch.Tensor, group_size: int, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Every group of `group_size` columns on the grid with its best scale; the last group of a row may be ragged.

    weight: f32|bf16[out, in]. Returns codes: i8[out, in] and scales: f32[out, ceil(in / group_size)].

    Raises:
        ValueError: not a matrix, or values that are not finite or above MAX_MAGNITUDE.
    """
    check_weight(weight)
    groups = in_groups(weight, group_size)
    codes, scales = [], []
    for part in torch.split(groups, CHUNK_VALUES // group_size, dim=1):
        part = part.contiguous()
        scale = search_scale(part, grid)
        scales.append(scale)
        codes.append(to_grid(part, scale, grid))
    return as_matrix(torch.cat(codes, dim=1), *weight.shape), torch.cat(scales).view(weight.shape[0], -1)


def search_scale(groups: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Of the grid's scales, the one with the smallest sum of squared errors of each group; ties: the one tried first.

    groups: f32[G, N], one group a column, G a power of two. Returns f32[N]; 1 for groups of zeros.
    """
    amax = groups.abs().amax(dim=0)
    exponent = torch.frexp(amax)[1]
    unit = torch.ldexp(groups, -exponent)  # into [-1, 1], exactly: squares neither overflow nor vanish
    first = _ceil_code(unit.abs().amax(dim=0) / grid.high, grid)
    best_error = torch.full_like(amax, torch.inf)
    best = torch.ones_like(amax)
    for step in range(grid.num_steps):
        size = _from_code(first - step, grid)
        for scale in (size, -size) if grid.is_signed else (size,):
            error = _squared_error(unit, scale, grid)
            is_better = error < best_error
            best_error = torch.where(is_better, error, best_error)
            best = torch.where(is_better, scale, best)
    return torch.where(amax > 0, torch.ldexp(best, exponent), 1.0)


def to_grid(groups: torch.Tensor, scale: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The nearest multiples of the scales, ties to even. groups: f32[G, N] · scale: f32[N]. Returns i8[G, N]."""
    mantissa, exponent = torch.frexp(scale)
    unit = torch.ldexp(groups, -exponent)  # or 1 / scale might be subnormal where the scale is not
    return unit.mul_(mantissa.reciprocal_()).round_().clamp_(grid.low, grid.high).to(torch.int8)


def check_weight(weight: torch.Tensor) -> None:
    """Refuse what can not be quantized.

    Raises:
        ValueError: not a matrix, or a value that is not finite or above MAX_MAGNITUDE.
    """
    if weight.ndim != 2 or not weight.numel() or not is_finite(weight.float()):
        raise ValueError(f"a finite matrix is needed, not shape {tuple(weight.shape)} or values that are not finite")
    if float(weight.abs().max()) > MAX_MAGNITUDE:
        raise ValueError(f"a weight of {float(weight.abs().max()):g}, above {MAX_MAGNITUDE:g}")


def in_groups(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """A matrix as columns of groups, the last group of a row padded with zeros, groups below MIN_MAGNITUDE zeroed.

    weight: f32|bf16[out, in]. Returns f32[group_size, out * ceil(in / group_size)]. Transposed, so that everything that
    belongs to a group is one long vector operation.
    """
    padding = -weight.shape[1] % group_size
    padded = torch.nn.functional.pad(weight.float(), (0, padding))
    groups = padded.reshape(-1, group_size).T.contiguous()
    return torch.where(groups.abs().amax(dim=0) >= MIN_MAGNITUDE, groups, 0.0)


def as_matrix(codes: torch.Tensor, num_rows: int, num_columns: int) -> torch.Tensor:
    """The inverse of `in_groups`. codes: [group_size, groups]. Returns [num_rows, num_columns]."""
    return codes.T.reshape(num_rows, -1)[:, :num_columns].contiguous()


def significant_bits_at_most(scale: torch.Tensor, num_bits: int) -> bool:
    """Whether every scale has at most `num_bits` significant bits. scale: bf16[...]."""
    spare = _BF16_SIGNIFICANT_BITS - num_bits
    return not bool((scale.view(torch.int16) & ((1 << spare) - 1)).any())


def _squared_error(groups: torch.Tensor, scale: torch.Tensor, grid: Grid) -> torch.Tensor:
    rounded = (groups * scale.reciprocal()).round_().clamp_(grid.low, grid.high)
    squares = rounded.mul_(scale).sub_(groups).square_()
    while len(squares) > 1:
        half = len(squares) // 2
        squares = squares[:half] + squares[half:]
    return squares[0]


def _ceil_code(value: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The number, counted upwards from zero, of the smallest float of `scale_bits` that is at least `value` > 0."""
    shift = 24 - grid.scale_bits  # fp32 has 24 significant bits, and its bits count upwards as its values do
    return (value.view(torch.int32) + ((1 << shift) - 1)) >> shift


def _from_code(code: torch.Tensor, grid: Grid) -> torch.Tensor:
    return (code << (24 - grid.scale_bits)).view(torch.float32)
