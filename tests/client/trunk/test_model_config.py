"""A published config is read whole; a wrong one is refused by the name of its key.

Run: pytest tests/client/trunk/test_model_config.py
"""

import pytest

from shoal.client.trunk.config import RopeConfig, model_config
from shoal.protocol.errors import CheckpointError, InvalidRequest
from shoal.protocol.ids import LayerId

DEEPSEEK_V3: dict[str, object] = {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
    "max_position_embeddings": 163840,
    "num_nextn_predict_layers": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
"""As published (model-and-kernels §A1), routing aside."""


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in DEEPSEEK_V3.items() if name != key}


def test_deepseek_v3_is_read_as_published() -> None:
    config = model_config(DEEPSEEK_V3)
    assert (config.cache_width, config.qk_head_dim, config.layers) == (576, 192, range(61))
    assert config.rope.yarn is not None
    assert (config.rope.yarn.factor, config.rope.yarn.original_max_position_embeddings) == (40.0, 4096)
    assert [config.is_moe(LayerId(layer)) for layer in (2, 3, 61)] == [False, True, True]


def test_what_transformers_writes_means_the_same() -> None:
    yarn = dict(DEEPSEEK_V3["rope_scaling"])  # type: ignore[call-overload]
    rewritten = {**without("rope_scaling"), "rope_parameters": {**yarn, "rope_type": "yarn", "rope_theta": 10000.0}}
    del rewritten["rope_theta"]
    assert model_config(rewritten) == model_config(DEEPSEEK_V3)


@pytest.mark.parametrize("parameters", [None, {}, {"rope_type": "default"}])
def test_without_scaling_positions_are_plain(parameters: object) -> None:
    config = model_config({**without("rope_scaling"), "rope_parameters": parameters, "rope_theta": 5e4})
    assert config.rope == RopeConfig(theta=5e4, is_interleaved=True, yarn=None)


@pytest.mark.parametrize(("value", "expected"), [(1, (1,)), ([1, 5], (1, 5)), (None, ())])
def test_there_may_be_several_end_tokens_or_none(value: object, expected: tuple[int, ...]) -> None:
    assert model_config({**DEEPSEEK_V3, "eos_token_id": value}).eos_token_ids == expected


def test_queries_may_be_projected_directly() -> None:
    assert model_config({**DEEPSEEK_V3, "q_lora_rank": None}).q_lora_rank is None


@pytest.mark.parametrize("key", ["hidden_size", "kv_lora_rank", "rms_norm_eps", "max_position_embeddings"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(CheckpointError, match=key):
        model_config(without(key))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", "7168"),
        ("hidden_size", True),
        ("num_hidden_layers", 1.5),
        ("rms_norm_eps", -1e-6),
        ("rms_norm_eps", float("nan")),
        ("qk_rope_head_dim", 63),
        ("tie_word_embeddings", 1),
        ("eos_token_id", "1"),
        ("eos_token_id", [1, -1]),
        ("rope_scaling", "yarn"),
    ],
)
def test_a_value_out_of_range_is_named_and_shown(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key):
        model_config({**DEEPSEEK_V3, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "mixtral"),
        ("model_type", None),
        ("hidden_act", "gelu"),
        ("moe_layer_freq", 2),
        ("rope_scaling", {"type": "longrope", "factor": 2.0}),
    ],
)
def test_what_this_trunk_cannot_run_is_refused_as_such(key: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match="this trunk runs"):
        model_config({**DEEPSEEK_V3, key: value})
