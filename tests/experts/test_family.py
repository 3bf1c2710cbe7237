"""Router and expert specs of real config files; values copied from the published configs."""

from dataclasses import replace

import pytest

from shoal.experts.families import FAMILIES
from shoal.experts.family import ExpertSpec, GroupReduce, ModelSpec, RouterSpec, Score, model_spec
from shoal.kernels.activation import Activation
from shoal.protocol.errors import CheckpointError, InvalidRequest
from shoal.protocol.ids import ExpertId, LayerId

FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
DEEPSEEK_V3: dict[str, object] = {
    "model_type": "deepseek_v3",
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "quantization_config": FP8,
}
KIMI_K2 = DEEPSEEK_V3 | {
    "model_type": "kimi_k2",
    "num_nextn_predict_layers": 0,
    "first_k_dense_replace": 1,
    "n_routed_experts": 384,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.827,
}
DEEPSEEK_V2_LITE: dict[str, object] = {
    "model_type": "deepseek_v2",
    "hidden_act": "silu",
    "hidden_size": 2048,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
}
DEEPSEEK_V2 = DEEPSEEK_V2_LITE | {
    "hidden_size": 5120,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 60,
    "n_routed_experts": 160,
    "n_group": 8,
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
    "routed_scaling_factor": 16.0,
}
QWEN3: dict[str, object] = {
    "model_type": "qwen3_moe",
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
}
MIXTRAL: dict[str, object] = {
    "model_type": "mixtral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
MINIMAX_M2: dict[str, object] = {
    "model_type": "minimax_m2",
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "num_hidden_layers": 62,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
    "scoring_func": "sigmoid",
}
GLM_AIR: dict[str, object] = {
    "model_type": "glm4_moe",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 46,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
}
GPT_OSS_120B: dict[str, object] = {
    "model_type": "gpt_oss",
    "hidden_act": "silu",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "attention_bias": True,
    "swiglu_limit": 7.0,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
}
DEEPSEEK_V4_FLASH: dict[str, object] = {
    "model_type": "deepseek_v4",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 43,
    "num_hash_layers": 3,
    "num_nextn_predict_layers": 1,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 6,
    "topk_method": "noaux_tc",
    "scoring_func": "sqrtsoftplus",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "expert_dtype": "fp4",
    "quantization_config": FP8 | {"scale_fmt": "ue8m0"},
}


def _router(
    score: Score,
    has_choice_bias: bool,
    counts: tuple[int, int, int, int],
    reduce: GroupReduce,
    is_renormalized: bool,
    scale: float,
    epsilon: float,
) -> RouterSpec:
    num_experts, top_k, num_groups, topk_groups = counts
    return RouterSpec(
        score, has_choice_bias, num_experts, top_k, num_groups, topk_groups, reduce, is_renormalized, scale, epsilon
    )


TOP2, MAX = GroupReduce.TOP2_SUM, GroupReduce.MAX
ROUTERS = [
    (DEEPSEEK_V3, _router(Score.SIGMOID, True, (256, 8, 8, 4), TOP2, True, 2.5, 1e-20)),
    (KIMI_K2, _router(Score.SIGMOID, True, (384, 8, 1, 1), TOP2, True, 2.827, 1e-20)),
    (DEEPSEEK_V2_LITE, _router(Score.SOFTMAX, False, (64, 6, 1, 1), MAX, False, 1.0, 0.0)),
    (DEEPSEEK_V2, _router(Score.SOFTMAX, False, (160, 6, 8, 3), MAX, False, 16.0, 0.0)),
    (GLM_AIR, _router(Score.SIGMOID, True, (128, 8, 1, 1), TOP2, True, 1.0, 1e-20)),
    (QWEN3, _router(Score.SOFTMAX, False, (128, 8, 1, 1), TOP2, True, 1.0, 0.0)),
    (MINIMAX_M2, _router(Score.SIGMOID, True, (256, 8, 1, 1), TOP2, True, 1.0, 0.0)),
    (MIXTRAL, _router(Score.SOFTMAX, False, (8, 2, 1, 1), TOP2, True, 1.0, 0.0)),
    (
        GPT_OSS_120B,
        replace(_router(Score.SOFTMAX_OF_CHOSEN, False, (128, 4, 1, 1), TOP2, False, 1.0, 0.0), has_linear_bias=True),
    ),
    (
        DEEPSEEK_V4_FLASH,
        replace(_router(Score.SQRT_SOFTPLUS, True, (256, 6, 1, 1), TOP2, True, 1.5, 1e-20), num_hash_layers=3),
    ),
]

EXPERTS = [
    (DEEPSEEK_V3, ExpertSpec(7168, 2048)),
    (KIMI_K2, ExpertSpec(7168, 2048)),
    (DEEPSEEK_V2_LITE, ExpertSpec(2048, 1408)),
    (DEEPSEEK_V2, ExpertSpec(5120, 1536)),
    (GLM_AIR, ExpertSpec(4096, 1408)),
    (QWEN3, ExpertSpec(2048, 768)),
    (MINIMAX_M2, ExpertSpec(3072, 1536)),
    (MIXTRAL, ExpertSpec(4096, 14336)),
    (GPT_OSS_120B, ExpertSpec(2880, 2880, Activation(limit=7.0, alpha=1.702, up_offset=1.0), has_biases=True)),
    (DEEPSEEK_V4_FLASH, ExpertSpec(4096, 2048, Activation(limit=10.0))),
]


@pytest.mark.parametrize(
    ("config", "expert"), EXPERTS, ids=lambda value: str(value.get("model_type")) if isinstance(value, dict) else ""
)
def test_published_configs_give_their_expert(config: dict[str, object], expert: ExpertSpec) -> None:
    assert model_spec(config).expert == expert


def test_every_family_of_the_table_is_tested() -> None:
    tested = {str(config["model_type"]) for config, _ in EXPERTS}
    assert tested | {"deepseek_v32"} == set(FAMILIES)
    assert tested == {str(config["model_type"]) for config, _ in ROUTERS}


def test_a_config_states_the_activation_s_numbers() -> None:
    stated = model_spec(GPT_OSS_120B | {"swiglu_limit": 5.5, "swiglu_alpha": 1.5}).expert.activation
    assert stated == Activation(limit=5.5, alpha=1.5, up_offset=1.0)


@pytest.mark.parametrize("count", [0, 2, 43])
def test_hash_layers_are_counted_in_either_spelling(count: int) -> None:
    kinds = ["hash_moe"] * count + ["moe"] * (43 - count)
    assert model_spec(DEEPSEEK_V4_FLASH | {"num_hash_layers": count}).router.num_hash_layers == count
    assert model_spec(DEEPSEEK_V4_FLASH | {"mlp_layer_types": kinds}).router.num_hash_layers == count


@pytest.mark.parametrize(
    ("config", "router"), ROUTERS, ids=lambda value: str(value.get("model_type")) if isinstance(value, dict) else ""
)
def test_published_configs_give_their_router(config: dict[str, object], router: RouterSpec) -> None:
    assert model_spec(config).router == router


def test_deepseek_v3_has_58_moe_layers_and_an_mtp_layer_of_44_million_parameters_an_expert() -> None:
    spec = model_spec(DEEPSEEK_V3)
    assert spec.moe_layers == tuple(range(3, 62))
    assert (spec.num_layers, spec.num_mtp_layers, spec.num_shared_experts) == (61, 1, 1)
    assert spec.expert.macs_per_row == 44_040_192


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (KIMI_K2, range(1, 61)),
        (DEEPSEEK_V2_LITE, range(1, 27)),
        (DEEPSEEK_V3 | {"num_nextn_predict_layers": 0, "moe_layer_freq": 2}, range(4, 61, 2)),
        (GLM_AIR, range(1, 47)),
        (QWEN3, range(48)),
        (QWEN3 | {"decoder_sparse_step": 2}, range(1, 48, 2)),
        (QWEN3 | {"mlp_only_layers": [0, 47]}, range(1, 47)),
        (MIXTRAL, range(32)),
    ],
)
def test_moe_layers_follow_the_family_s_rule(config: dict[str, object], layers: range) -> None:
    assert model_spec(config).moe_layers == tuple(layers)


