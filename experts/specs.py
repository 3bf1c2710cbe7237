"""Routers, experts and models as values: what holders and trunks need to know, whatever the family.

`family.py` makes them from a `config.json`. Knows no files.
"""

from dataclasses import dataclass
from enum import Enum

from shoal.kernels.activation import SILU, Activation
from shoal.protocol.ids import ExpertId, LayerId

SCALE_SUFFIX = "_scale_inv"
"""`<weight name>_scale_inv` holds the fp8 block scales; in spite of the name they multiply (V3 README_WEIGHTS)."""

PROJECTIONS = ("gate", "up", "down")


class Score(Enum):
    """How router logits become scores."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"
    SQRT_SOFTPLUS = "sqrtsoftplus"
    """sqrt(ln(1 + e^x)): DeepSeek-V4 (`SqrtSoftplusActivation` of transformers 5.23)"""
    SOFTMAX_OF_CHOSEN = "softmax_of_chosen"
    """logits choose, a softmax over the chosen ones weighs: gpt-oss (`GptOssTopKRouter`)"""


class GroupReduce(Enum):
    """How the scores of a group's experts become the group's score."""

    TOP2_SUM = "top2_sum"
    MAX = "max"


class ExpertLayout(Enum):
    """How a checkpoint keeps the experts of a layer."""

    SEPARATE = "separate"
    """gate, up and down of each expert are tensors of their own, `[out, in]`"""
    STACKED = "stacked"
    """gpt-oss: one tensor for all experts, gate and up in it row by row (`stacked_experts.py`)"""


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
    has_linear_bias: bool = False
    """Whether logits are x W^T + b: a bias that weighs too."""
    num_hash_layers: int = 0
    """In so many of the first MoE layers a table of token ids chooses (`tid2eid`); scores weigh as everywhere."""


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """One routed expert: gate and up `[inter, hidden]`, down `[hidden, inter]`, and what stands between them."""

    hidden: int
    inter: int
    activation: Activation = SILU
    has_biases: bool = False
    """Whether each of the three matrices has a bias."""

    @property
    def macs_per_row(self) -> int:
        """Multiply-accumulates of one token through this expert."""
        return 3 * self.hidden * self.inter


@dataclass(frozen=True, slots=True)
class TensorNames:
    """How a family names the tensors of its MoE layers in a checkpoint; `{layer}` and the like are filled in."""

    expert: str
    gate: str
    up: str
    down: str
    router: str
    choice_bias: str | None
    expert_scale: str
    """Block scales of an expert's weight."""
    layout: ExpertLayout = ExpertLayout.SEPARATE
    has_packed_fp4: bool = False
    """Whether weights of whole bytes are pairs of e2m1 codes with an e8m0 scale per 32: mxfp4."""


DEEPSEEK_V3_NAMES = TensorNames(
    expert="model.layers.{layer}.mlp.experts.{expert}.{projection}.weight",
    gate="gate_proj",
    up="up_proj",
    down="down_proj",
    router="model.layers.{layer}.mlp.gate.weight",
    choice_bias="model.layers.{layer}.mlp.gate.e_score_correction_bias",
    expert_scale="model.layers.{layer}.mlp.experts.{expert}.{projection}.weight" + SCALE_SUFFIX,
)
"""The published names of DeepSeek-V3 (model-and-kernels §A2)."""


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
    num_mtp_layers: int = 0
    """Multi-token prediction layers: `num_layers`, `num_layers + 1`, …"""
    num_shared_experts: int = 0
    """Shared experts, stored as one SwiGLU of this many times `expert.inter`."""
    names: TensorNames = DEEPSEEK_V3_NAMES

    def expert_tensor(self, layer: LayerId, expert: ExpertId, projection: str) -> str:
        """Name of an expert's weight in the checkpoint; projection: gate, up or down."""
        return self._filled(self.names.expert, layer, expert, projection)

    def expert_scale_tensor(self, layer: LayerId, expert: ExpertId, projection: str) -> str:
        """Name of the block scales of an expert's weight, in formats that have some."""
        return self._filled(self.names.expert_scale, layer, expert, projection)

    def router_tensor(self, layer: LayerId) -> str:
        """Name of a layer's router weight `[E, H]`."""
        return self.names.router.format(layer=layer)

    def choice_bias_tensor(self, layer: LayerId) -> str | None:
        """Name of the bias that chooses experts, `[E]`; None where the family has none."""
        return self.names.choice_bias.format(layer=layer) if self.names.choice_bias else None

    def _filled(self, template: str, layer: LayerId, expert: ExpertId, projection: str) -> str:
        own_word = {"gate": self.names.gate, "up": self.names.up, "down": self.names.down}[projection]
        return template.format(layer=layer, expert=expert, projection=own_word)
