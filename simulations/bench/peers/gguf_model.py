"""The small DeepSeek-V3 as llama.cpp reads it: GGUF, architecture `deepseek2`, fp32, no vocabulary.

Runs in llama.cpp's environment. Names and shapes: `src/models/deepseek2.cpp` of llama.cpp (MIT), which absorbs MLA's
`kv_b_proj`: its key half is stored transposed, head by head, and all heads share one key (`head_count_kv` is 1).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

Weights = Mapping[str, npt.NDArray[np.float32]]
Named = Iterator[tuple[str, npt.NDArray[np.float32]]]

OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
ATTENTION = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj",
    "attn_q_a": "self_attn.q_a_proj", "attn_q_a_norm": "self_attn.q_a_layernorm", "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa", "attn_kv_a_norm": "self_attn.kv_a_layernorm",
}  # fmt: skip
PROJECTIONS = ("gate", "up", "down")


def write_gguf(directory: Path, path: Path) -> None:
    """Write the checkpoint of a directory as GGUF."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "deepseek2")
    writer.add_tokenizer_model("no_vocab")
    _add_shape(writer, config)
    for name, values in _tensors(load_file(directory / "model.safetensors"), config):
        writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    rope_dim, lora = config["qk_rope_head_dim"], config["kv_lora_rank"]
    values: dict[Callable[[Any], None], object] = {
        writer.add_vocab_size: config["vocab_size"],
        writer.add_block_count: config["num_hidden_layers"],
        writer.add_context_length: config["max_position_embeddings"],
        writer.add_embedding_length: config["hidden_size"],
        writer.add_feed_forward_length: config["intermediate_size"],
        writer.add_leading_dense_block_count: config["first_k_dense_replace"],
        writer.add_layer_norm_rms_eps: config["rms_norm_eps"],
        writer.add_rope_freq_base: config["rope_parameters"]["rope_theta"],
        writer.add_rope_dimension_count: rope_dim,
        writer.add_head_count: config["num_attention_heads"],
        writer.add_head_count_kv: 1,
        writer.add_q_lora_rank: config["q_lora_rank"],
        writer.add_kv_lora_rank: lora,
        writer.add_key_length: lora + rope_dim,
        writer.add_value_length: lora,
        writer.add_key_length_mla: config["qk_nope_head_dim"] + rope_dim,
        writer.add_value_length_mla: config["v_head_dim"],
        writer.add_expert_count: config["n_routed_experts"],
        writer.add_expert_used_count: config["num_experts_per_tok"],
        writer.add_expert_shared_count: config["n_shared_experts"],
        writer.add_expert_feed_forward_length: config["moe_intermediate_size"],
        writer.add_expert_group_count: config["n_group"],
        writer.add_expert_group_used_count: config["topk_group"],
        writer.add_expert_weights_scale: config["routed_scaling_factor"],
        writer.add_expert_weights_norm: config["norm_topk_prob"],
        writer.add_expert_gating_func: gguf.ExpertGatingFuncType.SIGMOID,
    }
    for add, value in values.items():
        add(value)


def _tensors(weights: Weights, config: dict[str, Any]) -> Named:
    yield from ((name, weights[theirs]) for name, theirs in OUTSIDE.items())
    for number in range(config["num_hidden_layers"]):
        layer = {
            name.removeprefix(prefix): values
            for prefix in (f"model.layers.{number}.",)
            for name, values in weights.items()
            if name.startswith(prefix)
        }
        is_dense = number < config["first_k_dense_replace"]
        parts = (_attention(layer, config), _dense(layer) if is_dense else _experts(layer, config))
        yield from ((f"blk.{number}.{name}", values) for part in parts for name, values in part)


def _attention(layer: Weights, config: dict[str, Any]) -> Named:
    yield from ((f"{name}.weight", layer[f"{theirs}.weight"]) for name, theirs in ATTENTION.items())
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    by_head = layer["self_attn.kv_b_proj.weight"].reshape(heads, nope + config["v_head_dim"], config["kv_lora_rank"])
    yield "attn_k_b.weight", by_head[:, :nope].transpose(0, 2, 1)
    yield "attn_v_b.weight", by_head[:, nope:]


def _dense(layer: Weights) -> Named:
    yield from ((f"ffn_{each}.weight", layer[f"mlp.{each}_proj.weight"]) for each in PROJECTIONS)


def _experts(layer: Weights, config: dict[str, Any]) -> Named:
    yield "ffn_gate_inp.weight", layer["mlp.gate.weight"]
    yield "exp_probs_b.bias", layer["mlp.gate.e_score_correction_bias"]
    for each in PROJECTIONS:
        yield f"ffn_{each}_shexp.weight", layer[f"mlp.shared_experts.{each}_proj.weight"]
        numbers = range(config["n_routed_experts"])
        yield f"ffn_{each}_exps.weight", np.stack([layer[f"mlp.experts.{i}.{each}_proj.weight"] for i in numbers])
