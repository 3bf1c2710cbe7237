"""A checkpoint with one dense layer of DeepSeek-V3 at full width, random weights, stored as published.

What makes it a model (a vocabulary, a second layer of small experts) is as small as it may be and never read: the
benchmark opens layer 0 alone. Knows no clock.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from shoal.kernels.formats import num_blocks

CONFIG: dict[str, object] = {
    "model_type": "deepseek_v3",
    "vocab_size": 8,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}
"""Widths of the published config.json (model-and-kernels §A1), without YaRN, which changes cos and sin only."""

LINEARS = {
    "self_attn.q_a_proj": (1536, 7168),
    "self_attn.q_b_proj": (24576, 1536),
    "self_attn.kv_a_proj_with_mqa": (576, 7168),
    "self_attn.kv_b_proj": (32768, 512),
    "self_attn.o_proj": (7168, 16384),
    "mlp.gate_proj": (18432, 7168),
    "mlp.up_proj": (18432, 7168),
    "mlp.down_proj": (7168, 18432),
}
NORMS = {
    "input_layernorm": 7168,
    "post_attention_layernorm": 7168,
    "self_attn.q_a_layernorm": 1536,
    "self_attn.kv_a_layernorm": 512,
}
CODE_SCALE = 64.0
"""Gaussian weights times this fill e4m3 (its largest number is 448, seven standard deviations)."""


def write_layer(directory: Path, seed: int = 1) -> None:
    """Write the checkpoint, 0.6 GB; the same seed gives the same bytes."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    save_file(dict(_tensors(torch.Generator().manual_seed(seed))), directory / "model.safetensors")


def _tensors(generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    for name, shape in LINEARS.items():
        yield from _fp8(f"model.layers.0.{name}.weight", shape, generator)
    for name, width in NORMS.items():
        yield f"model.layers.0.{name}.weight", torch.ones(width, dtype=torch.bfloat16)
    for expert in range(2):
        for projection, shape in (("gate", (8, 7168)), ("up", (8, 7168)), ("down", (7168, 8))):
            name = f"model.layers.1.mlp.experts.{expert}.{projection}_proj.weight"
            yield from _fp8(name, shape, generator)
    yield "model.layers.1.mlp.gate.weight", torch.zeros(2, 7168, dtype=torch.bfloat16)
    yield "model.layers.1.mlp.gate.e_score_correction_bias", torch.zeros(2)
    yield "model.embed_tokens.weight", torch.zeros(8, 7168, dtype=torch.bfloat16)


def _fp8(name: str, shape: tuple[int, int], generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    codes = torch.randn(shape, generator=generator).mul_(CODE_SCALE).clamp_(-448, 448).to(torch.float8_e4m3fn)
    yield name, codes
    scale = 1 / (CODE_SCALE * shape[1] ** 0.5)
    yield f"{name}_scale_inv", torch.full([num_blocks(size) for size in shape], scale)
