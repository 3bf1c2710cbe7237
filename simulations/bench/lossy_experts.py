"""The routed experts in this process, with hidden states and sums sent through a wire format as a swarm of holders
would: every holder gets its rows in the format, computes, and its partial sum comes back in the format.

The same grouping, codec, kernels and order of summation as `client/routing` and `node/serving/server.py`; no network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.client.routing.activations import WireFormat
from shoal.client.routing.combine import PartialSum, combine
from shoal.client.routing.grouping import ExpertRows, group_by_expert
from shoal.protocol.dtypes import row_bytes
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import DType
from shoal.protocol.tensors import decode_rows, encode_rows, tensor_bytes
from shoal.simulations.virtual.model import SimulatedModel

PAIR_BYTES = 4 + 2
"""Weight and row index of a (token, expert) pair."""


@dataclass(slots=True)
class Loss:
    """What a layer's outputs lost on equal inputs, summed over calls."""

    squared_error: float = 0.0
    squared: float = 0.0

    @property
    def relative(self) -> float:
        """Relative L2 error."""
        return math.sqrt(self.squared_error / self.squared) if self.squared else 0.0


class LossyExperts:
    """Implements `RoutedExperts` on a model in memory."""

    def __init__(self, model: SimulatedModel, formats: WireFormat, num_holders: int) -> None:
        """num_holders: experts are shared out among them in ranges of ids."""
        self._model = model
        self._formats = formats
        self._per_holder = -(-model.store.spec.router.num_experts // num_holders)
        self.losses = {layer: Loss() for layer in model.layers}
        self.num_rows = self.num_tokens = self.num_pairs = 0

    async def __call__(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        """See `RoutedExperts`. x: f32[T, H]; returns f32[T, H]."""
        rows = group_by_expert(topk_idx, topk_weights)
        exact = self._run(layer, rows.experts, x, rows, torch.from_numpy(rows.row_idx))
        parts = [self._ask(layer, experts, x, rows) for experts in self._shares(rows.experts)]
        total = combine(parts, *x.shape)
        self.losses[layer].squared_error += float((total - exact).square().sum())
        self.losses[layer].squared += float(exact.square().sum())
        self.num_tokens += len(x) if layer == self._model.layers[0] else 0
        return total

    def bytes_per_token(self) -> tuple[float, float]:
        """Bodies of all layers there and back, by what was routed; frames' headers are left out."""
        hidden = self._model.id.hidden
        up = self.num_rows * row_bytes(self._formats.up, hidden) + self.num_pairs * PAIR_BYTES
        return up / self.num_tokens, self.num_rows * row_bytes(self._formats.down, hidden) / self.num_tokens

    def _shares(self, experts: Sequence[ExpertId]) -> list[tuple[ExpertId, ...]]:
        shares: dict[int, list[ExpertId]] = {}
        for expert in experts:
            shares.setdefault(expert // self._per_holder, []).append(expert)
        return [tuple(share) for share in shares.values()]

    def _ask(self, layer: LayerId, experts: tuple[ExpertId, ...], x: Tensor, rows: ExpertRows) -> PartialSum:
        selected = rows.select(experts)
        token_idx, row_idx = torch.unique(torch.from_numpy(selected.row_idx), return_inverse=True)
        sums = self._run(layer, experts, through(x[token_idx], self._formats.up), selected, row_idx)
        self.num_rows += len(token_idx)
        self.num_pairs += len(row_idx)
        return PartialSum(experts, token_idx.numpy(), through(sums, self._formats.down))

    def _run(self, layer: LayerId, experts: Sequence[ExpertId], x: Tensor, rows: ExpertRows, row_idx: Tensor) -> Tensor:
        model = self._model
        packed = [model.packed[layer, expert] for expert in experts]
        weights = torch.from_numpy(rows.topk_weights)
        return model.backend.run(packed, x, row_idx, rows.offsets, weights, model.rounding)


def through(x: Tensor, dtype: DType) -> Tensor:
    """What arrives of f32[T, H]."""
    return decode_rows(tensor_bytes(encode_rows(x, dtype)), dtype, *x.shape).to(torch.float32)
