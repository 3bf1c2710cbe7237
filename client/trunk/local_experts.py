"""The routed experts in this process: what a swarm must agree with, and all a model needs that fits one machine.

Stands where `client/routing/dispatch.py` stands otherwise: same seam, same grouping by expert, same order of summation.
Knows no peers.
"""

import torch
from torch import Tensor

from shoal.client.routing.grouping import group_by_expert
from shoal.client.trunk.moe import ExpertsHere
from shoal.experts.backend import ExpertBackend, PackedExpert
from shoal.experts.store import ModelStore
from shoal.experts.worker import Worker
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Rounding


class LocalExperts(ExpertsHere):
    """`ExpertsHere` on a back end of our own. An expert is read when it is first chosen, and then kept."""

    def __init__(self, store: ModelStore, backend: ExpertBackend, rounding: Rounding, worker: Worker) -> None:
        self._store = store
        self._backend = backend
        self._rounding = rounding
        self._worker = worker
        self._packed: dict[tuple[LayerId, ExpertId], PackedExpert] = {}

    async def __call__(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        """See `RoutedExperts`.

        Raises:
            CheckpointError: an expert's bytes are not what the manifest says.
        """
        return await self._worker.run(self.compute, layer, x, topk_idx, topk_weights)

    def compute(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        """See `ExpertsHere`; raises as `__call__`."""
        rows = group_by_expert(topk_idx, topk_weights)
        experts = [self._expert(layer, expert) for expert in rows.experts]
        row_idx, weights = torch.from_numpy(rows.row_idx), torch.from_numpy(rows.topk_weights)
        return self._backend.run(experts, x, row_idx, rows.offsets, weights, self._rounding)

    def _expert(self, layer: LayerId, expert: ExpertId) -> PackedExpert:
        if (layer, expert) not in self._packed:
            packed = self._backend.pack(self._store.spec.expert, self._store.expert(layer, expert))
            self._packed[layer, expert] = packed
        return self._packed[layer, expert]
