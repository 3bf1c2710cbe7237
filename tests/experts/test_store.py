"""A model directory from the outside: what node and client get is verified, or refused by file and tensor."""

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.experts.checkpoint import INDEX_FILE
from shoal.experts.family import PROJECTIONS, SCALE_SUFFIX
from shoal.experts.manifest import MANIFEST_FILE, write_manifest
from shoal.experts.manifest_maker import make_manifest
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.shard import expert_tensor_names
from shoal.experts.store import ModelStore
from shoal.protocol.errors import CheckpointError, InvalidRequest, ModelNotFound
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import WeightFormat
from tests.checkpoints import (
    SHAPES,
    CheckpointShape,
    Stored,
    dequantized_copy,
    read_tensors,
    write_checkpoint,
    write_tensors,
)

LAYER, EXPERT = LayerId(1), ExpertId(5)
SMALL_FP8 = CheckpointShape(
    hidden=24, inter=20, dense_inter=28, num_layers=2, num_experts=4, num_groups=2, topk_groups=1, top_k=2,
    vocab_size=16, stored=Stored.FP8, max_shard_size="9KB",
)  # fmt: skip


def _ship(directory: Path, shape: CheckpointShape, seed: int = 1) -> Path:
    """A checkpoint with its manifest beside it."""
    write_checkpoint(directory, shape, seed)
    write_manifest(make_manifest(directory), directory / MANIFEST_FILE)
    return directory


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _ship(tmp_path_factory.mktemp("model") / "sharded", SHAPES["ragged_fp8_mtp_sharded"])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _ship(tmp_path_factory.mktemp("model") / "small", SMALL_FP8)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _ship(tmp_path_factory.mktemp("model") / "single", replace(SMALL_FP8, max_shard_size="5GB"))


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _everything(directory: Path) -> Iterator[torch.Tensor]:
    """Read and verify all that a store gives out."""
    with ModelStore.open(directory, directory / "cache") as store:
        for layer in store.spec.moe_layers:
            for expert in range(store.spec.router.num_experts):
                weights = store.expert(layer, ExpertId(expert))
                yield from (weights.gate.data, weights.up.data, weights.down.data)
        for name in sorted(store.manifest.trunk):
            yield store.trunk_tensor(name)


def _bytes(tensors: Iterator[torch.Tensor]) -> list[bytes]:
    return [tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]


# ------------------------------------------------------------------------------------------------ what one gets


