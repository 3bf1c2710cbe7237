"""Several kernel calls to one layer as one, and its answer as several: rows of x one after another, grouped by expert.

Experts stay in ascending order and each row keeps its own terms in that order, so a row's sum is made of the same terms
in the same order with and without company. Numbers only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from shoal.protocol.tensors import Rows


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel call: `experts` of one layer, ascending; `rows` grouped by them."""

    layer: int
    rounding: int
    experts: tuple[int, ...]
    rows: Rows

    @property
    def num_tokens(self) -> int:
        """T, rows of x."""
        return self.rows.x.shape[0]

    @property
    def num_pairs(self) -> int:
        """P, (row, expert) pairs: what it costs."""
        return self.rows.offsets[-1]


def merge(calls: Sequence[Call]) -> Call:
    """One call that does the work of all; they have the same layer, rounding and dtype. The only one: itself."""
    if len(calls) == 1:
        return calls[0]
    experts, order, counts = _grouped(calls)
    firsts = _first_rows(calls)
    rows = Rows(
        x=torch.cat([call.rows.x for call in calls]),
        row_idx=torch.cat([call.rows.row_idx + first for call, first in zip(calls, firsts, strict=True)])[order],
        topk_weights=torch.cat([call.rows.topk_weights for call in calls])[order],
        offsets=(0, *torch.cumsum(counts, 0).tolist()),
    )
    return Call(calls[0].layer, calls[0].rounding, experts, rows)


def split(result: torch.Tensor, calls: Sequence[Call]) -> list[torch.Tensor]:
    """Each call's rows of the merged call's result: f32[T_i, H] of f32[ΣT, H]."""
    return list(torch.split(result, [call.num_tokens for call in calls]))


def _grouped(calls: Sequence[Call]) -> tuple[tuple[int, ...], torch.Tensor, torch.Tensor]:
    """All experts; the pairs' order by expert and, within one, by call; pairs of each expert."""
    ids = torch.tensor([expert for call in calls for expert in call.experts])
    num_rows = torch.tensor([end - start for call in calls for start, end in _ranges(call)])
    of_pair = torch.repeat_interleave(ids, num_rows)
    experts, counts = torch.unique(of_pair, sorted=True, return_counts=True)
    return tuple(experts.tolist()), torch.argsort(of_pair, stable=True), counts


def _ranges(call: Call) -> list[tuple[int, int]]:
    return list(pairwise(call.rows.offsets))


def _first_rows(calls: Sequence[Call]) -> list[int]:
    """Where each call's rows of x begin."""
    firsts = [0]
    for call in calls[:-1]:
        firsts.append(firsts[-1] + call.num_tokens)
    return firsts
