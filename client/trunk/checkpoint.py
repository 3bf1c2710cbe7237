"""Where the trunk's weights come from: the published tensor names, read in data-flow order.

Runs once, when a model is opened: one weight after another is read, made what it is to be and dropped. Knows the names
of model-and-kernels §A2; how files are read and checked is `experts/store.py`'s part, what linears are made of
`linear_maker.py`'s.
"""

from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from shoal.client.trunk.attention import Attention, AttentionWeights, QueryWeights
from shoal.client.trunk.config import ModelConfig, model_config
from shoal.client.trunk.head_maps import HeadSplit
from shoal.client.trunk.layers import Mlp, RmsNorm
from shoal.client.trunk.linear import DenseLinear, HeadMaps, Linear
from shoal.client.trunk.linear_maker import DenseMaker, LinearMaker
from shoal.client.trunk.model import Block, Trunk, TrunkWeights
from shoal.client.trunk.moe import Moe
from shoal.client.trunk.mtp import Mtp, MtpWeights
from shoal.client.trunk.router import Router
from shoal.experts.store import ModelStore
from shoal.experts.stored_weight import StoredWeight
from shoal.experts.worker import Worker
from shoal.protocol.errors import CheckpointError, InvalidRequest
from shoal.protocol.ids import LayerId

TRUNK_DTYPES = (torch.float32, torch.bfloat16)
STORED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Made = TypeVar("Made", Tensor, Linear, HeadMaps)
"""What is counted as memory."""

LATENT_NORM_EPSILON = 1e-6
"""Of q_a_layernorm and kv_a_layernorm: the default of DeepSeek-V3's and transformers' norm, not `rms_norm_eps`."""


def load_trunk(
    store: ModelStore,
    worker: Worker,
    dtype: torch.dtype,
    layers: range | None = None,
    maker: LinearMaker | None = None,
) -> Trunk:
    """Read the trunk, or a span of its layers. Takes as long as reading the files does: not for the event loop.

    dtype: of the arithmetic. maker: what linears are held in; None: dense, in that dtype.

    Raises:
        InvalidRequest: another dtype than fp32 or bf16, or layers that the model does not have.
        CheckpointError: a tensor is missing or has the wrong shape, or `config.json` is not ours.
    """
    config = model_config(store.config)
    layers = config.layers if layers is None else layers
    if not 0 <= layers.start < layers.stop <= config.num_hidden_layers or layers.step != 1:
        raise InvalidRequest(f"layers {layers} of a model with layers 0..{config.num_hidden_layers - 1}")
    reader = _Reader(store, config, dtype, maker)
    is_first, is_last = layers.start == 0, layers.stop == config.num_hidden_layers
    weights = TrunkWeights(
        dtype,
        embed_tokens=reader.embedding if is_first else None,
        blocks=tuple(reader.block(LayerId(layer)) for layer in layers),
        norm=reader.norm("model.norm") if is_last else None,
        lm_head=reader.head() if is_last else None,
        resident_bytes=0,
    )
    weights = replace(weights, resident_bytes=reader.resident_bytes)
    return Trunk(config, layers, weights, worker)


def load_mtp(store: ModelStore, trunk: Trunk, maker: LinearMaker | None = None) -> Mtp | None:
    """Read the first MTP layer for a trunk with embedding and head; None if the checkpoint has none. maker: as there.

    Raises:
        CheckpointError: a tensor of it is missing or has the wrong shape.
    """
    layer = LayerId(trunk.config.num_hidden_layers)
    if layer not in store.spec.moe_layers:
        return None
    reader, prefix = _Reader(store, trunk.config, trunk.dtype, maker), f"model.layers.{layer}"
    hidden = trunk.config.hidden_size
    weights = MtpWeights(
        enorm=reader.norm(f"{prefix}.enorm"),
        hnorm=reader.norm(f"{prefix}.hnorm"),
        eh_proj=reader.linear(f"{prefix}.eh_proj", hidden, 2 * hidden),
        block=reader.block(layer),
        norm=reader.norm(f"{prefix}.shared_head.norm"),
    )
    return Mtp(layer, trunk, weights)


