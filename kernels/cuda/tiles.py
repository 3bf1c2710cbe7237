"""Ragged groups of rows as a list of tiles, made on the host: the grid of a launch is then one dense rectangle.

As vLLM's fused_moe (sorted token ids, one expert id per block) and DeepEP's offsets, but a tile names its pairs by
begin and end instead of padding the list. Knows rows and experts; knows no weights and no Triton.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch


@dataclass(frozen=True, slots=True)
class Tiles:
    """i32 tensors on the device. Tile t computes pairs begin[t]..end[t] - 1, all of expert[t]."""

    expert: torch.Tensor
    begin: torch.Tensor
    end: torch.Tensor

    @property
    def num_tiles(self) -> int:
        return len(self.expert)


@dataclass(frozen=True, slots=True)
class RowPairs:
    """i32 tensors on the device. Row r's terms are those of pairs pair[first[r]]..pair[first[r + 1] - 1], ascending."""

    first: torch.Tensor
    pair: torch.Tensor


def make_tiles(offsets: Sequence[int], tile_rows: int, device: torch.device) -> Tiles:
    """Cut each expert's pairs offsets[i]..offsets[i + 1] into tiles of at most `tile_rows`; empty groups get none."""
    cuts = [
        (expert, begin, min(begin + tile_rows, offsets[expert + 1]))
        for expert in range(len(offsets) - 1)
        for begin in range(offsets[expert], offsets[expert + 1], tile_rows)
    ]
    columns = torch.tensor(cuts, dtype=torch.int32).view(-1, 3).T.contiguous().to(device)
    return Tiles(*columns.unbind())


def pairs_of_rows(row_idx: torch.Tensor, num_rows: int, device: torch.device) -> RowPairs:
    """Turn `row_idx: i64[P]` around: for each row its pairs in pair order, which is expert order."""
    pair = torch.argsort(row_idx, stable=True)
    first = torch.zeros(num_rows + 1, dtype=torch.int64)
    first[1:] = torch.bincount(row_idx, minlength=num_rows).cumsum(0)
    return RowPairs(first.int().to(device), pair.int().to(device))


def choose_tile_rows(offsets: Sequence[int]) -> int:
    """Rows of a tile: enough for the largest group, in steps that matrix units like; 16 is the least they take.

    Untuned: no GPU was at hand (docs/LOG.md).
    """
    largest = max((end - begin for begin, end in pairwise(offsets)), default=0)
    return next((rows for rows in (16, 32, 64) if largest <= rows), 64)
