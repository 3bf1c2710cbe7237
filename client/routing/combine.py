"""Weighted partial sums of the holders to the layer's routed output, in an order that no network can change.

After dispatch, before the next layer. Floating-point addition is not associative, so the sum runs by lowest expert id
and not by arrival: the same plan gives the same bits, whoever answered first (DESIGN §5).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from shoal.protocol.ids import ExpertId


@dataclass(frozen=True, slots=True)
class PartialSum:
    """One holder's answer. experts: ascending · token_idx: i64[N] into the layer's T tokens, ascending · values:
    f32[N, H]."""

    experts: tuple[ExpertId, ...]
    token_idx: npt.NDArray[np.int64]
    values: torch.Tensor


def combine(partials: Iterable[PartialSum], num_tokens: int, hidden: int) -> torch.Tensor:
    """Sum the answers of all holders of a layer: f32[T, H]. Every needed expert must be in exactly one of them."""
    total = torch.zeros(num_tokens, hidden)
    for partial in sorted(partials, key=lambda part: part.experts[0]):
        if len(partial.token_idx) == num_tokens:  # all of them, ascending
            total.add_(partial.values)
        else:
            total.index_add_(0, torch.from_numpy(partial.token_idx), partial.values)
    return total
