"""What a model costs whoever runs it, from its `config.json`: bytes in memory, bytes per token, work per token, wire.

Sizes are those of `experts/` and of the trunk's own table, so that a forecast and a loaded model cannot differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.client.trunk.config import model_config
from shoal.client.trunk.linear_maker import TrunkFormat
from shoal.client.trunk.sizes import TrunkSizes, trunk_sizes
from shoal.experts.family import model_spec
from shoal.experts.specs import RouterSpec
from shoal.experts.weight_formats import stored_bytes
from shoal.protocol.messages import WeightFormat

BF16_BYTES, FP32_BYTES = 2, 4

FRAME_BYTES = 180
"""Of a request and of its answer beside tensors: frame header, message header (PROTOCOL §4, §6), TLS record and tag."""

PAIR_BYTES = 6
"""Of a (token, expert) pair of a request: weight f32 and row u16."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model's sizes in the formats that it is run in."""

    name: str
    weight_format: WeightFormat
    trunk_format: TrunkFormat
    router: RouterSpec
    hidden: int
    num_layers: int
    num_moe_layers: int
    expert_bytes: int
    expert_macs: int
    """Multiply-accumulates of a row through an expert."""
    trunk: TrunkSizes
    trunk_macs: int
    """Multiply-accumulates of a row through all of the trunk's matrices."""
    kv_bytes_per_token: int
    """Of all layers."""
    attention_macs_per_context_token: int
    """Of one layer, for each token of the context and each new token: scores and values against the latent cache."""
    value_bytes: int = BF16_BYTES
    """Of a hidden value on its way to a holder."""
    sum_bytes: int = FP32_BYTES
    """Of a value of a partial sum on its way back (PROTOCOL §6.3: fp32)."""

    @property
    def num_experts(self) -> int:
        """In all layers."""
        return self.num_moe_layers * self.router.num_experts

    @property
    def experts_bytes(self) -> int:
        """One copy of all routed experts."""
        return self.num_experts * self.expert_bytes

    @property
    def trunk_bytes_read(self) -> int:
        """That every pass reads: all but the embedding, of which a token needs one row."""
        return self.trunk.total - self.trunk.vocabulary // 2

    @property
    def layer_bytes(self) -> int:
        """A MoE layer whole, as a layer pipeline holds it: its experts and its part of the trunk."""
        return (
            self.router.num_experts * self.expert_bytes + (self.trunk.total - self.trunk.vocabulary) // self.num_layers
        )

    def request_bytes(self, num_tokens: int, num_pairs: int) -> int:
        """On the wire to one holder for one layer."""
        return FRAME_BYTES + num_tokens * self.hidden * self.value_bytes + num_pairs * PAIR_BYTES

    def reply_bytes(self, num_tokens: int) -> int:
        """On the wire back: a partial sum for every token."""
        return FRAME_BYTES + num_tokens * self.hidden * self.sum_bytes


def model_shape(
    config: Mapping[str, object],
    name: str,
    weight_format: WeightFormat,
    trunk_format: TrunkFormat,
    value_bytes: int = BF16_BYTES,
) -> ModelShape:
    """Read a model's sizes from its `config.json`.

    Raises:
        InvalidRequest, CheckpointError: as `model_config` and `model_spec`.
    """
    model, spec = model_config(config), model_spec(config)
    latent = model.cache_width
    return ModelShape(
        name=name,
        weight_format=weight_format,
        trunk_format=trunk_format,
        router=spec.router,
        hidden=spec.expert.hidden,
        num_layers=spec.num_layers,
        num_moe_layers=sum(layer < spec.num_layers for layer in spec.moe_layers),
        expert_bytes=stored_bytes(spec.expert, weight_format),
        expert_macs=spec.expert.macs_per_row,
        trunk=trunk_sizes(config, trunk_format),
        trunk_macs=_trunk_macs(config),
        kv_bytes_per_token=latent * BF16_BYTES * spec.num_layers,
        attention_macs_per_context_token=model.num_attention_heads * (latent + model.kv_lora_rank),
        value_bytes=value_bytes,
    )


def _trunk_macs(config: Mapping[str, object]) -> int:
    """One for each weight but the embedding's; the few of the norms are counted along."""
    sizes = trunk_sizes(config, TrunkFormat.BF16)
    return (sizes.total - sizes.vocabulary // 2) // BF16_BYTES
