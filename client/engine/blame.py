"""Which rows of a wave an error of the routed experts is about, so that it ends their streams and no others.

Wraps the seam `RoutedExperts` for one wave of a pass. Knows errors and rows; knows no streams.
"""

import torch
from torch import Tensor

from shoal.client.trunk.moe import ExpertsHere, RoutedExperts
from shoal.protocol.errors import CoverageGap, IntegrityError, NonFinite, ShoalError
from shoal.protocol.ids import LayerId


def witness_of(routed_experts: RoutedExperts) -> "Witness":
    """A witness for one wave of a pass, of the same kind as the experts."""
    return WitnessHere(routed_experts) if isinstance(routed_experts, ExpertsHere) else Witness(routed_experts)


class Witness(RoutedExperts):
    """Hands calls on and remembers the last one, and how it failed."""

    def __init__(self, routed_experts: RoutedExperts) -> None:
        self._routed_experts = routed_experts
        self._call: tuple[LayerId, Tensor, Tensor] | None = None
        self._error: ShoalError | None = None

    async def __call__(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        self._call = (layer, x, topk_idx)
        try:
            return await self._routed_experts(layer, x, topk_idx, topk_weights)
        except ShoalError as error:
            self._error = error
            raise

    def has_seen(self, error: ShoalError) -> bool:
        """Whether it was this wave's."""
        return error is self._error

    def rows_at_fault(self, error: ShoalError) -> Tensor | None:
        """bool[T]: rows that the error is about; None: it may be any of them.

        A coverage gap is about the rows that were routed to its experts, numbers that are none about the rows that have
        them. Other errors do not tell.
        """
        if self._call is None:
            return None
        layer, x, topk_idx = self._call
        at_fault = None
        if isinstance(error, CoverageGap) and error.layer == layer:
            at_fault = torch.isin(topk_idx, torch.tensor(error.experts)).any(dim=1)
        elif isinstance(error, IntegrityError | NonFinite):
            at_fault = ~torch.isfinite(x).all(dim=1)
        return at_fault if at_fault is not None and bool(at_fault.any()) else None


class WitnessHere(Witness, ExpertsHere):
    """The same for experts of this process."""

    def __init__(self, experts: ExpertsHere) -> None:
        super().__init__(experts)
        self._experts = experts

    def compute(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        self._call = (layer, x, topk_idx)
        try:
            return self._experts.compute(layer, x, topk_idx, topk_weights)
        except ShoalError as error:
            self._error = error
            raise
