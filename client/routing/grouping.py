"""The router's choice turned round: from experts per token to tokens per expert, and cut by holder.

After the router, before dispatch. Knows arrays and expert ids; no holders, no wire.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import sub

import numpy as np
import numpy.typing as npt
import torch

from shoal.protocol.ids import ExpertId

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """(token, expert) pairs of one layer, grouped by expert.

    experts: ascending · offsets: pairs of experts[i] are offsets[i]:offsets[i + 1] · row_idx: i64[P] into the T tokens,
    ascending within an expert · topk_weights: f32[P].
    """

    experts: tuple[ExpertId, ...]
    offsets: tuple[int, ...]
    row_idx: Ints
    topk_weights: Floats

    @property
    def num_rows(self) -> tuple[int, ...]:
        offsets = self.offsets
        return tuple(map(sub, offsets[1:], offsets))

    @property
    def num_pairs(self) -> int:
        """P."""
        return self.offsets[-1]

    def select(self, experts: Sequence[ExpertId]) -> "ExpertRows":
        """The pairs of some of the experts; `experts` ascending and all present."""
        chosen = tuple(experts)
        if chosen == self.experts:
            return self
        place = {expert: i for i, expert in enumerate(self.experts)}
        places = [place[expert] for expert in chosen]
        if len(self.experts) == self.num_pairs:  # one pair each: decoding
            return ExpertRows(
                chosen, tuple(range(len(chosen) + 1)), self.row_idx.take(places), self.topk_weights.take(places)
            )
        spans = [(self.offsets[i], self.offsets[i + 1]) for i in places]
        return ExpertRows(
            chosen,
            tuple(accumulate((end - start for start, end in spans), initial=0)),
            np.concatenate([self.row_idx[start:end] for start, end in spans]),
            np.concatenate([self.topk_weights[start:end] for start, end in spans]),
        )

    def own_tokens(self, num_tokens: int) -> tuple[Ints, Ints]:
        """The tokens that occur, ascending, and `row_idx` into those: i64[N], i64[P]. num_tokens: T."""
        if num_tokens == 1:
            return self.row_idx[:1], self.row_idx
        occurs = np.zeros(num_tokens, dtype=np.bool_)
        occurs[self.row_idx] = True
        return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[self.row_idx]


def group_by_expert(topk_idx: torch.Tensor, topk_weights: torch.Tensor) -> ExpertRows:
    """Group the router's choice. topk_idx: i64[T, K]; topk_weights: f32[T, K].

    Of one token in plain Python, of more in numpy: in a process that has just been woken each operation of numpy takes
    5 us for one token's eight pairs, and each of torch more.
    """
    num_tokens, top_k = topk_idx.shape
    weights: Floats = topk_weights.numpy().reshape(-1)
    if num_tokens == 1:
        chosen: list[ExpertId] = topk_idx.tolist()[0]
        if len(set(chosen)) == top_k:
            of_one = sorted(range(top_k), key=chosen.__getitem__)
            experts = tuple(chosen[i] for i in of_one)
            return ExpertRows(experts, tuple(range(top_k + 1)), np.zeros(top_k, np.int64), weights.take(of_one))
    flat = topk_idx.numpy().reshape(-1)
    order = flat.argsort(kind="stable")  # [P], tokens ascending within an expert
    ordered = flat[order]
    starts = [0, *(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist()]
    return ExpertRows(
        tuple(ExpertId(expert) for expert in ordered[starts].tolist()),
        (*starts, len(ordered)),
        order // top_k,
        weights[order],
    )
