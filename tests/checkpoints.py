"""Small random DeepSeek-V3-shaped checkpoints, written by transformers, for every test that needs a model on disk.

fp32 and bf16 ones are exactly what `save_pretrained` writes. fp8 ones are those, exported in the official layout:
e4m3 in blocks of 128 x 128 for the linears, bf16 for the rest, fp32 for the choice bias. Weights are drawn large enough
that attention, routing and every expert matter in the logits.
"""

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from shoal.kernels.formats import dequantize_fp8_block, encode_e8m0, quantize_fp8_block


class Stored(Enum):
    """How the weights are written."""

    F32 = "f32"
    BF16 = "bf16"
    FP8 = "fp8"
    """scales are f32"""
    FP8_UE8M0 = "fp8_ue8m0"
    """scales are powers of two, stored as F8_E8M0"""
    FP8_UE8M0_BYTES = "fp8_ue8m0_bytes"
    """the same stored as U8"""
    FP8_POWER_OF_TWO = "fp8_power_of_two"
    """powers of two stored as F32, as DeepSeek-V3.1 ships them"""


@dataclass(frozen=True, slots=True)
class CheckpointShape:
    """A DeepSeek-V3 in small. The defaults have four groups, one dense layer and no width that 128 divides."""

    hidden: int = 72
    inter: int = 40
    dense_inter: int = 104
    num_layers: int = 3
    num_dense_layers: int = 1
    num_experts: int = 8
    num_groups: int = 4
    topk_groups: int = 2
    top_k: int = 3
    num_shared_experts: int = 1
    num_heads: int = 2
    q_lora_rank: int | None = 24
    kv_lora_rank: int = 16
    qk_nope_head_dim: int = 8
    qk_rope_head_dim: int = 8
    v_head_dim: int = 12
    vocab_size: int = 96
    max_positions: int = 256
    has_yarn: bool = False
    has_mtp: bool = False
    """Tensors of one MTP layer are in the files."""
    stored: Stored = Stored.F32
    max_shard_size: str = "5GB"
    """Limit of a file; a small one makes shards and an index."""


SHAPES: dict[str, CheckpointShape] = {
    "plain": CheckpointShape(),
    "no_q_lora_three_dense_one_group": CheckpointShape(
        q_lora_rank=None, num_layers=5, num_dense_layers=3, num_groups=1, topk_groups=1, top_k=2
    ),
    "eight_groups_yarn_sharded": CheckpointShape(
        num_experts=32, num_groups=8, topk_groups=4, top_k=8, num_heads=4, has_yarn=True, max_shard_size="200KB"
    ),
    "two_dense_two_shared_bf16": CheckpointShape(
        num_layers=4, num_dense_layers=2, num_groups=2, topk_groups=1, num_shared_experts=2, stored=Stored.BF16
    ),
    "wide_fp8": CheckpointShape(hidden=256, inter=128, dense_inter=384, kv_lora_rank=48, stored=Stored.FP8),
    "ragged_fp8_mtp_sharded": CheckpointShape(
        hidden=200, inter=136, has_yarn=True, has_mtp=True, stored=Stored.FP8_UE8M0, max_shard_size="400KB"
    ),
}
"""Shapes that differ in everything an oracle test should see, by name."""

_QUANTIZED = ("_proj.weight", "_proj_with_mqa.weight")
_NOT_QUANTIZED = ("eh_proj.weight",)
_INDEX = "model.safetensors.index.json"


def write_checkpoint(directory: Path, shape: CheckpointShape, seed: int) -> None:
    """Write a random checkpoint; the same shape and seed give the same bytes."""
    torch.manual_seed(seed)
    model = DeepseekV3ForCausalLM(_config(shape))
    _randomize(model)
    model.to(torch.float32 if shape.stored is Stored.F32 else torch.bfloat16)
    model.save_pretrained(directory, max_shard_size=shape.max_shard_size)
    if shape.has_mtp or shape.stored not in (Stored.F32, Stored.BF16):
        tensors = read_tensors(directory)
        if shape.has_mtp:
            tensors |= _mtp_extras(tensors, shape)
        if shape.stored not in (Stored.F32, Stored.BF16):
            tensors = _export_fp8(tensors, shape.stored)
        write_tensors(directory, tensors, num_files=len(_files(directory)))
        _edit_config(directory, shape)


