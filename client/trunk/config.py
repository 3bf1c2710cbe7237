"""What a DeepSeek-V3 checkpoint's `config.json` says about the trunk, checked, as one frozen record.

The first thing read when a model is opened. Routers and experts are `experts/family.py`'s part of the same file; this
module knows attention, positions and sizes. It knows no tensors. Key names are those of the published configuration
(model-and-kernels §A1); `transformers` 5 writes `rope_parameters` where the publishers write `rope_scaling`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from shoal.protocol.errors import CheckpointError, InvalidRequest
from shoal.protocol.ids import LayerId

SUPPORTED_MODEL_TYPES = ("deepseek_v3", "kimi_k2")
"""Kimi K2 is the same architecture under another name (model-and-kernels §A8)."""

DEFAULT_ROPE_THETA = 10_000.0
"""DeepSeek-V3's own value, and transformers' default where a config names none."""


@dataclass(frozen=True, slots=True)
class YarnConfig:
    """YaRN context extension (arXiv 2309.00071); names as in the checkpoint."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    mscale: float | None
    mscale_all_dim: float | None
    attention_factor: float | None
    """What cos and sin are multiplied by; None: computed from the two mscales."""
    is_truncated: bool
    """Whether the correction range is rounded to whole dimensions (`truncate`, default true)."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary positions. `yarn` is None for plain rotary embedding."""

    theta: float
    is_interleaved: bool
    """Pairs are (x0, x1), (x2, x3), … as DeepSeek stores them, not (x0, x_R/2), …"""
    yarn: YarnConfig | None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The trunk's shape. Field names are the config's own; counts of heads and widths are per the whole model."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    """Decoder layers without the MTP layers."""
    first_k_dense_replace: int
    """Layers 0 .. k-1 have a dense MLP, the others routed experts."""
    intermediate_size: int
    moe_intermediate_size: int
    n_shared_experts: int
    num_attention_heads: int
    q_lora_rank: int | None
    """None: queries are projected directly by `q_proj`."""
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    has_attention_bias: bool
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    """The context: most tokens of prompt and answer together."""
    is_embedding_tied: bool
    """Whether the head is the embedding (`tie_word_embeddings`)."""
    num_mtp_layers: int
    """`num_nextn_predict_layers`: the MTP layers follow layer num_hidden_layers - 1."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def layers(self) -> range:
        """Every decoder layer, without the MTP layers."""
        return range(self.num_hidden_layers)

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head: the part without position, then the rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cache_width(self) -> int:
        """Values that the KV cache keeps per token and layer: the latent, then the shared rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def is_moe(self, layer: LayerId) -> bool:
        """Whether a layer has routed experts (every MTP layer does)."""
        return layer >= self.first_k_dense_replace


def model_config(config: Mapping[str, object]) -> ModelConfig:
    """Read a checkpoint's `config.json`.

    Raises:
        InvalidRequest: another architecture, or a variant of ours that this trunk cannot run.
        CheckpointError: a key is missing or out of range.
    """
    fields = _Fields(config)
    fields.require_ours("model_type", None, SUPPORTED_MODEL_TYPES)
    fields.require_ours("hidden_act", "silu", ("silu",))
    fields.require_ours("moe_layer_freq", 1, (1,))
    context = fields.count("max_position_embeddings")
    result = ModelConfig(
        model_type=fields.text("model_type"),
        vocab_size=fields.count("vocab_size"),
        hidden_size=fields.count("hidden_size"),
        num_hidden_layers=fields.count("num_hidden_layers"),
        first_k_dense_replace=fields.count("first_k_dense_replace", low=0),
        intermediate_size=fields.count("intermediate_size"),
        moe_intermediate_size=fields.count("moe_intermediate_size"),
        n_shared_experts=fields.count("n_shared_experts"),
        num_attention_heads=fields.count("num_attention_heads"),
        q_lora_rank=None if config.get("q_lora_rank") is None else fields.count("q_lora_rank"),
        kv_lora_rank=fields.count("kv_lora_rank"),
        qk_nope_head_dim=fields.count("qk_nope_head_dim"),
        qk_rope_head_dim=fields.count("qk_rope_head_dim"),
        v_head_dim=fields.count("v_head_dim"),
        has_attention_bias=fields.flag("attention_bias", default=False),
        rms_norm_eps=fields.positive("rms_norm_eps"),
        rope=_rope(fields, context),
        max_position_embeddings=context,
        is_embedding_tied=fields.flag("tie_word_embeddings", default=False),
        num_mtp_layers=fields.count("num_nextn_predict_layers", low=0, default=0),
        bos_token_id=None if config.get("bos_token_id") is None else fields.count("bos_token_id", low=0),
        eos_token_ids=fields.token_ids("eos_token_id"),
    )
    fields.require("qk_rope_head_dim", result.qk_rope_head_dim % 2 == 0, "an even number")
    return result


def _rope(fields: "_Fields", context: int) -> RopeConfig:
    """Positions as transformers reads them: `rope_scaling`, else `rope_parameters`; theta inside or beside them."""
    scaling = fields.group("rope_scaling") or fields.group("rope_parameters") or _Fields({})
    kind_key = "rope_type" if "rope_type" in scaling.values else "type"
    kind = scaling.require_ours(kind_key, "default", ("default", "yarn"))
    outer_theta = fields.positive("rope_theta", default=DEFAULT_ROPE_THETA)
    return RopeConfig(
        theta=scaling.positive("rope_theta", default=outer_theta),
        is_interleaved=fields.flag("rope_interleave", default=True),
        yarn=_yarn(scaling, context) if kind == "yarn" else None,
    )


def _yarn(scaling: "_Fields", context: int) -> YarnConfig:
    original = scaling.count("original_max_position_embeddings", default=context)
    return YarnConfig(
        factor=scaling.positive("factor", default=context / original),
        original_max_position_embeddings=original,
        beta_fast=scaling.positive("beta_fast", default=32.0),
        beta_slow=scaling.positive("beta_slow", default=1.0),
        mscale=scaling.optional_number("mscale"),
        mscale_all_dim=scaling.optional_number("mscale_all_dim"),
        attention_factor=scaling.optional_number("attention_factor"),
        is_truncated=scaling.flag("truncate", default=True),
    )


_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class _Fields:
    """The values of a JSON object, read with their type and range; null counts as missing."""

    values: Mapping[str, object]

    def require_ours(self, key: str, default: object, known: Sequence[object]) -> object:
        value = self.values.get(key, default)
        if value not in known:
            raise InvalidRequest(f"config.json: {key} is {value!r}; this trunk runs {' or '.join(map(str, known))}")
        return value

    def require(self, key: str, is_met: bool, expected: str) -> None:
        if not is_met:
            raise CheckpointError("config.json", None, f"{key} is {self.values.get(key)!r}, expected {expected}")

    def _value(self, key: str, default: _Number | None) -> object:
        value = self.values.get(key)
        return default if value is None else value

    def count(self, key: str, *, low: int = 1, default: int | None = None) -> int:
        value = self._value(key, default)
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= low
        self.require(key, is_count, f"an integer >= {low}")
        return cast(int, value)

    def optional_number(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        self.require(key, is_number, "a finite number")
        return float(cast(float, value))

    def positive(self, key: str, *, default: float | None = None) -> float:
        value = self.optional_number(key)
        value = default if value is None else value
        self.require(key, value is not None and value > 0, "a number > 0")
        return cast(float, value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._value(key, default)
        self.require(key, isinstance(value, bool), "true or false")
        return cast(bool, value)

    def text(self, key: str) -> str:
        value = self.values.get(key)
        self.require(key, isinstance(value, str), "a string")
        return cast(str, value)

    def group(self, key: str) -> "_Fields | None":
        value = self.values.get(key)
        self.require(key, value is None or isinstance(value, Mapping), "an object")
        return _Fields(cast(Mapping[str, object], value)) if value else None

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id, a list of ids, or none."""
        value = self.values.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        self.require(key, all(type(token_id) is int and token_id >= 0 for token_id in ids), "token ids")
        return tuple(cast(list[int], ids))