class _Reader:
    """What a trunk is made of, out of one checkpoint, shapes checked."""

    def __init__(
        self, store: ModelStore, config: ModelConfig, dtype: torch.dtype, maker: LinearMaker | None = None
    ) -> None:
        if dtype not in TRUNK_DTYPES:
            raise InvalidRequest(f"a trunk in {dtype}; expected {' or '.join(map(str, TRUNK_DTYPES))}")
        self._store = store
        self._config = config
        self._dtype = dtype
        self._maker = maker or DenseMaker(dtype)
        self.resident_bytes = 0
        """Memory that everything made so far holds, in bytes."""

    @cached_property
    def embedding(self) -> Tensor:
        """float[V, H]"""
        return self._counted(self._maker.embedding(self._vocabulary("model.embed_tokens")))

    def head(self) -> Linear:
        """The map to logits; of the embedding's weights where it is tied."""
        if self._config.is_embedding_tied and isinstance(self._maker, DenseMaker):
            return DenseLinear(self.embedding)  # the same memory; a packed head is a copy in another layout
        return self._counted(self._maker.head(self._vocabulary(self._head_name)))

    @property
    def _head_name(self) -> str:
        return "model.embed_tokens" if self._config.is_embedding_tied else "lm_head"

    def block(self, layer: LayerId) -> Block:
        """A decoder layer, or the decoder layer inside an MTP layer."""
        prefix = f"model.layers.{layer}"
        return Block(
            input_layernorm=self.norm(f"{prefix}.input_layernorm"),
            self_attn=Attention(layer, self._config, self._attention(f"{prefix}.self_attn")),
            post_attention_layernorm=self.norm(f"{prefix}.post_attention_layernorm"),
            mlp=self._moe(layer) if self._config.is_moe(layer) else self._dense(f"{prefix}.mlp"),
        )

    def _attention(self, prefix: str) -> AttentionWeights:
        config = self._config
        hidden, heads, rank = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
        split = HeadSplit(heads, config.qk_nope_head_dim, config.v_head_dim, rank)
        kv_b = self._weight(f"{prefix}.kv_b_proj.weight", heads * (split.nope + split.v), rank)
        to_keys, to_values = (self._counted(maps) for maps in self._maker.head_maps(kv_b, split))
        return AttentionWeights(
            q_proj=self._queries(prefix),
            kv_a_proj_with_mqa=self._biased(f"{prefix}.kv_a_proj_with_mqa", config.cache_width, hidden),
            kv_a_layernorm=self.norm(f"{prefix}.kv_a_layernorm", rank, LATENT_NORM_EPSILON),
            to_keys=to_keys,
            to_values=to_values,
            o_proj=self._biased(f"{prefix}.o_proj", hidden, heads * config.v_head_dim),
        )

    def _queries(self, prefix: str) -> Linear | QueryWeights:
        config, rank = self._config, self._config.q_lora_rank
        width = config.num_attention_heads * config.qk_head_dim
        if rank is None:
            return self.linear(f"{prefix}.q_proj", width, config.hidden_size)
        return QueryWeights(
            q_a_proj=self._biased(f"{prefix}.q_a_proj", rank, config.hidden_size),
            q_a_layernorm=self.norm(f"{prefix}.q_a_layernorm", rank, LATENT_NORM_EPSILON),
            q_b_proj=self.linear(f"{prefix}.q_b_proj", width, rank),
        )

    def _dense(self, prefix: str) -> Mlp:
        return self._mlp(prefix, self._config.intermediate_size)

    def _moe(self, layer: LayerId) -> Moe:
        shared_width = self._config.moe_intermediate_size * self._config.n_shared_experts
        return Moe(layer, self._router(layer), self._mlp(f"model.layers.{layer}.mlp.shared_experts", shared_width))

    def _router(self, layer: LayerId) -> Router:
        spec, bias_name = self._store.spec, self._store.spec.choice_bias_tensor(layer)
        num_experts = spec.router.num_experts
        gate = self._maker.router(self._weight(spec.router_tensor(layer), num_experts, self._config.hidden_size))
        bias = self._counted(self._tensor(bias_name, (num_experts,)).float()) if bias_name else None
        return Router(spec.router, self._counted(gate), bias)

    def _mlp(self, prefix: str, width: int) -> Mlp:
        hidden = self._config.hidden_size
        return Mlp(
            gate_proj=self.linear(f"{prefix}.gate_proj", width, hidden),
            up_proj=self.linear(f"{prefix}.up_proj", width, hidden),
            down_proj=self.linear(f"{prefix}.down_proj", hidden, width),
        )

    def norm(self, name: str, width: int | None = None, epsilon: float | None = None) -> RmsNorm:
        """A norm over hidden states, or over `width` values with an `epsilon` of its own."""
        weight = self._tensor(f"{name}.weight", (width or self._config.hidden_size,))
        return RmsNorm(self._counted(weight.to(self._dtype)), epsilon or self._config.rms_norm_eps)

    def linear(self, name: str, out_width: int, in_width: int) -> Linear:
        """A linear map [out, in]."""
        return self._counted(self._maker.linear(self._weight(f"{name}.weight", out_width, in_width)))

    def _biased(self, name: str, out_width: int, in_width: int) -> Linear:
        """A linear map that has a bias where `attention_bias` is true."""
        weight = self._weight(f"{name}.weight", out_width, in_width)
        bias = self._tensor(f"{name}.bias", (out_width,)) if self._config.has_attention_bias else None
        return self._counted(self._maker.linear(weight, bias))

    def _vocabulary(self, name: str) -> StoredWeight:
        return self._weight(f"{name}.weight", self._config.vocab_size, self._config.hidden_size)

    def _weight(self, name: str, out_width: int, in_width: int) -> StoredWeight:
        weight = self._store.trunk_weight(name)
        if weight.shape != (out_width, in_width):
            raise weight.error(f"{weight.data.dtype}{list(weight.shape)}, expected {[out_width, in_width]}")
        return weight

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._store.trunk_tensor(name)
        if tuple(tensor.shape) != shape or tensor.dtype not in STORED_DTYPES:
            found = f"{tensor.dtype}{list(tensor.shape)}, expected a float type and {list(shape)}"
            raise CheckpointError(self._store.file_of(name), name, found)
        return tensor

    def _counted(self, made: Made) -> Made:
        self.resident_bytes += made.nbytes if isinstance(made, Tensor) else made.resident_bytes
        return made
