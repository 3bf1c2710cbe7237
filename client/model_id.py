"""What every request must say of the model, in one value: root, format, rounding, width (R10)."""

from dataclasses import dataclass

from shoal.experts.store import ModelStore
from shoal.protocol.messages import Rounding, WeightFormat


@dataclass(frozen=True, slots=True)
class ModelId:
    """The model as the wire knows it. A holder that differs in any of these answers WRONG_MODEL."""

    root: bytes
    weight_format: WeightFormat
    rounding: Rounding
    hidden: int
    num_experts: int
    """Routed experts of a layer."""
    macs_per_row: int
    """Multiply-accumulates of one token through one expert."""


def model_id(store: ModelStore, rounding: Rounding) -> ModelId:
    """The id of an open model."""
    expert, num_experts = store.spec.expert, store.spec.router.num_experts
    return ModelId(store.manifest.root, store.weight_format, rounding, expert.hidden, num_experts, expert.macs_per_row)
