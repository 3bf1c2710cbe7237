"""Which tensors a published DeepSeek-V3 checkpoint has, in which order, and in which of its files each one is.

Names, dtypes and shapes are the published ones (model-and-kernels §A2, from a dump of all 91,991 tensors). Which file a
tensor is in stands in an index that we may not ship; it is worked out by a rule that gives back what is public: the
sizes of all 163 files, and the places of `lm_head` (160) and of the MTP layer's own tensors (163). The rule: the model
was saved by eight pipeline stages, each of which ended a file as soon as its tensors had 2^32 *elements*. Knows names
and numbers; writes nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

BLOCK = 128
"""Rows and columns that share a scale."""

ITEM_BYTES = {"F8_E4M3": 1, "BF16": 2, "F32": 4}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.num_elements * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class PublishedShape:
    """Sizes of a DeepSeek-V3, and how it was saved. The defaults are the published ones; a test takes smaller ones."""

    hidden: int = 7168
    dense_inter: int = 18432
    inter: int = 2048
    num_layers: int = 61
    num_dense_layers: int = 3
    num_experts: int = 256
    num_groups: int = 8
    topk_groups: int = 4
    top_k: int = 8
    num_heads: int = 128
    q_lora_rank: int = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    vocab_size: int = 129_280
    stages: tuple[int, ...] = (7, 15, 23, 31, 39, 47, 54)
    """Layers that begin a new stage, and with it a new file."""
    file_elements: int = 2**32
    """A file ends with the tensor that brings it to so many elements."""
    has_mtp: bool = True

    def config(self) -> dict[str, object]:
        """`config.json`: the published keys that say something about weights."""
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden,
            "intermediate_size": self.dense_inter,
            "moe_intermediate_size": self.inter,
            "num_hidden_layers": self.num_layers,
            "num_nextn_predict_layers": int(self.has_mtp),
            "first_k_dense_replace": self.num_dense_layers,
            "moe_layer_freq": 1,
            "n_shared_experts": 1,
            "n_routed_experts": self.num_experts,
            "num_experts_per_tok": self.top_k,
            "n_group": self.num_groups,
            "topk_group": self.topk_groups,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_heads,
            "q_lora_rank": self.q_lora_rank,
            "kv_lora_rank": self.kv_lora_rank,
            "qk_nope_head_dim": self.qk_nope_head_dim,
            "qk_rope_head_dim": self.qk_rope_head_dim,
            "v_head_dim": self.v_head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000,
            "max_position_embeddings": 163_840,
            "tie_word_embeddings": False,
            "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]},
        }


DEEPSEEK_V3_1 = PublishedShape()


def tensors(shape: PublishedShape) -> Iterator[Tensor]:
    """All tensors, in the order in which they were saved."""
    yield Tensor("model.embed_tokens.weight", "BF16", (shape.vocab_size, shape.hidden))
    for layer in range(shape.num_layers):
        yield from _layer(shape, layer)
    yield Tensor("model.norm.weight", "BF16", (shape.hidden,))
    yield Tensor("lm_head.weight", "BF16", (shape.vocab_size, shape.hidden))
    if shape.has_mtp:
        yield from _layer(shape, shape.num_layers)
        yield from _mtp(shape)


def files(shape: PublishedShape) -> Mapping[str, tuple[Tensor, ...]]:
    """File name to its tensors, in the order in which they were saved."""
    parts: list[list[Tensor]] = [[]]
    starts = {f"model.layers.{layer}" for layer in shape.stages}
    num_elements = 0
    for tensor in tensors(shape):
        layer = ".".join(tensor.name.split(".")[:3])
        if num_elements >= shape.file_elements or layer in starts:
            parts.append([])
            num_elements = 0
        starts.discard(layer)
        parts[-1].append(tensor)
        num_elements += tensor.num_elements
    return {f"model-{i:05}-of-{len(parts):06}.safetensors": tuple(part) for i, part in enumerate(parts, 1)}


def _layer(shape: PublishedShape, layer: int) -> Iterator[Tensor]:
    stem = f"model.layers.{layer}."
    yield from _attention(shape, stem + "self_attn.")
    if layer < shape.num_dense_layers:
        yield from _swiglu(stem + "mlp.", shape.hidden, shape.dense_inter)
    else:
        yield Tensor(stem + "mlp.gate.weight", "BF16", (shape.num_experts, shape.hidden))
        yield Tensor(stem + "mlp.gate.e_score_correction_bias", "F32", (shape.num_experts,))
        yield from _swiglu(stem + "mlp.shared_experts.", shape.hidden, shape.inter)
        for expert in range(shape.num_experts):
            yield from _swiglu(f"{stem}mlp.experts.{expert}.", shape.hidden, shape.inter)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield Tensor(f"{stem}{norm}.weight", "BF16", (shape.hidden,))


def _attention(shape: PublishedShape, stem: str) -> Iterator[Tensor]:
    queries = shape.num_heads * (shape.qk_nope_head_dim + shape.qk_rope_head_dim)
    values = shape.num_heads * (shape.qk_nope_head_dim + shape.v_head_dim)
    yield from _linear(stem + "q_a_proj", shape.q_lora_rank, shape.hidden)
    yield Tensor(stem + "q_a_layernorm.weight", "BF16", (shape.q_lora_rank,))
    yield from _linear(stem + "q_b_proj", queries, shape.q_lora_rank)
    yield from _linear(stem + "kv_a_proj_with_mqa", shape.kv_lora_rank + shape.qk_rope_head_dim, shape.hidden)
    yield Tensor(stem + "kv_a_layernorm.weight", "BF16", (shape.kv_lora_rank,))
    yield from _linear(stem + "kv_b_proj", values, shape.kv_lora_rank)
    yield from _linear(stem + "o_proj", shape.hidden, shape.num_heads * shape.v_head_dim)


def _swiglu(stem: str, hidden: int, inter: int) -> Iterator[Tensor]:
    yield from _linear(stem + "gate_proj", inter, hidden)
    yield from _linear(stem + "up_proj", inter, hidden)
    yield from _linear(stem + "down_proj", hidden, inter)


def _linear(stem: str, rows: int, columns: int) -> Iterator[Tensor]:
    yield Tensor(stem + ".weight", "F8_E4M3", (rows, columns))
    yield Tensor(stem + ".weight_scale_inv", "F32", (-(-rows // BLOCK), -(-columns // BLOCK)))


def _mtp(shape: PublishedShape) -> Iterator[Tensor]:
    """What the MTP layer has beside a layer's tensors; the published file has embedding and head a second time."""
    stem, wide = f"model.layers.{shape.num_layers}.", (shape.vocab_size, shape.hidden)
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        yield Tensor(f"{stem}{norm}.weight", "BF16", (shape.hidden,))
    yield Tensor(stem + "eh_proj.weight", "BF16", (shape.hidden, 2 * shape.hidden))
    yield Tensor(stem + "embed_tokens.weight", "BF16", wide)
    yield Tensor(stem + "shared_head.head.weight", "BF16", wide)
