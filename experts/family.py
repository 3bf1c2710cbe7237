"""What a model family's router and experts are, as data (DESIGN §3; model-and-kernels §A3, §A8).

Read from a checkpoint's `config.json`. Everything that differs between DeepSeek, Kimi, GLM or Qwen is a value of these
records, not a branch in the code that uses them. Knows no attention: `client/trunk/config.py` does.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import cast

from shoal.protocol.errors import CheckpointError, ModelNotFound
from shoal.protocol.ids import ExpertId, LayerId


class Score(Enum):
    """How router logits become scores."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"


class GroupReduce(Enum):
    """How the scores of a group's experts become the group's score."""

    TOP2_SUM = "top2_sum"
    MAX = "max"


class Activation(Enum):
    """What an expert does with gate and up."""

    SILU = "silu"
    """h = silu(gate) * up"""


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """How hidden states choose experts. `has_choice_bias`: a bias chooses experts but never weighs them."""

    score: Score
    has_choice_bias: bool
    num_experts: int
    top_k: int
    num_groups: int
    topk_groups: int
    group_reduce: GroupReduce
    is_renormalized: bool
    scale: float
    epsilon: float = 1e-20
    """Added to the sum of the chosen scores before the division (DeepSeek-V3 `Gate`)."""


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """One routed expert: gate and up `[inter, hidden]`, down `[hidden, inter]`."""

    hidden: int
    inter: int
    activation: Activation = Activation.SILU

    @property
    def macs_per_row(self) -> int:
        """Multiply-accumulates of one token through this expert."""
        return 3 * self.hidden * self.inter


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What holders and routers need to know of a model."""

    model_type: str
    router: RouterSpec
    expert: ExpertSpec
    moe_layers: tuple[LayerId, ...]
    """Layers with routed experts, the MTP layers included."""
    num_layers: int
    """Decoder layers without the MTP layers."""

    def expert_tensor(self, layer: LayerId, expert: ExpertId, projection: str) -> str:
        """Name of an expert's weight in the checkpoint; projection: gate, up or down."""
        return f"model.layers.{layer}.mlp.experts.{expert}.{projection}_proj.weight"


SCALE_SUFFIX = "_scale_inv"
"""`<weight name>_scale_inv` holds the fp8 block scales; in spite of the name they multiply (V3 README_WEIGHTS)."""

PROJECTIONS = ("gate", "up", "down")


def read_config(directory: Path) -> dict[str, object]:
    """Read `config.json` of a checkpoint directory.

    Raises:
        ModelNotFound: no such directory, or no config.json in it. CheckpointError: not a JSON object.
    """
    path = directory / "config.json"
    if not directory.is_dir():
        raise ModelNotFound(f"no such model directory: {directory}")
    if not path.is_file():
        raise ModelNotFound(f"{directory} holds no checkpoint (config.json is missing)")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(str(path), None, f"not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(str(path), None, "not a JSON object")
    return cast(dict[str, object], config)
