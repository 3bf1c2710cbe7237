"""What every request must say of the model, in one value: root, format, rounding, width (R10)."""

from dataclasses import dataclass

from shoal.protocol.messages import Rounding, WeightFormat


@dataclass(frozen=True, slots=True)
class ModelId:
    """The model as the wire knows it. A holder that differs in any of these answers WRONG_MODEL."""

    root: bytes
    weight_format: WeightFormat
    rounding: Rounding
    hidden: int
    macs_per_row: int
    """Multiply-accumulates of one token through one expert."""