@pytest.mark.parametrize("name", SHAPES)
def test_experts_and_trunk_have_the_values_that_transformers_reads(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    write_checkpoint(directory, SHAPES[name], seed=3)
    dequantized_copy(directory, tmp_path / "plain")
    expected = read_tensors(tmp_path / "plain")
    backend = ReferenceBackend()
    with ModelStore.open(directory, tmp_path / "cache") as store:
        for layer in store.spec.moe_layers:
            packed = backend.pack(store.spec.expert, store.expert(layer, EXPERT))
            for projection, weight in zip(PROJECTIONS, packed.weights.matrices, strict=True):
                assert torch.equal(weight, expected[store.spec.expert_tensor(layer, EXPERT, projection)])
        for tensor in store.manifest.trunk:
            if not tensor.endswith(SCALE_SUFFIX):
                assert torch.equal(store.trunk_weight(tensor).values(), expected[tensor])


def test_a_store_says_what_it_holds(sharded: Path) -> None:
    with ModelStore.open(sharded, sharded / "cache") as store:
        assert store.weight_format is WeightFormat.FP8_BLOCK
        assert store.config["hidden_size"] == 200
        assert store.spec.moe_layers == (1, 2, 3)
        assert store.spec.num_mtp_layers == 1
        assert store.manifest.num_experts == 24
        assert store.has("model.layers.3.eh_proj.weight")
        assert not store.has("model.layers.4.eh_proj.weight")
        assert store.trunk_tensor("model.layers.0.self_attn.o_proj.weight").dtype is torch.float8_e4m3fn


def test_a_holder_reads_the_headers_of_its_shards_and_its_experts_and_not_a_byte_more(sharded: Path) -> None:
    stored = read_tensors(sharded)
    with ModelStore.open(sharded, sharded / "cache") as store:
        assert store.bytes_read == 0, "a shipped manifest opens a model without reading a shard"
        chosen = [(LayerId(1), ExpertId(0)), (LayerId(1), ExpertId(7)), (LayerId(3), ExpertId(2))]
        names = [
            name
            for layer, expert in chosen
            for name in expert_tensor_names(store.checkpoint, store.spec, layer, expert)
        ]
        for layer, expert in chosen:
            store.expert(layer, expert)
        files = {store.checkpoint.file_of(name) for name in names}
        assert len(files) < len(store.checkpoint.files)
        headers = sum(_header_bytes(sharded / file) for file in files)
        assert store.bytes_read == headers + sum(stored[name].nbytes for name in names)


def test_a_holder_needs_only_the_shards_of_its_experts(sharded: Path, tmp_path: Path) -> None:
    directory = tmp_path / "partial"
    shutil.copytree(sharded, directory)
    with ModelStore.open(directory, tmp_path) as store:
        kept = {store.checkpoint.file_of(n) for n in expert_tensor_names(store.checkpoint, store.spec, LAYER, EXPERT)}
        elsewhere = next(file for file in store.checkpoint.files if file not in kept)
    (directory / elsewhere).unlink()
    with ModelStore.open(directory, tmp_path) as store:
        store.expert(LAYER, EXPERT)
        with pytest.raises(CheckpointError, match="No such file") as caught:
            list(_everything(directory))
    assert caught.value.file == elsewhere


def test_an_expert_that_does_not_exist_is_an_invalid_request(sharded: Path) -> None:
    with ModelStore.open(sharded, sharded / "cache") as store:
        with pytest.raises(InvalidRequest, match=r"layer 0 has no experts; layers 1\.\.3 do"):
            store.expert(LayerId(0), EXPERT)
        for expert in (-1, 8):
            with pytest.raises(InvalidRequest, match=r"there are 0\.\.7"):
                store.expert(LAYER, ExpertId(expert))


def test_a_missing_directory_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such model directory"):
        ModelStore.open(tmp_path / "nowhere", tmp_path)
    with pytest.raises(ModelNotFound, match=r"config\.json is missing"):
        ModelStore.open(tmp_path, tmp_path)
    (tmp_path / "config.json").write_text(" " * 2**20 + "{}")
    with pytest.raises(CheckpointError, match=r"config\.json: more than"):
        ModelStore.open(tmp_path, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"')
    with pytest.raises(CheckpointError, match=r"config\.json: not JSON"):
        ModelStore.open(tmp_path, tmp_path)


def test_a_trunk_tensor_that_is_not_there_is_refused_by_name(sharded: Path) -> None:
    with (
        ModelStore.open(sharded, sharded / "cache") as store,
        pytest.raises(CheckpointError, match=r"model\.nothing: missing"),
    ):
        store.trunk_tensor("model.nothing")


def test_a_manifest_that_misstates_the_format_is_refused(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "model")
    manifest = replace(make_manifest(small), weight_format=WeightFormat.BF16)
    write_manifest(manifest, tmp_path / "model" / MANIFEST_FILE)
    with (
        ModelStore.open(tmp_path / "model", tmp_path) as store,
        pytest.raises(CheckpointError, match="FP8_BLOCK, the manifest has BF16"),
    ):
        store.expert(LAYER, ExpertId(0))


def test_an_expert_s_tensor_is_no_trunk_tensor(sharded: Path) -> None:
    with (
        ModelStore.open(sharded, sharded / "cache") as store,
        pytest.raises(CheckpointError, match="not in the manifest"),
    ):
        store.trunk_tensor(store.spec.expert_tensor(LAYER, EXPERT, "up"))


# ------------------------------------------------------------------------------------------------ damage


def test_a_flipped_bit_in_any_tensor_is_refused_by_file_and_tensor(sharded: Path, tmp_path: Path) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(sharded, directory)
    chooser = random.Random(7)
    with ModelStore.open(directory, tmp_path) as store:
        for name in sorted(store.checkpoint.names):
            file = store.checkpoint.file_of(name)
            shard, entry = store.checkpoint.open_file(file), store.checkpoint.entry(name)
            position = shard.data_start + entry.begin + chooser.randrange(entry.size_bytes)
            _flip_bit(directory / file, position, chooser.randrange(8))
            with pytest.raises(CheckpointError) as caught:
                _take(store, name)
            assert file in caught.value.file
            assert caught.value.tensor is not None
            assert name.startswith(caught.value.tensor.rstrip("*"))
            shutil.copy(sharded / file, directory / file)


@pytest.mark.parametrize("kind", ["small", "single"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_in_a_header_or_index_is_refused_or_changes_nothing(
    kind: str, data: st.DataObject, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: Path = request.getfixturevalue(kind)
    files = sorted(path.name for path in model.glob("*.safetensors*"))
    file = data.draw(st.sampled_from(files))
    size = (model / file).stat().st_size if file == INDEX_FILE else _header_bytes(model / file)
    directory = tmp_path / "damaged"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(model, directory)
    _flip_bit(directory / file, data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 7)))
    values = _bytes_or_refusal(directory)
    if isinstance(values, CheckpointError):
        assert values.file.endswith((".safetensors", ".json"))
    else:
        assert values == _bytes(_everything(model)), "only metadata may change unnoticed"


def _bytes_or_refusal(directory: Path) -> list[bytes] | CheckpointError:
    try:
        return _bytes(_everything(directory))
    except CheckpointError as error:
        return error


def _take(store: ModelStore, name: str) -> None:
    """Ask for whatever contains the tensor."""
    if name in store.manifest.trunk:
        store.trunk_tensor(name)
    else:
        _, _, layer, _, _, expert, *_ = name.split(".")
        store.expert(LayerId(int(layer)), ExpertId(int(expert)))


def _flip_bit(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (value,) = file.read(1)
        file.seek(position)
        file.write(bytes([value ^ 1 << bit]))


def _replace(model: Path, directory: Path, changes: dict[str, torch.Tensor]) -> ModelStore:
    """A store over a copy of a model with its manifest and some tensors of another kind."""
    shutil.copytree(model, directory)
    write_tensors(directory, read_tensors(model) | changes, num_files=1)
    return ModelStore.open(directory, directory)


GATE = "model.layers.1.mlp.experts.2.gate_proj.weight"
DOWN = "model.layers.1.mlp.experts.2.down_proj.weight"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (DOWN, lambda t: t.T.contiguous(), r"F8_E4M3\[20, 24\], expected F8_E4M3\[24, 20\]"),
        (GATE, lambda t: t.view(torch.uint8), "expert weights of dtype U8"),
        (GATE, lambda t: t.float().half(), "expert weights of dtype F16"),
        (DOWN, lambda t: t.bfloat16(), r"BF16\[24, 20\], expected F8_E4M3"),
        (GATE + SCALE_SUFFIX, lambda t: t.bfloat16(), r"BF16\[1, 1\], expected F32 or F8_E8M0 or U8\[1, 1\]"),
        (GATE + SCALE_SUFFIX, lambda t: t.view(1), r"F32\[1\], expected"),
        (GATE + SCALE_SUFFIX, lambda t: t * 2, "not the bytes, names or shapes of the manifest"),
    ],
)
def test_a_tensor_of_another_shape_or_dtype_is_refused_by_name(
    single: Path, tmp_path: Path, name: str, change: object, words: str
) -> None:
    assert callable(change)
    changed = {name: change(read_tensors(single)[name])}
    with (
        _replace(single, tmp_path / "changed", changed) as store,
        pytest.raises(CheckpointError, match=words) as caught,
    ):
        store.expert(LAYER, ExpertId(2))
    assert caught.value.file == "model.safetensors"
    assert caught.value.tensor is not None
    assert name.startswith(caught.value.tensor.rstrip("*"))


def test_swapped_experts_are_refused(single: Path, tmp_path: Path) -> None:
    tensors = read_tensors(single)
    swapped = {
        name: tensors[name.replace(".experts.2.", ".experts.3.")] for name in tensors if ".experts.2." in name
    } | {name: tensors[name.replace(".experts.3.", ".experts.2.")] for name in tensors if ".experts.3." in name}
    with _replace(single, tmp_path / "swapped", swapped) as store:
        for expert in (2, 3):
            with pytest.raises(CheckpointError, match=rf"experts\.{expert}\.\*: not the bytes"):
                store.expert(LAYER, ExpertId(expert))
        store.expert(LAYER, ExpertId(1))


def test_a_missing_scale_is_refused_when_the_model_is_opened(single: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(single, directory)
    tensors = read_tensors(single)
    del tensors[DOWN + SCALE_SUFFIX]
    write_tensors(directory, tensors, num_files=1)
    with (
        ModelStore.open(directory, tmp_path) as store,
        pytest.raises(CheckpointError, match="its block scales are missing") as caught,
    ):
        store.expert(LAYER, ExpertId(2))
    assert caught.value.tensor == DOWN
    (directory / MANIFEST_FILE).unlink()
    with pytest.raises(CheckpointError, match="its block scales are missing"):
        ModelStore.open(directory, tmp_path)


def test_an_fp8_nan_in_the_trunk_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, replace(SMALL_FP8, max_shard_size="5GB"), seed=1)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = read_tensors(tmp_path)
    tensors[name].view(torch.uint8)[3, 3] = 0xFF
    write_tensors(tmp_path, tensors, num_files=1)
    with (
        ModelStore.open(tmp_path, tmp_path / "cache") as store,
        pytest.raises(CheckpointError, match="fp8 NaN") as caught,
    ):
        store.trunk_weight(name).values()
    assert caught.value.tensor == name