def dequantized_copy(directory: Path, out: Path) -> None:
    """Write an fp32 copy of a checkpoint, with exactly the values that the original stands for."""
    stored = read_tensors(directory)
    tensors = {}
    for name, tensor in stored.items():
        if name.endswith("_scale_inv"):
            continue
        scale = stored.get(name + "_scale_inv")
        tensors[name] = tensor.float() if scale is None else dequantize_fp8_block(tensor, scale)
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out, tensors, num_files=1)
    config = json.loads((directory / "config.json").read_text())
    config.pop("quantization_config", None)
    config["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config, indent=2))


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, read by the safetensors library."""
    return {name: tensor for file in _files(directory) for name, tensor in load_file(file).items()}


def write_tensors(directory: Path, tensors: dict[str, torch.Tensor], num_files: int) -> None:
    """Replace a directory's tensors; more than one file gets an index."""
    for file in _files(directory):
        file.unlink()
    (directory / _INDEX).unlink(missing_ok=True)
    names = sorted(tensors)
    if num_files == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for i in range(num_files):
        file_name = f"model-{i + 1:05}-of-{num_files:05}.safetensors"
        part = names[i * len(names) // num_files : (i + 1) * len(names) // num_files]
        save_file({name: tensors[name] for name in part}, directory / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file_name)
    (directory / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def _config(shape: CheckpointShape) -> DeepseekV3Config:
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": shape.max_positions // 4,
    }
    return DeepseekV3Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.dense_inter,
        moe_intermediate_size=shape.inter,
        num_hidden_layers=shape.num_layers + shape.has_mtp,
        first_k_dense_replace=shape.num_dense_layers,
        n_routed_experts=shape.num_experts,
        n_group=shape.num_groups,
        topk_group=shape.topk_groups,
        num_experts_per_tok=shape.top_k,
        n_shared_experts=shape.num_shared_experts,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        q_lora_rank=shape.q_lora_rank,
        kv_lora_rank=shape.kv_lora_rank,
        qk_nope_head_dim=shape.qk_nope_head_dim,
        qk_rope_head_dim=shape.qk_rope_head_dim,
        v_head_dim=shape.v_head_dim,
        max_position_embeddings=shape.max_positions,
        num_nextn_predict_layers=int(shape.has_mtp),
        rope_parameters=yarn if shape.has_yarn else {"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=0,
        eos_token_id=1,
    )


@torch.no_grad()
def _randomize(model: DeepseekV3ForCausalLM) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.normal_(1.0, 0.1)
        else:
            parameter.normal_(0.0, 1.0 if "embed" in name else parameter.shape[-1] ** -0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.uniform_(-0.1, 0.1)


def _mtp_extras(tensors: dict[str, torch.Tensor], shape: CheckpointShape) -> dict[str, torch.Tensor]:
    """What an MTP layer has besides a decoder layer; embedding and head are copies, as published."""
    prefix, dtype = f"model.layers.{shape.num_layers}", tensors["lm_head.weight"].dtype
    join = torch.randn(shape.hidden, 2 * shape.hidden) * (2 * shape.hidden) ** -0.5
    norms = {name: torch.randn(shape.hidden) * 0.1 + 1 for name in ("enorm", "hnorm", "shared_head.norm")}
    return {
        f"{prefix}.eh_proj.weight": join.to(dtype),
        f"{prefix}.embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
        f"{prefix}.shared_head.head.weight": tensors["lm_head.weight"].clone(),
        **{f"{prefix}.{name}.weight": values.to(dtype) for name, values in norms.items()},
    }


def _export_fp8(tensors: dict[str, torch.Tensor], stored: Stored) -> dict[str, torch.Tensor]:
    exported = {}
    for name, tensor in tensors.items():
        if name.endswith("e_score_correction_bias"):
            exported[name] = tensor.float()
        elif name.endswith(_QUANTIZED) and not name.endswith(_NOT_QUANTIZED):
            data, scale = quantize_fp8_block(tensor, is_scale_power_of_two=stored is not Stored.FP8)
            exported[name] = data
            exported[name + "_scale_inv"] = _stored_scale(scale, stored)
        else:
            exported[name] = tensor
    return exported


def _stored_scale(scale: torch.Tensor, stored: Stored) -> torch.Tensor:
    if stored is Stored.FP8_UE8M0:
        return encode_e8m0(scale)
    return encode_e8m0(scale).view(torch.uint8) if stored is Stored.FP8_UE8M0_BYTES else scale


def _edit_config(directory: Path, shape: CheckpointShape) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["num_hidden_layers"] = shape.num_layers
    if shape.stored not in (Stored.F32, Stored.BF16):
        config["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "weight_block_size": [128, 128],
            "activation_scheme": "dynamic",
        }
        if shape.stored is not Stored.FP8:
            config["quantization_config"]["scale_fmt"] = "ue8m0"
    path.write_text(json.dumps(config, indent=2))
