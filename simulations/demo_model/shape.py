"""The model's shape: one frozen record, and the `config.json` that says the same in DeepSeek-V3's words.

Everything else in this folder takes a `Shape`; nothing hard-codes a width. It knows no tensors and no training.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN context extension (arXiv 2309.00071), keys as in DeepSeek-V3's `rope_scaling`."""

    factor: float = 4.0
    original_max_position_embeddings: int = 512
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths and counts under DeepSeek-V3's own names; the defaults are the demonstration model.

    The defaults come from a byte budget of 14 MiB: embeddings and head are stored twice each in bf16 (the MTP layer
    repeats them), so `vocab_size * hidden_size * 8` bytes are spent before the first layer. `moe_intermediate_size`
    stays a multiple of 64 so that every weight format (groups of 32, blocks of 128) can hold an expert.
    """

    vocab_size: int = 2048
    hidden_size: int = 256
    num_hidden_layers: int = 5
    first_k_dense_replace: int = 1
    intermediate_size: int = 512
    moe_intermediate_size: int = 64
    n_routed_experts: int = 32
    n_shared_experts: int = 1
    n_group: int = 8
    topk_group: int = 4
    num_experts_per_tok: int = 4
    routed_scaling_factor: float = 2.5
    num_attention_heads: int = 8
    q_lora_rank: int = 128
    kv_lora_rank: int = 96
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    yarn: Yarn = Yarn()

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head: the part without position and the rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def num_moe_layers(self) -> int:
        """Routed layers of the main model; the MTP layer is one more."""
        return self.num_hidden_layers - self.first_k_dense_replace

    def is_moe(self, layer: int) -> bool:
        """Whether decoder layer `layer` is routed (the MTP layer, index `num_hidden_layers`, is)."""
        return layer >= self.first_k_dense_replace


TINY = Shape(
    vocab_size=320,
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=48,
    moe_intermediate_size=16,
    n_routed_experts=8,
    n_group=4,
    topk_group=2,
    num_experts_per_tok=2,
    num_attention_heads=2,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
)
"""A shape for tests: every part present, milliseconds a step."""


def config_json(shape: Shape, bos_token_id: int, eos_token_id: int) -> dict[str, object]:
    """The checkpoint's `config.json`, key for key as DeepSeek-V3's (plus V3.1's `scale_fmt`)."""
    yarn = shape.yarn
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "ep_size": 1,
        "first_k_dense_replace": shape.first_k_dense_replace,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "kv_lora_rank": shape.kv_lora_rank,
        "max_position_embeddings": shape.max_position_embeddings,
        "model_type": "deepseek_v3",
        "moe_intermediate_size": shape.moe_intermediate_size,
        "moe_layer_freq": 1,
        "n_group": shape.n_group,
        "n_routed_experts": shape.n_routed_experts,
        "n_shared_experts": shape.n_shared_experts,
        "norm_topk_prob": True,
        "num_attention_heads": shape.num_attention_heads,
        "num_experts_per_tok": shape.num_experts_per_tok,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.num_attention_heads,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": shape.q_lora_rank,
        "qk_nope_head_dim": shape.qk_nope_head_dim,
        "qk_rope_head_dim": shape.qk_rope_head_dim,
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "scale_fmt": "ue8m0",
            "weight_block_size": [128, 128],
        },
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_scaling": {
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "factor": yarn.factor,
            "mscale": yarn.mscale,
            "mscale_all_dim": yarn.mscale_all_dim,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
            "type": "yarn",
        },
        "rope_theta": shape.rope_theta,
        "routed_scaling_factor": shape.routed_scaling_factor,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": shape.topk_group,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": shape.v_head_dim,
        "vocab_size": shape.vocab_size,
    }


def shape_from_config(config: dict[str, object]) -> Shape:
    """The inverse of `config_json` (only for checkpoints that this folder wrote)."""
    fields = {name: config[name] for name in Shape.__dataclass_fields__ if name != "yarn"}
    scaling = config["rope_scaling"]
    if not isinstance(scaling, dict):
        raise ValueError(f"rope_scaling: expected an object, got {scaling!r}")
    yarn = Yarn(**{name: scaling[name] for name in Yarn.__dataclass_fields__})
    return Shape(**fields, yarn=yarn)  # type: ignore[arg-type]  # JSON values; a wrong one fails at the first matmul
