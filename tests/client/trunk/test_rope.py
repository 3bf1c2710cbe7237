"""Positions are those of transformers for every way to write them down.

Run: pytest tests/client/trunk/test_rope.py
"""

import asyncio
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from shoal.client.trunk.checkpoint import load_trunk
from shoal.client.trunk.config import ModelConfig, model_config
from shoal.client.trunk.local_experts import LocalExperts
from shoal.client.trunk.rope import RotaryEmbedding, softmax_scale
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from shoal.protocol.messages import Rounding

SMALL = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_nextn_predict_layers": 0,
}

numbers = st.one_of(st.none(), st.floats(0.1, 2.0))
scalings = st.fixed_dictionaries(
    {"rope_theta": st.sampled_from([1e4, 5e4, 1e6]), "rope_type": st.just("yarn"), "factor": st.floats(1.0, 64.0)},
    optional={
        "original_max_position_embeddings": st.sampled_from([32, 512, 4096]),
        "beta_fast": st.sampled_from([1.0, 16.0, 32.0]),
        "beta_slow": st.sampled_from([1.0, 2.0]),
        "mscale": numbers,
        "mscale_all_dim": numbers,
        "attention_factor": numbers,
        "truncate": st.booleans(),
    },
)


def both(scaling: dict[str, object], width: int) -> tuple[DeepseekV3Config, ModelConfig]:
    theirs = DeepseekV3Config(**SMALL, qk_rope_head_dim=width, max_position_embeddings=8192, rope_parameters=scaling)
    return theirs, model_config(theirs.to_dict())


@pytest.mark.filterwarnings("ignore")  # transformers warns of factors that do not match the context
@given(scaling=scalings, width=st.sampled_from([2, 8, 16, 64]))
def test_angles_and_scale_are_those_of_transformers(scaling: dict[str, object], width: int) -> None:
    theirs, ours = both(dict(scaling), width)
    positions = torch.tensor([0, 1, 7, 63, 4095])
    cos, sin = DeepseekV3RotaryEmbedding(theirs)(torch.zeros(1), positions[None])
    rotation = RotaryEmbedding(ours).at(positions, torch.float32)
    assert torch.equal(rotation.cos[:, 0], cos[0, :, : width // 2])
    assert torch.equal(rotation.sin[:, 0], sin[0, :, : width // 2])
    assert softmax_scale(ours) == pytest.approx(DeepseekV3Attention(theirs, 0).scaling, rel=1e-12)


@pytest.mark.parametrize(
    "variant",
    [
        {"rope_interleave": False},
        {"attention_bias": True},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 8.0,
                "mscale": 0.7,
                "mscale_all_dim": 1.1,
            }
        },
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "attention_factor": 1.3}},
        {"tie_word_embeddings": True},
    ],
)
def test_rarer_variants_give_the_logits_of_transformers(variant: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = {**SMALL, "qk_rope_head_dim": 8, "max_position_embeddings": 128, **variant}
    theirs = DeepseekV3ForCausalLM(DeepseekV3Config(**settings, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.0 if parameter.ndim > 1 else 1.0, 0.15)
    theirs.save_pretrained(tmp_path / "model")
    store, worker = ModelStore.open(tmp_path / "model", tmp_path / "cache"), InlineWorker()
    trunk, ids = load_trunk(store, worker, torch.float32), torch.arange(60) % 64
    experts = LocalExperts(store, ReferenceBackend(), Rounding.FP32, worker)

    async def ours() -> torch.Tensor:
        return await trunk.logits(await trunk.forward(ids, trunk.new_cache(), experts))

    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    torch.testing.assert_close(asyncio.run(ours()), expected, rtol=0, atol=1e-5)
