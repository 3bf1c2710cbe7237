"""The table of model families: what config.json calls what we need, and what is fixed for each (model-and-kernels §A8).

A family is data: a row here. `family.py` reads config files by it. Knows no files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from shoal.experts.specs import DEEPSEEK_V3_NAMES, ExpertLayout, GroupReduce, Score, TensorNames
from shoal.kernels.activation import DEEPSEEK_V4, GPT_OSS, SILU, Activation

UNBIASED_NAMES = replace(DEEPSEEK_V3_NAMES, choice_bias=None)
MIXTRAL_NAMES = TensorNames(
    expert="model.layers.{layer}.block_sparse_moe.experts.{expert}.{projection}.weight",
    gate="w1",
    up="w3",
    down="w2",
    router="model.layers.{layer}.block_sparse_moe.gate.weight",
    choice_bias=None,
    expert_scale="model.layers.{layer}.block_sparse_moe.experts.{expert}.{projection}.weight_scale_inv",
)
MINIMAX_NAMES = replace(MIXTRAL_NAMES, choice_bias="model.layers.{layer}.block_sparse_moe.e_score_correction_bias")
GPT_OSS_NAMES = TensorNames(
    expert="model.layers.{layer}.mlp.experts.{projection}",
    gate="gate_up_proj",
    up="gate_up_proj",
    down="down_proj",
    router="model.layers.{layer}.mlp.router.weight",
    choice_bias=None,
    expert_scale="model.layers.{layer}.mlp.experts.{projection}_scales",
    layout=ExpertLayout.STACKED,
)
"""openai/gpt-oss-20b and 120b; names and shapes in `stacked_experts.py`."""
DEEPSEEK_V4_NAMES = TensorNames(
    expert="layers.{layer}.ffn.experts.{expert}.{projection}.weight",
    gate="w1",
    up="w3",
    down="w2",
    router="layers.{layer}.ffn.gate.weight",
    choice_bias="layers.{layer}.ffn.gate.bias",
    expert_scale="layers.{layer}.ffn.experts.{expert}.{projection}.scale",
    has_packed_fp4=True,
)
"""DeepSeek-V4-Flash: the source names of transformers 5.23's `conversion_mapping.py`; `layers.0.ffn.experts.0.w1` is
weight I8[2048, 2048] (two codes a byte) and scale F8_E8M0[2048, 128] in the published headers."""


@dataclass(frozen=True, slots=True)
class Family:
    """A row of `FAMILIES`: under which keys of config.json a family states what we need, and what is fixed for it."""

    names: TensorNames
    score: Score
    num_experts_key: str
    inter_key: str = "moe_intermediate_size"
    num_shared_key: str | None = None
    first_moe_key: str | None = None
    """Layers before this index are dense."""
    every_key: str | None = None
    """MoE layers are every n-th: (layer + every_offset) % n == 0."""
    every_offset: int = 0
    dense_layers_key: str | None = None
    """A list of layers that are dense all the same."""
    mtp_key: str | None = None
    is_grouped: bool = False
    """Routing is limited to `topk_group` of `n_group` groups."""
    group_reduce: GroupReduce = GroupReduce.TOP2_SUM
    is_renormalized: bool | None = None
    """None: as `norm_topk_prob` says."""
    scale_key: str | None = None
    epsilon: float = 0.0
    has_linear_bias: bool = False
    hash_layers_key: str | None = None
    activation: Activation = SILU
    """Numbers that the config does not state, or where it leaves them out."""
    limit_key: str | None = None
    alpha_key: str | None = None
    has_biases: bool = False
    quantizer: str = "fp8"
    """The `quant_method` that published weights may have: fp8 in blocks of 128, or mxfp4."""
    topk_methods: tuple[str, ...] = ()
    """Values of `topk_method` that mean this router; the first where the key is absent."""


_DEEPSEEK_V3 = Family(
    names=DEEPSEEK_V3_NAMES,
    score=Score.SIGMOID,
    num_experts_key="n_routed_experts",
    num_shared_key="n_shared_experts",
    first_moe_key="first_k_dense_replace",
    every_key="moe_layer_freq",
    mtp_key="num_nextn_predict_layers",
    is_grouped=True,
    scale_key="routed_scaling_factor",
    epsilon=1e-20,
    topk_methods=("noaux_tc",),
)

FAMILIES: Mapping[str, Family] = {
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": _DEEPSEEK_V3,  # experts and router of V3; only its attention differs (model-and-kernels §A6)
    "kimi_k2": _DEEPSEEK_V3,
    "deepseek_v2": Family(
        names=UNBIASED_NAMES,
        score=Score.SOFTMAX,
        num_experts_key="n_routed_experts",
        num_shared_key="n_shared_experts",
        first_moe_key="first_k_dense_replace",
        every_key="moe_layer_freq",
        is_grouped=True,
        group_reduce=GroupReduce.MAX,
        is_renormalized=False,
        scale_key="routed_scaling_factor",
        topk_methods=("greedy", "group_limited_greedy"),
    ),
    "glm4_moe": Family(
        names=DEEPSEEK_V3_NAMES,
        score=Score.SIGMOID,
        num_experts_key="n_routed_experts",
        num_shared_key="n_shared_experts",
        first_moe_key="first_k_dense_replace",
        mtp_key="num_nextn_predict_layers",
        is_grouped=True,
        scale_key="routed_scaling_factor",
        epsilon=1e-20,
    ),
    "qwen3_moe": Family(
        names=UNBIASED_NAMES,
        score=Score.SOFTMAX,
        num_experts_key="num_experts",
        every_key="decoder_sparse_step",
        every_offset=1,
        dense_layers_key="mlp_only_layers",
    ),
    "minimax_m2": Family(
        names=MINIMAX_NAMES,
        score=Score.SIGMOID,
        num_experts_key="num_local_experts",
        inter_key="intermediate_size",
        is_renormalized=True,
    ),
    "mixtral": Family(
        names=MIXTRAL_NAMES,
        score=Score.SOFTMAX,
        num_experts_key="num_local_experts",
        inter_key="intermediate_size",
        is_renormalized=True,
    ),
    "gpt_oss": Family(
        names=GPT_OSS_NAMES,
        score=Score.SOFTMAX_OF_CHOSEN,
        num_experts_key="num_local_experts",
        inter_key="intermediate_size",
        is_renormalized=False,  # a softmax over the chosen ones adds up to 1 already
        has_linear_bias=True,
        activation=GPT_OSS,
        limit_key="swiglu_limit",
        alpha_key="swiglu_alpha",
        has_biases=True,
        quantizer="mxfp4",
    ),
    "deepseek_v4": Family(  # its MTP layers are named `mtp.0…`: not read
        names=DEEPSEEK_V4_NAMES,
        score=Score.SQRT_SOFTPLUS,
        num_experts_key="n_routed_experts",
        num_shared_key="n_shared_experts",
        is_renormalized=True,
        scale_key="routed_scaling_factor",
        epsilon=1e-20,
        topk_methods=("noaux_tc",),
        hash_layers_key="num_hash_layers",
        activation=DEEPSEEK_V4,
        limit_key="swiglu_limit",
    ),
}

MISSING: Mapping[str, str] = {
    "kimi_k25": "it wraps a deepseek_v3 text model in `text_config`, with vision in front",
}
"""Families that we know of and cannot run, with what is missing."""