def _names(spec: ModelSpec) -> list[str | None]:
    experts = [spec.expert_tensor(LayerId(5), ExpertId(7), projection) for projection in ("gate", "up", "down")]
    return [*experts, spec.router_tensor(LayerId(5)), spec.choice_bias_tensor(LayerId(5))]


def test_tensor_names_are_the_published_ones() -> None:
    mlp, block = "model.layers.5.mlp.", "model.layers.5.block_sparse_moe."
    gated = [f"{mlp}experts.7.{name}_proj.weight" for name in ("gate", "up", "down")]
    numbered = [f"{block}experts.7.{name}.weight" for name in ("w1", "w3", "w2")]
    assert _names(model_spec(DEEPSEEK_V3)) == [*gated, f"{mlp}gate.weight", f"{mlp}gate.e_score_correction_bias"]
    assert _names(model_spec(QWEN3)) == [*gated, f"{mlp}gate.weight", None]
    assert _names(model_spec(MIXTRAL)) == [*numbered, f"{block}gate.weight", None]
    assert _names(model_spec(MINIMAX_M2)) == [*numbered, f"{block}gate.weight", f"{block}e_score_correction_bias"]
    stacked = [f"{mlp}experts.{name}" for name in ("gate_up_proj", "gate_up_proj", "down_proj")]
    assert _names(model_spec(GPT_OSS_120B)) == [*stacked, f"{mlp}router.weight", None]
    short = [f"layers.5.ffn.experts.7.{name}.weight" for name in ("w1", "w3", "w2")]
    assert _names(model_spec(DEEPSEEK_V4_FLASH)) == [*short, "layers.5.ffn.gate.weight", "layers.5.ffn.gate.bias"]


