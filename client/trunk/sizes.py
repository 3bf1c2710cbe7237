"""What a trunk takes in memory, by format, from nothing but a `config.json`: before anybody downloads a terabyte.

The same shapes that `checkpoint.py` reads, counted. Weights only: the KV cache comes on top (68.6 KiB a token for
DeepSeek-V3 in bf16). Knows no files and no kernels; that a loaded trunk really holds this much is tested.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from shoal.client.trunk.config import ModelConfig, model_config
from shoal.client.trunk.linear_maker import TrunkFormat
from shoal.experts.family import model_spec
from shoal.experts.weight_formats import STORED, Shape
from shoal.protocol.ids import LayerId
from shoal.protocol.messages import WeightFormat

FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class TrunkSizes:
    """Bytes of each part of a trunk."""

    attention: int
    dense_mlps: int
    shared_experts: int
    routers: int
    vocabulary: int
    """Embedding and head."""
    norms: int
    mtp: int
    """The MTP layer without its routed experts. Not in `total`: a trunk runs without it."""

    @property
    def total(self) -> int:
        """Bytes of the trunk without MTP."""
        return self.attention + self.dense_mlps + self.shared_experts + self.routers + self.vocabulary + self.norms


def trunk_sizes(
    config: Mapping[str, object], trunk_format: TrunkFormat, dtype: torch.dtype = torch.bfloat16
) -> TrunkSizes:
    """Bytes of a trunk, `config` being the checkpoint's `config.json` and `dtype` the arithmetic's.

    Raises:
        InvalidRequest, CheckpointError: as `model_config` and `model_spec`.
    """
    model, num_experts = model_config(config), model_spec(config).router.num_experts
    sizer = _Sizer(trunk_format, dtype, _published(config), _unquantized(config))
    layers = [LayerId(layer) for layer in model.layers]
    num_moe = sum(model.is_moe(layer) for layer in layers)
    hidden, width = model.hidden_size, dtype.itemsize
    attention = sizer.linears(_attention(model))
    shared = sizer.linears(_mlp(model, model.moe_intermediate_size * model.n_shared_experts))
    router = sizer.router((num_experts, hidden))
    norms = (2 * hidden + (model.q_lora_rank or 0) + model.kv_lora_rank) * width
    return TrunkSizes(
        attention=len(layers) * attention,
        dense_mlps=(len(layers) - num_moe) * sizer.linears(_mlp(model, model.intermediate_size)),
        shared_experts=num_moe * shared,
        routers=num_moe * router,
        vocabulary=(1 if model.is_embedding_tied and trunk_format is TrunkFormat.DENSE else 2)
        * sizer.unquantized((model.vocab_size, hidden)),
        norms=len(layers) * norms + hidden * width,
        mtp=model.num_mtp_layers
        * (attention + shared + router + norms + 3 * hidden * width + sizer.join((hidden, 2 * hidden))),
    )


@dataclass(frozen=True, slots=True)
class _Sizer:
    """Bytes of weights of some shapes."""

    format: TrunkFormat
    dtype: torch.dtype
    published: WeightFormat
    """Of plain linears."""
    unquantized_as: WeightFormat
    """Of embedding, head, router and MTP's join."""

    def linears(self, shapes: Iterable[Shape]) -> int:
        return sum(self._linear(shape, self.published) for shape in shapes)

    def join(self, shape: Shape) -> int:
        return self._linear(shape, self.unquantized_as)

    def unquantized(self, shape: Shape) -> int:
        if self.format is TrunkFormat.DENSE:
            return shape[0] * shape[1] * self.dtype.itemsize
        return STORED[self.unquantized_as].size_bytes(shape)

    def router(self, shape: Shape) -> int:
        """With its choice bias; dense ones are fp32 whatever the arithmetic."""
        is_dense = self.format is TrunkFormat.DENSE
        weight = STORED[WeightFormat.F32 if is_dense else self.unquantized_as].size_bytes(shape)
        return weight + FP32_BYTES * shape[0]

    def _linear(self, shape: Shape, published: WeightFormat) -> int:
        if self.format is TrunkFormat.DENSE:
            return shape[0] * shape[1] * self.dtype.itemsize
        return STORED[self.format.stored_as(published)].size_bytes(shape)


def _attention(model: ModelConfig) -> list[Shape]:
    """Plain linears of one layer's attention; `kv_b_proj` as the two stacks of maps that it is held in."""
    hidden, heads, rank = model.hidden_size, model.num_attention_heads, model.kv_lora_rank
    narrow, queries = model.q_lora_rank, heads * model.qk_head_dim
    return [
        *([(queries, hidden)] if narrow is None else [(narrow, hidden), (queries, narrow)]),
        (model.cache_width, hidden),
        (heads * rank, model.qk_nope_head_dim),
        (heads * model.v_head_dim, rank),
        (hidden, heads * model.v_head_dim),
    ]  # fmt: skip


def _mlp(model: ModelConfig, width: int) -> list[Shape]:
    return [(width, model.hidden_size), (width, model.hidden_size), (model.hidden_size, width)]


def _published(config: Mapping[str, object]) -> WeightFormat:
    return WeightFormat.FP8_BLOCK if config.get("quantization_config") else _unquantized(config)


def _unquantized(config: Mapping[str, object]) -> WeightFormat:
    """fp16 counts as fp32, which it is loaded as."""
    stated = config.get("dtype", config.get("torch_dtype", "bfloat16"))
    return WeightFormat.BF16 if stated == "bfloat16" else WeightFormat.F32
