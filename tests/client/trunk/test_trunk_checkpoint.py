"""A trunk is only made of tensors that are there, of the right shape, under their published names.

Run: pytest tests/client/trunk/test_trunk_checkpoint.py
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoal.client.trunk.checkpoint import load_mtp, load_trunk
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from shoal.protocol.errors import CheckpointError, InvalidRequest
from tests.checkpoints import SHAPES, read_tensors, write_checkpoint, write_tensors

Change = Callable[[dict[str, Tensor]], object]


def changed_model(root: Path, change: Change, shape: str = "plain") -> ModelStore:
    write_checkpoint(root / "model", SHAPES[shape], seed=1)
    tensors = read_tensors(root / "model")
    change(tensors)
    write_tensors(root / "model", tensors, num_files=1)
    return ModelStore.open(root / "model", root / "cache")


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.self_attn.kv_b_proj.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.2.mlp.shared_experts.down_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_trunk(changed_model(tmp_path, lambda tensors: tensors.pop(name)), InlineWorker(), torch.float32)
    assert caught.value.tensor == name


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    store = changed_model(tmp_path, lambda tensors: tensors.update({name: torch.zeros(3, 5)}))
    with pytest.raises(CheckpointError, match=r"\[3, 5\].*\[72, 24\]"):
        load_trunk(store, InlineWorker(), torch.float32)


def test_fp8_without_scales_is_refused(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.weight_scale_inv"
    store = changed_model(tmp_path, lambda tensors: tensors.pop(name), "wide_fp8")
    with pytest.raises(CheckpointError, match="float8"):
        load_trunk(store, InlineWorker(), torch.bfloat16)


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    changed_model(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    store = ModelStore.open(tmp_path / "model", tmp_path / "other_cache")
    trunk = load_trunk(store, InlineWorker(), torch.float32)
    logits = asyncio.run(trunk.logits(torch.eye(72)))
    assert torch.equal(logits.T, store.trunk_tensor("model.embed_tokens.weight"))


def test_a_checkpoint_without_mtp_layer_has_no_mtp(tmp_path: Path) -> None:
    store = changed_model(tmp_path, lambda tensors: None)
    assert load_mtp(store, load_trunk(store, InlineWorker(), torch.float32)) is None


@pytest.mark.parametrize("layers", [range(0), range(2, 2), range(2, 4), range(-1, 2), range(0, 3, 2)])
def test_layers_that_the_model_does_not_have_are_refused(layers: range, tmp_path: Path) -> None:
    store = changed_model(tmp_path, lambda tensors: None)
    with pytest.raises(InvalidRequest, match="layers"):
        load_trunk(store, InlineWorker(), torch.float32, layers)


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="float16"):
        load_trunk(changed_model(tmp_path, lambda tensors: None), InlineWorker(), torch.float16)
