"""Weights in groups along a row: int8 and int4 with bf16 scales, mxfp4 with E8M0 scales, both ways.

The formats that the wire names but no published fp8 checkpoint has; `formats.py` has fp8. Numbers only.
Sources: OCP Microscaling Formats 1.0 (e2m1, E8M0); the integer formats are ours (docs/adr/0006): symmetric, no zero
points, a bf16 scale of 2 bytes a group.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import pad

from shoal.kernels.formats import decode_scale

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""The value of each mxfp4 code."""

SEARCH = tuple(0.5 + 0.025 * step for step in range(21))
"""Fractions of the scale that fits a group's largest value, of which the least squared error wins: clipping one outlier
makes the other values of a group finer."""

MX_GROUP = 32


class Quantized(NamedTuple):
    """int8: data int8[out, in]; 4 bits: uint8[out, ceil(in / 2)], low nibble first. scale: [out, ceil(in / group)]."""

    data: torch.Tensor
    scale: torch.Tensor


def quantize_integer(weight: torch.Tensor, *, bits: int, group: int) -> Quantized:
    """Store f32|bf16[out, in] as integers of `bits` (8 or 4) times a bf16 scale per row and `group` columns.

    The scale is the one of `SEARCH` with the least squared error. int8 uses -127..127, int4 -8..7.

    Raises:
        ValueError: not a finite matrix.
    """
    groups, columns = _in_groups(weight, group)
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    best_error = torch.full(groups.shape[:2], torch.inf)
    best_scale = torch.ones(groups.shape[:2])
    amax = groups.abs().amax(dim=2)
    for fraction in SEARCH:
        scale = torch.where(amax > 0, amax * (fraction / high), 1.0).bfloat16().float().clamp(min=2.0**-126)
        rounded = (groups / scale[..., None]).round().clamp(low, high) * scale[..., None]
        error = (rounded - groups).square().sum(dim=2)
        is_better = error < best_error
        best_error, best_scale = torch.where(is_better, error, best_error), torch.where(is_better, scale, best_scale)
    codes = (groups / best_scale[..., None]).round().clamp(low, high).to(torch.int8).flatten(1)[:, :columns]
    data = codes.contiguous() if bits == 8 else _join_nibbles(codes.view(torch.uint8) & 15)
    return Quantized(data, best_scale.bfloat16())


def dequantize_integer(quantized: Quantized, *, bits: int, group: int, columns: int) -> torch.Tensor:
    """W = data * scale in fp32, exactly. Returns f32[out, columns]."""
    codes = quantized.data if bits == 8 else _split_nibbles(quantized.data, columns)
    values = codes.float() if bits == 8 else ((codes.int() ^ 8) - 8).float()
    return values * quantized.scale.float().repeat_interleave(group, dim=1)[:, :columns]


def quantize_mxfp4(weight: torch.Tensor) -> Quantized:
    """Store f32|bf16[out, in] as e2m1 codes with a power of two per row and 32 columns.

    Of the two exponents that may hold a group's largest value, the one with the lesser squared error.

    Raises:
        ValueError: not a finite matrix.
    """
    groups, columns = _in_groups(weight, MX_GROUP)
    amax = groups.abs().amax(dim=2)
    exponent = torch.where(amax > 0, (amax / 6).log2().ceil(), 0.0).clamp(-126, 127)
    candidates = torch.stack([exponent, (exponent - 1).clamp(min=-126)])
    errors = [(_mxfp4_values(groups, e) - groups).square().sum(dim=2) for e in candidates]
    exponent = torch.where(errors[1] < errors[0], candidates[1], candidates[0])
    codes = _nearest_e2m1(groups / exponent.exp2()[..., None]).flatten(1)[:, :columns]
    return Quantized(_join_nibbles(codes), (exponent + 127).to(torch.uint8))


def dequantize_mxfp4(quantized: Quantized, *, columns: int) -> torch.Tensor:
    """W = data * scale in fp32, exactly. Returns f32[out, columns]."""
    values = E2M1[_split_nibbles(quantized.data, columns).long()]
    return values * decode_scale(quantized.scale).repeat_interleave(MX_GROUP, dim=1)[:, :columns]


def _in_groups(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, int]:
    """f32[out, groups, group], padded with zeros, and the number of columns."""
    if weight.ndim != 2 or not weight.isfinite().all():
        raise ValueError(f"a finite matrix is needed, not shape {tuple(weight.shape)} or values that are not finite")
    columns = weight.shape[1]
    padded = pad(weight.float(), (0, -columns % group))
    return padded.view(weight.shape[0], -1, group), columns


def _mxfp4_values(groups: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    scale = exponent.exp2()[..., None]
    return E2M1[_nearest_e2m1(groups / scale).long()] * scale


def _nearest_e2m1(values: torch.Tensor) -> torch.Tensor:
    """Codes of the nearest e2m1 numbers, saturating."""
    between = (E2M1[:7] + E2M1[1:8]) / 2
    codes = torch.bucketize(values.abs().contiguous(), between)
    return (codes + 8 * (values < 0)).to(torch.uint8)


def _join_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """uint8[out, in] of 0..15 to uint8[out, ceil(in / 2)]."""
    even = pad(codes, (0, codes.shape[1] % 2))
    return even[:, 0::2] | even[:, 1::2] << 4


def _split_nibbles(data: torch.Tensor, columns: int) -> torch.Tensor:
    return torch.stack([data & 15, data >> 4], dim=2).flatten(1)[:, :columns]
