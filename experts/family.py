"""What a model family's router and experts are, as data (DESIGN §3; model-and-kernels §A3, §A8).

Read from a checkpoint's `config.json`. Everything that differs between DeepSeek, Kimi, GLM or Qwen is a value of these
records, not a branch in the code that uses them: a family is a row of `families.FAMILIES`. Knows no attention:
`client/trunk/config.py` does. Knows no tensors either: which layers a checkpoint has is `shard.py`'s question.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from shoal.experts.families import FAMILIES, MISSING, Family
from shoal.experts.specs import (
    PROJECTIONS,
    SCALE_SUFFIX,
    ExpertLayout,
    ExpertSpec,
    GroupReduce,
    ModelSpec,
    RouterSpec,
    Score,
    TensorNames,
)
from shoal.kernels.activation import Activation
from shoal.protocol import limits
from shoal.protocol.errors import CheckpointError, InvalidRequest, ModelNotFound
from shoal.protocol.ids import LayerId

__all__ = [
    "CONFIG_FILE",
    "FAMILIES",
    "PROJECTIONS",
    "SCALE_SUFFIX",
    "ExpertLayout",
    "ExpertSpec",
    "Family",
    "GroupReduce",
    "ModelSpec",
    "RouterSpec",
    "Score",
    "TensorNames",
    "model_spec",
    "read_config",
]

CONFIG_FILE = "config.json"

MAX_CONFIG_BYTES = 1024 * 1024
"""`config.json`; published ones have 2 KB, a few with per-layer lists 50 KB."""

MAX_INTER = 65_536
"""`I`: four times Mixtral's 14,336, the widest expert of model-and-kernels §A8."""

MAX_EXPERTS = 65_536
"""Experts of a layer: what an expert id on the wire can name."""

MAX_SCALE = 1e6
"""Router scale and similar factors; DeepSeek-V2's 16 is the largest known."""


def model_spec(config: Mapping[str, object]) -> ModelSpec:
    """What `config.json` says about routers and experts.

    The MTP layers that the config announces are in `moe_layers`; published files may lack them, so that
    `ModelStore.spec` has those that are really there.

    Raises:
        InvalidRequest: a family, or a variant of one, whose arithmetic we do not have.
        CheckpointError: a key is missing or out of range, or two contradict each other.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise _unknown_family(model_type)
    family = FAMILIES[model_type]
    _check_variant(config, family)
    num_layers = _integer(config, "num_hidden_layers", 1, limits.MAX_LAYER)
    num_mtp = _integer(config, family.mtp_key, 0, limits.MAX_LAYER - num_layers, default=0) if family.mtp_key else 0
    return ModelSpec(
        model_type=model_type,
        router=_router(config, family),
        expert=ExpertSpec(
            hidden=_integer(config, "hidden_size", 1, limits.MAX_HIDDEN),
            inter=_integer(config, family.inter_key, 1, MAX_INTER),
            activation=_activation(config, family),
            has_biases=family.has_biases,
        ),
        moe_layers=_moe_layers(config, family, num_layers, num_mtp),
        num_layers=num_layers,
        num_mtp_layers=num_mtp,
        num_shared_experts=_integer(config, family.num_shared_key, 0, 64, default=0) if family.num_shared_key else 0,
        names=family.names,
    )


def read_config(directory: Path) -> dict[str, object]:
    """Read `config.json` of a checkpoint directory.

    Raises:
        ModelNotFound: no such directory, or no config.json in it. CheckpointError: not a JSON object, or too large.
    """
    path = directory / CONFIG_FILE
    if not directory.is_dir():
        raise ModelNotFound(f"no such model directory: {directory}")
    if not path.is_file():
        raise ModelNotFound(f"{directory} holds no checkpoint (config.json is missing)")
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(CONFIG_FILE, None, f"more than {MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(str(path), None, f"not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(str(path), None, "not a JSON object")
    return cast(dict[str, object], config)


def _unknown_family(model_type: object) -> InvalidRequest:
    known = ", ".join(FAMILIES)
    if isinstance(model_type, str) and model_type in MISSING:
        return InvalidRequest(f"model_type {model_type} cannot run: {MISSING[model_type]}; known: {known}")
    return InvalidRequest(f"unknown model_type {model_type!r:.80}; known: {known}")


def _activation(config: Mapping[str, object], family: Family) -> Activation:
    """The family's activation with the numbers that the config states."""
    fixed = family.activation
    return Activation(
        limit=_number(config, family.limit_key, fixed.limit) if family.limit_key else fixed.limit,
        alpha=_number(config, family.alpha_key, fixed.alpha) if family.alpha_key else fixed.alpha,
        up_offset=fixed.up_offset,
    )


def _check_variant(config: Mapping[str, object], family: Family) -> None:
    """Refuse what would change the arithmetic of an expert, or how it is stored, and is not there."""
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise InvalidRequest(f"experts with hidden_act {activation!r:.80} cannot run; silu can")
    if config.get("mlp_bias"):
        raise InvalidRequest("experts with biases (mlp_bias) cannot run")
    quantization = config.get("quantization_config")
    if quantization is None:
        return
    if not isinstance(quantization, Mapping):
        raise _bad("quantization_config", quantization, "an object")
    method, block = quantization.get("quant_method"), quantization.get("weight_block_size")
    if method == family.quantizer == "mxfp4":
        return
    if method != family.quantizer or block != [128, 128] or quantization.get("fmt", "e4m3") != "e4m3":
        possible = "mxfp4" if family.quantizer == "mxfp4" else "fp8 e4m3 in [128, 128]"
        raise InvalidRequest(
            f"weights quantized by {method!r:.80} in blocks of {block!r:.80} cannot run; {possible} can"
        )


