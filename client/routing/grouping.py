"""The router's choice turned round: from experts per token to tokens per expert, and cut by holder.

After the router, before dispatch. Knows tensors and expert ids; no holders, no wire.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shoal.protocol.ids import ExpertId


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """(token, expert) pairs of one layer, grouped by expert.

    experts: ascending · offsets: pairs of experts[i] are offsets[i]:offsets[i + 1] · row_idx: i64[P] into the T tokens,
    ascending within an expert · topk_weights: f32[P].
    """

    experts: tuple[ExpertId, ...]
    offsets: tuple[int, ...]
    row_idx: torch.Tensor
    topk_weights: torch.Tensor

    @property
    def num_rows(self) -> tuple[int, ...]:
        return tuple(end - start for start, end in zip(self.offsets, self.offsets[1:], strict=False))

    def select(self, experts: Sequence[ExpertId]) -> "ExpertRows":
        """The pairs of some of the experts; `experts` ascending and all present."""
        if tuple(experts) == self.experts:
            return self
        place = {expert: i for i, expert in enumerate(self.experts)}
        spans = [(self.offsets[place[expert]], self.offsets[place[expert] + 1]) for expert in experts]
        pairs = torch.cat([torch.arange(start, end) for start, end in spans])
        offsets = [0]
        for start, end in spans:
            offsets.append(offsets[-1] + end - start)
        return ExpertRows(tuple(experts), tuple(offsets), self.row_idx[pairs], self.topk_weights[pairs])


def group_by_expert(topk_idx: torch.Tensor, topk_weights: torch.Tensor) -> ExpertRows:
    """Group the router's choice. topk_idx: i64[T, K]; topk_weights: f32[T, K]."""
    top_k = topk_idx.shape[1]
    order = torch.argsort(topk_idx.reshape(-1), stable=True)  # [P], tokens ascending within an expert
    experts, counts = torch.unique_consecutive(topk_idx.reshape(-1)[order], return_counts=True)
    offsets = [0, *torch.cumsum(counts, 0).tolist()]
    return ExpertRows(
        tuple(ExpertId(expert) for expert in experts.tolist()),
        tuple(offsets),
        order // top_k,
        topk_weights.reshape(-1)[order],
    )
