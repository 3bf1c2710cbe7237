"""MLA's absorbed maps in packed formats: `kv_b_proj` taken apart by heads, its keys' part turned round.

Attention multiplies each head's query with that head's keys' rows (`nope x rank`, from the left) and its latents with
the values' rows (`v x rank`). The kernels compute x W^T, so the keys' part is stored transposed: that costs no memory
and, where blocks of fp8 are not cut by it, no accuracy. The maps of all heads lie in one matrix (`PackedHeadMaps`), for
DeepSeek-V3 16.8 MB a layer in fp8, what `kv_b_proj` itself takes, where dense bf16 maps take twice that. Knows shapes
only; used once per layer, when a model is opened.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import pad

from shoal.client.trunk.linear import HeadMaps, PackedHeadMaps
from shoal.experts.backend import QuantizedWeight
from shoal.experts.cpu_backend import pack_matrix
from shoal.experts.stored_weight import StoredWeight
from shoal.kernels.cpu import PANEL_ROWS, CpuKernels, Format
from shoal.kernels.formats import BLOCK, decode_scale
from shoal.protocol.messages import WeightFormat


@dataclass(frozen=True, slots=True)
class HeadSplit:
    """How the rows of `kv_b_proj` `[heads * (nope + v), rank]` belong to heads: each has its keys' first."""

    num_heads: int
    nope: int
    v: int
    rank: int

    @property
    def starts(self) -> range:
        """The first row of each head."""
        return range(0, self.num_heads * (self.nope + self.v), self.nope + self.v)


def packed_head_maps(
    kernels: CpuKernels, kv_b: StoredWeight, split: HeadSplit, wanted: WeightFormat
) -> tuple[HeadMaps, HeadMaps]:
    """Queries to the latent space `[heads, T, nope] -> [heads, T, rank]`, and latents to values `-> [heads, T, v]`.

    fp8 as published is cut without touching a number where no head's part begins or ends inside a block that it shares
    (every published model; heads of 128). Else such a weight is held as fp32 numbers, exactly, at four times the size.

    Raises:
        CheckpointError: a value that is not finite, or that `wanted` can not hold.
    """
    if wanted is kv_b.format is WeightFormat.FP8_BLOCK:
        if _is_cut_between_blocks(split):
            to_keys, to_values = _cut_fp8(kv_b, split)
            return _packed(kernels, kv_b, to_keys, split.rank), _packed(kernels, kv_b, to_values, split.v)
        wanted = WeightFormat.F32
    heads = kv_b.values().view(split.num_heads, split.nope + split.v, split.rank)
    return (
        _packed(kernels, kv_b, _quantized(kv_b, heads[:, : split.nope].mT, wanted), split.rank),
        _packed(kernels, kv_b, _quantized(kv_b, heads[:, split.nope :], wanted), split.v),
    )


def _packed(kernels: CpuKernels, origin: StoredWeight, stacked: StoredWeight, out_width: int) -> PackedHeadMaps:
    weight, (rows, columns) = QuantizedWeight(stacked.data, stacked.scale), stacked.shape
    matrix = pack_matrix(weight, Format(stacked.format), (rows, columns), origin.file, origin.name)
    return PackedHeadMaps(kernels, matrix, out_width)


def _quantized(origin: StoredWeight, maps: Tensor, wanted: WeightFormat) -> StoredWeight:
    """maps: f32[heads, out, in] below one another, each padded with zeros so that it shares no panel and no block."""
    step = BLOCK if wanted is WeightFormat.FP8_BLOCK else PANEL_ROWS
    stacked = pad(maps, (0, 0, 0, -maps.shape[1] % step)).flatten(0, 1)
    return StoredWeight(origin.name, origin.file, WeightFormat.F32, stacked).converted(wanted)


def _is_cut_between_blocks(split: HeadSplit) -> bool:
    """Whether each part of each head begins with a row of blocks or lies in one."""
    parts = [(start, split.nope) for start in split.starts] + [(start + split.nope, split.v) for start in split.starts]
    return all(first % BLOCK == 0 or first // BLOCK == (first + size - 1) // BLOCK for first, size in parts)


def _cut_fp8(kv_b: StoredWeight, split: HeadSplit) -> tuple[StoredWeight, StoredWeight]:
    """The parts of keys, transposed, and of values, with their own scales; no number changes."""

    def cut(offset: int, size: int, turn: Callable[[Tensor], Tensor]) -> StoredWeight:
        data, scales = [], []
        for first in (start + offset for start in split.starts):
            codes = turn(kv_b.data[first : first + size].view(torch.uint8))
            data.append(pad(codes, (0, 0, 0, -codes.shape[0] % BLOCK)))
            scales.append(turn(scale[first // BLOCK : ceil((first + size) / BLOCK)]))
        codes = torch.cat(data).view(torch.float8_e4m3fn)
        return StoredWeight(kv_b.name, kv_b.file, WeightFormat.FP8_BLOCK, codes, torch.cat(scales))

    scale = decode_scale(kv_b.scale) if kv_b.scale is not None else torch.ones(0)
    return cut(0, split.nope, lambda part: part.mT), cut(split.nope, split.v, lambda part: part)