def _router(config: Mapping[str, object], family: Family) -> RouterSpec:
    num_experts = _integer(config, family.num_experts_key, 1, MAX_EXPERTS)
    top_k = _integer(config, "num_experts_per_tok", 1, min(limits.MAX_TOP_K, num_experts))
    num_groups, topk_groups = _groups(config, family, num_experts, top_k)
    if config.get("scoring_func", family.score.value) != family.score.value:
        raise InvalidRequest(f"scoring_func {config['scoring_func']!r:.80}; this family has {family.score.value}")
    return RouterSpec(
        score=family.score,
        has_choice_bias=family.names.choice_bias is not None,
        num_experts=num_experts,
        top_k=top_k,
        num_groups=num_groups,
        topk_groups=topk_groups,
        group_reduce=family.group_reduce,
        is_renormalized=_is_renormalized(config, family),
        scale=_number(config, family.scale_key) if family.scale_key else 1.0,
        epsilon=family.epsilon,
        has_linear_bias=family.has_linear_bias,
        num_hash_layers=_num_hash_layers(config, family),
    )


def _num_hash_layers(config: Mapping[str, object], family: Family) -> int:
    """`num_hash_layers`, or what `mlp_layer_types` says in its place (transformers 5.23 writes that one)."""
    if not family.hash_layers_key:
        return 0
    kinds = config.get("mlp_layer_types")
    if kinds is None:
        return _integer(config, family.hash_layers_key, 0, limits.MAX_LAYER, default=3)
    count = kinds.count("hash_moe") if isinstance(kinds, list) else 0
    num_layers = _integer(config, "num_hidden_layers", 1, limits.MAX_LAYER)
    if kinds != (["hash_moe"] * count + ["moe"] * num_layers)[:num_layers]:
        raise _bad("mlp_layer_types", kinds, "hash_moe for the first layers, moe for the others")
    return count


def _groups(config: Mapping[str, object], family: Family, num_experts: int, top_k: int) -> tuple[int, int]:
    """Number of routing groups and how many of them a token may use; (1, 1) where routing knows no groups."""
    method = config.get("topk_method", family.topk_methods[0] if family.topk_methods else None)
    if family.topk_methods and method not in family.topk_methods:
        raise InvalidRequest(f"topk_method {method!r:.80}; this family has {', '.join(family.topk_methods)}")
    if not family.is_grouped or method == "greedy":
        return 1, 1
    num_groups = _integer(config, "n_group", 1, num_experts, default=1)
    topk_groups = _integer(config, "topk_group", 1, num_groups, default=1)
    if num_experts % num_groups:
        raise _bad("n_group", num_groups, f"a divisor of the {num_experts} experts")
    if num_groups > 1 and family.group_reduce is GroupReduce.TOP2_SUM and num_experts // num_groups < 2:
        raise _bad("n_group", num_groups, "groups of at least two experts, as a group's score is its top two")
    if top_k > topk_groups * (num_experts // num_groups):
        raise _bad("topk_group", topk_groups, f"groups with room for {top_k} experts a token")
    return num_groups, topk_groups


def _is_renormalized(config: Mapping[str, object], family: Family) -> bool:
    stated = config.get("norm_topk_prob")
    if family.is_renormalized is None:
        if not isinstance(stated, bool):
            raise _bad("norm_topk_prob", stated, "true or false")
        return stated
    if isinstance(stated, bool) and stated is not family.is_renormalized:
        raise InvalidRequest(f"norm_topk_prob {stated}; this family has {family.is_renormalized}")
    return family.is_renormalized


def _moe_layers(
    config: Mapping[str, object], family: Family, num_layers: int, num_mtp_layers: int
) -> tuple[LayerId, ...]:
    first = _integer(config, family.first_moe_key, 0, num_layers) if family.first_moe_key else 0
    every = _integer(config, family.every_key, 1, num_layers, default=1) if family.every_key else 1
    dense = config.get(family.dense_layers_key, []) if family.dense_layers_key else []
    if not isinstance(dense, list) or any(type(layer) is not int for layer in dense):
        raise _bad(str(family.dense_layers_key), dense, "a list of layer numbers")
    chosen = [i for i in range(first, num_layers) if (i + family.every_offset) % every == 0 and i not in dense]
    if not chosen:
        raise InvalidRequest("a model without routed experts")
    return tuple(LayerId(layer) for layer in [*chosen, *range(num_layers, num_layers + num_mtp_layers)])


def _integer(config: Mapping[str, object], key: str, low: int, high: int, default: int | None = None) -> int:
    """The integer under `key`, low <= value <= high; `default`, if there is one, where it is absent or null."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise _bad(key, value, f"an integer in {low}..{high}")
    return value


def _number(config: Mapping[str, object], key: str, default: float | None = None) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(key, value, "a number")
    if not math.isfinite(value) or not 0 < value <= MAX_SCALE:
        raise _bad(key, value, f"in 0..{MAX_SCALE:.0f}, not 0")
    return float(value)


def _bad(key: str, value: object, expected: str) -> CheckpointError:
    return CheckpointError(CONFIG_FILE, None, f"{key} is {value!r:.80}, expected {expected}")
