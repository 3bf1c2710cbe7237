"""What every request must say of the model, in one value: root, format, rounding, width (R10)."""

from dataclasses import dataclass

from shoal.experts.store import ModelStore
from shoal.experts.weight_formats import stored_bytes
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
    expert_bytes: int
    """One routed expert as stored."""


def model_id(store: ModelStore, rounding: Rounding) -> ModelId:
    """The id of an open model."""
    expert, weight_format = store.spec.expert, store.weight_format
    return ModelId(
        root=store.manifest.root,
        weight_format=weight_format,
        rounding=rounding,
        hidden=expert.hidden,
        num_experts=store.spec.router.num_experts,
        macs_per_row=expert.macs_per_row,
        expert_bytes=stored_bytes(expert, weight_format),
    )
