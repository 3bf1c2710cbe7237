"""Ragged groups of rows as a list of tiles, made on the host: the grid of a launch is then one dense rectangle.

As vLLM's fused_moe (sorted token ids, one expert id per block) and DeepEP's offsets, but a tile names its pairs by
begin and end instead of padding the list. Knows rows and experts; knows no weights and no Triton.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

ALIGN_ITEMS = 4
"""Parts of the plan begin at multiples of 16 bytes, so that Triton compiles one program and not one per alignment."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call's programs work through: i32 tensors on the device, parts of one buffer that is copied there once."""

    row_idx: torch.Tensor
    """[P]: the row of each pair"""
    tile_expert: torch.Tensor
    """tile t computes the pairs tile_begin[t] .. tile_end[t] - 1, all of tile_expert[t]"""
    tile_begin: torch.Tensor
    tile_end: torch.Tensor
    first_pair: torch.Tensor
    """[T + 1]: row r's terms are those of the pairs pair_of_row[first_pair[r]:first_pair[r + 1]], in expert order"""
    pair_of_row: torch.Tensor

    @property
    def num_tiles(self) -> int:
        return len(self.tile_expert)


def make_plan(
    row_idx: torch.Tensor, offsets: Sequence[int], num_rows: int, tile_rows: int, device: torch.device
) -> Plan:
    """Plan a call of `num_rows` rows. row_idx: i64[P] on the host, grouped by expert at `offsets`."""
    parts = [row_idx, *cut_tiles(offsets, tile_rows), *pairs_of_rows(row_idx, num_rows)]
    sizes = [-(-len(part) // ALIGN_ITEMS) * ALIGN_ITEMS for part in parts]
    buffer = torch.zeros(sum(sizes), dtype=torch.int32)
    for part, room in zip(parts, torch.split(buffer, sizes), strict=True):
        room[: len(part)] = part
    on_device = torch.split(buffer.to(device), sizes)
    return Plan(*(room[: len(part)] for part, room in zip(parts, on_device, strict=True)))


def cut_tiles(offsets: Sequence[int], tile_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut each expert's pairs offsets[i]..offsets[i + 1] into tiles of at most `tile_rows`; empty groups get none.
    Returns expert, begin and end of each tile."""
    cuts = [
        (expert, begin, min(begin + tile_rows, offsets[expert + 1]))
        for expert in range(len(offsets) - 1)
        for begin in range(offsets[expert], offsets[expert + 1], tile_rows)
    ]
    expert, begin, end = torch.tensor(cuts, dtype=torch.int64).view(-1, 3).T
    return expert, begin, end


def pairs_of_rows(row_idx: torch.Tensor, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn `row_idx: i64[P]` around: for each row its pairs in pair order, which is expert order. Returns `first_pair`
    and `pair_of_row` as `Plan` has them."""
    first = torch.zeros(num_rows + 1, dtype=torch.int64)
    first[1:] = torch.bincount(row_idx, minlength=num_rows).cumsum(0)
    return first, torch.argsort(row_idx, stable=True)


def choose_tile_rows(offsets: Sequence[int]) -> int:
    """Rows of a tile: enough for the largest group, in steps that matrix units like; 16 is the least they take.

    Untuned: no GPU was at hand (docs/LOG.md).
    """
    largest = max((end - begin for begin, end in pairwise(offsets)), default=0)
    return next((rows for rows in (16, 32, 64) if largest <= rows), 64)
