"""The table of sizes is right for the real model, and is what a loaded trunk really holds.

Run: pytest tests/client/trunk/test_trunk_sizes.py
"""

from dataclasses import replace

import pytest
import torch

from shoal.client.trunk.checkpoint import load_trunk
from shoal.client.trunk.linear_maker import TrunkFormat, linear_maker
from shoal.client.trunk.sizes import trunk_sizes
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from tests.checkpoints import SHAPES, Stored, write_checkpoint
from tests.client.trunk.test_model_config import DEEPSEEK_V3

CONFIG = DEEPSEEK_V3 | {
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}
"""DeepSeek-V3 and V3.1 as published (model-and-kernels §A1)."""

ALIGNED = replace(
    SHAPES["wide_fp8"], hidden=256, inter=128, dense_inter=384, q_lora_rank=128, kv_lora_rank=128, num_heads=2,
    qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, vocab_size=128, num_experts=64, top_k=2, has_mtp=True,
    stored=Stored.FP8,
)  # fmt: skip
"""Widths that no format pads."""


@pytest.mark.parametrize(
    ("trunk_format", "gigabytes", "tolerance"),
    [
        (TrunkFormat.DENSE, 34.2, 0.01),
        (TrunkFormat.AS_PUBLISHED, 19.1, 0.01),
        (TrunkFormat.INT4_G32, 12.4, 0.03),
        (TrunkFormat.INT4_G128, 11.7, 0.01),
    ],
)
def test_the_trunk_of_deepseek_v3_has_the_size_of_the_founding_notes(
    trunk_format: TrunkFormat, gigabytes: float, tolerance: float
) -> None:
    assert trunk_sizes(CONFIG, trunk_format).total == pytest.approx(gigabytes * 1e9, rel=tolerance)


def test_the_trunk_of_deepseek_v3_has_17_billion_parameters() -> None:
    sizes = trunk_sizes(CONFIG, TrunkFormat.BF16)
    assert sizes.total / 2 == pytest.approx(17.11e9, rel=1e-3)
    assert sizes.attention / 2 == pytest.approx(11.41e9, rel=1e-3)
    assert sizes.shared_experts / 2 == pytest.approx(2.55e9, rel=2e-3)
    assert sizes.vocabulary / 2 == pytest.approx(1.853e9, rel=1e-3)


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    root = tmp_path_factory.mktemp("aligned")
    write_checkpoint(root / "model", ALIGNED, seed=1)
    return ModelStore.open(root / "model", root / "cache")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("trunk_format", TrunkFormat)
def test_a_loaded_trunk_holds_what_the_table_says(
    trunk_format: TrunkFormat, dtype: torch.dtype, aligned: ModelStore
) -> None:
    trunk = load_trunk(aligned, InlineWorker(), dtype, maker=linear_maker(trunk_format, dtype, 1))
    assert trunk.resident_bytes == trunk_sizes(aligned.config, trunk_format, dtype).total
