"""What all simulated swarms share: a small model, its trunk, and every expert packed once. Knows no clock."""

from dataclasses import dataclass
from pathlib import Path

from shoal.client.routing.model_id import ModelId, model_id
from shoal.client.single_process import OpenTrunk, open_trunk
from shoal.experts.backend import ExpertBackend, PackedExpert
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Rounding


@dataclass(frozen=True)
class SimulatedModel:
    """What all runs share: a checkpoint, its trunk, and every expert packed once."""

    store: ModelStore
    directory: Path
    """Where its files are, for nodes that fetch an expert."""
    rounding: Rounding
    opened: OpenTrunk
    backend: ExpertBackend
    packed: dict[tuple[LayerId, ExpertId], PackedExpert]

    @property
    def layers(self) -> list[LayerId]:
        return [layer for layer in self.store.spec.moe_layers if layer < self.store.spec.num_layers]

    @property
    def id(self) -> ModelId:
        return model_id(self.store, self.rounding)


def load_model(store: ModelStore, directory: Path, rounding: Rounding) -> SimulatedModel:
    """Load a (small) model whole."""
    backend, spec = choose_backend(KernelChoice.AUTO, 1), store.spec
    opened = open_trunk(store, directory, rounding, InlineWorker())
    model = SimulatedModel(store, directory, rounding, opened, backend, {})
    for layer in model.layers:
        for expert in map(ExpertId, range(spec.router.num_experts)):
            model.packed[layer, expert] = backend.pack(spec.expert, store.expert(layer, expert))
    return model