@pytest.mark.parametrize("model_type", ["llama", None, 7, "x" * 10_000])
def test_an_unknown_family_is_refused_with_the_list_of_known_ones(model_type: object) -> None:
    with pytest.raises(InvalidRequest, match=r"unknown model_type .*known: deepseek_v3, .*mixtral") as caught:
        model_spec(DEEPSEEK_V3 | {"model_type": model_type})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("model_type", "missing"), [("kimi_k25", "vision")])
def test_a_family_whose_arithmetic_is_missing_says_what_is_missing(model_type: str, missing: str) -> None:
    assert model_type not in FAMILIES
    with pytest.raises(InvalidRequest, match=missing):
        model_spec({"model_type": model_type})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"mlp_bias": True}, "biases"),
        ({"scoring_func": "softmax"}, "scoring_func 'softmax'"),
        ({"topk_method": "greedy"}, "topk_method 'greedy'"),
        ({"quantization_config": {"quant_method": "modelopt"}}, "quantized by 'modelopt'"),
        ({"quantization_config": FP8 | {"weight_block_size": [1, 32]}}, r"blocks of \[1, 32\]"),
        ({"quantization_config": FP8 | {"fmt": "e5m2"}}, "cannot run"),
        ({"first_k_dense_replace": 61, "num_nextn_predict_layers": 0}, "without routed experts"),
    ],
)
def test_a_variant_that_we_cannot_compute_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        model_spec(DEEPSEEK_V3 | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"swiglu_limit": float("nan")}, "swiglu_limit is nan"),
        ({"swiglu_limit": -7.0}, r"swiglu_limit is -7\.0"),
        ({"swiglu_limit": 0}, "swiglu_limit is 0"),
        ({"swiglu_limit": "7"}, "swiglu_limit is '7'"),
        ({"swiglu_alpha": float("inf")}, "swiglu_alpha is inf"),
        ({"swiglu_alpha": True}, "swiglu_alpha is True"),
    ],
)
def test_an_activation_that_means_nothing_is_refused_by_name(change: dict[str, object], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        model_spec(GPT_OSS_120B | change)


@pytest.mark.parametrize("kinds", [["moe", "hash_moe"], ["hash_moe"] * 44, "hash_moe", ["dense"] * 43])
def test_layers_of_another_kind_than_the_family_has_are_refused(kinds: object) -> None:
    with pytest.raises(CheckpointError, match="mlp_layer_types is"):
        model_spec(DEEPSEEK_V4_FLASH | {"mlp_layer_types": kinds})


@pytest.mark.parametrize("config", [GPT_OSS_120B, DEEPSEEK_V3, DEEPSEEK_V4_FLASH])
def test_weights_of_another_quantizer_are_refused(config: dict[str, object]) -> None:
    other = {"quant_method": "fp8" if config is GPT_OSS_120B else "mxfp4"}
    with pytest.raises(InvalidRequest, match="cannot run"):
        model_spec(config | {"quantization_config": other})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_routed_experts": None}, "n_routed_experts is None, expected an integer"),
        ({"n_routed_experts": True}, "n_routed_experts is True"),
        ({"n_routed_experts": 0}, "n_routed_experts is 0"),
        ({"n_routed_experts": 10**9}, "n_routed_experts is 1000000000"),
        ({"hidden_size": 7168.0}, r"hidden_size is 7168\.0"),
        ({"hidden_size": 10**6}, "hidden_size is 1000000"),
        ({"moe_intermediate_size": -1}, "moe_intermediate_size is -1"),
        ({"num_experts_per_tok": 17}, r"num_experts_per_tok is 17, expected an integer in 1\.\.16"),
        ({"n_group": 7}, "n_group is 7, expected a divisor of the 256 experts"),
        ({"n_group": 256, "topk_group": 8}, "groups of at least two experts"),
        ({"topk_group": 9}, r"topk_group is 9, expected an integer in 1\.\.8"),
        ({"n_group": 128, "topk_group": 3}, "topk_group is 3, expected groups with room for 8 experts"),
        ({"norm_topk_prob": None}, "norm_topk_prob is None"),
        ({"routed_scaling_factor": float("nan")}, "routed_scaling_factor is nan"),
        ({"routed_scaling_factor": "2.5"}, "routed_scaling_factor is '2.5'"),
        ({"first_k_dense_replace": 62}, "first_k_dense_replace is 62"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
        ({"num_nextn_predict_layers": 10**6}, "num_nextn_predict_layers is 1000000"),
        ({"moe_layer_freq": 0}, "moe_layer_freq is 0"),
        ({"quantization_config": 5}, "quantization_config is 5"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(change: dict[str, object], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        model_spec(DEEPSEEK_V3 | change)
